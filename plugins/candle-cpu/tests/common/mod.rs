//! What the tests share: golden folders, copies of them that are changed, and calls through the border.

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
pub use suite::{request, request_of_golden as golden_request, score_all, with_option};

use backend_api::{Fault, OpenBackend, OpenRequest, PluginLibrary};
use candle_cpu::CandleCpu;

pub fn open(request: &OpenRequest) -> Result<OpenBackend, Fault> {
    PluginLibrary::in_process::<CandleCpu>()
        .unwrap()
        .open(request)
}
