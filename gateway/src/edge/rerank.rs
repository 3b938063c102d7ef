//! `/rerank` under all its names: the body says which dialect it is.

use super::Edge;
use super::body::held;
use super::post::Post;
use super::problem::{Problem, ScoringErrors};
use super::scoring::ScoringHeaders;
use super::words::Words;
use super::{canonical, json, mixedbread, tei, voyage, weaviate};
use crate::runtime::aside;
use crate::score::ScoreError;
use axum::extract::{MatchedPath, State};
use axum::response::Response;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// The paths at which clients look for reranking.
pub(super) const PATHS: [&str; 6] = [
    "/rerank",
    "/v1/rerank",
    "/v2/rerank",
    "/reranking",
    "/v1/reranking",
    canonical::BARE_PATH,
];

/// By which key a dialect is known, and how long its list is. Absent and null are the same.
#[derive(Deserialize)]
struct Keys {
    texts: Option<json::Length>,
    documents: Option<json::Length>,
    input: Option<json::Length>,
    property: Option<IgnoredAny>,
}

/// A body with `documents`, TEI's with `texts`, Mixedbread's with `input` or Weaviate's with `property`.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
#[schema(as = AnyRerankRequest)]
#[expect(dead_code, reason = "read by the derive only")]
pub(super) enum AnyBody {
    #[schema(title = "canonical")]
    Canonical(canonical::Body),
    #[schema(title = "TEI")]
    Tei(tei::Body),
    #[schema(title = "Mixedbread")]
    Mixedbread(mixedbread::Body),
    #[schema(title = "Weaviate")]
    Weaviate(weaviate::Body),
}

/// An array for `texts`, else an object.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = AnyRerankAnswer)]
#[expect(dead_code, reason = "read by the derive only")]
pub(super) enum AnyAnswer {
    #[schema(title = "canonical")]
    Canonical(canonical::Answer),
    #[schema(title = "TEI")]
    Tei(Vec<tei::Rank>),
    #[schema(title = "Mixedbread")]
    Mixedbread(mixedbread::Answer),
    #[schema(title = "Weaviate")]
    Weaviate(weaviate::Answer),
    #[schema(title = "Voyage")]
    Voyage(voyage::Answer),
}

/// Rank documents by their relevance to a query
///
/// A body with `documents` is answered as Cohere and Jina do, one with `texts` as TEI does, one with `input` as
/// Mixedbread does, and one with `property` as Weaviate's own reranker does. Where `server.voyage` is set,
/// `/v1/rerank` answers `documents` as Voyage does.
#[utoipa::path(post, path = "/rerank", tag = "rerank", request_body = AnyBody,
    params(ScoringHeaders),
    responses(
        (status = 200, description = "The documents by falling score", body = AnyAnswer, headers(
            ("x-request-id" = String, description = "The request's name, as on every answer"),
            ("x-crossgate-activation" = String, description = "`identity`, `sigmoid` or `softmax`"),
            ("x-crossgate-warnings" = Option<String>, description = "What was cut; not for `documents`, \
                whose answers have `meta.warnings`"),
            ("server-timing" = String, description = "Where the milliseconds went"),
        )),
        ScoringErrors,
    )
)]
pub(super) async fn rerank(
    State(edge): State<Arc<Edge>>,
    path: MatchedPath,
    post: Post,
) -> Result<Response, Problem> {
    let response = by_dialect(&edge, path.as_str(), &post).await?;
    Ok(held(response, post.weight()))
}

async fn by_dialect(edge: &Edge, path: &str, post: &Post) -> Result<Response, Problem> {
    // Read twice: to skip over a body costs a tenth of reading it, and each dialect keeps its own
    // struct. What is too many is counted before it is unpacked.
    let keys: Keys = aside(post.body.len(), || json::parse(&post.body))?;
    let fits = |length: json::Length, words: &Words| {
        let fits = edge.door.bounds().check_count(length.0);
        fits.map_err(|error| words.say(error))
    };
    if let Some(texts) = keys.texts {
        fits(texts, &tei::WORDS).map_err(Problem::tei)?;
        return tei::rerank(edge, post).await.map_err(Problem::tei);
    }
    if keys.property.is_some() {
        // Its client reads `error` as a string, as TEI's do.
        let documents = keys.documents.unwrap_or(json::Length(0));
        fits(documents, &canonical::WORDS).map_err(Problem::tei)?;
        return weaviate::rerank(edge, post).await.map_err(Problem::tei);
    }
    if let Some(documents) = keys.documents {
        fits(documents, &canonical::WORDS)?;
        if edge.settings.voyage && path == voyage::PATH {
            return Ok(voyage::rerank(edge, post).await?);
        }
        return Ok(canonical::rerank(edge, path, post).await?);
    }
    if let Some(input) = keys.input {
        fits(input, &mixedbread::WORDS)?;
        return Ok(mixedbread::rerank(edge, post).await?);
    }
    let why = "is missing; send `documents` (a list of strings), `texts` as TEI's clients do, or `input` as \
               Mixedbread's do";
    Err(ScoreError::invalid("documents", why).into())
}
