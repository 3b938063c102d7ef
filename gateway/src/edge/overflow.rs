//! Texts that are too long for the model: what clients may ask about them, and how they are told.

use super::Edge;
use crate::score::{ScoreError, ScoreResponse};

/// Indices that a warning lists before it only counts.
const WARNED_INDICES_MAX: usize = 20;

/// `overflow`: what becomes of a request with a text that is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overflow {
    /// The text is cut, and the answer says so.
    Truncate,
    /// The request is refused.
    Error,
}

/// A bound in tokens that a request asks for. None is applied but the model's own.
pub(super) struct Bound {
    name: &'static str,
    tokens: u64,
}

// === impl Overflow ===

impl Overflow {
    /// # Errors
    /// Names what there is.
    pub(super) fn parse(text: Option<&str>) -> Result<Self, ScoreError> {
        match text.unwrap_or_default() {
            "" | "truncate" => Ok(Self::Truncate),
            "error" => Ok(Self::Error),
            "chunk_max" => Err(ScoreError::invalid(
                "overflow",
                r#""chunk_max" is not supported yet; use "truncate" or "error""#,
            )),
            other => Err(ScoreError::invalid(
                "overflow",
                format!(r#"there is no {other:?}; use "truncate" or "error""#),
            )),
        }
    }

    /// Refuses what was cut, if that was asked for. What is too long is known when it has been
    /// tokenized, and told with the scores: to be refused costs as much as to be answered.
    ///
    /// # Errors
    /// `Invalid`, naming the query or the first document.
    pub(super) fn check(
        self,
        response: &ScoreResponse,
        row_tokens_max: usize,
    ) -> Result<(), ScoreError> {
        if self == Self::Truncate {
            return Ok(());
        }
        let param = match (response.query_truncated, response.truncated.first()) {
            (true, _) => "query".to_owned(),
            (false, Some(index)) => format!("documents[{index}]"),
            (false, None) => return Ok(()),
        };
        let why = format!(
            "is too long for the model, which takes {row_tokens_max} tokens of query and document \
             together; send a shorter one, or overflow \"truncate\""
        );
        Err(ScoreError::invalid(param, why))
    }
}

/// The length in tokens of a query and a document that the answering model takes.
pub(super) fn row_tokens_max(edge: &Edge, response: &ScoreResponse) -> usize {
    let models = edge.catalog.models();
    let model = models.iter().find(|model| model.name == response.model);
    // Gone in between: what it was does not matter to anybody any more.
    model.map_or(0, |model| model.row_tokens_max)
}

/// What was cut. `texts` is the field's name in the dialect.
pub(super) fn cuts(response: &ScoreResponse, texts: &str) -> Vec<String> {
    let mut warnings = Vec::new();
    if response.query_truncated {
        warnings.push(format!("query was cut to leave room for the {texts}"));
    }
    if !response.truncated.is_empty() {
        let listed = response
            .truncated
            .iter()
            .take(WARNED_INDICES_MAX)
            .map(|index| format!("{texts}[{index}]"));
        let listed = listed.collect::<Vec<_>>().join(", ");
        let more = match response.truncated.len().saturating_sub(WARNED_INDICES_MAX) {
            0 => String::new(),
            n_more => format!(" and {n_more} more"),
        };
        warnings.push(format!("cut to the model's length: {listed}{more}"));
    }
    warnings
}

// === impl Bound ===

impl Bound {
    /// 0 is what some clients send for none.
    pub(super) fn new(name: &'static str, tokens: Option<u64>) -> Self {
        let tokens = tokens.unwrap_or(0);
        Self { name, tokens }
    }

    /// That it was not applied. What the model's own length keeps anyway needs no word.
    pub(super) fn warning(&self, row_tokens_max: usize) -> Option<String> {
        let Self { name, tokens } = self;
        (1..row_tokens_max as u64).contains(tokens).then(|| {
            format!(
                "{name} = {tokens} was not applied: query and document together may have the \
                 model's {row_tokens_max} tokens"
            )
        })
    }
}
