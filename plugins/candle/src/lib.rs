//! What Crossgate's candle plugins share: models that rank, computed by candle on one device.
//!
//! Reading order: [`backend`] is what the host calls; `model` what a folder becomes at load, by way of
//! `config`, `weights`, `raw` and `loader`; `family` has a file for each architecture; `block` what those are made
//! of; `rows` the rows that are computed together; `numbers` the data types; `cuda` what NVIDIA's GPUs have of their own.
//! README.md has the figures.
//!
//! A plugin is a library of a few lines: a type whose [`backend_api::Plugin`] passes on to [`backend::card`]
//! and [`backend::open`], with the [`backend::Place`] that it was built for.

pub mod backend;

mod block;
mod config;
#[cfg(feature = "cuda")]
mod cuda;
mod family;
mod loader;
mod model;
mod numbers;
mod raw;
mod rows;
mod weights;
