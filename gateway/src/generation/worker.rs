//! A worker's thread: pull a batch, call the plugin, hand out the scores. No task, no channel.

use crate::generation::batch::Batch;
use crate::generation::line::Line;
use crate::generation::queue::Taken;
use crate::score::ScoreError;
use crate::telemetry::ModelMetrics;
use backend_api::{Fault, FaultCode, Limits, OpenBackend, OpenWorker, RowStatus, Scores};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a batch is tried because another worker's panic had poisoned the backend.
const POISONED_TRIES_MAX: usize = 5;
/// Between two attempts to open a backend again.
const REOPEN_PAUSE: Duration = Duration::from_millis(500);

/// Opens the backend again after a panic.
pub type Reopen = Box<dyn Fn() -> Result<OpenBackend, Fault> + Send + Sync>;

/// The backend that a generation's workers share, replaced when a panic has poisoned it.
pub struct Shared {
    current: Mutex<Current>,
    reopen: Reopen,
}

struct Current {
    backend: OpenBackend,
    epoch: u64,
}

/// One worker thread's own.
pub struct Worker {
    pub(crate) line: Arc<Line>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) metrics: Arc<ModelMetrics>,
    pub(crate) limits: Limits,
    pub(crate) n_labels: usize,
}

/// A plugin's worker and the backend it belongs to.
type Called = (OpenWorker, u64);

// === impl Shared ===

impl Shared {
    /// Workers of `backend`; after a panic, of what `reopen` gives.
    pub fn new(backend: OpenBackend, reopen: Reopen) -> Self {
        Self {
            current: Mutex::new(Current { backend, epoch: 0 }),
            reopen,
        }
    }

    /// A worker of the backend as it is.
    ///
    /// # Errors
    /// The plugin's own.
    pub fn worker(&self) -> Result<Called, Fault> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        Ok((current.backend.worker()?, current.epoch))
    }

    /// A worker of a backend that is not the one of `dead_epoch`: the first worker that asks opens it,
    /// the others wait.
    fn revive(&self, dead_epoch: u64) -> Result<Called, Fault> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.epoch == dead_epoch {
            current.backend = (self.reopen)()?;
            current.epoch += 1;
        }
        Ok((current.backend.worker()?, current.epoch))
    }
}

// === impl Worker ===

impl Worker {
    /// Serves until the line is closed and empty. The line has counted this worker already.
    pub fn run(self, mut called: OpenWorker) {
        let mut batch = Batch::new(&self.limits, self.n_labels);
        let mut epoch = 0;
        while let Some(cut) = self.line.next(&mut batch.taken) {
            for (work, _) in &batch.taken {
                work.note_cut(cut);
            }
            let (n_rows, size) = (batch.taken.len(), batch.size());
            let result = self.serve(&mut called, &mut batch);
            let took = cut.elapsed();
            self.line.finished(n_rows, size, took, result.is_ok());
            if let Err(fault) = result {
                self.recover(fault, &mut called, &mut epoch, &mut batch);
            }
            // The rows' memory goes with their requests, not with the next batch.
            batch.taken.clear();
        }
        self.line.count_worker(-1);
    }

    /// Calls the plugin and hands out what came back. A fault hands out nothing.
    fn serve(&self, called: &mut OpenWorker, batch: &mut Batch) -> Result<(), Fault> {
        let started = Instant::now();
        batch.with(
            &self.limits,
            self.n_labels,
            started,
            |taken, rows, logits, statuses| {
                let (phases, scores) = called.score(rows, logits, statuses)?;
                let took = started.elapsed();
                self.metrics
                    .batch(rows.n_rows(), rows.n_tokens(), took, &phases);
                hand_out(taken, &scores, took);
                Ok(())
            },
        )
    }

