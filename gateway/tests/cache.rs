//! What was scored is known, what is being scored is waited for, and nothing is mixed up: on real sockets,
//! with the fake plugin's library.

#[path = "cache/distributed.rs"]
mod distributed;
#[allow(dead_code, reason = "shared with other tests")]
#[path = "shared/fixture.rs"]
mod redis;
#[path = "serve/server.rs"]
mod server;

use serde_json::{Value, json};
use server::{Answer, Server, token};
use std::time::Duration;

/// A document that holds a rare word; the fake can be told what to do when it sees it.
const RARE: &str = "a volcano";

const CACHED: [(&str, &str); 2] = [("cache.enabled", "true"), ("cache.coalesce", "true")];
const COALESCED: [(&str, &str); 1] = [("cache.coalesce", "true")];

fn ask(documents: &[&str]) -> Value {
    json!({"query": "green plants", "documents": documents, "raw_scores": true})
}

/// Hits, coalesced and misses.
fn origins(server: &Server) -> [f64; 3] {
    ["hit", "coalesced", "miss"].map(|outcome| {
        let label = format!("outcome=\"{outcome}\"");
        server.metric_of("crossgate_cache_rows_total", &label)
    })
}

fn rows(server: &Server) -> f64 {
    server.metric("crossgate_rows_total")
}

/// The scores by document.
#[track_caller]
fn scores(answer: &Answer) -> Vec<f64> {
    assert_eq!(answer.status, 200, "{answer:?}");
    let mut results = answer.results();
    results.sort_by_key(|result| result["index"].as_u64());
    let score = |result: &Value| result["relevance_score"].as_f64().unwrap();
    results.iter().map(score).collect()
}

#[test]
fn what_comes_again_is_not_computed_again() {
    let server = Server::start("{}", &CACHED);
    let first = server.rerank(&ask(&["red cars", "green plants", "green cars"]));
    assert_eq!((rows(&server), origins(&server)), (3.0, [0.0, 0.0, 3.0]));
    // Another order, and one that is new: the rest is computed.
    let second = server.rerank(&ask(&["green cars", "blue plants", "red cars"]));
    assert_eq!((rows(&server), origins(&server)), (4.0, [2.0, 0.0, 4.0]));
    let (first_scores, second_scores) = (scores(&first), scores(&second));
    assert_eq!(second_scores[0], first_scores[2]);
    assert_eq!(second_scores[2], first_scores[0]);
    // The same words under another query are another pair.
    let other = json!({"query": "red cars", "documents": ["green cars"]});
    assert_eq!(server.rerank(&other).status, 200);
    assert_eq!((rows(&server), origins(&server)), (5.0, [2.0, 0.0, 5.0]));
    let health: Value = serde_json::from_str(&server.get("/health").text).unwrap();
    assert_eq!(health["model"]["cache_enabled"], true);
    assert_eq!(health["stats"]["starter"]["total_requests"], 3);
}

#[test]
fn an_answer_from_the_cache_says_what_the_first_one_said() {
    let server = Server::start("{}", &CACHED);
    let long = "light ".repeat(2_000);
    let body = ask(&["green plants", &long]);
    let (first, again) = (server.rerank(&body), server.rerank(&body));
    assert_eq!(origins(&server), [2.0, 0.0, 2.0]);
    let told = |answer: &Answer| {
        let body: Value = serde_json::from_str(&answer.text).unwrap();
        ["results", "usage", "meta", "model"].map(|key| body[key].clone())
    };
    assert_eq!(told(&first), told(&again));
    assert!(again.text.contains("documents[1]"), "{}", again.text);
}

#[test]
fn equal_documents_of_one_request_are_computed_once() {
    for settings in [&CACHED[..], &COALESCED] {
        let server = Server::start("{}", settings);
        let found = scores(&server.rerank(&ask(&["red", "green", "red", "red"])));
        assert_eq!((rows(&server), origins(&server)), (2.0, [0.0, 2.0, 2.0]));
        assert_eq!([found[0], found[0]], [found[2], found[3]]);
        assert_ne!(found[0], found[1]);
    }
    let server = Server::start("{}", &[]);
    scores(&server.rerank(&ask(&["red", "red"])));
    assert_eq!((rows(&server), origins(&server)), (2.0, [0.0; 3]));
}

#[test]
fn equal_requests_at_the_same_time_are_computed_once() {
    let server = Server::start("{}", &COALESCED);
    let hold = server.hold();
    let body = ask(&["red cars", "green plants"]);
    let waiting: Vec<_> = (0..20).map(|_| server.rerank_later(&body)).collect();
    server.until(|| (server.metric("crossgate_cache_flights") == 2.0).then_some(()));
    // Room is taken by what is computed, not by who waits for it.
    server.until(|| {
        let health: Value = serde_json::from_str(&server.get("/health").text).unwrap();
        (health["controller"]["active"] == 20).then_some(())
    });
    drop(hold);
    let mut all: Vec<_> = waiting
        .into_iter()
        .map(|thread| scores(&thread.join().unwrap()))
        .collect();
    all.dedup();
    assert_eq!(all.len(), 1);
    assert_eq!(rows(&server), 2.0);
    let [hit, coalesced, miss] = origins(&server);
    assert_eq!((hit, coalesced + miss, miss), (0.0, 40.0, 2.0));
    // It was not kept.
    scores(&server.rerank(&body));
    assert_eq!(rows(&server), 4.0);
    assert_eq!(server.metric("crossgate_cache_flights"), 0.0);
}

