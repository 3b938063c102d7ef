//! The admin listener: for the machine's own operators, on a loopback address or a socket; for others who show
//! its key.

use super::Edge;
use super::answer::json;
use super::http::{no_route, panicked, wrong_method};
use super::key::{Key, check_key};
use super::layers::{Protocol, Watch, watch};
use super::problem::Problem;
use super::wire::Refusal;
use super::{health, models, swap};
use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::http::header::{HOST, ORIGIN};
use axum::http::uri::Authority;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};
use serde::Serialize;
use std::net::IpAddr;
use std::sync::Arc;
use tower_http::catch_panic::CatchPanicLayer;

const ROUTES: [&str; 9] = [
    "/plugins",
    "/models",
    "/health",
    CLEAR,
    RESET,
    "/models/{model}/swap",
    "/models/{model}/rollback",
    "/models/{model}/load",
    "/models/{model}/unload",
];
/// Forgets all kept scores.
const CLEAR: &str = "/cache/clear";
/// Has the JSON of `/metrics` count anew.
const RESET: &str = "/metrics/reset";
/// What is told to those who ask for a route that there is not.
const ROUTES_SHOWN: &str = "the admin listener has GET /plugins, /models and /health, POST /cache/clear and \
     /metrics/reset, and POST /models/{model}/swap, /rollback, /load and /unload; all else is at the public port";

/// One library file that the gateway looked at.
#[derive(Clone, Debug, Serialize)]
pub struct PluginRow {
    /// The plugin's name, as users write it: `cpu-int8`; empty when it was refused.
    pub name: String,
    /// The plugin's own version.
    pub version: String,
    /// The library file.
    pub path: String,
    /// Of its content, in hexadecimal; none if it could not be read as a plugin.
    pub sha256: Option<String>,
    /// Devices it can run on, best first.
    pub devices: Vec<String>,
    /// Data types it can compute in, best first.
    pub dtypes: Vec<String>,
    /// Architectures it can load; empty for any.
    pub architectures: Vec<String>,
    /// Why it was refused.
    pub refused: Option<String>,
}

/// Lists plugins as they are at the time of asking.
type Plugins = Arc<dyn Fn() -> Vec<PluginRow> + Send + Sync>;

struct Admin {
    edge: Edge,
    plugins: Plugins,
}

/// What is served to operators; to those who show the `key`, where there is one.
pub fn admin(
    edge: Edge,
    key: Option<Key>,
    plugins: impl Fn() -> Vec<PluginRow> + Send + Sync + 'static,
) -> Router {
    let observer = Watch::new(Protocol::Admin, ROUTES.to_vec(), Arc::clone(&edge.metrics));
    Router::new()
        .route("/plugins", get(list_plugins))
        .route("/models", get(list_models))
        .route("/health", get(show_health))
        .route(CLEAR, post(clear_cache))
        .route(RESET, post(reset_metrics))
        .route("/models/{*deed}", post(act_on_model))
        .fallback(async |request: Request| no_route(&request, &ROUTES, ROUTES_SHOWN))
        .method_not_allowed_fallback(async |request: Request| {
            let path = request.uri().path();
            let is_order = [CLEAR, RESET].contains(&path) || deed(path).is_some();
            wrong_method(&request, if is_order { "POST" } else { "GET" })
        })
        .layer(from_fn_with_state(key.is_some(), check_caller))
        .layer(from_fn_with_state(key, check_key))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(observer, watch))
        .with_state(Arc::new(Admin {
            edge,
            plugins: Arc::new(plugins),
        }))
}

async fn list_plugins(State(admin): State<Arc<Admin>>) -> Response {
    json(StatusCode::OK, &(admin.plugins)())
}

async fn list_models(State(admin): State<Arc<Admin>>) -> Response {
    json(
        StatusCode::OK,
        &models::view(&admin.edge, models::Viewer::Operator),
    )
}

async fn show_health(State(admin): State<Arc<Admin>>) -> Response {
    health::view(&admin.edge)
}

/// What stands before the deed is a model's name, which may be a path.
async fn act_on_model(
    State(admin): State<Arc<Admin>>,
    Path(path): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    match deed(&path) {
        Some((model, deed)) => swap::act(&admin.edge, model, deed, request).await,
        None => Err(Refusal::NoRoute {
            method: request.method().to_string(),
            path: request.uri().path().to_owned(),
            instead: ROUTES_SHOWN.to_owned(),
        }
        .into()),
    }
}

/// What the end of a path orders, and what stands before it: a name. Requests that name no model mean the
/// first one; an order to take that away must say so.
fn deed(path: &str) -> Option<(&str, &'static str)> {
    let mut deeds = swap::DEEDS.into_iter();
    let found = deeds.find_map(|deed| Some((path.strip_suffix(deed)?, deed)));
    found.filter(|(model, _)| !model.is_empty())
}

/// What came of clearing the cache.
#[derive(Serialize)]
struct Cleared {
    /// Pairs that were kept in memory.
    cleared: u64,
    /// What could not be cleared.
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
}

async fn clear_cache(State(admin): State<Arc<Admin>>) -> Response {
    let control = &admin.edge.control;
    let cleared = control.cache().entries;
    let failed = control.clear_cache().await.err();
    let status = if failed.is_none() {
        StatusCode::OK
    } else {
        StatusCode::BAD_GATEWAY
    };
    json(status, &Cleared { cleared, failed })
}

/// What came of counting anew.
#[derive(Serialize)]
struct Reset {
    reset: bool,
}

async fn reset_metrics(State(admin): State<Arc<Admin>>) -> Response {
    admin.edge.metrics.reset();
    json(StatusCode::OK, &Reset { reset: true })
}

/// A web page can make a browser call this listener by a name of its own that resolves to this
/// machine (DNS rebinding): such a call's Host is that name, neither `localhost` nor an address. Or by
/// this machine's address: such a call's Origin is the page's. No page has the key, so that who has shown it
/// may use any name for this machine.
async fn check_caller(
    State(has_shown_key): State<bool>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    match foreign_caller(&request, has_shown_key) {
        None => Ok(next.run(request).await),
        Some(refusal) => Err(refusal.into()),
    }
}

/// Why a call is refused: the name by which it came, or the page from which it did, is not this machine's.
fn foreign_caller(request: &Request, by_any_name: bool) -> Option<Refusal> {
    let text = |name| {
        let value = request.headers().get(name)?;
        Some(value.to_str().unwrap_or_default())
    };
    let host = text(HOST).or_else(|| request.uri().authority().map(Authority::as_str));
    let host = host.unwrap_or_default();
    if host.is_empty() || !(by_any_name || is_this_machine(host)) {
        let found = host.to_owned();
        return Some(Refusal::ForeignHost { found });
    }
    let origin = text(ORIGIN)?;
    let page = origin.rsplit("://").next().unwrap_or_default();
    let found = origin.to_owned();
    (!is_this_machine(page)).then_some(Refusal::ForeignPage { found })
}

fn is_this_machine(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else {
        return false;
    };
    let name = authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_are_this_machine() {
        for good in [
            "localhost",
            "LOCALHOST:9001",
            "127.0.0.1:9001",
            "[::1]:9001",
            "10.0.0.7",
        ] {
            assert!(is_this_machine(good), "{good}");
        }
        for bad in [
            "",
            "evil.example",
            "localhost.evil.example:9001",
            "127.0.0.1.nip.io",
            "::1:x",
        ] {
            assert!(!is_this_machine(bad), "{bad}");
        }
    }
}
