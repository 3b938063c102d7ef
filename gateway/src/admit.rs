//! Will it be in time? Decided by prediction, before anything is tokenized or computed.

use crate::generation::Generation;
use crate::score::{Answer, ScoreError, ScoreRequest, ScoreResponse};
use crate::tokenize::Admitted;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;
use tower::Service;

/// Asks the generation for room and time.
#[derive(Clone)]
pub struct Admit<S> {
    next: S,
}

/// A checked request and the generation that will answer it.
pub struct Routed {
    /// What is asked.
    pub request: ScoreRequest,
    /// By whom it is answered.
    pub generation: Arc<Generation>,
}

impl<S> Admit<S> {
    /// Admitted requests go on to `next`.
    pub fn new(next: S) -> Self {
        Self { next }
    }
}

impl<S> Service<Routed> for Admit<S>
where
    S: Service<Admitted, Response = ScoreResponse, Error = ScoreError, Future = Answer>,
{
    type Response = ScoreResponse;
    type Error = ScoreError;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ScoreError>> {
        self.next.poll_ready(context)
    }

    fn call(
        &mut self,
        Routed {
            request,
            generation,
        }: Routed,
    ) -> Answer {
        // The query stands in every row.
        let (query, texts) = (request.query.len(), &request.documents);
        let n_bytes = texts.iter().map(|document| document.len() + query).sum();
        let tokens_max = texts.len() * generation.tokenizer().row_tokens_max();
        match generation.line().admit(
            texts.len(),
            n_bytes,
            tokens_max,
            request.deadline,
            Instant::now(),
        ) {
            Ok(permit) => self.next.call(Admitted {
                request,
                generation,
                permit,
            }),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }
}
