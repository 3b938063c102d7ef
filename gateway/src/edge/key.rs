//! The operators' key: who does not show it is not listened to.

use super::problem::Problem;
use super::wire::Refusal;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::Response;

/// How the header begins; clients that leave it out show the bare key.
const SCHEME: &[u8] = b"bearer ";

/// What operators must show. As a digest: `blake3::Hash` compares itself in constant time, and texts of all
/// lengths become equally long, so that how long a refusal takes says nothing about the key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key(blake3::Hash);

/// Lets through who shows the key, and everybody where there is none.
pub(super) async fn check_key(
    State(key): State<Option<Key>>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let Some(key) = key else {
        return Ok(next.run(request).await);
    };
    match shown(request.headers()) {
        Some(shown) if Key::new(shown) == key => Ok(next.run(request).await),
        Some(_) => Err(Refusal::Key { found: "wrong" }.into()),
        None => Err(Refusal::Key { found: "missing" }.into()),
    }
}

/// What stands in `Authorization`, without its scheme.
pub(super) fn shown(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let bare = value
        .split_at_checked(SCHEME.len())
        .and_then(|(scheme, key)| scheme.eq_ignore_ascii_case(SCHEME).then_some(key));
    Some(bare.unwrap_or(value).trim_ascii())
}

// === impl Key ===

impl Key {
    /// Of the text that is to be shown.
    pub fn new(text: impl AsRef<[u8]>) -> Self {
        Self(blake3::hash(text.as_ref()))
    }
}
