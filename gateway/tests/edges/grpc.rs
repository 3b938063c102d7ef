//! What clients see over gRPC, on a real connection.

#[path = "kserve_grpc.rs"]
mod kserve;
#[path = "scoring.rs"]
mod scoring;
#[path = "stream.rs"]
mod stream;
#[path = "tei_grpc.rs"]
pub(crate) mod tei;

use crate::fixture::{BODY_BYTES_MAX, Fixture, USUAL, block_on, core_for, send};
use gateway::intake::Bounds;
use gateway::runtime::Runtime;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Status};

pub(crate) mod proto {
    #![allow(
        unreachable_pub,
        unused_qualifications,
        clippy::too_many_lines,
        reason = "generated"
    )]
    tonic::include_proto!("crossgate.v1");
}

use proto::scoring_client::ScoringClient;
use proto::{RerankRequest, RerankResponse, ScoreRequest};

/// Serves the fixture for as long as the runtime lives.
pub(crate) async fn connect(fixture: &Fixture) -> (Channel, gateway::edge::HealthReport) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (router, report) = router(fixture).await;
    let server = Server::builder().add_routes(tonic::service::Routes::from(router));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    (endpoint.connect().await.expect("a connection"), report)
}

pub(crate) async fn router(fixture: &Fixture) -> (axum::Router, gateway::edge::HealthReport) {
    let runtime = Runtime::new(tokio::runtime::Handle::current(), 1);
    gateway::edge::grpc(fixture.edge.clone(), runtime)
        .await
        .expect("a service")
}

pub(crate) fn score(query: &str, documents: &[&str]) -> ScoreRequest {
    let documents = documents
        .iter()
        .map(|&document| document.to_owned())
        .collect();
    ScoreRequest {
        model: String::new(),
        query: query.to_owned(),
        documents,
        ..ScoreRequest::default()
    }
}

fn metadata<'a>(status: &'a Status, name: &str) -> &'a str {
    status
        .metadata()
        .get(name)
        .map_or("", |value| value.to_str().expect("ASCII"))
}

#[tokio::test]
async fn scores() {
    let (channel, _) = connect(&Fixture::new()).await;
    let mut request = Request::new(score("long", &["1", "2.5"]));
    request
        .metadata_mut()
        .insert("x-request-id", "mine".parse().expect("ASCII"));
    let answer = ScoringClient::new(channel)
        .score(request)
        .await
        .expect("scores");
    let header = |name| answer.metadata().get(name).map(|value| value.as_bytes());
    assert_eq!(header("x-request-id"), Some(&b"mine"[..]));
    assert_eq!(header("x-crossgate-activation"), Some(&b"identity"[..]));
    let answer = answer.into_inner();
    assert_eq!(answer.model, "default");
    assert_eq!(answer.scores, [1.0, 2.5]);
    assert_eq!(
        answer
            .usage
            .map(|usage| (usage.prompt_tokens, usage.total_tokens)),
        Some((2, 2))
    );
    assert_eq!(answer.truncated, [1]);
    assert!(answer.query_truncated);
}

#[tokio::test]
async fn ranks() {
    #[track_caller]
    fn check(answer: RerankResponse, wanted: &[(u32, f32, Option<&str>)]) {
        let results = answer.results.iter();
        let found: Vec<_> = results
            .map(|one| (one.index, one.relevance_score, one.document.as_deref()))
            .collect();
        assert_eq!(found, wanted);
    }
    let (channel, _) = connect(&Fixture::new()).await;
    let mut client = ScoringClient::new(channel);
    let asked = RerankRequest {
        model: "sigmoid".to_owned(),
        query: "q".to_owned(),
        documents: ["-1", "0", "0"].map(str::to_owned).to_vec(),
        top_n: Some(2),
        return_documents: true,
        ..RerankRequest::default()
    };
    let ranked = client
        .rerank(asked.clone())
        .await
        .expect("results")
        .into_inner();
    assert!(!ranked.query_truncated);
    check(ranked, &[(1, 0.5, Some("0")), (2, 0.5, Some("0"))]);

    let all = RerankRequest {
        top_n: None,
        return_documents: false,
        raw_scores: true,
        ..asked.clone()
    };
    let ranked = client.rerank(all).await.expect("results").into_inner();
    check(ranked, &[(1, 0.0, None), (2, 0.0, None), (0, -1.0, None)]);

    let none = RerankRequest {
        top_n: Some(0),
        ..asked
    };
    let status = client.rerank(none).await.expect_err("nothing to show");
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_call_says_how_urgent_it_is() {
    // The core answers so many tokens.
    let (channel, _) = connect(&Fixture::new()).await;
    let mut client = ScoringClient::new(channel);
    for (priority, want) in [(0, 2), (1, 1), (2, 2), (3, 3)] {
        let score = ScoreRequest {
            priority,
            ..score("priority", &["a"])
        };
        let scored = client.score(score.clone()).await.expect("scores");
        let usage = scored.into_inner().usage.expect("tokens");
        assert_eq!(usage.prompt_tokens, want);
        let rerank = RerankRequest {
            query: score.query,
            documents: score.documents,
            priority,
            ..RerankRequest::default()
        };
        let ranked = client.rerank(rerank).await.expect("results");
        let usage = ranked.into_inner().usage.expect("tokens");
        assert_eq!(usage.prompt_tokens, want);
    }
    let unknown = ScoreRequest {
        priority: 4,
        ..score("q", &["a"])
    };
    let status = client.score(unknown).await.expect_err("no such priority");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("3 (high)"), "{status}");
}

