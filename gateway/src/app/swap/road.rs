//! The way of a swap up to the moment at which it serves. Each step takes what the step before it made, so none
//! can be left out.

use super::Swap;
use crate::app::models::{By, Read, Recipe};
use crate::config::spell_dtype;
use crate::control::SwapState;
use crate::generation::{Facts, Generation, Golden, Tolerance};
use crate::host::{self, Probed};
use crate::load::{Learned, Totals};
use crate::model::Source;
use crate::model::progress::{self, Progress};
use crate::runtime::now;
use backend_api::PluginLibrary;
use std::cell::Cell;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long the golden rows may take, on a busy server too.
const GOLDEN_MAX: Duration = Duration::from_secs(60);
/// What every plugin's quantised arithmetic is compared with, where nothing else is known of the weights.
const EXACT: &str = "f32";

/// What serves while the swap is under way.
pub(super) struct Serves {
    pub(super) facts: Arc<Facts>,
    /// What it had done when it was last looked at.
    pub(super) totals: Totals,
    /// What it had learned of its time then.
    pub(super) learned: Learned,
    /// `None` once it is drained.
    pub(super) generation: Option<Arc<Generation>>,
    /// Bytes that there are once it is drained; 0 before.
    freed: u64,
}

/// The file is there.
struct Found(PathBuf);

/// It works, in a process of its own.
struct Verified {
    path: PathBuf,
    sha256: String,
    // By the f32 path of the same plugin, or why there are none.
    exact: Result<Golden, String>,
}

/// It is a plugin, and mapped.
struct Loaded {
    library: Arc<PluginLibrary>,
    sha256: String,
    exact: Result<Golden, String>,
}

/// It has opened the model, and computed.
struct Warm {
    generation: Arc<Generation>,
    exact: Result<Golden, String>,
}

/// Its scores are what they should be, as far as anybody knows.
pub(super) struct Proven {
    pub(super) generation: Arc<Generation>,
    pub(super) golden: Golden,
    pub(super) detail: String,
}

/// Tells that files are being fetched, and ends that when the swap is not wanted any more.
struct Preparing<'a> {
    swap: &'a Swap,
    shown: Box<dyn Progress>,
    is_told: Cell<bool>,
}

// === impl Preparing ===

impl<'a> Preparing<'a> {
    fn of(swap: &'a Swap) -> Self {
        Self {
            swap,
            shown: progress::for_stderr(),
            is_told: Cell::new(false),
        }
    }
}

impl Progress for Preparing<'_> {
    fn begin(&self, name: &str, bytes_total: Option<u64>) {
        // Once: a model may be cut into more files than whoever listens can hear of.
        if !self.is_told.replace(true) {
            let what = format!("{name} is being fetched, and whatever else the plugin needs");
            self.swap.tell(SwapState::Preparing, what);
        }
        self.shown.begin(name, bytes_total);
    }

    fn at(&self, bytes_done: u64) {
        self.shown.at(bytes_done);
    }

    fn end(&self) {
        self.shown.end();
    }

    fn is_wanted(&self) -> bool {
        self.swap.check_wanted().is_ok()
    }
}

// === impl Serves ===

impl Serves {
    pub(super) fn of(generation: Arc<Generation>) -> Self {
        Self {
            facts: Arc::clone(generation.facts()),
            totals: generation.line().totals(),
            learned: generation.line().load().learned,
            generation: Some(generation),
            freed: 0,
        }
    }

    fn is_well(&self) -> bool {
        let generation = self.generation.as_ref();
        generation.is_some_and(|generation| generation.state().state == "live")
    }
}

// === impl Swap ===

