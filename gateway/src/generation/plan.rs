//! All that a line decides, without a clock and without a lock: who is admitted, what a batch holds, what
//! is learned. A simulation runs it in virtual time.

mod admission;

pub use admission::Ask;

use crate::generation::cost::{Amount, Cost, OWN_COST_SHARE_MAX, Size};
use crate::generation::crowd::Crowd;
use crate::generation::forecast::{Forecast, Pace, Share};
use crate::generation::hold::{Arrivals, Held};
use crate::generation::queue::{
    BatchBounds, Failure, Late, Promise, Queue, QueueBounds, Taken, WorkerId,
};
use crate::generation::text::TextRatio;
use crate::generation::work::Work;
use crate::load::{Learned, Load, Totals};
use crate::score::Priority;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a batch costs that no model tells (locks, counters, cold caches) is little beside so much time.
const ENOUGH_MIN: Duration = Duration::from_millis(4);

/// The queue and what is known about it.
#[derive(Debug)]
pub struct Plan {
    queue: Queue,
    cost: Cost,
    text: TextRatio,
    batch: BatchBounds,
    wait_max: Option<Duration>,
    arrivals: Arrivals,
    // When what waits was held back for more.
    held_since: Option<Instant>,
    requests_in_flight: usize,
    workers: usize,
    workers_busy: usize,
    workers_stuck: usize,
    // Predicted seconds of the batches that are being computed.
    running_s: f64,
    pace: Pace,
    share: Share,
    crowd: Crowd,
    totals: Totals,
    closed: bool,
}

/// What an idle worker does next.
#[derive(Debug)]
pub enum Next {
    /// Computes the batch that was taken.
    Batch(Cut),
    /// Looks again at this time, or when rows come: a batch is held back for more of them.
    Hold(Instant),
    /// Nothing waits.
    Nothing,
    /// Nothing waits, and nothing comes any more: the line is closed.
    Done,
}

/// A batch that a worker computes now.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// When it was cut.
    pub at: Instant,
    /// How often its rows have failed before.
    pub tries: u32,
    predicted_s: f64,
}

/// What the plugin made of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Computed {
    /// Rows that have scores.
    pub n_rows: usize,
    /// Their size.
    pub size: Size,
    /// Tokens of the longest of them.
    pub longest: usize,
    /// How long the call took.
    pub took: Duration,
    /// Whether every row of the batch was scored. If rows were skipped, the time says nothing about the
    /// cost of those that were not.
    pub is_whole: bool,
    /// Of the rows that have scores, those whose request was gone.
    pub n_unwanted: usize,
    /// Rows that the backend passed over because their request was gone.
    pub n_skipped: usize,
}

// === impl Plan ===

impl Plan {
    /// An empty queue before no workers, for a tokenizer that puts `n_special` tokens into each row.
    pub fn new(queue: QueueBounds, batch: BatchBounds, n_special: usize) -> Self {
        Self {
            wait_max: queue.wait_max,
            queue: Queue::new(queue),
            cost: Cost::default(),
            text: TextRatio::new(n_special),
            batch,
            arrivals: Arrivals::default(),
            held_since: None,
            requests_in_flight: 0,
            workers: 0,
            workers_busy: 0,
            workers_stuck: 0,
            running_s: 0.0,
            pace: Pace::default(),
            share: Share::default(),
            crowd: Crowd::default(),
            totals: Totals::default(),
            closed: false,
        }
    }

    /// An admitted request's rows are there.
    pub fn push(&mut self, work: Arc<Work>, promise: Promise, now: Instant) {
        let alone_s = self.forecast().alone_s(work.amount());
        self.queue.push(work, promise, alone_s, now);
    }

    /// An admitted request went away before its rows were there.
    pub fn release(&mut self, promise: Promise) {
        self.queue.release(promise);
    }

    /// An admitted request was answered, or went away. `is_in_time` says whether it got its scores before
    /// its deadline; `None` if it ended for another reason.
    pub fn leave(&mut self, is_in_time: Option<bool>) {
        if let Some(is_in_time) = is_in_time {
            self.share.learn(is_in_time);
            self.totals.late += u64::from(!is_in_time);
        }
        self.requests_in_flight -= 1;
    }

    /// A request has been answered, well or not, whoever knew its scores.
    pub fn count_answer(&mut self) {
        self.totals.requests += 1;
    }

    /// Nobody waits for some of these rows any more.
    pub fn forget(&mut self, work: &Arc<Work>, now: Instant) {
        self.queue.forget(work, now);
    }

    /// Somebody more urgent waits for these rows as well.
    pub fn raise(&mut self, work: &Arc<Work>, priority: Priority) {
        self.queue.raise(work, priority);
    }

    /// Everything that waits; none of it is cut any more.
    pub fn drain(&mut self) -> Vec<Arc<Work>> {
        self.queue.drain()
    }

