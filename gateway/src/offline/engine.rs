//! The model, loaded as for serving, and asked with patience: who waits for a file's end is not refused.

use super::Scoring;
use super::journal::Facts;
use crate::app::StartError;
use crate::app::core::{Core, Reuse};
use crate::cache::Cache;
use crate::config::Config;
use crate::generation::{Generation, Slots};
use crate::intake::Intake;
use crate::model::hub;
use crate::runtime::Runtime;
use crate::score::{
    Activation, Priority, RequestId, ScoreError, ScoreRequest, ScoreResponse, Texts,
};
use crate::windows::Window;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tower::ServiceExt as _;

/// No group takes as long; admission compares with it, so that nothing is refused for want of time.
const PATIENCE: Duration = Duration::from_secs(24 * 3_600);
/// Until a full queue is asked again.
const QUEUE_FULL: Duration = Duration::from_millis(20);
/// How often an empty queue may refuse the same rows before they are taken for too many.
const REFUSALS_MAX: usize = 3;
/// A backend that is restarted comes back within it, or never.
const RESTART_MAX: Duration = Duration::from_secs(60);
/// The workers are idle when the last group is done; they only have to notice.
const JOIN_MAX: Duration = Duration::from_secs(5);

/// Scores rows of texts.
pub(super) struct Engine {
    intake: Intake<Window<Cache>>,
    generation: Arc<Generation>,
    slots: Arc<Slots>,
    runtime: Runtime,
    n_workers: usize,
    scoring: Scoring,
    /// Requests that are being answered.
    asked: AtomicUsize,
    counts: Counts,
}

/// What was done so far.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) tokens: AtomicU64,
    /// Rows whose document was cut, and requests whose query was.
    pub(super) cut: AtomicU64,
}

/// A row's logits, or why it has none.
pub(super) type Row = Result<Vec<f32>, String>;

// === impl Engine ===

impl Engine {
    /// Loads the model and waits until it is warm.
    ///
    /// # Errors
    /// A setting that is wrong, several models, or one that does not load.
    pub(super) async fn open(
        config: &Config,
        hub: hub::Settings,
        scoring: Scoring,
    ) -> Result<Arc<Self>, StartError> {
        for notice in config.notices() {
            tracing::warn!("{notice}");
        }
        if config.models().sources.len() > 1 {
            let why = "one model scores; name one";
            return Err(StartError::Config(config.refuse("model.sources", why)));
        }
        let core = Core::new(config, hub, Reuse::Alone)?;
        let (intake, runtime) = (core.intake.clone(), core.runtime.clone());
        let (slots, n_workers) = (Arc::clone(&core.slots), core.threads.workers);
        let generation = core.load_first().await?;
        Ok(Arc::new(Self {
            intake,
            generation,
            slots,
            runtime,
            n_workers,
            scoring,
            asked: AtomicUsize::new(0),
            counts: Counts::default(),
        }))
    }

    /// Threads and tasks are started by it.
    pub(super) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Batches that are computed at the same time.
    pub(super) fn n_workers(&self) -> usize {
        self.n_workers
    }

    /// The names of the logits of a row, in their order.
    pub(super) fn labels(&self) -> &[String] {
        &self.generation.facts().info.labels
    }

    /// What scores depend on, beside texts and how they are scored.
    pub(super) fn facts(&self) -> Facts {
        let generation = &self.generation;
        let facts = generation.facts();
        let hex = |bytes: &[u8; 32]| blake3::Hash::from_bytes(*bytes).to_hex().to_string();
        let facts = [
            ("model.source", facts.source.clone()),
            ("model.files", hex(&facts.info.fingerprint)),
            ("model.plugin", facts.plugin.0.clone()),
            ("model.dtype", facts.description.dtype.clone()),
            ("model.numerics", facts.description.numerics_id.clone()),
            (
                "model.activation",
                generation.activation().name().to_owned(),
            ),
            (
                "model.max_length",
                generation.tokenizer().row_tokens_max().to_string(),
            ),
            // Of all that, and of how rows are made.
            ("model.identity", hex(generation.identity().as_bytes())),
        ];
        facts.map(|(name, fact)| (name.to_owned(), fact)).into()
    }

    pub(super) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// What makes scores of logits.
    pub(super) fn activation(&self) -> Activation {
        match self.scoring.is_raw {
            true => Activation::Identity,
            false => self.generation.activation(),
        }
    }

