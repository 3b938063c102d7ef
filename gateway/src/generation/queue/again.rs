//! Rows whose batch failed: they go first, each request's by themselves, to a worker that has not failed
//! them yet.

use super::Taken;
use crate::generation::cost::{Amount, Size};
use crate::generation::work::Work;
use crate::score::ScoreError;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long rows wait for another worker than the one that failed them: all others may hang.
const OTHER_WAIT_MAX: Duration = Duration::from_millis(500);

/// One worker of a generation; a worker that was replaced has another number than its successor.
pub type WorkerId = u32;

/// Why a batch has no scores, and whether it is tried again.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Who computed it.
    pub by: WorkerId,
    /// How often its rows had failed before.
    pub tries: u32,
    /// How often rows may fail and are still tried again.
    pub tries_max: u32,
    /// Whether it does not count where rows of several requests were together: one of them has failed the
    /// others.
    pub is_free_together: bool,
    /// What those are told whose rows are not tried again.
    pub error: ScoreError,
}

/// What is to be tried again. Bounded by what workers compute: whatever is in here was in a batch before.
#[derive(Debug, Default)]
pub(super) struct Again {
    retries: VecDeque<Retry>,
}

/// Rows of one request.
#[derive(Debug)]
pub(super) struct Retry {
    pub(super) rows: Vec<Taken>,
    /// How often they have been tried.
    pub(super) tries: u32,
    /// Who failed them last.
    pub(super) failed_by: WorkerId,
    /// When whoever failed them may try again.
    pub(super) own_at: Instant,
}

// === impl Again ===

impl Again {
    /// Puts the rows of a batch back that somebody still wants; gives those back that were tried often
    /// enough.
    pub(super) fn put_back(
        &mut self,
        batch: &[Taken],
        failure: &Failure,
        now: Instant,
    ) -> Vec<Taken> {
        let wanted = batch
            .iter()
            .filter(|(work, row)| work.is_wanted(*row as usize));
        let mut rows: Vec<_> = wanted.cloned().collect();
        // Fair queueing mixes requests: bring each one's rows together, in the order in which they were cut.
        let first = |work: &Arc<Work>| batch.iter().position(|(its, _)| Arc::ptr_eq(its, work));
        rows.sort_by_cached_key(|(work, row)| (first(work), *row));
        let is_together = batch
            .iter()
            .any(|(work, _)| !Arc::ptr_eq(work, &batch[0].0));
        let is_free = is_together && failure.is_free_together;
        if !is_free && failure.tries_max <= failure.tries {
            return rows;
        }
        let requests = rows.chunk_by(|(a, _), (b, _)| Arc::ptr_eq(a, b));
        self.retries.extend(requests.map(|rows| Retry {
            rows: rows.to_vec(),
            tries: failure.tries + u32::from(!is_free),
            failed_by: failure.by,
            own_at: now + OTHER_WAIT_MAX,
        }));
        Vec::new()
    }

    /// The oldest that worker `who` may try: another's failure, or its own if it is the only one or no other
    /// has come for it.
    pub(super) fn take(&mut self, who: WorkerId, is_alone: bool, now: Instant) -> Option<Retry> {
        let may = |retry: &Retry| is_alone || retry.failed_by != who || retry.own_at <= now;
        let place = self.retries.iter().position(may)?;
        self.retries.remove(place)
    }

    /// When a worker may try the first of its own failures again.
    pub(super) fn own_at(&self, who: WorkerId) -> Option<Instant> {
        let own = self.retries.iter().filter(|retry| retry.failed_by == who);
        own.map(|retry| retry.own_at).min()
    }

    /// Rows of `work` that nobody wants any more; how many they were.
    pub(super) fn forget(&mut self, work: &Arc<Work>) -> usize {
        let n_before = self.n_rows();
        for retry in &mut self.retries {
            retry
                .rows
                .retain(|(its, row)| !Arc::ptr_eq(its, work) || its.is_wanted(*row as usize));
        }
        self.retries.retain(|retry| !retry.rows.is_empty());
        n_before - self.n_rows()
    }

    /// All requests, each as often as it is to be tried.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Arc<Work>> {
        let retries = std::mem::take(&mut self.retries);
        let works = retries
            .into_iter()
            .filter_map(|retry| retry.rows.into_iter().next());
        works.map(|(work, _)| work)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.retries.is_empty()
    }

    /// What waits.
    pub(super) fn amount(&self) -> Amount {
        let rows = self.retries.iter().flat_map(|retry| &retry.rows);
        rows.fold(Amount::default(), |sum, (work, row)| {
            sum + Amount {
                rows: 1,
                size: Size::row(work.rows().row_len(*row as usize)),
            }
        })
    }

    fn n_rows(&self) -> usize {
        self.retries.iter().map(|retry| retry.rows.len()).sum()
    }
}
