//! Whether it lives, whether it is ready, how it does. Nothing here waits behind inference.

use super::Edge;
use super::answer::json;
use super::layers::Unready;
use crate::load::ModelState;
use crate::shared::{Peer, Shared};
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::RETRY_AFTER;
use axum::response::Response;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::UNIX_EPOCH;
use utoipa::ToSchema;

/// The server's state and each model's.
#[derive(Serialize, ToSchema)]
#[schema(as = Health, example = json!({
    "status": "ok",
    "version": "0.1.0",
    "models_loaded": ["default"],
    "controller": {
        "waiting": 0, "waiting_tokens": 0, "active": 1,
        "available_slots": 255, "max_parallel": 256, "max_queue": 1_048_576
    },
    "model": {
        "backend": "cpu-int8", "source": "cross-encoder/ms-marco-MiniLM-L6-v2", "device": "cpu",
        "cache_enabled": false, "cache_size": 0
    },
    "stats": {"default": {
        "total_requests": 12, "total_batches": 20, "avg_batch_size": 6.5,
        "avg_latency": 0.0101, "throughput": 641.2
    }},
    "peers": []
}))]
pub(super) struct Health {
    /// `ok`, or `not ready:` and the reasons.
    status: String,
    version: &'static str,
    /// Names of the models that serve, the first being the one for requests that name none.
    models_loaded: Vec<String>,
    controller: Controller,
    /// The first model.
    model: Option<FirstModel>,
    stats: BTreeMap<String, Stats>,
    /// Models that fail on other servers, where servers share a Redis.
    peers: Vec<PeerFault>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Controller {
    /// Rows that wait in queues.
    waiting: usize,
    /// Their tokens.
    waiting_tokens: usize,
    /// Requests inside.
    active: usize,
    /// Requests that could come in now.
    available_slots: usize,
    /// Requests inside at most.
    max_parallel: usize,
    /// Tokens that may wait for a model.
    max_queue: usize,
}

#[derive(Serialize, ToSchema)]
pub(super) struct FirstModel {
    /// The plugin's name.
    backend: String,
    /// Where the model came from.
    source: String,
    device: String,
    cache_enabled: bool,
    cache_size: u64,
}

/// One model's work since it went live.
#[derive(Serialize, ToSchema)]
pub(super) struct Stats {
    total_requests: u64,
    total_batches: u64,
    /// Rows in a batch.
    avg_batch_size: f64,
    /// Seconds in the backend for a batch.
    avg_latency: f64,
    /// Rows for each second in the backend.
    throughput: f64,
}

/// A model that fails on another server.
#[derive(Serialize, ToSchema)]
pub(super) struct PeerFault {
    /// The server's name: its host's, and some digits.
    server: String,
    model: String,
    plugin: String,
    reason: String,
    /// Unix time in seconds, by that server's clock.
    since: u64,
}

/// Liveness, or readiness with what is missing.
#[derive(Serialize, ToSchema)]
pub(super) struct Ready {
    #[schema(example = "ok")]
    status: &'static str,
    /// What keeps the server from taking requests.
    reasons: Vec<String>,
}

/// Names and addresses.
#[derive(Serialize, ToSchema)]
pub(super) struct Root {
    name: &'static str,
    version: &'static str,
    docs: &'static str,
    openapi: &'static str,
    health: &'static str,
}

/// What this is and where to go on
#[utoipa::path(get, path = "/", tag = "health", responses(
    (status = 200, description = "Where to go on", body = Root),
))]
pub(super) async fn root(State(edge): State<Arc<Edge>>) -> Response {
    let version = edge.settings.version;
    let root = Root {
        name: "crossgate",
        version,
        docs: "/docs",
        openapi: "/openapi.json",
        health: "/health",
    };
    json(StatusCode::OK, &root)
}

/// State of the server and of each model
#[utoipa::path(get, path = "/health", tag = "health", responses(
    (status = 200, description = "Ready", body = Health),
    (status = 503, description = "Not ready; `status` says why", body = Health,
        headers(("Retry-After" = u64, description = "Seconds"))),
))]
pub(super) async fn health(State(edge): State<Arc<Edge>>) -> Response {
    view(&edge)
}