#[test]
fn a_flight_goes_on_when_the_one_who_began_it_leaves() {
    let server = Server::start("{}", &COALESCED);
    let hold = server.hold();
    let gone = server.connect_and_ask(&ask(&["red cars", "green plants", "blue"]));
    server.until(|| (server.metric("crossgate_cache_flights") == 3.0).then_some(()));
    let stays = server.rerank_later(&ask(&["green plants", "white"]));
    server.until(|| (server.metric("crossgate_cache_flights") == 4.0).then_some(()));
    drop(gone);
    // What only that one wanted is no flight any more.
    server.until(|| (server.metric("crossgate_cache_flights") == 2.0).then_some(()));
    drop(hold);
    assert_eq!(scores(&stays.join().unwrap()).len(), 2);
    assert_eq!(server.metric("crossgate_cache_flights"), 0.0);
    let cancelled = server.metric_of("crossgate_score_requests_total", "outcome=\"cancelled\"");
    assert_eq!(cancelled, 1.0);
}

#[test]
fn who_allows_more_time_gets_it_whoever_began() {
    let settings = [&COALESCED[..], &[("server.request_timeout", "1s")]].concat();
    let server = Server::start("{}", &settings);
    let hold = server.hold();
    let body = ask(&["red cars"]);
    let impatient = server.rerank_within(&body, Duration::from_millis(300));
    server.until(|| (server.metric("crossgate_cache_flights") == 1.0).then_some(()));
    let patient = server.rerank_later(&body);
    assert_eq!(impatient.join().unwrap().status, 504);
    drop(hold);
    assert_eq!(scores(&patient.join().unwrap()).len(), 1);
    assert_eq!(rows(&server), 1.0);
}

#[test]
fn faults_are_not_kept() {
    let options = json!({"fail_row_on": token("volcano")}).to_string();
    let server = Server::start(&options, &CACHED);
    for n_tries in 1..=2 {
        let answer = server.rerank(&ask(&["green plants", RARE]));
        assert_eq!(answer.status, 502, "{answer:?}");
        assert!(answer.text.contains("documents[1]"), "{answer:?}");
        let failed = server.metric_of("crossgate_score_requests_total", "outcome=\"backend\"");
        assert_eq!(failed, f64::from(n_tries));
    }
    // The good one of them is known.
    scores(&server.rerank(&ask(&["green plants"])));
    let [hit, ..] = origins(&server);
    assert_eq!(hit, 1.0);
    // Each is told its own index.
    let answer = server.rerank(&ask(&[RARE, "green plants"]));
    assert!(answer.text.contains("documents[0]"), "{answer:?}");
}

#[test]
fn a_cleared_cache_computes_again() {
    let server = Server::start("{}", &CACHED);
    let body = ask(&["red cars", "green plants"]);
    scores(&server.rerank(&body));
    server.until(|| (server.metric("crossgate_cache_entries") == 2.0).then_some(()));
    assert!(server.metric("crossgate_cache_size_bytes") > 0.0);
    let cleared: Value = serde_json::from_str(&server.act("/cache/clear").text).unwrap();
    assert_eq!(cleared["cleared"], 2);
    assert_eq!(server.metric("crossgate_cache_entries"), 0.0);
    scores(&server.rerank(&body));
    assert_eq!(rows(&server), 4.0);
}

#[test]
fn time_to_live_and_clear_interval_hold() {
    let (ttl, interval) = (("cache.ttl", "1s"), ("cache.clear_interval", "1s"));
    for setting in [ttl, interval] {
        let server = Server::start("{}", &[&CACHED[..], &[setting]].concat());
        let body = ask(&["red cars"]);
        server.until(|| {
            scores(&server.rerank(&body));
            (rows(&server) >= 2.0).then_some(())
        });
        let [hit, ..] = origins(&server);
        assert!(hit > 0.0, "{setting:?}: it was known for a while");
    }
}

#[test]
fn memory_is_bounded() {
    let settings = [&CACHED[..], &[("cache.bytes_max", "1MiB")]].concat();
    let server = Server::start("{}", &settings);
    for round in 0..10 {
        let documents: Vec<_> = (0..1_000)
            .map(|idx| format!("{round} times {idx}"))
            .collect();
        let documents: Vec<_> = documents.iter().map(String::as_str).collect();
        scores(&server.rerank(&ask(&documents)));
    }
    assert_eq!(rows(&server), 10_000.0);
    server.until(|| {
        let bytes = server.metric("crossgate_cache_size_bytes");
        (100_000.0 < bytes && bytes <= 1_048_576.0).then_some(())
    });
}

#[test]
fn who_joined_is_not_failed_by_what_he_did_not_ask_for() {
    let options = json!({"fault_on": token("volcano")}).to_string();
    let settings = [
        &COALESCED[..],
        &[("threads.total", "1"), ("worker.retries_max", "0")],
    ];
    let server = Server::start(&options, &settings.concat());
    let hold = server.hold();
    let guilty = server.rerank_later(&ask(&["green plants", RARE]));
    server.until(|| (server.metric("crossgate_workers_busy") == 1.0).then_some(()));
    let joined = server.rerank_later(&ask(&["green plants"]));
    server.until(|| {
        let health: Value = serde_json::from_str(&server.get("/health").text).unwrap();
        (health["controller"]["active"] == 2).then_some(())
    });
    drop(hold);
    assert_eq!(guilty.join().unwrap().status, 502);
    assert_eq!(scores(&joined.join().unwrap()).len(), 1);
}
