//! Whether a generation that went live shall stay: decided from what it has done, without a clock.

use crate::load::{Learned, Load, Totals};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// So many batches may fail by bad luck.
const FAULTS_MAX: u64 = 2;
/// Beyond that, this share of all of them.
const FAULT_SHARE_MAX: f64 = 0.05;
/// Before so many tokens were computed, speed says nothing.
const TOKENS_MIN: u64 = 10_000;
/// What both are compared by: a batch of this many tokens in rows of passages, because per token a few short rows
/// cost more than many long ones, and clients may change from the ones to the others at any time.
const BATCH_TOKENS: f64 = 512.0;
const ROW_TOKENS: f64 = 64.0;
/// How much slower the same arithmetic may be.
const SLOWDOWN_MAX: f64 = 2.0;
/// The same for another one: f32 is some five times slower than int8, and whoever asks for it knows.
const OTHER_SLOWDOWN_MAX: f64 = 20.0;

/// What served before, to compare with.
#[derive(Clone, Copy, Debug)]
pub struct Before {
    /// What it had done.
    pub totals: Totals,
    /// What it had learned of its time.
    pub learned: Learned,
    /// Whether the new one computes the same.
    pub is_same_numerics: bool,
}

/// When a generation that has proved its worth counts as failing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultBounds {
    /// Batches that may fail.
    pub faults_max: u64,
    /// Within so long.
    pub window: Duration,
}

/// What a generation has done of late.
#[derive(Debug, Default)]
pub struct Window {
    number: u64,
    looks: VecDeque<(Instant, Totals)>,
}

/// Of the batches of a failing generation at least this share fails: what a few clients' rows do to a sound one
/// is none of its faults.
const FAILING_SHARE: f64 = 0.5;

// === impl Window ===

impl Window {
    /// The generation of this number has done so much by now: why it is failing, if it is.
    pub fn add(
        &mut self,
        now: Instant,
        number: u64,
        totals: Totals,
        bounds: &FaultBounds,
    ) -> Option<String> {
        // A model that was taken away and loaded again begins with the same number, at nothing.
        let is_new = |(_, last): &(Instant, Totals)| {
            totals.batches < last.batches || totals.faults < last.faults
        };
        if self.number != number || self.looks.back().is_some_and(is_new) {
            *self = Self {
                number,
                looks: VecDeque::new(),
            };
        }
        let is_old = |at: &Instant| bounds.window < now.saturating_duration_since(*at);
        while self.looks.front().is_some_and(|(at, _)| is_old(at)) {
            self.looks.pop_front();
        }
        self.looks.push_back((now, totals));
        let (_, first) = self.looks.front()?;
        let done = totals.since(first);
        let batches = done.batches + done.faults;
        let is_failing =
            bounds.faults_max < done.faults && FAILING_SHARE * batches as f64 <= done.faults as f64;
        is_failing.then(|| {
            let (faults, window) = (done.faults, bounds.window);
            format!("{faults} of its {batches} batches failed within {window:?}")
        })
    }
}

/// Why a generation must go that has done `totals` since it went live, if it must.
pub fn why_not(before: &Before, totals: &Totals, load: &Load) -> Option<String> {
    if load.workers_stuck > 0 {
        return Some(format!(
            "{} of its workers do not come back",
            load.workers_stuck
        ));
    }
    let (faults, batches) = (totals.faults, totals.batches + totals.faults);
    if FAULTS_MAX < faults && FAULT_SHARE_MAX * (batches as f64) < faults as f64 {
        return Some(format!("{faults} of its {batches} batches failed"));
    }
    // A few batches have taught little.
    if totals.tokens.min(before.totals.tokens) < TOKENS_MIN {
        return None;
    }
    let (now, then) = (batch_s(&load.learned), batch_s(&before.learned));
    let most = if before.is_same_numerics {
        SLOWDOWN_MAX
    } else {
        OTHER_SLOWDOWN_MAX
    };
    let (ratio, ms) = (now / then, now * 1e3);
    (then > 0.0 && most < ratio).then(|| {
        format!(
            "a batch of {BATCH_TOKENS} tokens takes {ms:.1} ms, {ratio:.1} times as long as before; {most} times are \
             tolerated"
        )
    })
}

/// Predicted seconds of the batch by which both are compared.
fn batch_s(learned: &Learned) -> f64 {
    let squares = BATCH_TOKENS * ROW_TOKENS;
    learned.batch_s + learned.token_s * BATCH_TOKENS + learned.square_s * squares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn did(batches: u64, faults: u64) -> Totals {
        Totals {
            batches,
            faults,
            tokens: 1_000 * batches,
            ..Totals::default()
        }
    }

    /// A backend that takes so long for a token.
    fn learned(us_per_token: u64) -> Learned {
        Learned {
            token_s: us_per_token as f64 / 1e6,
            ..Learned::default()
        }
    }

    #[track_caller]
    fn check(
        is_same_numerics: bool,
        totals: &Totals,
        us_per_token: u64,
        n_stuck: usize,
        word: Option<&str>,
    ) {
        let before = Before {
            totals: did(100, 0),
            learned: learned(10),
            is_same_numerics,
        };
        let load = Load {
            workers_stuck: n_stuck,
            learned: learned(us_per_token),
            ..Load::default()
        };
        let why = why_not(&before, totals, &load);
        match word {
            None => assert_eq!(why, None),
            Some(word) => assert!(
                why.as_ref().is_some_and(|why| why.contains(word)),
                "{why:?}"
            ),
        }
    }

    #[test]
    fn who_does_as_well_stays() {
        check(true, &did(0, 0), 10, 0, None);
        check(true, &did(100, 2), 10, 0, None);
        check(true, &did(100, 4), 19, 0, None);
        check(false, &did(100, 0), 190, 0, None);
        // Nothing is known of its speed yet.
        check(true, &did(5, 0), 1_000, 0, None);
    }

    #[test]
    fn many_faults_at_once_are_failing_and_the_same_over_hours_are_not() {
        let (start, bounds) = (
            Instant::now(),
            FaultBounds {
                faults_max: 3,
                window: Duration::from_secs(10),
            },
        );
        let run = |step_s: u64, batches: u64, faults: u64| {
            let mut window = Window::default();
            (0..20_u64).find_map(|look| {
                let now = start + Duration::from_secs(look * step_s);
                let totals = did(look * batches, look * faults);
                Some((look, window.add(now, 1, totals, &bounds)?))
            })
        };
        let (look, why) = run(1, 1, 1).unwrap();
        assert_eq!(
            (look, why.as_str()),
            (4, "4 of its 8 batches failed within 10s")
        );
        assert_eq!(run(6, 1, 1), None);
        // Among many that are well.
        assert_eq!(run(1, 10, 9), None);
        // A model that was loaded again does, too.
        let mut window = Window::default();
        for totals in [did(100, 2), did(3, 0), did(0, 2)] {
            assert_eq!(window.add(start, 1, totals, &bounds), None);
        }
        // Another generation begins anew.
        let mut window = Window::default();
        for number in 0..20 {
            let totals = did(0, 3 * number);
            assert_eq!(window.add(start, number, totals, &bounds), None);
        }
    }

    #[test]
    fn who_fails_hangs_or_is_slow_goes() {
        check(true, &did(0, 3), 10, 0, Some("3 of its 3"));
        check(true, &did(90, 10), 10, 0, Some("10 of its 100"));
        check(true, &did(100, 0), 10, 1, Some("come back"));
        check(true, &did(100, 0), 21, 0, Some("2.1 times"));
        check(false, &did(100, 0), 210, 0, Some("21.0 times"));
    }
}
