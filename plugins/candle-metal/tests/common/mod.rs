//! What the tests share: golden folders, and calls through the border. They run on a Mac's GPU, and nowhere else.

#![allow(dead_code, unreachable_pub, unused_imports)] // Each test file is a crate of its own and uses its part.

#[path = "../../../golden/rows.rs"]
mod rows;
#[path = "../../../golden/suite.rs"]
pub mod suite;

pub use rows::{GoldenRow, farthest, golden, golden_names};
pub use suite::{request_of_golden as golden_request, score_all};

use backend_api::{Fault, OpenBackend, OpenRequest, PluginLibrary};
use candle_metal::CandleMetal;

pub fn open(request: &OpenRequest) -> Result<OpenBackend, Fault> {
    PluginLibrary::in_process::<CandleMetal>()
        .unwrap()
        .open(request)
}
