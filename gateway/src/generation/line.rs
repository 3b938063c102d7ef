//! Where requests and workers meet: the queue, the cost model and the count of workers, under one lock.

use crate::generation::cost::{Cost, Size};
use crate::generation::queue::{BatchBounds, Queue, QueueBounds, Reservation, Taken};
use crate::generation::text::TextRatio;
use crate::generation::work::{Outcome, Work};
use crate::load::{Load, Totals};
use crate::model::TokenRows;
use crate::score::ScoreError;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The least that `Retry-After` says: a client that comes back sooner finds the same queue.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);
/// Share of the time before its deadline in which an admitted request is predicted to be done. The rest is
/// for smaller requests that come later and go first, and for the prediction's error.
const DEADLINE_SHARE: f64 = 0.7;
/// The most that `Retry-After` says: beyond this the prediction is no better than a guess.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// The meeting place of one generation.
#[derive(Debug)]
pub struct Line {
    state: Mutex<State>,
    // Waited on by idle workers.
    rows_came: Condvar,
    batch: BatchBounds,
}

#[derive(Debug)]
struct State {
    queue: Queue,
    cost: Cost,
    text: TextRatio,
    requests_in_flight: usize,
    workers: usize,
    workers_busy: usize,
    totals: Totals,
    closed: bool,
    batch: BatchBounds,
}

/// What the plugin made of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Computed {
    /// Rows that have scores.
    pub n_rows: usize,
    /// Their size.
    pub size: Size,
    /// How long the call took.
    pub took: Duration,
    /// Whether every row of the batch was scored. If rows were skipped, the time says nothing about the
    /// cost of those that were not.
    pub is_whole: bool,
}

/// The right to push one request's rows. Gives its room back when dropped.
#[derive(Debug)]
pub struct Permit {
    line: Arc<Line>,
    reserved: Reservation,
}

/// A pushed request's place. Dropping it before the outcome has come says that nobody waits any more.
#[derive(Debug)]
pub struct Ticket {
    line: Arc<Line>,
    work: Arc<Work>,
    outcome: oneshot::Receiver<Outcome>,
    done: bool,
    // Holds the count of requests in flight.
    _permit: Permit,
}

// === impl Line ===

impl Line {
    /// An empty line before no workers, for a tokenizer that puts `n_special` tokens into each row.
    pub fn new(queue: QueueBounds, batch: BatchBounds, n_special: usize) -> Self {
        let state = State {
            queue: Queue::new(queue),
            cost: Cost::default(),
            text: TextRatio::new(n_special),
            requests_in_flight: 0,
            workers: 0,
            workers_busy: 0,
            totals: Totals::default(),
            closed: false,
            batch,
        };
        Self {
            state: Mutex::new(state),
            rows_came: Condvar::new(),
            batch,
        }
    }

    /// Decides whether a request of `n_rows` rows and about `n_bytes` of text will be in time, and keeps
    /// room for it. Its rows are cut to `tokens_max` tokens in all, however long the text is.
    ///
    /// # Errors
    /// `Overloaded` when there is no room or no time before `deadline`; `Unavailable` when no worker
    /// lives.
    pub fn admit(
        self: &Arc<Self>,
        n_rows: usize,
        n_bytes: usize,
        tokens_max: usize,
        deadline: Instant,
        now: Instant,
    ) -> Result<Permit, ScoreError> {
        let mut state = self.lock();
        if state.closed || state.workers == 0 {
            let why = if state.closed {
                "the server is shutting down"
            } else {
                "the model's backend is being restarted"
            };
            return Err(ScoreError::Unavailable {
                why: why.to_owned(),
                retry_after: RETRY_AFTER_MIN,
            });
        }
        let tokens = state.text.tokens(n_rows, n_bytes).min(tokens_max);
        let wait = state.wait();
        let time = deadline
            .saturating_duration_since(now)
            .mul_f64(DEADLINE_SHARE);
        // An empty queue admits whatever comes: the prediction may be wrong, and refusing it now would
        // refuse it for ever.
        if state.queue.n_rows_promised() > 0 && time < wait + state.compute(n_rows, tokens) {
            let why = format!(
                "{:.1} s of work are queued, more than the request's deadline leaves",
                wait.as_secs_f64()
            );
            return Err(ScoreError::Overloaded {
                why,
                retry_after: retry_after(wait),
            });
        }
        let reserved = Reservation {
            rows: n_rows,
            tokens,
        };
        if state.queue.reserve(reserved).is_err() {
            let (rows, tokens) = (state.queue.n_rows(), state.queue.n_tokens());
            let why = format!("the queue is full: {rows} rows of {tokens} tokens wait");
            return Err(ScoreError::Overloaded {
                why,
                retry_after: retry_after(wait),
            });
        }
        state.requests_in_flight += 1;
        Ok(Permit {
            line: Arc::clone(self),
            reserved,
        })
    }

