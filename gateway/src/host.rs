//! Plugins: the only place that knows library files.

mod image;
mod memory;
pub mod probe;
mod refusal;
mod store;

pub use memory::available as memory_available;
pub use probe::{Probed, Prober};
pub use refusal::NoBackend;
pub use store::ImageBounds;

use crate::model::{Format, ModelInfo, TokenRows};
use backend_api::{Fault, FaultCode, OpenBackend, OpenRequest, PluginCard, PluginLibrary};
use refusal::reads;
use std::cmp::Reverse;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use store::{Store, of_file};

/// Devices in the order in which `auto` prefers them.
const DEVICES: [&str; 3] = ["cuda", "metal", "cpu"];

/// The plugins that were found.
pub struct Host {
    // By path; one for each.
    files: Mutex<Vec<PluginFile>>,
    dirs: Vec<PathBuf>,
    store: Store,
    prober: Prober,
}

/// A library file that was looked at.
#[derive(Clone)]
pub struct PluginFile {
    /// The file.
    pub path: PathBuf,
    /// Of its content, in hexadecimal; `None` if it could not be read as one of ours.
    pub sha256: Option<String>,
    /// The plugin, or why it was refused.
    pub found: Result<Arc<PluginLibrary>, String>,
}

/// Which files of a folder are plugins, or are refused as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing {
    /// Every library: the folder was named as one of plugins.
    All,
    /// Libraries that hold the name of our symbol: others may lie beside the program for other reasons.
    Named,
}

/// A model opened by a plugin.
pub struct Opened {
    /// The plugin.
    pub library: Arc<PluginLibrary>,
    /// The SHA-256 of its file.
    pub sha256: String,
    /// What it opened.
    pub backend: OpenBackend,
    /// How to open the same again.
    pub request: OpenRequest,
}

/// A plugin that may open the model.
struct Candidate {
    library: Arc<PluginLibrary>,
    sha256: String,
    // Where its file lies, or lay.
    path: Option<PathBuf>,
}

// === impl Host ===

impl Host {
    /// Looks for plugins in `dirs`. A file that is refused is kept with the reason. Copies of what is mapped
    /// are kept in `images_dir`.
    ///
    /// # Errors
    /// That there is no place for copies.
    pub fn scan(
        dirs: &[PathBuf],
        listing: Listing,
        images_dir: &Path,
        bounds: ImageBounds,
        prober: Prober,
    ) -> Result<Self, String> {
        let store = Store::new(images_dir, bounds)?;
        let host = Self {
            files: Mutex::default(),
            dirs: dirs.to_vec(),
            store,
            prober,
        };
        for path in dirs.iter().flat_map(|dir| image::find_in(dir, listing)) {
            // What came with the program is as good as the program.
            host.look_at(&path, listing == Listing::All);
        }
        Ok(host)
    }

    /// Maps a file as it is now. One that no process has tried before is tried out first.
    pub fn load(&self, path: &Path) -> PluginFile {
        self.look_at(path, true)
    }

    fn look_at(&self, path: &Path, is_tried: bool) -> PluginFile {
        let (sha256, found) = self.store.load(path, |copy| {
            let read = is_tried.then(|| self.prober.card(copy));
            read.transpose().map(drop)
        });
        let file = PluginFile {
            path: path.to_owned(),
            sha256,
            found,
        };
        let mut files = self.known();
        let has_mapped = |known: &PluginFile| known.path == path && known.found.is_ok();
        // A refused file takes nothing away from what was mapped from its place before.
        if file.found.is_ok() || !files.iter().any(has_mapped) {
            files.retain(|known| known.path != path);
            files.push(file.clone());
            files.sort_by(|a, b| a.path.cmp(&b.path));
        }
        file
    }

