//! `/rerank` under all its names: the body says which dialect it is.

use super::Edge;
use super::body::held;
use super::post::Post;
use super::problem::{Problem, ScoringErrors};
use super::{canonical, json, tei};
use crate::runtime::aside;
use crate::score::ScoreError;
use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// The paths at which clients look for reranking.
pub(super) const PATHS: [&str; 5] = [
    "/rerank",
    "/v1/rerank",
    "/v2/rerank",
    "/reranking",
    "/v1/reranking",
];

/// By which key a dialect is known, and how long its list is. Absent and null are the same.
#[derive(Deserialize)]
struct Keys {
    texts: Option<json::Length>,
    documents: Option<json::Length>,
}

/// A body with `documents`, or TEI's with `texts`.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
#[schema(as = AnyRerankRequest)]
#[expect(dead_code, reason = "read by the derive only")]
pub(super) enum AnyBody {
    #[schema(title = "canonical")]
    Canonical(canonical::Body),
    #[schema(title = "TEI")]
    Tei(tei::Body),
}

/// An object for `documents`, an array for `texts`.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = AnyRerankAnswer)]
#[expect(dead_code, reason = "read by the derive only")]
pub(super) enum AnyAnswer {
    #[schema(title = "canonical")]
    Canonical(canonical::Answer),
    #[schema(title = "TEI")]
    Tei(Vec<tei::Rank>),
}

/// Rank documents by their relevance to a query
///
/// A body with `documents` is answered as Cohere and Jina do, one with `texts` as TEI does.
#[utoipa::path(post, path = "/rerank", tag = "rerank", request_body = AnyBody,
    params(
        ("X-Request-Id" = Option<String>, Header, description = "A name for the request, kept in \
            answer and log: at most 128 visible ASCII characters"),
        ("X-Request-Timeout-Ms" = Option<u64>, Header, description = "Less time than allowed"),
        ("X-Priority" = Option<String>, Header, description = "`high`, `normal` or `low`; a body's own \
            `priority` counts more"),
    ),
    responses(
        (status = 200, description = "The documents by falling score", body = AnyAnswer, headers(
            ("x-request-id" = String, description = "The request's name, as on every answer"),
            ("x-crossgate-activation" = String, description = "`identity`, `sigmoid` or `softmax`"),
            ("x-crossgate-warnings" = Option<String>, description = "What was cut; for `texts` only, since \
                other answers have `meta.warnings`"),
            ("server-timing" = String, description = "Where the milliseconds went"),
        )),
        ScoringErrors,
    )
)]
pub(super) async fn rerank(State(edge): State<Arc<Edge>>, post: Post) -> Result<Response, Problem> {
    let response = by_dialect(&edge, &post).await?;
    Ok(held(response, post.weight()))
}

async fn by_dialect(edge: &Edge, post: &Post) -> Result<Response, Problem> {
    // Read twice: to skip over a body costs a tenth of reading it, and each dialect keeps its own
    // struct. What is too many is counted before it is unpacked.
    let keys: Keys = aside(post.body.len(), || json::parse(&post.body))?;
    let bounds = edge.door.bounds();
    match keys {
        Keys {
            texts: Some(texts), ..
        } => {
            let fits = bounds
                .check_count(texts.0)
                .map_err(|error| tei::WORDS.say(error));
            fits.map_err(Problem::tei)?;
            tei::rerank(edge, post).await.map_err(Problem::tei)
        }
        Keys {
            documents: Some(documents),
            ..
        } => {
            bounds.check_count(documents.0)?;
            Ok(canonical::rerank(edge, post).await?)
        }
        Keys {
            texts: None,
            documents: None,
        } => {
            let why =
                "is missing; send `documents` (a list of strings), or `texts` as TEI's clients do";
            Err(ScoreError::invalid("documents", why).into())
        }
    }
}
