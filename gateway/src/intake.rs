//! The first stage: what is too much is refused before it costs anything, and a request takes the
//! generation that it keeps to the end.

mod door;

pub use door::{Door, Pass, Weight};

use crate::cache::Routed;
use crate::generation::{Chosen, Generation, Slots};
use crate::runtime::{Runtime, now};
use crate::score::{Answer, Priority, ScoreError, ScoreRequest, ScoreResponse};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;
use tower::{Service, ServiceExt as _};

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
    /// What is more urgent is lowered to it.
    pub priority_max: Priority,
}

/// Checks a request and finds its generation; holds its deadline.
#[derive(Clone)]
pub struct Intake<S> {
    slots: Arc<Slots>,
    bounds: Bounds,
    next: S,
    // The same way without what is kept of scores.
    afresh: S,
    runtime: Runtime,
}

/// What is to be done with a request besides answering it.
struct Again<S> {
    request: ScoreRequest,
    // Answers it if what serves now does not.
    previous: Option<Arc<Generation>>,
    // Tries it out on what does not serve yet.
    chosen: Option<Chosen>,
    intake: Intake<S>,
}

// === impl Intake ===

impl<S> Intake<S> {
    /// Requests for `slots` within `bounds` go on to `next`; to `afresh` where they must be computed.
    pub fn new(slots: Arc<Slots>, bounds: Bounds, next: S, afresh: S, runtime: Runtime) -> Self {
        Self {
            slots,
            bounds,
            next,
            afresh,
            runtime,
        }
    }
}

impl<S> Intake<S>
where
    S: Service<Routed, Response = ScoreResponse, Error = ScoreError, Future = Answer>
        + Clone
        + Send
        + 'static,
{
    /// A request that comes while its model's next generation is about to.
    async fn serve_soon(mut self, request: ScoreRequest) -> Result<ScoreResponse, ScoreError> {
        let came = now();
        let model = request.model.clone();
        let live = self.slots.live_soon(model.as_deref());
        let generation = within(came, request.deadline, live).await?;
        self.serve(request, generation).await
    }

    fn serve(&mut self, request: ScoreRequest, generation: Arc<Generation>) -> Answer {
        let (came, deadline) = (now(), request.deadline);
        let again = self.again(&request, &generation);
        // Dropped with the future when the client goes away, which counts too.
        let open = generation.metrics().open();
        let answer = self.next.call(Routed {
            request,
            generation: Arc::clone(&generation),
        });
        Box::pin(async move {
            let outcome = within(came, deadline, answer).await;
            let outcome = match again {
                None => outcome,
                Some(again) => again.follow(came, outcome).await,
            };
            generation.count_answer();
            if let Ok(response) = &outcome {
                generation.metrics().times(&response.times);
            }
            open.end(outcome.as_ref().map_or_else(ScoreError::outcome, |_| "ok"));
            outcome
        })
    }

    /// Only around a swap is there anything to do.
    fn again(&self, request: &ScoreRequest, generation: &Generation) -> Option<Again<S>> {
        let previous = self.slots.previous(generation);
        let shadow = self.slots.shadow(generation);
        let chosen = shadow.and_then(|shadow| shadow.choose());
        let is_needed = previous.is_some() || chosen.is_some();
        is_needed.then(|| Again {
            request: request.clone(),
            previous,
            chosen,
            intake: self.clone(),
        })
    }
}

impl<S> Again<S>
where
    S: Service<Routed, Response = ScoreResponse, Error = ScoreError, Future = Answer>
        + Clone
        + Send
        + 'static,
{
    /// A request that what has just gone live fails is answered, whole, by what served before.
    async fn follow(
        self,
        came: Instant,
        outcome: Result<ScoreResponse, ScoreError>,
    ) -> Result<ScoreResponse, ScoreError> {
        let Self {
            request,
            previous,
            chosen,
            intake,
        } = self;
        match (outcome, previous, chosen) {
            (Err(ScoreError::Backend { .. }), Some(generation), _) => {
                let deadline = request.deadline;
                let answer = intake.next.oneshot(Routed {
                    request,
                    generation,
                });
                within(came, deadline, answer).await
            }
            (Ok(answered), _, Some(chosen)) => {
                let tried = try_out(chosen, request, came, answered.clone(), intake.afresh);
                intake.runtime.task(tried);
                Ok(answered)
            }
            (outcome, ..) => outcome,
        }
    }
}

/// Has a generation that does not serve yet score what was answered by another. Nobody waits for it.
async fn try_out<S>(
    chosen: Chosen,
    request: ScoreRequest,
    came: Instant,
    answered: ScoreResponse,
    afresh: S,
) where
    S: Service<Routed, Response = ScoreResponse, Error = ScoreError, Future = Answer>,
{
    let (started, id) = (now(), request.id.clone());
    // As long as its client would have waited.
    let deadline = started + request.deadline.saturating_duration_since(came);
    let answer = afresh.oneshot(Routed {
        request: ScoreRequest {
            deadline,
            priority: Priority::Low,
            ..request
        },
        generation: chosen.candidate(),
    });
    let outcome = within(started, deadline, answer).await;
    chosen.compare(&id, &answered, &outcome);
}

