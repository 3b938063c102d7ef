//! `/classify`: texts by label, in infinity's shape or in vLLM's.

use super::Edge;
use super::answer::{Usage, created, scored, warn};
use super::body::held;
use super::classes::{self, PREDICTION_BYTES, Prediction};
use super::json;
use super::one_or_many::{OneOrMany, TextOrTexts};
use super::overflow::{Overflow, bound, cuts, side};
use super::post::{self, Post};
use super::problem::{Problem, ScoringErrors};
use super::scoring::{ScoringHeaders, filled};
use super::wire::Refusal;
use super::words::Words;
use crate::intake::Bounds;
use crate::runtime::aside;
use crate::score::{Activation, Form, Priority, ScoreResponse, Texts};
use axum::extract::State;
use axum::response::Response;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// The paths at which clients look for classes.
pub(super) const PATHS: [&str; 2] = ["/classify", "/v1/classify"];

/// Texts to classify. A list is answered as infinity does; a bare text, or a body with any of `use_activation`,
/// `truncate_prompt_tokens`, `truncation_side`, `priority` and `user`, as vLLM does.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ClassifyRequest, example = json!({
    "model": "default",
    "input": ["Paris is the capital of France.", "Bread is made of flour."]
}))]
pub(super) struct Body {
    /// A name from `/models`; absent for the first.
    model: Option<String>,
    /// At least one.
    #[schema(value_type = TextOrTexts)]
    input: Option<OneOrMany<String>>,
    /// The model's logits instead of probabilities.
    #[serde(default, deserialize_with = "json::flag")]
    raw_scores: Option<bool>,
    /// vLLM's word for it: false is `raw_scores` true.
    #[serde(default, deserialize_with = "json::flag")]
    use_activation: Option<bool>,
    /// An older name of `use_activation`, which counts more.
    #[serde(default, deserialize_with = "json::flag")]
    activation: Option<bool>,
    /// An older name of `use_activation`, which counts more.
    #[serde(default, deserialize_with = "json::flag")]
    softmax: Option<bool>,
    /// A text has no more tokens, special ones included; -1, 0 or absent for the model's length.
    #[serde(default, deserialize_with = "json::count_or_all")]
    #[schema(value_type = Option<i64>, minimum = -1)]
    truncate_prompt_tokens: Option<u64>,
    /// Where texts that are too long are cut: `right` (or absent) or `left`.
    truncation_side: Option<String>,
    /// How urgent the request is: below 0 high, above 0 low; or `high`, `normal` or `low`.
    #[serde(default, deserialize_with = "json::scalar")]
    #[schema(value_type = Option<String>, example = "0")]
    priority: Option<String>,
    /// Not looked at; vLLM's clients may send it.
    #[schema(value_type = Option<String>)]
    user: Option<IgnoredAny>,
}

/// How many there are. Counted before they are unpacked.
#[derive(Deserialize)]
struct Lengths {
    input: Option<json::Length>,
}

/// infinity's answer, or vLLM's.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = ClassifyAnswer)]
pub(super) enum Answer {
    #[schema(title = "infinity")]
    Infinity(Classes<Vec<Prediction>>),
    #[schema(title = "vLLM")]
    Vllm(Classes<Class>),
}

/// What was found, text by text.
#[derive(Serialize, ToSchema)]
pub(super) struct Classes<T> {
    #[schema(example = "classify-5f0c7f3e-9d2f-4a7e-8f43-0f7d8b5f6c11")]
    id: String,
    /// `classify` as infinity says, `list` as vLLM does.
    #[schema(example = "classify")]
    object: &'static str,
    /// Unix time in seconds.
    created: u64,
    /// The model's name, as configured.
    model: String,
    /// In the order of the request. infinity's lists hold each label, by falling score.
    data: Vec<T>,
    usage: Usage,
}

/// One text's classes, as vLLM shows them.
#[derive(Serialize, ToSchema)]
#[schema(as = Class)]
pub(super) struct Class {
    /// The text's place in the request.
    index: usize,
    /// The most probable label.
    label: String,
    /// Of each label, in the model's order.
    probs: Vec<f32>,
    num_classes: usize,
}

/// What the core calls otherwise.
const WORDS: Words = Words(&[
    ("documents", "input"),
    ("row_tokens_max", "truncate_prompt_tokens"),
]);

