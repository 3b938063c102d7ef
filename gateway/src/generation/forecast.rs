//! When will a request be done, and whom does it make late? Predicted from what stands in the queue, in the
//! queue's own order. Pure: no clock, no lock.

use crate::generation::cost::{Amount, Cost, Size};
use crate::generation::queue::{BatchBounds, Place, Queue, Waiting};
use std::time::{Duration, Instant};

/// Share of the time before its deadline in which a request must be predicted to be done to be admitted,
/// when predictions hold. The rest is for smaller requests that come later and go first.
const SHARE_MAX: f64 = 0.75;
/// The same when they do not, because the machine has other things to do.
const SHARE_MIN: f64 = 0.4;
/// Part of the share that may be gone before a request is begun: workers are as busy before a short queue
/// as before a long one, and whoever stands in a long one is late when the machine slows down.
const AHEAD_PART: f64 = 0.7;
/// An admitted request that is late takes this part of the share away, and one in time adds that much:
/// one late in fifty keeps it where it is.
const SHARE_LOST: f64 = 0.1;
const SHARE_GAINED: f64 = 0.001;
/// Share of the time before its deadline in which an admitted request must still be predicted to be done,
/// or whoever would delay it beyond that is refused. What lies between the two shares, and a tenth of the
/// workers from then on, belongs to those that come later and go first.
const KEPT_SHARE: f64 = 0.9;
/// While there is more to do than can be done, a request waits for the one that is being served, for at most this
/// multiple of its own time and for so many batches, one of them being computed: enough to keep the workers
/// busy until the next one comes. Or for this share of the time that it has: who has much would rather
/// wait than be refused.
const AHEAD_OWN_MAX: f64 = 1.0;
const AHEAD_BATCHES_MAX: f64 = 2.0;
const AHEAD_SHARE: f64 = 0.025;
/// Weight that a batch keeps with each later one in the pace: about the last 200 count.
const PACE_KEPT: f64 = 0.995;
/// A batch counts for the pace as at most this multiple of its prediction: a worker that hung once says
/// nothing about the next batches.
const PACE_MAX: f64 = 32.0;
/// No machine is this much faster than what it was measured at.
const PACE_MIN: f64 = 0.5;
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
    /// Seconds that pass for each predicted one; see [`Pace`].
    pub pace: f64,
    /// Of the time before a deadline; see [`Share`].
    pub share: f64,
    /// The longest that a request may wait for its first row; `None` for until its deadline.
    pub wait_max: Option<Duration>,
}

/// The share of the time before its deadline in which a request must be predicted to be done: the margin
/// for the prediction's error, learned from those that were late.
#[derive(Clone, Copy, Debug)]
pub struct Share(f64);

/// Seconds that pass for each that the cost model predicts, learned. The model says what a batch usually
/// takes, which is what cutting needs: it is fitted to relative errors and does not follow outliers. A
/// finish is a sum, to which a batch that was descheduled for long contributes all its time, and what lies
/// between two batches as well.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    predicted_s: f64,
    passed_s: f64,
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
    /// Whether there is more to do than can be done: then nobody is to wait long.
    pub is_too_much: bool,
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
    /// It would be in time, and wait longer than anybody should while others are refused.
    Crowded {
        /// What it waits for.
        ahead: Duration,
        /// When it would not wait so long.
        retry_after: Duration,
    },
    /// It would be in time and make a request late that was admitted before it.
    Crowding {
        /// Until all that waits is computed.
        queued: Duration,
    },
}

// === impl Pace ===

impl Pace {
    /// Learns from a batch of which all rows were computed.
    pub fn learn(&mut self, predicted_s: f64, passed_s: f64) {
        let passed_s = passed_s.min(PACE_MAX * predicted_s);
        self.predicted_s = PACE_KEPT * self.predicted_s + predicted_s;
        self.passed_s = PACE_KEPT * self.passed_s + passed_s;
    }

    /// Seconds for each predicted one.
    pub fn ratio(&self) -> f64 {
        if self.predicted_s > 0.0 {
            (self.passed_s / self.predicted_s).clamp(PACE_MIN, PACE_MAX)
        } else {
            1.0
        }
    }
}

// === impl Share ===

impl Share {
    /// An admitted request was in time, or was not.
    pub fn learn(&mut self, is_in_time: bool) {
        let learned = if is_in_time {
            self.0 + SHARE_GAINED
        } else {
            self.0 * (1.0 - SHARE_LOST)
        };
        self.0 = learned.clamp(SHARE_MIN, SHARE_MAX);
    }

    /// The share.
    pub fn value(self) -> f64 {
        self.0
    }
}

impl Default for Share {
    fn default() -> Self {
        Self(SHARE_MAX)
    }
}

// === impl Forecast ===