impl Swap {
    /// Everything before it serves. A failure leaves what serves untouched, unless it had to be drained.
    pub(super) fn prove_new(&self, serves: &mut Option<Serves>) -> Result<Proven, String> {
        let facts = serves.as_ref().map(|serves| Arc::clone(&serves.facts));
        let facts = facts.as_deref();
        let found = self.find(facts)?;
        let read = self.read(&found, facts)?;
        let has_its_weights = facts.filter(|facts| read.info().has_weights_of(&facts.info));
        if facts.is_some() && has_its_weights.is_none() && !self.order.expect_change {
            return Err(
                "it has other weights than what serves, so nothing can tell whether its scores are right; say \
                 expect_change if they are meant to differ"
                    .to_owned(),
            );
        }
        let expected = match (has_its_weights, serves.as_ref()) {
            // What fails is no measure, and must not be in the way of what is to mend it.
            (Some(_), Some(serves)) if !serves.is_well() => Err("what serves is failing itself"),
            (Some(facts), Some(serves)) => Ok((facts, self.golden_of(serves)?)),
            _ => Err("nobody else knows these weights"),
        };
        self.check_wanted()?;
        if let Some(facts) = facts {
            // Not even for one more like it.
            self.make_room(serves, facts.description.memory_bytes)?;
        }
        let verified = self.verify(found, &read, serves, expected.is_err())?;
        let loaded = self.load_file(verified)?;
        let warm = self.open(loaded, read)?;
        let new = Arc::clone(&warm.generation);
        self.prove(warm, expected)
            .and_then(|proven| self.check_wanted().map(|()| proven))
            .inspect_err(|_| self.all.retire(new))
    }

    fn find(&self, facts: Option<&Facts>) -> Result<Found, String> {
        let host = &self.all.loader.host;
        let path = match (&self.order.plugin, facts) {
            (Some(name), _) => host.find(name)?,
            (None, Some(facts)) => host
                .file_of(&facts.image)
                .ok_or("the file of its plugin is not known any more")?,
            (None, None) => {
                let configured = self.all.loader.config.models().backend.clone();
                let name = configured.map_or_else(|| self.choose(), Ok)?;
                host.find(&name)?
            }
        };
        self.tell(SwapState::Found, path.display().to_string());
        Ok(Found(path))
    }

    /// The plugin that would be chosen for a model at the start.
    fn choose(&self) -> Result<String, String> {
        let loader = &self.all.loader;
        let cards = loader.host.cards(None);
        let read = loader.read(self.recipe(None, false)?, &cards, &Preparing::of(self));
        let read = read.map_err(|error| error.to_string())?;
        loader.host.chosen(read.info())
    }

    /// What is to be opened: as the order says, and as it is now where that says nothing.
    fn recipe(&self, facts: Option<&Facts>, is_same_plugin: bool) -> Result<Recipe, String> {
        let (order, configured) = (&self.order, self.all.loader.config.models());
        let asked = facts.map(|facts| &facts.request);
        let of_plugin =
            |said: &Option<String>, now: Option<&String>, first: &String, other: &str| {
                match (said, now) {
                    (Some(said), _) => said.clone(),
                    (None, None) => first.clone(),
                    // Another plugin has options and spellings of its own.
                    (None, Some(now)) if is_same_plugin => now.clone(),
                    (None, Some(_)) => other.to_owned(),
                }
            };
        let source = order.source.as_ref();
        let written = source.or(facts.map(|facts| &facts.source));
        let written = written.ok_or("it has no source")?.clone();
        let (dtype, device) = (
            asked.map(|asked| &asked.dtype),
            asked.map(|asked| &asked.device),
        );
        let options = asked.map(|asked| &asked.options);
        Ok(Recipe {
            name: order.model.clone(),
            source: Source::parse(&written)?,
            written,
            dtype: of_plugin(
                &order.dtype.as_deref().map(spell_dtype),
                dtype,
                &configured.dtype,
                "auto",
            ),
            device: of_plugin(&order.device, device, &configured.device, "auto"),
            options: of_plugin(&order.options, options, &configured.options, "{}"),
            number: self.all.slots.next_number(&order.model),
        })
    }

