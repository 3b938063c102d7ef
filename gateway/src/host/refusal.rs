//! Why a model is not opened, in words.

use crate::model::ModelInfo;
use backend_api::PluginLibrary;
use std::fmt;

/// No plugin opens the model. Says what each one answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoBackend {
    pub(super) why: Vec<String>,
    /// Whether a plugin would have opened it with other options.
    pub is_by_options: bool,
}

impl NoBackend {
    /// For this reason, which no option changes.
    pub fn new(why: String) -> Self {
        Self {
            why: vec![why],
            is_by_options: false,
        }
    }
}

impl fmt::Display for NoBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why.join("; "))
    }
}

impl std::error::Error for NoBackend {}

/// What to add to the refusal of a plugin that was named and reads weights in another form than these.
pub(super) fn reads(library: &PluginLibrary, model: &ModelInfo) -> String {
    let (card, format) = (library.card(), model.format.name());
    if card.formats.iter().any(|name| name == format) {
        return String::new();
    }
    let known = card.formats.join(" and ");
    format!(" (it reads {known}, and the weights are written as {format})")
}
