//! vLLM's `/score`: a text with many others, or pairs of them, scored in the order in which they came.

use super::Edge;
use super::answer::{Usage, created, scored, warn};
use super::body::held;
use super::document::{self, Document, RankFields};
use super::json;
use super::one_or_many::{DocumentOrDocuments, OneOrMany};
use super::overflow::{Overflow, bound, cuts, side};
use super::post::{self, Post};
use super::problem::{Problem, ScoringErrors};
use super::scoring::{ScoringHeaders, filled, joined};
use super::wire::Refusal;
use super::words::Words;
use crate::intake::Bounds;
use crate::runtime::aside;
use crate::score::{Form, Priority, ScoreError, ScoreResponse, Texts};
use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// The paths at which vLLM's clients look for scores.
pub(super) const PATHS: [&str; 2] = ["/score", "/v1/score"];

/// Both names of a pair of lists.
macro_rules! names {
    ($first:literal, $second:literal) => {
        Names {
            first: $first,
            second: $second,
            of_first: Words(&[("documents", $first)]),
            words: Words(&[
                ("documents", $second),
                ("queries", $first),
                ("query", $first),
                ("row_tokens_max", "truncate_prompt_tokens"),
            ]),
        }
    };
}

/// Two texts, a text and a list, or two lists of equal length, under one of four pairs of names: `queries` and
/// `documents`, `queries` and `items`, `text_1` and `text_2`, `data_1` and `data_2`.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ScoreRequest, example = json!({
    "model": "default",
    "queries": "What is the capital of France?",
    "documents": ["Paris is the capital of France.", "Bread is made of flour."]
}))]
pub(super) struct Body {
    /// A name from `/models`; absent for the first.
    model: Option<String>,
    /// What is compared; none of them empty.
    #[schema(value_type = Option<DocumentOrDocuments>)]
    queries: Option<OneOrMany<Document>>,
    /// With what it is compared.
    #[schema(value_type = Option<DocumentOrDocuments>)]
    documents: Option<OneOrMany<Document>>,
    /// As `documents`.
    #[schema(value_type = Option<DocumentOrDocuments>)]
    items: Option<OneOrMany<Document>>,
    /// As `queries`.
    #[schema(value_type = Option<DocumentOrDocuments>)]
    text_1: Option<OneOrMany<Document>>,
    /// As `documents`.
    #[schema(value_type = Option<DocumentOrDocuments>)]
    text_2: Option<OneOrMany<Document>>,
    /// As `queries`.
    #[schema(value_type = Option<DocumentOrDocuments>)]
    data_1: Option<OneOrMany<Document>>,
    /// As `documents`.
    #[schema(value_type = Option<DocumentOrDocuments>)]
    data_2: Option<OneOrMany<Document>>,
    /// False for the model's logit instead of its activation's value.
    #[serde(default, deserialize_with = "json::flag")]
    use_activation: Option<bool>,
    /// An older name of `use_activation`, which counts more.
    #[serde(default, deserialize_with = "json::flag")]
    activation: Option<bool>,
    /// An older name of `use_activation`, which counts more.
    #[serde(default, deserialize_with = "json::flag")]
    softmax: Option<bool>,
    /// A pair of texts has no more tokens, special ones included; -1, 0 or absent for the model's length.
    #[serde(default, deserialize_with = "json::count_or_all")]
    #[schema(value_type = Option<i64>, minimum = -1)]
    truncate_prompt_tokens: Option<u64>,
    /// Where texts that are too long are cut: `right` (or absent) or `left`.
    truncation_side: Option<String>,
    /// How urgent the request is: below 0 high, above 0 low; or `high`, `normal` or `low`.
    #[serde(default, deserialize_with = "json::scalar")]
    #[schema(value_type = Option<String>, example = "0")]
    priority: Option<String>,
}

/// How long the lists are, by their names.
#[derive(Deserialize)]
struct Lengths {
    queries: Option<json::Length>,
    documents: Option<json::Length>,
    items: Option<json::Length>,
    text_1: Option<json::Length>,
    text_2: Option<json::Length>,
    data_1: Option<json::Length>,
    data_2: Option<json::Length>,
}

/// What two lists are called, and the core's words in their names.
struct Names {
    first: &'static str,
    second: &'static str,
    /// While the first list is read, where the core speaks of documents.
    of_first: Words,
    words: Words,
}

/// Each pair of names, in the order of [`Body::lists`] and [`Lengths::of`].
static NAMES: [Names; 4] = [
    names!("queries", "documents"),
    names!("queries", "items"),
    names!("text_1", "text_2"),
    names!("data_1", "data_2"),
];

/// Scores in the order of the request.
#[derive(Serialize, ToSchema)]
#[schema(as = ScoreAnswer, example = json!({
    "id": "score-5f0c7f3e-9d2f-4a7e-8f43-0f7d8b5f6c11",
    "object": "list",
    "created": 1_764_518_400,
    "model": "default",
    "data": [{"index": 0, "object": "score", "score": 0.9987}],
    "usage": {"prompt_tokens": 31, "total_tokens": 31}
}))]
pub(super) struct Answer {
    id: String,
    #[schema(example = "list")]
    object: &'static str,
    /// Unix time in seconds.
    created: u64,
    /// The model's name, as configured.
    model: String,
    data: Vec<Score>,
    usage: Usage,
}

/// One pair's score.
#[derive(Serialize, ToSchema)]
#[schema(as = Score)]
pub(super) struct Score {
    /// The pair's place in the request.
    index: usize,
    #[schema(example = "score")]
    object: &'static str,
    score: f32,
}

/// Bytes of a score, about.
const SCORE_BYTES: usize = 48;

