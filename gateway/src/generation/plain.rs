//! Rows that nobody has asked for: every sound backend scores them.

use super::cost::Size;
use crate::model::TokenRows;
use crate::runtime::now;
use backend_api::{Fault, OpenWorker, RaggedBatch, RowControl};
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