    /// Tries a file as it is now out in a process of its own, by a model and rows that it must score. Its
    /// SHA-256, and what came of it. Blocks.
    ///
    /// # Errors
    /// What is wrong with the file, what the plugin answered, or how its process ended.
    pub fn probe(
        &self,
        path: &Path,
        request: &OpenRequest,
        rows: TokenRows,
    ) -> Result<(String, Probed), String> {
        let (sha256, copy) = self.store.stage(path)?;
        let probed = self.prober.probe(&copy, &beside(path, request), rows);
        Ok((sha256, self.tried(probed, &copy, path)?))
    }

    /// What a trial says of a copy is remembered for the next process.
    fn tried<T>(&self, outcome: Result<T, String>, copy: &Path, path: &Path) -> Result<T, String> {
        match outcome {
            Ok(found) => {
                self.store.tried(copy);
                Ok(found)
            }
            Err(why) => {
                // Another process may have it mapped, and keeps it: only the name goes.
                self.store.forget(copy);
                Err(of_file(&why, copy, path))
            }
        }
    }

    /// The file that operators mean by `name`: a plugin's name, a file's, or a path; inside the folders of
    /// plugins in any case, because a plugin is code.
    ///
    /// # Errors
    /// That there is none, or that it lies elsewhere.
    pub fn find(&self, name: &str) -> Result<PathBuf, String> {
        // A file that is a link counts where the link lies, as at the start: who puts it there can put a plugin there.
        let is_inside = |path: &Path| {
            let folder = path.parent()?.canonicalize().ok()?;
            let mut dirs = self.dirs.iter().filter_map(|dir| dir.canonicalize().ok());
            (path.is_file() && dirs.any(|dir| folder.starts_with(dir))).then_some(())
        };
        if name.contains('/') {
            let path = PathBuf::from(name);
            return match is_inside(&path) {
                Some(()) => Ok(path),
                None => Err(self.no_plugin(&format!("{name} is no file in a folder of plugins"))),
            };
        }
        let is_named = |file: &PluginFile| {
            let plugin = file.found.as_ref();
            plugin.is_ok_and(|plugin| plugin.card().name == name)
        };
        let known = self.known().iter().find(|file| is_named(file)).cloned();
        let in_dirs = self.dirs.iter().map(|dir| dir.join(name));
        let mut paths = known.map(|file| file.path).into_iter().chain(in_dirs);
        paths
            .find(|path| is_inside(path).is_some())
            .ok_or_else(|| self.no_plugin(&format!("there is no plugin {name:?}")))
    }

    /// The SHA-256 of a file as it is now, and the card of the plugin in it. One that nobody has looked at is looked
    /// at in a process of its own. Blocks.
    ///
    /// # Errors
    /// What is wrong with the file, or how its process ended.
    pub fn identify(&self, path: &Path) -> Result<(String, PluginCard), String> {
        let (sha256, copy) = self.store.stage(path)?;
        let card = match self.by_hash(&sha256) {
            Some(library) => library.card().clone(),
            None => self.tried(self.prober.card(&copy), &copy, path)?,
        };
        Ok((sha256, card))
    }

    /// Where the file of an image lies, or lay when it was mapped: a new build of it has come to its place.
    pub fn file_of(&self, image: &str) -> Option<PathBuf> {
        let has_it = |file: &PluginFile| file.sha256.as_deref() == Some(image);
        let known = self.known().iter().find(|file| has_it(file)).cloned();
        known
            .map(|file| file.path)
            .or_else(|| self.store.mapped_from(image))
    }

    /// The image of this content, if it is mapped.
    pub fn by_hash(&self, hash: &str) -> Option<Arc<PluginLibrary>> {
        self.store.mapped_as(hash)
    }

    /// The process is about to end: copies that no other one can use go.
    pub fn end(&self) {
        self.store.end();
    }

    /// Library files in the folders of plugins, as they are now.
    pub fn look(&self) -> Vec<PathBuf> {
        let found = self
            .dirs
            .iter()
            .map(|dir| image::find_in(dir, Listing::All));
        found.flatten().collect()
    }

