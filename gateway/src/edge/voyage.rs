//! Voyage's dialect of `/v1/rerank`, where the server is set to it: its bodies cannot be told from others.

use super::Edge;
use super::answer::{scored, warn};
use super::document::{Document, RankFields, texts};
use super::json;
use super::overflow::{Overflow, cuts};
use super::post::Post;
use super::scoring::{filled, n_results, ranked};
use super::wire::Refusal;
use super::words::Words;
use crate::intake::Bounds;
use crate::runtime::aside;
use crate::score::{Form, ScoreResponse, Texts};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The path that may be Voyage's.
pub(super) const PATH: &str = "/v1/rerank";

/// A query and the documents to rank by it. `x-crossgate-warnings` tells which were cut.
#[derive(Debug, Deserialize)]
struct Body {
    model: Option<String>,
    query: Option<String>,
    documents: Option<Vec<Document>>,
    #[serde(default, deserialize_with = "json::count")]
    top_k: Option<u64>,
    #[serde(default, deserialize_with = "json::flag")]
    return_documents: Option<bool>,
    /// Whether texts that are too long are cut or refused.
    #[serde(default, deserialize_with = "json::flag")]
    truncation: Option<bool>,
}

/// The documents by falling score, where the server is set to Voyage's dialect.
#[derive(Serialize, ToSchema)]
#[schema(as = VoyageAnswer, example = json!({
    "object": "list",
    "data": [{"relevance_score": 0.9987, "index": 0}],
    "model": "default",
    "usage": {"total_tokens": 31}
}))]
pub(super) struct Answer {
    #[schema(example = "list")]
    object: &'static str,
    data: Vec<Ranked>,
    /// The model's name, as configured.
    model: String,
    usage: TotalTokens,
}

/// One document's result.
#[derive(Serialize, ToSchema)]
#[schema(as = VoyageRank)]
pub(super) struct Ranked {
    relevance_score: f32,
    /// The document's place in the request.
    index: usize,
    /// Its text, when `return_documents` asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<String>,
}

/// Tokens that the model saw, special tokens included.
#[derive(Serialize, ToSchema)]
pub(super) struct TotalTokens {
    total_tokens: u64,
}

/// The core's words are Voyage's.
const WORDS: Words = Words(&[]);

/// Bytes of a result without its text, about.
const RESULT_BYTES: usize = 48;

/// A body that makes sense.
struct Asked {
    model: Option<String>,
    rows: Vec<Texts>,
    overflow: Overflow,
    n_results: usize,
    repeated: Option<Vec<String>>,
}

/// Answers a body with `documents`.
pub(super) async fn rerank(edge: &Edge, post: &Post) -> Result<Response, Refusal> {
    let asked = aside(post.body.len(), || read(&post.body, edge.door.bounds()))?;
    let (n_results, repeated) = (asked.n_results, asked.repeated);
    let question = post.question(asked.model, asked.rows, Form::default());
    let response = edge.ask(question, asked.overflow, &WORDS).await?;
    let texts = repeated.iter().flatten().map(String::len);
    let bytes = n_results * RESULT_BYTES + texts.sum::<usize>();
    Ok(aside(bytes, || {
        let answer = Answer::new(&response, n_results, repeated);
        let mut answer = scored(&post.call, &response, response.activation, &answer);
        warn(&mut answer, &cuts(&response, "documents", &Form::default()));
        answer
    }))
}

fn read(body: &[u8], bounds: &Bounds) -> Result<Asked, Refusal> {
    let body: Body = json::parse(body)?;
    let query = json::required(
        body.query,
        "query",
        "the text to compare the documents with",
    )?;
    let documents = json::required(body.documents, "documents", "a list of strings")?;
    let documents = filled("documents", documents)?;
    let texts = texts(documents, &RankFields::default(), bounds)?;
    Ok(Asked {
        model: body.model,
        overflow: match body.truncation {
            Some(false) => Overflow::Error,
            _ => Overflow::Truncate,
        },
        n_results: n_results("top_k", body.top_k, texts.len())?,
        repeated: (body.return_documents == Some(true)).then(|| texts.clone()),
        rows: Texts::of_query(query, texts),
    })
}

// === impl Answer ===

impl Answer {
    fn new(response: &ScoreResponse, n_results: usize, repeated: Option<Vec<String>>) -> Self {
        let scores = response.scores(false);
        let data = ranked(&scores, n_results, repeated);
        let data = data.map(|(index, relevance_score, document)| Ranked {
            relevance_score,
            index,
            document,
        });
        Self {
            object: "list",
            data: data.collect(),
            model: response.model.to_string(),
            usage: TotalTokens {
                total_tokens: response.n_tokens,
            },
        }
    }
}
