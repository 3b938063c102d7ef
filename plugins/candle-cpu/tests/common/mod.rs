//! What the tests share: golden folders, copies of them that are changed, and calls through the border.

#![allow(dead_code, unreachable_pub, unused_imports)] // Each test file is a crate of its own and uses its part.

#[path = "../../../golden/edit.rs"]
pub mod edit;
pub mod gguf;
#[path = "../../../golden/rows.rs"]
mod rows;

pub use rows::{GoldenRow, farthest, golden, golden_dir, golden_names, score, try_score};

use backend_api::{Fault, OpenBackend, OpenRequest, OpenWorker, PluginLibrary};
use candle_cpu::CandleCpu;
use std::path::Path;

/// A request for a model folder with this dtype and these options.
pub fn request(dir: &Path, dtype: &str, options: &str) -> OpenRequest {
    OpenRequest {
        model_dir: dir.to_owned(),
        dtype: dtype.to_owned(),
        options: options.to_owned(),
        row_tokens_max: 8_192,
        ..OpenRequest::default()
    }
}

/// A request for a golden folder, with the options that it needs.
pub fn golden_request(name: &str, dtype: &str) -> OpenRequest {
    let options = serde_json::Value::from(golden(name).options);
    request(&golden_dir(name), dtype, &options.to_string())
}

/// The same request with one more option.
pub fn with_option(request: OpenRequest, name: &str, value: serde_json::Value) -> OpenRequest {
    let mut options: serde_json::Value = serde_json::from_str(&request.options).unwrap();
    options[name] = value;
    OpenRequest {
        options: options.to_string(),
        ..request
    }
}

pub fn open(request: &OpenRequest) -> Result<OpenBackend, Fault> {
    PluginLibrary::in_process::<CandleCpu>()
        .unwrap()
        .open(request)
}

/// Scores rows that must all be scored.
pub fn score_all(worker: &mut OpenWorker, rows: &[&GoldenRow]) -> Vec<Vec<f32>> {
    score(worker, rows)
        .into_iter()
        .map(|row| row.unwrap())
        .collect()
}
