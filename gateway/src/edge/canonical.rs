//! The canonical dialect: what clients of Cohere, Jina, vLLM, infinity, LocalAI and Xinference
//! speak.

use super::Edge;
use super::answer::scored;
use super::aside::aside;
use super::document::{Document, RankFields};
use super::json;
use super::post::Post;
use super::wire::Refusal;
use crate::intake::Bounds;
use crate::score::{Activation, ScoreError, ScoreResponse, ranking};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Documents that one search unit pays for, as Cohere bills them.
const SEARCH_UNIT_DOCUMENTS: usize = 100;
/// Indices that a warning lists before it only counts.
const WARNED_INDICES_MAX: usize = 20;

/// A query and the documents to rank by it. Every optional field may be null; others are ignored.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = RerankRequest, example = json!({
    "model": "default",
    "query": "What is the capital of France?",
    "documents": ["Paris is the capital of France.", "Bread is made of flour."],
    "top_n": 1,
    "return_documents": true
}))]
pub(super) struct Body {
    /// A name from `/models`; absent for the first.
    model: Option<String>,
    /// What the documents are compared with; not empty.
    #[schema(value_type = String, min_length = 1)]
    query: Option<String>,
    /// At least one.
    #[schema(value_type = Vec<Document>, min_items = 1)]
    documents: Option<Vec<Document>>,
    /// How many results to return, at least 1; absent for all.
    #[serde(default, deserialize_with = "json::count")]
    #[schema(minimum = 1)]
    top_n: Option<u64>,
    /// Repeat each document's text in its result.
    #[serde(default, deserialize_with = "json::flag")]
    return_documents: Option<bool>,
    /// Of documents that are objects, the fields that are their text, in this order; at most 64.
    #[schema(value_type = Option<Vec<String>>, max_items = 64)]
    rank_fields: Option<RankFields>,
    /// The model's logit instead of its activation's value.
    #[serde(default, deserialize_with = "json::flag")]
    raw_scores: Option<bool>,
}

/// The documents by falling score; equal scores keep the documents' order.
#[derive(Serialize, ToSchema)]
#[schema(as = RerankAnswer, example = json!({
    "id": "5f0c7f3e-9d2f-4a7e-8f43-0f7d8b5f6c11",
    "object": "list",
    "model": "default",
    "results": [{
        "index": 0,
        "relevance_score": 0.9987,
        "document": {"text": "Paris is the capital of France."}
    }],
    "usage": {"prompt_tokens": 31, "total_tokens": 31},
    "meta": {
        "api_version": {"version": "2"},
        "billed_units": {"search_units": 1},
        "tokens": {"input_tokens": 31, "output_tokens": 0}
    }
}))]
pub(super) struct Answer {
    /// The request's id.
    id: String,
    object: &'static str,
    /// The model's name, as configured.
    model: String,
    results: Vec<Ranked>,
    usage: Usage,
    meta: Meta,
}

/// One document's result.
#[derive(Serialize, ToSchema)]
pub(super) struct Ranked {
    /// The document's place in the request.
    index: usize,
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<RankedDocument>,
}

/// The document's text, when `return_documents` asked for it.
#[derive(Serialize, ToSchema)]
pub(super) struct RankedDocument {
    text: String,
}

/// Tokens that the model saw, special tokens included.
#[derive(Serialize, ToSchema)]
pub(super) struct Usage {
    prompt_tokens: u64,
    total_tokens: u64,
}

/// The same counts where Cohere's clients look for them.
#[derive(Serialize, ToSchema)]
pub(super) struct Meta {
    api_version: ApiVersion,
    billed_units: BilledUnits,
    tokens: Tokens,
    /// What was cut to the model's length.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct ApiVersion {
    #[schema(example = "2")]
    version: &'static str,
}

