//! Swaps, as operators order them: the answer is the end, or every step as it comes (Server-Sent Events).

use super::Edge;
use super::answer::json;
use super::json;
use super::problem::Problem;
use super::wire::Refusal;
use crate::control::{PROBATION, ShadowOrder, SwapError, SwapOrder, SwapState, SwapStep};
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
/// How long requests are tried out unless the order says otherwise.
const SHADOW: Duration = Duration::from_secs(10);
/// What served before keeps its memory for so long at most.
const TIME_MAX: Duration = Duration::from_secs(24 * 3_600);

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
    shadow_fraction: Option<f64>,
    shadow_s: Option<f64>,
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

/// What has been done, as it was ordered.
#[derive(Serialize)]
struct Swapped {
    model: String,
    state: &'static str,
    steps: Vec<Told>,
}

/// What can be done with a model; each stands at the end of a path.
pub(super) const DEEDS: [&str; 4] = ["/swap", "/rollback", "/load", "/unload"];

/// Does what the path says with `model`: has it served by something else, or by what served before; loads it,
/// or takes it away.
pub(super) async fn act(
    edge: &Edge,
    model: &str,
    deed: &str,
    request: Request,
) -> Result<Response, Problem> {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, ORDER_BYTES_MAX).await.map_err(|error| {
        let (param, most) = ("body".to_owned(), ORDER_BYTES_MAX);
        let why = format!("it does not arrive whole ({error}); an order has at most {most} bytes");
        ScoreError::TooLarge { param, why }
    })?;
    let (control, ordered) = (&edge.control, || order(model, &body));
    let (steps, is_done): (_, fn(SwapState) -> bool) = match deed {
        "/rollback" => (control.rollback(model)?, |state| {
            state == SwapState::RolledBack
        }),
        // It has no probation: when it is there the next order may come.
        "/load" => (control.load(ordered()?)?, |state| {
            state == SwapState::Confirmed
        }),
        "/unload" => (control.unload(model)?, |state| state == SwapState::Unloaded),
        _ => (control.swap(ordered()?)?, SwapState::is_served),
    };
    let accepts = head
        .headers
        .get(ACCEPT)
        .and_then(|accept| accept.to_str().ok());
    if accepts.is_some_and(|accept| accept.contains("text/event-stream")) {
        return Ok(stream(steps));
    }
    Ok(end(model, steps, is_done).await?)
}

fn order(model: &str, body: &Bytes) -> Result<SwapOrder, Refusal> {
    let said: Body = if body.is_empty() {
        Body::default()
    } else {
        json::parse(body)?
    };
    let probation = time("probation_s", said.probation_s)?.unwrap_or(PROBATION);
    let shadow_time = time("shadow_s", said.shadow_s)?;
    let shadow = match said.shadow_fraction {
        None if shadow_time.is_some() => {
            let why = "says for how long requests are tried out; shadow_fraction must say how many of them";
            return Err(ScoreError::invalid("shadow_s", why).into());
        }
        None | Some(0.0) => None,
        Some(share) if 0.0 < share && share <= 1.0 => {
            let time = shadow_time.unwrap_or(SHADOW);
            Some(ShadowOrder { share, time })
        }
        Some(other) => {
            let why = format!("{other} is no share; expected a number from 0 to 1");
            return Err(ScoreError::invalid("shadow_fraction", why).into());
        }
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
        model: model.to_owned(),
        plugin: said.plugin,
        sha256: said.sha256,
        dtype: said.dtype,
        device: said.device,
        options,
        source: said.source,
        expect_change: said.expect_change,
        shadow,
        probation,
    })
}

fn time(param: &str, seconds: Option<f64>) -> Result<Option<Duration>, ScoreError> {
    let Some(seconds) = seconds else {
        return Ok(None);
    };
    let time = Duration::try_from_secs_f64(seconds).ok();
    let time = time.filter(|time| *time <= TIME_MAX).ok_or_else(|| {
        let most = TIME_MAX.as_secs();
        let why = format!("{seconds} is no time; expected seconds from 0 to {most}");
        ScoreError::invalid(param, why)
    })?;
    Ok(Some(time))
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

/// Waits until what was ordered is done, or is not going to be.
async fn end(
    model: &str,
    mut reached: mpsc::Receiver<SwapStep>,
    is_done: fn(SwapState) -> bool,
) -> Result<Response, Refusal> {
    let mut steps = Vec::new();
    while let Some(step) = reached.recv().await {
        let state = step.state;
        if is_done(state) {
            steps.push(Told::from(step));
            let told = Swapped {
                model: model.to_owned(),
                state: state.name(),
                steps,
            };
            return Ok(json(StatusCode::OK, &told));
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