    /// Scores rows, in their order. What fails is tried again in halves, so that a row that cannot be scored
    /// takes no other along.
    ///
    /// # Errors
    /// Nothing can be scored any more.
    pub(super) fn score(
        self: Arc<Self>,
        rows: Vec<Texts>,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<Row>, StartError>> + Send>> {
        Box::pin(async move {
            let n_rows = rows.len();
            if n_rows == 0 {
                return Ok(Vec::new());
            }
            match self.ask(&rows).await {
                Ok(response) if !self.is_too_long(&response, n_rows) => Ok(self.rows(&response)),
                Err(error) if is_final(&error) => Err(StartError::Other(error.to_string())),
                Err(error) if n_rows == 1 => Ok(vec![Err(words(&error))]),
                Ok(_) | Err(_) => {
                    let (mut first, second) = (rows, n_rows / 2);
                    let second = first.split_off(second);
                    let mut scored = Arc::clone(&self).score(first).await?;
                    scored.extend(self.score(second).await?);
                    Ok(scored)
                }
            }
        })
    }

    /// Asks until there is room.
    async fn ask(&self, rows: &[Texts]) -> Result<ScoreResponse, ScoreError> {
        let started = Instant::now();
        let mut n_refused = 0;
        loop {
            let request = ScoreRequest {
                id: RequestId::random(),
                model: None,
                rows: rows.to_vec(),
                form: self.scoring.form.clone(),
                deadline: Instant::now() + PATIENCE,
                priority: Priority::default(),
            };
            self.asked.fetch_add(1, Ordering::Relaxed);
            let answer = self.intake.clone().oneshot(request).await;
            let n_others = self.asked.fetch_sub(1, Ordering::Relaxed) - 1;
            match answer {
                Err(ScoreError::Overloaded { .. }) if n_others > 0 => n_refused = 0,
                Err(ScoreError::Overloaded { .. }) if n_refused < REFUSALS_MAX => n_refused += 1,
                Err(ScoreError::Unavailable { .. }) if started.elapsed() < RESTART_MAX => {}
                answer => return answer,
            }
            tokio::time::sleep(QUEUE_FULL).await;
        }
    }

    /// Which of several queries was cut the answer does not say: they are asked for one by one.
    fn is_too_long(&self, response: &ScoreResponse, n_rows: usize) -> bool {
        self.scoring.is_strict && response.query_truncated && n_rows > 1
    }

    fn rows(&self, response: &ScoreResponse) -> Vec<Row> {
        let n_cut = response.truncated.len() + usize::from(response.query_truncated);
        let counts = &self.counts;
        counts
            .tokens
            .fetch_add(response.n_tokens, Ordering::Relaxed);
        counts.cut.fetch_add(n_cut as u64, Ordering::Relaxed);
        let logits = response.logits.chunks_exact(response.n_labels);
        let mut rows: Vec<Row> = logits.map(|logits| Ok(logits.to_vec())).collect();
        if self.scoring.is_strict {
            let too_long = |text: &str| {
                let max = self.generation.tokenizer().row_tokens_max();
                Err(format!(
                    "{text} is too long for the model, which takes {max} tokens in all; give a shorter one, \
                     or --overflow truncate"
                ))
            };
            for &index in &response.truncated {
                rows[index as usize] = too_long("the document");
            }
            if response.query_truncated {
                rows.fill(too_long("the query"));
            }
        }
        rows
    }

    /// Ends the workers.
    pub(super) async fn close(&self) {
        let slots = Arc::clone(&self.slots);
        let stop = move || slots.shut_down(Instant::now() + JOIN_MAX);
        if self.runtime.blocking(stop).await.is_err() {
            tracing::error!("the workers could not be waited for");
        }
    }
}

/// Without the place among the rows that were asked for together.
fn words(error: &ScoreError) -> String {
    match error {
        ScoreError::Invalid { param, why } | ScoreError::TooLarge { param, why }
            if param.starts_with("documents") =>
        {
            why.clone()
        }
        error => error.to_string(),
    }
}

/// What no other row would get an answer to either.
fn is_final(error: &ScoreError) -> bool {
    match error {
        ScoreError::Unavailable { .. }
        | ScoreError::UnknownModel { .. }
        | ScoreError::DeadlinePassed { .. }
        | ScoreError::Cancelled
        | ScoreError::Internal { .. } => true,
        ScoreError::Invalid { .. }
        | ScoreError::TooLarge { .. }
        | ScoreError::Overloaded { .. }
        | ScoreError::Backend { .. } => false,
    }
}
