//! A worker's thread: pull a batch, call the plugin, hand out the scores. No task, no channel.

use crate::generation::batch::Batch;
use crate::generation::cost::Size;
use crate::generation::line::Line;
use crate::generation::plan::Computed;
use crate::generation::queue::Taken;
use crate::generation::work::RowFault;
use crate::score::ScoreError;
use crate::telemetry::ModelMetrics;
use backend_api::{
    Fault, FaultCode, Limits, OpenBackend, OpenWorker, RaggedBatch, RowStatus, Scores,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    backend: Arc<OpenBackend>,
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
pub struct Called {
    // Declared first, so dropped first: a backend is dropped after its workers.
    worker: OpenWorker,
    _backend: Arc<OpenBackend>,
    epoch: u64,
}

// === impl Shared ===

impl Shared {
    /// Workers of `backend`; after a panic, of what `reopen` gives.
    pub fn new(backend: OpenBackend, reopen: Reopen) -> Self {
        let backend = Arc::new(backend);
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
        self.current().called()
    }

    /// A worker of a backend that is not the one of `dead_epoch`: the first worker that asks opens it,
    /// the others wait. The dead one goes with the last of its workers.
    fn revive(&self, dead_epoch: u64) -> Result<Called, Fault> {
        let mut current = self.current();
        if current.epoch == dead_epoch {
            current.replace(&self.reopen)?;
        }
        match current.called() {
            // The worker that opened it may have tried its guilty request again by now.
            Err(fault) if fault.code == FaultCode::Poisoned => {
                current.replace(&self.reopen)?;
                current.called()
            }
            outcome => outcome,
        }
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Current {
    fn called(&self) -> Result<Called, Fault> {
        Ok(Called {
            worker: self.backend.worker()?,
            _backend: Arc::clone(&self.backend),
            epoch: self.epoch,
        })
    }

    fn replace(&mut self, reopen: &Reopen) -> Result<(), Fault> {
        self.backend = Arc::new(reopen()?);
        self.epoch += 1;
        Ok(())
    }
}

impl Called {
    /// The plugin's worker.
    pub fn worker(&mut self) -> &mut OpenWorker {
        &mut self.worker
    }
}

// === impl Worker ===

impl Worker {
    /// Serves until the line is closed and empty. The line has counted this worker already.
    pub fn run(self, mut called: Called) {
        let mut batch = Batch::new(&self.limits, self.n_labels);
        while let Some(cut) = self.line.next(&mut batch.taken) {
            for (work, _) in &batch.taken {
                work.note_cut(cut.at);
            }
            let result = self.serve(&mut called, &mut batch);
            self.line.returned(&cut, matches!(result, Ok(true)));
            if let Err(fault) = result {
                self.recover(fault, &mut called, &mut batch);
            }
            // The rows' memory goes with their requests, not with the next batch.
            batch.taken.clear();
        }
        self.line.count_worker(-1);
    }

    /// Calls the plugin and hands out what came back; says whether that is all rows. A fault hands out
    /// nothing.
    fn serve(&self, called: &mut Called, batch: &mut Batch) -> Result<bool, Fault> {
        let started = Instant::now();
        batch.with(
            &self.limits,
            self.n_labels,
            started,
            |taken, rows, logits, statuses| {
                let (phases, scores) = called.worker.score(rows, logits, statuses)?;
                let done = computed(rows, &scores, started.elapsed());
                let n_tokens = done.size.tokens as usize;
                self.metrics
                    .batch(done.n_rows, n_tokens, done.took, &phases);
                // Before the answers: whoever has one finds it counted.
                self.line.computed(&done);
                hand_out(taken, &scores, done.took);
                Ok(done.is_whole)
            },
        )
    }

    /// Serves the batch, on a new backend as often as another worker's panic poisoned the one it had:
    /// the batch itself has done nothing wrong then.
    fn insist(&self, called: &mut Called, batch: &mut Batch) -> Result<bool, Fault> {
        let mut tries = 1;
        loop {
            match self.serve(called, batch) {
                Err(fault) if fault.code == FaultCode::Poisoned && tries < POISONED_TRIES_MAX => {
                    self.replace(&fault, called);
                    tries += 1;
                }
                outcome => return outcome,
            }
        }
    }

    /// After a fault: the backend is opened again if it has to be, and each request of the batch is
    /// tried by itself, so that only the one that causes the fault fails.
    fn recover(&self, mut fault: Fault, called: &mut Called, batch: &mut Batch) {
        self.report(&fault);
        self.replace(&fault, called);
        if fault.code == FaultCode::Poisoned {
            match self.insist(called, batch) {
                Ok(_) => return,
                Err(again) => fault = again,
            }
            self.report(&fault);
            self.replace(&fault, called);
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
            if let Err(fault) = self.insist(called, batch) {
                self.report(&fault);
                fail(request, &fault);
                self.replace(&fault, called);
            }
        }
    }

    /// Replaces the plugin's worker if the fault says that it cannot be called again; keeps trying until
    /// the line closes. Meanwhile the worker does not count as one, so admission knows.
    fn replace(&self, fault: &Fault, called: &mut Called) {
        if !matches!(
            fault.code,
            FaultCode::Panicked | FaultCode::Poisoned | FaultCode::DeviceLost
        ) {
            return;
        }
        self.line.count_worker(-1);
        loop {
            match self.shared.revive(called.epoch) {
                Ok(revived) => {
                    *called = revived;
                    break;
                }
                // Another worker's request poisoned the new one as well. It will be opened again; what
                // waits has done nothing wrong.
                Err(fault) if fault.code == FaultCode::Poisoned => {}
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
    let error = ScoreError::Backend {
        why: fault.to_string(),
    };
    for (work, row) in taken {
        work.fail_row(*row as usize, RowFault::Whole(error.clone()));
    }
}

/// What counts as computed: rows that were skipped took no time, and teach nothing.
fn computed(batch: &RaggedBatch<'_>, scores: &Scores<'_>, took: Duration) -> Computed {
    let scored = (0..batch.n_rows()).filter(|&row| scores.row(row).is_ok());
    let mut done = Computed {
        took,
        ..Computed::default()
    };
    for row in scored {
        done.n_unwanted += usize::from(!batch.wanted(row));
        let len = batch.row(row).input_ids.len();
        done.n_rows += 1;
        done.longest = done.longest.max(len);
        done.size += Size::row(len);
    }
    let skipped = (0..batch.n_rows()).map(|row| scores.row(row));
    done.n_skipped = skipped
        .filter(|score| matches!(score, Err(RowStatus::Unwanted)))
        .count();
    done.is_whole = done.n_rows == batch.n_rows();
    done
}

fn hand_out(taken: &[Taken], scores: &Scores<'_>, took: Duration) {
    for (place, (work, row)) in taken.iter().enumerate() {
        let row = *row as usize;
        match scores.row(place) {
            Ok(logits) => _ = work.finish_row(row, logits, took),
            Err(status) => work.fail_row(row, row_fault(status)),
        }
    }
}

fn row_fault(status: RowStatus) -> RowFault {
    match status {
        RowStatus::Expired => RowFault::Whole(ScoreError::DeadlinePassed {
            after: Duration::ZERO,
        }),
        RowStatus::Unwanted => RowFault::Whole(ScoreError::Cancelled),
        RowStatus::NotFinite => RowFault::NotFinite,
        _ => RowFault::NotScored,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backend_api::{
        Backend, Description, OpenRequest, Phases, Plugin, PluginCard, PluginLibrary, RowControl,
    };
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    // A plugin has no other way to tell its test: what it made lives behind the border.
    static BACKENDS_OPENED: AtomicUsize = AtomicUsize::new(0);
    static BACKENDS_DROPPED: AtomicUsize = AtomicUsize::new(0);
    static DROPPED_TOO_EARLY: AtomicUsize = AtomicUsize::new(0);

    /// Panics on every batch.
    struct Panicking;
    struct PanickingBackend {
        n_workers: Arc<AtomicUsize>,
    }
    struct PanickingWorker {
        n_workers: Arc<AtomicUsize>,
    }

    impl Plugin for Panicking {
        fn card() -> PluginCard {
            PluginCard::default()
        }
        fn open(_: &OpenRequest) -> Result<Box<dyn Backend>, Fault> {
            BACKENDS_OPENED.fetch_add(1, Ordering::SeqCst);
            let n_workers = Arc::new(AtomicUsize::new(0));
            Ok(Box::new(PanickingBackend { n_workers }))
        }
    }

    impl Backend for PanickingBackend {
        fn description(&self) -> Description {
            Description {
                numerics_id: "none".to_owned(),
                ..Description::default()
            }
        }
        fn worker(&self) -> Result<Box<dyn backend_api::Worker>, Fault> {
            self.n_workers.fetch_add(1, Ordering::SeqCst);
            let n_workers = Arc::clone(&self.n_workers);
            Ok(Box::new(PanickingWorker { n_workers }))
        }
    }

    impl backend_api::Worker for PanickingWorker {
        fn score(&mut self, _: &RaggedBatch<'_>, _: &mut Scores<'_>) -> Result<Phases, Fault> {
            panic!("as always")
        }
    }

    impl Drop for PanickingWorker {
        fn drop(&mut self) {
            self.n_workers.fetch_sub(1, Ordering::SeqCst);
        }
    }

    impl Drop for PanickingBackend {
        fn drop(&mut self) {
            BACKENDS_DROPPED.fetch_add(1, Ordering::SeqCst);
            let n_workers = self.n_workers.load(Ordering::SeqCst);
            DROPPED_TOO_EARLY.fetch_add(n_workers, Ordering::SeqCst);
        }
    }

    fn poison(called: &mut Called) -> FaultCode {
        let wanted = AtomicBool::new(true);
        let controls = [RowControl {
            deadline_us: u64::MAX,
            wanted: &wanted,
        }];
        let (limits, now) = (called.worker.limits(), Instant::now());
        let batch = RaggedBatch::check(&[1], &[0], &[0, 1], &[], &controls, &limits, now).unwrap();
        let (mut logits, mut statuses) = ([0.0], [0]);
        let outcome = called.worker.score(&batch, &mut logits, &mut statuses);
        outcome.err().unwrap().code
    }

    #[test]
    fn only_scored_rows_count_as_computed() {
        let wanted = AtomicBool::new(true);
        let control = || RowControl {
            deadline_us: u64::MAX,
            wanted: &wanted,
        };
        let controls = [control(), control(), control()];
        let limits = OpenRequest::default().limits();
        let (ids, offsets, now) = ([1; 9], [0, 2, 5, 9], Instant::now());
        let batch = RaggedBatch::check(&ids, &ids, &offsets, &[], &controls, &limits, now).unwrap();
        let (scored, unwanted) = (RowStatus::Scored as u8, RowStatus::Unwanted as u8);
        let cases = [
            (
                [scored; 3],
                (
                    3,
                    Size {
                        tokens: 9.0,
                        squares: 29.0,
                    },
                    true,
                ),
            ),
            (
                [scored, unwanted, scored],
                (
                    2,
                    Size {
                        tokens: 6.0,
                        squares: 20.0,
                    },
                    false,
                ),
            ),
            ([unwanted; 3], (0, Size::default(), false)),
        ];
        for (mut statuses, want) in cases {
            let mut logits = [0.0; 3];
            let scores = Scores::check(&mut logits, &mut statuses, 1).unwrap();
            let done = computed(&batch, &scores, Duration::ZERO);
            assert_eq!((done.n_rows, done.size, done.is_whole), want);
            assert_eq!((done.n_unwanted, done.n_skipped), (0, 3 - done.n_rows));
        }
        // Scored, and nobody waits for it any more.
        wanted.store(false, Ordering::Relaxed);
        let (mut logits, mut statuses) = ([0.0; 3], [scored, unwanted, scored]);
        let scores = Scores::check(&mut logits, &mut statuses, 1).unwrap();
        let done = computed(&batch, &scores, Duration::ZERO);
        assert_eq!((done.n_rows, done.n_unwanted, done.n_skipped), (2, 2, 1));
    }

    /// One test, because the counts are the plugin's.
    #[test]
    fn a_dead_backend_outlives_its_workers_and_a_new_one_that_died_is_opened_again() {
        let library = PluginLibrary::in_process::<Panicking>().unwrap();
        let backend = library.open(&OpenRequest::default()).unwrap();
        let reopen = Box::new(move || library.open(&OpenRequest::default()));
        let shared = Shared::new(backend, reopen);
        let count = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
        let (mut first, mut second) = (shared.worker().unwrap(), shared.worker().unwrap());

        assert_eq!(poison(&mut first), FaultCode::Panicked);
        first = shared.revive(first.epoch).unwrap();
        assert_eq!((first.epoch, count(&BACKENDS_OPENED)), (1, 2));
        // The second worker may be inside `score` still: its backend must be there.
        assert_eq!(count(&BACKENDS_DROPPED), 0);

        // The first one's request is guilty, so the new backend is poisoned before the second asks for it.
        assert_eq!(poison(&mut first), FaultCode::Panicked);
        second = shared.revive(second.epoch).unwrap();
        assert_eq!((second.epoch, count(&BACKENDS_OPENED)), (2, 3));
        assert_eq!(count(&BACKENDS_DROPPED), 1);
        first = shared.revive(first.epoch).unwrap();
        assert_eq!((first.epoch, count(&BACKENDS_OPENED)), (2, 3));
        drop((first, second, shared));
        let dropped = (count(&BACKENDS_DROPPED), count(&DROPPED_TOO_EARLY));
        assert_eq!(dropped, (3, 0));
    }
}
