//! A share of a model's requests is tried out on a generation that does not serve yet: its scores are compared
//! with what was answered, and nobody waits for them.

use super::golden::Comparison;
use super::{Agreement, Generation};
use crate::score::{RequestId, ScoreError, ScoreResponse};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Requests that are tried out at a time; each keeps its texts for so long.
const REQUESTS_MAX: usize = 4;

/// A generation that is tried out.
pub struct Shadow {
    candidate: Arc<Generation>,
    /// Of all requests, above 0 and at most 1.
    share: f64,
    n_seen: AtomicU64,
    room: Arc<Semaphore>,
    seen: Mutex<Seen>,
}

/// What was seen of it.
#[derive(Default)]
struct Seen {
    counts: Counts,
    comparison: Comparison,
}

/// What there is to say of a generation that was tried out.
#[derive(Clone, Debug, PartialEq)]
pub struct Shadowed {
    /// What became of the requests.
    pub counts: Counts,
    /// How far its scores are from what was answered.
    pub agreement: Agreement,
}

/// What became of the requests on which a generation was tried out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests whose scores were compared.
    pub n_compared: u64,
    /// Their rows.
    pub n_rows: u64,
    /// Requests that it failed.
    pub n_failed: u64,
    /// Requests that were chosen while too many were tried out.
    pub n_skipped: u64,
    /// Why it failed the last one of them.
    pub last_error: Option<String>,
    /// Its labels are not those of what was answered: only other weights may have such, and their scores cannot be
    /// compared.
    pub has_other_labels: bool,
}

/// The right to try one request out.
pub struct Chosen {
    shadow: Arc<Shadow>,
    _room: OwnedSemaphorePermit,
}

// === impl Shadow ===

impl Shadow {
    /// Tries a share of all requests out on `candidate`.
    pub fn new(candidate: Arc<Generation>, share: f64) -> Arc<Self> {
        Arc::new(Self {
            candidate,
            share,
            n_seen: AtomicU64::new(0),
            room: Arc::new(Semaphore::new(REQUESTS_MAX)),
            seen: Mutex::default(),
        })
    }

    /// Whether the request that comes now is one to be tried out: evenly among all of them.
    pub fn choose(self: &Arc<Self>) -> Option<Chosen> {
        let n_before = self.n_seen.fetch_add(1, Ordering::Relaxed) as f64;
        if (n_before * self.share).floor() == ((n_before + 1.0) * self.share).floor() {
            return None;
        }
        let Ok(room) = Arc::clone(&self.room).try_acquire_owned() else {
            self.seen().counts.n_skipped += 1;
            self.candidate.metrics().shadow("skipped");
            return None;
        };
        Some(Chosen {
            shadow: Arc::clone(self),
            _room: room,
        })
    }

    /// What was seen until now.
    pub fn seen_so_far(&self) -> Shadowed {
        let seen = self.seen();
        Shadowed {
            counts: seen.counts.clone(),
            agreement: seen.comparison.agreement(),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // Nothing in here can panic half-way; a poisoned lock is still sound.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Shadowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { counts, agreement } = self;
        let Counts {
            n_compared,
            n_rows,
            n_failed,
            n_skipped,
            has_other_labels,
            ..
        } = counts;
        write!(f, "tried out on {n_rows} rows of {n_compared} requests")?;
        if *has_other_labels {
            f.write_str(": it has other labels, its scores are not compared")?;
        } else if *n_compared > 0 {
            write!(f, ": {agreement}")?;
        }
        write!(f, " ({n_failed} requests failed, {n_skipped} skipped)")
    }
}

// === impl Chosen ===

impl Chosen {
    /// Who is to score the request.
    pub fn candidate(&self) -> Arc<Generation> {
        Arc::clone(&self.shadow.candidate)
    }

    /// What became of it, beside what was answered.
    pub fn compare(
        self,
        id: &RequestId,
        answered: &ScoreResponse,
        outcome: &Result<ScoreResponse, ScoreError>,
    ) {
        let metrics = self.shadow.candidate.metrics();
        let mut seen = self.shadow.seen();
        let failed = match outcome {
            Ok(found) => {
                let (expected, n_labels) = (&answered.logits, answered.n_labels.max(1));
                seen.counts.n_compared += 1;
                seen.counts.n_rows += (expected.len() / n_labels) as u64;
                metrics.shadow("compared");
                if found.n_labels != answered.n_labels {
                    seen.counts.has_other_labels = true;
                    return;
                }
                let name = |row| format!("document {row} of the request {id}");
                seen.comparison.add(expected, &found.logits, n_labels, name);
                for (a, b) in expected.iter().zip(&found.logits) {
                    metrics.shadow_difference(f64::from((a - b).abs()));
                }
                return;
            }
            Err(error) => error.to_string(),
        };
        seen.counts.n_failed += 1;
        seen.counts.last_error = Some(failed);
        metrics.shadow("failed");
    }
}
