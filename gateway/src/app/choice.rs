//! Which plugin serves a model when nobody has named one: the first in the host's order that opens it, unless another
//! on the same kind of device is much faster.

use crate::generation::{Speed, measure};
use crate::host::{self, Host, Opened};
use crate::model::{ModelInfo, Tokenizer};
use backend_api::OpenRequest;

/// How much faster another plugin must be. Two that are about as fast would take turns at being chosen, and their
/// scores may differ.
const FASTER_MIN: f64 = 1.5;
/// Another plugin may need so many times the memory of the first: f32 has four bytes where int8 has one. Where there
/// is less, nothing else is opened.
const MEMORY_FACTOR: u64 = 8;

/// A model opened by the plugin that will serve it.
pub(super) struct Choice {
    /// What will serve.
    pub(super) opened: Opened,
    /// Why this one, for the log and for operators.
    pub(super) why: String,
}

/// Opens a model by the plugin of this name, or by the best one.
///
/// # Errors
/// What each plugin answered.
pub(super) fn choose(
    host: &Host,
    backend: Option<&str>,
    model: &ModelInfo,
    request: &OpenRequest,
    tokenizer: &Tokenizer,
) -> Result<Choice, host::NoBackend> {
    let (first, others) = host.open(backend, model, request)?;
    if backend.is_some() {
        let why = "named by the configuration".to_owned();
        return Ok(Choice { opened: first, why });
    }
    let name = |opened: &Opened| opened.library.card().name.clone();
    if others.len() == 0 {
        let why = format!(
            "the only plugin here that serves a {} as these files hold it",
            model.architecture
        );
        return Ok(Choice { opened: first, why });
    }
    let needs = first
        .backend
        .description()
        .memory_bytes
        .saturating_mul(MEMORY_FACTOR);
    if host::memory_available().is_some_and(|has| has < needs) {
        let why = "the first of the plugins that serve it; there is no memory to try the others"
            .to_owned();
        return Ok(Choice { opened: first, why });
    }
    let (mut told, mut best) = (Vec::new(), None);
    let mut preferred = None;
    for opened in std::iter::once(Ok(first)).chain(others) {
        let opened = match opened {
            Ok(opened) => opened,
            Err(why) => {
                told.push(why);
                continue;
            }
        };
        let speed = match measure(&opened.backend, tokenizer) {
            Ok(speed) => speed,
            Err(fault) => {
                told.push(format!("{}: {fault}", name(&opened)));
                Speed::default()
            }
        };
        let dtype = &opened.backend.description().dtype;
        told.push(format!(
            "{} ({dtype}): {:.0} tokens/s a worker",
            name(&opened),
            speed.tokens_per_s
        ));
        let preferred = *preferred.get_or_insert(speed.tokens_per_s);
        let is_better = match &best {
            None => true,
            Some((_, fastest)) => {
                FASTER_MIN * preferred < speed.tokens_per_s && *fastest < speed.tokens_per_s
            }
        };
        if is_better {
            best = Some((opened, speed.tokens_per_s));
        }
    }
    let told = told.join("; ");
    match best {
        Some((opened, _)) => Ok(Choice {
            opened,
            why: format!(
                "measured: {told}; another than the first is taken if it is {FASTER_MIN} times as fast"
            ),
        }),
        None => Err(host::NoBackend::new(told)),
    }
}
