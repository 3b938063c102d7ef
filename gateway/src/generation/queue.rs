//! The queue before a generation's workers: bounded, fair between requests, without a clock.
//!
//! Requests are served one after the other in the order in which they would finish if all waiting ones
//! shared the workers equally (the fair sojourn protocol; Friedman and Henderson 2003). So a request of one
//! document that comes behind one of a thousand is next, equal ones go first come first served, the
//! thousand are never starved, and none finishes later than under equal sharing. Equal sharing itself
//! (tried first: a row from each in turn) lets all requests of an overloaded server finish together, after
//! their deadlines. Deadlines do not order: they only drop.

use crate::generation::cost::{Cost, Size};
use crate::generation::work::Work;
use crate::score::ScoreError;
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::sync::Arc;
use std::time::{Duration, Instant};

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
    flows: BinaryHeap<Flow>,
    n_rows: usize,
    size: Size,
    // Promised to requests that are being tokenized.
    reserved: Reservation,
    // What each waiting request would have got by now under equal sharing, in seconds.
    virtual_s: f64,
    n_pushed: u64,
}

/// Room promised to an admitted request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reservation {
    /// Rows.
    pub rows: usize,
    /// Tokens, estimated.
    pub tokens: usize,
}

/// No room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

#[derive(Debug)]
struct Flow {
    // Where it would end under equal sharing, on the scale of `virtual_s`.
    finish_s: f64,
    seq: u64,
    work: Arc<Work>,
    next_row: u32,
}

// === impl Queue ===

impl Queue {
    /// An empty queue.
    pub fn new(bounds: QueueBounds) -> Self {
        Self {
            bounds,
            flows: BinaryHeap::new(),
            n_rows: 0,
            size: Size::default(),
            reserved: Reservation::default(),
            virtual_s: 0.0,
            n_pushed: 0,
        }
    }

    /// Rows that wait.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Rows that wait or are promised room.
    pub fn n_rows_promised(&self) -> usize {
        self.n_rows + self.reserved.rows
    }

    /// What waits, promises included.
    pub fn size(&self) -> Size {
        let mut size = self.size;
        size.tokens += self.reserved.tokens as f64;
        size
    }

    /// Tokens that wait.
    pub fn n_tokens(&self) -> usize {
        self.size.tokens as usize
    }

    /// Promises room. A request that alone exceeds the bounds is let in when nothing else is there: it
    /// could never be served otherwise.
    ///
    /// # Errors
    /// [`Full`].
    pub fn reserve(&mut self, asked: Reservation) -> Result<(), Full> {
        let rows = self.n_rows_promised();
        let tokens = self.n_tokens() + self.reserved.tokens;
        let fits = rows + asked.rows <= self.bounds.rows_max
            && tokens + asked.tokens <= self.bounds.tokens_max;
        if !fits && rows > 0 {
            return Err(Full);
        }
        self.reserved.rows += asked.rows;
        self.reserved.tokens += asked.tokens;
        Ok(())
    }

    /// Gives promised room back: the request went away, or its rows are pushed next.
    pub fn release(&mut self, promised: Reservation) {
        self.reserved.rows -= promised.rows;
        self.reserved.tokens -= promised.tokens;
    }

    /// Appends a request's rows. Its room was promised.
    pub fn push(&mut self, work: Arc<Work>, cost: &Cost) {
        let size = work.size_from(0);
        self.n_rows += work.rows().len();
        self.size += size;
        self.n_pushed += 1;
        self.flows.push(Flow {
            finish_s: self.virtual_s + cost.rows_s(size),
            seq: self.n_pushed,
            work,
            next_row: 0,
        });
    }

    /// Takes the next batch into `batch` (emptied first), by predicted cost. Requests that nobody waits
    /// for any more, or whose time has passed, are dropped on the way.
    pub fn cut(&mut self, now: Instant, bounds: &BatchBounds, cost: &Cost, batch: &mut Vec<Taken>) {
        batch.clear();
        let (time_max_s, mut size) = (bounds.time_max.as_secs_f64(), Size::default());
        while let Some(flow) = self.flows.peek() {
            if !flow.work.alive(now) {
                self.drop_first(now);
                continue;
            }
            let row = Size::row(flow.work.rows().row_len(flow.next_row as usize));
            let grown = size + row;
            let full = bounds.rows_max <= batch.len()
                || bounds.tokens_max < grown.tokens as usize
                || time_max_s < cost.batch_s(grown);
            if full && !batch.is_empty() {
                break;
            }
            size = grown;
            batch.push(self.take_first(row, cost.rows_s(row)));
        }
        if self.n_rows == 0 {
            // An idle period ends all flows: start over, so that the sums never lose precision.
            self.virtual_s = 0.0;
            self.size = Size::default();
        }
    }

