//! `/metrics`: Prometheus' text, or the same table as JSON for those who ask for it.

use super::Edge;
use super::answer::{json, with_type};
use crate::telemetry::metrics::{Figure, Series, Spread};
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::header::ACCEPT;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::ToSchema;

/// What Prometheus calls its text format.
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How requests for scores fared, and every metric beside.
#[derive(Serialize, ToSchema)]
#[schema(as = Metrics, example = json!({
    "total_requests": 12, "successful_requests": 11, "failed_requests": 1, "success_rate": 0.9167,
    "avg_wait_time_ms": 1.2, "avg_process_time_ms": 9.8,
    "p50_wait_time_ms": 0.9, "p95_wait_time_ms": 3.1, "p99_wait_time_ms": 4.7,
    "p50_process_time_ms": 9.1, "p95_process_time_ms": 14.2, "p99_process_time_ms": 17.0,
    "metrics": [
        {"name": "crossgate_rows_total", "labels": {"model": "default"}, "value": 130.0}
    ]
}))]
pub(super) struct Summary {
    /// Calls for scores, over HTTP and gRPC, refused ones included.
    total_requests: u64,
    successful_requests: u64,
    failed_requests: u64,
    /// Between 0 and 1; 1 of none at all.
    success_rate: f64,
    /// In the queue.
    avg_wait_time_ms: f64,
    /// In the backend.
    avg_process_time_ms: f64,
    p50_wait_time_ms: f64,
    p95_wait_time_ms: f64,
    p99_wait_time_ms: f64,
    p50_process_time_ms: f64,
    p95_process_time_ms: f64,
    p99_process_time_ms: f64,
    /// Each metric of the text, under each set of labels.
    metrics: Vec<Row>,
}

/// One metric: a number, or how values are spread.
#[derive(Serialize, ToSchema)]
#[schema(as = Metric)]
pub(super) struct Row {
    #[schema(example = "crossgate_rows_total")]
    name: String,
    labels: BTreeMap<String, String>,
    /// Of a counter or a gauge.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<f64>,
    /// Of a histogram: how many values.
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    /// Of a histogram: all values.
    #[serde(skip_serializing_if = "Option::is_none")]
    sum: Option<f64>,
    /// Of a histogram: as its buckets tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    p50: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p95: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p99: Option<f64>,
}

/// Every metric, for Prometheus or as JSON
///
/// JSON for `Accept: application/json` and for `?format=json`. It counts since the start, or since an operator's
/// `POST /metrics/reset`; Prometheus' format always since the start.
#[utoipa::path(get, path = "/metrics", tag = "health",
    params(("format" = Option<String>, Query, description = "`json`, or `prometheus` for the text")),
    responses(
        (status = 200, description = "Prometheus' format, or a table as JSON", content(
            (String = "text/plain"),
            (Summary = "application/json"),
        )),
    )
)]
pub(super) async fn metrics(
    State(edge): State<Arc<Edge>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    if wants_json(query.as_deref().unwrap_or_default(), &headers) {
        return json(StatusCode::OK, &Summary::of(edge.metrics.series()));
    }
    let text = Body::from(edge.metrics.text());
    with_type(PROMETHEUS_TEXT, text, StatusCode::OK)
}

/// What the query says counts more than the header. Browsers and Prometheus take more than JSON, and JSON last.
fn wants_json(query: &str, headers: &HeaderMap) -> bool {
    let format = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("format="));
    if let Some(format) = format {
        return format.eq_ignore_ascii_case("json");
    }
    let accept = headers.get(ACCEPT).map(|value| value.as_bytes());
    let accept = String::from_utf8_lossy(accept.unwrap_or_default()).to_ascii_lowercase();
    accept.trim_start().starts_with("application/json")
}

// === impl Summary ===

impl Summary {
    fn of(series: Vec<Series>) -> Self {
        let calls = series.iter().filter(|one| is_call_for_scores(one));
        let (mut total, mut successful) = (0, 0);
        for call in calls {
            let n = match call.figure {
                Figure::Count(count) => count as u64,
                Figure::Number(_) | Figure::Spread(_) => 0,
            };
            total += n;
            if is_success(call) {
                successful += n;
            }
        }
        let wait = stage(&series, "queue");
        let process = stage(&series, "inference");
        let ms = |spread: &Spread, share| spread.quantile(share) * 1e3;
        Self {
            total_requests: total,
            successful_requests: successful,
            failed_requests: total - successful,
            success_rate: match total {
                0 => 1.0,
                _ => successful as f64 / total as f64,
            },
            avg_wait_time_ms: wait.mean() * 1e3,
            avg_process_time_ms: process.mean() * 1e3,
            p50_wait_time_ms: ms(&wait, 0.5),
            p95_wait_time_ms: ms(&wait, 0.95),
            p99_wait_time_ms: ms(&wait, 0.99),
            p50_process_time_ms: ms(&process, 0.5),
            p95_process_time_ms: ms(&process, 0.95),
            p99_process_time_ms: ms(&process, 0.99),
            metrics: series.into_iter().map(Row::from).collect(),
        }
    }
}

/// Whether it counts calls of a route that scores: all others are documented as GET, or are gRPC's own.
fn is_call_for_scores(one: &Series) -> bool {
    let route = one.label("route");
    one.name == "crossgate_requests_total"
        && match one.label("protocol") {
            "http" => super::http::scores(route),
            "grpc" => !route.starts_with("/grpc."),
            _ => false,
        }
}

/// HTTP's status below 400, or gRPC's 0.
fn is_success(call: &Series) -> bool {
    match (call.label("protocol"), call.label("status").parse::<u16>()) {
        ("grpc", status) => status == Ok(0),
        (_, status) => status.is_ok_and(|status| status < 400),
    }
}

/// How long requests spent in a stage, over all models.
fn stage(series: &[Series], stage: &str) -> Spread {
    let mut all = Spread::default();
    for one in series {
        let is_it = one.name == "crossgate_stage_duration_seconds" && one.label("stage") == stage;
        if let (true, Figure::Spread(spread)) = (is_it, &one.figure) {
            all.add(spread);
        }
    }
    all
}

impl From<Series> for Row {
    fn from(series: Series) -> Self {
        let spread = match &series.figure {
            Figure::Count(_) | Figure::Number(_) => None,
            Figure::Spread(spread) => Some(spread),
        };
        let finite = |number: f64| Some(number).filter(|number| number.is_finite());
        let quantile = |share| spread.and_then(|spread| finite(spread.quantile(share)));
        Self {
            value: match series.figure {
                Figure::Count(number) | Figure::Number(number) => finite(number),
                Figure::Spread(_) => None,
            },
            count: spread.map(|spread| spread.count),
            sum: spread.and_then(|spread| finite(spread.sum)),
            p50: quantile(0.5),
            p95: quantile(0.95),
            p99: quantile(0.99),
            name: series.name,
            labels: series.labels.into_iter().collect(),
        }
    }
}
