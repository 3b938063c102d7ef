//! Text Embeddings Inference's dialect: `texts` in, a bare array out, and `/info`.

mod inputs;
pub(super) mod predict;

use super::Edge;
use super::answer::{scored, set, warn};
use super::json;
use super::overflow::{Overflow, cuts, side};
use super::post::Post;
use super::problem::Problem;
use super::scoring::{filled, n_results, ranked};
use super::wire::Refusal;
use super::words::Words;
use crate::load::ModelState;
use crate::runtime::aside;
use crate::score::{Activation, Form, ScoreError, ScoreResponse, Texts};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use utoipa::ToSchema;

/// A query and the texts to rank by it. `x-crossgate-warnings` tells which texts were cut.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = TeiRerankRequest, example = json!({
    "query": "What is the capital of France?",
    "texts": ["Paris is the capital of France.", "Bread is made of flour."],
    "return_text": true
}))]
pub(super) struct Body {
    /// A name from `/models`; absent for the first.
    model: Option<String>,
    /// What the texts are compared with; not empty.
    #[schema(value_type = String, min_length = 1)]
    query: Option<String>,
    /// At least one.
    #[schema(value_type = Vec<String>, min_items = 1)]
    texts: Option<Vec<String>>,
    /// How many results to return, at least 1; absent for all.
    #[serde(default, deserialize_with = "json::count")]
    #[schema(minimum = 1)]
    top_n: Option<u64>,
    /// The model's logit instead of a score between 0 and 1.
    #[serde(default, deserialize_with = "json::flag")]
    raw_scores: Option<bool>,
    /// Repeat each text in its result.
    #[serde(default, deserialize_with = "json::flag")]
    return_text: Option<bool>,
    /// Whether texts that are too long are cut (absent or true) or refused (false).
    #[serde(default, deserialize_with = "json::flag")]
    truncate: Option<bool>,
    /// Where they are cut: `right` or `left`, in any case; absent for the side that the model's tokenizer names.
    truncation_direction: Option<String>,
}

/// What the core calls otherwise.
pub(super) const WORDS: Words = Words(&[("documents", "texts")]);

/// Bytes of a result without its text, about.
const RANK_BYTES: usize = 32;

/// A body that makes sense.
struct Asked {
    model: Option<String>,
    rows: Vec<Texts>,
    form: Form,
    overflow: Overflow,
    n_results: usize,
    raw: bool,
    /// The texts, where they are to be repeated.
    repeated: Option<Vec<String>>,
    n_characters: usize,
}

/// One text's result. The array of them stands by falling score.
#[derive(Serialize, ToSchema)]
#[schema(as = TeiRank)]
pub(super) struct Rank {
    /// The text's place in the request.
    index: usize,
    score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

/// The first model and the server's bounds, in the shape that TEI's clients expect.
#[derive(Serialize, ToSchema)]
#[schema(as = TeiInfo)]
pub(super) struct Info {
    model_id: String,
    model_sha: Option<String>,
    model_dtype: String,
    model_type: ModelType,
    max_concurrent_requests: usize,
    max_input_length: usize,
    max_batch_tokens: usize,
    max_batch_requests: Option<usize>,
    max_client_batch_size: usize,
    auto_truncate: bool,
    tokenization_workers: usize,
    version: &'static str,
    sha: Option<String>,
    docker_label: Option<String>,
    /// How logits become scores on routes other than TEI's.
    activation: &'static str,
}

/// Ours have one label (rerankers) or several (classifiers).
#[derive(Serialize, ToSchema)]
#[schema(as = TeiModelType)]
#[serde(rename_all = "lowercase")]
pub(super) enum ModelType {
    Reranker(Labels),
    Classifier(Labels),
}

#[derive(Serialize, ToSchema)]
#[schema(as = TeiLabels)]
pub(super) struct Labels {
    id2label: BTreeMap<String, String>,
    label2id: BTreeMap<String, usize>,
}

/// The first model, in TEI's shape
#[utoipa::path(get, path = "/info", tag = "models", responses(
    (status = 200, description = "What serves", body = Info),
    (status = 503, description = "No model yet", body = super::problem::TeiErrorAnswer),
))]
pub(super) async fn info(State(edge): State<Arc<Edge>>) -> Result<Response, Problem> {
    let models = edge.catalog.models();
    let none = || Problem::tei(ScoreError::no_model());
    let model = models.first().ok_or_else(none)?;
    Ok(super::answer::json(StatusCode::OK, &describe(&edge, model)))
}

