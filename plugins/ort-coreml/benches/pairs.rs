//! Pairs a second of a model, straight through the border: what ONNX Runtime gives behind this plugin, without the gateway's cutting.
//!
//! ```sh
//! cargo bench -p ort-coreml -- MODEL_DIR ROWS.jsonl [DTYPE [OPTIONS [BATCH_ROWS [PASSES]]]]
//! ```
//!
//! A row a line: `{"input_ids": […], "type_ids": […]}`. One worker a processor; each takes the next batch until a pass is done.

#![allow(clippy::print_stdout)] // Its table.

use backend_api::{OpenRequest, OpenWorker, PluginLibrary, RaggedBatch, RowControl};
use ort_coreml::OrtCoreMl;
use serde::Deserialize;
use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

#[derive(Deserialize)]
struct Row {
    input_ids: Vec<u32>,
    type_ids: Vec<u32>,
}

fn main() -> Result<(), Box<dyn Error>> {
    // cargo adds `--bench`.
    let arguments: Vec<_> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let [model_dir, rows, more @ ..] = &arguments[..] else {
        println!("usage: MODEL_DIR ROWS.jsonl [DTYPE [OPTIONS [BATCH_ROWS [PASSES]]]]");
        return Ok(());
    };
    let said = |at: usize, default: &str| more.get(at).map_or(default, String::as_str).to_owned();
    let (batch_rows, n_passes): (usize, usize) = (said(2, "64").parse()?, said(3, "3").parse()?);
    let text = std::fs::read_to_string(rows)?;
    let rows = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<Vec<Row>, _>>()?;
    let n_workers = std::thread::available_parallelism()?.get();
    let request = OpenRequest {
        model_dir: model_dir.into(),
        device: "cpu".to_owned(),
        dtype: said(0, "auto"),
        options: said(1, "{}"),
        n_workers: n_workers as u32,
        tokens_max: 1 << 20,
        ..OpenRequest::default()
    };
    let backend = PluginLibrary::in_process::<OrtCoreMl>()?.open(&request)?;
    println!("{}", backend.description().numerics_id);
    let mut workers = (0..n_workers)
        .map(|_| backend.worker())
        .collect::<Result<Vec<_>, _>>()?;
    let batches: Vec<_> = rows.chunks(batch_rows.max(1)).collect();
    for worker in &mut workers {
        score(worker, batches.first().ok_or("no rows")?)?;
    }
    for _ in 0..n_passes {
        let (started, next) = (Instant::now(), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let work = |worker: &mut OpenWorker| -> Result<(), String> {
                while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
                    score(worker, batch)?;
                }
                Ok(())
            };
            let threads = workers
                .iter_mut()
                .map(|worker| scope.spawn(move || work(worker)));
            let threads: Vec<_> = threads.collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().unwrap_or(Err("a panic".to_owned())))
        })?;
        println!(
            "{:.1} pairs/s",
            rows.len() as f64 / started.elapsed().as_secs_f64()
        );
    }
    Ok(())
}

/// Scores rows in one batch; all must be scored.
fn score(worker: &mut OpenWorker, rows: &[Row]) -> Result<(), String> {
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
    )?;
    let (mut logits, mut statuses) = (
        vec![0.0; rows.len() * worker.n_labels()],
        vec![0; rows.len()],
    );
    let (_, scores) = worker
        .score(&batch, &mut logits, &mut statuses)
        .map_err(|fault| fault.to_string())?;
    match (0..rows.len()).find(|&row| scores.row(row).is_err()) {
        Some(row) => Err(format!("row {row} has no score")),
        None => Ok(()),
    }
}
