//! The HTTP listener: every route, once, with its documentation.

use super::cors::cors;
use super::docs::Preface;
use super::keyring::{Gate, check_keys};
use super::kserve::http as kserve;
use super::layers::{Protocol, Watch, panic_error, watch};
use super::packed::{accept_plain, packing};
use super::problem::Problem;
use super::wire::Refusal;
use super::{Edge, classify, docs, health, metrics, models, nim, predict, rerank, tei, vllm};
use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::middleware::{from_fn_with_state, map_request};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post as post_to};
use std::any::Any;
use std::sync::{Arc, OnceLock};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi as _;
use utoipa::openapi::{OpenApi, Paths};
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};
use utoipa_axum::routes;

/// Handlers and their documentation together, so that neither has a route that the other lacks.
pub(super) struct Book {
    pages: OpenApiRouter<Arc<Edge>>,
    routes: Vec<&'static str>,
    /// Those of the routes that are posted to.
    posts: Vec<&'static str>,
}

/// What is served to the public.
pub fn http(edge: Edge) -> Router {
    let book = book();
    let observer = Watch::new(
        Protocol::Http,
        book.routes.clone(),
        Arc::clone(&edge.metrics),
    );
    let gate = Gate {
        keys: edge.keys.clone(),
        protocol: Protocol::Http,
        metrics: Arc::clone(&edge.metrics),
    };
    let (known, posts) = (book.routes.clone(), book.posts.clone());
    let (router, _) = book.split();
    router
        .fallback(async move |request: Request| no_route(&request, &known, ROUTES_SHOWN))
        .method_not_allowed_fallback(async move |matched: MatchedPath, request: Request| {
            // No route takes both.
            let allowed = if posts.contains(&matched.as_str()) {
                "POST"
            } else {
                "GET"
            };
            wrong_method(&request, allowed)
        })
        .layer(packing())
        .layer(map_request(accept_plain))
        .layer(from_fn_with_state(gate, check_keys))
        .layer(cors(&edge.settings.cors_origins))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(observer, watch))
        .with_state(Arc::new(edge))
}

/// Every route.
pub(super) fn book() -> Book {
    Book::new()
        .page(&rerank::PATHS, routes!(rerank::rerank))
        .page(&vllm::PATHS, routes!(vllm::score))
        .page(&nim::PATHS, routes!(nim::rank))
        .page(&["/v1/retrieval/{model}/reranking"], routes!(nim::rank_by))
        .page(&["/predict"], routes!(predict::predict))
        .page(&classify::PATHS, routes!(classify::classify))
        .page(&["/info"], routes!(tei::info))
        .page(&["/models"], routes!(models::models))
        .page(&["/v1/models"], routes!(models::list))
        .page(&["/v1/models/{id}"], routes!(models::one))
        .page(&["/health"], routes!(health::health))
        .page(
            &["/livez", "/ping", "/v1/health/live"],
            routes!(health::livez),
        )
        .page(&["/readyz", "/v1/health/ready"], routes!(health::readyz))
        .page(&["/metrics"], routes!(metrics::metrics))
        .page(&["/v2"], routes!(kserve::server))
        .page(&["/v2/health/live"], routes!(kserve::live))
        .page(&["/v2/health/ready"], routes!(kserve::ready))
        .page(&["/v2/models/{id}"], routes!(kserve::model))
        .page(&["/v2/models/{id}/ready"], routes!(kserve::model_ready))
        .page(&["/v2/models/{id}/infer"], routes!(kserve::infer))
        .page(&["/openapi.json"], routes!(docs::openapi_json))
        .page(&["/docs"], routes!(docs::docs))
        .page(&["/"], routes!(health::root))
        .part("/v1/models/{owner}/{name}", get(models::one_of_owner))
        .posted_part(
            "/v1/retrieval/{owner}/{name}/reranking",
            post_to(nim::rank_by_owners),
        )
        .part(kserve::VERSION, get(kserve::model))
        .part(kserve::VERSION_READY, get(kserve::model_ready))
        .posted_part(kserve::VERSION_INFER, post_to(kserve::infer))
        .part(kserve::OWNED, get(kserve::model))
        .part(kserve::OWNED_READY, get(kserve::model_ready))
        .posted_part(kserve::OWNED_INFER, post_to(kserve::infer))
        .part("/docs/", get(docs::page))
        .part("/docs/{*path}", get(docs::asset))
}

