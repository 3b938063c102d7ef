//! Models are replaced, loaded and unloaded while others serve: what is new is proven before it goes live, watched
//! afterwards, and what served before comes back by itself if it disappoints.

mod arrivals;
mod guard;
mod road;
mod watch;

pub(super) use arrivals::follow_files;
pub(super) use guard::stand_guard;

use super::models::{By, Loader, Recipe};
use crate::cache::Levels;
use crate::config::{MODELS_MAX, NamedSource};
use crate::control::{SwapError, SwapOrder, SwapState, SwapStep};
use crate::generation::{Facts, Generation, Slots};
use crate::model::{Source, progress};
use crate::runtime::{Runtime, now};
use crate::score::ScoreError;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Steps that wait for whoever listens; more than a swap has.
const STEPS_MAX: usize = 16;
/// Whoever listens to one swap.
const LISTENERS_MAX: usize = 16;
/// After a request's own time, what it takes to tell its client.
const GRACE: Duration = Duration::from_secs(5);

/// All swaps of a server: one at a time for each model.
#[derive(Clone)]
pub(super) struct Swaps {
    loader: Arc<Loader>,
    slots: Arc<Slots>,
    levels: Levels,
    runtime: Runtime,
    // By model.
    records: Arc<Mutex<BTreeMap<String, Record>>>,
}

/// What is remembered of a model.
#[derive(Default)]
struct Record {
    running: Option<Arc<Running>>,
    // What served, to everybody's satisfaction, before what serves.
    before: Option<Arc<Facts>>,
}

/// A swap under way.
#[derive(Default)]
struct Running {
    wish: Mutex<Wish>,
    listeners: Mutex<Vec<mpsc::Sender<SwapStep>>>,
}

/// What an operator wants of a swap under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Wish {
    #[default]
    GoOn,
    End,
    /// Nothing any more: it is about to end as it was ordered.
    Settled,
}

/// Why what was ordered to end did.
const ASKED: &str = "an operator asked for it";

/// One swap.
struct Swap {
    all: Swaps,
    order: SwapOrder,
    running: Arc<Running>,
    begun: Instant,
}

// === impl Swaps ===

impl Swaps {
    pub(super) fn new(
        loader: Arc<Loader>,
        slots: Arc<Slots>,
        levels: Levels,
        runtime: Runtime,
    ) -> Self {
        Self {
            loader,
            slots,
            levels,
            runtime,
            records: Arc::default(),
        }
    }

    /// Has a model that serves be served by something else.
    pub(super) fn start(&self, order: SwapOrder) -> Result<mpsc::Receiver<SwapStep>, SwapError> {
        self.live(&order.model)?;
        let (swap, reached) = self.begin(order)?;
        // Only now: a swap or an unload may have ended in between.
        let live = self.live(&swap.order.model);
        let live = live.inspect_err(|_| self.forget_running(&swap))?;
        self.runtime.blocking(move || swap.run(Some(live)));
        Ok(reached)
    }

    /// Has a model served that is not there yet. Its name is its source unless the order says one.
    pub(super) fn load(&self, order: SwapOrder) -> Result<mpsc::Receiver<SwapStep>, SwapError> {
        let source = order.source.as_deref().unwrap_or(&order.model);
        let named = NamedSource::new(&order.model, source)
            .map_err(|why| SwapError::Model(ScoreError::invalid("model", why)))?;
        let order = SwapOrder {
            model: named.name,
            source: Some(named.source),
            ..order
        };
        let (swap, reached) = self.begin(order)?;
        if let Err(why) = self.check_new(&swap.order.model) {
            self.forget_running(&swap);
            return Err(SwapError::NotNow(why));
        }
        self.runtime.blocking(move || swap.run(None));
        Ok(reached)
    }

    fn check_new(&self, name: &str) -> Result<(), String> {
        if self.slots.is_lost(name) {
            return Ok(());
        }
        let names = self.slots.names();
        if names.iter().any(|known| **known == *name) {
            return Err(format!(
                "{name}: there is a model of this name; swap it, or unload it first"
            ));
        }
        if MODELS_MAX < names.len() + self.n_coming(&names) {
            return Err(format!(
                "{MODELS_MAX} models are loaded or about to be, as many as one server serves: unload one first"
            ));
        }
        Ok(())
    }

    /// Models that are being loaded, and have no place yet.
    fn n_coming(&self, names: &[Arc<str>]) -> usize {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let is_coming = |(name, record): &(&String, &Record)| {
            record.running.is_some() && !names.iter().any(|known| **known == ***name)
        };
        records.iter().filter(is_coming).count()
    }