/// When the time is up the answer's future is dropped, and with it all that it asked for.
async fn within<T>(
    came: Instant,
    deadline: Instant,
    answer: impl Future<Output = Result<T, ScoreError>>,
) -> Result<T, ScoreError> {
    match tokio::time::timeout_at(deadline.into(), answer).await {
        // A row that expired in the queue or the plugin knows no better how long it had.
        Err(_) | Ok(Err(ScoreError::DeadlinePassed { .. })) => Err(ScoreError::DeadlinePassed {
            after: deadline.saturating_duration_since(came),
        }),
        Ok(outcome) => outcome,
    }
}

impl<S> Service<ScoreRequest> for Intake<S>
where
    S: Service<Routed, Response = ScoreResponse, Error = ScoreError, Future = Answer>
        + Clone
        + Send
        + 'static,
{
    type Response = ScoreResponse;
    type Error = ScoreError;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ScoreError>> {
        self.next.poll_ready(context)
    }

    fn call(&mut self, mut request: ScoreRequest) -> Answer {
        if let Err(error) = self.bounds.check(&request) {
            return Box::pin(std::future::ready(Err(error)));
        }
        self.bounds.lower(&mut request);
        match self.slots.live(request.model.as_deref()) {
            Ok(generation) => self.serve(request, generation),
            Err(ScoreError::Unavailable { .. }) => Box::pin(self.clone().serve_soon(request)),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }
}

// === impl Bounds ===

impl Bounds {
    /// Whether one request may have so many documents. The edge asks before it unpacks them, where a
    /// document of nothing costs many times the bytes that it came in.
    ///
    /// # Errors
    /// `TooLarge`.
    pub fn check_count(&self, n_documents: usize) -> Result<(), ScoreError> {
        let bound = ("intake.documents_max", self.documents_max);
        check_bound("documents", n_documents, "documents", bound)
    }

    /// Whether a document may have so many bytes.
    ///
    /// # Errors
    /// `TooLarge`, naming the document.
    pub fn check_document(&self, index: usize, bytes: usize) -> Result<(), ScoreError> {
        if bytes <= self.document_bytes_max {
            return Ok(());
        }
        let bound = ("intake.document_bytes_max", self.document_bytes_max);
        check_bound(&format!("documents[{index}]"), bytes, "bytes", bound)
    }

    fn check(&self, request: &ScoreRequest) -> Result<(), ScoreError> {
        let rows = &request.rows;
        let Some(first) = rows.first() else {
            return Err(ScoreError::invalid(
                "documents",
                "is empty; send at least one document",
            ));
        };
        self.check_count(rows.len())?;
        let is_shared = rows.iter().all(|row| row.shares_query(first));
        for (index, row) in rows.iter().enumerate() {
            let is_new = index == 0 || !row.shares_query(&rows[index - 1]);
            if let Some(query) = row.query.as_deref().filter(|_| is_new) {
                let param = match is_shared {
                    true => "query".to_owned(),
                    false => format!("queries[{index}]"),
                };
                self.check_query(&param, query)?;
            }
            self.check_document(index, row.document.len())?;
        }
        Ok(())
    }

    /// Whether this may be a query; `param` is the field's name.
    ///
    /// # Errors
    /// `Invalid` for an empty one, `TooLarge`.
    pub fn check_query(&self, param: &str, query: &str) -> Result<(), ScoreError> {
        if query.trim().is_empty() {
            let why = "is empty; send the text to compare the documents with";
            return Err(ScoreError::invalid(param, why));
        }
        let bound = ("intake.query_bytes_max", self.query_bytes_max);
        check_bound(param, query.len(), "bytes", bound)
    }

    /// A request is at most as urgent as it may be. Nobody is told but the log: its scores are the same.
    pub fn lower(&self, request: &mut ScoreRequest) {
        if self.priority_max < request.priority {
            let (asked, given) = (request.priority.name(), self.priority_max.name());
            tracing::debug!(id = %request.id, asked, given, "the priority was lowered");
            request.priority = self.priority_max;
        }
    }
}

fn check_bound(
    param: &str,
    found: usize,
    unit: &str,
    (bound, max): (&str, usize),
) -> Result<(), ScoreError> {
    if found <= max {
        return Ok(());
    }
    Err(ScoreError::TooLarge {
        param: param.to_owned(),
        why: format!("{found} {unit} are more than {bound} = {max}; send less or raise the bound"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::{Form, RequestId};
    use std::time::Instant;

    #[test]
    fn a_request_is_at_most_as_urgent_as_it_may_be() {
        use Priority::{High, Low, Normal};
        for (max, asked, given) in [
            (High, High, High),
            (Normal, High, Normal),
            (Normal, Low, Low),
            (Low, Normal, Low),
        ] {
            let bounds = Bounds {
                body_bytes_max: 1,
                bytes_max: 1,
                requests_max: 1,
                documents_max: 1,
                document_bytes_max: 1,
                query_bytes_max: 1,
                priority_max: max,
            };
            let mut request = ScoreRequest {
                id: RequestId::random(),
                model: None,
                rows: Vec::new(),
                form: Form::default(),
                deadline: Instant::now(),
                priority: asked,
            };
            bounds.lower(&mut request);
            assert_eq!(request.priority, given);
        }
    }
}
