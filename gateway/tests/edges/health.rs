//! Readiness, as probes over HTTP and gRPC see it.

use crate::fixture::{Fixture, block_on, check_in, send};
use crate::grpc::connect;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

/// Long enough for a message that should not come.
const MOMENT: Duration = Duration::from_millis(200);

fn request(service: &str) -> HealthCheckRequest {
    let service = service.to_owned();
    HealthCheckRequest { service }
}

#[test]
fn readiness_says_what_is_missing() {
    let fixture = Fixture::new();
    for path in ["/livez", "/ping", "/readyz", "/v1/health/ready"] {
        check_in(
            &fixture,
            &format!("GET {path}"),
            &[],
            "",
            200,
            r#"{"status":"ok","reasons":[]}"#,
        );
    }
    fixture.catalog.is_ready.store(false, Ordering::Relaxed);
    check_in(&fixture, "GET /livez", &[], "", 200, r#"{"status":"ok"}"#);
    check_in(
        &fixture,
        "GET /readyz",
        &[],
        "",
        503,
        r#"{"status":"not ready","reasons":["model default is loading"]}"#,
    );
    check_in(
        &fixture,
        "GET /health",
        &[],
        "",
        503,
        r#"{"status":"not ready: model default is loading"}"#,
    );
    for line in ["GET /readyz", "GET /v1/health/ready", "GET /health"] {
        let reply = block_on(send(fixture.http(), line, &[], ""));
        assert_eq!(reply.header("retry-after"), "1", "{line}");
    }
}

#[tokio::test]
async fn checks_follow_the_catalog() {
    let fixture = Fixture::new();
    let (channel, _) = connect(&fixture).await;
    let mut client = HealthClient::new(channel);
    let services = [
        "",
        "crossgate.v1.Scoring",
        "inference.GRPCInferenceService",
        "tei.v1.Info",
        "tei.v1.Predict",
        "tei.v1.Rerank",
        "tei.v1.Tokenize",
    ];
    for service in services {
        for (is_ready, wanted) in [
            (true, ServingStatus::Serving),
            (false, ServingStatus::NotServing),
        ] {
            // Checks look for themselves.
            fixture.catalog.is_ready.store(is_ready, Ordering::Relaxed);
            let state = client.check(request(service)).await.expect("a state");
            assert_eq!(state.into_inner().status(), wanted, "{service:?}");
        }
    }
    let none = client.check(request("none")).await;
    assert_eq!(none.expect_err("no such service").code(), Code::NotFound);
}

#[tokio::test]
async fn watchers_are_told_what_changes() {
    let fixture = Fixture::new();
    let (channel, report) = connect(&fixture).await;
    let mut client = HealthClient::new(channel);
    let watched = client.watch(request("")).await.expect("a stream");
    let mut watched = watched.into_inner();
    for (is_ready, wanted) in [
        (true, ServingStatus::Serving),
        (false, ServingStatus::NotServing),
        (true, ServingStatus::Serving),
    ] {
        fixture.catalog.is_ready.store(is_ready, Ordering::Relaxed);
        report.refresh().await;
        let state = watched.message().await.expect("no error").expect("a state");
        assert_eq!(state.status(), wanted);
        // The same again is no news.
        report.refresh().await;
        client.check(request("")).await.expect("a state");
        let more = tokio::time::timeout(MOMENT, watched.message()).await;
        assert!(more.is_err(), "{more:?}");
    }
}

#[tokio::test]
async fn who_watches_an_unknown_service_is_told_so() {
    let (channel, report) = connect(&Fixture::new()).await;
    let mut client = HealthClient::new(channel);
    let watched = client.watch(request("none")).await.expect("a stream");
    let mut watched = watched.into_inner();
    let state = watched.message().await.expect("no error").expect("a state");
    assert_eq!(state.status(), ServingStatus::ServiceUnknown);
    report.refresh().await;
    let more = tokio::time::timeout(MOMENT, watched.message()).await;
    assert!(more.is_err(), "{more:?}");
}

/// What is said of a name repeats it, in a header: no longer than clients take one.
#[tokio::test]
async fn names_of_services_are_short() {
    let (channel, _) = connect(&Fixture::new()).await;
    let check = async |name: String| {
        let mut client = HealthClient::new(channel.clone());
        let asked = HealthCheckRequest { service: name };
        client.check(asked).await.expect_err("no such service")
    };
    let unknown = check("光".repeat(600)).await;
    assert_eq!(unknown.code(), Code::NotFound);
    assert!(unknown.message().len() < 1_100, "{unknown}");
    assert_eq!(check("光".repeat(1_000)).await.code(), Code::OutOfRange);

    let mut client = ServerReflectionClient::new(channel.clone());
    // The library says nothing of what it could not read: its stream ends.
    for (letters, told) in [(600, Some(Code::NotFound)), (1_000, None)] {
        let asked = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::FileByFilename("光".repeat(letters))),
        };
        let asked = tokio_stream::iter([asked]);
        let found = match client.server_reflection_info(asked).await {
            Ok(answers) => answers.into_inner().message().await,
            Err(told) => Err(told),
        };
        assert!(!matches!(found, Ok(Some(_))), "{found:?}");
        assert_eq!(found.err().map(|status| status.code()), told);
    }
}
