//! What the tests share: golden folders, copies of them that are changed, and calls through the border.
//!
//! They run on a GPU, or on the emulated driver (`make test-cuda` says by LD_LIBRARY_PATH which); without either this
//! library does not load, so no test is passed over.

#![allow(dead_code, unreachable_pub, unused_imports)] // Each test file is a crate of its own and uses its part.

#[path = "../../../golden/edit.rs"]
pub mod edit;
#[path = "../../../golden/rows.rs"]
mod rows;

pub use rows::{GoldenRow, farthest, golden, golden_dir, golden_names, score, try_score};

use backend_api::{Fault, OpenBackend, OpenRequest, OpenWorker, PluginLibrary};
use candle_cuda::CandleCuda;
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

/// A request for a golden folder, with the options that it needs. Batches are small, for the largest is computed at open,
/// and emulated that takes long: as many tokens as the longest row has, or all rows if that is not many.
pub fn golden_request(name: &str, dtype: &str) -> OpenRequest {
    let golden = golden(name);
    let lens = golden.rows.iter().map(|row| row.input_ids.len() as u32);
    let longest = lens.clone().max().unwrap_or(1);
    let options = serde_json::Value::from(golden.options);
    OpenRequest {
        rows_max: 64,
        tokens_max: lens.sum::<u32>().min(2_048).max(longest),
        row_tokens_max: longest,
        ..request(&golden_dir(name), dtype, &options.to_string())
    }
}

pub fn open(request: &OpenRequest) -> Result<OpenBackend, Fault> {
    PluginLibrary::in_process::<CandleCuda>()
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
