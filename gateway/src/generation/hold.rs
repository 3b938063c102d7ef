//! Does it pay to hold a batch back until more requests have come? Pure: no clock, no lock.
//!
//! A batch costs `a` beside its rows, which cost `s` together; `n` requests wait, and `λ` come in a second.
//! Held back for `w` seconds, the `n` are `w` later each. The `λ·w` that come meanwhile ride along instead
//! of waiting until the worker is free again, after `a + s`; but those that come after them wait `w` longer
//! for it. Both only shift the worker's rhythm: from a moment of it that nobody chose, what is shifted is
//! worth half of what the first ones save (Cesàro's mean over the rhythm; counting the first ones alone
//! makes the mean latency *worse*, as a simulation shows). Those that ride along also lengthen the batch of
//! the `n` by their rows, `s/n` each. In sum, in seconds over all requests:
//!
//! ```text
//! gain(w) = λ·w·(a - w)/2 - n·w - λ·w·s,   above nothing as long as   w < a - 2s - 2n/λ
//! ```
//!
//! So it never pays where a batch's own cost is less than twice its rows' (a CPU), nor where so many wait already
//! that those who are to come are fewer. With several workers the next one is free in a part of the time,
//! and only `a/workers` can be saved.

use std::time::{Duration, Instant};

/// Seconds in which what was seen of arrivals fades to a third: dozens of requests where holding back can
/// pay at all, and a burst is soon forgotten.
const MEMORY_S: f64 = 0.25;
/// Share of the time before a deadline in which a request that is held back must still be predicted to be
/// done: `KEPT_SHARE` of the forecast, which counts on it.
const KEPT_SHARE: f64 = 0.9;

/// How long a batch may be held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldBounds {
    /// Since the oldest of its requests came; 0 for never.
    pub wait_max: Duration,
    /// A batch of so many rows is not held back.
    pub rows_preferred: usize,
    /// Only when it pays by prediction; else until `rows_preferred` have come.
    pub is_adaptive: bool,
}

/// Requests in a second, learned with forgetting.
#[derive(Clone, Copy, Debug, Default)]
pub struct Arrivals {
    // Requests, each weighing less as time passes; as it was at the last one.
    weight: f64,
    last: Option<Instant>,
}

/// What waits before a worker that has nothing to do.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    /// Requests.
    pub n_requests: usize,
    /// Requests that come in a second.
    pub rate: f64,
    /// Predicted seconds of a batch beside its rows, over the workers that can be called.
    pub own_s: f64,
    /// Predicted seconds of the rows.
    pub rows_s: f64,
    /// Seconds that pass until a batch of all of them is done.
    pub batch_s: f64,
    /// How long the oldest has waited.
    pub waited: Duration,
    /// The first of their deadlines.
    pub deadline: Instant,
    /// When it was held back first.
    pub since: Instant,
}

// === impl HoldBounds ===

impl HoldBounds {
    /// Every batch is cut at once.
    pub const NEVER: Self = Self {
        wait_max: Duration::ZERO,
        rows_preferred: 1,
        is_adaptive: true,
    };

    /// Until when what waits should be held back. `None` to cut it now.
    pub fn until(&self, held: &Held, now: Instant) -> Option<Instant> {
        let left_s = held.deadline.saturating_duration_since(now).as_secs_f64();
        let can_bear = seconds(KEPT_SHARE * left_s - held.batch_s);
        let may_wait = self.wait_max.saturating_sub(held.waited).min(can_bear);
        let until = (now + may_wait).min(if self.is_adaptive {
            held.since + seconds(held.pays_s())
        } else {
            now + self.wait_max
        });
        (now < until).then_some(until)
    }
}

// === impl Arrivals ===

impl Arrivals {
    /// One has come.
    pub fn count(&mut self, now: Instant) {
        self.weight = self.faded(now) + 1.0;
        self.last = Some(now);
    }

    /// Requests in a second, of late.
    pub fn rate(&self, now: Instant) -> f64 {
        self.faded(now) / MEMORY_S
    }

    fn faded(&self, now: Instant) -> f64 {
        let Some(last) = self.last else {
            return 0.0;
        };
        let passed_s = now.saturating_duration_since(last).as_secs_f64();
        self.weight * (-passed_s / MEMORY_S).exp()
    }
}

