//! What clients see: a request in, a status and a piece of the answer out. The core is a fake one,
//! so that nothing but the edge is in question.

#[path = "edges/cors.rs"]
mod cors;
#[path = "edges/counts.rs"]
mod counts;
#[path = "edges/described.rs"]
mod described;
#[path = "edges/fixture.rs"]
mod fixture;
#[path = "edges/grpc.rs"]
mod grpc;
#[path = "edges/health.rs"]
mod health;
#[path = "edges/keys.rs"]
mod keys;
#[path = "edges/kserve.rs"]
mod kserve;
#[path = "edges/limits.rs"]
mod limits;
#[path = "edges/listen.rs"]
mod listen;
#[path = "edges/log.rs"]
mod log;
#[path = "edges/metrics.rs"]
mod metrics;
#[path = "edges/options.rs"]
mod options;
#[path = "edges/packed.rs"]
mod packed;
#[path = "edges/quotas.rs"]
mod quotas;
#[path = "edges/rerank.rs"]
mod rerank;
#[path = "edges/socket.rs"]
mod socket;
#[path = "edges/tls.rs"]
mod tls;
#[path = "edges/turns.rs"]
mod turns;

use axum::body::Body;
use fixture::{BODY_BYTES_MAX, Fixture, JSON, ask, block_on, check, check_in, send};
use gateway::score::{ScoreError, ScoreRequest, ScoreResponse};
use std::sync::Arc;
use std::task::Poll;
use tokio_stream::StreamExt as _;
use tower::ServiceExt as _;
use tower::util::BoxCloneSyncService;

#[test]
fn what_serves_and_how_it_does() {
    for (line, status, wanted) in [
        (
            "GET /health",
            200,
            r#"{"status":"ok","version":"0.0.0-test","models_loaded":["default","classes"],
                "controller":{"waiting":6,"active":0,"available_slots":64,"max_parallel":64},
                "model":{"backend":"fake","source":"hub/default","device":"cpu",
                         "cache_enabled":true,"cache_size":3},
                "stats":{"default":{"total_requests":4,"total_batches":2,"avg_batch_size":5,
                                    "avg_latency":0.25,"throughput":20}}}"#,
        ),
        (
            "GET /models",
            200,
            r#"{"default":{"num_parameters":22713601,"device":"cpu","dtype":"f32","backend":"fake",
                           "plugin_version":"0.1.0","max_length":512,"labels":["LABEL_0"],
                           "activation":"identity","generation":1,"state":"live"},"classes":{}}"#,
        ),
        (
            "GET /info",
            200,
            r#"{"model_id":"hub/default","model_sha":null,"model_dtype":"f32",
                "model_type":{"reranker":{"id2label":{"0":"LABEL_0"},"label2id":{"LABEL_0":0}}},
                "max_concurrent_requests":64,"max_input_length":512,"max_client_batch_size":1000,
                "max_batch_requests":null,"auto_truncate":true}"#,
        ),
        (
            "GET /v1/models",
            200,
            r#"{"object":"list","data":[{"id":"default","object":"model"},{"id":"classes"}]}"#,
        ),
        (
            "GET /v1/models/classes",
            200,
            r#"{"id":"classes","object":"model"}"#,
        ),
        (
            "GET /v1/models/none",
            404,
            r#"{"error":{"message":"~default","param":"model","code":"model_not_found"}}"#,
        ),
        (
            "GET /v1/models/hub/none",
            404,
            r#"{"message":"~there is no model \"hub/none\""}"#,
        ),
        ("GET /", 200, r#"{"name":"crossgate","docs":"/docs"}"#),
    ] {
        check(line, "", status, wanted);
    }
    let reply = ask("GET /metrics", &[], "");
    assert_eq!(reply.status, 200);
    assert_eq!(
        reply.header("content-type"),
        "text/plain; version=0.0.4; charset=utf-8"
    );
    assert!(reply.text.starts_with("# TYPE"));
}

