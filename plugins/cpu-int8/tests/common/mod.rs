//! What the tests share: golden folders, a deterministic source of numbers, and calls through the
//! border.

#![allow(dead_code, unreachable_pub)] // Each test file is a crate of its own and uses its part.

pub mod edit;

use backend_api::{
    Fault, OpenBackend, OpenRequest, OpenWorker, PluginLibrary, RaggedBatch, RowControl, RowStatus,
};
use cpu_int8::CpuInt8;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

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

/// A row and its logits by `transformers`.
#[derive(Clone, Deserialize)]
pub struct GoldenRow {
    pub input_ids: Vec<u32>,
    pub type_ids: Vec<u32>,
    pub logits: Vec<f32>,
}

#[derive(Deserialize)]
struct Golden {
    rows: Vec<GoldenRow>,
}

pub fn golden_dir(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../golden")
        .join(name)
}

pub fn golden_rows(name: &str) -> Vec<GoldenRow> {
    let text = std::fs::read_to_string(golden_dir(name).join("golden.json")).unwrap();
    serde_json::from_str::<Golden>(&text).unwrap().rows
}

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

/// Scores rows in one batch; each row's logits or its status.
pub fn score(worker: &mut OpenWorker, rows: &[&GoldenRow]) -> Vec<Result<Vec<f32>, RowStatus>> {
    let wanted = AtomicBool::new(true);
    let (mut ids, mut types, mut offsets) = (Vec::new(), Vec::new(), vec![0]);
    for row in rows {
        ids.extend_from_slice(&row.input_ids);
        types.extend_from_slice(&row.type_ids);
        offsets.push(ids.len() as u32);
    }
    let controls = vec![
        RowControl {
            deadline_us: u64::MAX,
            wanted: &wanted
        };
        rows.len()
    ];
    let limits = worker.limits();
    let batch = RaggedBatch::check(
        &ids,
        &types,
        &offsets,
        &[],
        &controls,
        &limits,
        Instant::now(),
    )
    .unwrap();
    let mut logits = vec![f32::NAN; rows.len() * worker.n_labels()];
    let mut statuses = vec![0; rows.len()];
    let (_, scores) = worker.score(&batch, &mut logits, &mut statuses).unwrap();
    (0..rows.len())
        .map(|row| scores.row(row).map(<[f32]>::to_vec))
        .collect()
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