// === impl Held ===

impl Held {
    /// For how long it pays; see the module's derivation.
    fn pays_s(&self) -> f64 {
        self.own_s - 2.0 * self.rows_s - 2.0 * self.n_requests as f64 / self.rate
    }
}

/// Nothing for what is below nothing, or no number.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const BOUNDS: HoldBounds = HoldBounds {
        wait_max: Duration::from_millis(10),
        rows_preferred: 8,
        is_adaptive: true,
    };

    /// One request before a GPU: 5 ms a batch, and 1,000 requests a second.
    fn held(now: Instant) -> Held {
        Held {
            n_requests: 1,
            rate: 1_000.0,
            own_s: 5e-3,
            rows_s: 1e-5,
            batch_s: 5e-3,
            waited: Duration::ZERO,
            deadline: now + 1_000 * MS,
            since: now,
        }
    }

    /// Milliseconds until the cut, of what `change` makes of [`held`].
    fn ms(bounds: &HoldBounds, change: impl FnOnce(&mut Held, Instant)) -> f64 {
        let now = Instant::now();
        let mut held = held(now);
        change(&mut held, now);
        let until = bounds.until(&held, now).unwrap_or(now);
        1e3 * (until - now).as_secs_f64()
    }

    #[track_caller]
    fn check(bounds: &HoldBounds, want_ms: f64, change: impl FnOnce(&mut Held, Instant)) {
        let found = ms(bounds, change);
        assert!((found - want_ms).abs() < 0.01, "{found} ms, not {want_ms}");
    }

    #[test]
    fn it_waits_as_long_as_it_pays() {
        check(&BOUNDS, 2.98, |_, _| {});
        check(&BOUNDS, 0.98, |held, _| held.n_requests = 2);
        check(&BOUNDS, 0.0, |held, _| held.n_requests = 3);
        // One more is not expected before this batch would be done.
        check(&BOUNDS, 0.0, |held, _| held.rate = 400.0);
        check(&BOUNDS, 0.0, |held, _| held.rate = 0.0);
        // A CPU: the batch's own cost is less than its rows'.
        check(&BOUNDS, 0.0, |held, _| held.rows_s = 6e-3);
        // It has been held back already.
        check(&BOUNDS, 0.98, |held, now| held.since = now - 2 * MS);
        check(&BOUNDS, 0.0, |held, now| held.since = now - 3 * MS);
    }

    #[test]
    fn it_waits_no_longer_than_it_may() {
        let at_most = |ms| HoldBounds {
            wait_max: ms * MS,
            ..BOUNDS
        };
        check(&at_most(2), 2.0, |_, _| {});
        check(&at_most(2), 0.5, |held, _| held.waited = 3 * MS / 2);
        check(&at_most(0), 0.0, |_, _| {});
        // 0.9 of 6.5 ms less the batch's 5 ms.
        check(&BOUNDS, 0.85, |held, now| {
            held.deadline = now + 13 * MS / 2;
        });
        check(&BOUNDS, 0.0, |held, now| held.deadline = now + 5 * MS);
    }

    #[test]
    fn not_adaptive_it_waits_for_the_preferred_rows() {
        let fixed = HoldBounds {
            is_adaptive: false,
            ..BOUNDS
        };
        check(&fixed, 10.0, |held, _| held.rate = 0.0);
        check(&fixed, 4.0, |held, _| held.waited = 6 * MS);
        check(&fixed, 0.0, |held, _| held.waited = 10 * MS);
        check(&fixed, 4.0, |held, now| held.deadline = now + 10 * MS);
    }

    #[test]
    fn arrivals_are_learned_and_forgotten() {
        let (start, mut arrivals) = (Instant::now(), Arrivals::default());
        assert_eq!(arrivals.rate(start), 0.0);
        for n in 0..1_000 {
            arrivals.count(start + n * 2 * MS);
        }
        let end = start + 2_000 * MS;
        let rate = arrivals.rate(end);
        assert!((490.0..510.0).contains(&rate), "{rate}");
        let later = arrivals.rate(end + 1_000 * MS);
        assert!(later < 0.02 * rate, "{later}");
    }
}
