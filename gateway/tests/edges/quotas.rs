//! Who may ask over HTTP and gRPC: those who show a key, within its limits.

use crate::fixture::{Fixture, JSON, Reply, block_on, holds, send};
use crate::grpc::proto::scoring_client::ScoringClient;
use crate::grpc::{connect, score};
use gateway::config::Config;
use gateway::edge::Keyring;
use gateway::telemetry::Metrics;
use serde_json::json;
use std::fs;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const KEY: &str = "0123456789abcdefABCDEF";
const OTHER: &str = "fedcba9876543210FEDCBA";
const QUESTION: &str = r#"{"query":"q","documents":["1","2"]}"#;

impl Fixture {
    /// With these settings of keys.
    pub(crate) fn with_keys(said: &[(&str, &str)]) -> Self {
        let config = Config::of(said).unwrap_or_else(|error| panic!("{error}"));
        let keys = Keyring::new(move || config.api_keys());
        let mut fixture = Self::new();
        fixture.edge.keys = Some(keys.unwrap_or_else(|error| panic!("{error}")));
        fixture
    }

    fn ask(&self, line: &str, headers: &[&str], body: &str) -> Reply {
        block_on(send(self.http(), line, headers, body.to_owned()))
    }

    fn ask_with(&self, key: &str, line: &str, body: &str) -> Reply {
        let shown = format!("authorization: Bearer {key}");
        self.ask(line, &[JSON[0], &shown], body)
    }

    /// What was counted for keys.
    fn counted(&self) -> Vec<(String, &'static str, usize)> {
        let counted = self.metrics.1.lock().expect("no panic");
        counted.clone()
    }
}

/// A fixture with one key, of one name.
fn locked() -> Fixture {
    Fixture::with_keys(&[("server.api_keys", &format!("search={KEY}"))])
}

#[test]
fn who_shows_no_key_gets_no_score_and_learns_of_no_model() {
    let fixture = locked();
    for line in [
        "POST /rerank",
        "POST /v2/rerank",
        "GET /models",
        "GET /v1/models",
        "GET /v1/models/default",
        "GET /v1/models/hub/default",
        "GET /metrics",
        "GET /info",
        "GET /rerank",
        "GET /nowhere",
    ] {
        for (headers, found) in [
            (JSON.to_vec(), "is missing"),
            (vec![JSON[0], "authorization: Bearer nonsense"], "is wrong"),
            (vec![JSON[0], "x-api-key: nonsense"], "is wrong"),
        ] {
            let refused = fixture.ask(line, &headers, QUESTION);
            assert_eq!(refused.status, 401, "{line}: {}", refused.text);
            let scheme = refused.header("www-authenticate");
            assert_eq!(scheme, "Bearer realm=\"crossgate\"", "{line}");
            assert!(!refused.header("x-request-id").is_empty(), "{line}");
            let wanted = match line {
                "GET /info" => json!({"error": format!("~{found}"), "error_type": "Validation"}),
                _ => json!({"error": {"code": "invalid_api_key"}, "message": format!("~{found}")}),
            };
            assert!(holds(&refused.json(), &wanted), "{line}: {}", refused.text);
            assert!(!refused.text.contains("nonsense"), "{}", refused.text);
        }
    }
    assert!(
        fixture
            .counted()
            .iter()
            .all(|(key, outcome, n)| { (key.as_str(), *outcome, *n) == ("", "unknown", 0) })
    );
    // Nobody was let in.
    assert!(fixture.edge.door.is_idle());
}

#[test]
fn probes_and_documentation_need_no_key() {
    for path in [
        "/health",
        "/livez",
        "/ping",
        "/v1/health/live",
        "/readyz",
        "/v1/health/ready",
        "/openapi.json",
        "/docs",
        "/docs/",
        "/",
    ] {
        let reply = locked().ask(&format!("GET {path}"), &[], "");
        assert!(reply.status < 400, "{path}: {}", reply.status);
    }
    // A browser asks for leave before it shows anything.
    let asks = [
        "origin: http://a.example",
        "access-control-request-method: POST",
        "access-control-request-headers: authorization, x-api-key",
    ];
    let reply = locked().ask("OPTIONS /rerank", &asks, "");
    assert_eq!(reply.status, 200);
    let allowed = reply.header("access-control-allow-headers");
    assert!(allowed.contains("authorization") && allowed.contains("x-api-key"));
    // And reads why it was refused.
    let refused = locked().ask("POST /rerank", &[JSON[0], asks[0]], QUESTION);
    let origin = refused.header("access-control-allow-origin");
    assert_eq!((refused.status, origin), (401, "*"));
}