    /// Serves the batch, on a new backend as often as another worker's panic poisoned the one it had:
    /// the batch itself has done nothing wrong then.
    fn insist(
        &self,
        called: &mut OpenWorker,
        epoch: &mut u64,
        batch: &mut Batch,
    ) -> Result<(), Fault> {
        let mut tries = 1;
        loop {
            match self.serve(called, batch) {
                Err(fault) if fault.code == FaultCode::Poisoned && tries < POISONED_TRIES_MAX => {
                    self.replace(&fault, called, epoch);
                    tries += 1;
                }
                outcome => return outcome,
            }
        }
    }

    /// After a fault: the backend is opened again if it has to be, and each request of the batch is
    /// tried by itself, so that only the one that causes the fault fails.
    fn recover(
        &self,
        mut fault: Fault,
        called: &mut OpenWorker,
        epoch: &mut u64,
        batch: &mut Batch,
    ) {
        self.report(&fault);
        self.replace(&fault, called, epoch);
        if fault.code == FaultCode::Poisoned {
            match self.insist(called, epoch, batch) {
                Ok(()) => return,
                Err(again) => fault = again,
            }
            self.report(&fault);
            self.replace(&fault, called, epoch);
        }
        let mut taken = batch.taken.clone();
        // Fair queueing mixes requests: bring each one's rows together.
        taken.sort_by_key(|(work, row)| (Arc::as_ptr(work) as usize, *row));
        for request in taken.chunk_by(|(a, _), (b, _)| Arc::ptr_eq(a, b)) {
            // A request that alone made the batch has had its try.
            if request.len() == taken.len() {
                fail(request, &fault);
                return;
            }
            batch.taken.clear();
            batch.taken.extend_from_slice(request);
            if let Err(fault) = self.insist(called, epoch, batch) {
                self.report(&fault);
                fail(request, &fault);
                self.replace(&fault, called, epoch);
            }
        }
    }

    /// Replaces the plugin's worker if the fault says that it cannot be called again; keeps trying until
    /// the line closes. Meanwhile the worker does not count as one, so admission knows.
    fn replace(&self, fault: &Fault, called: &mut OpenWorker, epoch: &mut u64) {
        if !matches!(
            fault.code,
            FaultCode::Panicked | FaultCode::Poisoned | FaultCode::DeviceLost
        ) {
            return;
        }
        self.line.count_worker(-1);
        loop {
            match self.shared.revive(*epoch) {
                Ok(revived) => {
                    (*called, *epoch) = revived;
                    break;
                }
                Err(fault) => {
                    tracing::error!(%fault, "the backend does not open again; trying until it does");
                    // What waits would only wait for its deadline.
                    self.line.fail_all(&ScoreError::Backend {
                        why: fault.to_string(),
                    });
                }
            }
            if self.line.is_closed() {
                break;
            }
            std::thread::sleep(REOPEN_PAUSE);
        }
        self.line.count_worker(1);
    }

    fn report(&self, fault: &Fault) {
        self.metrics.fault(fault.code.name());
        tracing::error!(%fault, "the backend failed a batch");
    }
}

fn fail(taken: &[Taken], fault: &Fault) {
    for (work, _) in taken {
        work.fail(ScoreError::Backend {
            why: fault.to_string(),
        });
    }
}

fn hand_out(taken: &[Taken], scores: &Scores<'_>, took: Duration) {
    for (place, (work, row)) in taken.iter().enumerate() {
        match scores.row(place) {
            Ok(logits) => work.finish_row(*row as usize, logits, took),
            Err(status) => work.fail(row_error(status, *row)),
        }
    }
}

fn row_error(status: RowStatus, index: u32) -> ScoreError {
    match status {
        RowStatus::Expired => ScoreError::DeadlinePassed {
            after: Duration::ZERO,
        },
        RowStatus::Unwanted => ScoreError::Cancelled,
        RowStatus::NotFinite => ScoreError::Backend {
            why: format!("the model's score for documents[{index}] is not a number"),
        },
        _ => ScoreError::Row {
            index,
            why: "the backend could not score it".to_owned(),
        },
    }
}
