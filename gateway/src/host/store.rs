//! The images of this process: each library file is copied to a name made of its content, and that copy is
//! mapped. The dynamic loader knows files by path, so a changed file needs a new one; and who overwrites a
//! plugin that serves changes a file that nobody has mapped.

use super::image;
use crate::digest::hex;
use backend_api::PluginLibrary;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Permission bits that let others than the owner change what is in a folder.
const OTHERS_WRITE: u32 = 0o022;
/// Copies are made for their owner to read and write, and marked by one bit more once they have been tried: what a
/// process has left that ended in the middle of a trial says nothing.
const COPY_MODE: u32 = 0o600;
const TRIED: u32 = 0o100;
/// Copies of earlier processes that are kept.
const COPIES_MAX: usize = 64;

/// What may be mapped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageBounds {
    /// Images in one process: they stay mapped for ever.
    pub images_max: usize,
    /// SHA-256 of the files that may be mapped, in lower-case hexadecimal; empty for any.
    pub allowed: Vec<String>,
}

/// The mapped images.
pub(super) struct Store {
    dir: PathBuf,
    // Of this process alone: goes with it.
    is_own: bool,
    bounds: ImageBounds,
    // By the SHA-256 of their file.
    mapped: Mutex<HashMap<String, Image>>,
}

/// What became of a file that was mapped.
struct Image {
    /// The file, whatever lies there by now.
    path: PathBuf,
    found: Result<Arc<PluginLibrary>, String>,
}

// dlopen runs constructors and abi_stable fills its globals: one library at a time.
static LOADING: Mutex<()> = Mutex::new(());

// === impl Store ===

impl Store {
    /// Keeps copies in `dir`, or where that cannot be written in a new folder among the system's temporary
    /// ones.
    ///
    /// # Errors
    /// That there is no such place.
    pub(super) fn new(dir: &Path, bounds: ImageBounds) -> Result<Self, String> {
        let (dir, is_own) = match make_private(dir) {
            Ok(()) => (dir.to_owned(), false),
            Err(error) => {
                let name = format!("crossgate-plugins-{}", uuid::Uuid::new_v4());
                let elsewhere = std::env::temp_dir().join(name);
                make_private(&elsewhere).map_err(|also| {
                    format!("no folder for copies of plugins: {error}; nor elsewhere: {also}")
                })?;
                tracing::warn!(dir = %elsewhere.display(), "plugins are not copied to the cache: {error}");
                (elsewhere, true)
            }
        };
        forget_old(&dir);
        Ok(Self {
            dir,
            is_own,
            bounds,
            mapped: Mutex::default(),
        })
    }

    /// Images that are mapped, refused ones among them.
    pub(super) fn n_images(&self) -> usize {
        self.mapped().len()
    }

    /// The SHA-256 of a file's content and the plugin that it is. The same content is mapped once. Content that
    /// no process has tried before is given to `trial` first, as a copy.
    ///
    /// # Errors
    /// Why it is none, or is not allowed; with its hash if it could be read.
    pub(super) fn load(
        &self,
        path: &Path,
        trial: impl FnOnce(&Path) -> Result<(), String>,
    ) -> (Option<String>, Result<Arc<PluginLibrary>, String>) {
        let bytes = match image::read(path) {
            Ok(bytes) => bytes,
            Err(why) => return (None, Err(why)),
        };
        let hash = hex(&Sha256::digest(&bytes));
        let found = self.map(path, &hash, &bytes, trial);
        (Some(hash), found)
    }

    /// A copy has been tried, and may be mapped.
    pub(super) fn tried(&self, copy: &Path) {
        // Where it cannot be marked it is tried again.
        let _ = fs::set_permissions(copy, Permissions::from_mode(COPY_MODE | TRIED));
    }

    /// What was found out about a copy speaks against it: it is not there for the next process.
    pub(super) fn forget(&self, copy: &Path) {
        let _ = fs::remove_file(copy);
    }

