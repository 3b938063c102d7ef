//! What requests of `crossgate.v1` have in common: how urgent they are, what form their texts take, and how
//! it is told what became of them.

use super::super::answer::{ACTIVATION, WARNINGS};
use super::super::overflow::{Overflow, bound, instruction};
use super::super::wire::Refusal;
use super::super::words::Words;
use super::method::Asked;
use super::proto::crossgate as proto;
use crate::score::{Activation, Form, Priority, ScoreError, ScoreResponse, Side, Texts};
use tonic::metadata::{Ascii, MetadataValue};

/// What the core calls otherwise.
pub(super) const OF_QUERY: Words = Words(&[
    ("row_tokens_max", "form.row_tokens_max"),
    ("instruction", "form.instruction"),
]);
/// The same where each row has a query of its own.
pub(super) const OF_PAIRS: Words = Words(&[
    ("row_tokens_max", "form.row_tokens_max"),
    ("instruction", "form.instruction"),
    ("documents[]", "pairs[].document"),
    ("documents", "pairs"),
    ("queries[]", "pairs[].query"),
    // All pairs have the same one.
    ("query", "pairs[0].query"),
]);
/// The same where texts stand alone.
pub(super) const OF_TEXTS: Words = Words(&[
    ("row_tokens_max", "form.row_tokens_max"),
    ("instruction", "form.instruction"),
    ("documents", "texts"),
]);

/// What a request says besides its texts.
pub(super) struct Options {
    pub(super) form: Form,
    pub(super) overflow: Overflow,
    pub(super) priority: Priority,
}

/// A request's rows, and what to call them.
pub(super) struct Rows {
    pub(super) texts: Vec<Texts>,
    pub(super) words: &'static Words,
    pub(super) name: &'static str,
}

// === impl Options ===

impl Options {
    pub(super) fn read(form: Option<proto::Form>, priority: i32) -> Result<Self, ScoreError> {
        let form = form.unwrap_or_default();
        let overflow = overflow_of(form.overflow)?;
        let bound = |tokens: u32| bound(Some(u64::from(tokens)));
        Ok(Self {
            form: Form {
                instruction: instruction(Some(form.instruction)),
                query_tokens_max: bound(form.query_tokens_max),
                document_tokens_max: bound(form.document_tokens_max),
                row_tokens_max: bound(form.row_tokens_max),
                side: side_of(form.truncation_side)?,
                windows: overflow == Overflow::ChunkMax,
            },
            overflow,
            priority: priority_of(priority)?,
        })
    }
}

// === impl Rows ===

impl Rows {
    /// A query's documents, or pairs.
    pub(super) fn scored(
        query: String,
        documents: Vec<String>,
        pairs: Vec<proto::Pair>,
    ) -> Result<Self, Refusal> {
        match (documents.is_empty(), pairs.is_empty()) {
            (false, true) => Ok(Self {
                texts: Texts::of_query(query, documents),
                words: &OF_QUERY,
                name: "documents",
            }),
            (true, false) if query.is_empty() => Ok(Self::pairs(pairs)),
            (true, true) => Err(Refusal::Empty {
                param: "documents",
                why: "is empty; send at least one document",
            }),
            _ => Err(ScoreError::invalid(
                "pairs",
                "stand beside a query or documents; send a query with documents, or pairs alone",
            )
            .into()),
        }
    }

    /// Texts alone, or pairs.
    pub(super) fn predicted(texts: Vec<String>, pairs: Vec<proto::Pair>) -> Result<Self, Refusal> {
        match (texts.is_empty(), pairs.is_empty()) {
            (false, true) => Ok(Self {
                texts: Texts::alone(texts),
                words: &OF_TEXTS,
                name: "texts",
            }),
            (true, false) => Ok(Self::pairs(pairs)),
            (true, true) => Err(Refusal::Empty {
                param: "texts",
                why: "is empty; send at least one text, or pairs",
            }),
            (false, false) => Err(ScoreError::invalid(
                "pairs",
                "stand beside texts; send one of them in a request",
            )
            .into()),
        }
    }

    fn pairs(pairs: Vec<proto::Pair>) -> Self {
        let pairs = pairs.into_iter().map(|pair| (pair.query, pair.document));
        Self {
            texts: Texts::of_pairs(pairs),
            words: &OF_PAIRS,
            name: "pairs",
        }
    }
}

// === impl Asked ===

impl<D> Asked<D> {
    /// Asks the core.
    pub(super) async fn score(
        &self,
        model: String,
        rows: Rows,
        options: &Options,
    ) -> Result<ScoreResponse, Refusal> {
        let Rows { texts, words, .. } = rows;
        let (form, priority) = (options.form.clone(), options.priority);
        let request = self
            .call
            .question(Some(model), texts, form, self.deadline, priority);
        let response = self.edge.ask(request, options.overflow, words).await?;
        Ok(response)
    }
}

/// By its number in `proto/`.
fn priority_of(number: i32) -> Result<Priority, ScoreError> {
    match proto::Priority::try_from(number) {
        Ok(proto::Priority::Low) => Ok(Priority::Low),
        Ok(proto::Priority::Unspecified | proto::Priority::Normal) => Ok(Priority::Normal),
        Ok(proto::Priority::High) => Ok(Priority::High),
        Err(_) => Err(ScoreError::invalid(
            "priority",
            format!("has no value {number}; send 1 (low), 2 (normal), 3 (high), or leave it out"),
        )),
    }
}

fn side_of(number: i32) -> Result<Option<Side>, ScoreError> {
    match proto::Side::try_from(number) {
        Ok(proto::Side::Unspecified) => Ok(None),
        Ok(proto::Side::Right) => Ok(Some(Side::Right)),
        Ok(proto::Side::Left) => Ok(Some(Side::Left)),
        Err(_) => Err(ScoreError::invalid(
            "form.truncation_side",
            format!("has no value {number}; send 1 (right), 2 (left), or leave it out"),
        )),
    }
}

fn overflow_of(number: i32) -> Result<Overflow, ScoreError> {
    match proto::Overflow::try_from(number) {
        Ok(proto::Overflow::Unspecified | proto::Overflow::Truncate) => Ok(Overflow::Truncate),
        Ok(proto::Overflow::Error) => Ok(Overflow::Error),
        Ok(proto::Overflow::ChunkMax) => Ok(Overflow::ChunkMax),
        Err(_) => Err(ScoreError::invalid(
            "form.overflow",
            format!(
                "has no value {number}; send 1 (truncate), 2 (error), 3 (chunk_max), or leave it out"
            ),
        )),
    }
}

/// Says, as over HTTP, how logits became scores.
pub(super) fn with_activation<T>(activation: Activation, message: T) -> tonic::Response<T> {
    let mut answer = tonic::Response::new(message);
    let name = MetadataValue::from_static(activation.name());
    answer.metadata_mut().insert(ACTIVATION, name);
    answer
}

/// Says what was cut where the message has no place for it.
pub(super) fn warn<T>(answer: &mut tonic::Response<T>, warnings: &[String]) {
    if warnings.is_empty() {
        return;
    }
    // What no header can carry is left out.
    if let Ok(value) = MetadataValue::<Ascii>::try_from(warnings.join("; ")) {
        answer.metadata_mut().insert(WARNINGS, value);
    }
}
