//! The layout of the cache, which is Python's `huggingface_hub`'s:
//!
//! ```text
//! models--org--name/blobs/<etag>                       content, once
//!                   snapshots/<commit>/<file>          link to ../../blobs/<etag>
//!                   refs/<revision>                    text: the commit
//! .locks/models--org--name/<etag>.lock                 held while a blob is written
//! ```

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::model::weights;
use crate::model::{Cause, ModelError, Wanted};

use super::names::is_commit;

/// Another process may fetch gigabytes; who waits longer than this is told so.
const LOCK_WAIT_S_MAX: u64 = 3_600;
const LOCK_POLL: Duration = Duration::from_millis(200);
/// A ref holds 40 characters.
const REF_BYTES_MAX: u64 = 1_024;

/// One repository's part of the cache.
pub(super) struct Cache {
    root: PathBuf,
    repo: PathBuf,
    locks: PathBuf,
}

/// The right to write one blob; gone when dropped or when the process ends.
pub(super) struct BlobLock(#[expect(dead_code, reason = "held for its lock")] File);

// === impl Cache ===

impl Cache {
    /// `repo` was checked to be a hub id.
    pub(super) fn new(root: &Path, repo: &str) -> Self {
        let leaf = format!("models--{}", repo.replace('/', "--"));
        Self {
            root: root.into(),
            repo: root.join(&leaf),
            locks: root.join(".locks").join(leaf),
        }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.repo.join("snapshots").join(commit)
    }

    pub(super) fn blob(&self, blob: &str) -> PathBuf {
        self.repo.join("blobs").join(blob)
    }

    pub(super) fn incomplete(&self, blob: &str) -> PathBuf {
        self.repo.join("blobs").join(format!("{blob}.incomplete"))
    }

    /// The commit that `revision` meant when last seen, if its snapshot can be served and holds what is wanted.
    pub(super) fn complete_commit(&self, revision: &str, wanted: &Wanted) -> Option<String> {
        let commit = if is_commit(revision) {
            revision.to_owned()
        } else {
            let path = self.repo.join("refs").join(revision);
            let bytes = weights::read_bounded(&path, REF_BYTES_MAX).ok()?;
            String::from_utf8(bytes).ok()?.trim().to_owned()
        };
        let snapshot = self.snapshot(&commit);
        let whole = is_commit(&commit)
            && ["config.json", "tokenizer.json"]
                .iter()
                .all(|name| snapshot.join(name).is_file())
            && wanted.is_in(&snapshot);
        whole.then_some(commit)
    }

    /// Whether a complete snapshot needs no further question: a commit does not change, but
    /// Python may have stopped before the optional files, so the usual one must be there; and the
    /// repository may have better weights than those that were fetched for somebody else.
    pub(super) fn is_final(&self, commit: &str, revision: &str, wanted: &Wanted) -> bool {
        let snapshot = self.snapshot(commit);
        commit == revision
            && snapshot.join("tokenizer_config.json").is_file()
            && wanted.is_best_in(&snapshot)
    }

    pub(super) fn write_ref(&self, revision: &str, commit: &str) -> Result<(), ModelError> {
        // A commit means itself.
        if revision == commit {
            return Ok(());
        }
        let path = self.repo.join("refs").join(revision);
        // Nothing to write is no reason to need a cache that can be written.
        if fs::read(&path).is_ok_and(|there| there == commit.as_bytes()) {
            return Ok(());
        }
        create_parent(&path)?;
        fs::write(&path, commit).map_err(|error| ModelError::disk("write", &path, &error))
    }

    /// Waits until nobody else writes the blob.
    pub(super) fn lock(&self, blob: &str) -> Result<BlobLock, ModelError> {
        let path = self.locks.join(format!("{blob}.lock"));
        create_parent(&path)?;
        create_parent(&self.blob(blob))?;
        let disk = |error: std::io::Error| ModelError::disk("lock", &path, &error);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(disk)?;
        let n_polls_max = LOCK_WAIT_S_MAX * 1_000 / LOCK_POLL.as_millis() as u64;
        for n_polls in 0..n_polls_max {
            match file.try_lock() {
                Ok(()) => return Ok(BlobLock(file)),
                Err(TryLockError::Error(error)) => return Err(disk(error)),
                Err(TryLockError::WouldBlock) if n_polls == 0 => {
                    tracing::info!(lock = %path.display(), "another process fetches this file");
                }
                Err(TryLockError::WouldBlock) => {}
            }
            thread::sleep(LOCK_POLL);
        }
        Err(ModelError::new(
            Cause::Disk,
            format!(
                "{} is held by another process since {LOCK_WAIT_S_MAX} s",
                path.display()
            ),
            "end the other download, then start again",
        ))
    }

    /// Lets the snapshot's file be the blob. The name was checked to stay inside.
    pub(super) fn link(&self, commit: &str, name: &str, blob: &str) -> Result<(), ModelError> {
        let at = self.snapshot(commit).join(name);
        create_parent(&at)?;
        // Whatever is there is broken: a whole file would not have been fetched.
        if at.symlink_metadata().is_ok() {
            fs::remove_file(&at).map_err(|error| ModelError::disk("replace", &at, &error))?;
        }
        let up = "../".repeat(2 + name.matches('/').count());
        match link_file(
            Path::new(&format!("{up}blobs/{blob}")),
            &self.blob(blob),
            &at,
        ) {
            Ok(()) => Ok(()),
            // Another process made the same link in between.
            Err(_) if at.is_file() => Ok(()),
            Err(error) => Err(ModelError::disk("link", &at, &error)),
        }
    }
}

/// A relative symbolic link, so that the cache can be moved; content where there are none.
fn link_file(relative: &Path, blob: &Path, at: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    if std::os::unix::fs::symlink(relative, at).is_ok() {
        return Ok(());
    }
    #[cfg(not(unix))]
    let _ = relative;
    fs::hard_link(blob, at).or_else(|_| fs::copy(blob, at).map(drop))
}

fn create_parent(path: &Path) -> Result<(), ModelError> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(|error| ModelError::disk("create", parent, &error))
}
