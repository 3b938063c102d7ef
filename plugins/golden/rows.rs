//! The golden folders and their rows, and rows scored through the border. For the tests of every plugin, each of
//! which takes this file in as a module of its own.

use backend_api::{OpenWorker, RaggedBatch, RowControl, RowStatus};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// A row and its logits by `transformers`.
#[derive(Clone, Deserialize)]
pub struct GoldenRow {
    pub input_ids: Vec<u32>,
    pub type_ids: Vec<u32>,
    pub logits: Vec<f32>,
}

/// A golden.json.
#[derive(Deserialize)]
pub struct Golden {
    pub rows: Vec<GoldenRow>,
    /// What the model has to be opened with.
    #[serde(default)]
    pub options: serde_json::Map<String, serde_json::Value>,
}

pub fn golden_dir(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../golden")
        .join(name)
}

pub fn golden(name: &str) -> Golden {
    let text = std::fs::read_to_string(golden_dir(name).join("golden.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

pub fn golden_rows(name: &str) -> Vec<GoldenRow> {
    golden(name).rows
}

/// Scores rows in one batch; each row's logits or its status.
pub fn score(worker: &mut OpenWorker, rows: &[&GoldenRow]) -> Vec<Result<Vec<f32>, RowStatus>> {
    let (mut ids, mut types, mut offsets) = (Vec::new(), Vec::new(), vec![0]);
    for row in rows {
        ids.extend_from_slice(&row.input_ids);
        types.extend_from_slice(&row.type_ids);
        offsets.push(ids.len() as u32);
    }
    let wanted = AtomicBool::new(true);
    let control = RowControl {
        deadline_us: u64::MAX,
        wanted: &wanted,
    };
    let (controls, limits) = (vec![control; rows.len()], worker.limits());
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
