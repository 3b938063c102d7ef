//! Rows that nobody has asked for: every sound backend scores them.

use super::cost::Size;
use crate::model::{TokenRows, Tokenizer};
use crate::runtime::now;
use backend_api::{Fault, OpenBackend, OpenWorker, RaggedBatch, RowControl};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Has `worker` score a row so many times in one batch: what that was, and how long it took.
///
/// # Errors
/// The plugin's own, or that the first of the rows has no score.
pub(super) fn score_plain(
    worker: &mut OpenWorker,
    row: &TokenRows,
    n_rows: usize,
) -> Result<(Size, Duration), Fault> {
    let (ids, types) = (row.input_ids.repeat(n_rows), row.type_ids.repeat(n_rows));
    let len = row.input_ids.len();
    let offsets: Vec<u32> = (0..=n_rows).map(|end| (end * len) as u32).collect();
    let wanted = AtomicBool::new(true);
    let controls = vec![
        RowControl {
            deadline_us: u64::MAX,
            wanted: &wanted
        };
        n_rows
    ];
    let (mut logits, mut statuses) = (vec![0.0; n_rows * worker.n_labels()], vec![0; n_rows]);
    let started = now();
    let limits = worker.limits();
    let batch = RaggedBatch::check(&ids, &types, &offsets, &[], &controls, &limits, started)
        .map_err(Fault::bad_batch)?;
    let (_, scores) = worker.score(&batch, &mut logits, &mut statuses)?;
    let took = now() - started;
    if let Err(status) = scores.row(0) {
        return Err(Fault::internal(format!(
            "a plain row came back as {status:?}"
        )));
    }
    let size = Size {
        tokens: ids.len() as f64,
        squares: (n_rows * len * len) as f64,
    };
    Ok((size, took))
}

/// How fast a backend is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Speed {
    /// Tokens that one worker computes in a second, in rows of passages.
    pub tokens_per_s: f64,
}

/// Rows of this many tokens: short passages.
const MEASURED_TOKENS: usize = 64;
/// So many of them in a batch.
const MEASURED_ROWS: usize = 8;
/// Batches that are timed; the fastest counts, because whatever else runs only makes them slower.
const MEASURED_BATCHES: usize = 3;

/// Times a few batches by one worker of a backend that does not serve yet.
///
/// # Errors
/// The plugin's own.
pub fn measure(backend: &OpenBackend, tokenizer: &Tokenizer) -> Result<Speed, Fault> {
    let (limits, mut worker) = (backend.limits(), backend.worker()?);
    let n_tokens = MEASURED_TOKENS.min(limits.row_tokens_max);
    let row = tokenizer.sample_row(n_tokens).map_err(Fault::bad_model)?;
    let room = limits.tokens_max / row.input_ids.len().max(1);
    let n_rows = MEASURED_ROWS.min(limits.rows_max).min(room).max(1);
    // The first one touches memory that no later one has to.
    score_plain(&mut worker, &row, n_rows)?;
    let mut speed = Speed::default();
    for _ in 0..MEASURED_BATCHES {
        let (size, took) = score_plain(&mut worker, &row, n_rows)?;
        let tokens_per_s = size.tokens / took.as_secs_f64().max(1e-9);
        speed.tokens_per_s = speed.tokens_per_s.max(tokens_per_s);
    }
    Ok(speed)
}
