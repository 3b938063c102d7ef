//! Receiving a request for scores: at the door first, then its body, within bounds of bytes and
//! time.

use super::Edge;
use super::body::Metered;
use super::call::Call;
use super::packed::Packing;
use super::problem::Problem;
use super::wire::Refusal;
use crate::intake::{Pass, Weight};
use crate::score::{Form, Priority, ScoreError, ScoreRequest, Texts};
use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// By this header a client asks for less time than the server allows.
pub(super) const TIMEOUT_MS: &str = "x-request-timeout-ms";

/// By this header a client says how urgent its request is, where the dialect's body has no word for it.
pub(super) const PRIORITY: &str = "x-priority";

/// KServe's header: so many of a body's bytes are JSON, and what follows them are tensors.
pub(super) const JSON_BYTES: &str = "inference-header-content-length";

/// The longest that a refused body is read for.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(1);

/// A received body and the right to have it answered.
pub(super) struct Post {
    pub(super) call: Call,
    pub(super) body: Bytes,
    deadline: Instant,
    /// By its header.
    priority: Priority,
    /// Given back when the answer has been made.
    pass: Pass,
}

// === impl Post ===

impl Post {
    /// What the core is asked.
    pub(super) fn question(
        &self,
        model: Option<String>,
        rows: Vec<Texts>,
        form: Form,
    ) -> ScoreRequest {
        self.call
            .question(model, rows, form, self.deadline, self.priority)
    }

    /// What it counts for at the door until its answer has been sent.
    pub(super) fn weight(&self) -> Arc<Weight> {
        Arc::clone(self.pass.weight())
    }

    async fn receive(edge: &Edge, request: Request) -> Result<Self, Refusal> {
        let (parts, body) = request.into_parts();
        let call = Call::of(&parts.extensions);
        check_media_type(&parts.headers)?;
        let packing = Packing::of(&parts.headers)?;
        let bytes_max = edge.settings.body_bytes_max;
        let announced = content_length(&parts.headers);
        if announced.is_some_and(|bytes| bytes > bytes_max as u64) {
            return Err(Refusal::BodyTooLarge { bytes_max });
        }
        let timeout = edge.settings.request_timeout;
        let deadline = call.deadline(timeout, client_timeout(&parts.headers)?);
        let priority = header_priority(&parts.headers)?;
        // Before the first byte: who is not let in costs no memory.
        let head = (&parts.headers, &parts.extensions);
        let pass = match edge.enter(head, announced).await {
            Ok(pass) => pass,
            Err(error) => {
                if announced.is_some() {
                    drain(body).await;
                }
                return Err(error.into());
            }
        };
        let body = packing.unpack(body);
        let mut body = Metered::new(body, Arc::clone(pass.weight()), bytes_max);
        let collected = tokio::time::timeout_at(deadline.into(), body.whole()).await;
        let bytes = match collected {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(refusal)) => {
                if announced.is_some() && matches!(refusal, Refusal::Score(_)) {
                    drain(body.rest()).await;
                }
                return Err(refusal);
            }
            Err(_) => {
                let after = call.elapsed();
                return Err(Refusal::BodyLate { after });
            }
        };
        Ok(Self {
            call,
            body: bytes,
            deadline,
            priority,
            pass,
        })
    }
}

impl FromRequest<Arc<Edge>> for Post {
    type Rejection = Problem;

    async fn from_request(request: Request, edge: &Arc<Edge>) -> Result<Self, Problem> {
        Ok(Self::receive(edge, request).await?)
    }
}

/// What the client announces, where it does.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// JSON under any of its names; a client that says nothing is believed to send it.
fn check_media_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return Ok(());
    };
    let found = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
    let essence = found.split(';').next().unwrap_or_default().trim();
    let is_json = matches!(essence, "application/json" | "text/json")
        || (essence.starts_with("application/") && essence.ends_with("+json"));
    let has_tensors = essence == "application/octet-stream" && headers.contains_key(JSON_BYTES);
    if is_json || has_tensors {
        Ok(())
    } else {
        Err(Refusal::MediaType {
            found: essence.to_owned(),
        })
    }
}

fn client_timeout(headers: &HeaderMap) -> Result<Option<Duration>, ScoreError> {
    let Some(value) = headers.get(TIMEOUT_MS) else {
        return Ok(None);
    };
    let ms = value
        .to_str()
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok())
        .filter(|&ms| ms > 0);
    match ms {
        Some(ms) => Ok(Some(Duration::from_millis(ms))),
        None => Err(ScoreError::invalid(
            TIMEOUT_MS,
            "is not a whole number of milliseconds above 0; send one, or none",
        )),
    }
}

fn header_priority(headers: &HeaderMap) -> Result<Priority, ScoreError> {
    let Some(value) = headers.get(PRIORITY) else {
        return Ok(Priority::default());
    };
    let said = priority(PRIORITY, &String::from_utf8_lossy(value.as_bytes()))?;
    Ok(said.unwrap_or_default())
}

/// What a client's word for it means; `None` for nothing. vLLM's clients send numbers, of which the lowest
/// is served first and 0 is what they send without meaning anything.
pub(super) fn priority(param: &str, text: &str) -> Result<Option<Priority>, ScoreError> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    if let Ok(number) = text.parse::<i64>() {
        return Ok(match number.signum() {
            -1 => Some(Priority::High),
            0 => None,
            _ => Some(Priority::Low),
        });
    }
    let why =
        "is none of high, normal and low, and no whole number; send one of them, or leave it out";
    let found = Priority::parse(text).ok_or_else(|| ScoreError::invalid(param, why))?;
    Ok(Some(found))
}

/// Reads a body of bounded length without keeping it. Closing a connection on which bytes are still
/// arriving resets it, and the client would see that instead of `Retry-After`.
async fn drain(mut body: Body) {
    let all = async { while body.frame().await.is_some_and(|frame| frame.is_ok()) {} };
    // Who is slower than this must live with the reset.
    _ = tokio::time::timeout(DRAIN_TIME_MAX, all).await;
}
