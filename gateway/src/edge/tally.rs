//! Calls without an answer, in the log: under a flood their number is what matters, and a line for
//! each would be a flood of its own.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One line at most for all that was only counted in this time.
const PERIOD: Duration = Duration::from_secs(1);
/// Refusals that are described by themselves in a period: a lone one is worth its reason.
const REFUSALS_DESCRIBED_MAX: u32 = 1;
/// The same of our own faults, whose reasons may differ.
const FAULTS_DESCRIBED_MAX: u32 = 5;

/// What has been counted and not been written yet. Time is an argument.
#[derive(Default)]
pub(super) struct Tally(Mutex<Window>);

/// Why a call has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blame {
    /// The request makes no sense, or there is no room for it.
    Refused,
    /// Something in here is broken.
    Ours,
}

/// A period's line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) refused: u64,
    pub(super) ours: u64,
    /// `429: 1200, 504: 3`.
    pub(super) by_status: String,
}

#[derive(Default)]
struct Window {
    began: Option<Instant>,
    described: u32,
    refused: u64,
    ours: u64,
    /// Few keys: statuses are those of the table in `wire.rs`.
    by_status: BTreeMap<u16, u64>,
}

// === impl Tally ===

impl Tally {
    /// Whether a call that ended now deserves a line of its own. If not, it is counted.
    pub(super) fn describes(&self, now: Instant, status: u16, blame: Blame) -> bool {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        window.began.get_or_insert(now);
        let described_max = match blame {
            Blame::Refused => REFUSALS_DESCRIBED_MAX,
            Blame::Ours => FAULTS_DESCRIBED_MAX,
        };
        if window.described < described_max {
            window.described += 1;
            return true;
        }
        match blame {
            Blame::Refused => window.refused += 1,
            Blame::Ours => window.ours += 1,
        }
        *window.by_status.entry(status).or_default() += 1;
        false
    }

    /// What was counted, once its period is over. Any call asks, so a flood's end is written with
    /// the next probe, whatever that is; no task has to wait for it.
    pub(super) fn due(&self, now: Instant) -> Option<Summary> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let began = window.began?;
        if now.saturating_duration_since(began) < PERIOD {
            return None;
        }
        let summary = std::mem::take(&mut *window).summary();
        if summary.is_some() {
            // While a flood lasts its lines are these alone.
            window.began = Some(now);
            window.described = REFUSALS_DESCRIBED_MAX;
        }
        summary
    }

    /// What was counted, at the end.
    pub(super) fn rest(&self) -> Option<Summary> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *window).summary()
    }
}

impl Window {
    fn summary(self) -> Option<Summary> {
        let counts = self.by_status.iter();
        let by_status: Vec<_> = counts.map(|(status, n)| format!("{status}: {n}")).collect();
        (!by_status.is_empty()).then(|| Summary {
            refused: self.refused,
            ours: self.ours,
            by_status: by_status.join(", "),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_line_a_second() {
        let (tally, began) = (Tally::default(), Instant::now());
        let at = |ms: u64| began + Duration::from_millis(ms);
        let described: Vec<_> = (0..4_000)
            .filter(|&ms| tally.describes(at(ms), 429, Blame::Refused))
            .collect();
        assert_eq!(described, [0]);
        let line = |n: u64| Summary {
            refused: n,
            ours: 0,
            by_status: format!("429: {n}"),
        };
        assert_eq!(tally.due(at(999)), None);
        assert_eq!(tally.due(at(4_000)), Some(line(3_999)));
        // The flood goes on: no line of its own for its next first.
        assert!(!tally.describes(at(4_100), 429, Blame::Refused));
        assert_eq!(tally.due(at(4_900)), None);
        assert_eq!(tally.due(at(5_000)), Some(line(1)));
        // After a quiet second a lone refusal is described again.
        assert_eq!(tally.due(at(6_000)), None);
        assert!(tally.describes(at(6_100), 404, Blame::Refused));
        assert_eq!(tally.rest(), None);
    }

    #[test]
    fn faults_are_described_a_few_times() {
        let (tally, now) = (Tally::default(), Instant::now());
        assert!(tally.describes(now, 429, Blame::Refused));
        let described = (0..100).filter(|_| tally.describes(now, 502, Blame::Ours));
        assert_eq!(described.count(), 4);
        assert!(!tally.describes(now, 504, Blame::Refused));
        let wanted = Summary {
            refused: 1,
            ours: 96,
            by_status: "502: 96, 504: 1".to_owned(),
        };
        assert_eq!(tally.rest(), Some(wanted));
        assert_eq!(tally.rest(), None);
    }
}
