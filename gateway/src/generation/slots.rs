//! The models' places in the gateway.

use super::line::Line;
use super::{Generation, Shadow};
use crate::load::{Catalog, LastSwap, ModelState, Piece, Totals};
use crate::runtime::now;
use crate::score::ScoreError;
use arc_swap::{ArcSwap, ArcSwapOption};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// A client that comes while the server starts or stops should ask again about now.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// All slots: the configured ones in their order, then those that came later. The first one answers requests
/// that name no model.
#[derive(Default)]
pub struct Slots {
    slots: ArcSwap<Vec<Arc<Slot>>>,
    draining: AtomicBool,
}

/// How often a generation that serves no more is looked at, whether anybody still needs it.
const RETIRE_PAUSE: Duration = Duration::from_millis(5);

/// One model's place; holds the generation that serves.
struct Slot {
    name: Arc<str>,
    live: ArcSwapOption<Generation>,
    // What served before, whole, so that it can come back.
    previous: ArcSwapOption<Generation>,
    // What serves is gone, and what is to serve is not there yet: who comes now is to wait.
    is_between: AtomicBool,
    filled: Notify,
    shadow: ArcSwapOption<Shadow>,
    past: Mutex<Past>,
}

/// What served before.
#[derive(Default)]
struct Past {
    // Of those that serve no more and are not gone.
    lines: Vec<Arc<Line>>,
    // Of those that are gone: what counts up never counts down.
    totals: Totals,
    n_generations: u64,
    // Its last generation ended for one that did not come: only a load fills the slot again.
    is_lost: bool,
    last_swap: Option<LastSwap>,
}

// === impl Slots ===

impl Slots {
    /// Empty slots of these names.
    pub fn new(names: impl IntoIterator<Item = Arc<str>>) -> Self {
        let slots: Vec<_> = names.into_iter().map(Slot::new).collect();
        Self {
            slots: ArcSwap::from_pointee(slots),
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

    /// Puts a generation into the slot of its name, which is made if there is none. New requests go to it from
    /// now on; what served before goes on with what it has, and is kept until it is
    /// [taken](Self::take_previous).
    pub fn publish(&self, generation: Arc<Generation>) {
        let name = generation.name();
        let slot = self.find(&name).unwrap_or_else(|| self.add(name));
        let mut past = slot.past();
        past.n_generations = past.n_generations.max(generation.facts().number);
        past.is_lost = false;
        let before = slot.live.swap(Some(generation));
        let line = before.as_ref().map(|before| Arc::clone(before.line()));
        past.lines.extend(line);
        slot.previous.store(before);
        drop(past);
        slot.fill();
    }

    /// Takes what serves out of its slot, which is to be filled at once: until it is, or until it is said that
    /// it [will not be](Self::give_up), who comes waits.
    pub fn vacate(&self, name: &str) -> Option<Arc<Generation>> {
        let slot = self.find(name)?;
        let mut past = slot.past();
        slot.is_between.store(true, Ordering::SeqCst);
        let live = slot.live.swap(None)?;
        past.lines.push(Arc::clone(live.line()));
        Some(live)
    }

    /// Nothing is coming for a slot that was [vacated](Self::vacate).
    pub fn give_up(&self, name: &str) {
        if let Some(slot) = self.find(name) {
            slot.past().is_lost = slot.live.load().is_none();
            slot.fill();
        }
    }

    /// Whether this model served, and does not any more: it is there, and can be loaded or taken away.
    pub fn is_lost(&self, name: &str) -> bool {
        self.find(name).is_some_and(|slot| slot.past().is_lost)
    }

    /// Puts what served before back into its slot; what served until now. `None`, and nothing done, if
    /// there is nothing before it.
    pub fn restore(&self, name: &str) -> Option<Arc<Generation>> {
        let slot = self.find(name)?;
        let mut past = slot.past();
        let previous = slot.previous.swap(None)?;
        past.lines
            .retain(|line| !Arc::ptr_eq(line, previous.line()));
        let failed = slot.live.swap(Some(previous))?;
        past.lines.push(Arc::clone(failed.line()));
        Some(failed)
    }

    /// What served before, which cannot be restored from now on.
    pub fn take_previous(&self, name: &str) -> Option<Arc<Generation>> {
        self.find(name)?.previous.swap(None)
    }

    /// What served before a generation and still could: where that one fails a request, the request is none
    /// the worse for it.
    pub fn previous(&self, generation: &Generation) -> Option<Arc<Generation>> {
        let previous = self.find(&generation.name())?.previous.load_full()?;
        (previous.facts().number != generation.facts().number).then_some(previous)
    }

    /// Has requests of a model tried out on another generation, or (`None`) not any more.
    pub fn cast_shadow(&self, name: &str, shadow: Option<Arc<Shadow>>) {
        if let Some(slot) = self.find(name) {
            slot.shadow.store(shadow);
        }
    }

    /// Whoever wants to compare a generation's scores.
    pub fn shadow(&self, generation: &Generation) -> Option<Arc<Shadow>> {
        self.find(&generation.name())?.shadow.load_full()
    }

    /// Takes a model's slot away: what served in it, and before. New requests do not know it any more.
    pub fn remove(&self, name: &str) -> Vec<Arc<Generation>> {
        let Some(slot) = self.find(name) else {
            return Vec::new();
        };
        self.slots.rcu(|slots| {
            let mut slots = Vec::clone(slots);
            slots.retain(|other| !Arc::ptr_eq(other, &slot));
            slots
        });
        let live = slot.live.swap(None);
        slot.fill();
        live.into_iter().chain(slot.previous.swap(None)).collect()
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
            let n_lines = past.lines.len();
            past.lines
                .retain(|line| !Arc::ptr_eq(line, generation.line()));
            // What never served, or served in a slot of that name which is gone, has done nothing here.
            if past.lines.len() < n_lines {
                past.totals += generation.line().totals();
            }
        }
    }

    fn add(&self, name: Arc<str>) -> Arc<Slot> {
        let slot = Slot::new(name);
        self.slots.rcu(|slots| {
            let mut slots = Vec::clone(slots);
            slots.push(Arc::clone(&slot));
            slots
        });
        slot
    }

    fn find(&self, name: &str) -> Option<Arc<Slot>> {
        let slots = self.slots.load();
        slots.iter().find(|slot| &*slot.name == name).cloned()
    }

    /// Every model's name.
    pub fn names(&self) -> Vec<Arc<str>> {
        let slots = self.slots.load();
        slots.iter().map(|slot| Arc::clone(&slot.name)).collect()
    }

    fn named(&self, name: Option<&str>) -> Result<Arc<Slot>, ScoreError> {
        let slot = match name {
            None | Some("") => self.slots.load().first().cloned(),
            Some(name) => self.find(name),
        };
        slot.ok_or_else(|| match name {
            None | Some("") => ScoreError::no_model(),
            Some(name) => ScoreError::UnknownModel {
                name: name.to_owned(),
                known: self.names().iter().map(ToString::to_string).collect(),
            },
        })
    }

    /// The generation that serves the model of this name, or the first model.
    ///
    /// # Errors
    /// `UnknownModel`, or `Unavailable` while it is not there.
    pub fn live(&self, name: Option<&str>) -> Result<Arc<Generation>, ScoreError> {
        let slot = self.named(name)?;
        slot.live
            .load_full()
            .ok_or_else(|| ScoreError::Unavailable {
                why: format!("the model {} is {}", slot.name, slot.why_empty()),
                retry_after: RETRY_AFTER,
            })
    }

    /// The same, but where a generation is about to come it is waited for. Whoever asks bounds the time.
    ///
    /// # Errors
    /// As for [`live`](Self::live).
    pub async fn live_soon(&self, name: Option<&str>) -> Result<Arc<Generation>, ScoreError> {
        loop {
            let slot = self.named(name)?;
            let mut filled = std::pin::pin!(slot.filled.notified());
            // Before it is looked at: what comes meanwhile is not missed.
            filled.as_mut().enable();
            let is_between = slot.is_between.load(Ordering::SeqCst);
            match self.live(name) {
                Err(_) if is_between && !self.is_draining() => filled.await,
                found => return found,
            }
        }
    }

    /// The server is about to stop: readiness says so, and nobody waits for a generation that is to come. Who comes
    /// is refused at the door; who was let in before is still answered.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        let slots = self.slots.load();
        slots.iter().for_each(|slot| slot.filled.notify_waiters());
    }

