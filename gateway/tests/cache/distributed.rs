//! The second level: two whole servers over one Redis.

use crate::redis::Redis;
use crate::server::{Server, token};
use crate::{RARE, ask, rows, scores};
use serde_json::{Value, json};

fn settings(url: &str) -> Vec<(&str, &str)> {
    vec![
        ("cache.enabled", "true"),
        ("cache.coalesce", "true"),
        ("distributed.enabled", "true"),
        ("distributed.redis_url", url),
        ("distributed.operation_timeout", "250ms"),
    ]
}

/// A server that has reached Redis.
fn start(url: &str, more: &[(&str, &str)]) -> Server {
    let server = Server::start("{}", &[&settings(url)[..], more].concat());
    let breaker = || server.metric("crossgate_distributed_breaker");
    server.until(|| (breaker() == 0.0).then_some(()));
    server
}

fn hits_of_others(server: &Server) -> f64 {
    let label = "outcome=\"hit_distributed\"";
    server.metric_of("crossgate_cache_rows_total", label)
}

/// Waits until so many pairs were written for all servers.
fn until_written(server: &Server, n: f64) {
    let label = "outcome=\"written\"";
    let written = || server.metric_of("crossgate_distributed_writes_total", label);
    server.until(|| (written() == n).then_some(()));
}

#[test]
fn what_one_server_computed_the_other_knows() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let url = redis.url();
    let (first, second) = (start(&url, &[]), start(&url, &[]));
    let long = "light ".repeat(2_000);
    let body = ask(&["red cars", "green plants", &long]);
    let answer = first.rerank(&body);
    until_written(&first, 3.0);
    let again = second.rerank(&body);
    assert_eq!(scores(&again), scores(&answer));
    assert_eq!((rows(&second), hits_of_others(&second)), (0.0, 3.0));
    let told = |text: &str| {
        let body: Value = serde_json::from_str(text).unwrap();
        ["results", "usage", "meta"].map(|key| body[key].clone())
    };
    assert_eq!(told(&again.text), told(&answer.text));
    // Then it knows them itself, and computes only what is new.
    scores(&second.rerank(&ask(&["red cars", "blue cars"])));
    assert_eq!((rows(&second), hits_of_others(&second)), (1.0, 3.0));
    // Another model's scores are not this one's.
    let other = r#"{"bias": 1.0}"#;
    let third = Server::start(other, &settings(&url));
    let breaker = || third.metric("crossgate_distributed_breaker");
    third.until(|| (breaker() == 0.0).then_some(()));
    assert_ne!(scores(&third.rerank(&body)), scores(&answer));
    assert_eq!((rows(&third), hits_of_others(&third)), (3.0, 0.0));
}

#[test]
fn what_one_operator_clears_is_forgotten_everywhere() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let url = redis.url();
    let (first, second) = (start(&url, &[]), start(&url, &[]));
    let body = ask(&["red cars", "green plants"]);
    scores(&first.rerank(&body));
    until_written(&first, 2.0);
    scores(&second.rerank(&body));
    assert_eq!(rows(&second), 0.0);
    assert_eq!(first.act("/cache/clear").status, 200);
    second.until(|| (second.metric("crossgate_cache_entries") == 0.0).then_some(()));
    scores(&second.rerank(&body));
    assert_eq!(rows(&second), 2.0);
}

#[test]
fn a_known_pair_needs_no_place_among_those_that_compute() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let url = redis.url();
    let bound = [("distributed.requests_max", "1")];
    let (first, second) = (start(&url, &bound), start(&url, &bound));
    let known = ask(&["green plants"]);
    scores(&second.rerank(&known));
    let leases = |server: &Server| server.metric("crossgate_distributed_leases");
    second.until(|| (leases(&second) == 0.0).then_some(()));
    let hold = first.hold();
    let computing = first.rerank_later(&ask(&["red cars"]));
    first.until(|| (leases(&first) == 1.0).then_some(()));
    let refused = second.rerank(&ask(&["blue cars"]));
    assert_eq!(refused.status, 429, "{refused:?}");
    assert!(
        refused.text.contains("distributed.requests_max"),
        "{refused:?}"
    );
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    scores(&second.rerank(&known));
    drop(hold);
    scores(&computing.join().unwrap());
    // Its place is free again.
    second.until(|| (second.rerank(&ask(&["blue cars"])).status == 200).then_some(()));
}

