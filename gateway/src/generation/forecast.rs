//! When will a request be done, and whom does it make late? Predicted from what stands in the queue, in the
//! queue's own order. Pure: no clock, no lock.

use crate::generation::cost::{Amount, Cost, Size};
use crate::generation::queue::{BatchBounds, Place, Queue, Waiting};
use std::time::{Duration, Instant};

/// Share of the time before its deadline in which a request must be predicted to be done to be admitted.
/// The rest is for smaller requests that come later and go first, and for the prediction's error.
const ADMITTED_SHARE: f64 = 0.75;
/// Share of the time before its deadline in which an admitted request must still be predicted to be done,
/// or whoever would delay it beyond that is refused. What lies between the two shares, and a tenth of the
/// workers from then on, belongs to those that come later and go first.
const KEPT_SHARE: f64 = 0.9;
/// Longer predictions are no better than this one.
const SECONDS_MAX: f64 = 86_400.0;

/// What the future depends on besides the queue.
#[derive(Clone, Copy, Debug)]
pub struct Forecast<'a> {
    /// What rows cost.
    pub cost: &'a Cost,
    /// How rows are cut into batches.
    pub batch: &'a BatchBounds,
    /// Workers that can be called.
    pub n_workers: usize,
    /// Predicted seconds of one worker for the batches that are being computed.
    pub running_s: f64,
}

/// A request that asks to be admitted.
#[derive(Clone, Copy, Debug)]
pub struct Newcomer {
    /// Where it would stand.
    pub place: Place,
    /// Its rows and its deadline.
    pub waiting: Waiting,
    /// Predicted seconds until it is tokenized.
    pub tokenizing_s: f64,
}

/// What comes of admitting a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// It and all others are in time.
    InTime,
    /// It would be late with all workers to itself.
    TooMuch {
        /// What it takes alone.
        needs: Duration,
    },
    /// It would be late behind what goes first.
    Late {
        /// What it waits for.
        ahead: Duration,
        /// When it would be in time.
        retry_after: Duration,
    },
    /// It would be in time and make a request late that was admitted before it.
    Crowding {
        /// Until all that waits is computed.
        queued: Duration,
    },
}

// === impl Forecast ===

impl Forecast<'_> {
    /// What comes of admitting `newcomer` at `now`. Takes time in proportion to what waits.
    pub fn judge(&self, queue: &Queue, newcomer: &Newcomer, now: Instant) -> Verdict {
        let left_s = |deadline: Instant| deadline.saturating_duration_since(now).as_secs_f64();
        let (own, own_left_s) = (newcomer.waiting, left_s(newcomer.waiting.deadline));
        let own_s = self.own_s(own.amount) + newcomer.tokenizing_s;
        if own_left_s < own_s {
            let needs = seconds(own_s);
            return Verdict::TooMuch { needs };
        }
        let mut waiting = queue.waiting().peekable();
        let mut ahead = Amount::default();
        while let Some((_, first)) = waiting.next_if(|(place, _)| *place < newcomer.place) {
            ahead += first.amount;
        }
        let ahead_s = self.done_s(ahead);
        let late_s = ahead_s + own_s - ADMITTED_SHARE * own_left_s;
        if 0.0 < late_s {
            return Verdict::Late {
                ahead: seconds(ahead_s),
                // Once nothing is left, it is admitted whatever it takes.
                retry_after: seconds(late_s.min(self.done_s(queue.amount()))),
            };
        }
        let mut until = ahead;
        for (_, later) in waiting {
            until += later.amount;
            let later_left_s = left_s(later.deadline);
            // Who is late already is not saved by a refusal.
            let can_be_kept = self.done_s(until) < later_left_s;
            if can_be_kept && KEPT_SHARE * later_left_s < self.done_s(until + own.amount) {
                return Verdict::Crowding {
                    queued: seconds(self.done_s(queue.amount())),
                };
            }
        }
        Verdict::InTime
    }

    /// Predicted time until so much has been computed by all workers.
    pub fn done(&self, amount: Amount) -> Duration {
        seconds(self.done_s(amount))
    }

    fn done_s(&self, amount: Amount) -> f64 {
        (self.running_s + self.alone_s(amount)) / self.n_workers.max(1) as f64
    }

    /// Predicted seconds that rows take with all workers to themselves, as far as they can share them.
    fn own_s(&self, amount: Amount) -> f64 {
        let n_sharing = self.n_batches(amount).min(self.n_workers as f64).max(1.0);
        self.alone_s(amount) / n_sharing
    }

    /// Predicted seconds of one worker: each batch costs its constant part too, which is most of it
    /// where a batch holds but one row.
    pub fn alone_s(&self, amount: Amount) -> f64 {
        let constant_s = self.cost.batch_s(Size::default());
        self.cost.rows_s(amount.size) + constant_s * self.n_batches(amount)
    }

    /// Batches that rows are cut into, as `Queue::cut` does.
    fn n_batches(&self, Amount { rows, size }: Amount) -> f64 {
        let constant_s = self.cost.batch_s(Size::default());
        let room_s = self.batch.time_max.as_secs_f64() - constant_s;
        let by_time = if room_s > 0.0 {
            self.cost.rows_s(size) / room_s
        } else {
            f64::INFINITY
        };
        let by_rows = rows as f64 / self.batch.rows_max as f64;
        let by_tokens = size.tokens / self.batch.tokens_max as f64;
        let n_batches = by_time.max(by_rows).max(by_tokens).ceil();
        n_batches.min(rows as f64)
    }
}