    /// Images that this process has mapped: none ever goes.
    pub fn n_images(&self) -> usize {
        self.store.n_images()
    }

    /// Every file that was looked at.
    pub fn files(&self) -> Vec<PluginFile> {
        self.known().clone()
    }

    /// The folders that were looked in.
    pub fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// The plugins of this name; with none, all.
    pub fn named(&self, backend: Option<&str>) -> Vec<Arc<PluginLibrary>> {
        let candidates = self.candidates(|card| backend.is_none_or(|backend| card.name == backend));
        candidates.into_iter().map(|found| found.library).collect()
    }

    /// What the plugins of this name say of themselves; with none, all.
    pub fn cards(&self, backend: Option<&str>) -> Vec<PluginCard> {
        let named = self.named(backend);
        named.iter().map(|plugin| plugin.card().clone()).collect()
    }

    fn candidates(&self, is_one: impl Fn(&PluginCard) -> bool) -> Vec<Candidate> {
        let files = self.known();
        let plugins = files.iter().filter_map(|file| {
            Some(Candidate {
                library: Arc::clone(file.found.as_ref().ok()?),
                sha256: file.sha256.clone()?,
                path: Some(file.path.clone()),
            })
        });
        plugins
            .filter(|found| is_one(found.library.card()))
            .collect()
    }

    /// Opens a model with the plugin named `backend`, or without a name by the first one that says it
    /// serves its architecture and reads its weights, in the order of devices (`cuda`, `metal`, `cpu`), then of the
    /// plugins' preferences, then of names. With it, without a name, what the others on the same kind of device
    /// open, each when it is asked for.
    ///
    /// # Errors
    /// What each plugin answered.
    pub fn open<'a>(
        &self,
        backend: Option<&str>,
        model: &ModelInfo,
        request: &'a OpenRequest,
    ) -> Result<
        (
            Opened,
            impl ExactSizeIterator<Item = Result<Opened, String>> + use<'a>,
        ),
        NoBackend,
    > {
        let candidates = self.choose(backend, model).map_err(NoBackend::new)?;
        let (mut why, mut is_by_options) = (Vec::new(), false);
        let mut candidates = candidates.into_iter();
        while let Some(candidate) = candidates.next() {
            match candidate.open(request) {
                Ok(opened) => {
                    let device = device_rank(candidate.library.card());
                    let is_like = move |other: &Candidate| {
                        backend.is_none() && device_rank(other.library.card()) == device
                    };
                    let others = candidates.filter(is_like).collect::<Vec<_>>().into_iter();
                    let open = |other: Candidate| {
                        let opened = other.open(request);
                        opened.map_err(|fault| format!("{}: {fault}", other.library.card().name))
                    };
                    return Ok((opened, others.map(open)));
                }
                Err(fault) => {
                    why.push(format!(
                        "{}: {fault}{}",
                        candidate.library.card().name,
                        reads(&candidate.library, model)
                    ));
                    is_by_options |= fault.code == FaultCode::BadRequest;
                    // Another plugin may serve what this one does not; it will not mend a broken file.
                    if !matches!(
                        fault.code,
                        FaultCode::Unsupported | FaultCode::OutOfMemory | FaultCode::DeviceLost
                    ) {
                        break;
                    }
                }
            }
        }
        Err(NoBackend { why, is_by_options })
    }

    /// Opens a model by the plugin of a file with this SHA-256.
    ///
    /// # Errors
    /// The plugin's own.
    pub fn open_by(
        &self,
        library: &Arc<PluginLibrary>,
        sha256: &str,
        request: &OpenRequest,
    ) -> Result<Opened, Fault> {
        let candidate = Candidate {
            library: Arc::clone(library),
            sha256: sha256.to_owned(),
            path: self.file_of(sha256),
        };
        candidate.open(request)
    }

    /// The name of the plugin that a model is opened with.
    ///
    /// # Errors
    /// That there is none.
    pub fn chosen(&self, model: &ModelInfo) -> Result<String, String> {
        let candidates = self.choose(None, model)?;
        let first = candidates.first().ok_or("there is no plugin")?;
        Ok(first.library.card().name.clone())
    }

    fn choose(&self, backend: Option<&str>, model: &ModelInfo) -> Result<Vec<Candidate>, String> {
        if let Some(backend) = backend {
            let named = self.candidates(|card| card.name == backend);
            return if named.is_empty() {
                Err(self.no_plugin(&format!("there is no plugin {backend:?}")))
            } else {
                Ok(named)
            };
        }
        let (architecture, format) = (model.architecture.as_str(), model.format);
        let mut serving = self.candidates(|card| {
            let is_read = card.formats.iter().any(|name| name == format.name());
            // A graph is its own architecture.
            is_read
                && (format == Format::Onnx
                    || card.architectures.iter().any(|name| name == architecture))
        });
        serving.sort_by_key(|found| {
            let card = found.library.card();
            let preference = Reverse(card.preference);
            (device_rank(card), preference, card.name.clone())
        });
        if serving.is_empty() {
            let format = format.name();
            let what =
                format!("no plugin serves a {architecture} whose weights are written as {format}");
            return Err(self.no_plugin(&what));
        }
        Ok(serving)
    }

    /// What to add to the refusal of the plugin of a file, if it reads weights in another form than the model's.
    pub fn reads(&self, path: &Path, model: &ModelInfo) -> String {
        let files = self.known();
        let found = files.iter().find(|file| file.path == path);
        let library = found.and_then(|file| file.found.as_ref().ok());
        library.map_or_else(String::new, |library| reads(library, model))
    }

    /// `what` is missing, what was found instead, and what to do.
    pub fn no_plugin(&self, what: &str) -> String {
        let names: Vec<_> = self
            .known()
            .iter()
            .map(|file| match &file.found {
                Ok(plugin) => plugin.card().name.clone(),
                Err(why) => why.clone(),
            })
            .collect();
        let dirs: Vec<_> = self
            .dirs
            .iter()
            .map(|dir| dir.display().to_string())
            .collect();
        let found = if names.is_empty() {
            "no plugin at all".to_owned()
        } else {
            names.join("; ")
        };
        format!(
            "{what}; found in {}: {found}. See `crossgate plugins`, or name a folder with --plugin-dir",
            dirs.join(", ")
        )
    }
}