#[test]
fn a_key_opens_however_it_is_shown() {
    let fixture = locked();
    for (shown, status) in [
        (format!("authorization: Bearer {KEY}"), 200),
        (format!("authorization: bearer  {KEY} "), 200),
        (format!("authorization: {KEY}"), 200),
        (format!("api-key: {KEY}"), 200),
        (format!("x-api-key: {KEY}"), 200),
        (format!("x-key: {KEY}"), 401),
        (format!("authorization: Basic {KEY}"), 401),
        (format!("authorization: Bearer {}", &KEY[1..]), 401),
        (format!("authorization: Bearer {}", KEY.to_lowercase()), 401),
        (format!("authorization: Bearer search={KEY}"), 401),
        ("authorization: Bearer search".to_owned(), 401),
        ("authorization: Bearer ".to_owned(), 401),
    ] {
        let reply = fixture.ask("POST /rerank", &[JSON[0], &shown], QUESTION);
        assert_eq!(reply.status, status, "{shown}: {}", reply.text);
    }
    // A gateway in front may have a key of its own in the other header.
    let both = [
        JSON[0],
        "authorization: Bearer its-own",
        &format!("api-key: {KEY}"),
    ];
    assert_eq!(fixture.ask("POST /rerank", &both, QUESTION).status, 200);
}

#[tokio::test]
async fn grpc_needs_the_key_in_its_metadata() {
    let (channel, _) = connect(&locked()).await;
    let mut client = ScoringClient::new(channel.clone());
    let asked = |shown: Option<String>| {
        let mut request = Request::new(score("q", &["1"]));
        if let Some(shown) = shown {
            let shown = shown.parse().expect("ASCII");
            request.metadata_mut().insert("authorization", shown);
        }
        request
    };
    for (shown, word) in [
        (None, "is missing"),
        (Some("Bearer x".to_owned()), "is wrong"),
    ] {
        let refused = client.score(asked(shown)).await.expect_err("no key");
        assert_eq!(refused.code(), Code::Unauthenticated);
        assert!(refused.message().contains(word), "{refused}");
    }
    for shown in [format!("Bearer {KEY}"), KEY.to_owned()] {
        let answer = client.score(asked(Some(shown))).await.expect("scores");
        assert_eq!(answer.into_inner().scores, [1.0]);
    }
    let service = String::new();
    let mut probe = HealthClient::new(channel);
    let health = probe.check(HealthCheckRequest { service }).await;
    health.expect("a probe has no key");
}

#[test]
fn a_key_has_so_many_requests() {
    let fixture = Fixture::with_keys(&[(
        "server.api_keys",
        &format!("slow={KEY} rate=1 burst=2,{OTHER}"),
    )]);
    let ask = |key| fixture.ask_with(key, "POST /rerank", QUESTION);
    for _ in 0..2 {
        assert_eq!(ask(KEY).status, 200);
    }
    // On a slow machine a second may have passed.
    let refused = std::iter::repeat_with(|| ask(KEY)).find(|reply| reply.status != 200);
    let refused = refused.expect("an end");
    assert_eq!(refused.status, 429, "{}", refused.text);
    let seconds: u64 = refused.header("retry-after").parse().expect("seconds");
    assert!((1..=3).contains(&seconds), "{seconds}");
    for word in [
        "\"slow\"",
        "1 requests per second",
        "keys.rate_max",
        "2 at once",
    ] {
        assert!(
            refused.text.contains(&word.replace('"', "\\\"")),
            "{}",
            refused.text
        );
    }
    assert!(!refused.text.contains(KEY));
    // What asks for no score is not counted, nor is another's.
    assert_eq!(fixture.ask_with(KEY, "GET /models", "").status, 200);
    for _ in 0..9 {
        assert_eq!(ask(OTHER).status, 200);
    }
    let counted = fixture.counted();
    assert!(
        counted.contains(&("slow".to_owned(), "ok", 2)),
        "{counted:?}"
    );
    assert!(
        counted.contains(&("slow".to_owned(), "limited", 0)),
        "{counted:?}"
    );
    // One without a name is called by its place.
    assert!(
        counted.contains(&("key-2".to_owned(), "ok", 2)),
        "{counted:?}"
    );
    assert!(fixture.edge.door.is_idle());
}

