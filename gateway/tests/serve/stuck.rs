//! Workers that fail a batch, or do not come back from one.

use crate::server::{Server, token};
use crate::{RARE, documents};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Rows with a rare word wait as long as the server is held.
fn held(settings: &[(&str, &str)]) -> Server {
    let options = json!({"hold_on": token("volcano")}).to_string();
    let mut all = vec![("threads.total", "1"), ("worker.timeout", "200ms")];
    all.extend(settings);
    Server::start(&options, &all)
}

fn one(document: &str) -> Value {
    json!({"query": "plants", "documents": [document]})
}

fn is_back(server: &Server, n_workers: f64) -> Option<()> {
    let found = (
        server.metric("crossgate_workers"),
        server.metric("crossgate_workers_stuck"),
    );
    (found == (n_workers, 0.0)).then_some(())
}

#[test]
fn a_worker_that_does_not_come_back_is_replaced_and_its_rows_are_tried_again() {
    let server = held(&[("worker.retries_max", "1")]);
    let hold = server.hold();
    let guilty = server.rerank_later(&one(RARE)).join().unwrap();
    assert_eq!(guilty.status, 502, "{guilty:?}");
    assert!(guilty.text.contains("worker.timeout = 200ms"), "{guilty:?}");
    // The first try and one more, each of which cost a worker.
    assert_eq!(server.metric("crossgate_workers_lost_total"), 2.0);
    assert_eq!(server.metric("crossgate_rows_retried_total"), 1.0);
    // While both hang, the third one serves.
    let answer = server.rerank(&json!({"query": "plants", "documents": documents(40)}));
    assert_eq!((answer.status, answer.results().len()), (200, 40));
    assert_eq!(server.get("/readyz").status, 200);
    assert_eq!(server.metric("crossgate_workers_stuck"), 2.0);

    drop(hold);
    server.until(|| is_back(&server, 1.0));
    assert_eq!(server.rerank(&one("green plants")).status, 200);
    assert_eq!(server.metric("crossgate_workers_lost_total"), 2.0);
}

#[test]
fn only_the_request_that_hangs_fails() {
    let server = held(&[("worker.retries_max", "1")]);
    // The one worker computes one row, so that the others come into one batch behind it.
    let hold = server.hold();
    let first = server.rerank_later(&one(RARE));
    server.until(|| (server.metric("crossgate_workers_busy") == 1.0).then_some(()));
    let guilty = server.rerank_later(&one(RARE));
    let innocent: Vec<_> = (0..4)
        .map(|_| server.rerank_later(&json!({"query": "plants", "documents": documents(5)})))
        .collect();
    for answer in innocent {
        let answer = answer.join().unwrap();
        assert_eq!(
            (answer.status, answer.results().len()),
            (200, 5),
            "{answer:?}"
        );
    }
    for guilty in [first, guilty] {
        assert_eq!(guilty.join().unwrap().status, 502);
    }
    drop(hold);
    server.until(|| is_back(&server, 1.0));
}

#[test]
fn scores_that_come_late_are_as_good_as_any() {
    let server = held(&[("worker.retries_max", "16")]);
    let hold = server.hold();
    let waits =
        server.rerank_later(&json!({"query": "plants", "documents": [RARE, "green plants"]}));
    server.until(|| (server.metric("crossgate_workers_stuck") >= 2.0).then_some(()));
    drop(hold);
    let answer = waits.join().unwrap();
    assert_eq!(
        (answer.status, answer.results().len()),
        (200, 2),
        "{answer:?}"
    );
    server.until(|| is_back(&server, 1.0));
    assert_eq!(server.metric("crossgate_requests_in_flight"), 0.0);
}

#[test]
fn too_many_stuck_workers_make_the_model_not_ready_until_one_comes_back() {
    let server = held(&[("worker.retries_max", "0"), ("worker.timeout", "100ms")]);
    let hold = server.hold();
    // Four are replaced.
    for _ in 0..5 {
        let guilty = server.rerank(&one(RARE));
        assert_eq!(guilty.status, 502, "{guilty:?}");
    }
    server.until(|| (server.get("/readyz").status == 503).then_some(()));
    let refused = server.rerank(&one("green plants"));
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.text.contains("comes back"), "{refused:?}");
    assert_eq!(server.metric("crossgate_workers"), 0.0);

    drop(hold);
    server.until(|| is_back(&server, 1.0));
    assert_eq!(server.get("/readyz").status, 200);
    assert_eq!(server.rerank(&one("green plants")).status, 200);
}

