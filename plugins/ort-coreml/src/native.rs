//! The calls into ONNX Runtime that the `ort` crate has not, or has not in this way. All `unsafe` of the plugin is here.

pub mod library;
pub mod run;
