//! What the tests share: golden folders, a deterministic source of numbers, and calls through the
//! border.

#![allow(dead_code, unreachable_pub, unused_imports)] // Each test file is a crate of its own and uses its part.

#[path = "../../../golden/edit.rs"]
pub mod edit;
#[path = "../../../golden/rows.rs"]
mod rows;

pub use rows::{GoldenRow, golden_dir, golden_rows, score};

use backend_api::{Fault, OpenBackend, OpenRequest, OpenWorker, PluginLibrary};
use cpu_int8::CpuInt8;
use std::path::Path;

/// The folders of plugins/golden.
pub const GOLDEN: [&str; 16] = [
    "bert",
    "bert-sharded-3-labels",
    "roberta",
    "roberta-pad-3-legacy-names",
    "camembert",
    "xlm-roberta",
    "electra",
    "electra-projected",
    "distilbert",
    "modernbert",
    "modernbert-mean-older-keys",
    "deberta-v3",
    "deberta-v2-projected",
    "deberta-v2-c2p",
    "deberta-v2-p2c",
    "deberta-v2-absolute",
];

/// A request for a model folder with this dtype and these options.
pub fn request(dir: &Path, dtype: &str, options: &str) -> OpenRequest {
    OpenRequest {
        model_dir: dir.to_owned(),
        dtype: dtype.to_owned(),
        options: options.to_owned(),
        ..OpenRequest::default()
    }
}

/// A request for one kernel by name.
pub fn kernel_request(dir: &Path, dtype: &str, kernel: &str) -> OpenRequest {
    request(dir, dtype, &format!("{{\"kernel\":\"{kernel}\"}}"))
}

pub fn open(request: &OpenRequest) -> Result<OpenBackend, Fault> {
    PluginLibrary::in_process::<CpuInt8>()
        .unwrap()
        .open(request)
}

/// Scores rows that must all be scored, as bits.
pub fn score_bits(worker: &mut OpenWorker, rows: &[&GoldenRow]) -> Vec<Vec<u32>> {
    let scored = score(worker, rows).into_iter();
    scored
        .map(|row| row.unwrap().into_iter().map(f32::to_bits).collect())
        .collect()
}

/// A small congruential generator: the same numbers in every run.
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn below(&mut self, n: u32) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % u64::from(n)) as u32
    }

    /// The whole range of a quantum.
    pub fn quantum(&mut self) -> i8 {
        (self.below(255) as i32 - 127) as i8
    }
}
