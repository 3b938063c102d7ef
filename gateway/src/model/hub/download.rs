//! One file of a commit: asked what it is, fetched or continued, verified, linked.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::digest::{hex, is_sha256};
use crate::model::progress::Progress;
use crate::model::weights::gguf;
use crate::model::{Cause, ModelError};

use super::answers::Metadata;
use super::cache::Cache;
use super::client::{Client, Failure};

/// One shard of weights, a graph or its data; the largest on the hub have 50 GB.
const WEIGHT_BYTES_MAX: u64 = 64 << 30;
/// Any other file; the largest tokenizers have 35 MB.
const SMALL_BYTES_MAX: u64 = 256 << 20;
/// A connection that brought this much was worth it: failures are counted afresh.
const PROGRESS_BYTES: u64 = 1 << 20;
/// Bytes read at a time, from the network and for the hash.
const BUFFER_BYTES: usize = 128 * 1024;

/// A file on its way.
struct Transfer<'a> {
    client: &'a Client<'a>,
    commit: &'a str,
    name: &'a str,
    metadata: &'a Metadata,
    /// The file with the part that is there, opened to append.
    file: File,
    path: &'a Path,
}

/// Makes `name` a file of the commit's snapshot, and does nothing if it is one.
pub(super) fn ensure(
    client: &Client<'_>,
    cache: &Cache,
    commit: &str,
    name: &str,
    progress: &dyn Progress,
) -> Result<(), ModelError> {
    if cache.snapshot(commit).join(name).is_file() {
        return Ok(());
    }
    let metadata = client.metadata(commit, name)?;
    if let Some(n_bytes) = metadata
        .n_bytes
        .filter(|&n_bytes| bytes_max(name) < n_bytes)
    {
        return Err(too_large(name, n_bytes));
    }
    let blob = cache.blob(&metadata.blob);
    let lock = cache.lock(&metadata.blob)?;
    // Another commit or another process may have brought it.
    if !is_blob(&blob, metadata.n_bytes) {
        let path = cache.incomplete(&metadata.blob);
        let disk = |error: std::io::Error| ModelError::disk("write", &path, &error);
        let file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(disk)?;
        let mut transfer = Transfer {
            client,
            commit,
            name,
            metadata: &metadata,
            file,
            path: &path,
        };
        progress.begin(name, metadata.n_bytes);
        let received = transfer.receive(progress);
        progress.end();
        received?;
        transfer.file.sync_all().map_err(disk)?;
        verify(name, &metadata, &path)?;
        fs::rename(&path, &blob).map_err(|error| ModelError::disk("rename to", &blob, &error))?;
    }
    drop(lock);
    cache.link(commit, name, &metadata.blob)
}

// === impl Transfer ===

