//! `/openapi.json`, written beside the handlers, and the page at `/docs` that shows it, offline.

use super::answer::with_type;
use super::http::book;
use super::keyring::{is_open, speaks_tei};
use super::problem::{ErrorAnswer, Problem, TeiErrorAnswer};
use super::wire::Refusal;
use crate::score::ScoreError;
use axum::body::Body;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::header::LOCATION;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use std::sync::{Arc, OnceLock};
use utoipa::Modify;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, ResponseBuilder};
use utoipa_swagger_ui::Config;

/// What stands above the routes.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Crossgate",
        description = "Relevance scores from cross-encoders, in every dialect that a reranker's \
            client speaks.\n\nEvery answer carries `x-request-id`; a request's own is kept. \
            `X-Request-Timeout-Ms` asks for less time than the server allows. Every error of a \
            route is JSON; what is no HTTP at all is refused with a bare 400 or 431.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    tags(
        (name = "rerank", description = "Documents by their relevance to a query"),
        (name = "score", description = "Scores for pairs of texts"),
        (name = "classify", description = "Texts by label"),
        (name = "models", description = "What serves"),
        (name = "health", description = "How it does"),
        (name = "docs", description = "This description"),
    ),
    components(schemas(ErrorAnswer, TeiErrorAnswer)),
    modifiers(&Bearer),
    // Where the server has no keys, none is asked for.
    security((), ("bearer" = [])),
)]
pub(super) struct Preface;

/// How a key is shown.
struct Bearer;

impl Modify for Bearer {
    fn modify(&self, api: &mut OpenApi) {
        let about = "A key of the server's, where it has any (`server.api_keys`, `server.api_key_file`); the headers \
                     `Api-Key` and `X-API-Key` take it, too. Probes (`/livez`, `/readyz`, `/health` and their other \
                     names) and this description need none.";
        let bearer = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some(about))
            .build();
        let components = api.components.get_or_insert_default();
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    }
}

/// Every route that a key is asked for can answer that none was shown.
fn ask_for_keys(api: &mut OpenApi) {
    let closed = api.paths.paths.iter_mut();
    for (path, item) in closed.filter(|(path, _)| !is_open(path)) {
        let shape = match speaks_tei(path) {
            true => "TeiErrorAnswer",
            false => "ErrorAnswer",
        };
        let content = ContentBuilder::new()
            .schema(Some(Ref::from_schema_name(shape)))
            .build();
        let refused = ResponseBuilder::new()
            .description("The server has API keys, and none of them was shown")
            .content("application/json", content)
            .build();
        for operation in [&mut item.get, &mut item.post].into_iter().flatten() {
            let responses = &mut operation.responses.responses;
            let none = responses.entry("401".to_owned());
            none.or_insert_with(|| RefOr::T(refused.clone()));
        }
    }
}

/// The OpenAPI 3.1 description of every HTTP route, as `/openapi.json` answers it.
pub fn openapi() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let (_, mut api) = book().split();
        ask_for_keys(&mut api);
        // Our own values: this fails in no run or in every test.
        let mut text = api.to_pretty_json().unwrap_or_default();
        text.push('\n');
        text
    })
}

/// This description
#[utoipa::path(get, path = "/openapi.json", tag = "docs", responses(
    (status = 200, description = "OpenAPI 3.1", body = Object),
))]
pub(super) async fn openapi_json() -> Response {
    with_type("application/json", Body::from(openapi()), StatusCode::OK)
}

/// This description as a page to try it out
#[utoipa::path(get, path = "/docs", tag = "docs", responses(
    (status = 307, description = "The page is at `/docs/`"),
))]
pub(super) async fn docs() -> Response {
    // Relative, so that it holds behind a proxy that adds a prefix.
    (
        StatusCode::TEMPORARY_REDIRECT,
        [(LOCATION, HeaderValue::from_static("docs/"))],
    )
        .into_response()
}

/// The page itself.
pub(super) async fn page() -> Result<Response, Problem> {
    file("index.html")
}

/// What the page loads.
pub(super) async fn asset(path: Result<Path<String>, PathRejection>) -> Result<Response, Problem> {
    // A name that is not UTF-8 is no file's.
    file(path.as_ref().map_or("", |path| path))
}

fn file(path: &str) -> Result<Response, Problem> {
    // The page stands at /docs/: relative again.
    let config = Arc::new(Config::from("../openapi.json"));
    match utoipa_swagger_ui::serve(path, config) {
        Ok(Some(file)) => {
            let mut response = Body::from(Bytes::from(file.bytes.into_owned())).into_response();
            super::answer::set(&mut response, "content-type", &file.content_type);
            Ok(response)
        }
        Ok(None) => Err(Refusal::NoRoute {
            method: "GET".to_owned(),
            path: format!("/docs/{path}"),
            instead: "the page is GET /docs".to_owned(),
        }
        .into()),
        Err(error) => Err(ScoreError::Internal {
            why: format!("the page's {path}: {error}"),
        }
        .into()),
    }
}
