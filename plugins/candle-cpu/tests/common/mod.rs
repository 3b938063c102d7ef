//! What the tests share: golden folders, copies of them that are changed, and calls through the border.

#![allow(dead_code, unreachable_pub)] // Each test file is a crate of its own and uses its part.

pub mod edit;

use backend_api::{
    Fault, OpenBackend, OpenRequest, OpenWorker, PluginLibrary, RaggedBatch, RowControl, RowStatus,
};
use candle_cpu::CandleCpu;
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

pub fn golden(name: &str) -> Golden {
    let text = std::fs::read_to_string(golden_dir(name).join("golden.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

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

/// A request for a golden folder, with the options that it needs.
pub fn golden_request(name: &str, dtype: &str) -> OpenRequest {
    let options = serde_json::Value::from(golden(name).options);
    request(&golden_dir(name), dtype, &options.to_string())
}

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

/// Scores rows that must all be scored.
pub fn score_all(worker: &mut OpenWorker, rows: &[&GoldenRow]) -> Vec<Vec<f32>> {
    score(worker, rows)
        .into_iter()
        .map(|row| row.unwrap())
        .collect()
}

/// The largest difference between two sets of logits; a NaN is infinitely far off.
pub fn farthest<'a>(
    expected: impl IntoIterator<Item = &'a Vec<f32>>,
    found: impl IntoIterator<Item = &'a Vec<f32>>,
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
