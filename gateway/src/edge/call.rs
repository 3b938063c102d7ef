//! One call as it passes the edge: its name, its start, its size.

use super::quota::Account;
use crate::runtime::now;
use crate::score::{Form, Priority, RequestId, ScoreRequest, Texts};
use axum::http::{Extensions, HeaderMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// The header that carries a request's id, both ways; in gRPC the metadata.
pub(super) const REQUEST_ID: &str = "x-request-id";

/// A handle on the call: the outermost layer opens it, handlers find it in the request's
/// extensions.
#[derive(Clone, Debug)]
pub(super) struct Call(Arc<Facts>);

#[derive(Debug)]
struct Facts {
    id: RequestId,
    started: Instant,
    /// Documents asked about, once they are known.
    n_rows: AtomicUsize,
    /// Why it is refused, with what the client is not told.
    reason: OnceLock<String>,
    /// Of the key that was shown.
    account: OnceLock<Arc<Account>>,
    /// Whether the key's own limits refuse it.
    is_limited: AtomicBool,
}

// === impl Call ===

impl Call {
    /// Starts now, under the client's own id if it has a fit one.
    pub(super) fn open(headers: &HeaderMap) -> Self {
        let given = headers
            .get(REQUEST_ID)
            .and_then(|value| value.to_str().ok());
        let id = given
            .and_then(RequestId::given)
            .unwrap_or_else(RequestId::random);
        Self(Arc::new(Facts {
            id,
            started: now(),
            n_rows: AtomicUsize::new(0),
            reason: OnceLock::new(),
            account: OnceLock::new(),
            is_limited: AtomicBool::new(false),
        }))
    }

    /// One of the requests of a call that brings many, from now on; `n` is its number.
    pub(super) fn part(&self, n: u64) -> Self {
        let id = RequestId::given(&format!("{}.{n}", self.0.id));
        Self(Arc::new(Facts {
            // A long name has no room for the number.
            id: id.unwrap_or_else(RequestId::random),
            started: now(),
            n_rows: AtomicUsize::new(0),
            reason: OnceLock::new(),
            account: self.0.account.clone(),
            is_limited: AtomicBool::new(false),
        }))
    }

    /// The call that the outermost layer opened.
    pub(super) fn of(extensions: &Extensions) -> Self {
        // Absent only where a handler is called without the layer, which is no reason to fail.
        extensions
            .get::<Self>()
            .cloned()
            .unwrap_or_else(|| Self::open(&HeaderMap::new()))
    }

    pub(super) fn id(&self) -> &RequestId {
        &self.0.id
    }

    /// Since the head of the request was read.
    pub(super) fn elapsed(&self) -> Duration {
        now() - self.0.started
    }

    /// When the answer is of no use any more: the server's bound, or the client's if that is
    /// sooner.
    pub(super) fn deadline(&self, server: Duration, client: Option<Duration>) -> Instant {
        self.0.started + client.map_or(server, |client| client.min(server))
    }

    /// What the core is asked.
    pub(super) fn question(
        &self,
        model: Option<String>,
        rows: Vec<Texts>,
        form: Form,
        deadline: Instant,
        priority: Priority,
    ) -> ScoreRequest {
        // A stream asks several times.
        self.0.n_rows.fetch_add(rows.len(), Ordering::Relaxed);
        if let Some(account) = self.account() {
            account.take(rows.len(), now());
        }
        // Some clients cannot leave the model out.
        let model = model.filter(|name| !name.is_empty());
        ScoreRequest {
            id: self.0.id.clone(),
            model,
            rows,
            form,
            deadline,
            priority,
        }
    }

    /// Documents asked about, 0 until they are known.
    pub(super) fn n_rows(&self) -> usize {
        self.0.n_rows.load(Ordering::Relaxed)
    }

    /// Whose key was shown.
    pub(super) fn account(&self) -> Option<&Account> {
        self.0.account.get().map(|account| &**account)
    }

    /// A key was shown.
    pub(super) fn belongs_to(&self, account: Arc<Account>) {
        self.0.account.get_or_init(|| account);
    }

    /// The key's own limits refuse it.
    pub(super) fn limit(&self) {
        self.0.is_limited.store(true, Ordering::Relaxed);
    }

    /// Whether they do.
    pub(super) fn is_limited(&self) -> bool {
        self.0.is_limited.load(Ordering::Relaxed)
    }

    /// Keeps for the log why the call is refused; the first reason is the one.
    pub(super) fn refuse(&self, reason: String) {
        self.0.reason.get_or_init(|| reason);
    }

    /// Why it is refused, where that has been said.
    pub(super) fn reason(&self) -> Option<&str> {
        self.0.reason.get().map(String::as_str)
    }
}
