//! Rows that are to be computed together, from their admission to their scores; shared by the task that
//! drives them, the queue and the workers.

use crate::generation::cost::{Amount, Size};
use crate::model::{Cut, TokenRows};
use crate::score::{Priority, ScoreError, Times};
use crate::sync::{AtomicUsize, Mutex, MutexGuard, PoisonError};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Whoever takes the rows' outcomes.
pub trait Sink: Send + Sync {
    /// What came of a row: called once for each row, and never for one that was [unwanted](Work::unwant)
    /// before.
    fn landed(&self, row: usize, outcome: Result<Scored<'_>, RowFault>);
}

/// A row's scores.
#[derive(Clone, Copy, Debug)]
pub struct Scored<'a> {
    /// One for each label.
    pub logits: &'a [f32],
    /// Tokens of the row, special ones included.
    pub n_tokens: usize,
    /// What did not fit into it.
    pub cut: Cut,
    /// Where the time went.
    pub times: Times,
}

/// Why a row has no scores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowFault {
    /// Neither query nor document makes a token.
    Empty,
    /// The model's score is not a number.
    NotFinite,
    /// The backend passed it over.
    NotScored,
    /// Something that does not depend on the row.
    Whole(ScoreError),
}

/// Rows on their way. Each is answered at most once, and can be given up by itself.
#[derive(Debug)]
pub struct Work {
    came: Instant,
    deadline: Instant,
    // Microseconds beyond the deadline: whoever joins may allow more time.
    extended_us: AtomicU64,
    // Likewise.
    priority: AtomicU8,
    // Cleared once: by the row's answer, or when nobody waits for it. The plugin sees it.
    wanted: Box<[AtomicBool]>,
    n_wanted: AtomicUsize,
    n_scored: AtomicUsize,
    rows: OnceLock<TokenRows>,
    progress: Mutex<Progress>,
    over: Notify,
    sink: Weak<dyn Sink>,
}

#[derive(Debug, Default)]
struct Progress {
    times: Times,
    pushed: Option<Instant>,
}

// === impl Work ===

impl Work {
    /// `n_rows` rows, not tokenized yet, whose outcomes go to `sink`; to nobody if that is gone.
    pub fn new(
        n_rows: usize,
        priority: Priority,
        deadline: Instant,
        now: Instant,
        sink: Weak<dyn Sink>,
    ) -> Arc<Self> {
        Arc::new(Self {
            came: now,
            deadline,
            extended_us: AtomicU64::new(0),
            priority: AtomicU8::new(priority as u8),
            wanted: (0..n_rows).map(|_| AtomicBool::new(true)).collect(),
            n_wanted: AtomicUsize::new(n_rows),
            n_scored: AtomicUsize::new(0),
            rows: OnceLock::new(),
            progress: Mutex::default(),
            over: Notify::new(),
            sink,
        })
    }

    /// The rows; none before they are tokenized.
    pub fn rows(&self) -> &TokenRows {
        static NONE: TokenRows = TokenRows::none();
        self.rows.get().unwrap_or(&NONE)
    }

    /// The rows have been tokenized and go into a queue.
    pub fn pushed(&self, rows: TokenRows, now: Instant) {
        debug_assert_eq!(rows.len(), self.wanted.len());
        if self.rows.set(rows).is_err() {
            unreachable!("rows are tokenized once");
        }
        self.progress().pushed = Some(now);
    }

    /// How many rows somebody waits for, and their size. None before they are tokenized.
    pub fn amount(&self) -> Amount {
        let rows = self.rows();
        let wanted = (0..rows.len()).filter(|&row| self.is_wanted(row));
        wanted.fold(Amount::default(), |sum, row| {
            sum + Amount {
                rows: 1,
                size: Size::row(rows.row_len(row)),
            }
        })
    }

    /// When the outcomes are of no use any more.
    pub fn deadline(&self) -> Instant {
        self.deadline + Duration::from_micros(self.extended_us.load(Ordering::Relaxed))
    }

    /// Somebody waits until `deadline`, if that is later.
    pub fn extend(&self, deadline: Instant) {
        let us = micros(deadline.saturating_duration_since(self.deadline));
        self.extended_us.fetch_max(us, Ordering::Relaxed);
    }

    /// The priority of the most urgent who waits.
    pub fn priority(&self) -> Priority {
        match self.priority.load(Ordering::Relaxed) {
            0 => Priority::Low,
            1 => Priority::Normal,
            _ => Priority::High,
        }
    }