/// Each batch takes about as long as a worker may: whether it is stuck is decided while it comes back.
#[test]
fn workers_that_come_back_just_when_they_are_given_up_are_counted_once() {
    const N_WORKERS: usize = 8;
    let options = json!({"row_us": 4_800}).to_string();
    let n_workers = N_WORKERS.to_string();
    let server = Server::start(
        &options,
        &[
            ("threads.total", &n_workers),
            ("worker.timeout", "5ms"),
            ("worker.retries_max", "16"),
            ("cache.enabled", "false"),
            ("cache.coalesce", "false"),
        ],
    );
    // All workers at once: they are given up together.
    for _ in 0..120 {
        let asked: Vec<_> = (0..2 * N_WORKERS)
            .map(|_| server.rerank_later(&one("green plants")))
            .collect();
        for answer in asked {
            let status = answer.join().unwrap().status;
            assert!(matches!(status, 200 | 502 | 503), "{status}");
        }
    }
    assert!(server.metric("crossgate_workers_lost_total") >= 100.0);
    server.until(|| is_back(&server, N_WORKERS as f64));
    assert_eq!(server.metric("crossgate_workers_busy"), 0.0);
}

#[test]
fn nothing_is_tried_again_beyond_its_deadline() {
    let server = held(&[
        ("worker.retries_max", "16"),
        ("server.request_timeout", "700ms"),
    ]);
    let hold = server.hold();
    let answer = server.rerank(&one(RARE));
    assert_eq!(answer.status, 504, "{answer:?}");
    // Who was called with it gets stuck; nobody is called again.
    let lost = server.until(|| {
        let busy = server.metric("crossgate_workers_busy");
        let is_idle = busy == 0.0 && server.metric("crossgate_workers") == 1.0;
        is_idle.then(|| server.metric("crossgate_workers_lost_total"))
    });
    assert!(lost >= 1.0);
    assert_eq!(server.metric("crossgate_queue_rows"), 0.0);
    assert_eq!(server.rerank(&one("green plants")).status, 200);
    assert_eq!(server.metric("crossgate_workers_lost_total"), lost);
    drop(hold);
    server.until(|| is_back(&server, 1.0));
}

#[test]
fn a_stuck_worker_does_not_hold_up_the_shutdown() {
    let server = held(&[("worker.retries_max", "0")]);
    let hold = server.hold();
    assert_eq!(server.rerank(&one(RARE)).status, 502);
    let started = Instant::now();
    server.shut_down_later().join().unwrap();
    assert!(started.elapsed() < Duration::from_secs(5));
    drop(hold);
}

#[test]
fn a_fault_that_does_not_last_costs_nobody_an_answer() {
    for (retries_max, status, retried) in [("2", 200, 1.0), ("0", 502, 0.0)] {
        let dir = tempfile::tempdir().unwrap();
        let once = dir.path().join("once");
        let options = json!({"fault_once": once}).to_string();
        let settings = [("threads.total", "2"), ("worker.retries_max", retries_max)];
        let server = Server::start(&options, &settings);
        std::fs::write(&once, "").unwrap();
        let answer = server.rerank(&one("green plants"));
        assert_eq!(answer.status, status, "{answer:?}");
        assert!(!once.exists());
        assert_eq!(server.metric("crossgate_rows_retried_total"), retried);
    }
}

#[test]
fn nobody_waits_longer_than_may_be_while_all_workers_hang() {
    let settings = [
        ("threads.total", "1"),
        ("worker.timeout", "1m"),
        ("queue.wait_max", "200ms"),
    ];
    let server = Server::start("{}", &settings);
    let hold = server.hold();
    let begun = server.rerank_later(&one("green plants"));
    server.until(|| (server.metric("crossgate_workers_busy") == 1.0).then_some(()));
    let started = Instant::now();
    let waits = server.rerank(&one("green plants"));
    assert_eq!(waits.status, 503, "{waits:?}");
    assert!(waits.text.contains("queue.wait_max"), "{waits:?}");
    assert!(started.elapsed() < Duration::from_secs(5), "{started:?}");
    drop(hold);
    assert_eq!(begun.join().unwrap().status, 200);
}