/// Whether a route scores: those that are posted to do.
pub(super) fn scores(route: &str) -> bool {
    static POSTS: OnceLock<Vec<&str>> = OnceLock::new();
    POSTS.get_or_init(|| book().posts).contains(&route)
}

/// What is told to those who ask for a route that there is not.
const ROUTES_SHOWN: &str = "there is POST /rerank, /v1/rerank and /v2/rerank, GET /health, /models and /metrics, \
     and GET /docs shows all";

/// No route: says which of the `known` is meant, or else which are `shown`.
pub(super) fn no_route(request: &Request, known: &[&'static str], shown: &str) -> Problem {
    let path = request.uri().path();
    // `/rerank/`, `//rerank` and `/Rerank` have the words of `/rerank`.
    let words = |path: &str| -> Vec<String> {
        path.split('/')
            .filter(|word| !word.is_empty())
            .map(str::to_ascii_lowercase)
            .collect()
    };
    let found = words(path);
    let near = known.iter().find(|route| words(route) == found);
    Refusal::NoRoute {
        method: request.method().to_string(),
        path: path.to_owned(),
        instead: near.map_or_else(|| shown.to_owned(), |near| format!("call {near}")),
    }
    .into()
}

/// Another method than the route's.
pub(super) fn wrong_method(request: &Request, allowed: &'static str) -> Problem {
    let (method, path) = (
        request.method().to_string(),
        request.uri().path().to_owned(),
    );
    Refusal::WrongMethod {
        method,
        path,
        allowed,
    }
    .into()
}

/// A mistake of ours, as an answer.
pub(super) fn panicked(panic: Box<dyn Any + Send>) -> Response {
    Problem::from(panic_error(&*panic)).into_response()
}

// === impl Book ===

impl Book {
    fn new() -> Self {
        Self {
            pages: OpenApiRouter::with_openapi(Preface::openapi()),
            routes: Vec::new(),
            posts: Vec::new(),
        }
    }

    /// A documented handler, under each of its paths.
    fn page(mut self, paths: &[&'static str], page: UtoipaMethodRouter<Arc<Edge>>) -> Self {
        for &path in paths {
            let (schemas, documented, handler) = page.clone();
            if documented.paths.values().any(|item| item.post.is_some()) {
                self.posts.push(path);
            }
            self.pages = self.pages.routes((schemas, at(path, documented), handler));
            self.routes.push(path);
        }
        self
    }

    /// A part of a page, which needs no documentation of its own.
    fn part(mut self, path: &'static str, handler: MethodRouter<Arc<Edge>>) -> Self {
        self.pages = self.pages.route(path, handler);
        self.routes.push(path);
        self
    }

    /// The same, posted to.
    fn posted_part(mut self, path: &'static str, handler: MethodRouter<Arc<Edge>>) -> Self {
        self.posts.push(path);
        self.part(path, handler)
    }

    pub(super) fn split(self) -> (Router<Arc<Edge>>, OpenApi) {
        self.pages.split_for_parts()
    }
}

/// The one documented path moved to `path`, under an operation id of its own.
fn at(path: &str, documented: Paths) -> Paths {
    let mut moved = Paths::new();
    for (_, mut item) in documented.paths {
        let words = path
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|word| !word.is_empty());
        let name = words.collect::<Vec<_>>().join("_");
        for (method, operation) in [("get", &mut item.get), ("post", &mut item.post)] {
            if let Some(operation) = operation {
                let name = if name.is_empty() { "root" } else { &name };
                operation.operation_id = Some(format!("{method}_{name}"));
            }
        }
        moved.paths.insert(path.to_owned(), item);
    }
    moved
}
