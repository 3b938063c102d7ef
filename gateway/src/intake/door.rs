//! The door: requests and bytes are counted before a body is read.

use super::Bounds;
use crate::score::ScoreError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bodies are counted in units of this many bytes: a semaphore counts to 2^29 at least, which is
/// 512 GiB.
const BYTES_UNIT: u64 = 1024;
/// What a body weighs before its first byte, at most: many clients announce no length, and to take each
/// for the largest would let a handful of them keep everybody else out.
const ENTRY_BYTES: u64 = 64 * 1024;
/// A refused client finds the same crowd when it comes back sooner.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Counts requests and bytes from before a body is read until it is answered. Every protocol's requests
/// come through the same door.
#[derive(Clone, Debug)]
pub struct Door {
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    is_closed: Arc<AtomicBool>,
    bounds: Bounds,
}

/// The right to have one request read and answered.
#[derive(Debug)]
pub struct Pass {
    _request: OwnedSemaphorePermit,
    weight: Arc<Weight>,
}

/// What one request weighs at the door, in bytes. It may outlive its pass: an answer that repeats a body
/// weighs as much as the body until it has been sent.
#[derive(Debug)]
pub struct Weight {
    held: Mutex<OwnedSemaphorePermit>,
    bytes_max: usize,
}

// === impl Door ===

impl Door {
    /// A door with nobody inside.
    pub fn new(bounds: Bounds) -> Self {
        let requests_max = bounds.requests_max.min(Semaphore::MAX_PERMITS);
        Self {
            requests: Arc::new(Semaphore::new(requests_max)),
            bytes: Arc::new(Semaphore::new(bounds.units())),
            is_closed: Arc::default(),
            bounds,
        }
    }

    /// Lets nobody in any more: those who come to be refused do not keep it from becoming idle.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
    }

    /// Requests that are inside.
    pub fn inside(&self) -> usize {
        self.bounds.requests_max.min(Semaphore::MAX_PERMITS) - self.requests.available_permits()
    }

    /// Whether every request has been answered, and every answer sent.
    pub fn is_idle(&self) -> bool {
        self.inside() == 0 && self.bytes.available_permits() == self.bounds.units()
    }

    /// What one request may bring.
    pub fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// Lets a stream in, whose requests come in one by one. It weighs nothing but what has arrived of a request
    /// that is not complete yet, and keeps nobody from becoming idle.
    ///
    /// # Errors
    /// `Unavailable` after [`close`](Self::close).
    pub fn stream(&self) -> Result<Weight, ScoreError> {
        self.check_open()?;
        let held = Arc::clone(&self.bytes).try_acquire_many_owned(0);
        Ok(Weight {
            held: Mutex::new(held.map_err(|_| too_heavy(self.bounds.bytes_max))?),
            bytes_max: self.bounds.bytes_max,
        })
    }

    fn check_open(&self) -> Result<(), ScoreError> {
        if self.is_closed.load(Ordering::Relaxed) {
            return Err(ScoreError::Unavailable {
                why: "the server is shutting down".to_owned(),
                retry_after: RETRY_AFTER,
            });
        }
        Ok(())
    }

    /// Lets a request in whose client announces this many bytes. It weighs little at first and grows
    /// while its body arrives.
    ///
    /// # Errors
    /// `Overloaded` when there are too many requests inside, or no room for what was announced; `Unavailable`
    /// after [`close`](Self::close).
    pub fn enter(&self, body_bytes: Option<u64>) -> Result<Pass, ScoreError> {
        self.check_open()?;
        let Ok(request) = Arc::clone(&self.requests).try_acquire_owned() else {
            return Err(overloaded(format!(
                "{} requests are being answered, as many as intake.requests_max allows",
                self.bounds.requests_max
            )));
        };
        let bytes_max = self.bounds.body_bytes_max as u64;
        let announced = body_bytes.unwrap_or(ENTRY_BYTES).min(bytes_max);
        let entry = units(announced.min(ENTRY_BYTES));
        // Who announces more than there is room for need not begin to send it.
        let has_room = units(announced) as usize <= self.bytes.available_permits();
        let held = Arc::clone(&self.bytes).try_acquire_many_owned(entry);
        match held {
            Ok(held) if has_room => Ok(Pass {
                _request: request,
                weight: Arc::new(Weight {
                    held: Mutex::new(held),
                    bytes_max: self.bounds.bytes_max,
                }),
            }),
            _ => Err(too_heavy(self.bounds.bytes_max)),
        }
    }
}

/// At least one: a request without a body is a request.
fn units(bytes: u64) -> u32 {
    // A body of at most 1 GiB is far below 2^32 units.
    u32::try_from(bytes.div_ceil(BYTES_UNIT))
        .unwrap_or(u32::MAX)
        .max(1)
}

fn too_heavy(bytes_max: usize) -> ScoreError {
    overloaded(format!(
        "the requests being answered hold almost {bytes_max} bytes, as many as intake.bytes_max allows"
    ))
}

fn overloaded(why: String) -> ScoreError {
    ScoreError::Overloaded {
        why,
        retry_after: RETRY_AFTER,
    }
}

// === impl Pass ===

impl Pass {
    /// What the request weighs.
    pub fn weight(&self) -> &Arc<Weight> {
        &self.weight
    }
}

// === impl Weight ===

impl Weight {
    /// So many bytes of the body have arrived.
    ///
    /// # Errors
    /// `Overloaded` when there is no room for them; what the request weighs stays as it was.
    pub fn grow_to(&self, bytes: u64) -> Result<(), ScoreError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let more = (units(bytes) as usize).saturating_sub(held.num_permits());
        if more > 0 {
            let room = Arc::clone(held.semaphore())
                .try_acquire_many_owned(u32::try_from(more).unwrap_or(u32::MAX))
                .map_err(|_| too_heavy(self.bytes_max))?;
            held.merge(room);
        }
        Ok(())
    }

    /// Nothing has arrived that has not been handed on.
    pub fn clear(&self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let all = held.num_permits();
        drop(held.split(all));
    }

    /// The body had so many bytes: what was taken beyond them is given back.
    pub fn settle(&self, bytes: u64) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let less = held.num_permits().saturating_sub(units(bytes) as usize);
        drop(held.split(less));
    }
}

// === impl Bounds ===

impl Bounds {
    /// All bodies' bytes in the unit that they are counted in.
    fn units(&self) -> usize {
        let units = (self.bytes_max as u64).div_ceil(BYTES_UNIT);
        let most = Semaphore::MAX_PERMITS;
        usize::try_from(units).unwrap_or(most).min(most)
    }
}
