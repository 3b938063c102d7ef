//! What every call passes, whatever its route: a name, a line in the log, a count, a fence for
//! panics.

use super::Exposition;
use super::call::{Call, REQUEST_ID};
use super::problem::Problem;
use super::quota::Account;
use super::tally::{Blame, Summary, Tally};
use crate::runtime::now;
use crate::score::ScoreError;
use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use std::any::Any;
use std::sync::Arc;
use std::time::Instant;
use tonic::Code;

/// The label of calls to no known route.
const UNMATCHED: &str = "unmatched";

/// Who watches: one for each listener.
pub(super) struct Watch {
    protocol: Protocol,
    /// The labels that routes may have: metrics stay few, whatever is called.
    routes: Vec<&'static str>,
    metrics: Arc<dyn Exposition>,
    tally: Tally,
}

/// An answer that says that the server is not ready, and why: what was asked for, and no refusal.
#[derive(Clone, Debug)]
pub(super) struct Unready(pub(super) String);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http,
    Grpc,
    Admin,
}

/// A call's line in log and metrics: written once, when it is answered or dropped.
struct Entry {
    watch: Arc<Watch>,
    call: Call,
    route: &'static str,
    open: bool,
}

/// Outermost: opens the call, writes refusals down, names the call in its answer, logs and counts
/// it.
pub(super) async fn watch(
    State(watch): State<Arc<Watch>>,
    mut request: Request,
    next: Next,
) -> Response {
    let call = Call::open(request.headers());
    let route = watch.route(&request);
    let bodiless = request.method() == Method::HEAD;
    request.extensions_mut().insert(call.clone());
    let entry = Entry {
        watch,
        call: call.clone(),
        route,
        open: true,
    };

    let mut response = next.run(request).await;

    let problem = response.extensions_mut().remove::<Arc<Problem>>();
    if let Some(problem) = &problem {
        problem.write(&call, &mut response);
        if bodiless {
            *response.body_mut() = Body::empty();
        }
    }
    if let Ok(id) = HeaderValue::from_str(call.id().as_str()) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    entry.close(&response, problem.as_deref());
    response
}

/// What a handler's panic becomes.
pub(super) fn panic_error(panic: &(dyn Any + Send)) -> ScoreError {
    let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
    let text = text
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    let why = format!("a handler panicked: {text}");
    tracing::error!(why, "a mistake of ours");
    ScoreError::Internal { why }
}

// === impl Watch ===

impl Watch {
    pub(super) fn new(
        protocol: Protocol,
        routes: Vec<&'static str>,
        metrics: Arc<dyn Exposition>,
    ) -> Arc<Self> {
        Arc::new(Self {
            protocol,
            routes,
            metrics,
            tally: Tally::default(),
        })
    }

    fn route(&self, request: &Request) -> &'static str {
        let path = request.uri().path();
        let matched = request
            .extensions()
            .get::<MatchedPath>()
            .map_or(path, MatchedPath::as_str);
        // gRPC's services are routed by a pattern, and known by their full paths.
        let known = self
            .routes
            .iter()
            .find(|&&route| route == matched || route == path);
        known.copied().unwrap_or(UNMATCHED)
    }

    fn write(&self, summary: &Summary) {
        let protocol = self.protocol.name();
        let Summary {
            refused,
            ours,
            by_status,
        } = summary;
        if *ours == 0 {
            tracing::info!(protocol, refused, by_status, "more refusals");
        } else {
            tracing::warn!(
                protocol,
                refused,
                failed = ours,
                by_status,
                "more failures and refusals"
            );
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(summary) = self.tally.rest() {
            self.write(&summary);
        }
    }
}

// === impl Protocol ===

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Admin => "admin",
        }
    }

    /// The status of a call whose client went away.
    fn cancelled(self) -> u16 {
        match self {
            Self::Http | Self::Admin => 499,
            Self::Grpc => Code::Cancelled as u16,
        }
    }

    /// The status, who is to blame if it is no success, and its text where that is in the head.
    fn read(self, response: &Response) -> (u16, Option<Blame>, String) {
        match self {
            Self::Http | Self::Admin => {
                let status = response.status();
                let blame = match status.as_u16() {
                    // Redirects are no failures.
                    200..400 => None,
                    // 424 is a failed backend in TEI's words.
                    424 | 500..503 => Some(Blame::Ours),
                    _ => Some(Blame::Refused),
                };
                (status.as_u16(), blame, String::new())
            }
            Self::Grpc => match tonic::Status::from_header_map(response.headers()) {
                Some(status) => {
                    let blame = match status.code() {
                        Code::Ok => None,
                        Code::Unknown | Code::Internal | Code::DataLoss => Some(Blame::Ours),
                        _ => Some(Blame::Refused),
                    };
                    (status.code() as u16, blame, status.message().to_owned())
                }
                // Its trailer is yet to come; for a single answer it says OK.
                None => (Code::Ok as u16, None, String::new()),
            },
        }
    }
}

// === impl Entry ===

impl Entry {
    fn close(mut self, response: &Response, problem: Option<&Problem>) {
        self.open = false;
        let (status, blame, text) = self.watch.protocol.read(response);
        if let Some(account) = self.call.account()
            && blame.is_some()
        {
            account.give_back(self.call.n_rows(), now());
        }
        if let Some(Unready(why)) = response.extensions().get() {
            // Probes ask every second or so until it is ready.
            return self.write(status, None, why);
        }
        let told = self.call.reason().map(str::to_owned);
        let why = problem.map(Problem::reason).or(told).unwrap_or(text);
        self.write(status, blame, &why);
    }

    fn write(&self, status: u16, blame: Option<Blame>, why: &str) {
        let (id, route, protocol) = (self.call.id(), self.route, self.watch.protocol.name());
        let (rows, elapsed) = (self.call.n_rows(), self.call.elapsed());
        let ms = elapsed.as_secs_f64() * 1e3;
        let now = Instant::now();
        if let Some(summary) = self.watch.tally.due(now) {
            self.watch.write(&summary);
        }
        let described = blame.filter(|&blame| self.watch.tally.describes(now, status, blame));
        let key = self.call.account().map(Account::name);
        match (blame, described) {
            (None, _) => {
                tracing::debug!(%id, protocol, route, key, status, rows, ms, why, "answered");
            }
            (Some(_), None) => {
                tracing::debug!(%id, protocol, route, key, status, rows, ms, why, "refused");
            }
            (_, Some(Blame::Refused)) => {
                tracing::info!(%id, protocol, route, key, status, rows, ms, why, "refused");
            }
            (_, Some(Blame::Ours)) => {
                tracing::warn!(%id, protocol, route, key, status, rows, ms, why, "failed");
            }
        }
        if let Some(key) = key {
            let (outcome, n_documents) = match blame {
                None => ("ok", rows),
                Some(Blame::Refused) if self.call.is_limited() => ("limited", 0),
                Some(Blame::Refused) => ("refused", 0),
                Some(Blame::Ours) => ("failed", 0),
            };
            self.watch.metrics.key(key, outcome, n_documents);
        }
        self.watch
            .metrics
            .request(protocol, route, status, elapsed.as_secs_f64());
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.open {
            self.write(
                self.watch.protocol.cancelled(),
                Some(Blame::Refused),
                "the client went away",
            );
        }
    }
}
