//! A model from the words that name it to a checked description of it.
//!
//! source text → files in a local folder ([`fetch`]) → what is known of them ([`ModelInfo`])
//!
//! Everything here blocks: it runs before a port opens, or on an admin thread. Weights are never
//! loaded; plugins open the folder themselves.

use std::fmt;
use std::path::{Path, PathBuf};

mod config;
mod cut;
mod fingerprint;
mod geometry;
pub mod hub;
mod info;
pub mod progress;
mod prompt;
mod rows;
mod source;
mod starter;
mod template;
mod tokenizer;
mod wanted;
mod weights;
mod windows;

pub use cut::Cut;
pub use geometry::{Geometry, Operations};
pub use info::ModelInfo;
pub use prompt::{Answers, Prompt, Reading, Token};
pub use rows::TokenRows;
pub use source::Source;
pub use tokenizer::{Query, Tokenizer};
pub use wanted::{Reads, Wanted};
pub use weights::Format;
pub use windows::Windows;

use hub::Settings;
use progress::Progress;

/// A model's files on this machine. The folder stays as it is while the process runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// Holds at least `config.json`, `tokenizer.json` and weights, once [`ModelInfo::read`] agreed.
    pub path: PathBuf,
    /// What the user called it: `starter`, `org/name`, or the folder as given.
    pub name: String,
    /// The commit on the hub, where it came from one.
    pub revision: Option<String>,
    /// Which of its weights will be opened.
    pub wanted: Wanted,
    /// What an operator should know, for example that the hub could not be asked.
    pub warnings: Vec<String>,
}

/// Brings the model's files to a local folder: nothing to do for a folder, unpacking for the
/// starter, a download for a hub id, where of the weights only what is wanted comes. Reads no file's content
/// beyond what choosing files needs.
pub fn fetch(
    source: &Source,
    wanted: &Wanted,
    settings: &Settings,
    progress: &dyn Progress,
) -> Result<Folder, ModelError> {
    match source {
        Source::Starter => starter::install(settings.own_dir()),
        Source::Folder(path) => local(path, wanted),
        Source::Hub { repo, revision } => {
            hub::fetch(repo, revision.as_deref(), wanted, settings, progress)
        }
    }
}

/// Why there is no model, and what to do about it. Shown to operators, never to clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelError {
    /// Which of a few classes, for an exit code or a status.
    pub cause: Cause,
    /// What was found and where.
    pub problem: String,
    /// What to do next.
    pub remedy: String,
}

/// The classes of [`ModelError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// No such folder, repository or revision, or not in the cache while offline.
    NotFound,
    /// The hub wants a token, or another one.
    Denied,
    /// The files are there and are no model that can be served.
    Unfit,
    /// The network or the hub failed; trying again may help.
    Unreachable,
    /// Bytes arrived that are not the ones that were announced.
    Corrupt,
    /// The local file system refused.
    Disk,
}

// === impl ModelError ===

impl ModelError {
    fn new(cause: Cause, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            cause,
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }

    fn unfit(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Cause::Unfit, problem, remedy)
    }

    /// `doing` is a verb: `read`, `write`, `rename`.
    fn disk(doing: &str, path: &Path, error: &std::io::Error) -> Self {
        Self::new(
            Cause::Disk,
            format!("cannot {doing} {}: {error}", path.display()),
            "check that the path exists, its permissions and the free space",
        )
    }
}

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.problem, self.remedy)
    }
}

impl std::error::Error for ModelError {}

fn local(path: &Path, wanted: &Wanted) -> Result<Folder, ModelError> {
    let name = path.display().to_string();
    if path.is_dir() {
        return Ok(Folder {
            path: path.into(),
            name,
            revision: None,
            wanted: wanted.clone(),
            warnings: Vec::new(),
        });
    }
    let problem = if path.exists() {
        format!("{name} is a file, not a model's folder")
    } else {
        format!("there is no folder {name}")
    };
    let error = ModelError::new(
        Cause::NotFound,
        problem,
        "name the folder that holds config.json, tokenizer.json and model.safetensors",
    );
    let file = path.file_name().unwrap_or_default();
    Err(weights::gguf::or_needed(
        error,
        &[file.to_string_lossy().into_owned()],
    ))
}
