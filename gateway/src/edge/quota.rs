//! How much the bearer of a key may still ask. Time is an argument.

use crate::config::{Limits, Rate};
use crate::score::ScoreError;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// One name's requests and documents, whichever of its keys is shown.
#[derive(Debug)]
pub(super) struct Account {
    name: String,
    limits: Limits,
    buckets: Mutex<Buckets>,
}

#[derive(Debug)]
struct Buckets {
    requests: Option<Bucket>,
    minute: Option<Bucket>,
    day: Option<Bucket>,
}

/// Fills evenly. Its level may fall below nothing: what a request takes is known when it is inside, and
/// whoever comes next waits until it has been paid back.
#[derive(Debug)]
struct Bucket {
    full: f64,
    per_second: f64,
    level: f64,
    at: Option<Instant>,
}

// === impl Account ===

impl Account {
    /// Who has rested.
    pub(super) fn new(name: &str, limits: Limits) -> Self {
        let documents = |n: Option<u64>, time: Duration| {
            let n = n? as f64;
            Some(Bucket::new(n, n / time.as_secs_f64()))
        };
        let requests = limits
            .rate
            .map(|rate| Bucket::new(rate.burst.into(), rate.per_second.into()));
        Self {
            name: name.to_owned(),
            limits,
            buckets: Mutex::new(Buckets {
                requests,
                minute: documents(limits.documents_per_minute, MINUTE),
                day: documents(limits.documents_per_day, DAY),
            }),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// Counts a request, whose documents are not known yet.
    ///
    /// # Errors
    /// `Overloaded`, with the limit that is reached and the time until it is not.
    pub(super) fn begin(&self, now: Instant) -> Result<(), ScoreError> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let Buckets {
            requests,
            minute,
            day,
        } = &mut *buckets;
        let waits = [day, minute, requests].map(|bucket| {
            let wait = bucket.as_mut().map(|bucket| bucket.wait(now));
            wait.filter(|wait| !wait.is_zero())
        });
        let Some((kind, wait)) = ["day", "minute", "second"]
            .into_iter()
            .zip(waits)
            .find_map(|(kind, wait)| Some((kind, wait?)))
        else {
            if let Some(requests) = &mut buckets.requests {
                requests.level -= 1.0;
            }
            return Ok(());
        };
        Err(ScoreError::Overloaded {
            why: self.reached(kind),
            retry_after: wait,
        })
    }

    /// A request that has begun asks about so many documents.
    pub(super) fn take(&self, n_documents: usize, now: Instant) {
        self.documents(-(n_documents as f64), now);
    }

    /// They were not scored.
    pub(super) fn give_back(&self, n_documents: usize, now: Instant) {
        self.documents(n_documents as f64, now);
    }

    /// How many requests, and documents, may be asked now; `None` for any number.
    pub(super) fn left(&self, now: Instant) -> (Option<u64>, Option<u64>) {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let left = |bucket: &mut Option<Bucket>| {
            let bucket = bucket.as_mut()?;
            bucket.fill(now);
            // Rounds down, and what is owed to nothing.
            Some(bucket.level as u64)
        };
        let Buckets {
            requests,
            minute,
            day,
        } = &mut *buckets;
        let documents = [left(minute), left(day)];
        (left(requests), documents.into_iter().flatten().min())
    }

    fn documents(&self, n: f64, now: Instant) {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let Buckets { minute, day, .. } = &mut *buckets;
        for bucket in [minute, day].into_iter().flatten() {
            bucket.fill(now);
            bucket.level = (bucket.level + n).min(bucket.full);
        }
    }

    fn reached(&self, kind: &str) -> String {
        let name = &self.name;
        let documents = |n: Option<u64>| {
            format!(
                "the key {name:?} has used the {} documents per {kind} that keys.documents_per_{kind}, or its own \
                 limit, allows",
                n.unwrap_or_default()
            )
        };
        match (kind, self.limits.rate) {
            ("day", _) => documents(self.limits.documents_per_day),
            ("minute", _) => documents(self.limits.documents_per_minute),
            (_, rate) => too_fast(
                name,
                rate.unwrap_or(Rate {
                    per_second: 0,
                    burst: 0,
                }),
            ),
        }
    }
}

/// The requests of `name` are too many.
pub(super) fn too_fast(name: &str, Rate { per_second, burst }: Rate) -> String {
    format!(
        "the key {name:?} has sent more than the {per_second} requests per second that keys.rate_max, or its own \
         rate, allows, and {burst} at once"
    )
}

// === impl Bucket ===

impl Bucket {
    fn new(full: f64, per_second: f64) -> Self {
        Self {
            full,
            per_second,
            level: full,
            at: None,
        }
    }

    fn fill(&mut self, now: Instant) {
        let passed = self.at.map(|at| now.saturating_duration_since(at));
        let seconds = passed.unwrap_or_default().as_secs_f64();
        self.level = (self.level + seconds * self.per_second).min(self.full);
        self.at = self.at.max(Some(now));
    }

    /// Until there is one to take.
    fn wait(&mut self, now: Instant) -> Duration {
        self.fill(now);
        // What is missing because numbers are rounded is there.
        let missing = 1.0 - 1e-9 - self.level;
        Duration::try_from_secs_f64(missing.max(0.0) / self.per_second).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(rate: Option<Rate>, minute: Option<u64>, day: Option<u64>) -> Account {
        let limits = Limits {
            rate,
            documents_per_minute: minute,
            documents_per_day: day,
        };
        Account::new("batch", limits)
    }

    #[track_caller]
    fn refused(account: &Account, now: Instant, word: &str) -> f64 {
        match account.begin(now) {
            Err(ScoreError::Overloaded { why, retry_after }) => {
                assert!(why.contains(word) && why.contains("\"batch\""), "{why}");
                retry_after.as_secs_f64()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn requests_are_counted_by_the_second() {
        let began = Instant::now();
        let at = |ms: u64| began + Duration::from_millis(ms);
        let rate = Rate {
            per_second: 2,
            burst: 3,
        };
        let account = account(Some(rate), None, None);
        for _ in 0..3 {
            account.begin(at(0)).expect("at once");
        }
        let wait = refused(&account, at(0), "the 2 requests per second");
        assert!((wait - 0.5).abs() < 1e-6, "{wait}");
        account.begin(at(500)).expect("the next");
        refused(&account, at(900), "keys.rate_max");
        // A rest is worth no more than the burst, and a clock that goes back nothing.
        for _ in 0..3 {
            account.begin(at(60_000)).expect("after a rest");
        }
        refused(&account, at(60_000), "3 at once");
        refused(&account, at(0), "3 at once");
    }

    #[test]
    fn documents_are_paid_back() {
        let began = Instant::now();
        let at = |s: u64| began + Duration::from_secs(s);
        let account = account(None, Some(60), Some(86_400));
        account.begin(at(0)).expect("the first");
        account.take(59, at(0));
        account.begin(at(0)).expect("one is left");
        // Answered whole, and paid back before the next.
        account.take(30, at(0));
        let wait = refused(&account, at(0), "the 60 documents per minute");
        assert!((wait - 30.0).abs() < 1e-6, "{wait}");
        // Who was not answered has taken nothing.
        account.give_back(30, at(0));
        account.begin(at(0)).expect("given back");
        account.take(86_400, at(1));
        let wait = refused(&account, at(1), "documents per day");
        // 89 less 30 taken before, of which a second has brought one back.
        assert!((wait - 59.0).abs() < 0.1, "{wait}");
        account.begin(at(86_400 * 2)).expect("after two days");
    }
}