    /// How long a request may wait before it is begun.
    pub fn wait_max(&self) -> Option<Duration> {
        self.wait_max
    }

    /// Drops whoever has waited for so long, where no worker looks.
    pub fn drop_waited(&mut self, now: Instant) {
        self.queue.drop_waited(now);
    }

    /// What [`cut`](Self::cut) passed over; see [`Queue::take_late`].
    pub fn take_late(&mut self) -> Vec<Late> {
        self.queue.take_late()
    }

    /// Takes the next batch into `batch`, for worker `who` that is idle. What has failed goes first, and to
    /// another worker than the one that failed it unless that is the only one.
    pub fn cut(&mut self, now: Instant, who: WorkerId, batch: &mut Vec<Taken>) -> Next {
        let is_alone = self.workers <= 1;
        if let Some(tries) = self.queue.cut_again(now, (who, is_alone), batch) {
            return Next::Batch(self.begin(now, tries, batch));
        }
        if let Some(until) = self.hold_until(now) {
            batch.clear();
            return Next::Hold(until);
        }
        self.held_since = None;
        let speed = (self.pace.ratio(), self.workers);
        let bounds = BatchBounds {
            time_max: self
                .batch
                .time_max
                .min(self.part_of_what_waits())
                .min(self.enough()),
            ..self.batch
        };
        self.queue.cut(now, &bounds, &self.cost, speed, batch);
        if batch.is_empty() {
            if let Some(own_at) = self.queue.own_at(who) {
                return Next::Hold(own_at);
            }
            return if self.is_done() {
                Next::Done
            } else {
                Next::Nothing
            };
        }
        Next::Batch(self.begin(now, 0, batch))
    }

    /// A worker computes this batch now.
    fn begin(&mut self, now: Instant, tries: u32, batch: &[Taken]) -> Cut {
        let rows = batch
            .iter()
            .map(|(work, row)| Size::row(work.rows().row_len(*row as usize)));
        let size = rows.fold(Size::default(), |sum, row| sum + row);
        let predicted_s = self.cost.batch_s(size);
        self.running_s += predicted_s;
        self.workers_busy += 1;
        self.note_busy(now);
        Cut {
            at: now,
            tries,
            predicted_s,
        }
    }

    /// Until when what waits is held back; `None` to cut it now. Never when a batch of it would be full.
    /// While another worker is idle too it does not pay: that one takes what comes.
    fn hold_until(&mut self, now: Instant) -> Option<Instant> {
        let hold = self.batch.hold;
        let Amount { rows, size } = self.queue.pushed();
        let n_idle = self.workers.saturating_sub(self.workers_busy);
        let usual_s = self.cost.batch_s(size);
        let is_full = hold.rows_preferred.min(self.batch.rows_max) <= rows
            || self.batch.tokens_max <= size.tokens as usize
            || self.batch.time_max.as_secs_f64() <= usual_s;
        let has_help = hold.is_adaptive && 1 < n_idle;
        if hold.wait_max.is_zero() || self.closed || has_help || rows == 0 || is_full {
            return None;
        }
        let [own_s, ..] = self.cost.coefficients();
        let (waited, deadline) = self.queue.urgency(now)?;
        let held = Held {
            n_requests: self.queue.n_requests(),
            rate: self.arrivals.rate(now),
            own_s: own_s / self.workers as f64,
            rows_s: self.cost.rows_s(size),
            batch_s: self.pace.ratio() * usual_s,
            waited,
            deadline,
            since: *self.held_since.get_or_insert(now),
        };
        hold.until(&held, now)
    }

    /// A batch that takes so long gains nothing by taking longer: whoever comes meanwhile waits for its end.
    fn enough(&self) -> Duration {
        if !self.batch.hold.is_adaptive {
            return Duration::MAX;
        }
        let [own_s, ..] = self.cost.coefficients();
        let enough = Duration::try_from_secs_f64(own_s.max(0.0) / OWN_COST_SHARE_MAX);
        enough.unwrap_or(Duration::MAX).max(ENOUGH_MIN)
    }

    /// A worker's equal part of what waits or will, to the nearest row, in predicted time: so a request
    /// that waits alone is computed by all workers, and they end at about the same time. A part is never so
    /// small that the batch's own cost counts. Where batches are to have a size, they are not divided.
    fn part_of_what_waits(&self) -> Duration {
        if !self.batch.hold.is_adaptive {
            return Duration::MAX;
        }
        let Amount { rows, size } = self.queue.amount();
        let [own_s, ..] = self.cost.coefficients();
        let row_s = self.cost.rows_s(size) / rows.max(1) as f64;
        let part_s = row_s * (rows as f64 / self.workers.max(1) as f64 + 0.5);
        let part_s = own_s.max(0.0) + part_s.max(own_s / OWN_COST_SHARE_MAX);
        Duration::try_from_secs_f64(part_s).unwrap_or(Duration::MAX)
    }

