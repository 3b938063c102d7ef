//! A generation's workers: hired, watched, and replaced when one does not come back.
//!
//! A plugin that hangs cannot be ended from outside. Its thread is left to itself, with the memory of its
//! batch, and another one is hired in its place; the rows go to whoever is next. Should it come back after
//! all, its scores are still good for those who wait.

use crate::generation::backend::{Called, Shared};
use crate::generation::line::Line;
use crate::generation::plan::Cut;
use crate::generation::queue::{Failure, Taken, WorkerId};
use crate::generation::work::Work;
use crate::generation::worker::Worker;
use crate::model::TokenRows;
use crate::runtime::{Runtime, now};
use crate::score::ScoreError;
use crate::telemetry::ModelMetrics;
use backend_api::{Fault, FaultCode, Limits};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Workers beyond those that a generation has, each with its memory: those that are stuck and were replaced.
const STUCK_MAX: usize = 4;
/// How often a batch is tried because another worker's panic had poisoned the backend.
const POISONED_TRIES_MAX: u32 = 5;
/// Between two attempts to open a backend again.
const REOPEN_PAUSE: Duration = Duration::from_millis(500);
/// How often the workers are looked at, in terms of their timeout.
const LOOKS_A_TIMEOUT: u32 = 10;
const LOOK_MIN: Duration = Duration::from_millis(1);
const LOOK_MAX: Duration = Duration::from_secs(1);

/// What becomes of a batch that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerBounds {
    /// A worker that computes one batch for so long is stuck.
    pub timeout: Duration,
    /// How often rows are tried again.
    pub retries_max: u32,
}

/// The workers and all that they share.
pub(super) struct Crew {
    pub(super) line: Arc<Line>,
    pub(super) metrics: Arc<ModelMetrics>,
    pub(super) limits: Limits,
    pub(super) n_labels: usize,
    pub(super) name: Arc<str>,
    /// A row that every sound backend scores.
    pub(super) plain: TokenRows,
    pub(super) shared: Shared,
    pub(super) bounds: WorkerBounds,
    pub(super) n_workers: usize,
    /// That the plugin allows at a time, those that are stuck among them.
    pub(super) n_workers_max: usize,
    pub(super) runtime: Runtime,
    pub(super) members: Mutex<Members>,
}

/// Who was hired.
#[derive(Default)]
pub(super) struct Members {
    threads: Vec<(Arc<Seat>, JoinHandle<()>)>,
    n_hired: WorkerId,
    // Hired, and not known to be stuck.
    n_serving: usize,
    n_stuck: usize,
}

/// A worker's place, and what it computes.
pub(super) struct Seat {
    pub(super) id: WorkerId,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    phase: Phase,
    // While it runs; kept for its capacity.
    taken: Vec<Taken>,
}

#[derive(Clone, Copy, Default)]
enum Phase {
    #[default]
    Idle,
    Running {
        cut: Cut,
        since: Instant,
    },
    /// Its rows were put back.
    Stuck,
}

/// A batch that takes too long.
struct Overdue {
    by: WorkerId,
    cut: Cut,
    taken: Vec<Taken>,
}

// === impl Crew ===

impl Crew {
    /// Hires a worker for each of the plugin's workers in `called`, which are `n_workers`.
    ///
    /// # Errors
    /// That the system has no more threads.
    pub(super) fn start(self: &Arc<Self>, called: Vec<Called>) -> io::Result<()> {
        for called in called {
            // Counted before it runs: whoever asks next finds it.
            self.line.count_worker(1);
            self.hire(&mut self.members(), |_| Some(called))?;
        }
        let (crew, every) = (Arc::downgrade(self), self.look_every());
        self.runtime.task(look(crew, every));
        Ok(())
    }

    /// A new worker's thread. It ends at once if `call` gives it nothing to call.
    fn hire(
        self: &Arc<Self>,
        members: &mut Members,
        call: impl FnOnce(&Self) -> Option<Called> + Send + 'static,
    ) -> io::Result<()> {
        let id = members.n_hired;
        let seat = Arc::new(Seat {
            id,
            state: Mutex::new(State {
                taken: Vec::with_capacity(self.limits.rows_max),
                ..State::default()
            }),
        });
        let (crew, its) = (Arc::clone(self), Arc::clone(&seat));
        let run = move || {
            if let Some(called) = call(&crew) {
                let worker = Worker {
                    crew,
                    seat: its,
                    called,
                };
                worker.run();
            }
        };
        let thread = self.runtime.thread(format!("{}-{id}", self.name), run)?;
        members.threads.push((seat, thread));
        members.n_hired += 1;
        members.n_serving += 1;
        Ok(())
    }

