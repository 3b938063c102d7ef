//! Where requests and workers meet: the plan under one lock, and idle workers that wait for rows.

use crate::generation::cost::Size;
use crate::generation::plan::{Ask, Computed, Cut, Next, Plan};
use crate::generation::queue::{BatchBounds, Failure, Late, Promise, QueueBounds, Taken, WorkerId};
use crate::generation::work::{RowFault, Work};
use crate::load::{Load, Totals};
use crate::model::TokenRows;
use crate::runtime::now;
use crate::score::{Priority, ScoreError};
use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// Pushed rows' place. Dropping it says that whatever has no outcome yet is not wanted any more.
#[derive(Debug)]
pub struct Ticket {
    work: Arc<Work>,
    // Holds the count of requests in flight.
    permit: Permit,
    // When it ended, if it was told.
    ended: Option<Instant>,
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

    /// Blocks until there are rows for worker `who`, and as long as they are held back, and takes a batch of
    /// them. `None` when the line is closed and nothing that was admitted is left.
    pub fn next(&self, who: WorkerId, batch: &mut Vec<Taken>) -> Option<Cut> {
        let mut plan = self.plan();
        loop {
            let now = now();
            let (looked, next) = self.cut(plan, now, who, batch);
            plan = match next {
                Next::Batch(cut) => return Some(cut),
                Next::Hold(until) => {
                    let waited = self.rows_came.wait_timeout(looked, until - now);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                Next::Done => return None,
                Next::Nothing => {
                    let waited = self.rows_came.wait(looked);
                    waited.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
    }

    /// What worker `who` does at `now`, without waiting for anything; see [`next`](Self::next).
    pub fn look(&self, now: Instant, who: WorkerId, batch: &mut Vec<Taken>) -> Next {
        self.cut(self.plan(), now, who, batch).1
    }

    /// Cuts a batch and tells those whose rows were passed over.
    fn cut<'a>(
        &'a self,
        mut plan: MutexGuard<'a, Plan>,
        now: Instant,
        who: WorkerId,
        batch: &mut Vec<Taken>,
    ) -> (MutexGuard<'a, Plan>, Next) {
        loop {
            let next = plan.cut(now, who, batch);
            let late = plan.take_late();
            if late.is_empty() {
                return (plan, next);
            }
            drop(plan);
            fail_late(&late);
            plan = self.plan();
            if let Next::Batch(_) = next {
                return (plan, next);
            }
            // What came while the lock was away has woken nobody.
        }
    }

    /// Somebody more urgent waits for these rows as well.
    pub fn raise(&self, work: &Arc<Work>, priority: Priority) {
        self.plan().raise(work, priority);
    }

    /// A worker has come back from a batch, of which every row was scored if it `is_whole`.
    pub fn returned(&self, cut: &Cut, is_whole: bool, clock: impl FnOnce() -> Instant) {
        let mut plan = self.plan();
        // Behind the lock: what passes before it is part of what a batch takes.
        plan.returned(cut, is_whole, clock());
    }

    /// A worker does not come back from a batch, and counts as one no more.
    pub fn stuck(&self, cut: &Cut, now: Instant) {
        self.plan().stuck(cut, now);
    }

    /// A worker that was stuck has come back; it serves again if it `is_needed`.
    pub fn came_back(&self, is_needed: bool) {
        self.plan().came_back(is_needed);
    }

    /// A batch has failed: its rows go to other workers, or are told so if they were tried often enough.
    pub fn put_back(&self, batch: &[Taken], failure: &Failure, now: Instant) {
        let given_up = self.plan().put_back(batch, failure, now);
        self.rows_came.notify_all();
        for (work, row) in given_up {
            work.fail_row(row as usize, RowFault::Whole(failure.error.clone()));
        }
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
        // Whoever is the only one now tries its own failures again.
        self.rows_came.notify_all();
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

    /// A request has been answered, well or not, whoever knew its scores.
    pub fn count_answer(&self) {
        self.plan().count_answer();
    }

    /// Forgets the rows that nobody wants any more.
    pub fn forget(&self, work: &Arc<Work>, now: Instant) {
        self.plan().forget(work, now);
    }

    /// How long a request may wait before it is begun; `None` for until its deadline.
    pub fn wait_max(&self) -> Option<Duration> {
        self.plan().wait_max()
    }

    /// Answers whoever has waited for so long at `now`. Workers do it too, whenever they look; all of them may
    /// be busy for longer.
    pub fn drop_waited(&self, now: Instant) {
        let mut plan = self.plan();
        plan.drop_waited(now);
        let late = plan.take_late();
        drop(plan);
        fail_late(&late);
    }

    /// Answers everything that waits with `error`.
    pub fn fail_all(&self, error: &ScoreError) {
        // Outside the lock: an answer wakes a task.
        let waiting = self.plan().drain();
        for work in waiting {
            work.fail(error);
        }
    }

    /// No worker computes.
    pub fn is_idle(&self) -> bool {
        self.plan().is_idle()
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

/// Tells those who still wait. Where their time has passed, they usually have left.
fn fail_late(late: &[Late]) {
    for (work, error) in late {
        work.fail(error);
    }
}

// === impl Permit ===

impl Permit {
    /// Puts the rows of `work` into the line.
    pub fn push(mut self, work: Arc<Work>, rows: TokenRows, now: Instant) -> Ticket {
        work.pushed(rows, now);
        if let Some(promise) = self.promise.take() {
            self.line.plan().push(Arc::clone(&work), promise, now);
        }
        // One batch of rows wants one worker; the others find out when they look.
        if work.rows().len() == 1 {
            self.line.rows_came.notify_one()
        } else {
            self.line.rows_came.notify_all()
        }
        Ticket {
            work,
            permit: self,
            ended: None,
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
        let is_done = plan.is_done();
        drop(plan);
        if is_done {
            // Workers waited for what was admitted before it closed.
            self.line.rows_came.notify_all();
        }
    }
}

// === impl Ticket ===

impl Ticket {
    /// Waits until every row has its outcome, or nobody waits for any.
    pub async fn over(&self) {
        self.work.over().await;
    }

    /// Gives the place back.
    pub fn end(mut self, now: Instant) {
        self.ended = Some(now);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.work.fail(&ScoreError::Cancelled);
        let now = self.ended.unwrap_or_else(now);
        self.permit.line.forget(&self.work, now);
        // Whoever goes away before is just impatient.
        let is_late = self.work.deadline() <= now;
        self.permit.is_in_time = match (self.work.is_scored(), is_late) {
            (true, _) => Some(true),
            (false, true) => Some(false),
            (false, false) => None,
        };
    }
}

#[cfg(test)]
mod tests;
