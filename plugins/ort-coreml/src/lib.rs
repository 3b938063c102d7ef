//! A Crossgate plugin that scores ONNX files of cross-encoders by ONNX Runtime: on CPUs, by Core ML on Apple's chips, by CUDA or
//! OpenVINO where the runtime was built with them.
//!
//! Reading order: [`backend`] is what the host calls; [`options`], [`config`] and [`files`] are what it is given; [`library`]
//! finds the runtime; [`provider`] is what computes in it; [`graph`] a file that was opened; [`worker`] a batch on its way through.
//! [`native`] holds what Rust cannot check.

pub mod backend;
pub mod config;
pub mod files;
pub mod graph;
pub mod library;
pub mod native;
pub mod options;
pub mod provider;
pub mod worker;

pub use backend::OrtCoreMl;

backend_api::export_plugin!(OrtCoreMl);
