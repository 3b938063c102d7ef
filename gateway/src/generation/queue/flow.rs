//! One request in the queue: its weight, and whether it is worth its time.

use super::Waiting;
use crate::generation::cost::{Amount, Size};
use crate::generation::work::Work;
use crate::load::Dropped;
use crate::model::TokenRows;
use crate::score::{Priority, ScoreError};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A request is given up when even this share of its predicted time is more than it has left.
const HOPELESS_SHARE: f64 = 0.8;
/// A waiting request's part of the workers, by priority. One step is a factor of four: a high request of
/// four documents stands where a normal one of one would, and 80 % of the workers are for it where the two
/// are alone. Powers of two: sums of them are exact.
const WEIGHT_HIGH: f64 = 4.0;
const WEIGHT_NORMAL: f64 = 1.0;
const WEIGHT_LOW: f64 = 0.25;
/// What waited too long may find another server idle at once.
const WAITED_RETRY_AFTER: Duration = Duration::from_secs(1);

/// A request whose rows wait.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) work: Arc<Work>,
    pub(super) priority: Priority,
    // Of the rows that are counted.
    pub(super) amount: Amount,
    pub(super) next_row: usize,
    // Rows that wait; those that nobody wanted any more when somebody looked do not.
    is_counted: Box<[bool]>,
    pushed: Instant,
    // By the prediction that gave it its place: as the cost model learns, a second and a token drift
    // apart, and a request's rows must add up to what it was placed by.
    pub(super) token_s: f64,
}

/// Why rows leave the queue before they are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    Cancelled,
    Expired,
    Waited,
    Hopeless,
}

/// Its part of the workers, among others.
pub(super) fn weight(priority: Priority) -> f64 {
    match priority {
        Priority::High => WEIGHT_HIGH,
        Priority::Normal => WEIGHT_NORMAL,
        Priority::Low => WEIGHT_LOW,
    }
}

// === impl Flow ===

impl Flow {
    /// All rows that somebody wants, of which one worker is done after `alone_s`.
    pub(super) fn new(work: Arc<Work>, priority: Priority, alone_s: f64, now: Instant) -> Self {
        let rows = work.rows();
        let is_counted: Box<[bool]> = (0..rows.len()).map(|row| work.is_wanted(row)).collect();
        let counted = (0..rows.len()).filter(|&row| is_counted[row]);
        let amount = counted.fold(Amount::default(), |sum, row| sum + amount_of(rows, row));
        Self {
            token_s: alone_s / amount.size.tokens.max(1.0),
            priority,
            is_counted,
            amount,
            next_row: 0,
            pushed: now,
            work,
        }
    }

    /// What it keeps waiting.
    pub(super) fn waiting(&self) -> Waiting {
        Waiting {
            amount: self.amount,
            deadline: self.work.deadline(),
        }
    }

    /// How long it has been in the queue.
    pub(super) fn waited(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.pushed)
    }

    /// The next row that somebody wants; what is passed over is taken out of `sum`.
    pub(super) fn next_wanted(&mut self, sum: &mut Amount, dropped: &mut Dropped) -> Option<usize> {
        while self.next_row < self.is_counted.len() {
            if self.work.is_wanted(self.next_row) {
                return Some(self.next_row);
            }
            let gone = self.pass();
            Why::Cancelled.count(gone.rows, dropped);
            *sum -= gone;
        }
        None
    }

    /// Goes on behind the next row, which was taken or is not wanted; what it counted for.
    pub(super) fn pass(&mut self) -> Amount {
        self.next_row += 1;
        self.uncount(self.next_row - 1)
    }

    /// What the rows counted for that nobody wants any more.
    pub(super) fn uncount_unwanted(&mut self) -> Amount {
        let mut gone = Amount::default();
        for row in self.next_row..self.is_counted.len() {
            if !self.work.is_wanted(row) {
                gone += self.uncount(row);
            }
        }
        gone
    }

    fn uncount(&mut self, row: usize) -> Amount {
        if !std::mem::take(&mut self.is_counted[row]) {
            return Amount::default();
        }
        let amount = amount_of(self.work.rows(), row);
        self.amount -= amount;
        amount
    }

    /// Why its rows are not worth computing, if they are not. Where its time has passed, its own timer
    /// usually says so first.
    pub(super) fn useless(&self, now: Instant) -> Option<Why> {
        if self.work.alive(now) {
            None
        } else {
            Some(Why::of_unwanted(&self.work, now))
        }
    }

    /// Whether what is left of it can be computed before its deadline, if it goes first from now on. A
    /// prediction that is wrong by a fifth gives nothing up.
    pub(super) fn can_be_done(&self, now: Instant, pace: f64, n_workers: usize) -> bool {
        let Amount { rows, size } = self.amount;
        let n_sharing = rows.min(n_workers).max(1) as f64;
        let needs_s = self.token_s * size.tokens * pace / n_sharing;
        let left = self.work.deadline().saturating_duration_since(now);
        HOPELESS_SHARE * needs_s < left.as_secs_f64()
    }
}

// === impl Why ===

impl Why {
    /// Of rows that nobody waits for.
    pub(super) fn of_unwanted(work: &Work, now: Instant) -> Self {
        if work.deadline() <= now {
            Self::Expired
        } else {
            Self::Cancelled
        }
    }

    pub(super) fn count(self, rows: usize, dropped: &mut Dropped) {
        let count = match self {
            Self::Cancelled => &mut dropped.cancelled,
            Self::Expired | Self::Waited => &mut dropped.expired,
            Self::Hopeless => &mut dropped.hopeless,
        };
        *count += rows as u64;
    }

    /// What a request is told that has `waited` so long.
    pub(super) fn error(self, waited: Duration) -> ScoreError {
        match self {
            Self::Cancelled => ScoreError::Cancelled,
            Self::Expired | Self::Hopeless => ScoreError::DeadlinePassed { after: waited },
            // Not its own time has passed, and another server may be idle: balancers try it there.
            Self::Waited => ScoreError::Unavailable {
                why: format!(
                    "it waited {:.1} s in the queue, as long as queue.wait_max allows",
                    waited.as_secs_f64()
                ),
                retry_after: WAITED_RETRY_AFTER,
            },
        }
    }
}

fn amount_of(rows: &TokenRows, row: usize) -> Amount {
    Amount {
        rows: 1,
        size: Size::row(rows.row_len(row)),
    }
}