impl Transfer<'_> {
    /// Returns when the file has all its bytes. What is there stays there on failure.
    fn receive(&mut self, progress: &dyn Progress) -> Result<(), ModelError> {
        let n_bytes = self.metadata.n_bytes;
        if n_bytes.is_some_and(|n_bytes| n_bytes < self.n_done().unwrap_or(0)) {
            self.start_afresh()?;
        }
        let mut n_failures = 0;
        loop {
            let n_before = self.n_done()?;
            progress.at(n_before);
            // A file of no bytes is complete before anybody is asked, and so is one whose last
            // rename was interrupted.
            if n_bytes == Some(n_before) {
                return Ok(());
            }
            let (problem, retry_after) = match self.attempt(n_before, progress) {
                Ok(()) => return Ok(()),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Transient {
                    problem,
                    retry_after,
                }) => (problem, retry_after),
            };
            if n_before + PROGRESS_BYTES <= self.n_done()? {
                n_failures = 0;
            }
            n_failures += 1;
            self.pause_or_give_up(n_failures, &problem, retry_after)?;
        }
    }

    /// One connection's worth of bytes, behind the `from` that are there.
    fn attempt(&mut self, from: u64, progress: &dyn Progress) -> Result<(), Failure> {
        let mut content = self.client.content(self.commit, self.name, from)?;
        if content.at != from {
            self.start_afresh().map_err(Failure::Final)?;
        }
        let n_max = self
            .metadata
            .n_bytes
            .unwrap_or_else(|| bytes_max(self.name));
        let mut n_done = content.at;
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let n_read = match content.body.read(&mut buffer) {
                Ok(n_read) => n_read,
                Err(error) => return Err(transient(format!("after {n_done} bytes: {error}"))),
            };
            if n_read == 0 {
                break;
            }
            if !progress.is_wanted() {
                return Err(Failure::Final(given_up(self.name)));
            }
            n_done += n_read as u64;
            if n_max < n_done {
                let error = corrupt(self.name, &format!("it has more than {n_max} bytes"));
                return Err(Failure::Final(remove(self.path, error)));
            }
            self.file
                .write_all(&buffer[..n_read])
                .map_err(|error| Failure::Final(ModelError::disk("write", self.path, &error)))?;
            progress.at(n_done);
        }
        match self.metadata.n_bytes {
            Some(n_bytes) if n_done < n_bytes => Err(transient(format!(
                "the connection ended after {n_done} of {n_bytes} bytes"
            ))),
            _ => Ok(()),
        }
    }

    fn pause_or_give_up(
        &self,
        n_failures: u32,
        problem: &str,
        retry_after: Option<Duration>,
    ) -> Result<(), ModelError> {
        if self.client.attempts() <= n_failures {
            return Err(self.client.unreachable(self.name, problem));
        }
        tracing::info!(
            file = self.name,
            problem,
            "continuing an interrupted download"
        );
        self.client.wait(n_failures, retry_after);
        Ok(())
    }

    fn n_done(&self) -> Result<u64, ModelError> {
        let metadata = self.file.metadata();
        metadata
            .map(|file| file.len())
            .map_err(|error| ModelError::disk("read", self.path, &error))
    }

    fn start_afresh(&self) -> Result<(), ModelError> {
        self.file
            .set_len(0)
            .map_err(|error| ModelError::disk("empty", self.path, &error))
    }
}

fn transient(problem: String) -> Failure {
    Failure::Transient {
        problem,
        retry_after: None,
    }
}

fn bytes_max(name: &str) -> u64 {
    let by_name = [".safetensors", gguf::ENDING];
    if by_name.iter().any(|ending| name.ends_with(ending)) || name.contains(".onnx") {
        WEIGHT_BYTES_MAX
    } else {
        SMALL_BYTES_MAX
    }
}

fn is_blob(blob: &Path, n_bytes: Option<u64>) -> bool {
    fs::metadata(blob)
        .is_ok_and(|file| file.is_file() && n_bytes.is_none_or(|n_bytes| n_bytes == file.len()))
}

/// The whole file again from disk and not while it arrives, because a part may be older than this
/// process; 1.5 GB/s with SHA instructions, a tenth of the time of any network.
fn verify(name: &str, metadata: &Metadata, path: &Path) -> Result<(), ModelError> {
    // Large files are named by the SHA-256 of their content, small ones by git's 40 digits.
    if !is_sha256(&metadata.blob) {
        return Ok(());
    }
    let disk = |error: std::io::Error| ModelError::disk("read", path, &error);
    let mut file = File::open(path).map_err(disk)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let n_read = file.read(&mut buffer).map_err(disk)?;
        if n_read == 0 {
            break;
        }
        hasher.update(&buffer[..n_read]);
    }
    let got = hex(&hasher.finalize());
    if got.eq_ignore_ascii_case(&metadata.blob) {
        return Ok(());
    }
    let why = format!("its sha256 is {got}, the hub says {}", metadata.blob);
    Err(remove(path, corrupt(name, &why)))
}

/// Takes the broken file away, so that the next attempt does not continue it.
fn remove(path: &Path, error: ModelError) -> ModelError {
    match fs::remove_file(path) {
        Ok(()) => error,
        Err(cannot) => ModelError {
            remedy: format!(
                "delete {} ({cannot}), then {}",
                path.display(),
                error.remedy
            ),
            ..error
        },
    }
}

fn corrupt(name: &str, why: &str) -> ModelError {
    ModelError::new(
        Cause::Corrupt,
        format!("{name} arrived wrong: {why}"),
        "start again; if it happens again, a proxy or mirror alters the file",
    )
}

fn given_up(name: &str) -> ModelError {
    ModelError::new(
        Cause::Unreachable,
        format!("{name} is not wanted any more"),
        "order it again: what has arrived is kept",
    )
}

fn too_large(name: &str, n_bytes: u64) -> ModelError {
    ModelError::unfit(
        format!("{name} has {n_bytes} bytes, at most {}", bytes_max(name)),
        "download the model by hand and name its folder",
    )
}
