//! Whether Redis is asked at all. Decides; time is an argument.

use std::time::{Duration, Instant};

/// When the breaker opens, and how long it stays so.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Failures in a row that open it, if the last one comes `silence_min` after the first one: a short
    /// stall fails all that are on their way together, and is no outage.
    pub(super) failures_max: u32,
    pub(super) silence_min: Duration,
    /// From the first opening to the first trial.
    pub(super) pause_min: Duration,
    /// Each pause is twice the one before it, at most this.
    pub(super) pause_max: Duration,
}

/// Closed: everybody asks. Open: nobody does. After a pause one trial decides; no request is that trial.
#[derive(Debug)]
pub(super) struct Breaker {
    rules: Rules,
    state: State,
    /// How long it was open the last time.
    pause: Duration,
    /// Counts up whenever it closes.
    term: u64,
}

/// The right to ask, while the breaker is closed. What came of it counts only until it opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pass(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed {
        since: Instant,
        in_a_row: u32,
        /// The first of them.
        first: Instant,
    },
    Open {
        until: Instant,
    },
    Trying,
}

// === impl Breaker ===

impl Breaker {
    /// Open, and to be tried at once.
    pub(super) fn new(rules: Rules, now: Instant) -> Self {
        Self {
            rules,
            state: State::Open { until: now },
            pause: Duration::ZERO,
            term: 0,
        }
    }

    /// The right to ask; `None` unless it is closed.
    pub(super) fn pass(&self) -> Option<Pass> {
        matches!(self.state, State::Closed { .. }).then_some(Pass(self.term))
    }

    /// Somebody was answered in time.
    pub(super) fn succeeded(&mut self, pass: Pass) {
        if let State::Closed { in_a_row, .. } = &mut self.state
            && pass.0 == self.term
        {
            *in_a_row = 0;
        }
    }

    /// Somebody was not answered in time. Whether that opened it.
    pub(super) fn failed(&mut self, pass: Pass, now: Instant) -> bool {
        match &mut self.state {
            State::Closed {
                in_a_row, first, ..
            } if pass.0 == self.term => {
                if *in_a_row == 0 {
                    *first = now;
                }
                *in_a_row = in_a_row.saturating_add(1);
                let is_many = self.rules.failures_max <= *in_a_row;
                let silence = now.saturating_duration_since(*first);
                is_many && self.rules.silence_min <= silence && self.open(now)
            }
            _ => false,
        }
    }

    /// Somebody found the connection gone, so that nobody will be answered. Whether that opened it.
    pub(super) fn lost(&mut self, pass: Pass, now: Instant) -> bool {
        let is_closed = matches!(self.state, State::Closed { .. });
        is_closed && pass.0 == self.term && self.open(now)
    }

    /// When to try, while it is open.
    pub(super) fn try_at(&self) -> Option<Instant> {
        match self.state {
            State::Open { until } => Some(until),
            _ => None,
        }
    }

    /// The pause is over: the trial begins.
    pub(super) fn begin_trial(&mut self) {
        if matches!(self.state, State::Open { .. }) {
            self.state = State::Trying;
        }
    }

    /// The trial is over: closes, or opens again for longer.
    pub(super) fn end_trial(&mut self, is_well: bool, now: Instant) {
        if self.state != State::Trying {
            return;
        }
        if is_well {
            self.term += 1;
            self.state = State::Closed {
                since: now,
                in_a_row: 0,
                first: now,
            };
        } else {
            self.pause_for(self.pause * 2, now);
        }
    }

    /// 0 closed, 1 trying, 2 open.
    pub(super) fn level(&self) -> u64 {
        match self.state {
            State::Closed { .. } => 0,
            State::Trying => 1,
            State::Open { .. } => 2,
        }
    }

    /// One that has only just closed was closed too soon: the next pause is longer.
    fn open(&mut self, now: Instant) -> bool {
        let State::Closed { since, .. } = self.state else {
            return false;
        };
        let is_calm = self.rules.pause_max <= now.saturating_duration_since(since);
        let pause = if is_calm {
            self.rules.pause_min
        } else {
            self.pause * 2
        };
        self.pause_for(pause, now);
        true
    }

