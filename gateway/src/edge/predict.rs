//! `/predict`: texts by class. The body says which dialect it is: `texts` for our own, `inputs` for TEI's.

use super::Edge;
use super::answer::{scored, warn};
use super::body::held;
use super::classes;
use super::json;
use super::one_or_many::{OneOrMany, TextOrTexts};
use super::overflow::{Overflow, bound, cuts};
use super::post::Post;
use super::problem::{Problem, ScoringErrors};
use super::scoring::{ScoringHeaders, filled, joined};
use super::tei::predict as tei;
use super::wire::Refusal;
use super::words::Words;
use crate::runtime::aside;
use crate::score::{Activation, Form, ScoreError, ScoreResponse, Texts, ranking};
use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// By which key a dialect is known, and how long its list is. Absent and null are the same.
#[derive(Deserialize)]
struct Keys {
    texts: Option<json::Length>,
    text_pairs: Option<json::Length>,
    inputs: Option<json::Length>,
}

/// Texts to classify, each alone or with another one. `x-crossgate-warnings` tells which were cut.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = PredictRequest, example = json!({
    "texts": ["Paris is the capital of France.", "Bread is made of flour."],
    "max_length": 256
}))]
pub(super) struct Body {
    /// A text, or a list of at least one.
    #[schema(value_type = TextOrTexts)]
    texts: Option<OneOrMany<String>>,
    /// What the model reads beside them: as many, or a list beside one text; absent for nothing.
    #[schema(value_type = Option<TextOrTexts>)]
    text_pairs: Option<OneOrMany<String>>,
    /// A name from `/models`; absent for the first.
    model_name: Option<String>,
    /// As `model_name`, which counts more.
    model: Option<String>,
    /// A text, or a text and its pair, has no more tokens, special ones included; 0 or absent for the model's
    /// length.
    #[serde(default, deserialize_with = "json::count")]
    max_length: Option<u64>,
    /// The model's logits instead of probabilities.
    #[serde(default, deserialize_with = "json::flag")]
    raw_scores: Option<bool>,
}

/// A body of either dialect.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
#[schema(as = AnyPredictRequest)]
#[expect(dead_code, reason = "read by the derive only")]
pub(super) enum AnyBody {
    #[schema(title = "ours")]
    Ours(Body),
    #[schema(title = "TEI")]
    Tei(tei::Body),
}

/// An object for `texts`, an array for `inputs`.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = AnyPredictAnswer)]
#[expect(dead_code, reason = "read by the derive only")]
pub(super) enum AnyAnswer {
    #[schema(title = "ours")]
    Ours(Answer),
    #[schema(title = "TEI")]
    Tei(tei::Answer),
}

/// What the model makes of the texts.
#[derive(Serialize, ToSchema)]
#[schema(as = PredictAnswer, example = json!({
    "request_id": "5f0c7f3e-9d2f-4a7e-8f43-0f7d8b5f6c11",
    "results": {
        "prediction": 0, "label": "LABEL_0", "probabilities": [0.8, 0.2],
        "text": "Paris is the capital of France."
    },
    "processing_time": 0.045,
    "model_used": "default"
}))]
pub(super) struct Answer {
    request_id: String,
    results: Results,
    /// Seconds.
    processing_time: f64,
    /// The model's name, as configured.
    model_used: String,
}

/// A list for a list, in its order; an object for a text.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = PredictResults)]
pub(super) enum Results {
    One(Found),
    Many(Vec<Found>),
}

/// One text's classes.
#[derive(Serialize, ToSchema)]
#[schema(as = PredictResult)]
pub(super) struct Found {
    /// The number of the most probable label; of a model with one label 1 from a probability of a half on, else 0.
    prediction: usize,
    /// The most probable label's name.
    label: String,
    /// Of each label, in the model's order.
    probabilities: Vec<f32>,
    /// Absent where one text stands beside a list of pairs: an answer is not many times as large as its request.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text_pair: Option<String>,
}

/// What the core calls otherwise, where texts stand alone.
const ALONE: Words = Words(&[("documents", "texts"), ("row_tokens_max", "max_length")]);
/// The same where they have pairs.
const PAIRED: Words = Words(&[
    ("documents", "text_pairs"),
    ("queries", "texts"),
    ("query", "texts"),
    ("row_tokens_max", "max_length"),
]);

/// Bytes of a result without its texts, about.
const RESULT_BYTES: usize = 96;

/// A body that makes sense.
struct Asked {
    model: Option<String>,
    rows: Vec<Texts>,
    form: Form,
    raw: bool,
    /// Whether the answer is a list.
    is_list: bool,
    words: &'static Words,
}

