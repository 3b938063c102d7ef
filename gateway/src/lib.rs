//! Crossgate's gateway: text in, scores out, computed by a plugin behind a stable ABI.
//!
//! A request goes one way, down this list; only its scores come back. No module uses one that stands
//! above it, except `app`, which puts all of them together, `bench`, which measures what `app` put
//! together, and `offline`, which scores files with it (`tests/tidy.rs` checks).

// Ground: nouns and instruments that every stage may use.
pub(crate) mod digest;
pub(crate) mod sync;

pub mod score;

pub mod load;

pub mod control;

pub mod config;
pub mod model;
pub mod runtime;
pub mod telemetry;

pub mod shared;

// The way of a request.
pub mod edge;

pub mod intake;

pub mod windows;

pub mod cache;

pub mod admit;

pub mod tokenize;

pub mod generation;

// What stands behind a generation, reached before it is live.
pub mod host;

// Composition.
pub mod app;
pub mod bench;
pub mod cli;
pub mod offline;