fn seconds(seconds: f64) -> Duration {
    // NaN and what is infinite become the longest.
    Duration::try_from_secs_f64(seconds.min(SECONDS_MAX)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::queue::{QueueBounds, Reservation};

    const BATCH: BatchBounds = BatchBounds {
        rows_max: 10,
        tokens_max: 1_000,
        time_max: Duration::from_secs(1),
    };

    /// A request: rows of 100 tokens, which take 10 ms each by the cost before anything is known, and
    /// seconds until its deadline.
    type Case = (usize, u64);

    fn waiting((rows, deadline_s): Case, now: Instant) -> Waiting {
        let size = Size {
            tokens: 100.0 * rows as f64,
            squares: 0.0,
        };
        Waiting {
            amount: Amount { rows, size },
            deadline: now + Duration::from_secs(deadline_s),
        }
    }

    fn judge(admitted: &[Case], newcomer: Case, n_workers: usize) -> Verdict {
        let (cost, now) = (Cost::default(), Instant::now());
        let mut queue = Queue::new(QueueBounds {
            rows_max: usize::MAX,
            tokens_max: usize::MAX,
        });
        let forecast = Forecast {
            cost: &cost,
            batch: &BATCH,
            n_workers,
            running_s: 0.0,
        };
        for case in admitted {
            let asked = Reservation {
                waiting: waiting(*case, now),
                text_bytes: 0,
            };
            let alone_s = forecast.alone_s(asked.waiting.amount);
            let _kept = queue.reserve(asked, alone_s).unwrap();
        }
        let waiting = waiting(newcomer, now);
        let newcomer = Newcomer {
            place: queue.place(forecast.alone_s(waiting.amount)),
            waiting,
            tokenizing_s: 0.0,
        };
        forecast.judge(&queue, &newcomer, now)
    }

    #[track_caller]
    fn check(admitted: &[Case], newcomer: Case, n_workers: usize, want: &str) {
        let found = format!("{:?}", judge(admitted, newcomer, n_workers));
        assert!(found.starts_with(want), "{found}");
    }

    #[test]
    fn what_is_predicted() {
        check(&[], (100, 10), 1, "InTime");
        // 20 s of work for one worker.
        check(&[], (2_000, 10), 1, "TooMuch { needs: 20.");
        check(&[], (2_000, 10), 4, "InTime");
        // One row does not get done sooner by many workers.
        check(&[], (1, 0), 9, "TooMuch");
        // Equal ones wait for all before them.
        check(&[(300, 10), (300, 10)], (300, 10), 1, "Late { ahead: 6.");
        check(&[(300, 10), (300, 10)], (300, 10), 2, "InTime");
        check(&[(300, 10), (300, 10)], (300, 20), 1, "InTime");
    }

    #[test]
    fn a_small_request_does_not_count_what_stands_behind_it() {
        check(&[(900, 30), (900, 30)], (1, 1), 1, "InTime");
    }

    #[test]
    fn nobody_is_made_late() {
        // 8.9 s of work in 10 s, and 20 ms more.
        check(&[(890, 10)], (2, 10), 1, "InTime");
        check(&[(890, 10)], (20, 10), 1, "Crowding");
        // Late already.
        check(&[(1_100, 10)], (20, 10), 1, "InTime");
    }

    #[test]
    fn a_refusal_says_when_it_would_be_in_time() {
        let Verdict::Late { retry_after, .. } = judge(&[(500, 10), (500, 10)], (500, 12), 1) else {
            panic!("it is late")
        };
        // 15 s of work, of which 9 s may be left.
        assert!(
            (6.0..6.1).contains(&retry_after.as_secs_f64()),
            "{retry_after:?}"
        );
    }
}