/// Classify texts
///
/// A body with `texts` is answered with each label's probability, one with `inputs` as TEI does.
#[utoipa::path(post, path = "/predict", tag = "classify", request_body = AnyBody, params(ScoringHeaders),
    responses(
        (status = 200, description = "The classes of each text", body = AnyAnswer),
        ScoringErrors,
    )
)]
pub(super) async fn predict(
    State(edge): State<Arc<Edge>>,
    post: Post,
) -> Result<Response, Problem> {
    let response = by_dialect(&edge, &post).await?;
    Ok(held(response, post.weight()))
}

async fn by_dialect(edge: &Edge, post: &Post) -> Result<Response, Problem> {
    let keys: Keys = aside(post.body.len(), || json::parse(&post.body))?;
    let bounds = edge.door.bounds();
    if let Some(inputs) = keys.inputs.filter(|_| keys.texts.is_none()) {
        let fits = bounds.check_count(inputs.0);
        let fits = fits.map_err(|error| tei::WORDS.say(error));
        fits.map_err(Problem::tei)?;
        return tei::predict(edge, post).await.map_err(Problem::tei);
    }
    if keys.texts.is_none() {
        let why =
            "is missing; send `texts` (a text or a list of them), or `inputs` as TEI's clients do";
        return Err(ScoreError::invalid("texts", why).into());
    }
    for (length, words) in [(keys.texts, &ALONE), (keys.text_pairs, &PAIRED)] {
        let fits = bounds.check_count(length.map_or(0, |length| length.0));
        fits.map_err(|error| words.say(error))?;
    }
    Ok(ours(edge, post).await?)
}

/// Answers a body with `texts`.
async fn ours(edge: &Edge, post: &Post) -> Result<Response, Refusal> {
    let asked = aside(post.body.len(), || read(&post.body))?;
    let Asked {
        rows,
        form,
        is_list,
        ..
    } = asked;
    let question = post.question(asked.model, rows.clone(), form.clone());
    let response = edge.ask(question, Overflow::Truncate, asked.words).await?;
    let activation = classes::activation(&response, asked.raw);
    let labels = classes::labels(edge, &response);
    let bytes = rows.iter().map(|row| row.bytes() + RESULT_BYTES).sum();
    Ok(aside(bytes, || {
        let mut found = found(&response, &rows, activation, &labels);
        let answer = Answer {
            request_id: post.call.id().to_string(),
            results: match found.pop() {
                Some(only) if !is_list => Results::One(only),
                last => {
                    found.extend(last);
                    Results::Many(found)
                }
            },
            processing_time: post.call.elapsed().as_secs_f64(),
            model_used: response.model.to_string(),
        };
        let mut answer = scored(&post.call, &response, activation, &answer);
        warn(&mut answer, &cuts(&response, "texts", &form));
        answer
    }))
}

fn read(body: &[u8]) -> Result<Asked, Refusal> {
    let body: Body = json::parse(body)?;
    let texts = json::required(body.texts, "texts", "a text or a list of them")?;
    let mut is_list = texts.is_list;
    let texts = filled("texts", texts.items)?;
    let (rows, words) = match body.text_pairs {
        None => (Texts::alone(texts), &ALONE),
        Some(pairs) => {
            is_list |= pairs.is_list;
            (paired(texts, filled("text_pairs", pairs.items)?)?, &PAIRED)
        }
    };
    Ok(Asked {
        model: body.model_name.or(body.model),
        rows,
        form: Form {
            row_tokens_max: bound(body.max_length),
            ..Form::default()
        },
        raw: body.raw_scores == Some(true),
        is_list,
        words,
    })
}

/// Each with its own, or one with each.
fn paired(texts: Vec<String>, pairs: Vec<String>) -> Result<Vec<Texts>, ScoreError> {
    let (n, m) = (texts.len(), pairs.len());
    joined(texts, pairs).ok_or_else(|| {
        let why = format!("has {m} texts beside {n} texts; send as many, or one text");
        ScoreError::invalid("text_pairs", why)
    })
}

fn found(
    response: &ScoreResponse,
    rows: &[Texts],
    activation: Activation,
    labels: &[String],
) -> Vec<Found> {
    let logits = response.logits.chunks_exact(response.n_labels);
    let is_shared = matches!(rows, [first, second, ..] if first.shares_query(second));
    let found = |(logits, row): (&[f32], &Texts)| {
        let best = ranking(logits)[0];
        let (text, text_pair) = match &row.query {
            None => (Some(&row.document), None),
            Some(text) => (
                Some(text).filter(|_| !is_shared),
                Some(row.document.to_string()),
            ),
        };
        Found {
            prediction: match logits {
                // A logit of 0 is a probability of a half.
                [only] => usize::from(*only >= 0.0),
                _ => best,
            },
            label: labels[best].clone(),
            probabilities: activation.apply(logits),
            text: text.map(ToString::to_string),
            text_pair,
        }
    };
    logits.zip(rows).map(found).collect()
}
