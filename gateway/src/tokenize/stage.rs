//! The last stage before the queue: tokenize and push.

use super::{Haste, Pool};
use crate::generation::Generation;
use crate::generation::line::{Permit, Ticket};
use crate::generation::work::Work;
use crate::model::Cut;
use crate::runtime::now;
use crate::score::ScoreError;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tower::Service;

/// Tokenizes on the pool's threads and hands the rows to their generation.
#[derive(Clone)]
pub struct Tokenize {
    pool: Arc<Pool>,
}

/// Rows that are worth computing, with room kept for them.
pub struct Admitted {
    /// Compared with each document.
    pub query: String,
    /// One for each row.
    pub documents: Vec<Arc<String>>,
    /// The rows.
    pub work: Arc<Work>,
    /// By whom they are computed.
    pub generation: Arc<Generation>,
    /// The right to a place in the queue.
    pub permit: Permit,
}

impl Tokenize {
    /// Tokenizes on `pool`.
    pub fn new(pool: Arc<Pool>) -> Self {
        Self { pool }
    }
}

impl Service<Admitted> for Tokenize {
    type Response = Ticket;
    type Error = ScoreError;
    type Future = Pin<Box<dyn Future<Output = Result<Ticket, ScoreError>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), ScoreError>> {
        // Admission has decided; there is nothing to wait for.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, admitted: Admitted) -> Self::Future {
        Box::pin(push(Arc::clone(&self.pool), admitted))
    }
}

async fn push(pool: Arc<Pool>, admitted: Admitted) -> Result<Ticket, ScoreError> {
    let Admitted {
        query,
        documents,
        work,
        generation,
        permit,
    } = admitted;
    let started = now();
    let documents_bytes: usize = documents.iter().map(|document| document.len()).sum();
    let (n_documents, query_bytes) = (documents.len(), query.len());
    let tokenizer = Arc::clone(generation.tokenizer());
    let haste = if generation.line().is_idle() {
        Haste::All
    } else {
        Haste::Half
    };
    let tokenized = pool
        .tokenize(tokenizer, query, documents, Arc::clone(&work), haste)
        .await?;
    work.note_tokenized(now() - started);
    let (line, rows) = (generation.line(), &tokenized.rows);
    line.learn_text_time(documents_bytes + query_bytes, tokenized.took);
    // What was cut, or passed over, says nothing about the ratio.
    let is_whole =
        (0..rows.len()).all(|row| rows.row_len(row) > 0 && rows.cut(row) == Cut::default());
    if is_whole {
        let row_bytes = documents_bytes + n_documents * query_bytes;
        line.learn_text(n_documents, row_bytes, rows.input_ids.len());
    }
    Ok(permit.push(work, tokenized.rows, now()))
}
