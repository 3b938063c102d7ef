//! Writing answers: JSON, and the headers that every answer with scores carries.

use super::call::Call;
use crate::score::{Activation, ScoreError, ScoreResponse};
use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use utoipa::ToSchema;

/// Which activation made the scores.
pub(super) const ACTIVATION: &str = "x-crossgate-activation";
/// What was cut, where the answer itself has no place for it.
pub(super) const WARNINGS: &str = "x-crossgate-warnings";
/// Where the time went, as browsers and load balancers read it.
pub(super) const SERVER_TIMING: &str = "server-timing";

/// Tokens that the model saw, special tokens included.
#[derive(Serialize, ToSchema)]
pub(super) struct Usage {
    prompt_tokens: u64,
    total_tokens: u64,
}

impl Usage {
    pub(super) fn of(response: &ScoreResponse) -> Self {
        Self {
            prompt_tokens: response.n_tokens,
            total_tokens: response.n_tokens,
        }
    }
}

/// `body` as JSON.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(bytes) => with_type("application/json", Body::from(bytes), status),
        // Ours have string keys and finite numbers; should one not serialize, it is our mistake.
        Err(error) => super::problem::Problem::from(ScoreError::Internal {
            why: error.to_string(),
        })
        .into_response(),
    }
}

/// A body of another kind.
pub(super) fn with_type(media_type: &'static str, body: Body, status: StatusCode) -> Response {
    (
        status,
        [(CONTENT_TYPE, HeaderValue::from_static(media_type))],
        body,
    )
        .into_response()
}

/// `body` as JSON, and how its scores came about.
pub(super) fn scored(
    call: &Call,
    scores: &ScoreResponse,
    activation: Activation,
    body: &impl Serialize,
) -> Response {
    let mut response = json(StatusCode::OK, body);
    set(&mut response, ACTIVATION, activation.name());
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let timing = format!(
        "tokenize;dur={:.3}, queue;dur={:.3}, inference;dur={:.3}, total;dur={:.3}",
        ms(scores.times.tokenize),
        ms(scores.times.queue),
        ms(scores.times.inference),
        ms(call.elapsed()),
    );
    set(&mut response, SERVER_TIMING, &timing);
    response
}

/// Sets a header; a value that no header can carry is left out.
pub(super) fn set(response: &mut Response, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response
            .headers_mut()
            .insert(HeaderName::from_static(name), value);
    }
}

/// Says what was cut, where the body has no place for it.
pub(super) fn warn(response: &mut Response, warnings: &[String]) {
    if !warnings.is_empty() {
        set(response, WARNINGS, &warnings.join("; "));
    }
}

/// Unix time in seconds, as OpenAI's shapes have it.
pub(super) fn created() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
