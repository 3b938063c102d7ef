//! How far a plugin's logits are from `transformers`', however rows are put together.

use crate::claims::Claim;
use crate::rows::{GoldenRow, farthest, score};
use backend_api::{Limits, OpenWorker};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Rows of the largest batch.
const MANY_ROWS: usize = 64;
/// Longer rows are not in it, and those beyond the second bound are scored alone and together only: they cost by their
/// square.
const MANY_ROW_TOKENS_MAX: usize = 300;
const TURNED_ROW_TOKENS_MAX: usize = 1_024;

/// The largest difference of each claim, or why there is none. On all cores: claims know nothing of one another.
pub(crate) fn all(claims: &[Claim<'_>]) -> Vec<Result<f32, String>> {
    let found: Vec<_> = claims.iter().map(|_| OnceLock::new()).collect();
    // The longest first, so that none of them is left to the end.
    let mut order: Vec<_> = (0..claims.len()).collect();
    order.sort_by_key(|&at| std::cmp::Reverse(claims[at].folder.longest()));
    let next = AtomicUsize::new(0);
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..n_threads {
            scope.spawn(|| {
                while let Some(&at) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                    _ = found[at].set(worst(&claims[at]));
                }
            });
        }
    });
    let found = found.into_iter();
    found.map(|one| one.into_inner().unwrap()).collect()
}

/// The largest difference of a logit over rows alone, together, turned round and among 64.
fn worst(claim: &Claim<'_>) -> Result<f32, String> {
    let backend = claim.plugin.library.open(&claim.request);
    let backend = backend.map_err(|fault| fault.to_string())?;
    let mut worker = backend.worker().map_err(|fault| fault.to_string())?;
    let limits = worker.limits();
    let (rows, beyond): (Vec<_>, Vec<_>) = (claim.folder.golden.rows.iter())
        .partition(|row| row.input_ids.len() <= limits.row_tokens_max);
    if !(beyond.is_empty() || claim.has_one_shape()) {
        return Err(format!("takes rows of {} tokens", limits.row_tokens_max));
    }
    let up_to = |tokens_max: usize| {
        let short = rows.iter().copied();
        short.filter(move |row| row.input_ids.len() <= tokens_max)
    };
    let turned: Vec<_> = up_to(TURNED_ROW_TOKENS_MAX).rev().collect();
    let many = up_to(MANY_ROW_TOKENS_MAX).cycle().take(MANY_ROWS);
    let many: Vec<_> = many.collect();
    let mut worst = 0.0_f32;
    for row in &rows {
        worst = worst.max(difference(&mut worker, &[row])?);
    }
    for order in [rows, turned, many] {
        for batch in batches(&order, &limits) {
            worst = worst.max(difference(&mut worker, batch)?);
        }
    }
    Ok(worst)
}

/// Rows in their order, in as few batches as the limits allow.
fn batches<'a, 'b>(rows: &'b [&'a GoldenRow], limits: &Limits) -> Vec<&'b [&'a GoldenRow]> {
    let (mut batches, mut start, mut n_tokens) = (Vec::new(), 0, 0);
    for (at, row) in rows.iter().enumerate() {
        let len = row.input_ids.len();
        if at - start == limits.rows_max || limits.tokens_max < n_tokens + len {
            batches.push(&rows[start..at]);
            (start, n_tokens) = (at, 0);
        }
        n_tokens += len;
    }
    batches.push(&rows[start..]);
    batches
}

fn difference(worker: &mut OpenWorker, rows: &[&GoldenRow]) -> Result<f32, String> {
    let found: Result<Vec<_>, _> = score(worker, rows).into_iter().collect();
    let found = found.map_err(|status| format!("a row of {} is {status:?}", rows.len()))?;
    Ok(farthest(rows.iter().map(|row| &row.logits), &found))
}
