//! Will it be in time? Decided by prediction, before anything is tokenized or computed.

use crate::generation::Generation;
use crate::generation::plan::Ask;
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
        let ask = Ask {
            rows: request.documents.len(),
            row_bytes: request.row_bytes(),
            text_bytes: request.text_bytes(),
            tokens_max: request.documents.len() * generation.tokenizer().row_tokens_max(),
            deadline: request.deadline,
            priority: request.priority,
        };
        match generation.line().admit(&ask, Instant::now()) {
            Ok(permit) => self.next.call(Admitted {
                request,
                generation,
                permit,
            }),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }
}