/// Whether the process answers at all
#[utoipa::path(get, path = "/livez", tag = "health", responses(
    (status = 200, description = "It lives", body = Ready),
))]
pub(super) async fn livez() -> Response {
    json(
        StatusCode::OK,
        &Ready {
            status: "ok",
            reasons: Vec::new(),
        },
    )
}

/// Whether requests for scores are taken
#[utoipa::path(get, path = "/readyz", tag = "health", responses(
    (status = 200, description = "Ready", body = Ready),
    (status = 503, description = "Not ready, and why", body = Ready,
        headers(("Retry-After" = u64, description = "Seconds"))),
))]
pub(super) async fn readyz(State(edge): State<Arc<Edge>>) -> Response {
    let reasons = edge.catalog.not_ready();
    let status = if reasons.is_empty() {
        "ok"
    } else {
        "not ready"
    };
    let why = reasons.join("; ");
    answer(&why, &Ready { status, reasons })
}

/// Nobody knows how long loading takes; who asks every second sees the end soon enough.
const RETRY_AFTER_SECONDS: u64 = 1;

/// The server's state, as public and admin listener show it.
pub(super) fn view(edge: &Edge) -> Response {
    let why = edge.catalog.not_ready().join("; ");
    answer(&why, &describe(edge, &why))
}

/// `why` it is not ready; empty when it is.
fn answer(why: &str, body: &impl Serialize) -> Response {
    if why.is_empty() {
        return json(StatusCode::OK, body);
    }
    let mut response = json(StatusCode::SERVICE_UNAVAILABLE, body);
    let headers = response.headers_mut();
    headers.insert(RETRY_AFTER, RETRY_AFTER_SECONDS.into());
    response.extensions_mut().insert(Unready(why.to_owned()));
    response
}

fn describe(edge: &Edge, why: &str) -> Health {
    let models = edge.catalog.models();
    // Those that the door counts: a client that sees a free slot here is let in.
    let active = edge.door.inside();
    let max_parallel = edge.settings.requests_max;
    let cache = edge.control.cache();
    Health {
        status: if why.is_empty() {
            "ok".to_owned()
        } else {
            format!("not ready: {why}")
        },
        version: edge.settings.version,
        models_loaded: models.iter().map(|model| model.name.to_string()).collect(),
        controller: Controller {
            waiting: models.iter().map(|model| model.load.queue_rows).sum(),
            waiting_tokens: models.iter().map(|model| model.load.queue_tokens).sum(),
            active,
            available_slots: max_parallel.saturating_sub(active),
            max_parallel,
            max_queue: edge.settings.queue_tokens_max,
        },
        model: models.first().map(|model| FirstModel {
            backend: model.plugin.0.clone(),
            source: model.source.clone(),
            device: model.device.clone(),
            cache_enabled: cache.is_enabled,
            cache_size: cache.entries,
        }),
        stats: models
            .iter()
            .map(|model| (model.name.to_string(), stats(model)))
            .collect(),
        peers: peers(edge),
    }
}

fn peers(edge: &Edge) -> Vec<PeerFault> {
    let peers = edge.shared.as_ref().map(Shared::peers).unwrap_or_default();
    let row = |peer: Peer| PeerFault {
        server: peer.server,
        model: peer.fault.model,
        plugin: peer.fault.plugin,
        reason: peer.fault.reason,
        since: peer
            .since
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
    };
    peers.into_iter().map(row).collect()
}

fn stats(model: &ModelState) -> Stats {
    let totals = &model.totals;
    let seconds = totals.inference.as_secs_f64();
    // Nothing yet is 0, not a number that JSON has no word for.
    let ratio = |of: f64, to: f64| if to > 0.0 { of / to } else { 0.0 };
    Stats {
        total_requests: totals.requests,
        total_batches: totals.batches,
        avg_batch_size: ratio(totals.rows as f64, totals.batches as f64),
        avg_latency: ratio(seconds, totals.batches as f64),
        throughput: ratio(totals.rows as f64, seconds),
    }
}