    /// Somebody so urgent waits. Says whether that is more urgent than whoever waited before.
    pub fn raise(&self, priority: Priority) -> bool {
        let before = self.priority.fetch_max(priority as u8, Ordering::Relaxed);
        before < priority as u8
    }

    /// How long it has been under way.
    pub fn waited(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.came)
    }

    /// The flag that says whether anybody waits for a row.
    pub fn wanted(&self, row: usize) -> &AtomicBool {
        &self.wanted[row]
    }

    /// Whether anybody waits for a row.
    pub fn is_wanted(&self, row: usize) -> bool {
        self.wanted[row].load(Ordering::Relaxed)
    }

    /// Whether any row is worth computing at `now`.
    pub fn alive(&self, now: Instant) -> bool {
        !self.is_over() && now < self.deadline()
    }

    /// Nobody waits for any row, or each has its outcome.
    pub fn is_over(&self) -> bool {
        self.n_wanted.load(Ordering::Acquire) == 0
    }

    /// Whether every row was scored.
    pub fn is_scored(&self) -> bool {
        self.n_scored.load(Ordering::Relaxed) == self.wanted.len()
    }

    /// Waits until it [is over](Self::is_over). For one task only.
    pub async fn over(&self) {
        while !self.is_over() {
            self.over.notified().await;
        }
    }

    /// Nobody waits for this row any more. Does nothing if it has its outcome.
    pub fn unwant(&self, row: usize) {
        if self.take(row) {
            self.count_down();
        }
    }

    /// Notes how long tokenizing took.
    pub fn note_tokenized(&self, took: Duration) {
        self.progress().times.tokenize = took;
    }

    /// Notes that rows were cut into a batch at `now`.
    pub fn note_cut(&self, now: Instant) {
        let mut progress = self.progress();
        let waited = progress.pushed.map(|at| now.saturating_duration_since(at));
        progress.times.queue = progress.times.queue.max(waited.unwrap_or_default());
    }

    /// A row's logits have arrived from a batch that took `inference`. Says whether anybody waited.
    pub fn finish_row(&self, row: usize, logits: &[f32], inference: Duration) -> bool {
        let is_wanted = self.take(row);
        if is_wanted {
            let rows = self.rows();
            let times = {
                let mut progress = self.progress();
                progress.times.inference = progress.times.inference.max(inference);
                progress.times
            };
            // Before it is over: whoever waits for that looks.
            self.n_scored.fetch_add(1, Ordering::Relaxed);
            self.count_down();
            let scored = Scored {
                logits,
                n_tokens: rows.row_len(row),
                cut: rows.cut(row),
                times,
            };
            self.land(row, Ok(scored));
        }
        is_wanted
    }

    /// A row cannot be scored.
    pub fn fail_row(&self, row: usize, fault: RowFault) {
        if self.take(row) {
            self.count_down();
            self.land(row, Err(fault));
        }
    }

    /// No row that has no outcome yet can be scored.
    pub fn fail(&self, error: &ScoreError) {
        for row in 0..self.wanted.len() {
            self.fail_row(row, RowFault::Whole(error.clone()));
        }
    }

    /// The right to answer a row, or to give it up: given once.
    fn take(&self, row: usize) -> bool {
        self.wanted[row].swap(false, Ordering::Relaxed)
    }

    /// A row that was taken is wanted no more.
    fn count_down(&self) {
        if self.n_wanted.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.over.notify_one();
        }
    }

    fn land(&self, row: usize, outcome: Result<Scored<'_>, RowFault>) {
        // Without a sink nobody is left who could wait.
        if let Some(sink) = self.sink.upgrade() {
            sink.landed(row, outcome);
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        // Nothing in here can panic half-way; a poisoned lock is still sound.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

// === impl RowFault ===

impl RowFault {
    /// What the request is told whose document of this index it is.
    pub fn of_document(self, index: usize) -> ScoreError {
        let backend = |why: String| ScoreError::Backend { why };
        match self {
            Self::Empty => ScoreError::invalid(
                format!("documents[{index}]"),
                "neither it nor the query holds anything that the model reads; send text",
            ),
            Self::NotFinite => backend(format!(
                "the model's score for documents[{index}] is not a number"
            )),
            // Whatever the client sent, it became tokens that the model has: the backend is to blame.
            Self::NotScored => backend(format!("it could not score documents[{index}]")),
            Self::Whole(error) => error,
        }
    }
}