#[tokio::test]
async fn every_error_of_the_core() {
    let fixture = Fixture::new();
    let (channel, _) = connect(&fixture).await;
    let lines = [
        ("invalid", Code::InvalidArgument, "documents[2]: the reason"),
        ("too_large", Code::InvalidArgument, "documents: the reason"),
        ("unknown_model", Code::NotFound, "there is no model \"x\""),
        ("overloaded", Code::ResourceExhausted, "the reason"),
        ("unavailable", Code::Unavailable, "the reason"),
        ("deadline_passed", Code::DeadlineExceeded, "0.250 s"),
        ("backend", Code::Internal, "the reason"),
        ("cancelled", Code::Cancelled, "went away"),
        ("internal", Code::Internal, "under this request's id"),
        ("nan", Code::Internal, "not a number"),
        ("panic", Code::Internal, "under this request's id"),
    ];
    for (query, code, text) in lines {
        let status = ScoringClient::new(channel.clone())
            .score(score(query, &["a"]))
            .await
            .expect_err(query);
        assert_eq!(status.code(), code, "{query}: {status}");
        assert!(
            status.message().contains(text),
            "{query}: {}",
            status.message()
        );
        assert!(!metadata(&status, "x-request-id").is_empty(), "{query}");
        let waits = matches!(code, Code::ResourceExhausted | Code::Unavailable);
        assert_eq!(
            metadata(&status, "retry-after")
                .parse::<u64>()
                .is_ok_and(|seconds| seconds >= 3),
            waits,
            "{query}"
        );
    }
    let empty = ScoringClient::new(channel)
        .score(score("q", &[]))
        .await
        .expect_err("no documents");
    assert_eq!(
        (empty.code(), empty.message()),
        (
            Code::InvalidArgument,
            "documents: is empty; send at least one document"
        )
    );
    let counted = fixture.metrics.0.lock().expect("no panic").clone();
    assert_eq!(
        counted[0],
        (
            "grpc",
            "/crossgate.v1.Scoring/Score",
            Code::InvalidArgument as u16
        )
    );
    assert_eq!(counted.len(), lines.len() + 1);
}

#[tokio::test]
async fn bounds() {
    let (channel, _) = connect(&Fixture::new()).await;
    let mut client = ScoringClient::new(channel);
    let long = client
        .score(score("q", &["x".repeat(BODY_BYTES_MAX).as_str()]))
        .await
        .expect_err("too long");
    assert_eq!(long.code(), Code::InvalidArgument);
    assert!(
        long.message().contains("body_bytes_max = 4096"),
        "{}",
        long.message()
    );

    let left = |timeout: Option<Duration>| {
        let mut client = client.clone();
        async move {
            let mut request = Request::new(score("deadline", &["a"]));
            if let Some(timeout) = timeout {
                request.set_timeout(timeout);
            }
            client
                .score(request)
                .await
                .expect("scores")
                .into_inner()
                .usage
                .map_or(0, |usage| usage.total_tokens)
        }
    };
    assert!((20_000..=30_000).contains(&left(None).await));
    assert!((1..=9_000).contains(&left(Some(Duration::from_secs(9))).await));

    let (channel, _) = connect(&Fixture::with_room_for(0)).await;
    let refused = ScoringClient::new(channel)
        .score(score("q", &["a"]))
        .await
        .expect_err("no room");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(
        metadata(&refused, "retry-after")
            .parse::<u64>()
            .is_ok_and(|seconds| seconds >= 1)
    );
}