    /// Takes a model away.
    pub(super) fn unload(&self, model: &str) -> Result<mpsc::Receiver<SwapStep>, SwapError> {
        let name = match self.live(model) {
            Ok(live) => live.name(),
            Err(_) if self.slots.is_lost(model) => model.into(),
            Err(error) => return Err(error),
        };
        let (swap, reached) = self.begin(SwapOrder::of(&name))?;
        self.runtime.blocking(move || swap.unload());
        Ok(reached)
    }

    /// Ends a swap that is under way, whether it has gone live or not; without one, has what served before the
    /// last one serve again.
    pub(super) fn rollback(&self, model: &str) -> Result<mpsc::Receiver<SwapStep>, SwapError> {
        let name = match self.live(model) {
            Ok(live) => live.name().to_string(),
            // Not loaded yet: a load can be ended, too.
            Err(_) if self.record(model, |record| record.running.is_some()) => model.to_owned(),
            Err(error) => return Err(error),
        };
        let (running, before) = self.record(&name, |record| {
            (record.running.clone(), record.before.clone())
        });
        if let Some(running) = running {
            let reached = running.listen()?;
            if running.ask_end() {
                return Ok(reached);
            }
            return Err(SwapError::NotNow(format!(
                "{name}: what was ordered before is about to be done and cannot be ended any more; order it again"
            )));
        }
        let Some(before) = before else {
            return Err(SwapError::NotNow(format!(
                "{name}: nothing served before what serves now"
            )));
        };
        let (swap, reached) = self.begin(SwapOrder::of(&name))?;
        swap.running.ask_end();
        self.runtime.blocking(move || swap.go_back(&before, ASKED));
        Ok(reached)
    }

    /// Has a model served as it was before.
    fn go_back(
        &self,
        model: &str,
        before: Arc<Facts>,
        why: String,
    ) -> Result<mpsc::Receiver<SwapStep>, SwapError> {
        let (swap, reached) = self.begin(SwapOrder::of(model))?;
        self.runtime.blocking(move || swap.go_back(&before, &why));
        Ok(reached)
    }

    fn begin(&self, order: SwapOrder) -> Result<(Swap, mpsc::Receiver<SwapStep>), SwapError> {
        let running = Arc::new(Running::default());
        let reached = running.listen()?;
        let is_first = self.record(&order.model, |record| {
            let is_first = record.running.is_none();
            record.running.get_or_insert_with(|| Arc::clone(&running));
            is_first
        });
        if !is_first {
            let model = &order.model;
            return Err(SwapError::NotNow(format!(
                "{model}: a swap of it is under way or in its probation; wait for its end, or roll it back"
            )));
        }
        let swap = Swap {
            all: self.clone(),
            order,
            running,
            begun: now(),
        };
        Ok((swap, reached))
    }

    /// It has not even begun.
    fn forget_running(&self, swap: &Swap) {
        self.record(&swap.order.model, |record| record.running = None);
    }

    fn live(&self, model: &str) -> Result<Arc<Generation>, SwapError> {
        self.slots.live(Some(model)).map_err(SwapError::Model)
    }

    /// Opens what served before: the same file, the same source, the same words.
    fn reopen(&self, facts: &Facts) -> Result<Arc<Generation>, String> {
        let image = &facts.image;
        let library = self.loader.host.by_hash(image);
        let library = library.ok_or_else(|| format!("no image {image} is mapped"))?;
        let recipe = Recipe {
            name: facts.name.to_string(),
            source: Source::parse(&facts.source)?,
            written: facts.source.clone(),
            dtype: facts.request.dtype.clone(),
            device: facts.request.device.clone(),
            options: facts.request.options.clone(),
            number: self.slots.next_number(&facts.name),
        };
        let cards = [library.card().clone()];
        let by = By::Library(library, image.clone());
        let read = self
            .loader
            .read(recipe, &cards, &*progress::for_stderr())
            .map_err(|error| error.to_string())?;
        if !read.info().has_weights_of(&facts.info) {
            return Err(format!("{} holds other weights by now", facts.source));
        }
        let opened = self.loader.open(read, &by);
        opened.map_err(|error| error.to_string())
    }

    /// Ends a generation that is in no slot. Nobody waits for it: requests that it has may take their time.
    fn retire(&self, generation: Arc<Generation>) {
        let (slots, deadline) = (Arc::clone(&self.slots), self.retired_by());
        self.runtime
            .blocking(move || slots.retire(generation, deadline));
    }

    /// Ends a generation that was taken back for `before`.
    fn retire_taken_back(&self, failed: Arc<Generation>, before: &Arc<Facts>) {
        self.forget_scores(failed.facts(), before);
        let (all, before, deadline) = (self.clone(), Arc::clone(before), self.retired_by());
        self.runtime.blocking(move || {
            let facts = Arc::clone(failed.facts());
            all.slots.retire(failed, deadline);
            // What it still had to answer.
            all.forget_scores(&facts, &before);
        });
    }

