//! A model's backend is replaced while it serves: what is new is proven before it goes live, watched
//! afterwards, and what served before comes back by itself if it disappoints.
//!
//! Each step takes what the step before it made, so none can be left out.

use super::models::{By, Loader, Read, Recipe};
use crate::control::{SwapError, SwapOrder, SwapState, SwapStep};
use crate::generation::probation::{self, Before};
use crate::generation::{Facts, Generation, Golden, Slots, Tolerance};
use crate::host::{self, Probed};
use crate::model::Source;
use crate::runtime::{Runtime, now};
use backend_api::PluginLibrary;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Steps that wait for whoever listens.
const STEPS_MAX: usize = 16;
/// How long the golden rows may take, on a busy server too.
const GOLDEN_MAX: Duration = Duration::from_secs(60);
/// How often a generation in its probation is looked at.
const WATCH_PAUSE: Duration = Duration::from_millis(100);
/// How often its golden rows are scored again.
const DRIFT_PAUSE: Duration = Duration::from_secs(5);
/// After a request's own time, what it takes to tell its client.
const GRACE: Duration = Duration::from_secs(5);

/// All swaps of a server: one at a time for each model.
#[derive(Clone)]
pub(super) struct Swaps {
    loader: Arc<Loader>,
    slots: Arc<Slots>,
    runtime: Runtime,
    // By model.
    running: Arc<Mutex<BTreeMap<String, Arc<Running>>>>,
}

/// A swap under way.
#[derive(Default)]
struct Running {
    is_live: AtomicBool,
    wants_rollback: AtomicBool,
}

/// One swap.
struct Swap {
    all: Swaps,
    order: SwapOrder,
    running: Arc<Running>,
    steps: mpsc::Sender<SwapStep>,
    begun: Instant,
}

/// The file is there.
struct Found(PathBuf);

/// It works, in a process of its own.
struct Verified {
    path: PathBuf,
    sha256: String,
}

/// It is a plugin, and mapped.
struct Loaded {
    library: Arc<PluginLibrary>,
    sha256: String,
}

/// It has opened the model, and computed.
struct Warm(Arc<Generation>);

/// Its scores are what they should be.
struct Proven {
    generation: Arc<Generation>,
    golden: Golden,
    detail: String,
}

// === impl Swaps ===

impl Swaps {
    pub(super) fn new(loader: Arc<Loader>, slots: Arc<Slots>, runtime: Runtime) -> Self {
        Self {
            loader,
            slots,
            runtime,
            running: Arc::default(),
        }
    }