/// A body that makes sense.
struct Asked {
    model: Option<String>,
    rows: Vec<Texts>,
    form: Form,
    priority: Option<Priority>,
    raw: bool,
    names: &'static Names,
}

/// Score pairs of texts, as vLLM does
///
/// One text with each of many, or pairs of two lists; the scores stand in the request's order.
/// `x-crossgate-warnings` tells which texts were cut.
#[utoipa::path(post, path = "/score", tag = "score", request_body = Body, params(ScoringHeaders), responses(
    (status = 200, description = "A score for each pair", body = Answer),
    ScoringErrors,
))]
pub(super) async fn score(State(edge): State<Arc<Edge>>, post: Post) -> Result<Response, Problem> {
    let response = answer(&edge, &post).await?;
    Ok(held(response, post.weight()))
}

async fn answer(edge: &Edge, post: &Post) -> Result<Response, Refusal> {
    let asked = aside(post.body.len(), || read(&post.body, edge.door.bounds()))?;
    let names = asked.names;
    let mut question = post.question(asked.model, asked.rows, asked.form.clone());
    question.priority = asked.priority.unwrap_or(question.priority);
    let response = edge.ask(question, Overflow::Truncate, &names.words).await?;
    let activation = response.activation_unless(asked.raw);
    let scores = response.scores(asked.raw);
    Ok(aside(scores.len() * SCORE_BYTES, || {
        let answer = Answer::new(post, &response, scores);
        let mut answer = scored(&post.call, &response, activation, &answer);
        warn(&mut answer, &cuts(&response, names.second, &asked.form));
        answer
    }))
}

fn read(body: &[u8], bounds: &Bounds) -> Result<Asked, Refusal> {
    let lengths: Lengths = json::parse(body)?;
    let (pair, names) = lengths.named()?;
    lengths.check(pair, bounds)?;
    let body: Body = json::parse(body)?;
    let priority = post::priority("priority", body.priority.as_deref().unwrap_or_default())?;
    let form = Form {
        row_tokens_max: bound(body.truncate_prompt_tokens),
        side: side("truncation_side", body.truncation_side.as_deref())?,
        ..Form::default()
    };
    let (model, raw) = (
        body.model.clone(),
        body.use_activation.or(body.activation).or(body.softmax) == Some(false),
    );
    let (first, second) = body.lists(pair);
    let first = texts(first, names.first, &names.of_first, bounds)?;
    let second = texts(second, names.second, &names.words, bounds)?;
    Ok(Asked {
        model,
        rows: rows(first, second, names)?,
        form,
        priority,
        raw,
        names,
    })
}

fn texts(
    list: Option<OneOrMany<Document>>,
    name: &'static str,
    words: &Words,
    bounds: &Bounds,
) -> Result<Vec<String>, Refusal> {
    let list = json::required(list, name, "a text or a list of them")?;
    let texts = document::texts(filled(name, list.items)?, &RankFields::default(), bounds);
    texts.map_err(|error| words.say(error).into())
}

/// One with each, or each with its own.
fn rows(first: Vec<String>, second: Vec<String>, names: &Names) -> Result<Vec<Texts>, ScoreError> {
    let (n, m) = (first.len(), second.len());
    joined(first, second).ok_or_else(|| {
        let Names { first, second, .. } = names;
        let why = format!("has {m} texts beside {n} {first}; send as many, or one of {first}");
        ScoreError::invalid(*second, why)
    })
}

// === impl Body ===

impl Body {
    /// The lists of a pair of names.
    fn lists(self, pair: usize) -> (Option<OneOrMany<Document>>, Option<OneOrMany<Document>>) {
        match pair {
            0 => (self.queries, self.documents),
            1 => (self.queries, self.items),
            2 => (self.text_1, self.text_2),
            _ => (self.data_1, self.data_2),
        }
    }
}

// === impl Lengths ===

impl Lengths {
    fn of(&self, pair: usize) -> (Option<json::Length>, Option<json::Length>) {
        match pair {
            0 => (self.queries, self.documents),
            1 => (self.queries, self.items),
            2 => (self.text_1, self.text_2),
            _ => (self.data_1, self.data_2),
        }
    }

    /// The first two names that are both there.
    fn named(&self) -> Result<(usize, &'static Names), ScoreError> {
        let is_there = |pair: &usize| matches!(self.of(*pair), (Some(_), Some(_)));
        let pair = (0..NAMES.len()).find(is_there).ok_or_else(|| {
            let why = "is missing, or its other half; send queries and documents, queries and items, text_1 \
                       and text_2, or data_1 and data_2";
            ScoreError::invalid("queries", why)
        })?;
        Ok((pair, &NAMES[pair]))
    }

    /// Counted before they are unpacked.
    fn check(&self, pair: usize, bounds: &Bounds) -> Result<(), ScoreError> {
        let (names, (first, second)) = (&NAMES[pair], self.of(pair));
        let count = |length: Option<json::Length>, words: &Words| {
            let fits = bounds.check_count(length.map_or(0, |length| length.0));
            fits.map_err(|error| words.say(error))
        };
        count(first, &names.of_first)?;
        count(second, &names.words)
    }
}

// === impl Answer ===

impl Answer {
    fn new(post: &Post, response: &ScoreResponse, scores: Vec<f32>) -> Self {
        let scores = scores.into_iter().enumerate();
        Self {
            id: format!("score-{}", post.call.id()),
            object: "list",
            created: created(),
            model: response.model.to_string(),
            data: scores
                .map(|(index, score)| Score {
                    index,
                    object: "score",
                    score,
                })
                .collect(),
            usage: Usage::of(response),
        }
    }
}
