//! Weaviate's dialect of `/rerank`: known by its key `property`, answered in the documents' order.

use super::Edge;
use super::answer::{scored, warn};
use super::json;
use super::overflow::{Overflow, cuts};
use super::post::Post;
use super::wire::Refusal;
use super::words::Words;
use crate::runtime::aside;
use crate::score::{Form, ScoreError, Texts};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A query, and documents or one text in `property`. `x-crossgate-warnings` tells which were cut.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = WeaviateRequest, example = json!({
    "query": "What is the capital of France?",
    "documents": ["Bread is made of flour.", "Paris is the capital of France."],
    "property": ""
}))]
pub(super) struct Body {
    /// A name from `/models`; absent for the first.
    model: Option<String>,
    /// What the documents are compared with; not empty.
    #[schema(value_type = String, min_length = 1)]
    query: Option<String>,
    /// Absent or empty where `property` is the one document.
    documents: Option<Vec<String>>,
    /// Always there, mostly empty.
    #[schema(value_type = String)]
    property: Option<String>,
}

/// The documents in their order, with their scores; or the score of `property`.
#[derive(Serialize, ToSchema)]
#[schema(as = WeaviateAnswer, example = json!({
    "query": "What is the capital of France?",
    "scores": [
        {"document": "Bread is made of flour.", "score": 0.0007},
        {"document": "Paris is the capital of France.", "score": 0.9987}
    ]
}))]
pub(super) struct Answer {
    query: String,
    scores: Vec<DocumentScore>,
    #[serde(skip_serializing_if = "Option::is_none")]
    property: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<f32>,
}

/// One document with its score.
#[derive(Serialize, ToSchema)]
#[schema(as = WeaviateScore)]
pub(super) struct DocumentScore {
    document: String,
    score: f32,
}

/// The core's words are Weaviate's.
const WORDS: Words = Words(&[]);

/// Bytes of a score without its document, about.
const SCORE_BYTES: usize = 48;

/// A body that makes sense.
struct Asked {
    model: Option<String>,
    query: String,
    documents: Vec<String>,
    property: Option<String>,
}

/// Answers a body with `property`.
pub(super) async fn rerank(edge: &Edge, post: &Post) -> Result<Response, Refusal> {
    let asked = aside(post.body.len(), || read(&post.body))?;
    let texts = asked.property.iter().chain(&asked.documents).cloned();
    let rows = Texts::of_query(asked.query.as_str(), texts);
    let question = post.question(asked.model, rows, Form::default());
    let response = edge.ask(question, Overflow::Truncate, &WORDS).await?;
    let bytes = |document: &String| SCORE_BYTES + document.len();
    let bytes = asked.documents.iter().map(bytes).sum();
    let scores = response.scores(false);
    Ok(aside(bytes, || {
        let documents = asked.documents.into_iter().zip(&scores);
        let answer = Answer {
            query: asked.query,
            scores: documents
                .map(|(document, &score)| DocumentScore { document, score })
                .collect(),
            score: asked.property.is_some().then(|| scores[0]),
            property: asked.property,
        };
        let mut answer = scored(&post.call, &response, response.activation, &answer);
        warn(&mut answer, &cuts(&response, "documents", &Form::default()));
        answer
    }))
}

fn read(body: &[u8]) -> Result<Asked, Refusal> {
    let body: Body = json::parse(body)?;
    let query = json::required(
        body.query,
        "query",
        "the text to compare the documents with",
    )?;
    let documents = body.documents.unwrap_or_default();
    // Documents count more, as they do with the server that these clients were written for.
    let property = body.property.filter(|_| documents.is_empty());
    if documents.is_empty() && property.as_deref().unwrap_or_default().is_empty() {
        let why = "is empty, and so is property; send at least one text";
        return Err(ScoreError::invalid("documents", why).into());
    }
    Ok(Asked {
        model: body.model,
        query,
        documents,
        property,
    })
}