    pub(super) fn start(&self, order: SwapOrder) -> Result<mpsc::Receiver<SwapStep>, SwapError> {
        let live = self
            .slots
            .live(Some(&order.model))
            .map_err(SwapError::Model)?;
        let order = SwapOrder {
            // An empty name means the first model.
            model: live.name().to_string(),
            ..order
        };
        let running = Arc::new(Running::default());
        match self.running().entry(order.model.clone()) {
            std::collections::btree_map::Entry::Occupied(other) => {
                let why = if other.get().is_live.load(Ordering::Relaxed) {
                    "its last swap is in probation: wait for its end, or roll it back"
                } else {
                    "it is being swapped"
                };
                return Err(SwapError::NotNow(format!("{}: {why}", order.model)));
            }
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(Arc::clone(&running));
            }
        }
        let (steps, reached) = mpsc::channel(STEPS_MAX);
        let swap = Swap {
            all: self.clone(),
            order,
            running,
            steps,
            begun: now(),
        };
        self.runtime.blocking(move || swap.run(live));
        Ok(reached)
    }

    pub(super) fn rollback(&self, model: &str) -> Result<(), SwapError> {
        let live = self.slots.live(Some(model)).map_err(SwapError::Model)?;
        let name = live.name();
        let running = self.running().get(&*name).cloned();
        let running = running.filter(|running| running.is_live.load(Ordering::Relaxed));
        let Some(running) = running else {
            return Err(SwapError::NotNow(format!(
                "{name}: no swap of it is in probation; what served before is kept no longer. Swap to it again"
            )));
        };
        running.wants_rollback.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Running>>> {
        // Nothing in here can panic half-way; a poisoned lock is still sound.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Swap ===

impl Swap {
    fn run(self, live: Arc<Generation>) {
        let (state, detail) = match self.prove_new(live) {
            Ok(proven) => self.serve(proven),
            Err(why) => (SwapState::Refused, why),
        };
        self.tell(state, detail);
    }

    /// Everything before it serves. A failure leaves what serves untouched.
    fn prove_new(&self, live: Arc<Generation>) -> Result<Proven, String> {
        let found = self.find(&live)?;
        let read = self.read(&found, &live)?;
        let verified = self.verify(found, &read)?;
        let loaded = self.load(verified)?;
        let warm = self.open(loaded, read)?;
        let new = Arc::clone(&warm.0);
        self.prove(warm, &live).inspect_err(|_| self.retire(new))
    }

    fn find(&self, live: &Generation) -> Result<Found, String> {
        let host = &self.all.loader.host;
        let path = match &self.order.plugin {
            Some(name) => host.find(name)?,
            None => {
                let files = host.files().into_iter();
                let mut its =
                    files.filter(|file| file.sha256.as_ref() == Some(&live.facts().image));
                its.next()
                    .ok_or("the file of its plugin is not known any more")?
                    .path
            }
        };
        self.tell(SwapState::Found, path.display().to_string());
        Ok(Found(path))
    }

    /// The model, read as it will be opened.
    fn read(&self, found: &Found, live: &Generation) -> Result<Read, String> {
        let (order, facts) = (&self.order, live.facts());
        let asked = &facts.request;
        let known = self.all.loader.host.files().into_iter();
        let mut known = known.filter(|file| file.path == found.0);
        let card = known
            .next()
            .and_then(|file| Some(file.found.ok()?.card().name.clone()));
        // A file that nobody has looked at may be anything.
        let is_same_plugin = card.as_ref() == Some(&facts.plugin.0);
        let of_plugin = |said: &Option<String>, now: &String, other: &str| match said {
            Some(said) => said.clone(),
            // Another plugin has options and spellings of its own.
            None if is_same_plugin => now.clone(),
            None => other.to_owned(),
        };
        let written = order.source.clone().unwrap_or_else(|| facts.source.clone());
        let recipe = Recipe {
            name: order.model.clone(),
            source: Source::parse(&written)?,
            written,
            dtype: of_plugin(&order.dtype, &asked.dtype, "auto"),
            device: of_plugin(&order.device, &asked.device, "auto"),
            options: of_plugin(&order.options, &asked.options, "{}"),
            number: self.all.slots.next_number(&order.model),
        };
        self.all
            .loader
            .read(recipe)
            .map_err(|error| error.to_string())
    }

    /// It is what was ordered, and works in a process of its own; there is memory for it beside what serves.
    fn verify(&self, Found(path): Found, read: &Read) -> Result<Verified, String> {
        let host = &self.all.loader.host;
        let (sha256, probed) = host.probe(&path, &read.request, read.golden_rows()?)?;
        let wanted = self.order.sha256.as_ref();
        if let Some(wanted) = wanted.filter(|wanted| !wanted.eq_ignore_ascii_case(&sha256)) {
            let path = path.display();
            return Err(format!(
                "{path}: its SHA-256 is {sha256}, the order says {wanted}"
            ));
        }
        let needs = probed.memory_bytes;
        if let Some(has) = host::memory_available().filter(|has| *has < needs) {
            return Err(format!(
                "it needs about {} MiB beside what serves, and {} MiB are available: free memory, or start the \
                 server anew with it",
                needs >> 20,
                has >> 20
            ));
        }
        let Probed {
            dtype,
            device,
            n_scored,
            ..
        } = probed;
        self.tell(
            SwapState::Verified,
            format!("{dtype} on {device}: {n_scored} scores in a process of its own"),
        );
        Ok(Verified { path, sha256 })
    }

    fn load(&self, verified: Verified) -> Result<Loaded, String> {
        // What serves goes on with the file that it has, also where another one lies there now.
        let file = self.all.loader.host.load(&verified.path);
        let (library, sha256) = (file.found?, file.sha256.unwrap_or_default());
        if sha256 != verified.sha256 {
            let path = verified.path.display();
            return Err(format!(
                "{path} was changed while it was tried out: order the swap again"
            ));
        }
        let card = library.card();
        self.tell(
            SwapState::Loaded,
            format!("{} {} ({sha256})", card.name, card.version),
        );
        Ok(Loaded { library, sha256 })
    }

    fn open(&self, Loaded { library, sha256 }: Loaded, read: Read) -> Result<Warm, String> {
        let by = By::Library(library, sha256);
        let opened = self.all.loader.open(read, &by);
        let generation = opened.map_err(|error| error.to_string())?;
        let new = &generation.facts().description;
        self.tell(
            SwapState::Warm,
            format!("{} {} on {}", new.dtype, new.numerics_id, new.device),
        );
        Ok(Warm(generation))
    }

    fn prove(&self, Warm(generation): Warm, live: &Generation) -> Result<Proven, String> {
        let by = now() + GOLDEN_MAX;
        let golden = Golden::of(&generation, &self.all.runtime, by)?;
        let detail = match tolerance(live.facts(), generation.facts()) {
            Some(tolerance) => {
                let serves = Golden::of(live, &self.all.runtime, by)
                    .map_err(|why| format!("what serves cannot be compared with: {why}"))?;
                let agreement = serves.agreement(&golden)?;
                agreement.check(&tolerance)?;
                agreement.to_string()
            }
            None if self.order.expect_change => {
                "other weights: its scores were not compared with anything".to_owned()
            }
            None => {
                return Err(
                    "it has other weights than what serves, so nothing can tell whether its scores are right; \
                     say expect_change if they are meant to differ"
                        .to_owned(),
                );
            }
        };
        self.tell(SwapState::Proven, detail.clone());
        Ok(Proven {
            generation,
            golden,
            detail,
        })
    }

    /// Has it serve, and watches it.
    fn serve(&self, proven: Proven) -> (SwapState, String) {
        let Proven {
            generation,
            golden,
            detail,
        } = proven;
        let slots = &self.all.slots;
        let (number, line) = (generation.facts().number, Arc::clone(generation.line()));
        let at_first = line.totals();
        slots.publish(Arc::clone(&generation));
        self.running.is_live.store(true, Ordering::Relaxed);
        self.tell(SwapState::Live, format!("generation {number}"));
        let outcome = self.watch(&generation, &golden, &at_first);
        drop(generation);
        match outcome {
            Ok(()) => {
                let previous = slots.take_previous(&self.order.model);
                previous
                    .into_iter()
                    .for_each(|previous| self.retire(previous));
                (SwapState::Confirmed, detail)
            }
            Err(why) => {
                let failed = slots.restore(&self.order.model);
                failed.into_iter().for_each(|failed| self.retire(failed));
                (SwapState::RolledBack, why)
            }
        }
    }

    /// Until the end of the probation.
    ///
    /// # Errors
    /// Why it shall not stay.
    fn watch(
        &self,
        generation: &Generation,
        golden: &Golden,
        at_first: &crate::load::Totals,
    ) -> Result<(), String> {
        let Some(previous) = self.all.slots.previous_facts(&self.order.model) else {
            return Ok(());
        };
        let before = Before {
            totals: previous.1,
            is_same_numerics: previous.0 == generation.facts().description.numerics_id,
        };
        let end = now() + self.order.probation;
        let mut drift_at = now() + DRIFT_PAUSE;
        // A server that stops has nobody left to watch for.
        while now() < end && !self.all.slots.is_draining() {
            if self.running.wants_rollback.load(Ordering::Relaxed) {
                return Err("an operator asked for it".to_owned());
            }
            let line = generation.line();
            let done = line.totals().since(at_first);
            if let Some(why) = probation::why_not(&before, &done, &line.load()) {
                return Err(why);
            }
            if drift_at <= now() {
                self.check_drift(generation, golden)?;
                drift_at = now() + DRIFT_PAUSE;
            }
            std::thread::sleep(WATCH_PAUSE);
        }
        Ok(())
    }

    /// Its scores must stay what they were when it was proven.
    fn check_drift(&self, generation: &Generation, golden: &Golden) -> Result<(), String> {
        let by = now() + DRIFT_PAUSE;
        // On a busy server it is asked again later.
        let Ok(again) = Golden::of(generation, &self.all.runtime, by) else {
            return Ok(());
        };
        let facts = generation.facts();
        let Some(tolerance) = tolerance(facts, facts) else {
            return Ok(());
        };
        golden
            .agreement(&again)?
            .check(&tolerance)
            .map_err(|why| format!("its scores drift: {why}"))
    }

    fn retire(&self, generation: Arc<Generation>) {
        let deadline = now() + self.all.loader.config.server().request_timeout + GRACE;
        let slots = Arc::clone(&self.all.slots);
        // Nobody waits for it: requests that it has may take their time.
        self.all
            .runtime
            .blocking(move || slots.retire(generation, deadline));
    }

    /// Whoever listens hears it; whoever does not finds it in the log.
    fn tell(&self, state: SwapState, detail: String) {
        let model = self.order.model.as_str();
        match state {
            SwapState::Refused | SwapState::RolledBack => {
                tracing::error!(model, state = state.name(), "swap: {detail}");
            }
            _ => tracing::info!(model, state = state.name(), "swap: {detail}"),
        }
        self.all.slots.note_swap(model, state.name(), &detail);
        if state.is_last() {
            // Before it is told: whoever hears of the end may begin the next one.
            self.all.running().remove(model);
        }
        let after = self.begun.elapsed();
        let _ = self.steps.try_send(SwapStep {
            state,
            detail,
            after,
        });
    }
}

/// How far apart the scores of two generations may be; `None` where they are not of the same weights.
fn tolerance(live: &Facts, new: &Facts) -> Option<Tolerance> {
    if live.info.fingerprint != new.info.fingerprint {
        return None;
    }
    let (a, b) = (&live.description, &new.description);
    if a.numerics_id == b.numerics_id {
        let is_exact = a.bitwise && b.bitwise;
        return Some(Tolerance {
            largest: if is_exact { 0.0 } else { 1e-3 },
            rank: 0.999,
            why: "both have the same numerics id",
        });
    }
    // By the coarser of the two; logits of rerankers span about 20.
    let of_dtype = |dtype: &str| match dtype {
        "f32" => (2e-3, 0.999, "both compute in f32"),
        "f16" | "bf16" => (0.1, 0.995, "one of them computes in 16 bits"),
        "int4" => (3.0, 0.9, "one of them holds weights in 4 bits"),
        _ => (0.5, 0.97, "one of them computes in 8 bits"),
    };
    let (mine, theirs) = (of_dtype(&a.dtype), of_dtype(&b.dtype));
    let (largest, rank, why) = if mine.0 < theirs.0 { theirs } else { mine };
    Some(Tolerance { largest, rank, why })
}
