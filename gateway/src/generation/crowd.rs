//! Is there more to do than can be done? Then who is admitted should not wait long: somebody is refused anyway,
//! and a long queue only makes everybody's answer late. Pure: no clock.
//!
//! Controlled delay (Nichols and Jacobson 2012) knows a standing queue by its smallest delay in an interval.
//! Here two facts that are at hand say it: somebody was refused a moment ago because no time was left before a
//! deadline, and the workers have hardly been idle since. Without a refusal a long queue is left alone:
//! clients that wait for their answers before they ask again are served one after the other, and a burst that
//! fits before its deadlines is, too.

use std::time::{Duration, Instant};

/// A refusal says so much longer that there is too much to do; each refusal says it again.
const MEMORY: Duration = Duration::from_secs(1);
/// Seconds in which what was seen of the workers fades to a third.
const BUSY_MEMORY_S: f64 = 1.0;
/// Share of the workers' time that must be used: below it a short queue costs throughput.
const BUSY_MIN: f64 = 0.9;

/// What was seen of late.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Crowd {
    refused: Option<Instant>,
    busy: f64,
    // What the workers have done since then.
    busy_now: f64,
    seen: Option<Instant>,
}

impl Crowd {
    /// A request was refused for want of time or room.
    pub(super) fn refuse(&mut self, now: Instant) {
        self.refused = Some(now);
    }

    /// This share of the workers computes from now on.
    pub(super) fn busy(&mut self, share: f64, now: Instant) {
        self.busy = self.share(now);
        self.busy_now = share;
        self.seen = Some(now);
    }

    /// Whether there is more to do than can be done.
    pub(super) fn is_too_much(&self, now: Instant) -> bool {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < MEMORY;
        self.refused.is_some_and(is_recent) && BUSY_MIN < self.share(now)
    }

    /// Of the workers' time, of late.
    fn share(&self, now: Instant) -> f64 {
        let Some(seen) = self.seen else {
            return 0.0;
        };
        let passed_s = now.saturating_duration_since(seen).as_secs_f64();
        let kept = (-passed_s / BUSY_MEMORY_S).exp();
        kept * self.busy + (1.0 - kept) * self.busy_now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_before_busy_workers_counts_for_a_while() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut crowd = Crowd::default();
        crowd.busy(1.0, start);
        assert!(!crowd.is_too_much(at(5_000)), "nobody was refused");
        crowd.refuse(at(5_000));
        assert!(crowd.is_too_much(at(5_999)));
        assert!(!crowd.is_too_much(at(6_000)));
        crowd.refuse(at(6_000));
        assert!(crowd.is_too_much(at(6_500)));
        // Half of the workers find nothing to do.
        crowd.busy(0.5, at(6_500));
        assert!(crowd.is_too_much(at(6_600)), "for a moment");
        assert!(!crowd.is_too_much(at(6_999)));
    }
}