    /// The model, read as it will be opened.
    fn read(&self, found: &Found, facts: Option<&Facts>) -> Result<Read, String> {
        let loader = &self.all.loader;
        let (_, card) = loader.host.identify(&found.0)?;
        let is_same_plugin = facts.is_some_and(|facts| facts.plugin.0 == card.name);
        let recipe = self.recipe(facts, is_same_plugin)?;
        let read = loader.read(recipe, &[card], &Preparing::of(self));
        read.map_err(|error| error.to_string())
    }

    fn golden_of(&self, serves: &Serves) -> Result<Golden, String> {
        let generation = serves.generation.as_ref().ok_or("it serves no more")?;
        Golden::of(generation, &self.all.runtime, now() + GOLDEN_MAX)
            .map_err(|why| format!("what serves cannot be compared with: {why}"))
    }

    /// There is memory for it beside what serves, or what serves is drained.
    fn make_room(&self, serves: &mut Option<Serves>, needs: u64) -> Result<(), String> {
        // What was freed may not have come back to the system yet.
        let freed = serves.as_ref().map_or(0, |serves| serves.freed);
        let has = host::memory_available().map(|has| has.max(freed));
        let Some(has) = has.filter(|has| *has < needs) else {
            return Ok(());
        };
        let (needs_mib, has_mib) = (needs >> 20, has >> 20);
        let taken = serves.as_ref().and_then(|serves| {
            serves.generation.as_ref()?;
            Some(serves.facts.description.memory_bytes)
        });
        let (Some(serves), Some(taken)) = (serves, taken) else {
            return Err(format!(
                "it needs about {needs_mib} MiB and {has_mib} MiB are available: free memory first"
            ));
        };
        if has.saturating_add(taken) < needs {
            return Err(format!(
                "it needs about {needs_mib} MiB, and {has_mib} MiB are available beside the {} MiB of what serves: \
                 free memory first",
                taken >> 20
            ));
        }
        serves.freed = has.saturating_add(taken);
        self.drain(serves, format!(
            "it needs about {needs_mib} MiB and {has_mib} MiB are available: what serves ends first, and requests wait"
        ));
        Ok(())
    }

    /// Has what serves answer what it has, and end. Requests that come wait for what comes next.
    pub(super) fn drain(&self, serves: &mut Serves, why: String) {
        self.tell(SwapState::Draining, why);
        let slots = &self.all.slots;
        let Some(vacated) = slots.vacate(&self.order.model) else {
            return;
        };
        serves.generation = None;
        let line = Arc::clone(vacated.line());
        slots.retire(vacated, self.all.retired_by());
        serves.totals = line.totals();
        serves.learned = line.load().learned;
    }

    /// It is what was ordered, and works in a process of its own; there is memory for it.
    fn verify(
        &self,
        Found(path): Found,
        read: &Read,
        serves: &mut Option<Serves>,
        is_new: bool,
    ) -> Result<Verified, String> {
        let host = &self.all.loader.host;
        let probed = host.probe(&path, &read.request, read.golden_rows()?);
        let (sha256, probed) =
            probed.map_err(|why| format!("{why}{}", host.reads(&path, read.info())))?;
        let wanted = self.order.sha256.as_ref();
        if let Some(wanted) = wanted.filter(|wanted| !wanted.eq_ignore_ascii_case(&sha256)) {
            let path = path.display();
            return Err(format!(
                "{path}: its SHA-256 is {sha256}, the order says {wanted}"
            ));
        }
        self.make_room(serves, probed.memory_bytes)?;
        let exact = if is_new && probed.dtype != EXACT {
            let mut request = read.request.clone();
            request.dtype = EXACT.to_owned();
            host.probe(&path, &request, read.golden_rows()?)
                .and_then(|(_, exact)| golden(exact))
                .map_err(|why| format!("its {EXACT} path says nothing: {why}"))
        } else {
            Err(format!("it computes in {EXACT} itself"))
        };
        let Probed {
            dtype,
            device,
            logits,
            ..
        } = probed;
        let n_scored = logits.len();
        self.tell(
            SwapState::Verified,
            format!("{dtype} on {device}: {n_scored} scores in a process of its own"),
        );
        Ok(Verified {
            path,
            sha256,
            exact,
        })
    }

