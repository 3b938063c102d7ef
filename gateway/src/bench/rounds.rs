//! The measured part: all requests of a workload go through a stage, a fixed number of them at a time.

use super::Stage;
use super::workload::Request;
use crate::cache::{Asker, Cache};
use crate::generation::Generation;
use crate::generation::plan::Ask;
use crate::generation::work::{Sink, Work};
use crate::intake::Intake;
use crate::load::Totals;
use crate::model::TokenRows;
use crate::runtime::Runtime;
use crate::score::{Form, Priority, RequestId, ScoreError, ScoreRequest, Times};
use crate::tokenize::{Haste, Pool};
use crate::windows::Window;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tower::ServiceExt as _;

/// No round takes as long; admission compares with it, so that nothing is refused for want of time.
const PATIENCE: Duration = Duration::from_secs(24 * 3_600);

/// What a stage is measured with.
pub(super) struct Driver {
    pub(super) stage: Stage,
    pub(super) in_flight: usize,
    pub(super) requests: Vec<Request>,
    /// Of each request.
    pub(super) rows: Vec<TokenRows>,
    pub(super) generation: Arc<Generation>,
    pub(super) intake: Intake<Window<Cache>>,
    pub(super) pool: Arc<Pool>,
    pub(super) runtime: Runtime,
}

/// One pass over the workload.
pub(super) struct Round {
    /// From the first request's start to the last one's answer.
    pub(super) took: Duration,
    /// Of each request, in the workload's order.
    pub(super) answers: Vec<Answer>,
    /// What the generation did meanwhile.
    pub(super) done: Totals,
}

/// What came of one request.
pub(super) struct Answer {
    /// Documents × labels; none where nothing is scored.
    pub(super) logits: Vec<f32>,
    /// Where the time went.
    pub(super) times: Times,
    /// From the call to the answer.
    pub(super) took: Duration,
}

/// What a stage is called with. Made before the clock runs: copying texts is no part of any stage.
enum Call {
    Rows(TokenRows),
    Texts(Request),
}

/// A round while it runs, shared by its lanes.
struct Running {
    driver: Arc<Driver>,
    calls: Mutex<std::iter::Enumerate<std::vec::IntoIter<Call>>>,
    answers: Mutex<Vec<Option<Result<Answer, ScoreError>>>>,
}

// === impl Driver ===

impl Driver {
    /// Sends every request once: each lane has one request in flight and takes the next one when that is
    /// answered.
    ///
    /// # Errors
    /// The first request's that failed, with its place.
    pub(super) async fn round(self: &Arc<Self>) -> Result<Round, String> {
        let calls: Vec<_> = match self.stage {
            Stage::Inference => self.rows.iter().cloned().map(Call::Rows).collect(),
            Stage::Tokenize | Stage::Pipeline => {
                self.requests.iter().cloned().map(Call::Texts).collect()
            }
        };
        let running = Arc::new(Running {
            driver: Arc::clone(self),
            answers: Mutex::new(calls.iter().map(|_| None).collect()),
            calls: Mutex::new(calls.into_iter().enumerate()),
        });
        let before = self.generation.line().totals();
        let started = Instant::now();
        let lanes: Vec<_> = (0..self.in_flight)
            .map(|_| self.runtime.task(Arc::clone(&running).lane()))
            .collect();
        for lane in lanes {
            lane.await
                .map_err(|error| format!("a task of the bench died: {error}"))?;
        }
        let took = started.elapsed();
        let answers = std::mem::take(&mut *lock(&running.answers));
        let answers = answers.into_iter().enumerate().map(|(idx, answer)| {
            let failed = |why: &dyn std::fmt::Display| {
                format!("request {} of the workload failed: {why}", idx + 1)
            };
            match answer {
                Some(Ok(answer)) => Ok(answer),
                Some(Err(error)) => Err(failed(&error)),
                None => Err(failed(&"nobody answered")),
            }
        });
        Ok(Round {
            took,
            answers: answers.collect::<Result<_, String>>()?,
            done: self.generation.line().totals().since(&before),
        })
    }

    async fn call(&self, idx: usize, call: Call) -> Result<Answer, ScoreError> {
        let started = Instant::now();
        let (logits, times) = match (self.stage, call) {
            (_, Call::Rows(rows)) => self.score(idx, rows).await?,
            (Stage::Tokenize, Call::Texts(request)) => self.tokenize(idx, request).await?,
            (_, Call::Texts(request)) => {
                let request = ScoreRequest {
                    id: RequestId::random(),
                    model: None,
                    rows: request.into_texts(),
                    form: Form::default(),
                    deadline: started + PATIENCE,
                    priority: Priority::default(),
                };
                let response = self.intake.clone().oneshot(request).await?;
                (response.logits, response.times)
            }
        };
        Ok(Answer {
            logits,
            times,
            took: started.elapsed(),
        })
    }

    /// From the queue's door on: what `tokenize` does once it has tokenized.
    async fn score(&self, idx: usize, rows: TokenRows) -> Result<(Vec<f32>, Times), ScoreError> {
        let (line, now) = (self.generation.line(), Instant::now());
        let deadline = now + PATIENCE;
        let ask = Ask {
            rows: rows.len(),
            row_bytes: self.requests[idx].row_bytes(),
            // There is nothing left to tokenize.
            text_bytes: 0,
            tokens_max: rows.input_ids.len(),
            deadline,
            priority: Priority::default(),
        };
        let permit = line.admit(&ask, now)?;
        let (asker, outcome) = Asker::new(vec![None; rows.len()]);
        let sink: Arc<dyn Sink> = asker;
        let work = Work::new(
            rows.len(),
            ask.priority,
            deadline,
            now,
            Arc::downgrade(&sink),
        );
        let _ticket = permit.push(work, rows, now);
        match outcome.await {
            Ok(Ok(answered)) => {
                let pairs = answered.pairs.iter();
                let logits = pairs.flat_map(|pair| pair.logits.iter().copied());
                Ok((logits.collect(), answered.times))
            }
            Ok(Err(failed)) => Err(failed.error),
            Err(_) => Err(ScoreError::Cancelled),
        }
    }

    async fn tokenize(
        &self,
        idx: usize,
        request: Request,
    ) -> Result<(Vec<f32>, Times), ScoreError> {
        let started = Instant::now();
        let tokenizer = Arc::clone(self.generation.tokenizer());
        let texts = request.into_texts();
        let work = unheard(texts.len());
        let tokenized = self
            .pool
            .tokenize(tokenizer, texts, Form::default(), work, Haste::All)
            .await?;
        let times = Times {
            tokenize: started.elapsed(),
            ..Times::default()
        };
        if tokenized.rows == self.rows[idx] {
            return Ok((Vec::new(), times));
        }
        Err(ScoreError::Internal {
            why: "its tokens are not those of the first time".to_owned(),
        })
    }
}

// === impl Running ===

impl Running {
    async fn lane(self: Arc<Self>) {
        loop {
            // Not in the `while let`: the lock would be held while the call waits.
            let next = lock(&self.calls).next();
            let Some((idx, call)) = next else { return };
            let answer = self.driver.call(idx, call).await;
            lock(&self.answers)[idx] = Some(answer);
        }
    }
}

/// Rows that are wanted for ever, and whose outcomes nobody hears.
pub(super) fn unheard(n_rows: usize) -> Arc<Work> {
    let now = Instant::now();
    Work::new(
        n_rows,
        Priority::default(),
        now + PATIENCE,
        now,
        Weak::<Asker>::new(),
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing can be left half-done in it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
