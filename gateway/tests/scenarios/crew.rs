//! Generations and their workers, as `crew` and `worker` run them, before a backend that fails as it is told.

use super::ledger::{Count, pair_of, score};
use super::setup::{BATCH_US, TOKEN_US};
use super::{Signal, World};
use crate::draw::{micros, size};
use backend_api::FaultCode;
use gateway::generation::cost::Size;
use gateway::generation::line::Line;
use gateway::generation::plan::{Computed, Cut, Next};
use gateway::generation::queue::{Failure, Taken, WorkerId};
use gateway::generation::work::RowFault;
use gateway::score::ScoreError;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// As in `crew.rs`.
const STUCK_MAX: usize = 4;
const POISONED_TRIES_MAX: u32 = 5;
/// To open a backend again, and between two attempts.
const REOPEN_US: f64 = 5_000.0;
const REOPEN_PAUSE: Duration = Duration::from_millis(50);

/// A generation.
pub(crate) struct Model {
    pub(crate) tag: usize,
    pub(crate) line: Arc<Line>,
    /// What its condition variable is to threads.
    pub(crate) came: Signal,
    n_hired: Cell<WorkerId>,
    n_serving: Cell<usize>,
    // The backend that is open, and whether a panic has poisoned it.
    epoch: Cell<u64>,
    is_poisoned: Cell<bool>,
}

/// A worker's thread.
struct Worker {
    world: Rc<World>,
    model: Rc<Model>,
    id: WorkerId,
    epoch: u64,
}

/// What the backend will make of a batch.
struct Fate {
    took: Duration,
    fault: Option<FaultCode>,
}

// === impl Model ===

impl Model {
    /// Warm, with all its workers.
    pub(crate) fn start(world: &Rc<World>, tag: usize) -> Rc<Self> {
        let setup = &world.setup;
        let line = Arc::new(Line::new(setup.queue, setup.batch, 1));
        for (rows, tokens) in [(1, 3), (1, 12), (8, 7), (1, 3), (4, 7)] {
            let size = (0..rows).fold(Size::default(), |sum, _| sum + Size::row(tokens));
            line.learn(size, micros(cost_us(size)));
        }
        let model = Rc::new(Self {
            tag,
            line,
            came: Signal::default(),
            n_hired: Cell::default(),
            n_serving: Cell::default(),
            epoch: Cell::default(),
            is_poisoned: Cell::default(),
        });
        for _ in 0..setup.n_workers {
            model.line.count_worker(1);
            model.hire(world, false);
        }
        model
    }

    fn hire(self: &Rc<Self>, world: &Rc<World>, has_to_call: bool) {
        let id = self.n_hired.get();
        self.n_hired.set(id + 1);
        self.n_serving.set(self.n_serving.get() + 1);
        let worker = Worker {
            world: Rc::clone(world),
            model: Rc::clone(self),
            id,
            epoch: self.epoch.get(),
        };
        world.clock.spawn(worker.run(has_to_call));
    }

    fn count_worker(&self, change: isize) {
        self.line.count_worker(change);
        self.came.ring();
    }

    pub(crate) fn close(&self) {
        self.line.close();
        self.came.ring();
    }
}

fn cost_us(size: Size) -> f64 {
    BATCH_US + TOKEN_US * size.tokens
}

fn backend_error(why: &str) -> ScoreError {
    ScoreError::Backend {
        why: why.to_owned(),
    }
}

// === impl Worker ===

impl Worker {
    async fn run(mut self, has_to_call: bool) {
        if has_to_call {
            if !self.call(None).await {
                return;
            }
            self.model.count_worker(1);
        }
        let (world, model) = (Rc::clone(&self.world), Rc::clone(&self.model));
        let mut taken = Vec::new();
        loop {
            match model.line.look(world.clock.now(), self.id, &mut taken) {
                Next::Batch(cut) => {
                    if !self.serve(&cut, &taken).await {
                        return;
                    }
                    taken.clear();
                }
                Next::Hold(until) => {
                    world.ledger.count(Count::Holds);
                    tokio::select! {
                        biased;
                        () = model.came.wait() => {}
                        () = world.clock.sleep_until(until) => {}
                    }
                }
                Next::Nothing => model.came.wait().await,
                Next::Done => break,
            }
        }
        model.count_worker(-1);
    }