    /// Blocks until there are rows and takes a batch of them. `None` when the line is closed and empty.
    pub fn next(&self, batch: &mut Vec<Taken>) -> Option<Instant> {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let State { queue, cost, .. } = &mut *state;
            queue.cut(now, &self.batch, cost, batch);
            if !batch.is_empty() {
                state.workers_busy += 1;
                return Some(now);
            }
            if state.closed {
                return None;
            }
            state = self
                .rows_came
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A worker has come back from a batch.
    pub fn returned(&self) {
        self.lock().workers_busy -= 1;
    }

    /// A batch has come back from the plugin.
    pub fn computed(&self, done: &Computed) {
        let mut state = self.lock();
        if done.is_whole {
            state.cost.learn(done.size, done.took.as_secs_f64());
        }
        state.totals.batches += 1;
        state.totals.rows += done.n_rows as u64;
        state.totals.tokens += done.size.tokens as u64;
        state.totals.inference += done.took;
    }

    /// Teaches the cost model without a queue: the warm-up.
    pub fn learn(&self, size: Size, took: Duration) {
        self.lock().cost.learn(size, took.as_secs_f64());
    }

    /// Corrects the estimate of tokens from bytes, by a request that was tokenized and not cut.
    pub fn learn_text(&self, n_rows: usize, n_bytes: usize, n_tokens: usize) {
        self.lock().text.learn(n_rows, n_bytes, n_tokens);
    }

    /// A worker can be called from now on (`+1`) or not any more (`-1`).
    pub fn count_worker(&self, change: isize) {
        let mut state = self.lock();
        state.workers = state.workers.saturating_add_signed(change);
    }

    /// No more requests are taken; workers end when the queue is empty.
    pub fn close(&self) {
        self.lock().closed = true;
        self.rows_came.notify_all();
    }

    /// Whether [`close`](Self::close) was called.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Answers everything that waits with `error`.
    pub fn fail_all(&self, error: &ScoreError) {
        // Outside the lock: an answer wakes a task.
        let waiting = self.lock().queue.drain();
        for work in waiting {
            work.fail(error.clone());
        }
    }

    /// How busy it is.
    pub fn load(&self) -> Load {
        let state = self.lock();
        Load {
            requests_in_flight: state.requests_in_flight,
            queue_rows: state.queue.n_rows(),
            queue_tokens: state.queue.n_tokens(),
            queue_time: state.wait(),
            workers: state.workers,
            workers_busy: state.workers_busy,
        }
    }

    /// What was done.
    pub fn totals(&self) -> Totals {
        self.lock().totals
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Queue and cost leave no half-done state behind a panic that could not happen anyway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl State {
    /// Predicted time until what is queued now has been computed.
    fn wait(&self) -> Duration {
        let queue = &self.queue;
        self.seconds(self.alone_s(queue.n_rows_promised(), queue.size()))
    }

    /// Predicted time that a request of this size takes when it has all workers.
    fn compute(&self, n_rows: usize, tokens: usize) -> Duration {
        let each = Size::row(tokens / n_rows.max(1));
        let rows = Size {
            tokens: tokens as f64,
            squares: each.squares * n_rows as f64,
        };
        self.seconds(self.alone_s(n_rows, rows))
    }

    /// Predicted seconds of one worker for rows of this size, cut into batches as `queue.cut` does: each
    /// batch costs its constant part too, which is most of it where a batch holds but one row.
    fn alone_s(&self, n_rows: usize, size: Size) -> f64 {
        let (constant_s, rows_s) = (self.cost.batch_s(Size::default()), self.cost.rows_s(size));
        let room_s = self.batch.time_max.as_secs_f64() - constant_s;
        let by_time = if room_s > 0.0 {
            rows_s / room_s
        } else {
            f64::INFINITY
        };
        let by_rows = n_rows as f64 / self.batch.rows_max as f64;
        let by_tokens = size.tokens / self.batch.tokens_max as f64;
        let n_batches = by_time
            .max(by_rows)
            .max(by_tokens)
            .ceil()
            .min(n_rows as f64);
        rows_s + constant_s * n_batches
    }

    fn seconds(&self, alone_s: f64) -> Duration {
        Duration::try_from_secs_f64(alone_s / self.workers.max(1) as f64).unwrap_or(RETRY_AFTER_MAX)
    }
}

fn retry_after(wait: Duration) -> Duration {
    wait.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX)
}

// === impl Permit ===

impl Permit {
    /// Puts the request's rows into the line.
    pub fn push(
        mut self,
        rows: TokenRows,
        n_labels: usize,
        deadline: Instant,
        now: Instant,
    ) -> Ticket {
        let (work, outcome) = Work::new(rows, n_labels, deadline, now);
        let line = Arc::clone(&self.line);
        {
            let mut state = line.lock();
            state.queue.release(std::mem::take(&mut self.reserved));
            let State { queue, cost, .. } = &mut *state;
            queue.push(Arc::clone(&work), cost);
        }
        // One batch of rows wants one worker; the others find out when they look.
        if work.rows().len() == 1 {
            line.rows_came.notify_one()
        } else {
            line.rows_came.notify_all()
        }
        Ticket {
            line,
            work,
            outcome,
            done: false,
            _permit: self,
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.line.lock();
        state.queue.release(self.reserved);
        state.requests_in_flight -= 1;
        state.totals.requests += 1;
    }
}

// === impl Ticket ===

impl Ticket {
    /// Waits for the outcome.
    pub async fn outcome(mut self) -> Outcome {
        let outcome = (&mut self.outcome).await;
        self.done = true;
        // The sender lives in `work`, which lives in `self`: it answers before it goes.
        outcome.unwrap_or(Err(ScoreError::Cancelled))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.done {
            self.work.abandon();
            self.line.lock().queue.forget(&self.work);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_were_skipped_teach_nothing_and_the_others_count() {
        let (queue, batch) = (
            QueueBounds {
                rows_max: 10,
                tokens_max: 1_000,
            },
            BatchBounds {
                rows_max: 10,
                tokens_max: 1_000,
                time_max: Duration::from_millis(10),
            },
        );
        let line = Line::new(queue, batch, 3);
        let mut done = Computed {
            n_rows: 2,
            size: Size::row(40),
            took: Duration::from_millis(4),
            is_whole: true,
        };
        line.computed(&done);
        let learned = line.lock().cost.coefficients();
        done.is_whole = false;
        done.took = Duration::from_micros(1);
        line.computed(&done);
        assert_eq!(line.lock().cost.coefficients(), learned);
        let totals = line.totals();
        assert_eq!((totals.batches, totals.rows, totals.tokens), (2, 4, 80));
    }
}
