//! A worker's batch: the memory that a call borrows, filled anew for each and never given back.

use crate::generation::queue::Taken;
use backend_api::{Fault, Limits, RaggedBatch, RowControl};
use std::time::{Duration, Instant};

/// Rows that were taken, and room for their tokens and scores. Belongs to one worker thread; a worker
/// that never comes back keeps it.
#[derive(Default)]
pub struct Batch {
    /// The rows, in the order of their tokens.
    pub taken: Vec<Taken>,
    // rows × labels.
    logits: Vec<f32>,
    statuses: Vec<u8>,
    input_ids: Vec<u32>,
    type_ids: Vec<u32>,
    offsets: Vec<u32>,
    // Emptied after each call; kept for its capacity.
    controls: Vec<RowControl<'static>>,
}

impl Batch {
    /// Room for the largest batch within `limits`, so that nothing is allocated later.
    pub fn new(limits: &Limits, n_labels: usize) -> Self {
        Self {
            taken: Vec::with_capacity(limits.rows_max),
            logits: Vec::with_capacity(limits.rows_max * n_labels),
            statuses: Vec::with_capacity(limits.rows_max),
            input_ids: Vec::with_capacity(limits.tokens_max),
            type_ids: Vec::with_capacity(limits.tokens_max),
            offsets: Vec::with_capacity(limits.rows_max + 1),
            controls: Vec::with_capacity(limits.rows_max),
        }
    }

    /// Gathers the taken rows' tokens and hands them to `call` as a checked batch, with room for the
    /// scores.
    ///
    /// # Errors
    /// `call`'s own, or that the batch is not within `limits`.
    pub fn with<T>(
        &mut self,
        limits: &Limits,
        n_labels: usize,
        now: Instant,
        call: impl FnOnce(&[Taken], &RaggedBatch<'_>, &mut [f32], &mut [u8]) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        self.gather();
        let n_rows = self.taken.len();
        self.logits.clear();
        self.logits.resize(n_rows * n_labels, 0.0);
        self.statuses.clear();
        self.statuses.resize(n_rows, 0);
        let mut controls: Vec<RowControl<'_>> = std::mem::take(&mut self.controls);
        controls.extend(self.taken.iter().map(|(work, row)| RowControl {
            deadline_us: micros(work.deadline().saturating_duration_since(now)),
            wanted: work.wanted(*row as usize),
        }));
        let result = RaggedBatch::check(
            &self.input_ids,
            &self.type_ids,
            &self.offsets,
            &[],
            &controls,
            limits,
            now,
        )
        .map_err(Fault::bad_batch)
        .and_then(|batch| call(&self.taken, &batch, &mut self.logits, &mut self.statuses));
        self.controls = emptied(controls);
        result
    }

    fn gather(&mut self) {
        self.input_ids.clear();
        self.type_ids.clear();
        self.offsets.clear();
        self.offsets.push(0);
        for (work, row) in &self.taken {
            let (ids, types) = work.rows().row(*row as usize);
            self.input_ids.extend_from_slice(ids);
            self.type_ids.extend_from_slice(types);
            // The batch's tokens are bounded by a u32 of the plugin's description.
            self.offsets.push(self.input_ids.len() as u32);
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The same memory with nothing in it, free of the borrow. Collecting an emptied `Vec` of the same
/// layout reuses its allocation.
fn emptied(mut controls: Vec<RowControl<'_>>) -> Vec<RowControl<'static>> {
    controls.clear();
    controls
        .into_iter()
        .map(|_| unreachable!("it was just emptied"))
        .collect()
}
