//! One request in the queue: its weight, and whether it is worth its time.

use super::Waiting;
use crate::generation::cost::Amount;
use crate::generation::work::Work;
use crate::load::Dropped;
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
    pub(super) waiting: Waiting,
    pub(super) work: Arc<Work>,
    pub(super) priority: Priority,
    pub(super) next_row: u32,
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
    /// Why its rows are not worth computing, if they are not. Where its time has passed, its own timer
    /// usually says so first.
    pub(super) fn useless(&self, now: Instant) -> Option<Why> {
        if self.work.alive(now) {
            None
        } else if self.waiting.deadline <= now {
            Some(Why::Expired)
        } else {
            Some(Why::Cancelled)
        }
    }

    /// Whether what is left of it can be computed before its deadline, if it goes first from now on. A
    /// prediction that is wrong by a fifth gives nothing up.
    pub(super) fn can_be_done(&self, now: Instant, pace: f64, n_workers: usize) -> bool {
        let Amount { rows, size } = self.waiting.amount;
        let n_sharing = rows.min(n_workers).max(1) as f64;
        let needs_s = self.token_s * size.tokens * pace / n_sharing;
        let left = self.waiting.deadline.saturating_duration_since(now);
        HOPELESS_SHARE * needs_s < left.as_secs_f64()
    }
}

// === impl Why ===

impl Why {
    pub(super) fn count(self, rows: usize, dropped: &mut Dropped) {
        let count = match self {
            Self::Cancelled => &mut dropped.cancelled,
            Self::Expired | Self::Waited => &mut dropped.expired,
            Self::Hopeless => &mut dropped.hopeless,
        };
        *count += rows as u64;
    }

    /// What a request is told that has `waited` so long; nobody is left to be told of a cancelled one.
    pub(super) fn error(self, waited: Duration) -> Option<ScoreError> {
        match self {
            Self::Cancelled => None,
            Self::Expired | Self::Hopeless => Some(ScoreError::DeadlinePassed { after: waited }),
            // Not its own time has passed, and another server may be idle: balancers try it there.
            Self::Waited => Some(ScoreError::Unavailable {
                why: format!(
                    "it waited {:.1} s in the queue, as long as queue.wait_max allows",
                    waited.as_secs_f64()
                ),
                retry_after: WAITED_RETRY_AFTER,
            }),
        }
    }
}
