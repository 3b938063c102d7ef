//! What the tests share: golden folders, and calls through the border. They run on a Mac's GPU, and nowhere else.

#![allow(dead_code, unreachable_pub, unused_imports)] // Each test file is a crate of its own and uses its part.

#[path = "../../../golden/rows.rs"]
mod rows;

pub use rows::{GoldenRow, farthest, golden, golden_dir, golden_names, score};

use backend_api::{Fault, OpenBackend, OpenRequest, OpenWorker, PluginLibrary};
use candle_metal::CandleMetal;

/// A request for a golden folder, with the options that it needs.
pub fn golden_request(name: &str, dtype: &str) -> OpenRequest {
    let options = serde_json::Value::from(golden(name).options);
    OpenRequest {
        model_dir: golden_dir(name),
        dtype: dtype.to_owned(),
        options: options.to_string(),
        row_tokens_max: 8_192,
        ..OpenRequest::default()
    }
}

pub fn open(request: &OpenRequest) -> Result<OpenBackend, Fault> {
    PluginLibrary::in_process::<CandleMetal>()
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