    /// Forgets the waiting rows of a request that nobody waits for.
    pub fn forget(&mut self, work: &Arc<Work>) {
        let Some(flow) = self.flows.iter().find(|flow| Arc::ptr_eq(&flow.work, work)) else {
            return;
        };
        let first = flow.next_row as usize;
        self.uncount(work, first);
        self.flows.retain(|flow| !Arc::ptr_eq(&flow.work, work));
    }

    /// Takes everything out: the generation can serve no more.
    pub fn drain(&mut self) -> Vec<Arc<Work>> {
        self.n_rows = 0;
        self.size = Size::default();
        self.flows.drain().map(|flow| flow.work).collect()
    }

    fn take_first(&mut self, size: Size, seconds: f64) -> Taken {
        // Equal sharing would have given each waiting request its part of this time.
        self.virtual_s += seconds / self.flows.len() as f64;
        let Some(mut flow) = self.flows.peek_mut() else {
            unreachable!("the caller has just peeked")
        };
        let taken = (Arc::clone(&flow.work), flow.next_row);
        flow.next_row += 1;
        if flow.next_row as usize == flow.work.rows().len() {
            PeekMut::pop(flow);
        }
        self.n_rows -= 1;
        self.size -= size;
        taken
    }

    fn drop_first(&mut self, now: Instant) {
        let Some(flow) = self.flows.pop() else { return };
        self.uncount(&flow.work, flow.next_row as usize);
        if flow.work.deadline() <= now {
            // The request's own timer usually says so first, with how long it had.
            flow.work.fail(ScoreError::DeadlinePassed {
                after: Duration::ZERO,
            });
        }
    }

    fn uncount(&mut self, work: &Work, first: usize) {
        self.n_rows -= work.rows().len() - first;
        self.size -= work.size_from(first);
    }
}

// === impl Flow: the first to finish under equal sharing, then the oldest ===

impl Ord for Flow {
    fn cmp(&self, other: &Self) -> Ordering {
        // Reversed: the heap gives its greatest.
        other
            .finish_s
            .total_cmp(&self.finish_s)
            .then(other.seq.cmp(&self.seq))
    }
}

impl PartialOrd for Flow {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Flow {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Flow {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TokenRows;

    const BOUNDS: QueueBounds = QueueBounds {
        rows_max: 100,
        tokens_max: 1_000,
    };
    const BATCH: BatchBounds = BatchBounds {
        rows_max: 4,
        tokens_max: 100,
        time_max: Duration::from_secs(1),
    };

    fn work(lengths: &[u32], deadline: Instant) -> Arc<Work> {
        let mut offsets = vec![0];
        for length in lengths {
            offsets.push(offsets.last().unwrap() + length);
        }
        let n = *offsets.last().unwrap() as usize;
        let rows = TokenRows {
            input_ids: vec![1; n],
            type_ids: vec![0; n],
            offsets,
        };
        Work::new(rows, 1, deadline, Instant::now()).0
    }

    /// Pushes requests of these row lengths, cuts until empty; expects batches of (request, row).
    #[track_caller]
    fn check(requests: &[&[u32]], bounds: &BatchBounds, expected: &[&[(usize, u32)]]) {
        let (now, mut queue, mut batch) = (Instant::now(), Queue::new(BOUNDS), Vec::new());
        let works: Vec<_> = requests
            .iter()
            .map(|lengths| work(lengths, now + Duration::from_secs(9)))
            .collect();
        for work in &works {
            queue.push(Arc::clone(work), &Cost::default());
        }
        let mut found = Vec::new();
        loop {
            queue.cut(now, bounds, &Cost::default(), &mut batch);
            if batch.is_empty() {
                break;
            }
            let request = |taken: &Taken| {
                works
                    .iter()
                    .position(|work| Arc::ptr_eq(work, &taken.0))
                    .unwrap()
            };
            found.push(
                batch
                    .iter()
                    .map(|taken| (request(taken), taken.1))
                    .collect::<Vec<_>>(),
            );
        }
        assert_eq!(found, expected);
        assert_eq!((queue.n_rows(), queue.n_tokens()), (0, 0));
    }

