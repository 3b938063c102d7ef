//! A backend in this process whose batches wait at a gate.

use backend_api::{
    Backend, Description, Fault, OpenRequest, Phases, Plugin, PluginCard, RaggedBatch, RowStatus,
    Scores, Worker,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// Every score.
pub(crate) const LOGIT: f32 = 1.5;

/// A backend has no other way to its test: what it is opened with names the gate.
static GATES: Mutex<BTreeMap<String, Arc<Gate>>> = Mutex::new(BTreeMap::new());

/// The plugin.
pub(crate) struct Gated;

struct GatedBackend(Arc<Gate>);

struct GatedWorker(Arc<Gate>);

/// Open at first, for the warm-up.
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    is_shut: bool,
    /// Batches that came since it was shut, and those that may pass all the same.
    n_entered: usize,
    n_may_pass: usize,
    /// Of each row that passed since then: whether somebody waited for it.
    seen: Vec<bool>,
}

// === impl Gate ===

impl Gate {
    pub(crate) fn of(name: &str) -> Arc<Self> {
        let mut gates = GATES.lock().unwrap();
        let new = || {
            Arc::new(Self {
                state: Mutex::default(),
                changed: Condvar::new(),
            })
        };
        Arc::clone(gates.entry(name.to_owned()).or_insert_with(new))
    }

    pub(crate) fn shut(&self) {
        *self.state.lock().unwrap() = State {
            is_shut: true,
            ..State::default()
        };
    }

    pub(crate) fn open(&self) {
        self.state.lock().unwrap().is_shut = false;
        self.changed.notify_all();
    }

    pub(crate) fn let_pass(&self, n_batches: usize) {
        self.state.lock().unwrap().n_may_pass += n_batches;
        self.changed.notify_all();
    }

    /// Whether so many batches have come in time.
    pub(crate) fn wait_entered(&self, n_batches: usize, within: Duration) -> bool {
        let state = self.state.lock().unwrap();
        let waits = |state: &mut State| state.n_entered < n_batches;
        let waited = self.changed.wait_timeout_while(state, within, waits);
        !waited.unwrap().1.timed_out()
    }

    pub(crate) fn seen(&self) -> Vec<bool> {
        self.state.lock().unwrap().seen.clone()
    }

    fn enter(&self) {
        let mut state = self.state.lock().unwrap();
        state.n_entered += 1;
        self.changed.notify_all();
        let waits = |state: &mut State| state.is_shut && state.n_may_pass == 0;
        state = self.changed.wait_while(state, waits).unwrap();
        state.n_may_pass = state.n_may_pass.saturating_sub(1);
    }
}

impl Plugin for Gated {
    fn card() -> PluginCard {
        PluginCard::default()
    }

    fn open(request: &OpenRequest) -> Result<Box<dyn Backend>, Fault> {
        Ok(Box::new(GatedBackend(Gate::of(&request.options))))
    }
}

impl Backend for GatedBackend {
    fn description(&self) -> Description {
        Description {
            numerics_id: "gated".to_owned(),
            cancels: true,
            ..Description::default()
        }
    }

    fn worker(&self) -> Result<Box<dyn Worker>, Fault> {
        Ok(Box::new(GatedWorker(Arc::clone(&self.0))))
    }
}

impl Worker for GatedWorker {
    fn score(&mut self, batch: &RaggedBatch<'_>, out: &mut Scores<'_>) -> Result<Phases, Fault> {
        self.0.enter();
        for row in 0..batch.n_rows() {
            let is_wanted = batch.wanted(row);
            self.0.state.lock().unwrap().seen.push(is_wanted);
            if is_wanted {
                out.set(row, &[LOGIT]);
            } else {
                out.fail(row, RowStatus::Unwanted);
            }
        }
        Ok(Phases::default())
    }
}
