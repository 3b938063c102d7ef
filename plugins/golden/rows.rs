//! The golden folders and their rows, and rows scored through the border. For the tests of every plugin, each of
//! which takes this file in as a module of its own.

use backend_api::{Fault, OpenWorker, RaggedBatch, RowControl, RowStatus};
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
    plugins_dir().join("golden").join(name)
}

/// Every golden folder: what is there is tried, so that a new one cannot be forgotten.
pub fn golden_names() -> Vec<String> {
    let folders = std::fs::read_dir(golden_dir(".")).unwrap();
    let folders = folders.map(|entry| entry.unwrap());
    let folders = folders.filter(|entry| entry.path().join("golden.json").exists());
    let mut names: Vec<_> = folders
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The folder `plugins` of the repository that the package under test is in.
pub fn plugins_dir() -> PathBuf {
    let mut above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let root = above.find(|dir| dir.join("plugins/golden").is_dir());
    root.unwrap().join("plugins")
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
    try_score(worker, rows).unwrap()
}

/// The same, where the whole batch may fail.
pub fn try_score(
    worker: &mut OpenWorker,
    rows: &[&GoldenRow],
) -> Result<Vec<Result<Vec<f32>, RowStatus>>, Fault> {
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
    let (_, scores) = worker.score(&batch, &mut logits, &mut statuses)?;
    let rows = (0..rows.len()).map(|row| scores.row(row).map(<[f32]>::to_vec));
    Ok(rows.collect())
}

/// The largest difference between two sets of logits; a NaN is infinitely far off.
pub fn farthest<'a, 'b>(
    expected: impl IntoIterator<Item = &'a Vec<f32>>,
    found: impl IntoIterator<Item = &'b Vec<f32>>,
) -> f32 {
    let mut worst = 0.0_f32;
    for (expected, found) in expected.into_iter().zip(found) {
        assert_eq!(expected.len(), found.len(), "labels");
        for (expected, found) in expected.iter().zip(found) {
            let off = (expected - found).abs();
            worst = worst.max(if off.is_nan() { f32::INFINITY } else { off });
        }
    }
    worst
}
