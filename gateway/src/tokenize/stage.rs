//! The last stage before the queue: tokenize and push.

use super::{Haste, Pool};
use crate::generation::Generation;
use crate::generation::line::{Permit, Ticket};
use crate::generation::work::Work;
use crate::model::Cut;
use crate::runtime::now;
use crate::score::{Form, ScoreError, Texts, text_bytes};
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
    /// Texts of each row.
    pub rows: Vec<Texts>,
    /// How they become tokens.
    pub form: Form,
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
        rows,
        form,
        work,
        generation,
        permit,
    } = admitted;
    let started = now();
    let (n_rows, text_bytes) = (rows.len(), text_bytes(&rows));
    let row_bytes: usize = rows.iter().map(Texts::bytes).sum();
    let tokenizer = Arc::clone(generation.tokenizer());
    let haste = if generation.line().is_idle() {
        Haste::All
    } else {
        Haste::Half
    };
    let tokenized = pool
        .tokenize(tokenizer, rows, form, Arc::clone(&work), haste)
        .await?;
    work.note_tokenized(now() - started);
    let (line, rows) = (generation.line(), &tokenized.rows);
    line.learn_text_time(text_bytes, tokenized.took);
    // What was cut, or passed over, says nothing about the ratio.
    let is_whole =
        (0..rows.len()).all(|row| rows.row_len(row) > 0 && rows.cut(row) == Cut::default());
    if is_whole {
        line.learn_text(n_rows, row_bytes, rows.input_ids.len());
    }
    Ok(permit.push(work, tokenized.rows, now()))
}