    /// Whether [`drain`](Self::drain) was called.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Closes all generations and waits for what they had admitted, at most until `deadline`. Blocks.
    pub fn shut_down(&self, deadline: Instant) {
        let slots = self.slots.load_full();
        let all = slots
            .iter()
            .flat_map(|slot| [slot.live.load_full(), slot.previous.load_full()]);
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
    fn new(name: Arc<str>) -> Arc<Self> {
        Arc::new(Self {
            name,
            live: ArcSwapOption::empty(),
            previous: ArcSwapOption::empty(),
            is_between: AtomicBool::new(false),
            filled: Notify::new(),
            shadow: ArcSwapOption::empty(),
            past: Mutex::default(),
        })
    }

    /// Nobody waits for it any more.
    fn fill(&self) {
        self.is_between.store(false, Ordering::SeqCst);
        self.filled.notify_waiters();
    }

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

    fn why_not_ready(&self) -> Option<String> {
        let name = &self.name;
        let Some(generation) = self.live.load_full() else {
            return Some(format!("the model {name} is {}", self.why_empty()));
        };
        let state = generation.state().state;
        (state != "live").then(|| format!("the model {name} is {state}"))
    }

    /// Why nothing serves.
    fn why_empty(&self) -> &'static str {
        match self.is_between.load(Ordering::SeqCst) {
            true => "being replaced",
            false if self.past().is_lost => "not served any more",
            false => "not loaded yet",
        }
    }

    fn past(&self) -> MutexGuard<'_, Past> {
        // Nothing in here can panic half-way; a poisoned lock is still sound.
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Catalog for Slots {
    fn models(&self) -> Vec<ModelState> {
        let slots = self.slots.load();
        slots.iter().filter_map(|slot| slot.state()).collect()
    }

    fn not_ready(&self) -> Vec<String> {
        if self.is_draining() {
            return vec!["the server is shutting down".to_owned()];
        }
        let slots = self.slots.load();
        if slots.is_empty() {
            return vec!["no model is loaded".to_owned()];
        }
        slots
            .iter()
            .filter_map(|slot| slot.why_not_ready())
            .collect()
    }

    fn encode(&self, text: &str, special: bool) -> Result<Vec<Piece>, ScoreError> {
        self.live(None)?.tokenizer().pieces(text, special)
    }

    fn decode(&self, ids: &[u32], plain: bool) -> Result<String, ScoreError> {
        self.live(None)?.tokenizer().text(ids, plain)
    }
}
