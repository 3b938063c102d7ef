//! What the tests share: a request, and a batch of two rows.

use backend_api::{Fault, OpenRequest, OpenWorker, RaggedBatch, RowControl, RowStatus};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

pub(crate) fn request(options: &str) -> OpenRequest {
    OpenRequest {
        options: options.to_owned(),
        row_tokens_max: 64,
        ..OpenRequest::default()
    }
}

/// Scores two rows of three tokens, the second holding id 7.
pub(crate) fn score(worker: &mut OpenWorker) -> Result<[Result<Vec<f32>, RowStatus>; 2], Fault> {
    let wanted = AtomicBool::new(true);
    let controls = [RowControl {
        deadline_us: u64::MAX,
        wanted: &wanted,
    }; 2];
    let limits = worker.limits();
    let ids = [1, 2, 1, 1, 7, 7];
    let batch = RaggedBatch::check(
        &ids,
        &[0, 0, 1, 0, 0, 1],
        &[0, 3, 6],
        &[],
        &controls,
        &limits,
        Instant::now(),
    )
    .map_err(Fault::bad_batch)?;
    let mut logits = vec![0.0; 2 * worker.n_labels()];
    let mut statuses = [0; 2];
    let (_, scores) = worker.score(&batch, &mut logits, &mut statuses)?;
    Ok([0, 1].map(|row| scores.row(row).map(<[f32]>::to_vec)))
}