impl Forecast<'_> {
    /// What comes of admitting `newcomer` at `now`. Takes time in proportion to what waits.
    pub fn judge(&self, queue: &Queue, newcomer: &Newcomer, now: Instant) -> Verdict {
        let left_s = |deadline: Instant| deadline.saturating_duration_since(now).as_secs_f64();
        let (own, own_left_s) = (newcomer.waiting, left_s(newcomer.waiting.deadline));
        let own_s = self.own_s(own.amount);
        // Without the pace, which may be better when it comes again.
        if own_left_s < own_s + newcomer.tokenizing_s {
            let needs = seconds(own_s + newcomer.tokenizing_s);
            return Verdict::TooMuch { needs };
        }
        let own_s = self.pace * own_s + newcomer.tokenizing_s;
        let mut waiting = queue.waiting().peekable();
        let (mut ahead, mut served) = (Amount::default(), None);
        while let Some((_, first)) = waiting.next_if(|(place, _)| *place < newcomer.place) {
            ahead += first.amount;
            served.get_or_insert(first.amount);
        }
        let ahead_s = self.done_s(ahead);
        let may_take_s = self.share * own_left_s;
        let may_wait_s = self.wait_max.map_or(f64::INFINITY, |max| max.as_secs_f64());
        let may_wait_s = may_wait_s.min(AHEAD_PART * may_take_s);
        let late_s = (ahead_s + own_s - may_take_s).max(ahead_s - may_wait_s);
        if 0.0 < late_s {
            return Verdict::Late {
                ahead: seconds(ahead_s),
                // Once nothing is left, it is admitted whatever it takes.
                retry_after: seconds(late_s.min(self.done_s(queue.amount()))),
            };
        }
        let batches_s = self.pace * AHEAD_BATCHES_MAX * self.batch.time_max.as_secs_f64();
        let short_s = (AHEAD_OWN_MAX * own_s + batches_s).max(AHEAD_SHARE * own_left_s);
        let served_s = self.done_s(served.unwrap_or_default()) - self.done_s(Amount::default());
        let crowded_s = ahead_s - served_s - short_s;
        if newcomer.is_too_much && 0.0 < crowded_s {
            return Verdict::Crowded {
                ahead: seconds(ahead_s),
                retry_after: seconds(crowded_s),
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
        self.pace * (self.running_s + self.alone_s(amount)) / self.n_workers.max(1) as f64
    }

    /// Predicted seconds that rows take with all workers to themselves, as far as they can share them,
    /// at the usual pace.
    fn own_s(&self, amount: Amount) -> f64 {
        let n_sharing = self.n_batches(amount).min(self.n_workers as f64).max(1.0);
        self.alone_s(amount) / n_sharing
    }

    /// Predicted seconds of one worker: each batch costs its constant part too, which is most of it
    /// where a batch holds but one row.
    pub fn alone_s(&self, amount: Amount) -> f64 {
        if amount.rows == 0 {
            return 0.0;
        }
        let constant_s = self.cost.batch_s(Size::default());
        self.cost.rows_s(amount.size) + constant_s * self.n_batches(amount)
    }

    /// Batches that rows are cut into at most, as `Queue::cut` does, if they are alike; where few rows wait,
    /// the plan divides them among the workers and they are done sooner. Whole rows go into a
    /// batch: where two just do not fit, there are twice as many batches.
    fn n_batches(&self, Amount { rows, size }: Amount) -> f64 {
        let rows = rows.max(1) as f64;
        let constant_s = self.cost.batch_s(Size::default());
        let room_s = self.batch.time_max.as_secs_f64() - constant_s;
        let by_time = room_s * rows / self.cost.rows_s(size);
        let by_tokens = self.batch.tokens_max as f64 * rows / size.tokens;
        // `min` passes over the NaN of no rows at all.
        let by_bounds = by_time.min(by_tokens).min(self.batch.rows_max as f64);
        (rows / by_bounds.floor().max(1.0)).ceil()
    }
}

fn seconds(seconds: f64) -> Duration {
    // NaN and what is infinite become the longest.
    Duration::try_from_secs_f64(seconds.min(SECONDS_MAX)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::hold::HoldBounds;
    use crate::generation::queue::{QueueBounds, Reservation};
    use crate::score::Priority;

    use Priority::{High, Low, Normal};

    const BATCH: BatchBounds = BatchBounds {
        rows_max: 10,
        tokens_max: 1_000,
        time_max: Duration::from_secs(1),
        hold: HoldBounds::NEVER,
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
        judge_among(admitted, newcomer, (n_workers, false))
    }

    fn judge_among(admitted: &[Case], newcomer: Case, server: (usize, bool)) -> Verdict {
        let admitted: Vec<_> = admitted.iter().map(|&case| (case, Normal)).collect();
        judge_within(&admitted, (newcomer, Normal), server, None)
    }

    /// `server`: how many workers, and whether there is too much to do.
    fn judge_within(
        admitted: &[(Case, Priority)],
        (newcomer, priority): (Case, Priority),
        (n_workers, is_too_much): (usize, bool),
        wait_max: Option<Duration>,
    ) -> Verdict {
        let (cost, now) = (Cost::default(), Instant::now());
        let mut queue = Queue::new(QueueBounds {
            rows_max: usize::MAX,
            tokens_max: usize::MAX,
            requests_max: usize::MAX,
            bytes_max: usize::MAX,
            wait_max,
        });
        let forecast = Forecast {
            cost: &cost,
            batch: &BATCH,
            n_workers,
            running_s: 0.0,
            pace: 1.0,
            share: Share::default().value(),
            wait_max,
        };
        for (case, priority) in admitted {
            let asked = Reservation {
                waiting: waiting(*case, now),
                text_bytes: 0,
                priority: *priority,
            };
            let alone_s = forecast.alone_s(asked.waiting.amount);
            let _kept = queue.reserve(asked, alone_s).unwrap();
        }
        let waiting = waiting(newcomer, now);
        let newcomer = Newcomer {
            place: queue.place(forecast.alone_s(waiting.amount), priority),
            waiting,
            tokenizing_s: 0.0,
            is_too_much,
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
    fn the_pace_counts_what_the_cost_model_overlooks() {
        let mut pace = Pace::default();
        assert_eq!(pace.ratio(), 1.0);
        for round in 0..2_000 {
            // One in ten takes eleven times as long.
            let passed_s = if round % 10 == 0 { 0.11 } else { 0.01 };
            pace.learn(0.01, passed_s);
        }
        assert!((1.9..2.1).contains(&pace.ratio()), "{pace:?}");
        let before = pace.ratio();
        // One that hung.
        pace.learn(0.01, 60.0);
        assert!(pace.ratio() < before + 0.2, "{pace:?}");
    }

    #[test]
    fn who_is_late_makes_the_margin_larger() {
        let mut share = Share::default();
        (0..3).for_each(|_| share.learn(false));
        assert!((0.5..0.6).contains(&share.value()), "{share:?}");
        (0..100).for_each(|_| share.learn(false));
        assert_eq!(share.value(), SHARE_MIN);
        (0..1_000).for_each(|_| share.learn(true));
        assert_eq!(share.value(), SHARE_MAX);
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
    fn who_is_more_urgent_counts_less_before_it_and_makes_nobody_late() {
        let check = |queued, newcomer, want: &str| {
            let found = format!("{:?}", judge_within(&[queued], newcomer, (1, false), None));
            assert!(found.starts_with(want), "{found}");
        };
        let small = (200, 5);
        check(((600, 60), Normal), (small, Normal), "InTime");
        check(((600, 60), High), (small, Normal), "Late { ahead: 6.");
        check(((600, 60), Normal), (small, Low), "Late { ahead: 6.");
        check(((600, 60), Low), (small, Low), "InTime");
        let large = (700, 10);
        check(((600, 60), Normal), (large, Normal), "Late { ahead: 6.");
        check(((600, 60), Normal), (large, High), "InTime");
        check(((600, 60), Low), (large, Normal), "InTime");
        // Whoever was admitted before is kept, however little it weighs.
        check(((600, 10), Normal), (large, High), "Crowding");
        check(((600, 10), Low), (large, High), "Crowding");
    }

    #[test]
    fn nobody_is_admitted_who_would_wait_longer_than_allowed() {
        let wait = |seconds| {
            let wait_max = Some(Duration::from_secs(seconds));
            judge_within(
                &[((300, 60), Normal)],
                ((300, 60), Normal),
                (1, false),
                wait_max,
            )
        };
        assert_eq!(wait(4), Verdict::InTime);
        let Verdict::Late { ahead, retry_after } = wait(1) else {
            panic!("3 s go first")
        };
        assert_eq!(ahead.as_secs(), 3);
        assert!((2.0..2.1).contains(&retry_after.as_secs_f64()));
        // What is urgent goes first, and does not wait.
        let one_s = Some(Duration::from_secs(1));
        let urgent = judge_within(&[((300, 60), Normal)], ((300, 60), High), (1, false), one_s);
        assert_eq!(urgent, Verdict::InTime);
    }

    #[test]
    fn while_there_is_too_much_to_do_nobody_waits_long() {
        // A second each; one is served, and two batches take two more.
        let judge = |n_ahead, own| judge_among(&vec![(100, 90); n_ahead], (own, 90), (1, true));
        assert_eq!(judge(3, 100), Verdict::InTime);
        let Verdict::Crowded { retry_after, .. } = judge(5, 100) else {
            panic!("five of its own go first")
        };
        let wait_s = retry_after.as_secs_f64();
        assert!((0.9..1.1).contains(&wait_s), "{retry_after:?}");
        // What is smaller goes first.
        assert_eq!(judge(5, 1), Verdict::InTime);
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
