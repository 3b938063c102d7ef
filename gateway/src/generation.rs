//! A model as it serves: tokenizer, queue, backend and workers, replaced as a whole by a swap.

pub mod backend;
pub mod batch;
pub mod cost;
mod crew;
mod crowd;
mod devices;
pub mod forecast;
mod golden;
pub mod hold;
mod identity;
pub mod line;
mod plain;
pub mod plan;
pub mod probation;
pub mod queue;
mod shadow;
mod slots;
pub mod text;
pub mod work;
mod worker;

pub use backend::Reopen;
pub use crew::WorkerBounds;
pub use golden::{Agreement, Golden, Tolerance, golden_rows};
pub use identity::Identity;
pub use plain::{Speed, measure};
pub use shadow::{Chosen, Shadow, Shadowed};
pub use slots::Slots;

use crate::load::ModelState;
use crate::model::{ModelInfo, Tokenizer};
use crate::runtime::Runtime;
use crate::score::{Activation, ScoreError};
use crate::telemetry::ModelMetrics;
use backend::Shared;
use backend_api::{Description, Fault, OpenBackend, OpenRequest, OpenWorker};
use crew::{Crew, Members};
use devices::Devices;
use line::Line;
use plain::score_plain;
use queue::{BatchBounds, QueueBounds};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// Tokens of a row that tells whether a backend is sound.
const PLAIN_TOKENS: usize = 16;

/// A model that serves.
pub struct Generation {
    parts: Arc<Facts>,
    proof: OnceLock<String>,
    is_failing: AtomicBool,
    tokenizer: Arc<Tokenizer>,
    line: Arc<Line>,
    identity: Identity,
    crew: Arc<Crew>,
    devices: Arc<Devices>,
}

/// What a generation is, constant for its life.
pub struct Facts {
    /// What requests name.
    pub name: Arc<str>,
    /// Where the model came from, as the user wrote it.
    pub source: String,
    /// Counts up with every swap, from 1.
    pub number: u64,
    /// What the model's folder says.
    pub info: ModelInfo,
    /// What turns logits into scores: the model's own activation unless configured.
    pub activation: Activation,
    /// The plugin's name and version.
    pub plugin: (String, String),
    /// The SHA-256 of the plugin's file.
    pub image: String,
    /// Why this plugin.
    pub chosen: String,
    /// What the plugin was asked to open.
    pub request: OpenRequest,
    /// What it opened.
    pub description: Description,
}

/// What a generation is started with.
pub struct Start {
    /// What it is.
    pub facts: Facts,
    /// Opened by the plugin.
    pub backend: OpenBackend,
    /// Opens the same again after a panic.
    pub reopen: Reopen,
    /// The model's.
    pub tokenizer: Tokenizer,
    /// Worker threads.
    pub n_workers: usize,
    /// What becomes of a batch that fails.
    pub worker: WorkerBounds,
    /// What may wait.
    pub queue: QueueBounds,
    /// What one batch may hold, at most what the backend can take.
    pub batch: BatchBounds,
    /// The model's instruments.
    pub metrics: ModelMetrics,
}

// === impl Facts ===

impl Facts {
    fn identity(&self, tokenizer: &Tokenizer) -> Identity {
        let row_tokens_max = tokenizer.row_tokens_max();
        Identity::new(&[
            &self.info.fingerprint,
            self.description.numerics_id.as_bytes(),
            &self.description.n_labels.to_le_bytes(),
            &(row_tokens_max as u64).to_le_bytes(),
            &tokenizer.frame(),
        ])
    }
}

// === impl Generation ===

impl Generation {
    /// Warms a worker up, then starts the threads.
    ///
    /// # Errors
    /// The plugin's own, or that the system has no more threads.
    pub fn start(start: Start, runtime: &Runtime) -> Result<Arc<Self>, Fault> {
        let limits = start.backend.limits();
        let batch = BatchBounds {
            rows_max: start.batch.rows_max.min(limits.rows_max),
            tokens_max: start.batch.tokens_max.min(limits.tokens_max),
            ..start.batch
        };
        let row_tokens_max = start.tokenizer.row_tokens_max();
        let facts = start.facts;
        let n_workers_max = facts.description.n_workers_max as usize;
        let line = Arc::new(Line::new(start.queue, batch, start.tokenizer.n_special()));
        let plain = start.tokenizer.sample_row(PLAIN_TOKENS.min(row_tokens_max));
        let crew = Arc::new(Crew {
            plain: plain.map_err(Fault::bad_model)?,
            line: Arc::clone(&line),
            metrics: Arc::new(start.metrics),
            limits,
            n_labels: facts.description.n_labels as usize,
            name: Arc::clone(&facts.name),
            shared: Shared::new(start.backend, start.reopen),
            bounds: start.worker,
            n_workers: start.n_workers.min(n_workers_max).max(1),
            n_workers_max,
            runtime: runtime.clone(),
            members: Mutex::new(Members::default()),
        });
        let generation = Self {
            line,
            identity: facts.identity(&start.tokenizer),
            tokenizer: Arc::new(start.tokenizer),
            crew,
            devices: Devices::new(Arc::clone(&facts.name)),
            parts: Arc::new(facts),
            proof: OnceLock::new(),
            is_failing: AtomicBool::new(false),
        };
        // All workers stand before the first thread runs: none is left behind by a failure.
        let mut workers = (0..generation.crew.n_workers)
            .map(|_| generation.crew.shared.worker())
            .collect::<Result<Vec<_>, Fault>>()?;
        generation.warm_up(workers[0].worker(), &batch)?;
        generation.crew.start(workers).map_err(|error| {
            generation.close();
            Fault::internal(format!("no thread for a worker: {error}"))
        })?;
        generation.devices.watch(&generation.crew, runtime);
        Ok(Arc::new(generation))
    }

