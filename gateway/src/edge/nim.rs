//! NVIDIA NIM's `/ranking`: passages by falling logit.

use super::Edge;
use super::answer::{Usage, scored, warn};
use super::body::held;
use super::document::{Document, RankFields, texts};
use super::json;
use super::overflow::{Overflow, cuts};
use super::post::Post;
use super::problem::{Problem, ScoringErrors};
use super::scoring::{ScoringHeaders, filled, n_results, ranked};
use super::wire::Refusal;
use super::words::Words;
use crate::intake::Bounds;
use crate::runtime::aside;
use crate::score::{Activation, Form, ScoreError, Texts};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// The paths at which NIM's clients look for rankings, beside those that name a model.
pub(super) const PATHS: [&str; 2] = ["/ranking", "/v1/ranking"];

/// A query and the passages to rank by it.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = RankingRequest, example = json!({
    "model": "default",
    "query": {"text": "What is the capital of France?"},
    "passages": [{"text": "Paris is the capital of France."}, {"text": "Bread is made of flour."}],
    "truncate": "END"
}))]
pub(super) struct Body {
    /// A name from `/models`; absent for the path's, or the first.
    model: Option<String>,
    /// What the passages are compared with; not empty.
    #[schema(value_type = Document)]
    query: Option<Document>,
    /// At least one.
    #[schema(value_type = Vec<Document>, min_items = 1)]
    passages: Option<Vec<Document>>,
    /// Whether texts that are too long are cut at their end (`END` or absent) or refused (`NONE`).
    #[schema(example = "END")]
    truncate: Option<String>,
    /// How many rankings to return, at least 1; absent for all.
    #[serde(default, deserialize_with = "json::count")]
    #[schema(minimum = 1)]
    top_n: Option<u64>,
    /// As `top_n`, which counts more.
    #[serde(default, deserialize_with = "json::count")]
    #[schema(minimum = 1)]
    top_k: Option<u64>,
}

/// How many there are. Counted before they are unpacked.
#[derive(Deserialize)]
struct Lengths {
    passages: Option<json::Length>,
}

/// The passages by falling logit; equal ones keep their order.
#[derive(Serialize, ToSchema)]
#[schema(as = RankingAnswer, example = json!({
    "rankings": [{"index": 0, "logit": 8.61}, {"index": 1, "logit": -4.32}],
    "usage": {"prompt_tokens": 31, "total_tokens": 31}
}))]
pub(super) struct Answer {
    rankings: Vec<Ranking>,
    usage: Usage,
}

/// One passage's place.
#[derive(Serialize, ToSchema)]
#[schema(as = Ranking)]
pub(super) struct Ranking {
    /// The passage's place in the request.
    index: usize,
    /// As the model gives it, without an activation.
    logit: f32,
}

/// What the core calls otherwise.
const WORDS: Words = Words(&[("documents", "passages")]);
/// While the query is read, which may be an object as passages are.
const OF_QUERY: Words = Words(&[("documents[0]", "query")]);

/// Bytes of a ranking, about.
const RANKING_BYTES: usize = 32;

/// A body that makes sense.
struct Asked {
    model: Option<String>,
    rows: Vec<Texts>,
    overflow: Overflow,
    n_results: usize,
}

/// Rank passages, as NVIDIA NIM does
///
/// The logits are the model's own. `x-crossgate-warnings` tells which passages were cut.
#[utoipa::path(post, path = "/ranking", tag = "rerank", request_body = Body, params(ScoringHeaders), responses(
    (status = 200, description = "The passages by falling logit", body = Answer),
    ScoringErrors,
))]
pub(super) async fn rank(State(edge): State<Arc<Edge>>, post: Post) -> Result<Response, Problem> {
    Ok(answer(&edge, &post, None).await?)
}

/// Rank passages by the model that the path names
///
/// A body's own `model` counts more.
#[utoipa::path(post, path = "/v1/retrieval/{model}/reranking", tag = "rerank", request_body = Body,
    params(("model" = String, Path, description = "The model's name"), ScoringHeaders),
    responses(
        (status = 200, description = "The passages by falling logit", body = Answer),
        ScoringErrors,
    )
)]
pub(super) async fn rank_by(
    State(edge): State<Arc<Edge>>,
    model: Result<Path<String>, PathRejection>,
    post: Post,
) -> Result<Response, Problem> {
    let Path(model) = model.map_err(not_text)?;
    Ok(answer(&edge, &post, Some(model)).await?)
}

/// The same for a name such as the hub has: `owner/name`.
pub(super) async fn rank_by_owners(
    State(edge): State<Arc<Edge>>,
    path: Result<Path<(String, String)>, PathRejection>,
    post: Post,
) -> Result<Response, Problem> {
    let Path((owner, name)) = path.map_err(not_text)?;
    Ok(answer(&edge, &post, Some(format!("{owner}/{name}"))).await?)
}

/// What is percent-encoded in the path is not UTF-8: no model is called so.
fn not_text(rejection: PathRejection) -> Refusal {
    ScoreError::invalid("model", rejection.body_text()).into()
}

async fn answer(edge: &Edge, post: &Post, model: Option<String>) -> Result<Response, Refusal> {
    let asked = aside(post.body.len(), || read(&post.body, edge.door.bounds()))?;
    let model = asked.model.filter(|name| !name.is_empty()).or(model);
    let question = post.question(model, asked.rows, Form::default());
    let response = edge.ask(question, asked.overflow, &WORDS).await?;
    let logits = response.scores(true);
    let answer = aside(asked.n_results * RANKING_BYTES, || {
        let rankings = ranked(&logits, asked.n_results, None);
        let rankings = rankings.map(|(index, logit, _)| Ranking { index, logit });
        let answer = Answer {
            rankings: rankings.collect(),
            usage: Usage::of(&response),
        };
        let mut answer = scored(&post.call, &response, Activation::Identity, &answer);
        warn(&mut answer, &cuts(&response, "passages", &Form::default()));
        answer
    });
    Ok(held(answer, post.weight()))
}

fn read(body: &[u8], bounds: &Bounds) -> Result<Asked, Refusal> {
    let lengths: Lengths = json::parse(body)?;
    let n_passages = lengths.passages.map_or(0, |length| length.0);
    bounds
        .check_count(n_passages)
        .map_err(|error| WORDS.say(error))?;
    let body: Body = json::parse(body)?;
    let query = json::required(
        body.query,
        "query",
        "{\"text\": what the passages are compared with}",
    )?;
    let passages = json::required(body.passages, "passages", "a list of {\"text\": …}")?;
    let passages = filled("passages", passages)?;
    let none = RankFields::default();
    let query = query.into_text(0, &none, bounds);
    let query = query.map_err(|error| OF_QUERY.say(error))?;
    let passages = texts(passages, &none, bounds);
    let passages = passages.map_err(|error| WORDS.say(error))?;
    Ok(Asked {
        model: body.model,
        overflow: overflow(body.truncate.as_deref().unwrap_or_default())?,
        n_results: match body.top_n {
            Some(_) => n_results("top_n", body.top_n, passages.len())?,
            None => n_results("top_k", body.top_k, passages.len())?,
        },
        rows: Texts::of_query(query, passages),
    })
}

fn overflow(truncate: &str) -> Result<Overflow, ScoreError> {
    match truncate.to_ascii_uppercase().as_str() {
        "" | "END" => Ok(Overflow::Truncate),
        "NONE" => Ok(Overflow::Error),
        _ => {
            let why = format!(r#"there is no {truncate:?}; use "END" or "NONE""#);
            Err(ScoreError::invalid("truncate", why))
        }
    }
}
