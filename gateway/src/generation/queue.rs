//! The queue before a generation's workers: bounded, fair between requests, without a clock.
//!
//! Requests are served one after the other in the order in which they would finish if all waiting ones
//! shared the workers equally (the fair sojourn protocol; Friedman and Henderson 2003). So a request of one
//! document that comes behind one of a thousand is next, equal ones go first come first served, the
//! thousand are never starved, and none finishes later than under equal sharing. Equal sharing itself
//! (tried first: a row from each in turn) lets all requests of an overloaded server finish together, after
//! their deadlines. Deadlines do not order: they only drop.
//!
//! A request has its place from its admission on, while it is still being tokenized: whoever is admitted
//! next can count on what stands before it.

use crate::generation::cost::{Amount, Cost, Size};
use crate::generation::work::Work;
use crate::model::TokenRows;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A request is given up when even this share of its predicted time is more than it has left.
const HOPELESS_SHARE: f64 = 0.8;

/// What may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueBounds {
    /// Rows.
    pub rows_max: usize,
    /// Tokens.
    pub tokens_max: usize,
}

/// What one batch may hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchBounds {
    /// Rows.
    pub rows_max: usize,
    /// Tokens.
    pub tokens_max: usize,
    /// Predicted time; one row is taken whatever it costs.
    pub time_max: Duration,
}

/// A row that was taken: the request's rows and the index among them.
pub type Taken = (Arc<Work>, u32);

/// The waiting rows.
#[derive(Debug)]
pub struct Queue {
    bounds: QueueBounds,
    flows: BTreeMap<Place, Flow>,
    // Admitted, and still being tokenized.
    promised: BTreeMap<Place, Reservation>,
    pushed_sum: Amount,
    promised_sum: Amount,
    late: Vec<Arc<Work>>,
    // What each waiting request would have got by now under equal sharing, in seconds.
    virtual_s: f64,
    n_placed: u64,
}

/// A request's place: where it would end under equal sharing, on the scale of `virtual_s`; among equals
/// the oldest is first.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    finish_s: f64,
    seq: u64,
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
}

/// Room and a place that an admitted request has until its rows are pushed. Worth something only to the
/// queue that gave it.
#[derive(Debug)]
pub struct Promise {
    place: Place,
    // `virtual_s` at its admission.
    start_s: f64,
}

/// No room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

#[derive(Debug)]
struct Flow {
    work: Arc<Work>,
    // Of the rows that are counted.
    amount: Amount,
    next_row: usize,
    // Rows that wait; those that nobody wanted any more when somebody looked are not.
    is_counted: Box<[bool]>,
    // By the prediction that gave it its place: as the cost model learns, a second and a token drift
    // apart, and a request's rows must add up to what it was placed by.
    token_s: f64,
}

// === impl Queue ===

impl Queue {
    /// An empty queue.
    pub fn new(bounds: QueueBounds) -> Self {
        Self {
            bounds,
            flows: BTreeMap::new(),
            promised: BTreeMap::new(),
            pushed_sum: Amount::default(),
            promised_sum: Amount::default(),
            late: Vec::new(),
            virtual_s: 0.0,
            n_placed: 0,
        }
    }

    /// Rows that wait.
    pub fn n_rows(&self) -> usize {
        self.pushed_sum.rows
    }

    /// Tokens that wait.
    pub fn n_tokens(&self) -> usize {
        self.pushed_sum.size.tokens as usize
    }