impl Host {
    fn known(&self) -> MutexGuard<'_, Vec<PluginFile>> {
        // Nothing in here can panic half-way; a poisoned lock is still sound.
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Candidate {
    fn open(&self, request: &OpenRequest) -> Result<Opened, Fault> {
        let request = match &self.path {
            Some(path) => beside(path, request),
            None => request.clone(),
        };
        Ok(Opened {
            backend: self.library.open(&request)?,
            library: Arc::clone(&self.library),
            sha256: self.sha256.clone(),
            request,
        })
    }
}

/// The request, to the plugin whose file lies at `path`: it runs as a copy, and may need what users put beside it.
fn beside(path: &Path, request: &OpenRequest) -> OpenRequest {
    OpenRequest {
        plugin_dir: path.parent().unwrap_or(path).to_owned(),
        ..request.clone()
    }
}

impl Opened {
    /// A function that opens the same model by the same plugin again.
    pub fn reopen(&self) -> impl Fn() -> Result<OpenBackend, Fault> + Send + Sync + use<> {
        let (library, request) = (Arc::clone(&self.library), self.request.clone());
        move || library.open(&request)
    }
}

/// The place of a plugin's best device among those that are preferred.
fn device_rank(card: &PluginCard) -> Option<usize> {
    let rank = |device: &String| {
        let known = DEVICES.iter().position(|known| known == device);
        known.unwrap_or(DEVICES.len())
    };
    card.devices.iter().map(rank).min()
}