/// Answers a body with `texts`.
pub(super) async fn rerank(edge: &Edge, post: &Post) -> Result<Response, Refusal> {
    let Asked {
        model,
        rows,
        form,
        overflow,
        n_results,
        raw,
        repeated,
        n_characters,
    } = aside(post.body.len(), || read(&post.body))?;
    let question = post.question(model, rows, form.clone());
    let response = edge.ask(question, overflow, &WORDS).await?;
    let activation = activation(&response, raw);
    let scores = response.scores_by(activation);
    let ranks = ranked(&scores, n_results, repeated);
    let ranks: Vec<Rank> = ranks
        .map(|(index, score, text)| Rank { index, score, text })
        .collect();
    let texts = ranks.iter().filter_map(|rank| rank.text.as_ref());
    let bytes = ranks.len() * RANK_BYTES + texts.map(String::len).sum::<usize>();
    let mut answer = aside(bytes, || scored(&post.call, &response, activation, &ranks));
    describe_compute(&mut answer, edge, post, &response, n_characters);
    warn(&mut answer, &cuts(&response, "texts", &form));
    Ok(answer)
}

fn read(body: &[u8]) -> Result<Asked, Refusal> {
    let body: Body = json::parse(body)?;
    let query = json::required(body.query, "query", "the text to compare the texts with")?;
    let texts = json::required(body.texts, "texts", "a list of strings")?;
    let texts = filled("texts", texts)?;
    let direction = body.truncation_direction.as_deref();
    let form = Form {
        side: side("truncation_direction", direction)?,
        ..Form::default()
    };
    let n_characters = characters_of(&query, &texts);
    Ok(Asked {
        model: body.model,
        form,
        overflow: match body.truncate {
            Some(false) => Overflow::TooLarge,
            _ => Overflow::Truncate,
        },
        n_results: n_results("top_n", body.top_n, texts.len())?,
        raw: body.raw_scores.unwrap_or(false),
        repeated: body.return_text.unwrap_or(false).then(|| texts.clone()),
        rows: Texts::of_query(query, texts),
        n_characters,
    })
}

/// TEI's own rule, whatever the model declares.
pub(super) fn activation(response: &ScoreResponse, raw: bool) -> Activation {
    match (raw, response.n_labels) {
        (true, _) => Activation::Identity,
        (false, 1) => Activation::Sigmoid,
        (false, _) => Activation::Softmax,
    }
}

/// Those of a query with each of these texts.
pub(super) fn characters_of(query: &str, texts: &[String]) -> usize {
    let of_texts: usize = texts.iter().map(|text| characters(text)).sum();
    characters(query) * texts.len() + of_texts
}

pub(super) fn characters(text: &str) -> usize {
    text.chars().count()
}

fn describe_compute(
    answer: &mut Response,
    edge: &Edge,
    post: &Post,
    response: &ScoreResponse,
    n_characters: usize,
) {
    let device = edge.model_of(response).map(|model| model.device);
    set(answer, "x-compute-type", device.as_deref().unwrap_or("cpu"));
    let ms = |time: Duration| time.as_millis().to_string();
    let total = ms(post.call.elapsed());
    set(answer, "x-compute-time", &total);
    set(answer, "x-compute-characters", &n_characters.to_string());
    set(answer, "x-compute-tokens", &response.n_tokens.to_string());
    set(answer, "x-total-time", &total);
    set(answer, "x-tokenization-time", &ms(response.times.tokenize));
    set(answer, "x-queue-time", &ms(response.times.queue));
    set(answer, "x-inference-time", &ms(response.times.inference));
}

fn describe(edge: &Edge, model: &ModelState) -> Info {
    let settings = &edge.settings;
    let numbered = model.labels.iter().enumerate();
    let labels = Labels {
        id2label: numbered
            .clone()
            .map(|(id, label)| (id.to_string(), label.clone()))
            .collect(),
        label2id: numbered.map(|(id, label)| (label.clone(), id)).collect(),
    };
    Info {
        model_id: model.source.clone(),
        model_sha: Some(model.revision.clone()).filter(|revision| !revision.is_empty()),
        model_dtype: model.dtype.clone(),
        model_type: match model.labels.len() {
            0 | 1 => ModelType::Reranker(labels),
            _ => ModelType::Classifier(labels),
        },
        max_concurrent_requests: settings.requests_max,
        max_input_length: model.row_tokens_max,
        max_batch_tokens: settings.batch_tokens_max,
        max_batch_requests: None,
        max_client_batch_size: settings.documents_max,
        auto_truncate: true,
        tokenization_workers: settings.tokenizer_workers,
        version: settings.version,
        sha: None,
        docker_label: None,
        activation: model.activation.name(),
    }
}
