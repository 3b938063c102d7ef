//! What the tests share: golden folders, copies of them that are changed, and calls through the border.

#![allow(dead_code, unreachable_pub, unused_imports)] // Each test file is a crate of its own and uses its part.

#[path = "../../../golden/edit.rs"]
pub mod edit;
pub mod gguf;
#[path = "../../../golden/rows.rs"]
mod rows;
#[path = "../../../golden/suite.rs"]
pub mod suite;

pub use rows::{GoldenRow, farthest, golden, golden_dir, golden_names, score, try_score};
pub use suite::{request, request_of_golden as golden_request, score_all};

use backend_api::{Fault, OpenBackend, OpenRequest, PluginLibrary};
use candle_cpu::CandleCpu;

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
