//! The queue before a generation's workers: bounded, fair between requests, without a clock.
//!
//! Requests are served one after the other in the order in which they would finish if all waiting ones
//! shared the workers equally (the fair sojourn protocol; Friedman and Henderson 2003). So a request of one
//! document that comes behind one of a thousand is next, equal ones go first come first served, the
//! thousand are never starved, and none finishes later than under equal sharing. Equal sharing itself
//! (tried first: a row from each in turn) lets all requests of an overloaded server finish together, after
//! their deadlines. Deadlines do not order: they only drop.
//!
//! A request's part of the workers has a weight, by its priority. Virtual time runs on whenever rows are
//! taken, so that a request of any priority comes first at last, whatever comes after it.
//!
//! Rows whose batch failed go before all others; see `again.rs`.
//!
//! A request has its place from its admission on, while it is still being tokenized: whoever is admitted
//! next can count on what stands before it.

mod again;
mod bounds;
mod flow;
mod sharing;

pub use again::{Failure, WorkerId};
pub use bounds::{BatchBounds, Full, QueueBounds};
pub use sharing::Place;

use crate::generation::cost::{Amount, Cost, Size};
use crate::generation::work::Work;
use crate::load::Dropped;
use crate::score::{Priority, ScoreError};
use again::{Again, Retry};
use bounds::bytes;
use flow::{Flow, Why, weight};
use sharing::Sharing;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A row that was taken: the request's rows and the index among them.
pub type Taken = (Arc<Work>, u32);

/// Rows that left before they were computed, and what those who wait for them are to be told.
pub type Late = (Arc<Work>, ScoreError);

/// The waiting rows.
#[derive(Debug)]
pub struct Queue {
    bounds: QueueBounds,
    flows: BTreeMap<Place, Flow>,
    // Cut before, and failed.
    again: Again,
    // Admitted, and still being tokenized.
    promised: BTreeMap<Place, Reservation>,
    pushed_sum: Amount,
    promised_sum: Amount,
    promised_text_bytes: usize,
    sharing: Sharing,
    dropped: Dropped,
    late: Vec<Late>,
}

/// What a request keeps waiting, or will.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Waiting {
    /// Its rows that were not taken yet; estimated before they are tokenized.
    pub amount: Amount,
    /// When its scores are of no use any more.
    pub deadline: Instant,
}

/// What an admitted request will bring.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reservation {
    /// Its rows, estimated.
    pub waiting: Waiting,
    /// Bytes of text that are to be tokenized first.
    pub text_bytes: usize,
    /// How urgent it is.
    pub priority: Priority,
}

/// Room and a place that an admitted request has until its rows are pushed. Worth something only to the
/// queue that gave it.
#[derive(Debug)]
pub struct Promise {
    place: Place,
    // When it was admitted, as sharing counts.
    start_s: f64,
    priority: Priority,
}

// === impl Queue ===

impl Queue {
    /// An empty queue.
    pub fn new(bounds: QueueBounds) -> Self {
        Self {
            bounds,
            flows: BTreeMap::new(),
            again: Again::default(),
            promised: BTreeMap::new(),
            pushed_sum: Amount::default(),
            promised_sum: Amount::default(),
            promised_text_bytes: 0,
            sharing: Sharing::default(),
            dropped: Dropped::default(),
            late: Vec::new(),
        }
    }

    /// Rows that wait.
    pub fn n_rows(&self) -> usize {
        self.pushed_sum.rows + self.again.amount().rows
    }

    /// Tokens that wait.
    pub fn n_tokens(&self) -> usize {
        (self.pushed_sum + self.again.amount()).size.tokens as usize
    }

    /// Bytes of tokens that wait or are promised room, and of texts that are being tokenized.
    pub fn n_bytes(&self) -> usize {
        bytes(self.amount(), self.promised_text_bytes)
    }

    /// Rows that left before they were computed, since the start.
    pub fn dropped(&self) -> Dropped {
        self.dropped
    }

    /// Requests whose rows wait.
    pub fn n_requests(&self) -> usize {
        self.flows.len()
    }

