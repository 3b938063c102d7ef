//! A server that is told to stop: who was let in is answered, who comes is refused.

use crate::documents;
use crate::server::Server;
use serde_json::json;
use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

#[test]
fn a_drain_answers_what_was_admitted_and_refuses_the_rest() {
    let server = Server::start("{}", &[]);
    let hold = server.hold();
    let admitted = server.rerank_later(&json!({"query": "q", "documents": documents(50)}));
    server.until(|| (server.metric("crossgate_requests_in_flight") >= 1.0).then_some(()));
    let draining = server.shut_down_later();
    // A request that comes before would be held as well.
    server.until(|| (server.get("/readyz").status == 503).then_some(()));
    let refused = server.rerank(&json!({"query": "q", "documents": ["x"]}));
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    assert_eq!(server.get("/livez").status, 200);
    drop(hold);
    assert_eq!(admitted.join().unwrap().status, 200);
    assert_eq!(draining.join().unwrap(), 0);
}

#[test]
fn a_drain_answers_those_whose_bodies_are_still_to_come() {
    let server = Server::start("{}", &[]);
    let body = json!({"query": "q", "documents": documents(3)}).to_string();
    let (begun, rest) = body.split_at(10);
    let mut stream = server.connect_and_begin(body.len(), begun);
    let is_inside = || server.get("/health").text.contains(r#""active":1,"#);
    server.until(|| is_inside().then_some(()));
    let draining = server.shut_down_later();
    server.until(|| (server.get("/readyz").status == 503).then_some(()));
    stream.write_all(rest.as_bytes()).unwrap();
    let mut status = [0; "HTTP/1.1 200".len()];
    stream.read_exact(&mut status).unwrap();
    assert_eq!(String::from_utf8_lossy(&status), "HTTP/1.1 200");
    drop(stream);
    assert_eq!(draining.join().unwrap(), 0);
}

#[test]
fn a_drain_does_not_wait_for_those_who_come_to_be_refused() {
    let server = Server::start("{}", &[("server.drain_timeout", "20s")]);
    let hold = server.hold();
    let admitted = server.rerank_later(&json!({"query": "q", "documents": ["x"]}));
    server.until(|| (server.metric("crossgate_requests_in_flight") >= 1.0).then_some(()));
    let draining = server.shut_down_later();
    server.until(|| (server.get("/readyz").status == 503).then_some(()));
    // Nobody reads a body to refuse it.
    let (_open, status) = server.status_of_head();
    let started = Instant::now();
    drop(hold);
    assert_eq!(admitted.join().unwrap().status, 200);
    assert_eq!(draining.join().unwrap(), 0);
    assert!(started.elapsed() < Duration::from_secs(10), "{started:?}");
    assert_eq!(status, "HTTP/1.1 503");
}

#[test]
fn what_a_drain_does_not_wait_for_is_told_so() {
    let settings = [("threads.total", "1"), ("server.drain_timeout", "50ms")];
    let server = Server::start("{}", &settings);
    let hold = server.hold();
    let ask = || server.rerank_later(&json!({"query": "q", "documents": ["x"]}));
    let computed = ask();
    server.until(|| (server.metric("crossgate_workers_busy") >= 1.0).then_some(()));
    let queued = ask();
    server.until(|| (server.metric("crossgate_queue_rows") >= 1.0).then_some(()));
    assert_eq!(server.shut_down_later().join().unwrap(), 2);
    for answer in [computed, queued] {
        let answer = answer.join().unwrap();
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(answer.text.contains("shut down"), "{answer:?}");
    }
    drop(hold);
}