/// A body that makes sense.
struct Asked {
    model: Option<String>,
    rows: Vec<Texts>,
    form: Form,
    priority: Option<Priority>,
    raw: bool,
    is_vllm: bool,
}

/// Classify texts, as infinity and vLLM do
///
/// A list is answered as infinity does; a bare text, or a body with a field that only vLLM has, as vLLM does.
/// `x-crossgate-warnings` tells which texts were cut.
#[utoipa::path(post, path = "/classify", tag = "classify", request_body = Body, params(ScoringHeaders),
    responses(
        (status = 200, description = "The labels of each text", body = Answer),
        ScoringErrors,
    )
)]
pub(super) async fn classify(
    State(edge): State<Arc<Edge>>,
    post: Post,
) -> Result<Response, Problem> {
    let response = answer(&edge, &post).await?;
    Ok(held(response, post.weight()))
}

async fn answer(edge: &Edge, post: &Post) -> Result<Response, Refusal> {
    let asked = aside(post.body.len(), || read(&post.body, edge.door.bounds()))?;
    let mut question = post.question(asked.model, asked.rows, asked.form.clone());
    question.priority = asked.priority.unwrap_or(question.priority);
    let response = edge.ask(question, Overflow::Truncate, &WORDS).await?;
    let activation = classes::activation(&response, asked.raw);
    let labels = classes::labels(edge, &response);
    Ok(aside(response.logits.len() * PREDICTION_BYTES, || {
        let answer = if asked.is_vllm {
            let data = vllm(&response, activation, &labels);
            Answer::Vllm(Classes::new(post, &response, "list", data))
        } else {
            let data = classes::predictions(&response, activation, &labels);
            Answer::Infinity(Classes::new(post, &response, "classify", data))
        };
        let mut answer = scored(&post.call, &response, activation, &answer);
        warn(&mut answer, &cuts(&response, "input", &asked.form));
        answer
    }))
}

fn read(body: &[u8], bounds: &Bounds) -> Result<Asked, Refusal> {
    let lengths: Lengths = json::parse(body)?;
    let n_texts = lengths.input.map_or(0, |length| length.0);
    let fits = bounds.check_count(n_texts);
    fits.map_err(|error| WORDS.say(error))?;
    let body: Body = json::parse(body)?;
    let is_vllm = body.has_vllm_field();
    let input = json::required(body.input, "input", "a text or a list of them")?;
    let priority = post::priority("priority", body.priority.as_deref().unwrap_or_default())?;
    let form = Form {
        row_tokens_max: bound(body.truncate_prompt_tokens),
        side: side("truncation_side", body.truncation_side.as_deref())?,
        ..Form::default()
    };
    Ok(Asked {
        model: body.model,
        is_vllm: is_vllm || !input.is_list,
        rows: Texts::alone(filled("input", input.items)?),
        form,
        priority,
        raw: body
            .raw_scores
            .unwrap_or(body.use_activation.or(body.activation).or(body.softmax) == Some(false)),
    })
}

fn vllm(response: &ScoreResponse, activation: Activation, labels: &[String]) -> Vec<Class> {
    let rows = response.logits.chunks_exact(response.n_labels).enumerate();
    let class = |(index, logits): (usize, &[f32])| {
        let best = crate::score::ranking(logits)[0];
        Class {
            index,
            label: labels[best].clone(),
            probs: activation.apply(logits),
            num_classes: labels.len(),
        }
    };
    rows.map(class).collect()
}

// === impl Body ===

impl Body {
    fn has_vllm_field(&self) -> bool {
        self.use_activation.is_some()
            || self.activation.is_some()
            || self.softmax.is_some()
            || self.truncate_prompt_tokens.is_some()
            || self.truncation_side.is_some()
            || self.priority.is_some()
            || self.user.is_some()
    }
}

// === impl Classes ===

impl<T> Classes<T> {
    fn new(post: &Post, response: &ScoreResponse, object: &'static str, data: Vec<T>) -> Self {
        Self {
            id: format!("classify-{}", post.call.id()),
            object,
            created: created(),
            model: response.model.to_string(),
            data,
            usage: Usage::of(response),
        }
    }
}