#[test]
fn a_key_has_so_many_documents() {
    let fixture = Fixture::with_keys(&[
        ("server.api_keys", &format!("batch={KEY}")),
        ("keys.documents_per_day", "3"),
    ]);
    let ask = |body: &str| fixture.ask_with(KEY, "POST /rerank", body);
    let left = |reply: &Reply| reply.header("x-ratelimit-remaining-documents").to_owned();
    // What was not scored has not been used.
    for _ in 0..4 {
        assert_eq!(
            ask(r#"{"query":"overloaded","documents":["1","2"]}"#).status,
            429
        );
        assert_eq!(ask("{}").status, 422);
    }
    let first = ask(QUESTION);
    assert_eq!((first.status, left(&first).as_str()), (200, "1"));
    // Requests are not limited.
    assert_eq!(first.header("x-ratelimit-remaining-requests"), "");
    // One is left: who begins within them is answered whole.
    assert_eq!(ask(QUESTION).status, 200);
    let refused = ask(QUESTION);
    assert_eq!(refused.status, 429, "{}", refused.text);
    assert!(
        refused.text.contains("the 3 documents per day"),
        "{}",
        refused.text
    );
    assert_eq!(left(&refused), "0");
    let seconds: u64 = refused.header("retry-after").parse().expect("seconds");
    // Two thirds of a day, for the one that was too many and the one that is asked for.
    assert!((57_000..57_700).contains(&seconds), "{seconds}");
    let counted = fixture.counted();
    let n_documents: usize = counted.iter().map(|(_, _, n)| n).sum();
    assert_eq!(n_documents, 4, "{counted:?}");
}

#[test]
fn a_file_of_keys_is_read_again_and_debts_are_remembered() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("keys");
    let write = |text: &str| fs::write(&path, text).expect("written");
    write(&format!(
        "# who searches\nsearch={KEY} documents_per_day=1 # slowly\n\n"
    ));
    let said = path.display().to_string();
    let fixture = Fixture::with_keys(&[("server.api_key_file", &said)]);
    let keys = fixture.edge.keys.clone().expect("keys");
    let status = |key| fixture.ask_with(key, "POST /rerank", QUESTION).status;
    assert_eq!((status(KEY), status(OTHER)), (200, 401));
    // Two keys of one name, while one replaces the other: they share its limits.
    write(&format!(
        "search={KEY} documents_per_day=1\nsearch={OTHER} documents_per_day=1\n"
    ));
    keys.refresh();
    assert_eq!((status(KEY), status(OTHER)), (429, 429));
    // What makes no sense changes nothing; nor does an empty file let everybody in.
    for wrong in ["", "search=short\n", "search=x documents_per_day=many\n"] {
        write(wrong);
        keys.refresh();
        assert_eq!((status(OTHER), status("nonsense")), (429, 401), "{wrong:?}");
    }
    write(&format!("search={OTHER}\n"));
    keys.refresh();
    assert_eq!((status(KEY), status(OTHER), status(OTHER)), (401, 200, 200));
}

#[test]
fn names_are_counted_and_keys_are_written_nowhere() {
    let metrics = Metrics::new().expect("instruments");
    metrics.key("search", "ok", 2);
    metrics.key("search", "limited", 0);
    let text = metrics.text();
    for line in [
        "crossgate_key_requests_total{key=\"search\",outcome=\"ok\"} 1\n",
        "crossgate_key_requests_total{key=\"search\",outcome=\"limited\"} 1\n",
        "crossgate_key_documents_total{key=\"search\"} 2\n",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    let log = crate::log::written(tracing::Level::TRACE, || {
        let fixture = locked();
        fixture.ask_with(KEY, "POST /rerank", QUESTION);
        fixture.ask_with(KEY, "POST /rerank", "{");
        fixture.ask_with(OTHER, "POST /rerank", QUESTION);
    });
    assert_eq!(log.matches("key=\"search\"").count(), 2, "{log}");
    assert!(!log.contains(KEY) && !log.contains(OTHER), "{log}");
}
