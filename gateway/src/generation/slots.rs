//! The models' places in the gateway.

use super::Generation;
use crate::load::{Catalog, ModelState};
use crate::score::ScoreError;
use arc_swap::ArcSwapOption;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A client that comes while the server starts or stops should ask again about now.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// All slots, in configured order; the first one answers requests that name no model.
#[derive(Default)]
pub struct Slots {
    slots: Vec<Slot>,
    draining: AtomicBool,
}

/// One model's place; holds the generation that serves.
struct Slot {
    name: Arc<str>,
    live: ArcSwapOption<Generation>,
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
            })
            .collect();
        Self {
            slots,
            draining: AtomicBool::new(false),
        }
    }

    /// Puts a generation into the slot of its name. New requests go to it from now on.
    pub fn publish(&self, generation: Arc<Generation>) {
        let name = generation.name();
        if let Some(slot) = self.slots.iter().find(|slot| slot.name == name) {
            slot.live.store(Some(generation));
        }
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
        if self.draining.load(Ordering::Relaxed) {
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

    /// Closes all generations and waits for what they had admitted, at most until `deadline`. Blocks.
    pub fn shut_down(&self, deadline: Instant) {
        let live: Vec<_> = self
            .slots
            .iter()
            .filter_map(|slot| slot.live.load_full())
            .collect();
        for generation in &live {
            generation.close();
        }
        for generation in &live {
            generation.join(deadline);
        }
    }
}

impl Catalog for Slots {
    fn models(&self) -> Vec<ModelState> {
        self.slots
            .iter()
            .filter_map(|slot| slot.live.load_full())
            .map(|generation| generation.state())
            .collect()
    }

    fn not_ready(&self) -> Vec<String> {
        if self.draining.load(Ordering::Relaxed) {
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