#[derive(Serialize, ToSchema)]
pub(super) struct BilledUnits {
    /// One for every started 100 documents.
    search_units: usize,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Tokens {
    input_tokens: u64,
    output_tokens: u64,
}

/// Bytes of a result without its document, about.
const RESULT_BYTES: usize = 64;

/// A body that makes sense.
struct Asked {
    model: Option<String>,
    query: String,
    documents: Vec<String>,
    shown: Shown,
}

/// How to present the scores.
struct Shown {
    n_results: usize,
    raw: bool,
    /// The documents' texts, where they are to be repeated.
    texts: Option<Vec<String>>,
}

/// Answers a body with `documents`.
pub(super) async fn rerank(edge: &Edge, post: &Post) -> Result<Response, Refusal> {
    let Asked {
        model,
        query,
        documents,
        shown,
    } = aside(post.body.len(), || read(&post.body, edge.door.bounds()))?;
    let response = edge.score(post.question(model, query, documents)).await?;
    let activation = if shown.raw {
        Activation::Identity
    } else {
        response.activation
    };
    Ok(aside(shown.bytes(), || {
        let answer = answer(post.call.id().to_string(), &response, shown);
        scored(&post.call, &response, activation, &answer)
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
    if documents.is_empty() {
        return Err(Refusal::Empty {
            param: "documents",
            why: "is empty; send at least one document",
        });
    }
    if body.top_n == Some(0) {
        return Err(ScoreError::invalid(
            "top_n",
            "is 0; send 1 or more, or leave it out for all documents",
        )
        .into());
    }
    let rank_fields = body.rank_fields.unwrap_or_default();
    let texts = documents
        .into_iter()
        .enumerate()
        .map(|(idx, document)| document.into_text(idx, &rank_fields, bounds));
    let texts: Vec<String> = texts.collect::<Result<_, _>>()?;
    let shown = Shown {
        n_results: body.top_n.map_or(texts.len(), |n| {
            usize::try_from(n).unwrap_or(usize::MAX).min(texts.len())
        }),
        raw: body.raw_scores.unwrap_or(false),
        texts: body
            .return_documents
            .unwrap_or(false)
            .then(|| texts.clone()),
    };
    Ok(Asked {
        model: body.model,
        query,
        documents: texts,
        shown,
    })
}

fn answer(id: String, response: &ScoreResponse, mut shown: Shown) -> Answer {
    let scores = response.scores(shown.raw);
    let order = ranking(&scores).into_iter().take(shown.n_results);
    let results = order.map(|index| Ranked {
        index,
        relevance_score: scores[index],
        document: shown.texts.as_mut().map(|texts| RankedDocument {
            text: std::mem::take(&mut texts[index]),
        }),
    });
    Answer {
        id,
        object: "list",
        model: response.model.to_string(),
        results: results.collect(),
        usage: Usage {
            prompt_tokens: response.n_tokens,
            total_tokens: response.n_tokens,
        },
        meta: Meta {
            api_version: ApiVersion { version: "2" },
            billed_units: BilledUnits {
                search_units: scores.len().div_ceil(SEARCH_UNIT_DOCUMENTS),
            },
            tokens: Tokens {
                input_tokens: response.n_tokens,
                output_tokens: 0,
            },
            warnings: warnings(response),
        },
    }
}

impl Shown {
    /// The answer's bytes, about.
    fn bytes(&self) -> usize {
        let texts = self.texts.iter().flatten().map(String::len);
        self.n_results * RESULT_BYTES + texts.sum::<usize>()
    }
}

fn warnings(response: &ScoreResponse) -> Vec<String> {
    let mut warnings = Vec::new();
    if response.query_truncated {
        warnings.push("query was cut to leave room for the documents".to_owned());
    }
    if !response.truncated.is_empty() {
        let listed = response
            .truncated
            .iter()
            .take(WARNED_INDICES_MAX)
            .map(|idx| format!("documents[{idx}]"));
        let listed = listed.collect::<Vec<_>>().join(", ");
        let more = match response.truncated.len().saturating_sub(WARNED_INDICES_MAX) {
            0 => String::new(),
            n_more => format!(" and {n_more} more"),
        };
        warnings.push(format!("cut to the model's length: {listed}{more}"));
    }
    warnings
}