    fn pause_for(&mut self, pause: Duration, now: Instant) {
        self.pause = pause.clamp(self.rules.pause_min, self.rules.pause_max);
        self.state = State::Open {
            until: now + self.pause,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        failures_max: 3,
        silence_min: Duration::from_millis(20),
        pause_min: Duration::from_millis(100),
        pause_max: Duration::from_millis(400),
    };

    /// What happens to a breaker, and when it is to be tried afterwards (milliseconds; `None`: closed).
    enum Step {
        Ok,
        Fail,
        Lose,
        /// A trial, and whether it went well.
        Try(bool),
    }

    #[test]
    fn it_opens_and_closes_by_the_table() {
        use Step::{Fail, Lose, Ok, Try};
        let start = Instant::now();
        let mut breaker = Breaker::new(RULES, start);
        assert_eq!((breaker.pass(), breaker.try_at()), (None, Some(start)));
        let steps = [
            (0, Try(false), Some(100)),
            (100, Try(false), Some(300)),
            (300, Try(false), Some(700)),
            // The pause has its bound.
            (700, Try(false), Some(1100)),
            (1100, Try(true), None),
            (1110, Fail, None),
            (1120, Fail, None),
            // An answer between them: not in a row.
            (1130, Ok, None),
            (1140, Fail, None),
            (1150, Fail, None),
            // Closed for less than the longest pause: the next one is not short again.
            (1160, Fail, Some(1560)),
            (1560, Try(true), None),
            // A crowd that fails together is one stall.
            (2000, Fail, None),
            (2000, Fail, None),
            (2001, Fail, None),
            (2019, Fail, None),
            (2019, Ok, None),
            (2020, Fail, None),
            (2020, Fail, None),
            (2039, Fail, None),
            // Calm for long enough: short again.
            (2040, Fail, Some(2140)),
            (2140, Try(true), None),
            (3000, Lose, Some(3100)),
            (3100, Try(true), None),
            (3110, Lose, Some(3310)),
            (3310, Try(false), Some(3710)),
        ];
        for (ms, step, try_at) in steps {
            let now = start + Duration::from_millis(ms);
            let pass = breaker.pass();
            match step {
                Ok => breaker.succeeded(pass.expect("closed")),
                Fail => {
                    let opened = breaker.failed(pass.expect("closed"), now);
                    assert_eq!(opened, try_at.is_some(), "{ms}");
                }
                Lose => assert!(breaker.lost(pass.expect("closed"), now), "{ms}"),
                Try(is_well) => {
                    breaker.begin_trial();
                    assert_eq!((breaker.pass(), breaker.level()), (None, 1), "{ms}");
                    breaker.end_trial(is_well, now);
                }
            }
            let expected = try_at.map(|ms| start + Duration::from_millis(ms));
            assert_eq!(breaker.try_at(), expected, "{ms}");
            assert_eq!(breaker.pass().is_some(), try_at.is_none(), "{ms}");
            assert_eq!(breaker.level(), if try_at.is_some() { 2 } else { 0 });
        }
    }

    #[test]
    fn what_was_asked_before_it_opened_does_not_count_afterwards() {
        let now = Instant::now();
        let mut breaker = Breaker::new(RULES, now);
        let close = |breaker: &mut Breaker| {
            breaker.begin_trial();
            breaker.end_trial(true, now);
            breaker.pass().expect("closed")
        };
        let old = close(&mut breaker);
        assert!(breaker.lost(old, now));
        assert!(!breaker.lost(old, now) && !breaker.failed(old, now), "once");
        let new = close(&mut breaker);
        let later = now + RULES.silence_min;
        assert!(!breaker.failed(new, now) && !breaker.failed(new, now));
        // Neither do old answers make it well, nor do old failures open it.
        breaker.succeeded(old);
        assert!(!breaker.failed(old, later) && !breaker.lost(old, later));
        assert!(breaker.failed(new, later), "the third in a row");
        // A trial that nobody began changes nothing.
        breaker.end_trial(true, now);
        assert_eq!(breaker.pass(), None);
    }
}