    /// A worker of a backend that is not the one of `dead_epoch`; tries until there is one. `None` when the
    /// line closes first. Blocks.
    pub(super) fn call(&self, dead_epoch: Option<u64>) -> Option<Called> {
        loop {
            match self.shared.revive(dead_epoch) {
                Ok(called) => return Some(called),
                // Another worker's request poisoned the new one as well. It will be opened again; what
                // waits has done nothing wrong.
                Err(fault) if fault.code == FaultCode::Poisoned => {}
                Err(fault) => {
                    tracing::error!(model = %self.name, %fault, "the backend does not open again; trying until it does");
                    if dead_epoch.is_some() {
                        // What waits would only wait for its deadline.
                        self.line.fail_all(&backend_error(&fault));
                    }
                }
            }
            if self.line.is_closed() {
                return None;
            }
            std::thread::sleep(REOPEN_PAUSE);
        }
    }

    pub(super) fn report(&self, fault: &Fault) {
        self.metrics.fault(fault.code.name());
        tracing::error!(model = %self.name, %fault, "the backend failed a batch");
    }

    /// The rows of a batch that failed go to another worker, each request's by themselves, unless they
    /// have been tried often enough.
    pub(super) fn put_back(&self, by: WorkerId, cut: &Cut, taken: &[Taken], fault: &Fault) {
        let tries_max = match fault.code {
            // Another worker's batch did it.
            FaultCode::Poisoned => POISONED_TRIES_MAX,
            // It is the rows: once more would do the same, and poison the backend for all others again.
            FaultCode::Panicked
            | FaultCode::BadBatch
            | FaultCode::BadRequest
            | FaultCode::BadModel
            | FaultCode::Unsupported => 0,
            _ => self.bounds.retries_max,
        };
        self.line.put_back(
            taken,
            &Failure {
                by,
                tries: cut.tries,
                tries_max,
                // Which of several requests it was is not known yet.
                is_free_together: fault.code != FaultCode::Poisoned,
                error: backend_error(fault),
            },
            now(),
        );
    }

    /// Looks for workers that have not come back, and hires others in their place.
    fn look(self: &Arc<Self>, now: Instant) {
        let overdue: Vec<_> = {
            let mut members = self.members();
            members.bury();
            let seats = members.threads.iter().map(|(seat, _)| seat);
            let overdue: Vec<_> = seats
                .filter_map(|seat| seat.overdue(now, &self.bounds))
                .collect();
            members.n_serving -= overdue.len();
            members.n_stuck += overdue.len();
            // With the lock: whoever comes back just now waits for it, and was counted as stuck before.
            for Overdue { cut, .. } in &overdue {
                self.line.stuck(cut, now);
            }
            overdue
        };
        for overdue in overdue {
            self.replace_stuck(&overdue);
        }
    }

    fn replace_stuck(self: &Arc<Self>, overdue: &Overdue) {
        let Overdue { by, cut, taken } = overdue;
        let n_stuck = self.members().n_stuck;
        let timeout = self.bounds.timeout;
        let (model, rows) = (&self.name, taken.len());
        tracing::error!(%model, worker = by, rows, ?timeout, n_stuck, "a worker does not come back");
        self.line.put_back(
            taken,
            &Failure {
                by: *by,
                tries: cut.tries,
                tries_max: self.bounds.retries_max,
                // Each try may cost a worker.
                is_free_together: false,
                error: ScoreError::Backend {
                    why: format!("a worker has not come back within worker.timeout = {timeout:?}"),
                },
            },
            now(),
        );
        let mut members = self.members();
        if self.n_workers <= members.n_serving {
            // One that was stuck has come back meanwhile.
            return;
        }
        let most = self.n_workers_max.min(self.n_workers + STUCK_MAX);
        if most <= members.n_serving + members.n_stuck {
            drop(members);
            tracing::error!(%model, n_stuck, most, "too many workers are stuck: this one is not replaced");
            return;
        }
        let hired = self.hire(&mut members, |crew| {
            let called = crew.call(None)?;
            crew.line.count_worker(1);
            Some(called)
        });
        drop(members);
        if let Err(error) = hired {
            tracing::error!(%model, %error, "no thread for another worker");
        }
    }

