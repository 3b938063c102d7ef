//! TEI's `/predict`: texts or pairs in, their labels by falling score out.

use super::super::Edge;
use super::super::answer::{scored, warn};
use super::super::classes::{self, PREDICTION_BYTES, Prediction};
use super::super::json;
use super::super::overflow::{Overflow, cuts, side};
use super::super::post::Post;
use super::super::scoring::{filled, n_results};
use super::super::wire::Refusal;
use super::super::words::Words;
use super::inputs::{EXPECTED, Inputs};
use super::{characters, describe_compute};
use crate::runtime::aside;
use crate::score::{Activation, Form, ScoreError, Texts};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Texts to classify. `x-crossgate-warnings` tells which were cut.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = TeiPredictRequest, example = json!({
    "inputs": [["Paris is the capital of France."], ["What is bread?", "Bread is made of flour."]]
}))]
pub(in super::super) struct Body {
    /// A name from `/models`; absent for the first.
    model: Option<String>,
    #[schema(value_type = Inputs)]
    inputs: Option<Inputs>,
    /// The model's logits instead of probabilities.
    #[serde(default, deserialize_with = "json::flag")]
    raw_scores: Option<bool>,
    /// Whether texts that are too long are cut (absent or true) or refused (false).
    #[serde(default, deserialize_with = "json::flag")]
    truncate: Option<bool>,
    /// Where they are cut: `right` (or absent) or `left`, in any case.
    truncation_direction: Option<String>,
    /// What the hub's clients send beside `inputs`; they read a list of lists for one text, too.
    #[schema(value_type = Option<Parameters>)]
    parameters: Option<json::Object<Parameters>>,
}

/// How the hub's clients want to be answered.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = TeiPredictParameters)]
pub(in super::super) struct Parameters {
    /// `sigmoid`, `softmax` or `none`, in place of the model's own.
    function_to_apply: Option<String>,
    /// How many labels of each text, at least 1; absent for all.
    #[serde(default, deserialize_with = "json::count")]
    top_k: Option<u64>,
}

/// A batch's labels text by text, or those of one text.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = TeiPredictAnswer)]
pub(in super::super) enum Answer {
    One(Vec<Prediction>),
    Batch(Vec<Vec<Prediction>>),
}

/// What the core calls otherwise.
pub(in super::super) const WORDS: Words = Words(&[
    ("documents", "inputs"),
    ("queries", "inputs"),
    ("query", "inputs"),
]);

/// A body that makes sense.
struct Asked {
    model: Option<String>,
    rows: Vec<Texts>,
    form: Form,
    overflow: Overflow,
    raw: bool,
    is_batch: bool,
    /// In place of the model's own.
    activation: Option<Activation>,
    labels_max: usize,
}

/// Answers a body with `inputs`.
pub(in super::super) async fn predict(edge: &Edge, post: &Post) -> Result<Response, Refusal> {
    let asked = aside(post.body.len(), || read(&post.body))?;
    let n_characters = |row: &Texts| characters(row.query()) + characters(&row.document);
    let n_characters = asked.rows.iter().map(n_characters).sum();
    let question = post.question(asked.model, asked.rows, asked.form.clone());
    let response = edge.ask(question, asked.overflow, &WORDS).await?;
    let own = classes::activation(&response, asked.raw);
    let activation = asked.activation.unwrap_or(own);
    let labels = classes::labels(edge, &response);
    let mut answer = aside(response.logits.len() * PREDICTION_BYTES, || {
        let mut rows = classes::predictions(&response, activation, &labels);
        rows.iter_mut()
            .for_each(|row| row.truncate(asked.labels_max));
        let answer = match rows.pop() {
            Some(only) if !asked.is_batch => Answer::One(only),
            last => {
                rows.extend(last);
                Answer::Batch(rows)
            }
        };
        scored(&post.call, &response, activation, &answer)
    });
    describe_compute(&mut answer, edge, post, &response, n_characters);
    warn(&mut answer, &cuts(&response, "inputs", &asked.form));
    Ok(answer)
}

fn read(body: &[u8]) -> Result<Asked, Refusal> {
    let body: Body = json::parse(body)?;
    let inputs = json::required(body.inputs, "inputs", EXPECTED)?;
    let direction = body.truncation_direction.as_deref();
    let is_batch = inputs.is_batch || body.parameters.is_some();
    let (function, top_k) = match body.parameters {
        None => (None, None),
        Some(json::Object(parameters)) => (parameters.function_to_apply, parameters.top_k),
    };
    let rows = filled("inputs", inputs.inputs)?.into_iter();
    Ok(Asked {
        model: body.model,
        rows: rows.map(Texts::from).collect(),
        form: Form {
            side: side("truncation_direction", direction)?,
            ..Form::default()
        },
        overflow: match body.truncate {
            Some(false) => Overflow::TooLarge,
            _ => Overflow::Truncate,
        },
        raw: body.raw_scores == Some(true),
        is_batch,
        activation: function.as_deref().map(activation_of).transpose()?,
        labels_max: n_results("parameters.top_k", top_k, usize::MAX)?,
    })
}

fn activation_of(function: &str) -> Result<Activation, ScoreError> {
    match function {
        "none" => Ok(Activation::Identity),
        "sigmoid" => Ok(Activation::Sigmoid),
        "softmax" => Ok(Activation::Softmax),
        other => {
            let why = format!(r#"there is no {other:?}; use "sigmoid", "softmax" or "none""#);
            Err(ScoreError::invalid("parameters.function_to_apply", why))
        }
    }
}
