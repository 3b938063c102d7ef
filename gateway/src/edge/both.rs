//! HTTP and gRPC in one place, for a socket: a request's content says which it is.

use axum::Router;
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use tower::{ServiceExt as _, service_fn};

/// How the content of gRPC's requests is called; more of the name may follow.
const GRPC: &[u8] = b"application/grpc";

/// Requests go to the router whose protocol they speak.
pub fn both(http: Router, grpc: Router) -> Router {
    Router::new().fallback_service(service_fn(move |request: Request| {
        let content = request.headers().get(CONTENT_TYPE);
        let is_grpc = content.is_some_and(|name| name.as_bytes().starts_with(GRPC));
        let router = if is_grpc { &grpc } else { &http };
        router.clone().oneshot(request)
    }))
}
