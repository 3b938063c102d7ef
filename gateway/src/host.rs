//! Plugins: the only place that knows library files.

mod image;
mod store;

pub use store::ImageBounds;

use backend_api::{Fault, FaultCode, OpenBackend, OpenRequest, PluginLibrary};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::Store;

/// Devices in the order in which `auto` prefers them.
const DEVICES: [&str; 3] = ["cuda", "metal", "cpu"];

/// The plugins that were found.
pub struct Host {
    files: Vec<PluginFile>,
    dirs: Vec<PathBuf>,
    store: Store,
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

/// No plugin opens the model. Says what each one answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoBackend {
    why: Vec<String>,
    /// Whether a plugin would have opened it with other options.
    pub is_by_options: bool,
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
    /// What it opened.
    pub backend: OpenBackend,
    /// How to open the same again.
    pub request: OpenRequest,
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
    ) -> Result<Self, String> {
        let store = Store::new(images_dir, bounds)?;
        let paths = dirs.iter().flat_map(|dir| image::find_in(dir, listing));
        let files = paths.map(|path| {
            let (sha256, found) = store.load(&path);
            PluginFile {
                path,
                sha256,
                found,
            }
        });
        Ok(Self {
            files: files.collect(),
            dirs: dirs.to_vec(),
            store,
        })
    }

    /// Images that this process has mapped: none ever goes.
    pub fn n_images(&self) -> usize {
        self.store.n_images()
    }

    /// Every file that was looked at.
    pub fn files(&self) -> &[PluginFile] {
        &self.files
    }

    /// The folders that were looked in.
    pub fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// The plugins of this name; with none, all.
    pub fn named<'a>(
        &'a self,
        backend: Option<&'a str>,
    ) -> impl Iterator<Item = &'a Arc<PluginLibrary>> {
        let plugins = self
            .files
            .iter()
            .filter_map(|file| file.found.as_ref().ok());
        plugins.filter(move |plugin| backend.is_none_or(|backend| plugin.card().name == backend))
    }

    /// Opens a model with the plugin named `backend`, or without a name by the first one that says it
    /// serves `architecture`, in the order of devices (`cuda`, `metal`, `cpu`) and then of names.
    ///
    /// # Errors
    /// What each plugin answered.
    pub fn open(
        &self,
        backend: Option<&str>,
        architecture: &str,
        request: &OpenRequest,
    ) -> Result<Opened, NoBackend> {
        let candidates = self
            .candidates(backend, architecture)
            .map_err(|why| NoBackend {
                why: vec![why],
                is_by_options: false,
            })?;
        let (mut why, mut is_by_options) = (Vec::new(), false);
        for library in candidates {
            match library.open(request) {
                Ok(backend) => {
                    return Ok(Opened {
                        library,
                        backend,
                        request: request.clone(),
                    });
                }
                Err(fault) => {
                    why.push(format!("{}: {fault}", library.card().name));
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

    fn candidates(
        &self,
        backend: Option<&str>,
        architecture: &str,
    ) -> Result<Vec<Arc<PluginLibrary>>, String> {
        let plugins = self.named(backend);
        if let Some(backend) = backend {
            let named: Vec<_> = plugins.cloned().collect();
            return if named.is_empty() {
                Err(self.no_plugin(&format!("there is no plugin {backend:?}")))
            } else {
                Ok(named)
            };
        }
        let serves = |plugin: &&Arc<PluginLibrary>| {
            let served = &plugin.card().architectures;
            served.iter().any(|name| name == architecture)
        };
        let mut serving: Vec<_> = plugins.filter(serves).cloned().collect();
        serving.sort_by_key(|plugin| {
            let card = plugin.card();
            let preference = |device: &String| {
                DEVICES
                    .iter()
                    .position(|known| known == device)
                    .unwrap_or(DEVICES.len())
            };
            (card.devices.iter().map(preference).min(), card.name.clone())
        });
        if serving.is_empty() {
            return Err(self.no_plugin(&format!("no plugin serves a {architecture}")));
        }
        Ok(serving)
    }

    /// `what` is missing, what was found instead, and what to do.
    pub fn no_plugin(&self, what: &str) -> String {
        let names: Vec<_> = self
            .files
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

impl Opened {
    /// A function that opens the same model by the same plugin again.
    pub fn reopen(&self) -> impl Fn() -> Result<OpenBackend, Fault> + Send + Sync + use<> {
        let (library, request) = (Arc::clone(&self.library), self.request.clone());
        move || library.open(&request)
    }
}

impl fmt::Display for NoBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why.join("; "))
    }
}

impl std::error::Error for NoBackend {}