    /// What a generation that was taken back has left in the cache would be answered as the scores of `before`,
    /// where both have the same numerics id. Blocks.
    fn forget_scores(&self, failed: &Facts, before: &Facts) {
        let has_its_weights = failed.info.fingerprint == before.info.fingerprint;
        if !has_its_weights || failed.description.numerics_id != before.description.numerics_id {
            return;
        }
        self.levels.clear();
        if let Some(shared) = &self.levels.shared
            && let Err(error) = self.runtime.wait(shared.clear())
        {
            tracing::warn!("scores of what was taken back may be in the shared cache: {error}");
        }
    }

    /// When the last request that was routed just now has been answered.
    fn retired_by(&self) -> Instant {
        now() + self.loader.config.server().request_timeout + GRACE
    }

    /// Looks at a model's record, or changes it. One that says nothing is not kept.
    fn record<T>(&self, model: &str, change: impl FnOnce(&mut Record) -> T) -> T {
        // Nothing in here can panic half-way; a poisoned lock is still sound.
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let record = records.entry(model.to_owned()).or_default();
        let outcome = change(record);
        if record.running.is_none() && record.before.is_none() {
            records.remove(model);
        }
        outcome
    }
}

// === impl Running ===

impl Running {
    /// What is reached from now on.
    fn listen(&self) -> Result<mpsc::Receiver<SwapStep>, SwapError> {
        let (steps, reached) = mpsc::channel(STEPS_MAX);
        let mut listeners = self.listeners();
        listeners.retain(|listener| !listener.is_closed());
        if LISTENERS_MAX <= listeners.len() {
            let why = "too many wait for the end of this swap already".to_owned();
            return Err(SwapError::NotNow(why));
        }
        listeners.push(steps);
        Ok(reached)
    }

    /// Has it end, if it still can.
    fn ask_end(&self) -> bool {
        let mut wish = self.wish();
        if *wish == Wish::GoOn {
            *wish = Wish::End;
        }
        *wish == Wish::End
    }

    fn wish(&self) -> MutexGuard<'_, Wish> {
        self.wish.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listeners(&self) -> MutexGuard<'_, Vec<mpsc::Sender<SwapStep>>> {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Swap ===

/// A panic on the way would leave the model's next order, and whoever listens, waiting for ever.
impl Drop for Swap {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let (slots, model) = (&self.all.slots, self.order.model.as_str());
        slots.cast_shadow(model, None);
        slots.give_up(model);
        let previous = slots.take_previous(model);
        previous
            .into_iter()
            .for_each(|previous| self.all.retire(previous));
        let why = "it panicked, which is a bug: the log says where";
        self.tell(SwapState::Refused, why.to_owned());
    }
}

impl Swap {
    fn unload(self) {
        // Whoever asks for its end from here on is told that it is too late.
        _ = self.settle();
        let model = self.order.model.as_str();
        let gone = self.all.slots.remove(model);
        self.tell(
            SwapState::Draining,
            "new requests do not find it".to_owned(),
        );
        let deadline = self.all.retired_by();
        for generation in gone {
            self.all.slots.retire(generation, deadline);
        }
        self.all.record(model, |record| record.before = None);
        self.tell(SwapState::Unloaded, "its memory is free".to_owned());
    }

    /// Whether somebody wants it to end.
    ///
    /// # Errors
    /// That it is so.
    fn check_wanted(&self) -> Result<(), String> {
        match *self.running.wish() {
            Wish::End => Err(ASKED.to_owned()),
            Wish::GoOn | Wish::Settled => Ok(()),
        }
    }

    /// The same, for the last time: from here on it cannot be ended any more.
    fn settle(&self) -> Result<(), String> {
        let mut wish = self.running.wish();
        if *wish == Wish::End {
            return Err(ASKED.to_owned());
        }
        *wish = Wish::Settled;
        Ok(())
    }

    /// Whoever listens hears it; whoever does not finds it in the log.
    fn tell(&self, state: SwapState, detail: String) {
        let model = self.order.model.as_str();
        let is_wanted = self.check_wanted().is_err();
        match state {
            SwapState::RolledBack if is_wanted => {
                tracing::info!(model, state = state.name(), "swap: {detail}");
            }
            SwapState::Refused | SwapState::RolledBack => {
                tracing::error!(model, state = state.name(), "swap: {detail}");
            }
            _ => tracing::info!(model, state = state.name(), "swap: {detail}"),
        }
        self.all.slots.note_swap(model, state.name(), &detail);
        if state.is_last() {
            self.all.loader.metrics.for_model(model).swap(state.name());
            // Before it is told: whoever hears of the end may begin the next one.
            self.all.record(model, |record| record.running = None);
        }
        let step = SwapStep {
            state,
            detail,
            after: self.begun.elapsed(),
        };
        for listener in self.running.listeners().iter() {
            let _ = listener.try_send(step.clone());
        }
    }
}
