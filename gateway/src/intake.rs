//! The first stage: what is too much is refused before it costs anything, and a request takes the
//! generation that it keeps to the end.

use crate::admit::Routed;
use crate::generation::Slots;
use crate::score::{Answer, ScoreError, ScoreRequest, ScoreResponse};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::Service;

/// Bodies are counted in units of this many bytes: a semaphore counts to 2^29 at least, which is
/// 512 GiB.
const BYTES_UNIT: u64 = 1024;
/// A refused client finds the same crowd when it comes back sooner.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What one request may bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of one body.
    pub body_bytes_max: usize,
    /// Bytes of all bodies that are held at the same time.
    pub bytes_max: usize,
    /// Requests between their first byte and their answer.
    pub requests_max: usize,
    /// Documents of one request.
    pub documents_max: usize,
    /// Bytes of one document.
    pub document_bytes_max: usize,
    /// Bytes of a query.
    pub query_bytes_max: usize,
}

/// Counts requests and bytes from before a body is read until it is answered. Every protocol's requests
/// come through the same door.
#[derive(Clone, Debug)]
pub struct Door {
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    bounds: Bounds,
}

/// The right to have one request read and answered.
#[derive(Debug)]
pub struct Pass {
    _request: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
}

/// Checks a request and finds its generation; holds its deadline.
#[derive(Clone)]
pub struct Intake<S> {
    slots: Arc<Slots>,
    bounds: Bounds,
    next: S,
}

// === impl Door ===

impl Door {
    /// A door with nobody inside.
    pub fn new(bounds: Bounds) -> Self {
        let units = (bounds.bytes_max as u64).div_ceil(BYTES_UNIT);
        let most = Semaphore::MAX_PERMITS;
        Self {
            requests: Arc::new(Semaphore::new(bounds.requests_max.min(most))),
            bytes: Arc::new(Semaphore::new(
                usize::try_from(units).unwrap_or(most).min(most),
            )),
            bounds,
        }
    }

    /// Requests that are inside.
    pub fn inside(&self) -> usize {
        self.bounds.requests_max.min(Semaphore::MAX_PERMITS) - self.requests.available_permits()
    }

    /// Lets a request in whose body has this many bytes; one that does not say counts as the largest.
    ///
    /// # Errors
    /// `Overloaded` when there are too many requests or bytes inside.
    pub fn enter(&self, body_bytes: Option<u64>) -> Result<Pass, ScoreError> {
        let body = body_bytes
            .unwrap_or(u64::MAX)
            .min(self.bounds.body_bytes_max as u64);
        // A body of up to 32 MiB is far below 2^32 units.
        let units = body.div_ceil(BYTES_UNIT).max(1) as u32;
        let requests = Arc::clone(&self.requests).try_acquire_owned();
        let bytes = Arc::clone(&self.bytes).try_acquire_many_owned(units);
        match (requests, bytes) {
            (Ok(request), Ok(bytes)) => Ok(Pass {
                _request: request,
                _bytes: bytes,
            }),
            (Err(_), _) => Err(overloaded(format!(
                "{} requests are being answered, as many as intake.requests_max allows",
                self.bounds.requests_max
            ))),
            (_, Err(_)) => Err(overloaded(format!(
                "the requests being answered hold almost {} bytes, as many as intake.bytes_max allows",
                self.bounds.bytes_max
            ))),
        }
    }
}

fn overloaded(why: String) -> ScoreError {
    ScoreError::Overloaded {
        why,
        retry_after: RETRY_AFTER,
    }
}

// === impl Intake ===

impl<S> Intake<S> {
    /// Requests for `slots` within `bounds` go on to `next`.
    pub fn new(slots: Arc<Slots>, bounds: Bounds, next: S) -> Self {
        Self {
            slots,
            bounds,
            next,
        }
    }

    fn route(&self, request: ScoreRequest) -> Result<Routed, ScoreError> {
        self.bounds.check(&request)?;
        let generation = self.slots.live(request.model.as_deref())?;
        Ok(Routed {
            request,
            generation,
        })
    }
}

impl<S> Service<ScoreRequest> for Intake<S>
where
    S: Service<Routed, Response = ScoreResponse, Error = ScoreError, Future = Answer>,
{
    type Response = ScoreResponse;
    type Error = ScoreError;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ScoreError>> {
        self.next.poll_ready(context)
    }

    fn call(&mut self, request: ScoreRequest) -> Answer {
        let (came, deadline) = (Instant::now(), request.deadline);
        let routed = match self.route(request) {
            Ok(routed) => routed,
            Err(error) => return Box::pin(std::future::ready(Err(error))),
        };
        let metrics = Arc::clone(routed.generation.metrics());
        let answer = self.next.call(routed);
        Box::pin(async move {
            // When the time is up the answer's future is dropped, and with it all that it asked for.
            let outcome = match tokio::time::timeout_at(deadline.into(), answer).await {
                // A row that expired in the queue or the plugin knows no better how long it had.
                Err(_) | Ok(Err(ScoreError::DeadlinePassed { .. })) => {
                    Err(ScoreError::DeadlinePassed {
                        after: deadline.saturating_duration_since(came),
                    })
                }
                Ok(outcome) => outcome,
            };
            metrics.outcome(outcome.as_ref().map_or_else(ScoreError::outcome, |_| "ok"));
            outcome
        })
    }
}

// === impl Bounds ===

impl Bounds {
    fn check(&self, request: &ScoreRequest) -> Result<(), ScoreError> {
        if request.query.trim().is_empty() {
            return Err(ScoreError::invalid(
                "query",
                "is empty; send the text to compare the documents with",
            ));
        }
        if request.documents.is_empty() {
            return Err(ScoreError::invalid(
                "documents",
                "is empty; send at least one document",
            ));
        }
        let too_large =
            |param: &str, found: usize, unit: &str, bound: &str, max: usize| ScoreError::TooLarge {
                param: param.to_owned(),
                why: format!(
                    "{found} {unit} are more than {bound} = {max}; send less or raise the bound"
                ),
            };
        if self.documents_max < request.documents.len() {
            let found = request.documents.len();
            return Err(too_large(
                "documents",
                found,
                "documents",
                "intake.documents_max",
                self.documents_max,
            ));
        }
        if self.query_bytes_max < request.query.len() {
            let found = request.query.len();
            return Err(too_large(
                "query",
                found,
                "bytes",
                "intake.query_bytes_max",
                self.query_bytes_max,
            ));
        }
        let long = request
            .documents
            .iter()
            .position(|document| self.document_bytes_max < document.len());
        if let Some(index) = long {
            let (param, found) = (
                format!("documents[{index}]"),
                request.documents[index].len(),
            );
            return Err(too_large(
                &param,
                found,
                "bytes",
                "intake.document_bytes_max",
                self.document_bytes_max,
            ));
        }
        Ok(())
    }
}
