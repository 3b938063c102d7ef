//! A worker's thread: pull a batch, call the plugin, hand out the scores. No task, no channel.

use crate::generation::backend::Called;
use crate::generation::batch::Batch;
use crate::generation::cost::Size;
use crate::generation::crew::{Crew, Seat};
use crate::generation::plain::score_plain;
use crate::generation::plan::{Computed, Cut};
use crate::generation::queue::Taken;
use crate::generation::work::RowFault;
use crate::model::TokenRows;
use crate::runtime::now;
use crate::score::ScoreError;
use backend_api::{Fault, FaultCode, OpenWorker, RaggedBatch, RowStatus, Scores};
use std::sync::Arc;
use std::time::Duration;

/// One worker thread's own.
pub(super) struct Worker {
    pub(super) crew: Arc<Crew>,
    pub(super) seat: Arc<Seat>,
    pub(super) called: Called,
}

/// What came of a call.
struct Returned {
    /// Whether the rows were still this worker's: a worker that took too long has lost them.
    is_own: bool,
    /// Whether every row was scored.
    scored: Result<bool, Fault>,
}

// === impl Worker ===

impl Worker {
    /// Serves until the line is closed and empty, or another worker has its seat. The line has counted
    /// this worker already.
    pub(super) fn run(mut self) {
        let crew = Arc::clone(&self.crew);
        let mut batch = Batch::new(&crew.limits, crew.n_labels);
        while let Some(cut) = crew.line.next(self.seat.id, &mut batch.taken) {
            for (work, _) in &batch.taken {
                work.note_cut(cut.at);
            }
            let Returned { is_own, scored } = self.serve(cut, &mut batch);
            if is_own {
                crew.line.returned(&cut, matches!(scored, Ok(true)), now);
            } else if !crew.come_back(self.seat.id) {
                return;
            }
            if let Err(fault) = scored {
                crew.report(&fault);
                if is_own {
                    crew.put_back(self.seat.id, &cut, &batch.taken, &fault);
                }
                self.replace(&fault);
            }
            // The rows' memory goes with their requests, not with the next batch.
            batch.taken.clear();
        }
        crew.line.count_worker(-1);
    }

    /// Calls the plugin and hands out what came back. A fault hands out nothing.
    fn serve(&mut self, cut: Cut, batch: &mut Batch) -> Returned {
        let (crew, seat) = (&self.crew, &self.seat);
        let worker = self.called.worker();
        let started = now();
        seat.start(cut, &batch.taken, started);
        let mut is_own = None;
        let scored = batch.with(
            &crew.limits,
            crew.n_labels,
            started,
            |taken, rows, logits, statuses| {
                let result = worker.score(rows, logits, statuses);
                let result = result.and_then(|(phases, scores)| {
                    check_sound(worker, &scores, &crew.plain)?;
                    Ok((phases, scores))
                });
                let is_own = *is_own.insert(seat.finish());
                let (phases, scores) = result?;
                let done = computed(rows, &scores, now() - started);
                // What was given up counts for nothing. Its scores are as good as any.
                if is_own {
                    let n_tokens = done.size.tokens as usize;
                    crew.metrics
                        .batch(done.n_rows, n_tokens, done.took, &phases);
                    // Before the answers: whoever has one finds it counted.
                    crew.line.computed(&done);
                }
                hand_out(taken, &scores, done.took);
                Ok(done.is_whole)
            },
        );
        let is_own = is_own.unwrap_or_else(|| seat.finish());
        Returned { is_own, scored }
    }

    /// Replaces the plugin's worker if the fault says that it cannot be called again. Meanwhile the worker
    /// does not count as one, so admission knows.
    fn replace(&mut self, fault: &Fault) {
        if !matches!(
            fault.code,
            FaultCode::Panicked | FaultCode::Poisoned | FaultCode::DeviceLost
        ) {
            return;
        }
        self.crew.line.count_worker(-1);
        if let Some(revived) = self.crew.call(Some(self.called.epoch())) {
            self.called = revived;
        }
        self.crew.line.count_worker(1);
    }
}