    /// Whether the worker goes on.
    async fn serve(&mut self, cut: &Cut, taken: &[Taken]) -> bool {
        let (world, model) = (Rc::clone(&self.world), Rc::clone(&self.model));
        let (clock, ledger) = (&world.clock, &world.ledger);
        ledger.cut(&world.setup, taken, (model.tag, self.id), clock.now());
        ledger.count(Count::Batches);
        let Fate { took, fault } = self.fate(taken);
        let is_own = took < world.setup.worker_timeout;
        if is_own {
            clock.sleep(took).await;
            ledger.uncut(taken, self.id);
        } else {
            clock.sleep(world.setup.worker_timeout).await;
            ledger.uncut(taken, self.id);
            self.stuck(cut, taken);
            clock.sleep(took - world.setup.worker_timeout).await;
        }
        let is_whole = fault.is_none() && self.hand_out(taken, took, is_own);
        if is_own {
            model.line.returned(cut, is_whole, || clock.now());
        } else if !self.come_back() {
            return false;
        }
        if let Some(code) = fault {
            ledger.count(Count::Faults);
            if is_own {
                self.put_back(cut, taken, code);
            }
            self.replace(code).await;
        }
        true
    }

    fn fate(&self, taken: &[Taken]) -> Fate {
        let (world, model, setup) = (&self.world, &self.model, &self.world.setup);
        if self.epoch < model.epoch.get() || model.is_poisoned.get() {
            let (took, fault) = (Duration::from_micros(10), Some(FaultCode::Poisoned));
            return Fate { took, fault };
        }
        let is_stalled = world.happens(setup.stall_share);
        let slower = if is_stalled {
            5.0 + 60.0 * world.unit()
        } else {
            0.8 + 0.4 * world.unit()
        };
        let is_guilty = taken
            .iter()
            .any(|taken| Some(pair_of(taken)[2]) == setup.guilty);
        let fails = world.happens(setup.fault_share);
        Fate {
            took: micros(cost_us(size(taken)) * slower),
            fault: match (is_guilty, fails) {
                (true, _) => Some(FaultCode::Panicked),
                (false, true) => Some(FaultCode::Internal),
                (false, false) => None,
            },
        }
    }

    /// `worker::computed` and `worker::hand_out`; says whether every row was scored.
    fn hand_out(&self, taken: &[Taken], took: Duration, is_own: bool) -> bool {
        let (world, setup, now) = (&self.world, &self.world.setup, self.world.clock.now());
        let outcomes: Vec<_> = taken
            .iter()
            .map(|row @ (work, idx)| {
                let pair = pair_of(row);
                let is_wanted = work.is_wanted(*idx as usize);
                // The backend looks before it computes a row, which may be too early.
                let sees = world.happens(0.5);
                match () {
                    () if !is_wanted && sees => Err(RowFault::Whole(ScoreError::Cancelled)),
                    () if work.deadline() <= now && sees => {
                        Err(RowFault::Whole(ScoreError::DeadlinePassed {
                            after: Duration::ZERO,
                        }))
                    }
                    () if setup.bad == Some(pair[2]) => Err(RowFault::NotScored),
                    // By its own weights, whatever the row says.
                    () => Ok(score([self.model.tag, pair[1], pair[2]])),
                }
            })
            .collect();
        let scored = taken
            .iter()
            .zip(&outcomes)
            .filter(|(_, outcome)| outcome.is_ok());
        let scored: Vec<_> = scored.map(|(row, _)| row.clone()).collect();
        let is_skipped = |outcome: &&Result<f32, RowFault>| {
            **outcome == Err(RowFault::Whole(ScoreError::Cancelled))
        };
        let n_skipped = outcomes.iter().filter(is_skipped).count();
        let is_whole = scored.len() == taken.len();
        world.ledger.count_many(Count::Skipped, n_skipped);
        if is_own {
            self.model.line.computed(&Computed {
                n_rows: scored.len(),
                size: size(&scored),
                took,
                is_whole,
                n_skipped,
                ..Computed::default()
            });
        }
        for ((work, row), outcome) in taken.iter().zip(outcomes) {
            match outcome {
                Ok(logit) => {
                    if work.finish_row(*row as usize, &[logit], took) {
                        world.ledger.scored(&(Arc::clone(work), *row));
                    }
                }
                Err(fault) => work.fail_row(*row as usize, fault),
            }
        }
        is_whole
    }

