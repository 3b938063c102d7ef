//! Swaps, as operators order them: the answer is the end, or every step as it comes (Server-Sent Events).

use super::Edge;
use super::answer::json;
use super::json;
use super::problem::Problem;
use super::wire::Refusal;
use crate::control::{SwapError, SwapOrder, SwapState, SwapStep};
use crate::score::ScoreError;
use axum::body::{Bytes, to_bytes};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::ACCEPT;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

/// An order is a few names and options.
const ORDER_BYTES_MAX: usize = 64 << 10;
/// How long a generation is watched unless the order says otherwise.
const PROBATION: Duration = Duration::from_secs(60);
/// What served before keeps its memory for so long at most.
const PROBATION_MAX: Duration = Duration::from_secs(24 * 3_600);

/// What is to be changed. What is not said stays as it is.
#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct Body {
    plugin: Option<String>,
    sha256: Option<String>,
    dtype: Option<String>,
    device: Option<String>,
    options: Option<Value>,
    source: Option<String>,
    expect_change: bool,
    probation_s: Option<f64>,
}

/// One step, as it is told.
#[derive(Serialize)]
struct Told {
    state: &'static str,
    detail: String,
    /// Since the order.
    seconds: f64,
}

/// A swap that has gone live.
#[derive(Serialize)]
struct Swapped {
    model: String,
    state: &'static str,
    steps: Vec<Told>,
}

/// Has `model` served by something else.
pub(super) async fn swap(
    edge: &Edge,
    model: String,
    request: Request,
) -> Result<Response, Problem> {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, ORDER_BYTES_MAX).await.map_err(|_| {
        let bytes_max = ORDER_BYTES_MAX;
        Refusal::BodyTooLarge { bytes_max }
    })?;
    let order = order(model.clone(), &body)?;
    let steps = edge.control.swap(order)?;
    let accepts = head
        .headers
        .get(ACCEPT)
        .and_then(|accept| accept.to_str().ok());
    if accepts.is_some_and(|accept| accept.contains("text/event-stream")) {
        return Ok(stream(steps));
    }
    Ok(end(model, steps).await?)
}

/// Has what served `model` before serve again.
pub(super) fn rollback(edge: &Edge, model: &str) -> Result<Response, Problem> {
    edge.control.rollback(model)?;
    let state = SwapState::RolledBack.name();
    let (model, steps) = (model.to_owned(), Vec::new());
    Ok(json(
        StatusCode::ACCEPTED,
        &Swapped {
            model,
            state,
            steps,
        },
    ))
}

fn order(model: String, body: &Bytes) -> Result<SwapOrder, Refusal> {
    let said: Body = if body.is_empty() {
        Body::default()
    } else {
        json::parse(body)?
    };
    let probation = match said.probation_s {
        None => PROBATION,
        Some(seconds) => Duration::try_from_secs_f64(seconds)
            .ok()
            .filter(|probation| *probation <= PROBATION_MAX)
            .ok_or_else(|| {
                let most = PROBATION_MAX.as_secs();
                let why = format!("{seconds} is no time; expected seconds from 0 to {most}");
                ScoreError::invalid("probation_s", why)
            })?,
    };
    let options = match said.options {
        None => None,
        Some(Value::Object(options)) => Some(Value::Object(options).to_string()),
        Some(other) => {
            let why = format!("expected an object of the plugin's options, found {other}");
            return Err(ScoreError::invalid("options", why).into());
        }
    };
    Ok(SwapOrder {
        model,
        plugin: said.plugin,
        sha256: said.sha256,
        dtype: said.dtype,
        device: said.device,
        options,
        source: said.source,
        expect_change: said.expect_change,
        probation,
    })
}

/// Every step to the last, that of the probation.
fn stream(steps: mpsc::Receiver<SwapStep>) -> Response {
    let events = ReceiverStream::new(steps).map(|step| {
        let event = Event::default().event(step.state.name());
        let told = serde_json::to_string(&Told::from(step)).unwrap_or_default();
        Ok::<_, Infallible>(event.data(told))
    });
    Sse::new(events)
        .keep_alive(KeepAlive::default())
        .into_response()
}

/// Waits until it serves, or does not.
async fn end(model: String, mut reached: mpsc::Receiver<SwapStep>) -> Result<Response, Refusal> {
    let mut steps = Vec::new();
    while let Some(step) = reached.recv().await {
        let state = step.state;
        if state.is_served() {
            steps.push(Told::from(step));
            let state = state.name();
            return Ok(json(
                StatusCode::OK,
                &Swapped {
                    model,
                    state,
                    steps,
                },
            ));
        }
        if state.is_last() {
            return Err(Refusal::NotSwapped { why: step.detail });
        }
        steps.push(Told::from(step));
    }
    let why = "it ended without a word; the log says more".to_owned();
    Err(Refusal::NotSwapped { why })
}

impl From<SwapStep> for Told {
    fn from(step: SwapStep) -> Self {
        Self {
            state: step.state.name(),
            detail: step.detail,
            seconds: step.after.as_secs_f64(),
        }
    }
}

impl From<SwapError> for Problem {
    fn from(error: SwapError) -> Self {
        match error {
            SwapError::Model(error) => error.into(),
            SwapError::NotNow(why) => Refusal::NotSwapped { why }.into(),
        }
    }
}
