//! What must hold, kept apart from what the server itself knows: who waits for which pair, who computes it.

use super::setup::{DOCUMENTS, QUERIES, ROWS_MAX, Setup};
use gateway::generation::line::Line;
use gateway::generation::queue::{Taken, WorkerId};
use gateway::generation::work::Work;
use gateway::load::Load;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// Generation, query, document.
pub(crate) type PairId = [usize; 3];

/// What happened, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Count {
    Requests,
    Scored,
    /// Pairs that were kept, and those that had landed since the request looked.
    Hits,
    Landed,
    /// Documents that waited for another's flight, or for the same document of their own request.
    Joins,
    /// Rows that were scored for others than who had begun them and left.
    HandOvers,
    /// Requests that tried again what another's flight did not bring.
    Rejoins,
    /// Requests whose time passed, whose client left, that were refused.
    Expiries,
    Cancellations,
    Refusals,
    /// Requests larger than the whole queue that got their scores.
    Large,
    /// Requests that went away before they were tokenized.
    Untokenized,
    /// Admissions that were asked again: what they had counted on had ended.
    Readmissions,
    Batches,
    Holds,
    /// Batches that failed, panics among them, and workers that did not come back in time.
    Faults,
    Panics,
    Stuck,
    /// Rows that were tried again.
    Retries,
    /// Rows that the backend skipped because nobody waited any more.
    Skipped,
    /// Rows that left the queue uncomputed.
    DroppedCancelled,
    DroppedExpired,
    DroppedHopeless,
    /// Generations that were replaced while requests were under way, and requests that the old one scored
    /// after it was closed.
    Swaps,
    ScoredByOld,
}

/// How often each happened.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct Counts(BTreeMap<Count, u64>);

/// The whole truth about one scenario.
pub(crate) struct Ledger {
    counts: RefCell<Counts>,
    // By pair.
    waiting: RefCell<Box<[usize]>>,
    computing: RefCell<Box<[Computing]>>,
    // By the address of their work.
    flights: RefCell<BTreeMap<usize, Flights>>,
    // By request.
    left: RefCell<BTreeMap<usize, bool>>,
    n_large: Cell<usize>,
}

/// Rows of one pair that workers compute, and which of them.
type Computing = Vec<(Taken, WorkerId)>;

/// What one request has begun.
struct Flights {
    by: usize,
    generation: usize,
    work: Arc<Work>,
    is_cut: Vec<bool>,
}

/// What a row is about: the backend reads it from the tokens, as it would.
pub(crate) fn pair_of((work, row): &Taken) -> PairId {
    let (ids, _) = work.rows().row(*row as usize);
    [ids[0], ids[1], ids[2]].map(|id| id as usize)
}

/// A function of the pair, and of who scores it.
pub(crate) fn score([generation, query, document]: PairId) -> f32 {
    place([generation, query, document]) as f32
}

fn place([generation, query, document]: PairId) -> usize {
    (generation * QUERIES + query) * DOCUMENTS + document
}

// === impl Counts ===

impl Counts {
    pub(crate) fn add(&mut self, count: Count, n: u64) {
        *self.0.entry(count).or_default() += n;
    }

    pub(crate) fn get(&self, count: Count) -> u64 {
        self.0.get(&count).copied().unwrap_or_default()
    }

    pub(crate) fn add_all(&mut self, others: &Self) {
        for (&count, &n) in &others.0 {
            self.add(count, n);
        }
    }
}

impl std::fmt::Debug for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(&self.0).finish()
    }
}

// === impl Ledger ===

impl Ledger {
    pub(crate) fn new() -> Self {
        let n_pairs = place([2, 0, 0]);
        Self {
            counts: RefCell::default(),
            waiting: RefCell::new(vec![0; n_pairs].into()),
            computing: RefCell::new(vec![Vec::new(); n_pairs].into()),
            flights: RefCell::default(),
            left: RefCell::default(),
            n_large: Cell::default(),
        }
    }

    pub(crate) fn count(&self, count: Count) {
        self.count_many(count, 1);
    }

    pub(crate) fn count_many(&self, count: Count, n: usize) {
        self.counts.borrow_mut().add(count, n as u64);
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts.borrow().clone()
    }

    /// A request waits for a pair, from now on or not any more.
    pub(crate) fn waits(&self, pair: PairId, is_waiting: bool) {
        let mut waiting = self.waiting.borrow_mut();
        if is_waiting {
            waiting[place(pair)] += 1;
        } else {
            waiting[place(pair)] -= 1;
        }
    }

    /// A request has come.
    pub(crate) fn came(&self, n_documents: usize) {
        self.count_large(n_documents, true);
    }

    /// A request has ended: answered, or left by its client.
    pub(crate) fn ended(&self, request: usize, n_documents: usize, has_left: bool) {
        self.count_large(n_documents, false);
        let before = self.left.borrow_mut().insert(request, has_left);
        assert_eq!(before, None, "request {request} was answered twice");
    }

    pub(crate) fn n_ended(&self) -> usize {
        self.left.borrow().len()
    }

    pub(crate) fn begun(&self, by: usize, generation: usize, work: &Arc<Work>, n_rows: usize) {
        let flights = Flights {
            by,
            generation,
            work: Arc::clone(work),
            is_cut: vec![false; n_rows],
        };
        self.count_large(n_rows, true);
        self.flights.borrow_mut().insert(address(work), flights);
    }

