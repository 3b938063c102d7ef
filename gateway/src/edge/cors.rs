//! Which pages may ask from a browser. No cookie counts here: a page of any origin can do no more than who
//! reaches the server without a browser, and shows a key as they do.

use super::{answer, call, keyring, post};
use axum::http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use axum::http::{HeaderName, Method};
use std::time::Duration;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

/// The pages that may ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// All of them.
    Any,
    /// Those of these origins, such as `https://app.example`; of none, if there are none.
    These(Vec<String>),
}

/// A browser asks again for leave after this time.
const MAX_AGE: Duration = Duration::from_secs(3_600);

/// Answers a browser that asks for leave, and tells it what a page may read.
pub(super) fn cors(origins: &Origins) -> CorsLayer {
    let origins = match origins {
        Origins::Any => AllowOrigin::any(),
        Origins::These(origins) => AllowOrigin::list(
            origins
                .iter()
                // It stands for itself alone, and a list with it is a mistake.
                .filter(|origin| *origin != "*")
                .filter_map(|origin| HeaderValue::from_str(origin).ok()),
        ),
    };
    let shown = [
        keyring::REQUESTS_LEFT,
        keyring::DOCUMENTS_LEFT,
        call::REQUEST_ID,
        answer::ACTIVATION,
        answer::WARNINGS,
        answer::SERVER_TIMING,
    ];
    let shown = shown.map(HeaderName::from_static);
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST, Method::HEAD])
        // By name: `*` would not cover Authorization.
        .allow_headers(AllowHeaders::list([
            AUTHORIZATION,
            CONTENT_ENCODING,
            CONTENT_TYPE,
            HeaderName::from_static(keyring::HEADERS[0]),
            HeaderName::from_static(keyring::HEADERS[1]),
            HeaderName::from_static(call::REQUEST_ID),
            HeaderName::from_static(post::TIMEOUT_MS),
            HeaderName::from_static(post::PRIORITY),
        ]))
        .expose_headers(shown.into_iter().chain([RETRY_AFTER]).collect::<Vec<_>>())
        .max_age(MAX_AGE)
}
