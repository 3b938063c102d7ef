//! The gRPC listener: our own services, those of Text Embeddings Inference and of KServe, health and
//! reflection.

mod kserve;
mod method;
mod options;
mod scoring;
mod stream;
mod tei;

use super::Edge;
use super::call::Call;
use super::codec::Shapes;
use super::grpc_health::HealthReport;
use super::keyring::{Gate, check_keys};
use super::layers::{Protocol, Watch, panic_error, watch};
use super::wire::{OURS, Refusal, status, wire};
use crate::runtime::Runtime;
use axum::Router;
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::middleware::from_fn_with_state;
use axum::response::Response;
use method::Methods;
use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use tonic_reflection::server::{Builder, Error};
use tower_http::catch_panic::CatchPanicLayer;

/// Made from `proto/` by the build script.
mod proto {
    #![allow(
        unreachable_pub,
        unused_qualifications,
        clippy::enum_variant_names,
        clippy::too_many_lines,
        reason = "generated"
    )]
    pub(super) mod crossgate {
        tonic::include_proto!("crossgate.v1");
    }
    pub(super) mod tei {
        tonic::include_proto!("tei.v1");
    }
    pub(super) mod inference {
        tonic::include_proto!("inference");
    }
}

/// The files in `proto/` and what they include, for reflection.
const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/crossgate_descriptor.bin"));
/// The services whose health can be asked.
const SERVICES: [&str; 6] = [
    "crossgate.v1.Scoring",
    "tei.v1.Info",
    "tei.v1.Predict",
    "tei.v1.Rerank",
    "tei.v1.Tokenize",
    "inference.GRPCInferenceService",
];
/// What metrics tell apart besides our methods.
const ROUTES: [&str; 4] = [
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];
/// The longest message to health and reflection, which are asked for names and say, three bytes for one, which is not
/// there: in a header, and clients bound theirs at 8 KiB.
const NAMES_BYTES_MAX: usize = 2 << 10;
/// gRPC's own header for a call's time.
const TIMEOUT: &str = "grpc-timeout";

/// What is served to gRPC's clients, over HTTP/2, and its health report. Requests of streams are answered by
/// tasks of `runtime`.
///
/// Serve the router as it is: tonic's own server would end a call at its `grpc-timeout` as
/// cancelled, before the core says that the deadline has passed.
///
/// # Errors
/// The descriptors do not describe the services: a mistake of the build.
pub async fn grpc(edge: Edge, runtime: Runtime) -> Result<(Router, HealthReport), Error> {
    let report = HealthReport::new(Arc::clone(&edge.catalog), &SERVICES);
    let gate = Gate {
        keys: edge.keys.clone(),
        protocol: Protocol::Grpc,
        metrics: Arc::clone(&edge.metrics),
    };
    let reflected = || {
        Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let metrics = Arc::clone(&edge.metrics);
    let methods = Methods::new(Arc::new(edge), Shapes::read(DESCRIPTORS)?, runtime);
    let methods = kserve::methods(tei::methods(scoring::methods(methods)?)?)?;
    let (methods, mut routes) = methods.into_router();
    routes.extend(ROUTES);
    let observer = Watch::new(Protocol::Grpc, routes, metrics);
    let health = HealthServer::new(report.clone()).max_decoding_message_size(NAMES_BYTES_MAX);
    let (v1, v1alpha) = (reflected().build_v1()?, reflected().build_v1alpha()?);
    let router = Routes::new(health)
        .add_service(v1.max_decoding_message_size(NAMES_BYTES_MAX))
        .add_service(v1alpha.max_decoding_message_size(NAMES_BYTES_MAX))
        .into_axum_router()
        .merge(methods)
        .fallback(no_method)
        .layer(from_fn_with_state(gate, check_keys))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(observer, watch));
    Ok((router, report))
}

/// Tonic's own says nothing.
async fn no_method(request: Request) -> Response {
    let refusal = Refusal::NoRoute {
        method: "method".to_owned(),
        path: request.uri().path().to_owned(),
        instead: format!(
            "the services are {}; reflection tells their methods",
            SERVICES.join(", ")
        ),
    };
    status(&refusal, &Call::of(request.extensions())).into_http()
}

fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let code = wire(&panic_error(&*panic).into()).grpc;
    tonic::Status::new(code, OURS).into_http()
}

fn deadline(edge: &Edge, call: &Call, headers: &HeaderMap) -> Instant {
    call.deadline(edge.settings.request_timeout, client_timeout(headers))
}

/// What the client says of it.
fn client_timeout(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(TIMEOUT)?.to_str().ok()?;
    timeout(value)
}

/// `grpc-timeout`: at most eight digits and a unit. What is not one is no timeout.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(n * 3_600)),
        "M" => Some(Duration::from_secs(n * 60)),
        "S" => Some(Duration::from_secs(n)),
        "m" => Some(Duration::from_millis(n)),
        "u" => Some(Duration::from_micros(n)),
        "n" => Some(Duration::from_nanos(n)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts() {
        assert_eq!(timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(timeout("1H"), Some(Duration::from_secs(3_600)));
        assert_eq!(
            timeout("99999999u"),
            Some(Duration::from_micros(99_999_999))
        );
        for bad in ["", "5", "m", "-1m", "123456789m", "5s", "5é", "+5S"] {
            assert_eq!(timeout(bad), None, "{bad:?}");
        }
    }
}