    /// The task that drove them has ended.
    pub(crate) fn driven(&self, work: &Arc<Work>) {
        let flights = self.flights.borrow_mut().remove(&address(work)).unwrap();
        self.count_large(flights.is_cut.len(), false);
        assert!(work.is_over(), "flights ended that somebody waits for");
    }

    fn count_large(&self, n_rows: usize, is_more: bool) {
        if ROWS_MAX < n_rows {
            let n_large = self.n_large.get();
            self.n_large
                .set(if is_more { n_large + 1 } else { n_large - 1 });
        }
    }

    /// A worker takes a batch.
    pub(crate) fn cut(&self, setup: &Setup, batch: &[Taken], by: (usize, WorkerId), now: Instant) {
        let (generation, worker) = by;
        let mut computing = self.computing.borrow_mut();
        let mut flights = self.flights.borrow_mut();
        assert!(batch.len() <= setup.batch.rows_max, "{} rows", batch.len());
        let n_tokens: usize = batch
            .iter()
            .map(|(work, row)| work.rows().row_len(*row as usize))
            .sum();
        assert!(
            n_tokens <= setup.batch.tokens_max,
            "{n_tokens} tokens in a batch"
        );
        for taken in batch {
            let (work, row) = taken;
            let pair = pair_of(taken);
            assert_eq!(pair[0], generation, "rows of another generation's");
            assert!(
                work.is_wanted(*row as usize),
                "{pair:?} is computed, and nobody wants it"
            );
            assert!(
                now < work.deadline(),
                "{pair:?} is computed, and its time has passed"
            );
            let n_waiting = self.waiting.borrow()[place(pair)];
            assert!(0 < n_waiting, "{pair:?} is computed, and nobody waits");
            let others = &mut computing[place(pair)];
            // What its last waiter has left is no flight any more, and its row passed over.
            let is_twice = others
                .iter()
                .any(|((its, row), _)| its.is_wanted(*row as usize));
            assert!(
                !(setup.has_board && is_twice),
                "{pair:?} is computed twice at a time"
            );
            others.push((taken.clone(), worker));
            if let Some(flights) = flights.get_mut(&address(work)) {
                flights.is_cut[*row as usize] = true;
            }
        }
    }

    /// A worker has come back with a batch, or has lost it.
    pub(crate) fn uncut(&self, batch: &[Taken], worker: WorkerId) {
        let mut computing = self.computing.borrow_mut();
        for taken in batch {
            let others = &mut computing[place(pair_of(taken))];
            others.retain(|(_, by)| *by != worker);
        }
    }

    /// A row was scored for somebody who waited.
    pub(crate) fn scored(&self, (work, _): &Taken) {
        if let Some(flights) = self.flights.borrow().get(&address(work))
            && self.left.borrow().get(&flights.by) == Some(&true)
        {
            self.count(Count::HandOvers);
        }
    }

    /// The bounds of a queue that has just taken somebody in. A request that alone exceeds them is served
    /// when nothing else waits; rows that are tried again have been taken out before.
    pub(crate) fn check_bounds(&self, setup: &Setup, generation: usize, line: &Line) {
        let Load {
            queue_rows,
            queue_tokens,
            queue_bytes,
            ..
        } = line.load();
        let (queue, is_alone) = (&setup.queue, self.n_large.get() > 0);
        if is_alone || line.totals().retried > 0 {
            return;
        }
        let flights = self.flights.borrow();
        let waiting: Vec<_> = flights
            .values()
            .filter(|flights| flights.generation == generation)
            .map(|flights| (flights.n_waiting(), !flights.work.rows().is_empty()))
            .collect();
        let n_requests = waiting.iter().filter(|(n_rows, _)| 0 < *n_rows).count();
        let pushed = waiting.iter().filter(|(_, is_pushed)| *is_pushed);
        let n_rows: usize = pushed.map(|(n_rows, _)| n_rows).sum();
        assert_eq!(
            queue_rows, n_rows,
            "rows count as waiting that nobody wants"
        );
        // Estimates of tokens lose a part of one for each request.
        assert!(queue_rows <= queue.rows_max, "{queue_rows} rows wait");
        assert!(
            queue_tokens <= queue.tokens_max + n_requests,
            "{queue_tokens} tokens wait"
        );
        assert!(
            queue_bytes <= queue.bytes_max + 8 * n_requests,
            "{queue_bytes} bytes wait"
        );
        assert!(
            n_requests <= queue.requests_max,
            "{n_requests} requests wait"
        );
    }

    /// Nothing is left when nobody asks any more.
    pub(crate) fn check_end(&self) {
        assert!(self.flights.borrow().is_empty(), "flights are left");
        assert!(
            self.waiting.borrow().iter().all(|&n| n == 0),
            "somebody waits"
        );
        assert!(
            self.computing.borrow().iter().all(Vec::is_empty),
            "rows are computed"
        );
    }
}

impl Flights {
    /// Rows that somebody wants and no worker has taken.
    fn n_waiting(&self) -> usize {
        let rows = self.is_cut.iter().enumerate();
        rows.filter(|(row, is_cut)| !**is_cut && self.work.is_wanted(*row))
            .count()
    }
}

fn address(work: &Arc<Work>) -> usize {
    Arc::as_ptr(work).addr()
}
