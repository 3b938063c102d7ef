//! The last stage before the queue: tokenize, push, wait for the scores.

use super::Pool;
use crate::generation::Generation;
use crate::generation::line::Permit;
use crate::score::{Answer, ScoreError, ScoreRequest, ScoreResponse, Times};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;
use tower::Service;

/// Tokenizes on the pool's threads and hands the rows to the request's generation.
#[derive(Clone)]
pub struct Tokenize {
    pool: Arc<Pool>,
}

/// A request that is worth finishing, with room kept for its rows.
pub struct Admitted {
    /// What is asked.
    pub request: ScoreRequest,
    /// By whom it is answered.
    pub generation: Arc<Generation>,
    /// The right to its place in the queue.
    pub permit: Permit,
}

impl Tokenize {
    /// Tokenizes on `pool`.
    pub fn new(pool: Arc<Pool>) -> Self {
        Self { pool }
    }
}

impl Service<Admitted> for Tokenize {
    type Response = ScoreResponse;
    type Error = ScoreError;
    type Future = Answer;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), ScoreError>> {
        // Admission has decided; there is nothing to wait for.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, admitted: Admitted) -> Answer {
        Box::pin(score(Arc::clone(&self.pool), admitted))
    }
}

async fn score(
    pool: Arc<Pool>,
    Admitted {
        request,
        generation,
        permit,
    }: Admitted,
) -> Result<ScoreResponse, ScoreError> {
    let started = Instant::now();
    let n_documents = request.documents.len();
    let (row_bytes, text_bytes) = (request.row_bytes(), request.text_bytes());
    let tokenized = pool
        .tokenize(
            Arc::clone(generation.tokenizer()),
            request.query,
            request.documents,
        )
        .await?;
    let tokenize = started.elapsed();
    let n_tokens = tokenized.rows.input_ids.len();
    let line = generation.line();
    line.learn_text_time(text_bytes, tokenized.took);
    // What was cut says nothing about the ratio.
    if tokenized.truncated.is_empty() && !tokenized.query_truncated {
        line.learn_text(n_documents, row_bytes, n_tokens);
    }

    let ticket = permit.push(
        tokenized.rows,
        generation.n_labels(),
        request.deadline,
        Instant::now(),
    );
    let scored = ticket.outcome().await?;
    let times = Times {
        tokenize,
        ..scored.times
    };
    let stages = [
        ("tokenize", times.tokenize),
        ("queue", times.queue),
        ("inference", times.inference),
    ];
    for (stage, took) in stages {
        generation.metrics().stage(stage, took);
    }
    Ok(ScoreResponse {
        model: generation.name(),
        logits: scored.logits,
        n_labels: generation.n_labels(),
        activation: generation.activation(),
        n_tokens: n_tokens as u64,
        truncated: tokenized.truncated,
        query_truncated: tokenized.query_truncated,
        times,
    })
}
