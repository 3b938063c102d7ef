//! Long documents by their best part: where a request asks for it, a document that is longer than a row is scored
//! in windows, and its score is the best of theirs.
//!
//! To the stages behind this one a window is a document like any other: it is kept, shared and computed as one.

use crate::cache::Routed;
use crate::generation::Generation;
use crate::model::Windows;
use crate::runtime::{Runtime, now};
use crate::score::{Answer, ScoreError, ScoreRequest, ScoreResponse, Texts};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use tokio::sync::Semaphore;
use tower::{Service, ServiceExt as _};

/// Takes documents apart and puts their scores together.
#[derive(Clone)]
pub struct Window<S> {
    next: S,
    /// Rows that a request may have in all.
    rows_max: usize,
    /// To take documents apart takes a processor, as to tokenize them does.
    turns: Arc<Semaphore>,
    runtime: Runtime,
}

/// Says that nobody waits any more, when whoever waited goes away.
#[derive(Default)]
struct Leaving(Arc<AtomicBool>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The windows of one document among those of all.
struct Part {
    rows: Range<usize>,
    n_tokens: u64,
    is_cut: bool,
    is_query_cut: bool,
}

// === impl Window ===

impl<S> Window<S> {
    /// Requests go on to `next` with at most `rows_max` rows; `n_threads` of them are taken apart at a time.
    pub fn new(next: S, rows_max: usize, n_threads: usize, runtime: Runtime) -> Self {
        Self {
            next,
            rows_max,
            turns: Arc::new(Semaphore::new(n_threads.max(1))),
            runtime,
        }
    }
}

impl<S> Window<S>
where
    S: Service<Routed, Response = ScoreResponse, Error = ScoreError, Future = Answer>
        + Clone
        + Send
        + 'static,
{
    async fn answer(self, routed: Routed) -> Result<ScoreResponse, ScoreError> {
        let Routed {
            mut request,
            generation,
        } = routed;
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let leaving = Leaving::default();
        let (flag, rows_max) = (Arc::clone(&leaving.0), self.rows_max);
        let taken_apart = self.runtime.blocking(move || {
            let _turn = turn;
            let parts = take_apart(&mut request, &generation, rows_max, &flag)?;
            Ok::<_, ScoreError>((request, generation, parts))
        });
        let why = |error: tokio::task::JoinError| error.to_string();
        let (request, generation, parts) = taken_apart
            .await
            .map_err(|error| ScoreError::Internal { why: why(error) })??;
        let whole = self.next.clone().oneshot(Routed {
            request,
            generation,
        });
        Ok(put_together(whole.await?, &parts))
    }
}

/// Puts the windows of each document in its place.
fn take_apart(
    request: &mut ScoreRequest,
    generation: &Generation,
    rows_max: usize,
    is_abandoned: &AtomicBool,
) -> Result<Vec<Part>, ScoreError> {
    let (tokenizer, form) = (generation.tokenizer(), &request.form);
    let (mut rows, mut parts) = (Vec::new(), Vec::new());
    let mut last: Option<(&Texts, _)> = None;
    let started = now();
    for (index, row) in request.rows.iter().enumerate() {
        if is_abandoned.load(Ordering::Relaxed) {
            return Err(ScoreError::Cancelled);
        }
        // Nobody waits for what is late.
        if request.deadline <= now() {
            let after = request.deadline.saturating_duration_since(started);
            return Err(ScoreError::DeadlinePassed { after });
        }
        let query = match last.take() {
            Some((other, query)) if row.shares_query(other) => query,
            _ => tokenizer.query(row.query.as_deref(), form)?,
        };
        let Windows {
            parts: windows,
            n_tokens,
            is_cut,
        } = tokenizer.windows(&query, &row.document)?;
        let start = rows.len();
        let is_one = windows.len() == 1;
        rows.extend(windows.into_iter().map(|bytes| Texts {
            query: row.query.clone(),
            document: match bytes.len() == row.document.len() {
                true => Arc::clone(&row.document),
                false => row.document[bytes].into(),
            },
        }));
        if rows_max < rows.len() {
            let why = format!(
                "with it there are more than queue.rows_max = {rows_max} windows; send fewer documents, or shorter ones"
            );
            let param = format!("documents[{index}]");
            return Err(ScoreError::TooLarge { param, why });
        }
        parts.push(Part {
            rows: start..rows.len(),
            n_tokens: (query.n_tokens() + n_tokens) as u64,
            is_cut,
            is_query_cut: query.is_cut() && !is_one,
        });
        last = Some((row, query));
    }
    request.rows = rows;
    Ok(parts)
}

/// Each document's best window, by the score that clients see.
fn put_together(mut whole: ScoreResponse, parts: &[Part]) -> ScoreResponse {
    let n_labels = whole.n_labels;
    let scores = whole.scores(false);
    let (of_windows, truncated) = (
        std::mem::take(&mut whole.logits),
        std::mem::take(&mut whole.truncated),
    );
    let mut response = ScoreResponse {
        logits: Vec::with_capacity(parts.len() * n_labels),
        n_tokens: 0,
        truncated: Vec::new(),
        windows: Vec::new(),
        ..whole
    };
    for (index, part) in parts.iter().enumerate() {
        let rows = part.rows.clone();
        // Of equal ones the first.
        let best = rows
            .clone()
            .rev()
            .max_by(|&a, &b| scores[a].total_cmp(&scores[b]));
        let best = best.unwrap_or(rows.start);
        let logits = &of_windows[best * n_labels..(best + 1) * n_labels];
        response.logits.extend_from_slice(logits);
        response.n_tokens += part.n_tokens;
        response.query_truncated |= part.is_query_cut;
        let n_windows = rows.len() as u32;
        if 1 < n_windows {
            response.windows.push((index as u32, n_windows));
        }
        // A window that was a little longer than it was within its document has lost what the next one has.
        let is_last_cut = truncated.binary_search(&(rows.end as u32 - 1)).is_ok();
        if part.is_cut || is_last_cut {
            response.truncated.push(index as u32);
        }
    }
    response
}

impl<S> Service<Routed> for Window<S>
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

    fn call(&mut self, routed: Routed) -> Answer {
        if routed.request.form.windows {
            Box::pin(self.clone().answer(routed))
        } else {
            self.next.call(routed)
        }
    }
}
