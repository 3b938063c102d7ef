//! `/metrics` as JSON: what it sums up, and who gets it.

use crate::counts::FakeMetrics;
use crate::fixture::{Fixture, block_on, check_in, send};
use gateway::telemetry::metrics::{Figure, Series, Spread};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

/// Requests for scores over HTTP and gRPC, and others; then how long they waited.
fn figures() -> Vec<Series> {
    let series = |name: &str, labels: &[(&str, &str)], figure| Series {
        name: format!("crossgate_{name}"),
        labels: labels
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        figure,
    };
    let calls = |protocol, route, status, n| {
        let labels = [("protocol", protocol), ("route", route), ("status", status)];
        series("requests_total", &labels, Figure::Count(n))
    };
    let waits = |model, buckets: &[(f64, u64)]| {
        let labels = [("model", model), ("stage", "queue")];
        let spread = Spread {
            count: 4,
            sum: 0.006,
            buckets: buckets.to_vec(),
        };
        series("stage_duration_seconds", &labels, Figure::Spread(spread))
    };
    vec![
        calls("http", "/v2/rerank", "200", 5.0),
        calls("http", "/v1/retrieval/{owner}/{name}/reranking", "200", 1.0),
        calls("http", "/rerank", "429", 1.0),
        calls("http", "/health", "200", 100.0),
        calls("http", "unmatched", "404", 100.0),
        calls("grpc", "/crossgate.v1.Scoring/Score", "0", 2.0),
        calls("grpc", "/crossgate.v1.Scoring/Score", "8", 1.0),
        calls("grpc", "/grpc.health.v1.Health/Check", "0", 100.0),
        calls("admin", "/plugins", "200", 100.0),
        waits("a", &[(0.001, 2), (0.002, 4), (f64::INFINITY, 4)]),
        waits("b", &[(0.001, 2), (0.002, 4), (f64::INFINITY, 4)]),
    ]
}

#[test]
fn metrics_as_json() {
    let mut fixture = Fixture::new();
    fixture.edge.metrics = Arc::new(FakeMetrics(
        Mutex::default(),
        Mutex::default(),
        Mutex::new(figures()),
    ));
    let wanted = r#"{"total_requests":10,"successful_requests":8,"failed_requests":2,"success_rate":0.8,
        "avg_wait_time_ms":1.5,"avg_process_time_ms":0,"p50_wait_time_ms":1,"p95_wait_time_ms":1.9,
        "p99_wait_time_ms":1.98,"p50_process_time_ms":0}"#;
    for (line, headers) in [
        ("GET /metrics?format=json", &[][..]),
        (
            "GET /metrics",
            &["accept: application/json, text/plain"][..],
        ),
        ("GET /metrics?x=1&format=JSON", &["accept: text/plain"][..]),
    ] {
        check_in(&fixture, line, headers, "", 200, wanted);
    }
    let reply = block_on(send(fixture.http(), "GET /metrics?format=json", &[], ""));
    let rows = reply.json()["metrics"].as_array().expect("rows").clone();
    assert_eq!(rows.len(), 11);
    assert_eq!(rows[0]["value"], 5.0);
    assert_eq!(rows[9]["labels"]["stage"], "queue");
    assert_eq!(
        (&rows[9]["count"], &rows[9]["value"]),
        (&json!(4), &Value::Null)
    );
    for (line, headers) in [
        ("GET /metrics", &[][..]),
        ("GET /metrics", &["accept: */*"][..]),
        (
            "GET /metrics?format=prometheus",
            &["accept: application/json"][..],
        ),
    ] {
        let reply = block_on(send(fixture.http(), line, headers, ""));
        assert!(reply.text.starts_with("# TYPE"), "{line}: {}", reply.text);
    }
    // Operators have it count anew.
    let headers = ["host: localhost"];
    let reset = block_on(send(fixture.admin(), "POST /metrics/reset", &headers, ""));
    assert_eq!(
        (reset.status, reset.text.as_str()),
        (200, r#"{"reset":true}"#)
    );
    let anew = r#"{"total_requests":0,"success_rate":1,"metrics":[]}"#;
    check_in(&fixture, "GET /metrics?format=json", &[], "", 200, anew);
}