/// Scores that are no numbers are the rows' fault, unless the worker makes none of what every sound one scores:
/// then it is the backend's, which must be opened again.
fn check_sound(
    worker: &mut OpenWorker,
    scores: &Scores<'_>,
    plain: &TokenRows,
) -> Result<(), Fault> {
    let mut rows = 0..scores.n_rows();
    if !rows.any(|row| matches!(scores.row(row), Err(RowStatus::NotFinite))) {
        return Ok(());
    }
    score_plain(worker, plain, 1).map(drop).map_err(|fault| {
        let why = format!("scores are no numbers, and {}", fault.text);
        Fault::new(FaultCode::Poisoned, why)
    })
}

/// What counts as computed: rows that were skipped took no time, and teach nothing.
fn computed(batch: &RaggedBatch<'_>, scores: &Scores<'_>, took: Duration) -> Computed {
    let scored = (0..batch.n_rows()).filter(|&row| scores.row(row).is_ok());
    let mut done = Computed {
        took,
        ..Computed::default()
    };
    for row in scored {
        done.n_unwanted += usize::from(!batch.wanted(row));
        let len = batch.row(row).input_ids.len();
        done.n_rows += 1;
        done.longest = done.longest.max(len);
        done.size += Size::row(len);
    }
    let skipped = (0..batch.n_rows()).map(|row| scores.row(row));
    done.n_skipped = skipped
        .filter(|score| matches!(score, Err(RowStatus::Unwanted)))
        .count();
    done.is_whole = done.n_rows == batch.n_rows();
    done
}

fn hand_out(taken: &[Taken], scores: &Scores<'_>, took: Duration) {
    for (place, (work, row)) in taken.iter().enumerate() {
        let row = *row as usize;
        match scores.row(place) {
            Ok(logits) => _ = work.finish_row(row, logits, took),
            Err(status) => work.fail_row(row, row_fault(status)),
        }
    }
}

fn row_fault(status: RowStatus) -> RowFault {
    match status {
        RowStatus::Expired => RowFault::Whole(ScoreError::DeadlinePassed {
            after: Duration::ZERO,
        }),
        RowStatus::Unwanted => RowFault::Whole(ScoreError::Cancelled),
        RowStatus::NotFinite => RowFault::NotFinite,
        _ => RowFault::NotScored,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backend_api::{OpenRequest, RowControl};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;

    #[test]
    fn only_scored_rows_count_as_computed() {
        let wanted = AtomicBool::new(true);
        let control = || RowControl {
            deadline_us: u64::MAX,
            wanted: &wanted,
        };
        let controls = [control(), control(), control()];
        let limits = OpenRequest::default().limits();
        let (ids, offsets, now) = ([1; 9], [0, 2, 5, 9], Instant::now());
        let batch = RaggedBatch::check(&ids, &ids, &offsets, &[], &controls, &limits, now).unwrap();
        let (scored, unwanted) = (RowStatus::Scored as u8, RowStatus::Unwanted as u8);
        let cases = [
            (
                [scored; 3],
                (
                    3,
                    Size {
                        tokens: 9.0,
                        squares: 29.0,
                    },
                    true,
                ),
            ),
            (
                [scored, unwanted, scored],
                (
                    2,
                    Size {
                        tokens: 6.0,
                        squares: 20.0,
                    },
                    false,
                ),
            ),
            ([unwanted; 3], (0, Size::default(), false)),
        ];
        for (mut statuses, want) in cases {
            let mut logits = [0.0; 3];
            let scores = Scores::check(&mut logits, &mut statuses, 1).unwrap();
            let done = computed(&batch, &scores, Duration::ZERO);
            assert_eq!((done.n_rows, done.size, done.is_whole), want);
            assert_eq!((done.n_unwanted, done.n_skipped), (0, 3 - done.n_rows));
        }
        // Scored, and nobody waits for it any more.
        wanted.store(false, Ordering::Relaxed);
        let (mut logits, mut statuses) = ([0.0; 3], [scored, unwanted, scored]);
        let scores = Scores::check(&mut logits, &mut statuses, 1).unwrap();
        let done = computed(&batch, &scores, Duration::ZERO);
        assert_eq!((done.n_rows, done.n_unwanted, done.n_skipped), (2, 2, 1));
    }
}
