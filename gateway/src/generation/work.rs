//! One request's rows on their way, shared by its future, the queue and the workers.

use crate::generation::cost::{Amount, Size};
use crate::model::TokenRows;
use crate::score::{ScoreError, Times};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// What came of a request.
pub type Outcome = Result<Scored, ScoreError>;

/// A request's logits.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// rows × labels.
    pub logits: Vec<f32>,
    /// Queue and inference.
    pub times: Times,
}

/// A request's rows between queue and answer. Answered exactly once: by its last row, or by its first
/// failure.
#[derive(Debug)]
pub struct Work {
    rows: TokenRows,
    deadline: Instant,
    pushed: Instant,
    n_labels: usize,
    // Cleared when nobody waits; the plugin sees it through `RowControl`.
    wanted: AtomicBool,
    progress: Mutex<Progress>,
}

#[derive(Debug)]
struct Progress {
    logits: Vec<f32>,
    n_missing: usize,
    times: Times,
    // Taken by whoever answers.
    reply: Option<oneshot::Sender<Outcome>>,
}

// === impl Work ===

impl Work {
    /// Rows that are to be scored, and where their outcome arrives.
    pub fn new(
        rows: TokenRows,
        n_labels: usize,
        deadline: Instant,
        now: Instant,
    ) -> (Arc<Self>, oneshot::Receiver<Outcome>) {
        let (reply, outcome) = oneshot::channel();
        let progress = Progress {
            logits: vec![0.0; rows.len() * n_labels],
            n_missing: rows.len(),
            times: Times::default(),
            reply: Some(reply),
        };
        let work = Self {
            rows,
            deadline,
            pushed: now,
            n_labels,
            wanted: AtomicBool::new(true),
            progress: Mutex::new(progress),
        };
        (Arc::new(work), outcome)
    }

    /// The rows.
    pub fn rows(&self) -> &TokenRows {
        &self.rows
    }

    /// How many rows, and their size.
    pub fn amount(&self) -> Amount {
        let rows = &self.rows;
        let sizes = (0..rows.len()).map(|row| Size::row(rows.row_len(row)));
        Amount {
            rows: rows.len(),
            size: sizes.fold(Size::default(), |sum, row| sum + row),
        }
    }

    /// When the outcome is of no use any more.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// How long it has waited for its outcome.
    pub fn waited(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.pushed)
    }

    /// The flag that says whether anybody waits.
    pub fn wanted(&self) -> &AtomicBool {
        &self.wanted
    }

    /// Whether its rows are worth computing at `now`.
    pub fn alive(&self, now: Instant) -> bool {
        self.wanted.load(Ordering::Relaxed) && now < self.deadline
    }

    /// Nobody waits any more.
    pub fn abandon(&self) {
        self.wanted.store(false, Ordering::Relaxed);
    }

    /// Notes that rows were cut into a batch at `now`.
    pub fn note_cut(&self, now: Instant) {
        let waited = self.waited(now);
        let mut progress = self.progress();
        progress.times.queue = progress.times.queue.max(waited);
    }

    /// A row's logits have arrived from a batch that took `inference`. The last one answers.
    pub fn finish_row(&self, row: usize, logits: &[f32], inference: Duration) {
        let mut progress = self.progress();
        let start = row * self.n_labels;
        progress.logits[start..start + self.n_labels].copy_from_slice(logits);
        progress.times.inference = progress.times.inference.max(inference);
        progress.n_missing -= 1;
        if progress.n_missing == 0
            && let Some(reply) = progress.reply.take()
        {
            let scored = Scored {
                logits: std::mem::take(&mut progress.logits),
                times: progress.times,
            };
            // The receiver may just have gone; then nobody needs the answer.
            let _ = reply.send(Ok(scored));
        }
    }

    /// The request cannot be answered with scores. The first failure wins, and no more of its rows are
    /// computed.
    pub fn fail(&self, error: ScoreError) {
        self.abandon();
        if let Some(reply) = self.progress().reply.take() {
            let _ = reply.send(Err(error));
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        // Nothing in here can panic half-way; a poisoned lock is still sound.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
