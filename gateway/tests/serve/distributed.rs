//! Two whole servers over one Redis.

use crate::redis::Redis;
use crate::server::{Server, token};
use crate::{RARE, documents};
use serde_json::{Value, json};

fn peers(server: &Server) -> Vec<Value> {
    let health: Value = serde_json::from_str(&server.get("/health").text).unwrap();
    health["peers"].as_array().expect("a list").clone()
}

#[test]
fn a_model_that_fails_on_one_server_is_in_the_other_s_health() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let broken = dir.path().join("broken");
    let options = json!({"panic_on": token("volcano"), "broken": broken}).to_string();
    let url = redis.url();
    let settings = [
        ("distributed.enabled", "true"),
        ("distributed.redis_url", url.as_str()),
        ("distributed.operation_timeout", "250ms"),
        ("threads.total", "1"),
    ];
    let (failing, other) = (
        Server::start(&options, &settings),
        Server::start("{}", &settings),
    );
    assert_eq!(peers(&other), Vec::<Value>::new());
    std::fs::write(&broken, "").unwrap();
    let guilty = failing.rerank_later(&json!({"query": "q", "documents": [RARE]}));
    let peer = other.until(|| peers(&other).pop());
    let fault = (&peer["model"], &peer["plugin"]);
    assert_eq!(fault, (&json!("starter"), &json!("fake")), "{peer}");
    assert!(!peer["server"].as_str().unwrap().is_empty(), "{peer}");
    assert!(peer["since"].as_u64().unwrap() > 1_700_000_000, "{peer}");
    assert_eq!(other.metric("crossgate_distributed_peer_faults"), 1.0);
    // The one that hears of it is not concerned itself.
    assert_eq!(other.get("/readyz").status, 200);

    std::fs::remove_file(&broken).unwrap();
    other.until(|| peers(&other).is_empty().then_some(()));
    let answer = guilty.join().unwrap();
    assert!([502, 504].contains(&answer.status), "{answer:?}");
    let answer = failing.rerank(&json!({"query": "plants", "documents": documents(3)}));
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[test]
fn servers_serve_whatever_redis_does() {
    let Some(mut redis) = Redis::new(&[]) else {
        return;
    };
    let url = redis.url();
    let server = Server::start(
        "{}",
        &[
            ("distributed.enabled", "true"),
            ("distributed.redis_url", url.as_str()),
        ],
    );
    let body = json!({"query": "plants", "documents": documents(3)});
    let serves = || assert_eq!(server.rerank(&body).status, 200);
    let breaker = |state: f64| {
        let metric = || server.metric("crossgate_distributed_breaker");
        server.until(|| (metric() == state).then_some(()));
    };
    breaker(2.0);
    serves();
    redis.start_again();
    breaker(0.0);
    serves();
    redis.hang();
    serves();
    breaker(2.0);
    serves();
    redis.go_on();
    breaker(0.0);
    redis.kill();
    serves();
}

#[test]
fn a_client_s_rate_holds_over_both_servers() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let url = redis.url();
    let settings = [
        ("distributed.enabled", "true"),
        ("distributed.redis_url", url.as_str()),
        ("distributed.operation_timeout", "250ms"),
        ("distributed.rate_max", "1"),
        ("distributed.rate_burst", "20"),
        ("distributed.client_header", "x-real-ip"),
    ];
    let servers = [
        Server::start("{}", &settings),
        Server::start("{}", &settings),
    ];
    for server in &servers {
        let breaker = || server.metric("crossgate_distributed_breaker");
        server.until(|| (breaker() == 0.0).then_some(()));
    }
    let body = json!({"query": "plants", "documents": documents(1)});
    // The connections' address, as there is no such header.
    let mut n_served = 0;
    let refused = loop {
        let answer = servers[n_served % 2].rerank(&body);
        match answer.status {
            200 => n_served += 1,
            _ => break answer,
        }
        assert!(n_served < 200, "nobody is refused");
    };
    assert!(n_served >= 20, "{n_served}");
    assert_eq!(refused.status, 429, "{refused:?}");
    assert!(refused.text.contains("distributed.rate_max"), "{refused:?}");
    // Within a second, and some chance on top.
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=2).contains(&wait), "{refused:?}");
    // Another client behind a proxy; and what is no request for scores is never refused.
    let other = servers[0].rerank_with(("x-real-ip", "10.1.2.3"), &body);
    assert_eq!(other.status, 200, "{other:?}");
    assert_eq!(servers[1].get("/health").status, 200);
}
