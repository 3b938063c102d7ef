//! Texts that are too long for the model: what clients may ask about them, and how they are told.

use super::Edge;
use crate::score::{Form, ScoreError, ScoreResponse, Side};
use std::sync::Arc;

/// Indices that a warning lists before it only counts.
const WARNED_INDICES_MAX: usize = 20;

/// `overflow`: what becomes of a request with a text that is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overflow {
    /// The text is cut, and the answer says so.
    Truncate,
    /// The request is refused.
    Error,
    /// The same, as too large: so TEI says it.
    TooLarge,
    /// The document is read in windows, and the best one counts.
    ChunkMax,
}

// === impl Overflow ===

impl Overflow {
    /// # Errors
    /// Names what there is.
    pub(super) fn parse(text: Option<&str>) -> Result<Self, ScoreError> {
        match text.unwrap_or_default() {
            "" | "truncate" => Ok(Self::Truncate),
            "error" => Ok(Self::Error),
            "chunk_max" => Ok(Self::ChunkMax),
            other => Err(ScoreError::invalid(
                "overflow",
                format!(r#"there is no {other:?}; use "truncate", "error" or "chunk_max""#),
            )),
        }
    }

    /// Refuses what was cut, if that was asked for. What is too long is known when it has been
    /// tokenized, and told with the scores: to be refused costs as much as to be answered.
    ///
    /// # Errors
    /// `Invalid` or `TooLarge`, naming the query or the first document.
    pub(super) fn check(self, response: &ScoreResponse, edge: &Edge) -> Result<(), ScoreError> {
        if !matches!(self, Self::Error | Self::TooLarge) {
            return Ok(());
        }
        let param = match (response.query_truncated, response.truncated.first()) {
            (true, _) => "query".to_owned(),
            (false, Some(index)) => format!("documents[{index}]"),
            (false, None) => return Ok(()),
        };
        // Gone in between: what it was does not matter to anybody any more.
        let model = edge.model_of(response);
        let row_tokens_max = model.map_or(0, |model| model.row_tokens_max);
        let why = format!(
            "is too long for the model, which takes {row_tokens_max} tokens of query and document \
             together, or for the tokens that the request allows; send a shorter one, or let it be cut"
        );
        Err(match self {
            Self::TooLarge => ScoreError::TooLarge { param, why },
            _ => ScoreError::Invalid { param, why },
        })
    }
}

/// What was cut, and what was read in windows. `texts` is the field's name in the dialect.
pub(super) fn cuts(response: &ScoreResponse, texts: &str, form: &Form) -> Vec<String> {
    let mut warnings = Vec::new();
    if response.query_truncated {
        warnings.push(match form.query_tokens_max {
            Some(_) => "query was cut to the tokens allowed".to_owned(),
            None => format!("query was cut to leave room for the {texts}"),
        });
    }
    if !response.truncated.is_empty() {
        let is_bounded = form.document_tokens_max.or(form.row_tokens_max).is_some();
        let to = match is_bounded {
            true => "the tokens allowed",
            false => "the model's length",
        };
        let cut = response
            .truncated
            .iter()
            .map(|index| format!("{texts}[{index}]"));
        warnings.push(format!("cut to {to}: {}", listed(cut)));
    }
    if !response.windows.is_empty() {
        let read = response.windows.iter();
        let read = read.map(|(index, n)| format!("{texts}[{index}] of {n}"));
        warnings.push(format!("scored by the best window: {}", listed(read)));
    }
    warnings
}

/// The first few, and how many more there are.
fn listed(items: impl ExactSizeIterator<Item = String>) -> String {
    let n_more = items.len().saturating_sub(WARNED_INDICES_MAX);
    let first: Vec<_> = items.take(WARNED_INDICES_MAX).collect();
    match n_more {
        0 => first.join(", "),
        _ => format!("{} and {n_more} more", first.join(", ")),
    }
}

/// A bound in tokens; 0 is what some clients send for none.
pub(super) fn bound(tokens: Option<u64>) -> Option<u32> {
    let tokens = tokens.filter(|&tokens| tokens != 0)?;
    Some(u32::try_from(tokens).unwrap_or(u32::MAX))
}

/// What the model is told to look for; spaces are nothing.
pub(super) fn instruction(text: Option<String>) -> Option<Arc<str>> {
    let text = text.filter(|text| !text.trim().is_empty());
    text.map(Into::into)
}

/// The side at which texts that are too long are cut, where one is named; `param` is the field's name in the dialect.
///
/// # Errors
/// Names what there is.
pub(super) fn side(param: &str, text: Option<&str>) -> Result<Option<Side>, ScoreError> {
    match text.map(str::trim).unwrap_or_default() {
        "" => Ok(None),
        word if word.eq_ignore_ascii_case("right") => Ok(Some(Side::Right)),
        word if word.eq_ignore_ascii_case("left") => Ok(Some(Side::Left)),
        other => Err(ScoreError::invalid(
            param,
            format!(r#"there is no {other:?}; use "right" or "left""#),
        )),
    }
}
