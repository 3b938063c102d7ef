//! The models' places in the gateway.

use super::Generation;
use super::line::Line;
use crate::load::{Catalog, LastSwap, ModelState, Totals};
use crate::runtime::now;
use crate::score::ScoreError;
use arc_swap::ArcSwapOption;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A client that comes while the server starts or stops should ask again about now.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// All slots, in configured order; the first one answers requests that name no model.
#[derive(Default)]
pub struct Slots {
    slots: Vec<Slot>,
    draining: AtomicBool,
}

/// How often a generation that serves no more is looked at, whether anybody still needs it.
const RETIRE_PAUSE: Duration = Duration::from_millis(5);

/// One model's place; holds the generation that serves.
struct Slot {
    name: Arc<str>,
    live: ArcSwapOption<Generation>,
    past: Mutex<Past>,
}

/// What served before.
#[derive(Default)]
struct Past {
    // Whole, so that it can come back.
    previous: Option<Arc<Generation>>,
    // Of those that serve no more and are not gone.
    lines: Vec<Arc<Line>>,
    // Of those that are gone: what counts up never counts down.
    totals: Totals,
    n_generations: u64,
    last_swap: Option<LastSwap>,
}

// === impl Slots ===

impl Slots {
    /// Empty slots of these names.
    pub fn new(names: impl IntoIterator<Item = Arc<str>>) -> Self {
        let slots = names
            .into_iter()
            .map(|name| Slot {
                name,
                live: ArcSwapOption::empty(),
                past: Mutex::default(),
            })
            .collect();
        Self {
            slots,
            draining: AtomicBool::new(false),
        }
    }

    /// The number of the next generation of a model.
    pub fn next_number(&self, name: &str) -> u64 {
        let slot = self.find(name);
        slot.map_or(1, |slot| {
            let mut past = slot.past();
            past.n_generations += 1;
            past.n_generations
        })
    }

    /// Puts a generation into the slot of its name. New requests go to it from now on; what served before
    /// goes on with what it has, and is kept until it is [taken](Self::take_previous).
    pub fn publish(&self, generation: Arc<Generation>) {
        if let Some(slot) = self.find(&generation.name()) {
            let mut past = slot.past();
            past.previous = slot.live.swap(Some(generation));
            let line = past
                .previous
                .as_ref()
                .map(|previous| Arc::clone(previous.line()));
            past.lines.extend(line);
        }
    }

    /// Puts what served before back into its slot; what served until now. `None`, and nothing done, if
    /// there is nothing before it.
    pub fn restore(&self, name: &str) -> Option<Arc<Generation>> {
        let slot = self.find(name)?;
        let mut past = slot.past();
        let previous = past.previous.take()?;
        past.lines
            .retain(|line| !Arc::ptr_eq(line, previous.line()));
        let failed = slot.live.swap(Some(previous))?;
        past.lines.push(Arc::clone(failed.line()));
        Some(failed)
    }

    /// What served before, which cannot be restored from now on.
    pub fn take_previous(&self, name: &str) -> Option<Arc<Generation>> {
        self.find(name)?.past().previous.take()
    }

    /// What served before: its numerics id, and what it has done.
    pub fn previous_facts(&self, name: &str) -> Option<(String, Totals)> {
        let past = self.find(name)?.past();
        let previous = past.previous.as_ref()?;
        let numerics_id = previous.facts().description.numerics_id.clone();
        Some((numerics_id, previous.line().totals()))
    }

    /// A swap of a model has reached something.
    pub fn note_swap(&self, name: &str, state: &'static str, detail: &str) {
        if let Some(slot) = self.find(name) {
            slot.past().last_swap = Some(LastSwap {
                state,
                detail: detail.to_owned(),
            });
        }
    }

    /// Ends a generation that is in no slot: waits until nobody is about to use it and what it had admitted
    /// is done, at most until `deadline`. Blocks.
    pub fn retire(&self, generation: Arc<Generation>, deadline: Instant) {
        // Whoever was routed to it holds it until it is answered.
        while 1 < Arc::strong_count(&generation) && now() < deadline {
            std::thread::sleep(RETIRE_PAUSE);
        }
        generation.close();
        generation.join(deadline);
        if let Some(slot) = self.find(&generation.name()) {
            let mut past = slot.past();
            past.lines
                .retain(|line| !Arc::ptr_eq(line, generation.line()));
            past.totals += generation.line().totals();
        }
    }

    fn find(&self, name: &str) -> Option<&Slot> {
        self.slots.iter().find(|slot| &*slot.name == name)
    }

    /// The generation that serves the model of this name, or the first model.
    ///
    /// # Errors
    /// `UnknownModel`, or `Unavailable` while it is not there or the server is stopping.
    pub fn live(&self, name: Option<&str>) -> Result<Arc<Generation>, ScoreError> {
        let slot = match name {
            None | Some("") => self.slots.first(),
            Some(name) => self.slots.iter().find(|slot| &*slot.name == name),
        };
        let slot = slot.ok_or_else(|| ScoreError::UnknownModel {
            name: name.unwrap_or_default().to_owned(),
            known: self
                .slots
                .iter()
                .map(|slot| slot.name.to_string())
                .collect(),
        })?;
        if self.is_draining() {
            let why = "the server is shutting down".to_owned();
            return Err(ScoreError::Unavailable {
                why,
                retry_after: RETRY_AFTER,
            });
        }
        slot.live
            .load_full()
            .ok_or_else(|| ScoreError::Unavailable {
                why: format!("the model {} is not loaded yet", slot.name),
                retry_after: RETRY_AFTER,
            })
    }

    /// New requests are refused from now on, and readiness says so; admitted ones are finished.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether [`drain`](Self::drain) was called.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Closes all generations and waits for what they had admitted, at most until `deadline`. Blocks.
    pub fn shut_down(&self, deadline: Instant) {
        let all = self
            .slots
            .iter()
            .flat_map(|slot| [slot.live.load_full(), slot.past().previous.clone()]);
        let live: Vec<_> = all.flatten().collect();
        for generation in &live {
            generation.close();
        }
        for generation in &live {
            generation.join(deadline);
        }
    }
}

impl Slot {
    /// Of what serves, with the totals of all that served here.
    fn state(&self) -> Option<ModelState> {
        // Locked first: between the two a generation would count twice, or not at all.
        let past = self.past();
        let mut state = self.live.load_full()?.state();
        state.totals += past.totals;
        state.last_swap.clone_from(&past.last_swap);
        for line in &past.lines {
            state.totals += line.totals();
        }
        Some(state)
    }

    fn past(&self) -> MutexGuard<'_, Past> {
        // Nothing in here can panic half-way; a poisoned lock is still sound.
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Catalog for Slots {
    fn models(&self) -> Vec<ModelState> {
        self.slots.iter().filter_map(Slot::state).collect()
    }

    fn not_ready(&self) -> Vec<String> {
        if self.is_draining() {
            return vec!["the server is shutting down".to_owned()];
        }
        let why = |slot: &Slot| match slot.live.load_full() {
            None => Some(format!("the model {} is not loaded yet", slot.name)),
            Some(generation) => {
                let state = generation.state().state;
                (state != "live").then(|| format!("the model {} is {state}", slot.name))
            }
        };
        self.slots.iter().filter_map(why).collect()
    }
}
