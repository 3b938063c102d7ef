//! The host's side: load a library, open a model, call its workers.

mod elf;

use crate::abi::{
    ABI_MAJOR, ABI_MINOR, AbiBackendBox, AbiBatch, AbiScores, AbiStamp, AbiWorkerBox,
    PluginModuleRef, STAMP_MAGIC, STAMP_SYMBOL, root_module,
};
use crate::{
    Description, DeviceState, Fault, Limits, OpenRequest, Phases, Plugin, PluginCard, RaggedBatch,
    RowStatus, Scores,
};
use abi_stable::StableAbi;
use abi_stable::abi_stability::abi_checking::{
    CheckingGlobals, check_layout_compatibility_with_globals,
};
use abi_stable::library::{LibraryError, RawLibrary, lib_header_from_raw_library};
use abi_stable::std_types::{RResult, RSlice, RSliceMut};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A plugin that passed the version and layout checks.
pub struct PluginLibrary {
    module: PluginModuleRef,
    card: PluginCard,
}

/// A model opened by a plugin.
pub struct OpenBackend {
    backend: AbiBackendBox,
    description: Description,
    limits: Limits,
}

/// A worker of an opened model.
pub struct OpenWorker {
    worker: AbiWorkerBox,
    n_labels: usize,
    limits: Limits,
}

/// Why a file is not a plugin for this host. Each says what was found and what is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub cause: LoadCause,
}

/// What is wrong with a file that was offered as a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoadCause {
    /// The dynamic loader refused it.
    NotALibrary(String),
    /// A library, but not one of ours.
    NotAPlugin(String),
    /// Built against another major version of the interface.
    OtherMajor {
        /// The plugin's version.
        found: (u32, u32),
    },
    /// Needs a newer host.
    HostTooOld {
        /// The plugin's version.
        found: (u32, u32),
        /// The least minor version it needs the host to have.
        host_minor_min: u32,
    },
    /// Says the right version but its types differ.
    ChangedLayout(String),
    /// Could not say what it is.
    NoCard(Fault),
}

// === impl PluginLibrary ===

impl PluginLibrary {
    /// Loads the library at `path` and checks it: length, symbol, magic, version, layout, card.
    ///
    /// The image stays mapped for ever, refused or not (unloading a Rust library is not sound). The
    /// dynamic loader knows files by path: to load a changed file, give it another name first.
    ///
    /// # Errors
    /// [`LoadError`], naming file, what was found and what is needed.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let fail = |cause| LoadError {
            path: path.to_owned(),
            cause,
        };
        Self::check_file(path)?;
        let image = map_image(path).map_err(fail)?;
        let stamp = read_stamp(image).map_err(fail)?;
        check_stamp(stamp).map_err(fail)?;
        let module = root_module_of(image, stamp).map_err(fail)?;
        Self::new(module).map_err(|fault| fail(LoadCause::NoCard(fault)))
    }

    /// Whether a file is all there, without opening it: what [`load`](Self::load) looks at first, for a
    /// host that opens the image itself before. A truncated library ends the process that opens it.
    ///
    /// # Errors
    /// [`LoadError`], naming what is missing.
    pub fn check_file(path: &Path) -> Result<(), LoadError> {
        elf::check_whole(path).map_err(|why| LoadError {
            path: path.to_owned(),
            cause: LoadCause::NotALibrary(why),
        })
    }

    /// A plugin that is linked into this program, behind the same border. For its own tests.
    ///
    /// # Errors
    /// When the plugin cannot say what it is.
    pub fn in_process<P: Plugin>() -> Result<Self, Fault> {
        Self::new(root_module::<P>())
    }

    fn new(module: PluginModuleRef) -> Result<Self, Fault> {
        let facts = crossed(module.card()())?;
        Ok(Self {
            module,
            card: PluginCard::from_facts(&facts)?,
        })
    }

    /// What the plugin says about itself.
    pub fn card(&self) -> &PluginCard {
        &self.card
    }

    /// Opens a model.
    ///
    /// # Errors
    /// The plugin's own, or that its description makes no sense.
    pub fn open(&self, request: &OpenRequest) -> Result<OpenBackend, Fault> {
        let facts = request.to_facts();
        let backend = crossed(self.module.open()(RSlice::from_slice(&facts)))?;
        let description = Description::from_facts(&crossed(backend.description())?)?.check()?;
        let limits = request.limits().and(&description.limits());
        Ok(OpenBackend {
            backend,
            description,
            limits,
        })
    }
}

// === impl OpenBackend ===

impl OpenBackend {
    /// What was opened.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// What both sides agreed a batch may hold.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Another worker.
    ///
    /// # Errors
    /// The plugin's own.
    pub fn worker(&self) -> Result<OpenWorker, Fault> {
        let worker = crossed(self.backend.worker())?;
        Ok(OpenWorker {
            worker,
            n_labels: self.description.n_labels as usize,
            limits: self.limits,
        })
    }

