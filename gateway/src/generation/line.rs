//! Where requests and workers meet: the plan under one lock, and idle workers that wait for rows.

use crate::generation::cost::Size;
use crate::generation::plan::{Ask, Computed, Cut, Next, Plan};
use crate::generation::queue::{BatchBounds, Promise, QueueBounds, Taken};
use crate::generation::work::{Outcome, Work};
use crate::load::{Load, Totals};
use crate::model::TokenRows;
use crate::score::{Priority, ScoreError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The meeting place of one generation.
#[derive(Debug)]
pub struct Line {
    plan: Mutex<Plan>,
    // Waited on by idle workers.
    rows_came: Condvar,
}

/// The right to push one request's rows. Gives its room back when dropped.
#[derive(Debug)]
pub struct Permit {
    line: Arc<Line>,
    // Taken when the rows are pushed.
    promise: Option<Promise>,
    // For `Plan::leave`.
    is_in_time: Option<bool>,
}

/// A pushed request's place. Dropping it before the outcome has come says that nobody waits any more.
#[derive(Debug)]
pub struct Ticket {
    line: Arc<Line>,
    work: Arc<Work>,
    outcome: oneshot::Receiver<Outcome>,
    done: bool,
    // Holds the count of requests in flight.
    permit: Permit,
}

// === impl Line ===

impl Line {
    /// An empty line before no workers, for a tokenizer that puts `n_special` tokens into each row.
    pub fn new(queue: QueueBounds, batch: BatchBounds, n_special: usize) -> Self {
        Self {
            plan: Mutex::new(Plan::new(queue, batch, n_special)),
            rows_came: Condvar::new(),
        }
    }

    /// Decides whether a request will be in time, and keeps room for it.
    ///
    /// # Errors
    /// [`Plan::admit`]'s.
    pub fn admit(self: &Arc<Self>, ask: &Ask, now: Instant) -> Result<Permit, ScoreError> {
        let promise = self.plan().admit(ask, now)?;
        Ok(Permit {
            line: Arc::clone(self),
            promise: Some(promise),
            is_in_time: None,
        })
    }

    /// Blocks until there are rows, and as long as they are held back, and takes a batch of them. `None`
    /// when the line is closed and empty.
    pub fn next(&self, batch: &mut Vec<Taken>) -> Option<Cut> {
        let mut plan = self.plan();
        loop {
            let now = Instant::now();
            plan = match plan.cut(now, batch) {
                Next::Batch(cut) => return Some(cut),
                Next::Hold(until) => {
                    let waited = self.rows_came.wait_timeout(plan, until - now);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                Next::Nothing if plan.is_closed() => return None,
                Next::Nothing => {
                    let waited = self.rows_came.wait(plan);
                    waited.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
    }

    /// Somebody more urgent waits for these rows as well.
    pub fn raise(&self, work: &Arc<Work>, priority: Priority) {
        self.plan().raise(work, priority);
    }

    /// A worker has come back from a batch, of which every row was scored if it `is_whole`.
    pub fn returned(&self, cut: &Cut, is_whole: bool) {
        let mut plan = self.plan();
        // Behind the lock: what passes before it is part of what a batch takes.
        plan.returned(cut, is_whole, Instant::now());
    }

    /// A batch has come back from the plugin.
    pub fn computed(&self, done: &Computed) {
        self.plan().computed(done);
    }

    /// Teaches the cost model without a queue: the warm-up.
    pub fn learn(&self, size: Size, took: Duration) {
        self.plan().learn(size, took);
    }

    /// Corrects the estimate of tokens from bytes, by a request that was tokenized and not cut.
    pub fn learn_text(&self, rows: usize, row_bytes: usize, tokens: usize) {
        self.plan().learn_text(rows, row_bytes, tokens);
    }

    /// Corrects the estimate of time from bytes, by what all tokenizer threads together took.
    pub fn learn_text_time(&self, text_bytes: usize, took: Duration) {
        self.plan().learn_text_time(text_bytes, took.as_secs_f64());
    }

    /// A worker can be called from now on (`+1`) or not any more (`-1`).
    pub fn count_worker(&self, change: isize) {
        self.plan().count_worker(change);
    }

    /// No more requests are taken; workers end when the queue is empty.
    pub fn close(&self) {
        self.plan().close();
        self.rows_came.notify_all();
    }

    /// Whether [`close`](Self::close) was called.
    pub fn is_closed(&self) -> bool {
        self.plan().is_closed()
    }

    /// Answers everything that waits with `error`.
    pub fn fail_all(&self, error: &ScoreError) {
        // Outside the lock: an answer wakes a task.
        let waiting = self.plan().drain();
        for work in waiting {
            work.fail(error.clone());
        }
    }

    /// How busy it is.
    pub fn load(&self) -> Load {
        self.plan().load()
    }

    /// What was done.
    pub fn totals(&self) -> Totals {
        self.plan().totals()
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        // A plan leaves no half-done state behind a panic that could not happen anyway.
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
        if let Some(promise) = self.promise.take() {
            line.plan().push(Arc::clone(&work), promise);
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
            permit: self,
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut plan = self.line.plan();
        if let Some(promise) = self.promise.take() {
            plan.release(promise);
        }
        plan.leave(self.is_in_time);
    }
}

// === impl Ticket ===

impl Ticket {
    /// Waits for the outcome.
    pub async fn outcome(mut self) -> Outcome {
        let outcome = (&mut self.outcome).await;
        self.done = true;
        // The sender lives in `work`, which lives in `self`: it answers before it goes.
        let outcome = outcome.unwrap_or(Err(ScoreError::Cancelled));
        self.permit.is_in_time = match &outcome {
            Ok(_) => Some(true),
            Err(ScoreError::DeadlinePassed { .. }) => Some(false),
            Err(_) => None,
        };
        outcome
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.done {
            self.work.abandon();
            // Whoever goes away before is just impatient.
            let now = Instant::now();
            let is_late = self.work.deadline() <= now;
            self.permit.is_in_time = is_late.then_some(false);
            self.line.plan().forget(&self.work, now);
        }
    }
}

#[cfg(test)]
mod tests;