    #[test]
    fn one_request_in_order() {
        check(&[&[10, 10, 10]], &BATCH, &[&[(0, 0), (0, 1), (0, 2)]]);
    }
    #[test]
    fn bounded_in_rows() {
        check(
            &[&[1; 5]],
            &BATCH,
            &[&[(0, 0), (0, 1), (0, 2), (0, 3)], &[(0, 4)]],
        );
    }
    #[test]
    fn bounded_in_tokens() {
        check(&[&[60, 40, 1]], &BATCH, &[&[(0, 0), (0, 1)], &[(0, 2)]]);
    }
    #[test]
    fn bounded_in_time() {
        // 0.1 ms and 0.1 ms a token at the start.
        let bounds = BatchBounds {
            time_max: Duration::from_micros(2_150),
            ..BATCH
        };
        check(&[&[10, 10, 10]], &bounds, &[&[(0, 0), (0, 1)], &[(0, 2)]]);
    }
    #[test]
    fn a_row_beyond_the_bounds_goes_alone() {
        check(&[&[400, 1]], &BATCH, &[&[(0, 0)], &[(0, 1)]]);
    }
    #[test]
    fn equal_requests_first_come_first_served() {
        check(
            &[&[10; 3], &[10; 3]],
            &BATCH,
            &[&[(0, 0), (0, 1), (0, 2), (1, 0)], &[(1, 1), (1, 2)]],
        );
    }
    #[test]
    fn the_cheaper_request_first() {
        check(
            &[&[20; 2], &[10; 3]],
            &BATCH,
            &[&[(1, 0), (1, 1), (1, 2), (0, 0)], &[(0, 1)]],
        );
    }

    #[test]
    fn small_requests_do_not_starve_a_large_one() {
        let (now, mut queue, mut batch) = (Instant::now(), Queue::new(BOUNDS), Vec::new());
        let (later, one) = (
            now + Duration::from_secs(9),
            BatchBounds {
                rows_max: 1,
                ..BATCH
            },
        );
        let large = work(&[10; 20], later);
        queue.push(Arc::clone(&large), &Cost::default());
        // A small request comes with every batch, and one row is all that a batch holds.
        let served = (0..100).any(|_| {
            queue.push(work(&[10], later), &Cost::default());
            queue.cut(now, &one, &Cost::default(), &mut batch);
            Arc::ptr_eq(&batch[0].0, &large)
        });
        assert!(served);
    }

    #[test]
    fn a_late_small_request_does_not_wait_behind_a_large_one() {
        let (now, mut queue, mut batch) = (Instant::now(), Queue::new(BOUNDS), Vec::new());
        let later = now + Duration::from_secs(9);
        queue.push(work(&[10; 50], later), &Cost::default());
        queue.cut(now, &BATCH, &Cost::default(), &mut batch);
        let small = work(&[10], later);
        queue.push(Arc::clone(&small), &Cost::default());
        queue.cut(now, &BATCH, &Cost::default(), &mut batch);
        assert!(batch.iter().any(|(work, _)| Arc::ptr_eq(work, &small)));
    }

    #[test]
    fn what_nobody_waits_for_is_not_cut() {
        let (now, mut queue, mut batch) = (Instant::now(), Queue::new(BOUNDS), Vec::new());
        let (late, gone, kept) = (
            work(&[9], now),
            work(&[9], now + BATCH.time_max),
            work(&[9], now + BATCH.time_max),
        );
        for work in [&late, &gone, &kept] {
            queue.push(Arc::clone(work), &Cost::default());
        }
        gone.abandon();
        queue.cut(now, &BATCH, &Cost::default(), &mut batch);
        assert_eq!((batch.len(), queue.n_rows()), (1, 0));
        assert!(Arc::ptr_eq(&batch[0].0, &kept));
    }

    #[test]
    fn forgotten_rows_give_their_room_back() {
        let (now, mut queue, mut batch) = (Instant::now(), Queue::new(BOUNDS), Vec::new());
        let (first, second) = (
            work(&[5; 6], now + BATCH.time_max),
            work(&[7; 2], now + BATCH.time_max),
        );
        queue.push(Arc::clone(&first), &Cost::default());
        queue.cut(now, &BATCH, &Cost::default(), &mut batch);
        queue.push(second, &Cost::default());
        queue.forget(&first);
        assert_eq!((queue.n_rows(), queue.n_tokens()), (2, 14));
        queue.forget(&first);
        assert_eq!((queue.n_rows(), queue.n_tokens()), (2, 14));
    }

    #[test]
    fn promises_count_until_released() {
        let mut queue = Queue::new(BOUNDS);
        let (most, one) = (
            Reservation {
                rows: 100,
                tokens: 10,
            },
            Reservation { rows: 1, tokens: 1 },
        );
        assert_eq!(queue.reserve(most), Ok(()));
        assert_eq!(queue.reserve(one), Err(Full));
        queue.release(most);
        assert_eq!(queue.reserve(one), Ok(()));
    }

    #[test]
    fn a_request_larger_than_the_queue_is_served_when_idle() {
        let mut queue = Queue::new(BOUNDS);
        let huge = Reservation {
            rows: 500,
            tokens: 50_000,
        };
        assert_eq!(queue.reserve(huge), Ok(()));
        assert_eq!(queue.reserve(huge), Err(Full));
    }
}