    /// How the backend's devices do at this moment; none of a plugin that does not tell. May be called from any
    /// thread, and while workers compute. It need not come back: nobody who serves may wait for it.
    ///
    /// # Errors
    /// The plugin's own, or that what it tells makes no sense.
    pub fn devices(&self) -> Result<Vec<DeviceState>, Fault> {
        DeviceState::from_crossing(&crossed(self.backend.devices())?)
    }
}

// === impl OpenWorker ===

impl OpenWorker {
    /// What both sides agreed a batch may hold.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Logits for each row.
    pub fn n_labels(&self) -> usize {
        self.n_labels
    }

    /// Scores a batch into `logits` (rows × labels) and `statuses` (rows), and checks what came back.
    ///
    /// # Errors
    /// The whole batch failed: the plugin said so, or left a row without score and status.
    pub fn score<'a>(
        &mut self,
        batch: &RaggedBatch<'_>,
        logits: &'a mut [f32],
        statuses: &'a mut [u8],
    ) -> Result<(Phases, Scores<'a>), Fault> {
        statuses.fill(RowStatus::Untouched as u8);
        let mut scores =
            Scores::check(logits, statuses, self.n_labels).map_err(Fault::bad_batch)?;
        let crossing = AbiBatch {
            input_ids: RSlice::from_slice(batch.input_ids()),
            type_ids: RSlice::from_slice(batch.type_ids()),
            offsets: RSlice::from_slice(batch.offsets()),
            prefix_lens: RSlice::from_slice(batch.prefix_lens()),
            controls: RSlice::from_slice(batch.controls()),
        };
        let phases = self.cross(crossing, &mut scores)?;
        for row in 0..scores.n_rows() {
            match scores.row(row) {
                Ok(logits) if logits.iter().any(|logit| !logit.is_finite()) => {
                    scores.fail(row, RowStatus::NotFinite);
                }
                Err(RowStatus::Untouched) => {
                    return Err(Fault::internal(format!(
                        "the plugin left row {row} without score and status"
                    )));
                }
                Ok(_) | Err(_) => {}
            }
        }
        Ok((phases, scores))
    }

    /// The bare call, also for batches that `RaggedBatch::check` would not let through.
    pub(crate) fn cross(
        &mut self,
        batch: AbiBatch<'_>,
        scores: &mut Scores<'_>,
    ) -> Result<Phases, Fault> {
        let (logits, statuses) = scores.parts();
        let scores = AbiScores {
            logits: RSliceMut::from_mut_slice(logits),
            statuses: RSliceMut::from_mut_slice(statuses),
        };
        crossed(self.worker.score(batch, scores))
    }
}

// === impl LoadError ===

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.cause)
    }
}

impl std::error::Error for LoadError {}

impl fmt::Display for LoadCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let needed = format!("this server needs plugin interface {ABI_MAJOR}.{ABI_MINOR}");
        match self {
            Self::NotALibrary(why) => {
                write!(
                    f,
                    "not a shared library for {} on {}: {why}",
                    std::env::consts::OS,
                    std::env::consts::ARCH
                )
            }
            Self::NotAPlugin(why) => write!(f, "a library but not a Crossgate plugin: {why}"),
            Self::OtherMajor {
                found: (major, minor),
            } => {
                write!(
                    f,
                    "built for plugin interface {major}.{minor}; {needed} (the first number must be equal): rebuild it"
                )
            }
            Self::HostTooOld {
                found: (major, minor),
                host_minor_min,
            } => write!(
                f,
                "built for plugin interface {major}.{minor} and wants a server of {major}.{host_minor_min} or newer; \
                 {needed}: update the server"
            ),
            Self::ChangedLayout(why) => write!(
                f,
                "says plugin interface {ABI_MAJOR}, but its types differ from this server's: {why}; rebuild it against an \
                 unchanged backend-api {ABI_MAJOR}.x"
            ),
            Self::NoCard(fault) => write!(f, "cannot say what it is: {fault}"),
        }
    }
}

// === the image ===

/// Every image that was mapped, by its path: the dynamic loader knows them by that, too.
static IMAGES: Mutex<BTreeMap<PathBuf, &'static RawLibrary>> = Mutex::new(BTreeMap::new());

/// Maps the library for ever.
///
/// Its constructors have run: they may have started threads or registered destructors that live in it,
/// so it is never closed, also when it is refused.
fn map_image(path: &Path) -> Result<&'static RawLibrary, LoadCause> {
    // A name without a slash would be looked for in the system's folders.
    let path =
        std::path::absolute(path).map_err(|error| LoadCause::NotALibrary(error.to_string()))?;
    // Nothing in here is left half-done by a panic. While it is locked, one image is mapped at a time.
    let mut images = IMAGES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(image) = images.get(&path) {
        return Ok(image);
    }
    let library = RawLibrary::load_at(&path).map_err(|error| {
        let why = match error {
            LibraryError::OpenError { err, .. } => err.to_string(),
            other => other.to_string(),
        };
        LoadCause::NotALibrary(one_line(&why))
    })?;
    let image = Box::leak(Box::new(library));
    images.insert(path, image);
    Ok(image)
}

