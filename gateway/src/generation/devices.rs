//! How a generation's devices do: a thread asks the backend every so often, and whoever wants to know reads what
//! it was told last.
//!
//! The question goes into the plugin and need not come back. So it has a thread of its own, which holds nothing
//! but the backend meanwhile; nobody waits for it, and what it was told long ago is not shown any more.

use super::crew::Crew;
use crate::runtime::{Runtime, now};
use backend_api::{DeviceState, Fault, FaultCode};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two questions. Drivers count over about as long.
const ASK_PAUSE: Duration = Duration::from_secs(1);
/// What was told longer ago is not shown: the plugin does not come back.
const TOLD_AGE_MAX: Duration = Duration::from_secs(5);
/// Who waits for the thread to end does not wait for a question that takes longer.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(1);
/// Between two looks whether the thread has ended.
const JOIN_PAUSE: Duration = Duration::from_millis(1);

/// What is known of a generation's devices.
pub(super) struct Devices {
    model: Arc<str>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    told: Option<(Instant, Arc<[DeviceState]>)>,
    /// Since when a question is under way.
    asked: Option<Instant>,
    /// What was said last about what is wrong.
    complaint: String,
    is_closed: bool,
    thread: Option<JoinHandle<()>>,
}

// === impl Devices ===

impl Devices {
    /// Of a generation of this model, of which nothing is known yet.
    pub(super) fn new(model: Arc<str>) -> Arc<Self> {
        Arc::new(Self {
            model,
            known: Mutex::default(),
        })
    }

    /// Asks the backend of `crew` from now on, as long as there is one and it has something to tell.
    pub(super) fn watch(self: &Arc<Self>, crew: &Arc<Crew>, runtime: &Runtime) {
        let (devices, watched) = (Arc::clone(self), Arc::downgrade(crew));
        let name = format!("{}-devices", self.model);
        match runtime.thread(name, move || devices.run(&watched)) {
            Ok(thread) => self.known().thread = Some(thread),
            Err(error) => {
                tracing::warn!(model = %self.model, %error, "no thread to watch the devices: nothing is shown of them");
            }
        }
    }

    /// What was told last; nothing if that is too long ago.
    pub(super) fn told(&self) -> Arc<[DeviceState]> {
        let (mut known, now) = (self.known(), now());
        let is_old = |at: Instant| TOLD_AGE_MAX < now.saturating_duration_since(at);
        if known.asked.is_some_and(is_old) {
            // Its thread cannot say so: whoever looks does, once.
            known.complain(&self.model, "the plugin does not come back");
        }
        match &known.told {
            Some((at, told)) if !is_old(*at) => Arc::clone(told),
            _ => Arc::default(),
        }
    }

    /// Nothing is asked any more.
    pub(super) fn close(&self) {
        let mut known = self.known();
        known.is_closed = true;
        if let Some(thread) = &known.thread {
            thread.thread().unpark();
        }
    }

    /// After [`close`](Self::close): waits until the backend is not held any more, but not beyond `deadline` and
    /// not for a plugin that does not come back. Blocks.
    pub(super) fn join(&self, deadline: Instant) {
        while self.known().is_waited_for() && now() < deadline {
            std::thread::sleep(JOIN_PAUSE);
        }
    }

    fn run(&self, crew: &Weak<Crew>) {
        while let Some(crew) = self.begin(crew) {
            // Another thread opens it again just now: what was told before stands for a while.
            let Some(backend) = crew.shared.backend() else {
                self.known().asked = None;
                std::thread::park_timeout(ASK_PAUSE);
                continue;
            };
            // Should the plugin not come back, the others are not kept from ending.
            drop(crew);
            let answer = backend.devices();
            // Before anybody hears that it has ended.
            drop(backend);
            if !self.end(answer) {
                return;
            }
            std::thread::park_timeout(ASK_PAUSE);
        }
    }

    /// Whose backend to ask now; `None` when nobody is to be asked any more.
    fn begin(&self, crew: &Weak<Crew>) -> Option<Arc<Crew>> {
        let crew = crew.upgrade()?;
        let mut known = self.known();
        known.asked = Some(now());
        (!known.is_closed).then_some(crew)
    }

    /// Keeps an answer. Says whether to ask again.
    fn end(&self, answer: Result<Vec<DeviceState>, Fault>) -> bool {
        let mut known = self.known();
        known.asked = None;
        let (told, asks_again) = match answer {
            Ok(devices) if devices.is_empty() => (None, false),
            Ok(devices) => {
                known.complaint.clear();
                (Some((now(), devices.into())), true)
            }
            // Some batch did it; there will be another backend.
            Err(fault) if fault.code == FaultCode::Poisoned => (None, true),
            Err(fault) => {
                // Each panic costs a backend: one is enough.
                let asks_again = fault.code != FaultCode::Panicked;
                known.complain(&self.model, &fault.to_string());
                (None, asks_again)
            }
        };
        known.told = told;
        asks_again
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing in here can panic half-way; a poisoned lock is still sound.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Known ===

impl Known {
    /// The same is said once.
    fn complain(&mut self, model: &str, why: &str) {
        if self.complaint != why {
            tracing::warn!(model, why, "the backend does not tell how its devices do");
            why.clone_into(&mut self.complaint);
        }
    }

    fn is_waited_for(&self) -> bool {
        let asked_for = |asked: Instant| now().saturating_duration_since(asked);
        let hangs = self
            .asked
            .is_some_and(|asked| ANSWER_WAIT_MAX < asked_for(asked));
        let runs = self
            .thread
            .as_ref()
            .is_some_and(|thread| !thread.is_finished());
        runs && !hangs
    }
}