    /// `Crew::put_back`.
    fn put_back(&self, cut: &Cut, taken: &[Taken], code: FaultCode) {
        let tries_max = match code {
            FaultCode::Poisoned => POISONED_TRIES_MAX,
            FaultCode::Panicked => 0,
            _ => self.world.setup.retries_max,
        };
        let failure = Failure {
            by: self.id,
            tries: cut.tries,
            tries_max,
            is_free_together: code != FaultCode::Poisoned,
            error: backend_error("it fails as it was told"),
        };
        let now = self.world.clock.now();
        self.model.line.put_back(taken, &failure, now);
        self.model.came.ring();
    }

    /// `Crew::replace_stuck`.
    fn stuck(&self, cut: &Cut, taken: &[Taken]) {
        let (world, model) = (&self.world, &self.model);
        world.ledger.count(Count::Stuck);
        model.n_serving.set(model.n_serving.get() - 1);
        model.line.stuck(cut, world.clock.now());
        let failure = Failure {
            by: self.id,
            tries: cut.tries,
            tries_max: world.setup.retries_max,
            is_free_together: false,
            error: backend_error("it does not come back"),
        };
        model.line.put_back(taken, &failure, world.clock.now());
        model.came.ring();
        let n_workers = model.n_serving.get() + model.line.load().workers_stuck;
        if n_workers < world.setup.n_workers + STUCK_MAX {
            model.hire(world, true);
        }
    }

    /// `Crew::come_back`.
    fn come_back(&self) -> bool {
        let (model, n_serving) = (&self.model, self.model.n_serving.get());
        let is_needed = n_serving < self.world.setup.n_workers;
        model.n_serving.set(n_serving + usize::from(is_needed));
        model.line.came_back(is_needed);
        is_needed
    }

    /// `Worker::replace`.
    async fn replace(&mut self, code: FaultCode) {
        match code {
            FaultCode::Panicked => {
                self.world.ledger.count(Count::Panics);
                self.model
                    .is_poisoned
                    .set(self.epoch == self.model.epoch.get());
            }
            FaultCode::Poisoned => {}
            _ => return,
        }
        self.model.count_worker(-1);
        self.call(Some(self.epoch)).await;
        self.model.count_worker(1);
    }

    /// `Crew::call`: whether there is a backend to call.
    async fn call(&mut self, dead_epoch: Option<u64>) -> bool {
        let (world, model) = (&self.world, &self.model);
        loop {
            if dead_epoch != Some(model.epoch.get()) && !model.is_poisoned.get() {
                self.epoch = model.epoch.get();
                return true;
            }
            let epoch = model.epoch.get();
            world.clock.sleep(world.micros(REOPEN_US)).await;
            if epoch != model.epoch.get() {
                continue;
            }
            if !world.happens(world.setup.reopen_fault_share) {
                model.epoch.set(epoch + 1);
                model.is_poisoned.set(false);
                continue;
            }
            if dead_epoch.is_some() {
                model
                    .line
                    .fail_all(&backend_error("it does not open again"));
            }
            if model.line.is_closed() {
                return false;
            }
            world.clock.sleep(REOPEN_PAUSE).await;
        }
    }
}