/// Nobody announces a length over gRPC: were each taken for the largest, eight would fill the house.
#[tokio::test]
async fn many_calls_at_once_are_all_answered() {
    const CALLS: usize = 64;
    let mut fixture = Fixture::within(USUAL);
    fixture.edge.core = core_for(CALLS);
    let (channel, _) = connect(&fixture).await;
    let calls: Vec<_> = (0..CALLS)
        .map(|_| {
            let mut client = ScoringClient::new(channel.clone());
            tokio::spawn(async move { client.score(score("q", &["1"])).await })
        })
        .collect();
    for call in calls {
        let answer = call.await.expect("no panic").expect("scores").into_inner();
        assert_eq!(answer.scores, [1.0]);
    }
}

#[tokio::test]
async fn what_is_too_much_is_refused_before_it_is_unpacked() {
    let (channel, _) = connect(&Fixture::new()).await;
    let many = ScoringClient::new(channel)
        .score(score("q", &[""; 1_001]))
        .await
        .expect_err("too many");
    assert_eq!(many.code(), Code::InvalidArgument);
    let text = "documents: 1001 documents are more than intake.documents_max = 1000";
    assert!(many.message().starts_with(text), "{}", many.message());

    // A message that outgrows the room left for bodies, which is none beyond its entry.
    let fixture = Fixture::within(Bounds {
        bytes_max: 64 << 10,
        ..USUAL
    });
    let (channel, _) = connect(&fixture).await;
    let heavy = ScoringClient::new(channel)
        .score(score("q", &["x".repeat(100_000).as_str()]))
        .await
        .expect_err("no room");
    assert_eq!(heavy.code(), Code::ResourceExhausted, "{heavy}");
    assert!(
        heavy.message().contains("intake.bytes_max"),
        "{}",
        heavy.message()
    );
    assert!(!metadata(&heavy, "retry-after").is_empty());
}

#[tokio::test]
async fn other_methods_are_not_implemented() {
    let fixture = Fixture::new();
    let (router, _) = router(&fixture).await;
    let headers = ["content-type: application/grpc"];
    let reply = send(router, "POST /crossgate.v1.Scoring/None", &headers, "").await;
    let code = (Code::Unimplemented as i32).to_string();
    assert_eq!((reply.status, reply.header("grpc-status")), (200, &*code));
    let said = reply.header("grpc-message");
    let wanted = ["/crossgate.v1.Scoring/None", "tei.v1.Rerank", "reflection"];
    assert!(wanted.iter().all(|word| said.contains(word)), "{said}");
}

#[test]
fn a_message_that_cannot_be_read_is_the_clients_fault() {
    let headers = ["content-type: application/grpc"];
    // A length that is longer than the message, a query that is no text, and no key at all.
    for message in [&b"\x12\x7fq"[..], b"\x12\x02\xff\xfe", b"\xff\xff"] {
        let reply = block_on(async {
            let fixture = Fixture::new();
            let (router, _) = router(&fixture).await;
            let head = [0, 0, 0, 0, message.len() as u8];
            let body = [&head, message].concat();
            send(router, "POST /crossgate.v1.Scoring/Score", &headers, body).await
        });
        let code = (Code::InvalidArgument as i32).to_string();
        let text = reply.header("grpc-message");
        assert_eq!(reply.header("grpc-status"), code, "{text}");
        assert!(text.starts_with("the%20message%20is%20not"), "{text}");
    }
}

#[tokio::test]
async fn services_are_reflected_in_both_versions() {
    let (channel, _) = connect(&Fixture::new()).await;
    macro_rules! services {
        ($version:ident) => {{
            use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
            use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
            use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;
            let message_request = Some(MessageRequest::ListServices(String::new()));
            let request = tonic_reflection::pb::$version::ServerReflectionRequest {
                host: String::new(),
                message_request,
            };
            let mut answers = ServerReflectionClient::new(channel.clone())
                .server_reflection_info(tokio_stream::iter([request]))
                .await
                .expect("a stream")
                .into_inner();
            match answers
                .message()
                .await
                .expect("an answer")
                .and_then(|answer| answer.message_response)
            {
                Some(MessageResponse::ListServicesResponse(list)) => list
                    .service
                    .into_iter()
                    .map(|service| service.name)
                    .collect::<Vec<_>>(),
                other => panic!("{other:?}"),
            }
        }};
    }
    for names in [services!(v1), services!(v1alpha)] {
        for name in [
            "crossgate.v1.Scoring",
            "grpc.health.v1.Health",
            "inference.GRPCInferenceService",
            "tei.v1.Info",
            "tei.v1.Predict",
            "tei.v1.Rerank",
            "tei.v1.Tokenize",
        ] {
            assert!(
                names.iter().any(|found| found == name),
                "{name} in {names:?}"
            );
        }
    }
}