    /// Runs the backend through the sizes that matter, so that the first request finds memory touched
    /// and the cost model seeded: one short row, the longest row, and a full batch of passages.
    fn warm_up(&self, worker: &mut OpenWorker, batch: &BatchBounds) -> Result<(), Fault> {
        let longest = self.tokenizer.row_tokens_max().min(batch.tokens_max);
        let passages = (batch.tokens_max / 2 / 64).clamp(1, 32);
        let shapes = [
            (1, 16),
            (1, longest),
            (passages, 64.min(longest)),
            (1, 16),
            (4, 64.min(longest)),
        ];
        for (n_rows, n_tokens) in shapes {
            let n_rows = n_rows
                .min(batch.rows_max)
                .min(batch.tokens_max / n_tokens)
                .max(1);
            let row = self
                .tokenizer
                .sample_row(n_tokens)
                .map_err(Fault::bad_model)?;
            let (size, took) = score_plain(worker, &row, n_rows)?;
            self.line.learn(size, took);
        }
        Ok(())
    }

    /// What it is, constant for its life.
    pub fn facts(&self) -> &Arc<Facts> {
        &self.parts
    }

    /// What its scores were compared with, and how they agreed. The first word stands.
    pub fn note_proof(&self, proof: String) {
        let _ = self.proof.set(proof);
    }

    /// Whether its backend fails batch after batch.
    pub fn is_failing(&self) -> bool {
        self.is_failing.load(Ordering::Relaxed)
    }

    /// Says whether it does.
    pub fn set_failing(&self, is_failing: bool) {
        self.is_failing.store(is_failing, Ordering::Relaxed);
    }

    /// What requests name.
    pub fn name(&self) -> Arc<str> {
        Arc::clone(&self.parts.name)
    }

    /// Logits for each row.
    pub fn n_labels(&self) -> usize {
        self.parts.description.n_labels as usize
    }

    /// What turns logits into scores.
    pub fn activation(&self) -> Activation {
        self.parts.activation
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// What all of its scores depend on.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// A request has been answered, well or not.
    pub fn count_answer(&self) {
        self.line.count_answer();
    }

    /// The queue and all that is decided by it.
    pub fn line(&self) -> &Arc<Line> {
        &self.line
    }

    /// The model's instruments.
    pub fn metrics(&self) -> &Arc<ModelMetrics> {
        &self.crew.metrics
    }

    /// A snapshot.
    pub fn state(&self) -> ModelState {
        let Facts {
            info,
            description,
            plugin,
            image,
            ..
        } = &*self.parts;
        let load = self.line.load();
        ModelState {
            name: self.name(),
            source: self.parts.source.clone(),
            revision: info.revision.clone().unwrap_or_default(),
            architecture: info.architecture.clone(),
            labels: info.labels.clone(),
            activation: self.activation(),
            num_parameters: Some(info.num_parameters).filter(|n| *n > 0),
            row_tokens_max: self.tokenizer.row_tokens_max(),
            plugin: plugin.clone(),
            image: image.clone(),
            chosen: self.parts.chosen.clone(),
            device: description.device.clone(),
            dtype: description.dtype.clone(),
            kernel: description.kernel.clone(),
            numerics_id: description.numerics_id.clone(),
            generation: self.parts.number,
            proof: self.proof.get().cloned(),
            state: match (self.line.is_closed(), load.workers) {
                (true, _) => "draining",
                (false, 0) => "failed",
                (false, _) if self.is_failing() => "failing",
                (false, _) => "live",
            },
            load,
            devices: self.devices.told(),
            totals: self.line.totals(),
            last_swap: None,
        }
    }

    /// Takes no more requests; what was admitted is still answered.
    pub fn close(&self) {
        self.line.close();
        self.devices.close();
    }

    /// After [`close`](Self::close): waits for the workers until `deadline`, but not for those that are stuck,
    /// then answers what is left with an error. Blocks.
    pub fn join(&self, deadline: Instant) {
        self.crew.join(deadline);
        self.devices.join(deadline);
        let why = "the server shut down first".to_owned();
        let error = ScoreError::Unavailable {
            why,
            retry_after: Duration::from_secs(1),
        };
        self.line.fail_all(&error);
        self.crew.fail_all(&error);
    }
}
