//! A refusal on its way out over HTTP: empty until the outermost layer, which knows the id, writes
//! it.

use super::call::Call;
use super::packed;
use super::wire::{Refusal, retry_after_seconds, wire};
use axum::body::Body;
use axum::http::header::{
    ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Type};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};
use utoipa::{IntoResponses, ToSchema};

/// A refusal, and in whose words to write it.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    refusal: Refusal,
    style: Style,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Canonical,
    Tei,
    Kserve,
}

/// What every error looks like. `message` and `detail` repeat the text where other clients look for
/// it.
#[derive(Serialize, ToSchema)]
pub(super) struct ErrorAnswer {
    error: ErrorDetail,
    message: String,
    detail: String,
    /// The request's id, as in the `x-request-id` header and the server's log.
    #[schema(example = "5f0c7f3e-9d2f-4a7e-8f43-0f7d8b5f6c11")]
    id: String,
}

/// What is wrong, for people and for programs.
#[derive(Serialize, ToSchema)]
pub(super) struct ErrorDetail {
    /// What is wrong and what to do.
    #[schema(example = "documents[3]: invalid type: integer `5`, expected a string or an object")]
    message: String,
    #[serde(rename = "type")]
    #[schema(example = "invalid_request_error")]
    kind: &'static str,
    /// The field at fault, with an index where there is one.
    #[schema(example = "documents[3]")]
    param: Option<String>,
    #[schema(example = "invalid_value")]
    code: &'static str,
}

/// What errors look like to clients that sent `texts`.
#[derive(Serialize, ToSchema)]
pub(super) struct TeiErrorAnswer {
    #[schema(example = "texts: is empty; send at least one text")]
    error: String,
    #[schema(example = "Empty")]
    error_type: &'static str,
}

/// What errors look like on KServe's routes.
#[derive(Serialize, ToSchema)]
pub(super) struct KserveErrorAnswer {
    #[schema(example = "documents: is missing; send a BYTES tensor of this name")]
    error: String,
}

/// The statuses of a route that scores.
pub(super) struct ScoringErrors;

/// The same of KServe's.
pub(super) struct KserveErrors;

/// What each of them means.
const SCORING: [(u16, &str); 12] = [
    (
        400,
        "Not JSON (line and column are named), or an empty list",
    ),
    (401, "The server has API keys, and none of them was shown"),
    (404, "No model of this name"),
    (408, "The body did not arrive in time"),
    (
        413,
        "The body (unpacked) or a field is larger than a bound, which is named",
    ),
    (
        415,
        "The body is not `application/json`, or packed by other than gzip or zstd",
    ),
    (
        422,
        "A field makes no sense; `param` names it and the index",
    ),
    (
        429,
        "No room, or more than the key's limits; `Retry-After` says when to come back",
    ),
    (500, "A mistake in the server"),
    (502, "The backend failed"),
    (
        503,
        "Starting up or shutting down, or no model is loaded; `Retry-After` says when to come back",
    ),
    (504, "Not done within the request's time"),
];

// === impl Problem ===

impl Problem {
    /// For clients that sent TEI's body.
    pub(super) fn tei(refusal: impl Into<Refusal>) -> Self {
        Self {
            refusal: refusal.into(),
            style: Style::Tei,
        }
    }

    /// The same for clients of KServe.
    pub(super) fn kserve(self) -> Self {
        Self {
            style: Style::Kserve,
            ..self
        }
    }

    /// Fills in the answer that was left empty, keeping the headers that layers have added.
    pub(super) fn write(&self, call: &Call, response: &mut Response) {
        let wire = wire(&self.refusal);
        let message = self.refusal.message(call);
        let body = match self.style {
            Style::Canonical => serde_json::to_vec(&ErrorAnswer {
                error: ErrorDetail {
                    message: message.clone(),
                    kind: wire.kind,
                    param: self.refusal.param(),
                    code: wire.code,
                },
                detail: message.clone(),
                message,
                id: call.id().to_string(),
            }),
            Style::Tei => serde_json::to_vec(&TeiErrorAnswer {
                error: message,
                error_type: wire.tei,
            }),
            Style::Kserve => serde_json::to_vec(&KserveErrorAnswer { error: message }),
        };
        *response.status_mut() = wire.status(self.style == Style::Tei);
        // Strings always serialize; should they not, the status alone must do.
        *response.body_mut() = Body::from(body.unwrap_or_default());
        let headers = response.headers_mut();
        headers.remove(CONTENT_LENGTH);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = retry_after_seconds(&self.refusal, call) {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if let Refusal::Encoding { .. } = self.refusal {
            // RFC 7694: which encodings would be taken.
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(packed::TAKEN));
        }
        // RFC 6750: the scheme, and at least one attribute.
        let bearer = match self.refusal {
            Refusal::Key { .. } => Some("Bearer realm=\"admin\""),
            Refusal::ApiKey { .. } => Some("Bearer realm=\"crossgate\""),
            _ => None,
        };
        if let Some(bearer) = bearer {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(bearer));
        }
    }

    /// For the log, with what clients are not told.
    pub(super) fn reason(&self) -> String {
        self.refusal.reason()
    }
}

impl<T: Into<Refusal>> From<T> for Problem {
    fn from(refusal: T) -> Self {
        Self {
            refusal: refusal.into(),
            style: Style::Canonical,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = StatusCode::INTERNAL_SERVER_ERROR.into_response();
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}

// === impl ScoringErrors ===

impl IntoResponses for ScoringErrors {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        scoring_errors(["ErrorAnswer", "TeiErrorAnswer"])
    }
}

// === impl KserveErrors ===

impl IntoResponses for KserveErrors {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        // What is refused before anybody knows whose route it is looks as everywhere.
        scoring_errors(["KserveErrorAnswer", "ErrorAnswer"])
    }
}

fn scoring_errors(shapes: [&str; 2]) -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
    let lines = SCORING.into_iter();
    lines
        .map(|(status, about)| (status.to_string(), error_response(status, about, shapes)))
        .collect()
}

fn error_response(status: u16, about: &str, shapes: [&str; 2]) -> RefOr<utoipa::openapi::Response> {
    let shapes = shapes.map(Ref::from_schema_name).into_iter();
    let schema = shapes.fold(OneOfBuilder::new(), OneOfBuilder::item);
    let content = ContentBuilder::new().schema(Some(schema)).build();
    let mut response = ResponseBuilder::new()
        .description(about)
        .content("application/json", content);
    if matches!(status, 429 | 503) {
        let seconds = ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(1));
        let header = HeaderBuilder::new()
            .schema(Some(seconds))
            .description(Some("Seconds"))
            .build();
        response = response.header("Retry-After", header);
    }
    response.build().into()
}
