//! Files and pipes scored without ports, by the code that serves: `crossgate rerank` and `crossgate score`.
//!
//! A thread reads lines ahead of the model and makes groups of them ([`flow`]); a bounded number of groups is
//! scored at a time ([`engine`]); what comes out stands in the order of the lines. So memory is bounded
//! however long a file is, and admission, which would refuse what is too much, is never asked for too much.

mod engine;
mod flow;
mod journal;
mod line;
mod pairs;
pub mod rerank;
pub mod score;
mod text;
mod watch;

pub(crate) use line::{Fault, Lines};
pub(crate) use text::Json;

use crate::app::StartError;
use crate::config::ConfigError;
use crate::score::Form;
use std::fmt;
use std::io::Read;
use std::path::PathBuf;

/// How texts are scored, whatever they come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scoring {
    /// How texts become rows.
    pub form: Form,
    /// Whether a text that is too long is a fault, instead of being cut.
    pub is_strict: bool,
    /// Whether scores are logits, whatever the model's activation.
    pub is_raw: bool,
    /// Of a document that is an object, the fields that are its text; without names it is `text`.
    pub fields: Vec<String>,
}

/// Where lines come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// What is piped in.
    Stdin,
    /// A file.
    File(PathBuf),
}

// === impl Input ===

impl Input {
    /// `-` is standard input.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        match path.as_os_str() == "-" {
            true => Self::Stdin,
            false => Self::File(path),
        }
    }

    /// # Errors
    /// The file cannot be read.
    fn open(&self) -> Result<Box<dyn Read + Send>, StartError> {
        match self {
            Self::Stdin => Ok(Box::new(std::io::stdin())),
            // It opens, and fails when it is read, with an output begun.
            Self::File(path) if path.is_dir() => Err(wrong(format!(
                "{self} is a folder; name a file in it, or - for standard input"
            ))),
            Self::File(path) => match std::fs::File::open(path) {
                Ok(file) => Ok(Box::new(file)),
                Err(error) => Err(wrong(format!(
                    "{self} cannot be read: {error}; name a file, or - for standard input"
                ))),
            },
        }
    }
}

/// As messages name it.
impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdin => f.write_str("standard input"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// What the user can mend.
fn wrong(why: String) -> StartError {
    StartError::Config(ConfigError::new(vec![why]))
}
