//! What the tests share: golden folders, copies of them that are changed, and calls through the border.
//!
//! They run on a GPU, or on the emulated driver (`make test-cuda` says by LD_LIBRARY_PATH which); without either this
//! library does not load, so no test is passed over.

#![allow(dead_code, unreachable_pub, unused_imports)] // Each test file is a crate of its own and uses its part.

#[path = "../../../golden/edit.rs"]
pub mod edit;
#[path = "../../../golden/gguf.rs"]
pub mod gguf;
#[path = "../../../golden/rows.rs"]
mod rows;
#[path = "../../../golden/suite.rs"]
pub mod suite;

pub use rows::{GoldenRow, farthest, golden, golden_dir, golden_names, score, try_score};
pub use suite::{request, score_all, with_option};

use backend_api::{Fault, OpenBackend, OpenRequest, PluginLibrary};
use candle_cuda::CandleCuda;

/// Sums in another order than PyTorch's: 3.9e-6 at most.
pub const F32_TOLERANCE: f32 = 1e-4;
/// Eleven bits of mantissa in weights and activations: 7.2e-3 at most, of logits whose standard deviation is about 1. The
/// random weights of these models are a harsher case than trained ones.
pub const F16_TOLERANCE: f32 = 1e-2;
/// Eight bits: 0.059.
pub const BF16_TOLERANCE: f32 = 0.1;

/// How far a golden model's logits may be from those of `transformers`.
pub fn tolerance(dtype: &str) -> f32 {
    match dtype {
        "f32" => F32_TOLERANCE,
        "f16" => F16_TOLERANCE,
        _ => BF16_TOLERANCE,
    }
}

/// A request for a golden folder, with the options that it needs. Batches are small, for the largest is computed at open,
/// and emulated that takes long: as many tokens as the longest row has, or all rows if that is not many. Without graphs:
/// left open, there are some or none by how long something took.
pub fn golden_request(name: &str, dtype: &str) -> OpenRequest {
    let golden = golden(name);
    let lens = golden.rows.iter().map(|row| row.input_ids.len() as u32);
    let longest = lens.clone().max().unwrap_or(1);
    let request = OpenRequest {
        rows_max: 64,
        tokens_max: lens.sum::<u32>().min(2_048).max(longest),
        row_tokens_max: longest,
        ..suite::request_of_golden(name, dtype)
    };
    with_graphs(&request, Some(false))
}

/// The same with graphs of all small batches, of none, or of those that they pay for.
pub fn with_graphs(request: &OpenRequest, graphs: Option<bool>) -> OpenRequest {
    with_option(request.clone(), "graphs", graphs.into())
}

pub fn open(request: &OpenRequest) -> Result<OpenBackend, Fault> {
    PluginLibrary::in_process::<CandleCuda>()
        .unwrap()
        .open(request)
}