    /// A worker has come back at `now` from a batch, of which every row was scored if it `is_whole`.
    pub fn returned(&mut self, cut: &Cut, is_whole: bool, now: Instant) {
        if is_whole {
            let passed = now.saturating_duration_since(cut.at);
            self.pace.learn(cut.predicted_s, passed.as_secs_f64());
        }
        self.workers_busy -= 1;
        self.note_busy(now);
        self.running_s -= cut.predicted_s;
        if self.workers_busy == 0 {
            // Sums of many small differences end at nothing.
            self.running_s = 0.0;
        }
    }

    /// A worker does not come back from a batch, and counts as one no more.
    pub fn stuck(&mut self, cut: &Cut, now: Instant) {
        self.returned(cut, false, now);
        self.count_worker(-1);
        self.workers_stuck += 1;
        self.totals.stuck += 1;
    }

    /// A worker that was stuck has come back; it serves again if it `is_needed`.
    pub fn came_back(&mut self, is_needed: bool) {
        self.workers_stuck -= 1;
        self.count_worker(isize::from(is_needed));
    }

    /// A batch has failed: the rows are tried again, but for those that are given back.
    pub fn put_back(&mut self, batch: &[Taken], failure: &Failure, now: Instant) -> Vec<Taken> {
        self.totals.faults += 1;
        let n_before = self.queue.again().rows;
        let given_up = self.queue.put_back(batch, failure, now);
        self.totals.retried += (self.queue.again().rows - n_before) as u64;
        given_up
    }

    fn note_busy(&mut self, now: Instant) {
        let share = self.workers_busy as f64 / self.workers.max(1) as f64;
        self.crowd.busy(share, now);
    }

    /// A batch has come back from the plugin.
    pub fn computed(&mut self, done: &Computed) {
        if done.is_whole {
            self.cost.learn(done.size, done.took.as_secs_f64());
        }
        self.totals.batches += 1;
        self.totals.rows += done.n_rows as u64;
        self.totals.tokens += done.size.tokens as u64;
        self.totals.rectangle_tokens += (done.n_rows * done.longest) as u64;
        self.totals.inference += done.took;
        self.totals.unwanted += done.n_unwanted as u64;
        self.totals.skipped += done.n_skipped as u64;
    }

    /// Teaches the cost model without a queue: the warm-up.
    pub fn learn(&mut self, size: Size, took: Duration) {
        self.cost.learn(size, took.as_secs_f64());
    }

    /// Corrects the estimate of tokens from bytes, by a request that was tokenized and not cut.
    pub fn learn_text(&mut self, rows: usize, row_bytes: usize, tokens: usize) {
        self.text.learn(rows, row_bytes, tokens);
    }

    /// Corrects the estimate of time from bytes: all tokenizer threads together took `seconds`.
    pub fn learn_text_time(&mut self, text_bytes: usize, seconds: f64) {
        self.text.learn_time(text_bytes, seconds);
    }

    /// A worker can be called from now on (`+1`) or not any more (`-1`).
    pub fn count_worker(&mut self, change: isize) {
        self.workers = self.workers.saturating_add_signed(change);
    }

    /// No more requests are taken.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Whether [`close`](Self::close) was called.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// It is closed, and nothing that was admitted is left to be taken.
    pub fn is_done(&self) -> bool {
        self.closed && self.queue.is_empty()
    }

    /// No worker computes.
    pub fn is_idle(&self) -> bool {
        self.workers_busy == 0
    }

    /// How busy it is.
    pub fn load(&self) -> Load {
        Load {
            requests_in_flight: self.requests_in_flight,
            queue_rows: self.queue.n_rows(),
            queue_tokens: self.queue.n_tokens(),
            queue_bytes: self.queue.n_bytes(),
            queue_time: self.forecast().done(self.queue.amount()),
            workers: self.workers,
            workers_busy: self.workers_busy,
            workers_stuck: self.workers_stuck,
            learned: self.learned(),
        }
    }

    fn learned(&self) -> Learned {
        let [batch_s, token_s, square_s] = self.cost.coefficients();
        Learned {
            batch_s,
            token_s,
            square_s,
            pace: self.pace.ratio(),
            share: self.share.value(),
        }
    }

    /// What was done.
    pub fn totals(&self) -> Totals {
        Totals {
            dropped: self.queue.dropped(),
            ..self.totals
        }
    }

    fn forecast(&self) -> Forecast<'_> {
        Forecast {
            cost: &self.cost,
            batch: &self.batch,
            n_workers: self.workers,
            running_s: self.running_s + self.cost.rows_s(self.queue.again().size),
            pace: self.pace.ratio(),
            share: self.share.value(),
            wait_max: self.wait_max,
        }
    }
}

#[cfg(test)]
mod tests;
