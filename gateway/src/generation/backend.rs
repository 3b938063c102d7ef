//! The backend that a generation's workers share, opened again when a panic has poisoned it.

use backend_api::{Fault, FaultCode, OpenBackend, OpenWorker};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

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
    ///
    /// # Errors
    /// The plugin's own.
    pub fn revive(&self, dead_epoch: Option<u64>) -> Result<Called, Fault> {
        let mut current = self.current();
        if Some(current.epoch) == dead_epoch {
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

    /// The backend as it is; `None` while it is being opened again: nobody is kept waiting by that.
    pub fn backend(&self) -> Option<Arc<OpenBackend>> {
        let current = match self.current.try_lock() {
            Ok(current) => current,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(Arc::clone(&current.backend))
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

    /// Of the backend it belongs to, for [`Shared::revive`].
    pub fn epoch(&self) -> u64 {
        self.epoch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backend_api::{
        Backend, Description, OpenRequest, Phases, Plugin, PluginCard, PluginLibrary, RaggedBatch,
        RowControl, Scores,
    };
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::time::Instant;

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
        first = shared.revive(Some(first.epoch)).unwrap();
        assert_eq!((first.epoch, count(&BACKENDS_OPENED)), (1, 2));
        // The second worker may be inside `score` still: its backend must be there.
        assert_eq!(count(&BACKENDS_DROPPED), 0);

        // The first one's request is guilty, so the new backend is poisoned before the second asks for it.
        assert_eq!(poison(&mut first), FaultCode::Panicked);
        second = shared.revive(Some(second.epoch)).unwrap();
        assert_eq!((second.epoch, count(&BACKENDS_OPENED)), (2, 3));
        assert_eq!(count(&BACKENDS_DROPPED), 1);
        first = shared.revive(Some(first.epoch)).unwrap();
        assert_eq!((first.epoch, count(&BACKENDS_OPENED)), (2, 3));
        drop((first, second, shared));
        let dropped = (count(&BACKENDS_DROPPED), count(&DROPPED_TOO_EARLY));
        assert_eq!(dropped, (3, 0));
    }
}