/// Reads the stamp of any library, also one that has something else under that name.
#[allow(unsafe_code)]
fn read_stamp(image: &'static RawLibrary) -> Result<AbiStamp, LoadCause> {
    let not_ours = |why| LoadCause::NotAPlugin(format!("{why} {STAMP_SYMBOL}"));
    // SAFETY: only the address is taken; any symbol has one.
    let symbol = unsafe { image.get::<*const u64>(STAMP_SYMBOL.as_bytes()) };
    let address = *symbol.map_err(|_| not_ours("it has no symbol"))?;
    if address.is_null() || !address.is_aligned() {
        return Err(not_ours("no stamp can stand at the address of its symbol"));
    }
    // SAFETY: the loader mapped the symbol's first byte for ever, in whole pages, and an aligned word
    // does not leave its page: however short a foreign symbol is, these 8 bytes can be read.
    if unsafe { address.read() } != STAMP_MAGIC {
        return Err(not_ours("another magic number stands under its symbol"));
    }
    // SAFETY: what carries the magic number is a stamp, which has had this size since version 1.0.
    Ok(unsafe { address.cast::<AbiStamp>().read() })
}

/// The version rule: equal majors, and the host at least as new as the plugin asks.
fn check_stamp(stamp: AbiStamp) -> Result<(), LoadCause> {
    let found = (stamp.major, stamp.minor);
    if stamp.major != ABI_MAJOR {
        return Err(LoadCause::OtherMajor { found });
    }
    if ABI_MINOR < stamp.host_minor_min {
        return Err(LoadCause::HostTooOld {
            found,
            host_minor_min: stamp.host_minor_min,
        });
    }
    Ok(())
}

fn crossed<T>(result: RResult<T, crate::abi::AbiFault>) -> Result<T, Fault> {
    result.into_result().map_err(Fault::from)
}

// === the root module ===

/// Checks that both sides mean the same types, then takes the root module.
#[allow(unsafe_code)]
fn root_module_of(
    image: &'static RawLibrary,
    stamp: AbiStamp,
) -> Result<PluginModuleRef, LoadCause> {
    // SAFETY: the image is never closed, so what the header points to lives for ever.
    let header =
        unsafe { lib_header_from_raw_library(image) }.map_err(|error| why_no_module(&error))?;
    let Some(theirs) = header.layout() else {
        return Err(LoadCause::ChangedLayout(
            "it does not say what its types are".to_owned(),
        ));
    };
    let ours = <PluginModuleRef as StableAbi>::LAYOUT;
    // What may grow grows at the end, so the older side must be the beginning of the newer one.
    // abi_stable by itself asks whether the host is, and a newer server would refuse every older plugin.
    let (older, newer) = match stamp.minor.cmp(&ABI_MINOR) {
        Ordering::Less => (theirs, ours),
        Ordering::Equal | Ordering::Greater => (ours, theirs),
    };
    // With a memory of its own: abi_stable's common one compares each library with those before it, and
    // takes a library of the next version after one of this version for a wrong one.
    check_layout_compatibility_with_globals(older, newer, &CheckingGlobals::new())
        .map_err(|report| LoadCause::ChangedLayout(differences(&report.to_string())))?;
    // SAFETY: the layouts were compared just now; what one side lacks is known to be absent at run time.
    unsafe { header.init_root_module_with_unchecked_layout() }
        .map_err(|error| why_no_module(&error))
}

/// Why a library with the right stamp has no root module for this host.
fn why_no_module(error: &LibraryError) -> LoadCause {
    match error {
        LibraryError::GetSymbolError { .. } => LoadCause::NotAPlugin(
            "it has a stamp but no root module: export_plugin! makes both".to_owned(),
        ),
        LibraryError::InvalidAbiHeader(found) => LoadCause::ChangedLayout(format!(
            "built with abi_stable's ABI {}.{}",
            found.abi_major, found.abi_minor
        )),
        other => LoadCause::ChangedLayout(one_line(&other.to_string())),
    }
}

/// The end of abi_stable's report, where it says what differs. The thousand lines before are the way to
/// the type and its layout on both sides.
fn differences(report: &str) -> String {
    let Some((way, found)) = report.split_once("\nError:") else {
        return one_line(report);
    };
    let layout = way
        .rsplit_once("Layout of expected type:")
        .map_or("", |(_, layout)| layout);
    let name = layout
        .lines()
        .find_map(|line| line.trim().strip_prefix("type:"))
        .unwrap_or("a type");
    let found = found
        .replace("\nError:", "; ")
        .replace("\nExpected:", ": expected ")
        .replace("\nFound:", ", found ");
    one_line(&format!("{name} has {found}"))
        .replace(" ,", ",")
        .replace(" ;", ";")
}

/// abi_stable's errors are paragraphs with tabs; a log line and a JSON string want a sentence.
fn one_line(text: &str) -> String {
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((cut, _)) = line.char_indices().nth(600) {
        line.truncate(cut);
        line.push('…');
    }
    line
}