    /// What waits or is promised room.
    pub fn amount(&self) -> Amount {
        self.pushed_sum + self.promised_sum
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
    pub fn place(&self, alone_s: f64) -> Place {
        Place {
            finish_s: self.virtual_s + alone_s,
            seq: self.n_placed + 1,
        }
    }

    /// Promises room and a place. A request that alone exceeds the bounds is let in when nothing else is
    /// there: it could never be served otherwise.
    ///
    /// # Errors
    /// [`Full`].
    pub fn reserve(&mut self, asked: Reservation, alone_s: f64) -> Result<Promise, Full> {
        let sum = self.amount() + asked.waiting.amount;
        let fits =
            sum.rows <= self.bounds.rows_max && sum.size.tokens as usize <= self.bounds.tokens_max;
        if !fits && self.amount().rows > 0 {
            return Err(Full);
        }
        let place = self.place(alone_s);
        self.n_placed = place.seq;
        self.promised.insert(place, asked);
        self.promised_sum += asked.waiting.amount;
        Ok(Promise {
            place,
            start_s: self.virtual_s,
        })
    }

    /// Gives promised room back: the request went away.
    pub fn release(&mut self, promise: Promise) {
        if let Some(promised) = self.promised.remove(&promise.place) {
            self.promised_sum -= promised.waiting.amount;
        }
        self.rest();
    }

    /// Appends the rows that somebody wants, at the place that was promised to them.
    pub fn push(&mut self, work: Arc<Work>, promise: Promise, alone_s: f64) {
        let Promise { place, start_s } = promise;
        // What it costs is known better now than when it was admitted.
        let place = Place {
            finish_s: start_s + alone_s,
            ..place
        };
        let flow = Flow::new(work, alone_s);
        if flow.amount.rows > 0 {
            self.pushed_sum += flow.amount;
            self.flows.insert(place, flow);
        }
        self.release(promise);
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
        let (time_max_s, mut size) = (bounds.time_max.as_secs_f64(), Size::default());
        loop {
            let n_flows = self.flows.len();
            let Some(mut first) = self.flows.first_entry() else {
                break;
            };
            // One request that is started too late, and given up half-way, makes the next one too late as
            // well. But alone it takes nothing from others, and the prediction may be wrong.
            let is_hopeless = n_flows > 1 && !first.get().can_be_done(now, pace, n_workers);
            if is_hopeless || !first.get().work.alive(now) {
                let flow = first.remove();
                self.pushed_sum -= flow.amount;
                self.late.push(flow.work);
                continue;
            }
            let flow = first.get_mut();
            let Some(row) = flow.next_wanted(&mut self.pushed_sum) else {
                first.remove();
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
            // Equal sharing would have given each waiting request its part of this time.
            self.virtual_s += flow.token_s * row.tokens / n_flows as f64;
            if flow.amount.rows == 0 {
                first.remove();
            }
        }
        self.rest();
    }

    /// What [`cut`](Self::cut) passed over because it will not be in time, or nobody waits for it. It is
    /// to be failed by whoever takes it, outside of locks: an answer wakes a task.
    pub fn take_late(&mut self) -> Vec<Arc<Work>> {
        std::mem::take(&mut self.late)
    }

    /// Forgets the waiting rows that nobody wants any more.
    pub fn forget(&mut self, work: &Arc<Work>) {
        let is_its = |flow: &Flow| Arc::ptr_eq(&flow.work, work);
        let mut found = self.flows.iter_mut().filter(|(_, flow)| is_its(flow));
        let Some((&place, flow)) = found.next() else {
            return;
        };
        for row in flow.next_row..flow.is_counted.len() {
            if !flow.work.is_wanted(row) {
                self.pushed_sum -= flow.uncount(row);
            }
        }
        if flow.amount.rows == 0 {
            self.flows.remove(&place);
            self.rest();
        }
    }

    /// Takes everything out: the generation can serve no more.
    pub fn drain(&mut self) -> Vec<Arc<Work>> {
        let flows = std::mem::take(&mut self.flows);
        self.rest();
        flows.into_values().map(|flow| flow.work).collect()
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
            self.virtual_s = 0.0;
        }
    }
}

// === impl Flow ===

impl Flow {
    /// All rows that somebody wants, of which one worker is done after `alone_s`.
    fn new(work: Arc<Work>, alone_s: f64) -> Self {
        let rows = work.rows();
        let is_counted: Box<[bool]> = (0..rows.len()).map(|row| work.is_wanted(row)).collect();
        let counted = (0..rows.len()).filter(|&row| is_counted[row]);
        let amount = counted.fold(Amount::default(), |sum, row| sum + amount_of(rows, row));
        Self {
            token_s: alone_s / amount.size.tokens.max(1.0),
            is_counted,
            amount,
            next_row: 0,
            work,
        }
    }

    fn waiting(&self) -> Waiting {
        Waiting {
            amount: self.amount,
            deadline: self.work.deadline(),
        }
    }

    /// The next row that somebody wants; what is passed over is taken out of `sum`.
    fn next_wanted(&mut self, sum: &mut Amount) -> Option<usize> {
        while self.next_row < self.is_counted.len() {
            if self.work.is_wanted(self.next_row) {
                return Some(self.next_row);
            }
            *sum -= self.pass();
        }
        None
    }

    /// Goes on behind the next row, which was taken or is not wanted.
    fn pass(&mut self) -> Amount {
        self.next_row += 1;
        self.uncount(self.next_row - 1)
    }

    /// A row waits no more; what it counted for.
    fn uncount(&mut self, row: usize) -> Amount {
        if !std::mem::take(&mut self.is_counted[row]) {
            return Amount::default();
        }
        let amount = amount_of(self.work.rows(), row);
        self.amount -= amount;
        amount
    }

    /// Whether what is left of it can be computed before its deadline, if it goes first from now on. A
    /// prediction that is wrong by a fifth gives nothing up.
    fn can_be_done(&self, now: Instant, pace: f64, n_workers: usize) -> bool {
        let Amount { rows, size } = self.amount;
        let n_sharing = rows.min(n_workers).max(1) as f64;
        let needs_s = self.token_s * size.tokens * pace / n_sharing;
        let left = self.work.deadline().saturating_duration_since(now);
        HOPELESS_SHARE * needs_s < left.as_secs_f64()
    }
}

fn amount_of(rows: &TokenRows, row: usize) -> Amount {
    Amount {
        rows: 1,
        size: Size::row(rows.row_len(row)),
    }
}

// === impl Place ===

impl Ord for Place {
    fn cmp(&self, other: &Self) -> Ordering {
        self.finish_s
            .total_cmp(&other.finish_s)
            .then(self.seq.cmp(&other.seq))
    }
}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Place {}

#[cfg(test)]
mod tests;