    /// Rows that wait for their first try.
    pub fn pushed(&self) -> Amount {
        self.pushed_sum
    }

    /// Since when the oldest of the waiting requests has waited, and the earliest of their deadlines.
    /// `None` when nothing waits. Takes time in proportion to the requests.
    pub fn urgency(&self, now: Instant) -> Option<(Duration, Instant)> {
        let flows = self.flows.values();
        let waits = flows.map(|flow| (flow.waited(now), flow.work.deadline()));
        waits.reduce(|(longest, first), (waited, deadline)| {
            (longest.max(waited), first.min(deadline))
        })
    }

    /// What waits or is promised room.
    pub fn amount(&self) -> Amount {
        self.pushed_sum + self.promised_sum + self.again.amount()
    }

    /// Nothing waits, and nothing is promised room.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty() && self.promised.is_empty() && self.again.is_empty()
    }

    /// Rows that wait to be tried again.
    pub fn again(&self) -> Amount {
        self.again.amount()
    }

    /// What waits or is promised room, in the order in which it will be served.
    pub fn waiting(&self) -> impl Iterator<Item = (Place, Waiting)> {
        let mut promised = self.promised.iter().peekable();
        let mut flows = self.flows.iter().peekable();
        std::iter::from_fn(move || {
            let is_promise = match (promised.peek(), flows.peek()) {
                (Some((promise, _)), Some((flow, _))) => promise < flow,
                (promise, _) => promise.is_some(),
            };
            if is_promise {
                promised
                    .next()
                    .map(|(place, reserved)| (*place, reserved.waiting))
            } else {
                flows.next().map(|(place, flow)| (*place, flow.waiting()))
            }
        })
    }

    /// Bytes that are tokenized before a request of `text_bytes` is, itself included: the tokenizers
    /// take pieces in turn, so that each other request takes at most as long as this one.
    pub fn text_bytes_until(&self, text_bytes: usize) -> usize {
        let others = self.promised.values();
        let of_others: usize = others.map(|other| other.text_bytes.min(text_bytes)).sum();
        of_others + text_bytes
    }

    /// Where a request would stand if it was admitted now, of which one worker would be done after
    /// `alone_s` seconds.
    pub fn place(&self, alone_s: f64, priority: Priority) -> Place {
        self.sharing.place(alone_s, weight(priority))
    }

    /// Promises room and a place. A request that alone exceeds the bounds is let in when nothing else is
    /// there: it could never be served otherwise.
    ///
    /// # Errors
    /// [`Full`].
    pub fn reserve(&mut self, asked: Reservation, alone_s: f64) -> Result<Promise, Full> {
        if self.amount().rows > 0 {
            self.check_room(&asked)?;
        }
        let place = self.place(alone_s, asked.priority);
        self.sharing.join(place, weight(asked.priority));
        self.promised.insert(place, asked);
        self.promised_sum += asked.waiting.amount;
        self.promised_text_bytes += asked.text_bytes;
        Ok(Promise {
            place,
            start_s: self.sharing.now_s(),
            priority: asked.priority,
        })
    }

    fn check_room(&self, asked: &Reservation) -> Result<(), Full> {
        let n_requests = self.flows.len() + self.promised.len() + 1;
        let text_bytes = self.promised_text_bytes + asked.text_bytes;
        let sum = self.amount() + asked.waiting.amount;
        self.bounds.check(n_requests, sum, text_bytes)
    }

    /// Gives promised room back: the request went away.
    pub fn release(&mut self, promise: Promise) {
        self.unpromise(promise.place);
        self.rest();
    }

    fn unpromise(&mut self, place: Place) {
        if let Some(promised) = self.promised.remove(&place) {
            self.promised_sum -= promised.waiting.amount;
            self.promised_text_bytes -= promised.text_bytes;
            self.sharing.leave(place);
        }
    }

    /// Appends the rows that somebody wants, at the place that was promised to them.
    pub fn push(&mut self, work: Arc<Work>, promise: Promise, alone_s: f64, now: Instant) {
        let Promise {
            place,
            start_s,
            priority,
        } = promise;
        // Somebody more urgent may have joined, and what it costs is known better than when it was admitted.
        let priority = work.priority().max(priority);
        self.unpromise(place);
        let place = place.moved(start_s, alone_s, weight(priority));
        let flow = Flow::new(work, priority, alone_s, now);
        if flow.amount.rows > 0 {
            self.pushed_sum += flow.amount;
            self.sharing.join(place, weight(priority));
            self.flows.insert(place, flow);
        }
        self.rest();
    }

    /// Takes the next batch into `batch` (emptied first), by predicted cost. Requests that nobody waits
    /// for any more, or that will not be done in time, are [set aside](Self::take_late) on the way; a
    /// predicted second of one worker takes `pace` seconds, and `n_workers` share a request's rows.
    pub fn cut(
        &mut self,
        now: Instant,
        bounds: &BatchBounds,
        cost: &Cost,
        (pace, n_workers): (f64, usize),
        batch: &mut Vec<Taken>,
    ) {
        batch.clear();
        self.drop_waited(now);
        let (time_max_s, mut size) = (bounds.time_max.as_secs_f64(), Size::default());
        loop {
            let n_flows = self.flows.len();
            let Some(mut first) = self.flows.first_entry() else {
                break;
            };
            // One request that is started too late, and given up half-way, makes the next one too late as
            // well. But alone it takes nothing from others, and the prediction may be wrong.
            // Nor is what stands in this batch already given up: those rows would be computed for nobody.
            let is_taken = batch
                .last()
                .is_some_and(|(work, _)| Arc::ptr_eq(work, &first.get().work));
            let is_hopeless =
                n_flows > 1 && !is_taken && !first.get().can_be_done(now, pace, n_workers);
            let why = first
                .get()
                .useless(now)
                .or(is_hopeless.then_some(Why::Hopeless));
            if let Some(why) = why {
                let (place, flow) = first.remove_entry();
                self.drop_flow(place, flow, why, now);
                continue;
            }
            let flow = first.get_mut();
            let Some(row) = flow.next_wanted(&mut self.pushed_sum, &mut self.dropped) else {
                let (place, _) = first.remove_entry();
                self.sharing.leave(place);
                continue;
            };
            let row = Size::row(flow.work.rows().row_len(row));
            let grown = size + row;
            let full = bounds.rows_max <= batch.len()
                || bounds.tokens_max < grown.tokens as usize
                || time_max_s < cost.batch_s(grown);
            if full && !batch.is_empty() {
                break;
            }
            size = grown;
            batch.push((Arc::clone(&flow.work), flow.next_row as u32));
            self.pushed_sum -= flow.pass();
            // Equal sharing would have given each its part of this time.
            self.sharing.advance(flow.token_s * row.tokens);
            if flow.amount.rows == 0 {
                first.remove();
                // Its client would wait for the others' rows as well.
                if bounds.hold.is_adaptive && cost.is_mostly_rows(size) {
                    break;
                }
            }
        }
        self.rest();
    }

    /// Rows of a batch that failed go before all others, each request's by themselves; gives those back
    /// that were tried often enough.
    pub fn put_back(&mut self, batch: &[Taken], failure: &Failure, now: Instant) -> Vec<Taken> {
        self.again.put_back(batch, failure, now)
    }

    /// When worker `who` may try the first of its own failures again, if no other one does.
    pub fn own_at(&self, who: WorkerId) -> Option<Instant> {
        self.again.own_at(who)
    }

    /// Takes what worker `who` is to try again into `batch` (emptied first): rows of one request that
    /// another one has failed, or any if it `is_alone`. How often they have failed; `None` if there are none.
    pub fn cut_again(
        &mut self,
        now: Instant,
        (who, is_alone): (WorkerId, bool),
        batch: &mut Vec<Taken>,
    ) -> Option<u32> {
        batch.clear();
        while let Some(Retry { rows, tries, .. }) = self.again.take(who, is_alone, now) {
            let n_rows = rows.len();
            let is_useful = |(work, row): &Taken| work.alive(now) && work.is_wanted(*row as usize);
            let first = rows.first().map(|(work, _)| Arc::clone(work));
            batch.extend(rows.into_iter().filter(is_useful));
            if let Some(work) = first {
                let why = Why::of_unwanted(&work, now);
                why.count(n_rows - batch.len(), &mut self.dropped);
                if work.deadline() <= now {
                    let error = why.error(work.waited(now));
                    self.late.push((work, error));
                }
            }
            if !batch.is_empty() {
                return Some(tries);
            }
        }
        None
    }

    /// What was passed over because it will not be in time, or nobody waits for it. It is to be failed by
    /// whoever takes it, outside of locks: an answer wakes a task.
    pub fn take_late(&mut self) -> Vec<Late> {
        std::mem::take(&mut self.late)
    }

    /// Forgets the waiting rows that nobody wants any more.
    pub fn forget(&mut self, work: &Arc<Work>, now: Instant) {
        let n_again = self.again.forget(work);
        Why::of_unwanted(work, now).count(n_again, &mut self.dropped);
        let is_its = |flow: &Flow| Arc::ptr_eq(&flow.work, work);
        let mut found = self.flows.iter_mut().filter(|(_, flow)| is_its(flow));
        let Some((&place, flow)) = found.next() else {
            return;
        };
        let gone = flow.uncount_unwanted();
        self.pushed_sum -= gone;
        Why::of_unwanted(work, now).count(gone.rows, &mut self.dropped);
        if flow.amount.rows == 0 {
            self.sharing.leave(place);
            self.flows.remove(&place);
            self.rest();
        }
    }

    /// The waiting rows of a request are at least so urgent from now on, and move forward: what equal
    /// sharing still owes them it gives at their new weight.
    pub fn raise(&mut self, work: &Arc<Work>, priority: Priority) {
        let is_more = |flow: &Flow| Arc::ptr_eq(&flow.work, work) && flow.priority < priority;
        let mut found = self.flows.iter().filter(|(_, flow)| is_more(flow));
        let Some(old) = found.next().map(|(place, _)| *place) else {
            return;
        };
        if let Some(mut flow) = self.flows.remove(&old) {
            let ratio = weight(flow.priority) / weight(priority);
            flow.priority = priority;
            let place = self.sharing.reweighed(old, ratio);
            self.sharing.leave(old);
            self.sharing.join(place, weight(priority));
            self.flows.insert(place, flow);
        }
    }

    /// Drops whoever has waited as long as may be and was not begun, as [`cut`](Self::cut) does.
    pub fn drop_waited(&mut self, now: Instant) {
        let Some(wait_max) = self.bounds.wait_max else {
            return;
        };
        let has_waited =
            |_: &Place, flow: &mut Flow| flow.next_row == 0 && wait_max <= flow.waited(now);
        let waited: Vec<_> = self.flows.extract_if(.., has_waited).collect();
        for (place, flow) in waited {
            self.drop_flow(place, flow, Why::Waited, now);
        }
        self.rest();
    }

    fn drop_flow(&mut self, place: Place, flow: Flow, why: Why, now: Instant) {
        self.pushed_sum -= flow.amount;
        self.sharing.leave(place);
        why.count(flow.amount.rows, &mut self.dropped);
        let error = why.error(flow.waited(now));
        self.late.push((flow.work, error));
    }

    /// Takes everything out: the generation can serve no more.
    pub fn drain(&mut self) -> Vec<Arc<Work>> {
        let flows = std::mem::take(&mut self.flows);
        self.rest();
        let works = flows.into_values().map(|flow| flow.work);
        works.chain(self.again.drain()).collect()
    }

    /// Where nothing is left, sums of small differences end at nothing: they never lose precision.
    fn rest(&mut self) {
        if self.flows.is_empty() {
            self.pushed_sum = Amount::default();
        }
        if self.promised.is_empty() {
            self.promised_sum = Amount::default();
        }
        if self.flows.is_empty() && self.promised.is_empty() {
            self.sharing.rest();
        }
    }
}

#[cfg(test)]
mod tests;
