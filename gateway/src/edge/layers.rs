//! What every call passes, whatever its route: a name, a line in the log, a count, a fence for
//! panics.

use super::Exposition;
use super::call::{Call, REQUEST_ID};
use super::problem::Problem;
use crate::score::ScoreError;
use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use std::any::Any;
use std::sync::Arc;

/// The label of calls to no known route.
const UNMATCHED: &str = "unmatched";

/// Who watches: one for each listener.
pub(super) struct Watch {
    protocol: Protocol,
    /// The labels that routes may have: metrics stay few, whatever is called.
    routes: Vec<&'static str>,
    metrics: Arc<dyn Exposition>,
}

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
            Self::Grpc => tonic::Code::Cancelled as u16,
        }
    }

    /// The status, whether it is a success, and its text where that is in the head.
    fn read(self, response: &Response) -> (u16, bool, String) {
        match self {
            Self::Http | Self::Admin => {
                let status = response.status();
                // Redirects are no failures.
                (
                    status.as_u16(),
                    status.is_success() || status.is_redirection(),
                    String::new(),
                )
            }
            Self::Grpc => match tonic::Status::from_header_map(response.headers()) {
                Some(status) => (
                    status.code() as u16,
                    status.code() == tonic::Code::Ok,
                    status.message().to_owned(),
                ),
                // Its trailer is yet to come; for a single answer it says OK.
                None => (tonic::Code::Ok as u16, true, String::new()),
            },
        }
    }
}

// === impl Entry ===

impl Entry {
    fn close(mut self, response: &Response, problem: Option<&Problem>) {
        self.open = false;
        let (status, is_success, text) = self.watch.protocol.read(response);
        self.write(status, is_success, &problem.map_or(text, Problem::reason));
    }

    fn write(&self, status: u16, is_success: bool, why: &str) {
        let (id, route, protocol) = (self.call.id(), self.route, self.watch.protocol.name());
        let (rows, elapsed) = (self.call.n_rows(), self.call.elapsed());
        let ms = elapsed.as_secs_f64() * 1e3;
        if is_success {
            tracing::debug!(%id, protocol, route, status, rows, ms, "answered");
        } else {
            tracing::info!(%id, protocol, route, status, rows, ms, why, "refused");
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
                false,
                "the client went away",
            );
        }
    }
}