    /// Nothing more is copied. What is mapped stays mapped.
    pub(super) fn end(&self) {
        if self.is_own {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }

    /// The image of this content, if it is mapped.
    pub(super) fn mapped_as(&self, hash: &str) -> Option<Arc<PluginLibrary>> {
        self.mapped().get(hash)?.found.clone().ok()
    }

    /// The file whose content was mapped as this; another one may lie there by now.
    pub(super) fn mapped_from(&self, hash: &str) -> Option<PathBuf> {
        Some(self.mapped().get(hash)?.path.clone())
    }

    /// The copy of a file, which is not mapped for it.
    ///
    /// # Errors
    /// As for [`load`](Self::load).
    pub(super) fn stage(&self, path: &Path) -> Result<(String, PathBuf), String> {
        let bytes = image::read(path)?;
        let hash = hex(&Sha256::digest(&bytes));
        self.check_allowed(path, &hash)?;
        let copy = self.copy(path, &hash, &bytes)?;
        Ok((hash, copy))
    }

    fn check_allowed(&self, path: &Path, hash: &str) -> Result<(), String> {
        let allowed = &self.bounds.allowed;
        if allowed.is_empty() || allowed.iter().any(|known| known == hash) {
            return Ok(());
        }
        let path = path.display();
        Err(format!(
            "{path}: its SHA-256 is {hash}, which plugins.sha256 does not allow"
        ))
    }

    fn map(
        &self,
        path: &Path,
        hash: &str,
        bytes: &[u8],
        trial: impl FnOnce(&Path) -> Result<(), String>,
    ) -> Result<Arc<PluginLibrary>, String> {
        let named = |what: String| format!("{}: {what}", path.display());
        self.check_allowed(path, hash)?;
        if let Some(image) = self.mapped().get(hash) {
            return image.found.clone();
        }
        let copy = self.copy(path, hash, bytes)?;
        if !was_tried(&copy) {
            trial(&copy).map_err(|why| {
                self.forget(&copy);
                of_file(&why, &copy, path)
            })?;
            self.tried(&copy);
        }
        // Not under the lock of the images, which are counted whenever somebody asks for the metrics.
        let _one_at_a_time = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(image) = self.mapped().get(hash) {
            return image.found.clone();
        }
        let n_images = self.n_images();
        if self.bounds.images_max <= n_images {
            return Err(named(format!(
                "{n_images} plugin images are mapped, as many as plugins.images_max allows, and an image stays \
                 until the process ends: restart the server, or allow more"
            )));
        }
        let found = image::open(&copy)
            .map(Arc::new)
            .map_err(|why| of_file(&why, &copy, path));
        let image = Image {
            path: path.to_owned(),
            found: found.clone(),
        };
        self.mapped().insert(hash.to_owned(), image);
        found
    }

    /// The copy of a file with this content, made unless it is there, and whole.
    fn copy(&self, path: &Path, hash: &str, bytes: &[u8]) -> Result<PathBuf, String> {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let extension = path.extension().unwrap_or_default().to_string_lossy();
        let copy = self.dir.join(format!("{stem}-{hash}.{extension}"));
        // A name says what should be in it; what is in it may have suffered.
        if !fs::read(&copy).is_ok_and(|found| found == bytes) {
            self.write_copy(&copy, bytes).map_err(|error| {
                let dir = self.dir.display();
                format!("{}: it cannot be copied to {dir}: {error}", path.display())
            })?;
        }
        // The dynamic loader trusts a file's headers: a truncated one would end the process by SIGBUS.
        PluginLibrary::check_file(&copy)
            .map_err(|error| of_file(&error.to_string(), &copy, path))?;
        Ok(copy)
    }

    fn write_copy(&self, copy: &Path, bytes: &[u8]) -> io::Result<()> {
        let aside = self.dir.join(format!(".{}", uuid::Uuid::new_v4()));
        let written = write_whole(&aside, bytes).and_then(|()| fs::rename(&aside, copy));
        if written.is_err() {
            let _ = fs::remove_file(&aside);
        }
        written
    }

    fn mapped(&self) -> MutexGuard<'_, HashMap<String, Image>> {
        // Nothing in here is left half-done.
        self.mapped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn was_tried(copy: &Path) -> bool {
    fs::metadata(copy).is_ok_and(|metadata| metadata.mode() & TRIED != 0)
}

impl Drop for Store {
    fn drop(&mut self) {
        self.end();
    }
}

/// Users know the file, not the copy; and are told of which one it is.
pub(super) fn of_file(why: &str, copy: &Path, path: &Path) -> String {
    let (copy, path) = (copy.display().to_string(), path.display().to_string());
    let why = why.replace(&copy, &path);
    if why.contains(&path) {
        why
    } else {
        format!("{path}: {why}")
    }
}

/// A folder that nobody else can write: what is in it is run.
fn make_private(dir: &Path) -> Result<(), String> {
    let named = |what: String| format!("{}: {what}", dir.display());
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| named(error.to_string()))?;
    let mode = fs::metadata(dir)
        .map_err(|error| named(error.to_string()))?
        .mode();
    if mode & OTHERS_WRITE != 0 {
        return Err(named(format!(
            "others can write it (mode {:o}); take that from them",
            mode & 0o777
        )));
    }
    let probe = dir.join(format!(".{}", uuid::Uuid::new_v4()));
    File::create_new(&probe).map_err(|error| named(error.to_string()))?;
    let _ = fs::remove_file(&probe);
    Ok(())
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(COPY_MODE);
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Removes the oldest copies. A process that has one mapped keeps it: only the name goes.
fn forget_old(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    let mut copies: Vec<_> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.metadata().ok()?.modified().ok()?, entry.path()))
        })
        .collect();
    copies.sort();
    let n_old = copies.len().saturating_sub(COPIES_MAX);
    for (_, path) in copies.drain(..n_old) {
        let _ = fs::remove_file(path);
    }
}