#[test]
fn other_routes_methods_and_bodies() {
    let path = "POST /rerank";
    check(
        "GET /nope",
        "",
        404,
        r#"{"error":{"message":"~there is no GET /nope","code":"route_not_found"},
            "detail":"~POST /rerank"}"#,
    );
    check("POST /", "", 405, r#"{"message":"~send GET"}"#);
    check(
        "GET /rerank",
        "",
        405,
        r#"{"error":{"message":"~send POST","code":"method_not_allowed"}}"#,
    );
    assert_eq!(ask("GET /rerank", &[], "").header("allow"), "POST");
    let form = &["content-type: application/x-www-form-urlencoded"];
    check_in(
        &Fixture::new(),
        path,
        form,
        "a=b",
        415,
        r#"{"message":"~Content-Type: application/json"}"#,
    );

    let reply = ask("HEAD /health", &[], "");
    assert_eq!((reply.status, reply.text.as_str()), (200, ""));
    let reply = ask("HEAD /nope", &[], "");
    assert_eq!((reply.status, reply.text.as_str()), (404, ""));
}

#[test]
fn bodies_have_a_bound() {
    let text = "x".repeat(BODY_BYTES_MAX);
    let long = format!(r#"{{"query":"q","documents":["{text}"]}}"#);
    let wanted = format!(
        r#"{{"error":{{"message":"~body_bytes_max = {BODY_BYTES_MAX}","code":"body_too_large"}}}}"#
    );
    check("POST /rerank", &long, 413, &wanted);
    // Announced: refused before it is read.
    let announced = format!("content-length: {}", BODY_BYTES_MAX + 1);
    check_in(
        &Fixture::new(),
        "POST /rerank",
        &[JSON[0], &announced],
        "",
        413,
        &wanted,
    );
    // In pieces, with no length announced.
    let half = bytes::Bytes::from(long[..long.len() / 2].to_owned());
    let pieces = tokio_stream::iter([half.clone(), half].map(Ok::<_, std::io::Error>));
    let reply = block_on(send(
        Fixture::new().http(),
        "POST /rerank",
        JSON,
        Body::from_stream(pieces),
    ));
    assert_eq!(
        (reply.status, reply.json()["error"]["code"].as_str()),
        (413, Some("body_too_large"))
    );
    // Broken off.
    let pieces = [
        Ok(bytes::Bytes::from_static(b"{")),
        Err(std::io::Error::other("gone")),
    ];
    let reply = block_on(send(
        Fixture::new().http(),
        "POST /rerank",
        JSON,
        Body::from_stream(tokio_stream::iter(pieces)),
    ));
    assert_eq!(
        (reply.status, reply.json()["error"]["code"].as_str()),
        (400, Some("body_broken"))
    );
}

#[test]
fn a_body_that_does_not_arrive_is_not_waited_for() {
    let headers = [JSON[0], "x-request-timeout-ms: 20"];
    let never = Body::from_stream(tokio_stream::pending::<Result<bytes::Bytes, std::io::Error>>());
    let reply = block_on(send(Fixture::new().http(), "POST /rerank", &headers, never));
    assert_eq!(
        (reply.status, reply.json()["error"]["code"].as_str()),
        (408, Some("body_late"))
    );
}

#[test]
fn the_door_is_before_the_body() {
    // Nobody gets in; a body that would never end is not waited for.
    let fixture = Fixture::with_room_for(0);
    let never = Body::from_stream(tokio_stream::pending::<Result<bytes::Bytes, std::io::Error>>());
    let reply = block_on(send(fixture.http(), "POST /rerank", JSON, never));
    assert_eq!(
        (reply.status, reply.json()["error"]["code"].as_str()),
        (429, Some("overloaded"))
    );
    assert!(
        reply
            .header("retry-after")
            .parse::<u64>()
            .is_ok_and(|seconds| seconds >= 1)
    );
    check_in(&fixture, "GET /health", &[], "", 200, r#"{"status":"ok"}"#);
    // One whose end is in sight is read and dropped, or the client would see a reset instead.
    let (told, heard) = std::sync::mpsc::sync_channel(1);
    let last = tokio_stream::iter([0]).map(move |_| {
        told.send(()).expect("a listener");
        Ok::<_, std::io::Error>(bytes::Bytes::from_static(b"{}"))
    });
    let headers = [JSON[0], "content-length: 2"];
    let reply = block_on(send(
        fixture.http(),
        "POST /rerank",
        &headers,
        Body::from_stream(last),
    ));
    assert_eq!((reply.status, heard.try_recv()), (429, Ok(())));
    // A pass is given back with the answer.
    let fixture = Fixture::with_room_for(1);
    for _ in 0..3 {
        check_in(
            &fixture,
            "POST /rerank",
            JSON,
            r#"{"query":"q","documents":["a"]}"#,
            200,
            "{}",
        );
    }
}

#[test]
fn ids_are_kept_or_made() {
    let given = |id: &str| {
        ask("GET /livez", &[&format!("x-request-id: {id}")], "")
            .header("x-request-id")
            .to_owned()
    };
    assert_eq!(given("abc-1"), "abc-1");
    assert_ne!(given("two words"), "two words");
    assert_ne!(given("a"), given("two words"));
    let body = r#"{"query":"q","documents":[]}"#;
    let reply = ask("POST /rerank", &[JSON[0], "x-request-id: mine"], body);
    assert_eq!(reply.json()["id"], "mine");
}

#[test]
fn clients_may_ask_for_less_time() {
    let left = |headers: &[&str]| {
        let reply = ask(
            "POST /rerank",
            headers,
            r#"{"query":"deadline","documents":["a"]}"#,
        );
        reply.json()["usage"]["total_tokens"]
            .as_u64()
            .expect("milliseconds")
    };
    assert!((20_000..=30_000).contains(&left(JSON)));
    assert!((1..=9_000).contains(&left(&[JSON[0], "x-request-timeout-ms: 9000"])));
    assert!((20_000..=30_000).contains(&left(&[JSON[0], "x-request-timeout-ms: 99000"])));
    let body = r#"{"query":"q","documents":["a"]}"#;
    let headers = [JSON[0], "x-request-timeout-ms: soon"];
    check_in(
        &Fixture::new(),
        "POST /rerank",
        &headers,
        body,
        422,
        r#"{"error":{"param":"x-request-timeout-ms"}}"#,
    );
}

#[test]
fn every_call_is_counted_under_a_known_route() {
    let fixture = Fixture::new();
    let lines = [
        ("GET /v1/models/none", 404),
        ("GET /nope/at/all", 404),
        ("POST /v2/rerank", 400),
        ("GET /livez", 200),
    ];
    for (line, status) in lines {
        let reply = block_on(send(fixture.http(), line, JSON, ""));
        assert_eq!(reply.status, status);
    }
    // A client that goes away before its body has been sent.
    block_on(async {
        let never =
            Body::from_stream(tokio_stream::pending::<Result<bytes::Bytes, std::io::Error>>());
        let mut call = Box::pin(send(fixture.http(), "POST /rerank", JSON, never));
        assert!(
            std::future::poll_fn(|context| Poll::Ready(call.as_mut().poll(context)))
                .await
                .is_pending()
        );
    });
    let counted = fixture.metrics.0.lock().expect("no panic").clone();
    let routes = [
        "/v1/models/{id}",
        "unmatched",
        "/v2/rerank",
        "/livez",
        "/rerank",
    ];
    let wanted: Vec<_> = routes
        .into_iter()
        .zip([404, 404, 400, 200, 499])
        .map(|(route, status)| ("http", route, status))
        .collect();
    assert_eq!(counted, wanted);
}

#[test]
fn a_client_that_goes_away_takes_its_question_back() {
    let mut fixture = Fixture::with_room_for(1);
    let asked = Arc::new(());
    let held = Arc::clone(&asked);
    fixture.edge.core = BoxCloneSyncService::new(tower::service_fn(move |_: ScoreRequest| {
        let held = Arc::clone(&held);
        async move {
            std::future::pending::<()>().await;
            drop(held);
            Err::<ScoreResponse, _>(ScoreError::Cancelled)
        }
    }));
    block_on(async {
        let body = r#"{"query":"q","documents":["a"]}"#;
        let mut call = Box::pin(send(fixture.http(), "POST /rerank", JSON, body));
        let before = Arc::strong_count(&asked);
        let first = std::future::poll_fn(|context| Poll::Ready(call.as_mut().poll(context))).await;
        assert!(first.is_pending());
        assert_eq!(Arc::strong_count(&asked), before + 1, "the core is at work");
        drop(call);
    });
    // Only the service itself is left, and the pass is free.
    assert_eq!(Arc::strong_count(&asked), 2);
    assert!(fixture.edge.door.enter(Some(1)).is_ok());
}

#[test]
fn the_admin_listener_answers_this_machine_only() {
    let fixture = Fixture::new();
    let reply = |line: &str, headers: &[&str]| block_on(send(fixture.admin(), line, headers, ""));
    let plugins = reply("GET /plugins", &["host: 127.0.0.1:9001"]);
    assert_eq!(
        (plugins.status, plugins.json()[0]["name"].as_str()),
        (200, Some("fake"))
    );
    assert_eq!(
        reply("GET /models", &["host: localhost:9001"]).json()["default"]["state"],
        "live"
    );
    assert_eq!(
        reply("GET /health", &["host: [::1]:9001"]).json()["status"],
        "ok"
    );
    let foreign = reply("GET /plugins", &["host: evil.example:9001"]);
    assert_eq!(
        (foreign.status, foreign.json()["error"]["code"].as_str()),
        (403, Some("foreign_host"))
    );
    let said = foreign.json()["message"].to_string();
    assert!(
        said.contains("evil.example:9001") && said.contains("Host"),
        "{said}"
    );
    assert_eq!(reply("GET /plugins", &[]).status, 403);
    // A page of another place that calls this machine by its address.
    let here = "host: 127.0.0.1:9001";
    let page = reply("POST /cache/clear", &[here, "origin: http://evil.example"]);
    assert_eq!(
        (page.status, page.json()["error"]["code"].as_str()),
        (403, Some("foreign_page"))
    );
    let said = page.json()["message"].to_string();
    assert!(
        said.contains("http://evil.example") && said.contains("Origin"),
        "{said}"
    );
    assert_eq!(
        reply("GET /health", &[here]).json()["model"]["cache_size"],
        3
    );
    let own = reply(
        "POST /cache/clear",
        &[here, "origin: http://localhost:9001"],
    );
    assert_eq!((own.status, own.json()["cleared"].as_u64()), (200, Some(3)));
    let again = reply("POST /cache/clear", &[here]);
    assert_eq!(
        (again.status, again.json()["cleared"].as_u64()),
        (200, Some(0))
    );
    let wrong = reply("GET /cache/clear", &[here]);
    assert_eq!(wrong.status, 405);
    assert!(wrong.text.contains("send POST"), "{}", wrong.text);
    // What there is here, and not what there is at the public port.
    for line in ["GET /rerank", "POST /models/default/swop"] {
        let none = reply(line, &["host: localhost"]);
        assert_eq!(none.status, 404);
        assert!(none.text.contains("POST /cache/clear"), "{}", none.text);
    }
}

#[test]
fn the_page_needs_no_network() {
    assert_eq!(ask("GET /docs", &[], "").header("location"), "docs/");
    let page = ask("GET /docs/", &[], "");
    assert_eq!(
        (page.status, page.header("content-type")),
        (200, "text/html")
    );
    assert!(!page.text.contains("https://"), "{}", page.text);
    let marked = ["href=\"", "src=\""].map(|mark| page.text.split(mark).skip(1));
    let parts = marked
        .into_iter()
        .flatten()
        .map(|rest| rest.split('"').next().unwrap_or_default());
    for part in parts.map(|part| part.trim_start_matches("./")) {
        let request = axum::http::Request::get(format!("/docs/{part}")).body(Body::empty());
        let answer = Fixture::new().http().oneshot(request.expect("a request"));
        assert_eq!(block_on(answer).expect("an answer").status(), 200, "{part}");
    }
    assert!(
        ask("GET /docs/swagger-initializer.js", &[], "")
            .text
            .contains("../openapi.json")
    );
    check(
        "GET /docs/none.js",
        "",
        404,
        r#"{"error":{"code":"route_not_found"}}"#,
    );
}