    /// A worker that was stuck has come back. Says whether it is needed.
    pub(super) fn come_back(&self, id: WorkerId) -> bool {
        let mut members = self.members();
        let is_needed = members.n_serving < self.n_workers;
        members.n_serving += usize::from(is_needed);
        members.n_stuck -= 1;
        self.line.came_back(is_needed);
        drop(members);
        tracing::warn!(model = %self.name, worker = id, is_needed, "a worker that was stuck has come back");
        is_needed
    }

    /// Waits until the workers have ended, but not beyond `deadline` and not for those that are stuck.
    /// Blocks.
    pub(super) fn join(&self, deadline: Instant) {
        let is_served = |members: &Members| {
            let mut threads = members.threads.iter();
            threads.all(|(seat, thread)| thread.is_finished() || seat.is_stuck())
        };
        while !is_served(&self.members()) && now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.members().bury();
    }

    /// Answers what workers compute still with `error`.
    pub(super) fn fail_all(&self, error: &ScoreError) {
        let works = |(seat, _): &(Arc<Seat>, _)| seat.works();
        // Outside the lock: an answer wakes a task.
        let computed: Vec<_> = self.members().threads.iter().flat_map(works).collect();
        for work in computed {
            work.fail(error);
        }
    }

    fn look_every(&self) -> Duration {
        (self.bounds.timeout / LOOKS_A_TIMEOUT).clamp(LOOK_MIN, LOOK_MAX)
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        // Nothing in here can panic half-way; a poisoned lock is still sound.
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The watch over a crew, as long as there is one.
async fn look(crew: Weak<Crew>, every: Duration) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(crew) = crew.upgrade() else { return };
        crew.look(now());
    }
}

fn backend_error(fault: &Fault) -> ScoreError {
    ScoreError::Backend {
        why: fault.to_string(),
    }
}

// === impl Members ===

impl Members {
    /// Forgets the threads that have ended.
    fn bury(&mut self) {
        let ended = self
            .threads
            .extract_if(.., |(_, thread)| thread.is_finished());
        for (seat, thread) in ended {
            if thread.join().is_err() {
                tracing::error!(worker = seat.id, "a worker thread panicked");
            }
        }
    }
}

// === impl Seat ===

impl Seat {
    /// The plugin is called now with these rows.
    pub(super) fn start(&self, cut: Cut, taken: &[Taken], since: Instant) {
        let mut state = self.state();
        state.phase = Phase::Running { cut, since };
        state.taken.extend_from_slice(taken);
    }

    /// The plugin has come back. Says whether the rows are still this worker's.
    pub(super) fn finish(&self) -> bool {
        let mut state = self.state();
        state.taken.clear();
        !matches!(std::mem::take(&mut state.phase), Phase::Stuck)
    }

    /// The batch that takes too long. It is the caller's from now on.
    fn overdue(&self, now: Instant, bounds: &WorkerBounds) -> Option<Overdue> {
        let mut state = self.state();
        let Phase::Running { cut, since } = state.phase else {
            return None;
        };
        if now.saturating_duration_since(since) < bounds.timeout {
            return None;
        }
        state.phase = Phase::Stuck;
        Some(Overdue {
            by: self.id,
            cut,
            taken: std::mem::take(&mut state.taken),
        })
    }

    /// Whose rows it computes.
    fn works(&self) -> Vec<Arc<Work>> {
        let state = self.state();
        let works = state.taken.iter().map(|(work, _)| Arc::clone(work));
        let mut works: Vec<_> = works.collect();
        works.dedup_by(|a, b| Arc::ptr_eq(a, b));
        works
    }

    fn is_stuck(&self) -> bool {
        matches!(self.state().phase, Phase::Stuck)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here can panic half-way; a poisoned lock is still sound.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
