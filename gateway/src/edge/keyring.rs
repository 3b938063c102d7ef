//! The keys of the public APIs: who shows none of them is not listened to, where there are any.

use super::Exposition;
use super::call::Call;
use super::fresh::Fresh;
use super::key::{Key, shown};
use super::layers::Protocol;
use super::problem::Problem;
use super::quota::Account;
use super::wire::{Refusal, status};
use crate::config::{ApiKey, ConfigError, Limits};
use crate::runtime::now;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use std::sync::Arc;

/// Where clients show a bare key that do not show it in `Authorization`.
pub(super) const HEADERS: [&str; 2] = ["api-key", "x-api-key"];
/// What the key's bearer may still ask at once, where that is limited.
pub(super) const REQUESTS_LEFT: &str = "x-ratelimit-remaining-requests";
pub(super) const DOCUMENTS_LEFT: &str = "x-ratelimit-remaining-documents";
/// Probes have no key, nor has who reads how to ask.
const OPEN: [&str; 11] = [
    "/",
    "/docs",
    "/health",
    "/livez",
    "/openapi.json",
    "/ping",
    "/readyz",
    "/v1/health/live",
    "/v1/health/ready",
    "/v2/health/live",
    "/v2/health/ready",
];
/// What stands below a page that is open.
const OPEN_BELOW: &str = "/docs/";
/// Health and reflection, which tell of no model.
const OPEN_SERVICES: [&str; 2] = ["/grpc.health.", "/grpc.reflection."];
/// Whose errors are written in the words of text-embeddings-inference.
const TEI: [&str; 1] = ["/info"];

/// Keys that may be shown, as their file has them now.
#[derive(Clone)]
pub struct Keyring(Arc<Fresh<Vec<ApiKey>, Ring, ConfigError>>);

struct Ring(Vec<(Key, Arc<Account>)>);

/// Where a key is asked for.
#[derive(Clone)]
pub(super) struct Gate {
    pub(super) keys: Option<Keyring>,
    pub(super) protocol: Protocol,
    pub(super) metrics: Arc<dyn Exposition>,
}

/// Lets through who shows a key, and everybody where none is asked for; the call is then the key's.
pub(super) async fn check_keys(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let Some(keys) = gate.keys.as_ref().filter(|_| !gate.is_open(path)) else {
        return next.run(request).await;
    };
    let call = Call::of(request.extensions());
    let found = match keys.find(request.headers()) {
        Ok(account) => {
            call.belongs_to(Arc::clone(&account));
            let mut response = next.run(request).await;
            let (requests, documents) = account.left(now());
            let left = [(REQUESTS_LEFT, requests), (DOCUMENTS_LEFT, documents)];
            for (name, left) in left {
                let left = left.map(|left| (HeaderName::from_static(name), left.into()));
                response.headers_mut().extend(left);
            }
            return response;
        }
        Err(found) => found,
    };
    gate.metrics.key("", "unknown", 0);
    let refusal = Refusal::ApiKey { found };
    match gate.protocol {
        Protocol::Grpc => status(&refusal, &call).into_http(),
        _ if speaks_tei(path) => Problem::tei(refusal).into_response(),
        _ => Problem::from(refusal).into_response(),
    }
}

/// Whether what a path is refused with is written in TEI's words.
pub(super) fn speaks_tei(path: &str) -> bool {
    TEI.contains(&path)
}

/// Whether a path of HTTP's needs no key.
pub(super) fn is_open(path: &str) -> bool {
    OPEN.contains(&path) || path.starts_with(OPEN_BELOW)
}

// === impl Gate ===

impl Gate {
    fn is_open(&self, path: &str) -> bool {
        match self.protocol {
            Protocol::Grpc => OPEN_SERVICES.iter().any(|open| path.starts_with(open)),
            Protocol::Http | Protocol::Admin => is_open(path),
        }
    }
}

// === impl Keyring ===

impl Keyring {
    /// Of what `read` says, now and whenever it is asked again.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn new(
        read: impl Fn() -> Result<Vec<ApiKey>, ConfigError> + Send + Sync + 'static,
    ) -> Result<Self, ConfigError> {
        let fresh = Fresh::new("API keys", read, |keys, before| Ok(Ring::new(keys, before)))?;
        Ok(Self(Arc::new(fresh)))
    }

    /// Reads again; blocks as files do. What makes no sense is logged, and the old keys stay.
    pub fn refresh(&self) {
        self.0.refresh();
    }

    /// Whose key is shown, or what is shown instead.
    fn find(&self, headers: &HeaderMap) -> Result<Arc<Account>, &'static str> {
        let bare = HEADERS.iter().filter_map(|&name| headers.get(name));
        let bare = bare.map(|value| value.as_bytes().trim_ascii());
        let mut found = "missing";
        for shown in shown(headers).into_iter().chain(bare) {
            match self.0.value().find(&Key::new(shown)) {
                Some(account) => return Ok(account),
                None => found = "wrong",
            }
        }
        Err(found)
    }
}

// === impl Ring ===

impl Ring {
    /// Who had an account with the same limits keeps it, and what was taken from it.
    fn new(keys: &[ApiKey], before: Option<&Self>) -> Self {
        let mut ring = Self(Vec::with_capacity(keys.len()));
        for ApiKey {
            name,
            secret,
            limits,
        } in keys
        {
            let known = [Some(&ring), before];
            let known = known
                .into_iter()
                .flatten()
                .find_map(|ring| ring.account(name, *limits));
            let account = known.unwrap_or_else(|| Arc::new(Account::new(name, *limits)));
            ring.0.push((Key::new(secret.reveal()), account));
        }
        ring
    }

    fn account(&self, name: &str, limits: Limits) -> Option<Arc<Account>> {
        let mut accounts = self.0.iter().map(|(_, account)| account);
        let found = accounts.find(|known| known.name() == name && known.limits() == limits);
        found.cloned()
    }

    /// Compares with all of them, so that how long it takes says nothing.
    fn find(&self, shown: &Key) -> Option<Arc<Account>> {
        let keys = self.0.iter();
        keys.fold(None, |found, (key, account)| {
            (key == shown).then(|| Arc::clone(account)).or(found)
        })
    }
}
