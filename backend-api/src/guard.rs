//! The fence: a panic in plugin code becomes a value inside the plugin's own library.
//!
//! It has to stand here and not in the host: a panic that reaches an `extern "C"` border ends the
//! process, whatever the host does (tried with abi_stable 0.11.3 and rustc 1.95).

use crate::abi::{AbiBatch, AbiScores};
use crate::{
    Backend, Description, DeviceState, Fault, FaultCode, Limits, OpenRequest, Phases, RaggedBatch,
    Scores, Worker,
};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Makes a type that implements [`Plugin`](crate::Plugin) the plugin of this library.
///
/// ```ignore
/// backend_api::export_plugin!(MyPlugin);
/// ```
#[macro_export]
macro_rules! export_plugin {
    ($plugin:ty) => {
        #[cfg(panic = "abort")]
        compile_error!(
            "a Crossgate plugin needs panic = \"unwind\": a panic is caught inside the plugin, and without \
             unwinding it would end the server"
        );

        // The two names by which the host finds a plugin. Declaring them is what this macro is for.
        #[allow(unsafe_code)]
        mod crossgate_plugin_export {
            #[unsafe(export_name = "CROSSGATE_PLUGIN_ABI")]
            static STAMP: $crate::__private::AbiStamp = $crate::__private::AbiStamp::CURRENT;

            // abi_stable's name for a library's header.
            #[unsafe(export_name = "_1as_0lib_1header_0root_bmodule_bloader")]
            static HEADER: $crate::__private::LibHeader = $crate::__private::header(construct);

            extern "C" fn construct() -> $crate::__private::RootModuleResult {
                $crate::abi::construct::<super::CrossgatePlugin>()
            }
        }
        type CrossgatePlugin = $plugin;
    };
}

/// Runs plugin code; a panic comes back as [`FaultCode::Panicked`] with its text.
///
/// # Errors
/// `run`'s own, or `Panicked`.
pub fn fence<T>(run: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    // AssertUnwindSafe: the callers below poison what the panic left half-written.
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|payload| Err(panic_fault(payload)))
}

/// A backend whose every entry is fenced, its drop included.
pub(crate) struct FencedBackend {
    // `None` only while dropping.
    backend: Option<Box<dyn Backend>>,
    shared: Arc<Shared>,
}

/// A worker whose every entry is fenced, its drop included.
pub(crate) struct FencedWorker {
    // `None` only while dropping.
    worker: Option<Box<dyn Worker>>,
    shared: Arc<Shared>,
}

/// What a backend and its workers know together.
struct Shared {
    poisoned: AtomicBool,
    limits: Limits,
    n_labels: usize,
}

// === impl FencedBackend ===

impl FencedBackend {
    pub(crate) fn new(backend: Box<dyn Backend>, request: &OpenRequest) -> Result<Self, Fault> {
        let description = match fence(|| backend.description().check()) {
            Ok(description) => description,
            Err(fault) => {
                // Not by unwinding through it: a destructor that panics then ends the process.
                drop_fenced(Some(backend));
                return Err(fault);
            }
        };
        let (host, own) = (request.limits(), description.limits());
        let shared = Shared {
            poisoned: AtomicBool::new(false),
            limits: host.and(&own),
            n_labels: description.n_labels as usize,
        };
        Ok(Self {
            backend: Some(backend),
            shared: Arc::new(shared),
        })
    }

    pub(crate) fn describe(&self) -> Result<Description, Fault> {
        self.call(|backend| Ok(backend.description()))
    }

    pub(crate) fn make_worker(&self) -> Result<FencedWorker, Fault> {
        let worker = self.call(|backend| backend.worker())?;
        Ok(FencedWorker {
            worker: Some(worker),
            shared: Arc::clone(&self.shared),
        })
    }

    pub(crate) fn device_states(&self) -> Result<Vec<DeviceState>, Fault> {
        DeviceState::check(self.call(|backend| backend.devices())?)
    }

    fn call<T>(&self, run: impl FnOnce(&dyn Backend) -> Result<T, Fault>) -> Result<T, Fault> {
        let backend = self.backend.as_deref().ok_or_else(poisoned)?;
        self.shared.call(|| run(backend))
    }
}

impl Drop for FencedBackend {
    fn drop(&mut self) {
        drop_fenced(self.backend.take());
    }
}

// === impl FencedWorker ===

impl FencedWorker {
    pub(crate) fn run(
        &mut self,
        batch: AbiBatch<'_>,
        scores: AbiScores<'_>,
    ) -> Result<Phases, Fault> {
        // Deadlines count from here: the host computed them at the moment of the call.
        let started = Instant::now();
        let batch = RaggedBatch::check(
            batch.input_ids.as_slice(),
            batch.type_ids.as_slice(),
            batch.offsets.as_slice(),
            batch.prefix_lens.as_slice(),
            batch.controls.as_slice(),
            &self.shared.limits,
            started,
        )
        .map_err(Fault::bad_batch)?;
        let (logits, statuses) = (
            scores.logits.into_mut_slice(),
            scores.statuses.into_mut_slice(),
        );
        if statuses.len() != batch.n_rows() {
            return Err(Fault::bad_batch(format!(
                "{} statuses for {} rows",
                statuses.len(),
                batch.n_rows()
            )));
        }
        let mut scores =
            Scores::check(logits, statuses, self.shared.n_labels).map_err(Fault::bad_batch)?;
        let worker = self.worker.as_deref_mut().ok_or_else(poisoned)?;
        self.shared.call(|| worker.score(&batch, &mut scores))
    }
}

impl Drop for FencedWorker {
    fn drop(&mut self) {
        drop_fenced(self.worker.take());
    }
}

// === impl Shared ===

impl Shared {
    /// After a panic nothing that the panic may have left half-written is entered again.
    fn call<T>(&self, run: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
        if self.poisoned.load(Ordering::Acquire) {
            return Err(poisoned());
        }
        let result = fence(run);
        if matches!(&result, Err(fault) if fault.code == FaultCode::Panicked) {
            self.poisoned.store(true, Ordering::Release);
        }
        result
    }
}

fn poisoned() -> Fault {
    Fault::new(
        FaultCode::Poisoned,
        "an earlier panic poisoned this backend: drop it and open it again",
    )
}

fn drop_fenced<T: ?Sized>(value: Option<Box<T>>) {
    // A destructor has nobody to tell; the panic's own message has gone to stderr.
    drop(fence(move || {
        drop(value);
        Ok(())
    }));
}

fn panic_fault(payload: Box<dyn Any + Send>) -> Fault {
    let text = match payload.downcast_ref::<&'static str>() {
        Some(text) => (*text).to_owned(),
        None => payload
            .downcast_ref::<String>()
            .cloned()
            .unwrap_or_else(|| "a panic without text".to_owned()),
    };
    // The payload is the plugin's own value: its destructor may panic too, and what that panic carries
    // may as well, so the second one is leaked rather than dropped.
    if let Err(second) = catch_unwind(AssertUnwindSafe(move || drop(payload))) {
        Box::leak(second);
    }
    Fault::new(FaultCode::Panicked, text)
}