#[test]
fn what_lies_in_redis_is_not_trusted() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let url = redis.url();
    let (first, second) = (start(&url, &[]), start(&url, &[]));
    let body = ask(&["red cars", "green plants"]);
    let answer = first.rerank(&body);
    until_written(&first, 2.0);
    let mut client = redis.client();
    let keys: Vec<Vec<u8>> = ::redis::cmd("KEYS")
        .arg("crossgate:v*:*")
        .query(&mut client)
        .unwrap();
    assert_eq!(keys.len(), 2);
    for (key, wrong) in keys
        .iter()
        .zip([&b"short"[..], &[0, 0, 0, 0, 0, 0, 0, 192, 127]])
    {
        let () = ::redis::cmd("SET")
            .arg(key)
            .arg(wrong)
            .query(&mut client)
            .unwrap();
    }
    assert_eq!(scores(&second.rerank(&body)), scores(&answer));
    assert_eq!((rows(&second), hits_of_others(&second)), (2.0, 0.0));
}

/// Pairs are coalesced and not kept, and admission waits for Redis, a second at most where that hangs.
fn waiting_for_redis(url: &str, options: &str) -> Server {
    let settings = [
        ("cache.coalesce", "true"),
        ("distributed.enabled", "true"),
        ("distributed.redis_url", url),
        ("distributed.operation_timeout", "1s"),
        ("distributed.requests_max", "100"),
        ("threads.total", "1"),
        ("worker.retries_max", "0"),
        // A request's rows are one batch.
        ("batch.us_max", "1m"),
    ];
    let server = Server::start(options, &settings);
    let breaker = || server.metric("crossgate_distributed_breaker");
    server.until(|| (breaker() == 0.0).then_some(()));
    server
}

fn until_inside(server: &Server, n: u64) {
    server.until(|| {
        let health: Value = serde_json::from_str(&server.get("/health").text).unwrap();
        (health["controller"]["active"] == n).then_some(())
    });
}

fn until_flights(server: &Server, n: f64) {
    server.until(|| (server.metric("crossgate_cache_flights") == n).then_some(()));
}

#[test]
fn a_flight_whose_beginner_leaves_before_it_is_admitted_is_begun_again() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let url = redis.url();
    let server = waiting_for_redis(&url, "{}");
    let hold = server.hold();
    let first = server.connect_and_ask(&ask(&["green plants"]));
    until_flights(&server, 1.0);
    redis.hang();
    // It counts on the first one's flight, asks to be admitted for the other, and then has to ask for both.
    let beginner = server.connect_and_ask(&ask(&["green plants", "red cars"]));
    until_inside(&server, 2);
    drop(first);
    until_flights(&server, 0.0);
    until_flights(&server, 2.0);
    let joined = server.rerank_later(&ask(&["green plants"]));
    until_inside(&server, 2);
    drop(beginner);
    until_inside(&server, 1);
    redis.go_on();
    drop(hold);
    assert_eq!(scores(&joined.join().unwrap()).len(), 1);
    until_flights(&server, 0.0);
}

#[test]
fn what_lands_while_the_rest_is_tried_again_is_not_lost() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let url = redis.url();
    // A row takes long enough that who is told of a fault has begun again by then.
    let options = json!({"fault_on": token("volcano"), "row_us": 30_000}).to_string();
    let server = waiting_for_redis(&url, &options);
    let hold = server.hold();
    let guilty = server.rerank_later(&ask(&["green plants", RARE]));
    server.until(|| (server.metric("crossgate_workers_busy") == 1.0).then_some(()));
    // One flight is the guilty one's, the other its own.
    let joined = server.rerank_later(&ask(&["green plants", "red cars"]));
    until_flights(&server, 3.0);
    redis.hang();
    drop(hold);
    assert_eq!(guilty.join().unwrap().status, 502);
    // Its own lands while it waits to be admitted for the other.
    assert_eq!(scores(&joined.join().unwrap()).len(), 2);
    redis.go_on();
}
