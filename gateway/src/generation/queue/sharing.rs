//! Equal sharing as it would be: how far it has come, and where each request would end.

use std::cmp::Ordering;
use std::collections::BTreeMap;

/// A request's place: where it would end under equal sharing, in seconds of [`Sharing`]; among equals the
/// oldest is first.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    finish_s: f64,
    seq: u64,
}

/// All requests that would not be done yet if all of them had been computed at the same time, each by the part
/// of the workers that its weight gives it.
///
/// A request that was served first, and is done, has its part of this imagined time all the same until it would
/// have ended in it: else time would run faster than anybody could be served, and requests would stand as
/// overdue before whoever comes next although nobody has kept them waiting.
#[derive(Debug, Default)]
pub(super) struct Sharing {
    // What each of weight 1 would have got by now, in seconds of one worker.
    now_s: f64,
    // Their weights.
    sharers: BTreeMap<Place, f64>,
    weight_sum: f64,
    n_placed: u64,
}

// === impl Place ===

impl Place {
    /// The same request's, if it came at `start_s` and one worker would be done after `alone_s`.
    pub(super) fn moved(self, start_s: f64, alone_s: f64, weight: f64) -> Self {
        Self {
            finish_s: start_s + alone_s / weight,
            ..self
        }
    }
}

impl Ord for Place {
    fn cmp(&self, other: &Self) -> Ordering {
        self.finish_s
            .total_cmp(&other.finish_s)
            .then(self.seq.cmp(&other.seq))
    }
}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Place {}

// === impl Sharing ===

impl Sharing {
    /// When it is now, as it would be.
    pub(super) fn now_s(&self) -> f64 {
        self.now_s
    }

    /// Where a request would stand that came now, of which one worker would be done after `alone_s`.
    pub(super) fn place(&self, alone_s: f64, weight: f64) -> Place {
        Place {
            finish_s: self.now_s + alone_s / weight,
            seq: self.n_placed + 1,
        }
    }

    /// A request has this place from now on.
    pub(super) fn join(&mut self, place: Place, weight: f64) {
        self.n_placed = self.n_placed.max(place.seq);
        if self.sharers.insert(place, weight).is_none() {
            self.weight_sum += weight;
        }
    }

    /// A request has gone away, or to another place.
    pub(super) fn leave(&mut self, place: Place) {
        if let Some(weight) = self.sharers.remove(&place) {
            self.weight_sum -= weight;
        }
    }

    /// A place for what is owed to the one at `old`, at another weight. What is overdue cannot be owed less.
    pub(super) fn reweighed(&self, old: Place, ratio: f64) -> Place {
        let owed_s = (old.finish_s - self.now_s).max(0.0);
        Place {
            finish_s: old.finish_s.min(self.now_s + owed_s * ratio),
            ..old
        }
    }

    /// `work_s` seconds of one worker were given to somebody: so much would have been shared among all.
    pub(super) fn advance(&mut self, mut work_s: f64) {
        while let Some((&first, &weight)) = self.sharers.first_key_value() {
            let until_first_s = (first.finish_s - self.now_s).max(0.0) * self.weight_sum;
            if work_s < until_first_s {
                self.now_s += work_s / self.weight_sum;
                return;
            }
            work_s -= until_first_s;
            self.now_s = self.now_s.max(first.finish_s);
            self.sharers.remove(&first);
            self.weight_sum -= weight;
        }
    }

    /// Nobody is left: sums of small differences end at nothing, and never lose precision.
    pub(super) fn rest(&mut self) {
        *self = Self {
            n_placed: self.n_placed,
            ..Self::default()
        };
    }
}