    fn load_file(&self, verified: Verified) -> Result<Loaded, String> {
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
        Ok(Loaded {
            library,
            sha256,
            exact: verified.exact,
        })
    }

    fn open(&self, loaded: Loaded, read: Read) -> Result<Warm, String> {
        let by = By::Library(loaded.library, loaded.sha256);
        let opened = self.all.loader.open(read, &by);
        let generation = opened.map_err(|error| error.to_string())?;
        let new = &generation.facts().description;
        self.tell(
            SwapState::Warm,
            format!("{} {} on {}", new.dtype, new.numerics_id, new.device),
        );
        Ok(Warm {
            generation,
            exact: loaded.exact,
        })
    }

    /// `expected` is of the same weights, or why there is nothing of them to compare with.
    fn prove(
        &self,
        warm: Warm,
        expected: Result<(&Facts, Golden), &'static str>,
    ) -> Result<Proven, String> {
        let Warm { generation, exact } = warm;
        let golden = Golden::of(&generation, &self.all.runtime, now() + GOLDEN_MAX)?;
        let new = generation.facts();
        let proof = match (expected, exact) {
            (Ok((facts, expected)), _) => {
                let agreement = expected.agreement(&golden)?;
                agreement.check(&tolerance(facts, new))?;
                Ok(format!("as generation {}: {agreement}", facts.number))
            }
            (Err(_), Ok(exact)) => {
                let agreement = exact.agreement(&golden)?;
                agreement.check(&of_dtypes(EXACT, &new.description.dtype))?;
                Ok(format!("as its own {EXACT} path: {agreement}"))
            }
            (Err(nobody), Err(why)) => Err(format!(
                "unproven: its scores were compared with nothing, because {nobody} and {why}"
            )),
        };
        let detail = match proof {
            Ok(proof) => {
                generation.note_proof(proof.clone());
                proof
            }
            Err(unproven) => unproven,
        };
        self.tell(SwapState::Proven, detail.clone());
        Ok(Proven {
            generation,
            golden,
            detail,
        })
    }
}

fn golden(probed: Probed) -> Result<Golden, String> {
    let n_logits = probed.logits.len();
    Golden::from_logits(probed.logits, probed.n_labels)
        .ok_or_else(|| format!("it scored {n_logits} golden rows"))
}

/// How far apart the scores of two generations of the same weights may be.
pub(super) fn tolerance(live: &Facts, new: &Facts) -> Tolerance {
    let (a, b) = (&live.description, &new.description);
    if a.numerics_id == b.numerics_id {
        let is_exact = a.bitwise && b.bitwise;
        return Tolerance {
            largest: if is_exact { 0.0 } else { 1e-3 },
            rank: 0.999,
            why: "both have the same numerics id",
        };
    }
    of_dtypes(&a.dtype, &b.dtype)
}

/// By the coarser of the two; logits of rerankers span about 20.
fn of_dtypes(a: &str, b: &str) -> Tolerance {
    let of_dtype = |dtype: &str| match dtype {
        EXACT => (2e-3, 0.999, "both compute in f32"),
        "f16" | "bf16" => (0.1, 0.995, "one of them computes in 16 bits"),
        "int4" => (3.0, 0.9, "one of them holds weights in 4 bits"),
        // As GGUF files store them: q4_k, q5_0, …
        blocks
            if ["q2", "q3", "q4", "q5"]
                .iter()
                .any(|bits| blocks.starts_with(bits)) =>
        {
            (3.0, 0.9, "one of them holds weights in 5 bits or less")
        }
        _ => (0.5, 0.97, "one of them computes in 8 bits"),
    };
    let (mine, theirs) = (of_dtype(a), of_dtype(b));
    let (largest, rank, why) = if mine.0 < theirs.0 { theirs } else { mine };
    Tolerance { largest, rank, why }
}
