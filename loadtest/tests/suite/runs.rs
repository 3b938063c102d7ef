//! Whole runs against the look-alike: what is sent, what is counted, what makes a run invalid.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::TcpListener;

use loadtest::arrivals::Spacing;
use loadtest::plan::{Dialect, Endpoint, GrpcCall, Load, Plan, Target, Until};
use loadtest::report::{Report, write_text};
use loadtest::run::run;
use loadtest::workload::Workload;

use crate::look_alike::{Act, LookAlike, Script, logit, stall_first};

/// What the server does with its n-th request.
type ByNumber = fn(u64) -> Act;

pub(crate) const DOCUMENTS: usize = 3;

/// Three requests of three documents, with the scores that the look-alike gives.
fn workload() -> Workload {
    let lines: Vec<String> = ["a", "bb", "ccc"]
        .iter()
        .map(|query| {
            let documents = ["one", "three", "seventeen"];
            let scores = documents.map(|document| logit(query, document));
            serde_json::json!({"query": query, "documents": documents, "scores": scores})
                .to_string()
        })
        .collect();
    Workload::parse(Path::new("w"), &lines.join("\n"), None, None).expect("a good workload")
}

pub(crate) fn http(server: &LookAlike, dialect: Dialect) -> Endpoint {
    Endpoint::Http {
        url: server.http_url.clone(),
        dialect,
    }
}

pub(crate) fn grpc(server: &LookAlike, call: GrpcCall) -> Endpoint {
    Endpoint::Grpc {
        url: server.grpc_url.clone(),
        call,
        connections: 2,
    }
}

pub(crate) fn plan(server: &LookAlike, endpoint: Endpoint) -> Plan {
    Plan {
        target: Target {
            endpoint,
            model: None,
            api_key: None,
            // Ends a test that would hang; no test waits for it unless it says so.
            timeout: Duration::from_secs(20),
            raw_scores: true,
            deadline: None,
        },
        load: Load::Closed { clients: 4 },
        until: Until::Requests(30),
        warmup: Duration::ZERO,
        zipf: None,
        seed: 0,
        tolerance: 1e-5,
        forbid_cache_hits: false,
        hang_up: None,
        metrics_urls: vec![format!("{}/metrics", server.http_url)],
    }
}

pub(crate) fn open(rate_per_s: f64, in_flight_max: usize) -> Load {
    Load::Open {
        rate_per_s,
        arrivals: Spacing::Uniform,
        in_flight_max,
    }
}

pub(crate) async fn go(plan: &Plan) -> Report {
    run(plan, workload(), Arc::default()).await.expect("a run")
}

/// 30 requests in every protocol, each answered by `act`.
async fn in_every_protocol(act: ByNumber, check: impl Fn(&Report)) {
    let script = Script {
        act,
        ..Script::default()
    };
    let server = LookAlike::start(script).await;
    let endpoints = [
        http(&server, Dialect::Rerank),
        http(&server, Dialect::Tei),
        http(&server, Dialect::Score),
        grpc(&server, GrpcCall::Rerank),
        grpc(&server, GrpcCall::Score),
    ];
    for endpoint in endpoints {
        // Numbers start at 0 again for each.
        server.state.requests.send_replace(0);
        check(&go(&plan(&server, endpoint)).await);
    }
}

#[tokio::test]
async fn a_closed_loop_sends_and_checks_every_request() {
    in_every_protocol(
        |_| Act::Score,
        |report| {
            assert!(report.is_good(), "{report:#?}");
            assert_eq!((report.sent, report.answered, report.lost), (30, 30, 0));
            assert_eq!(report.outcomes.ok, 30);
            assert_eq!(report.pairs, 30 * DOCUMENTS as u64);
            assert_eq!(report.scores_compared, 30 * DOCUMENTS as u64);
            assert_eq!(report.latency_us.count, 30);
            assert_eq!(
                report.server.and_then(|server| server.rows),
                Some(30 * DOCUMENTS as u64)
            );
            assert!(report.wall_s > 0.0 && report.requests_per_s > 0.0);
        },
    )
    .await;
}

#[tokio::test]
async fn the_warm_up_is_not_counted() {
    let server = LookAlike::start(Script::default()).await;
    let mut plan = plan(&server, http(&server, Dialect::Rerank));
    plan.warmup = Duration::from_millis(50);
    let report = go(&plan).await;
    assert!(report.is_good(), "{report:#?}");
    assert_eq!(report.sent, 30);
    assert_eq!(
        report.server.and_then(|server| server.rows),
        Some(30 * DOCUMENTS as u64)
    );
    assert!(*server.state.requests.borrow() > 30);
}

#[tokio::test]
async fn refusals_are_told_apart_and_not_retried() {
    let act = |number| match number {
        0..5 => Act::Refuse {
            status: 429,
            retry_after: true,
        },
        5..7 => Act::Refuse {
            status: 503,
            retry_after: true,
        },
        7..10 => Act::Refuse {
            status: 504,
            retry_after: false,
        },
        _ => Act::Score,
    };
    in_every_protocol(act, |report| {
        assert!(report.is_good(), "{report:#?}");
        let outcomes = &report.outcomes;
        assert_eq!((report.sent, report.lost, outcomes.ok), (30, 0, 20));
        assert_eq!(outcomes.too_many_with_retry_after, 5);
        assert_eq!(outcomes.unavailable, 2);
        assert_eq!(outcomes.deadline_exceeded, 3);
        assert!((report.refused_share - 7.0 / 30.0).abs() < 1e-9);
        assert_eq!(
            (report.latency_us.count, report.refused_latency_us.count),
            (20, 7)
        );
    })
    .await;
}

#[tokio::test]
async fn a_429_without_retry_after_is_an_error() {
    let act = |number| {
        if number < 2 {
            Act::Refuse {
                status: 429,
                retry_after: false,
            }
        } else {
            Act::Score
        }
    };
    in_every_protocol(act, |report| {
        assert_eq!(report.outcomes.too_many_without_retry_after, 2);
        assert_eq!(
            report.failed_checks,
            ["2 answers with 429 and no Retry-After"]
        );
        assert!(
            report.examples[0].ends_with("429: no Retry-After"),
            "{:?}",
            report.examples
        );
    })
    .await;
}

#[tokio::test]
async fn a_status_that_no_load_explains_is_an_error() {
    let act = |number| {
        if number == 3 {
            Act::Refuse {
                status: 500,
                retry_after: false,
            }
        } else {
            Act::Score
        }
    };
    in_every_protocol(act, |report| {
        assert_eq!(report.outcomes.other(), 1);
        assert_eq!(
            report.failed_checks,
            ["1 answers with a status that no load explains"]
        );
        assert!(
            report.examples[0].contains("told to refuse"),
            "{:?}",
            report.examples
        );
    })
    .await;
}

#[tokio::test]
async fn a_wrong_score_names_request_document_and_both_scores() {
    let act = |number| {
        if number == 0 {
            Act::ScoreOff(-0.5)
        } else {
            Act::Score
        }
    };
    in_every_protocol(act, |report| {
        assert_eq!((report.outcomes.wrong_score, report.outcomes.ok), (1, 29));
        assert!(!report.is_good());
        let example = &report.examples[0];
        assert!(
            example.starts_with("request ")
                && example.contains("wrong score: document 0: expected"),
            "{example}"
        );
        let mut text = Vec::new();
        write_text(report, &mut text).expect("memory takes every byte");
        assert!(String::from_utf8_lossy(&text).contains("INVALID"));
    })
    .await;
}

#[tokio::test]
async fn wrong_answers_are_found() {
    let acts: [(ByNumber, &str); 5] = [
        (|_| Act::OneShort, "2 results for 3 documents"),
        (|_| Act::IndexTwice, "twice"),
        (|_| Act::Unsorted, "out of order"),
        (|_| Act::Null, "has the score NaN"),
        (|_| Act::NotJson, "expected value at line 1"),
    ];
    for (act, wanted) in acts {
        let server = LookAlike::start(Script {
            act,
            ..Script::default()
        })
        .await;
        let report = go(&plan(&server, http(&server, Dialect::Rerank))).await;
        assert_eq!(
            (report.outcomes.wrong_answer, report.lost),
            (30, 0),
            "{wanted}"
        );
        assert!(
            report.examples[0].contains(wanted),
            "{:?}, not {wanted}",
            report.examples
        );
        assert!(!report.is_good());
    }
}

#[tokio::test]
async fn an_open_loop_sends_while_nothing_is_answered() {
    // No answer leaves before the last request has come, which a closed loop would never reach.
    let server = LookAlike::start(Script {
        hold_until: 20,
        ..Script::default()
    })
    .await;
    for endpoint in [
        http(&server, Dialect::Rerank),
        grpc(&server, GrpcCall::Rerank),
    ] {
        server.state.requests.send_replace(0);
        let mut plan = plan(&server, endpoint);
        plan.load = open(100.0, 100);
        plan.until = Until::Requests(20);
        let report = go(&plan).await;
        assert!(report.is_good(), "{report:#?}");
        assert_eq!((report.sent, report.answered, report.not_sent), (20, 20, 0));
        // The last starts 190 ms after the first, and the k-th waits for it.
        assert!(report.latency_us.max >= 190_000, "{:?}", report.latency_us);
        assert!(report.latency_us.p50 >= 90_000, "{:?}", report.latency_us);
    }
}

#[tokio::test]
async fn latency_counts_from_the_intended_start() {
    // The first request stops this single-threaded runtime for 200 ms. The requests due meanwhile are
    // sent late and answered at once: measured from their sending they would look fast.
    let act = |number| stall_first(number, Duration::from_millis(200));
    let server = LookAlike::start(Script {
        act,
        ..Script::default()
    })
    .await;
    let mut plan = plan(&server, http(&server, Dialect::Rerank));
    plan.load = open(100.0, 100);
    plan.until = Until::Requests(40);
    let report = go(&plan).await;
    assert!(report.is_good(), "{report:#?}");
    assert!(
        report.start_delay_us.max >= 180_000,
        "{:?}",
        report.start_delay_us
    );
    // About twenty waited, evenly from 0 to 200 ms.
    assert!(report.latency_us.p90 >= 100_000, "{:?}", report.latency_us);
}

#[tokio::test]
async fn requests_without_room_are_counted_as_not_sent() {
    let server = LookAlike::start(Script {
        hold_until: u64::MAX,
        ..Script::default()
    })
    .await;
    let mut plan = plan(&server, http(&server, Dialect::Rerank));
    plan.load = open(1000.0, 4);
    plan.until = Until::Requests(50);
    plan.target.timeout = Duration::from_millis(300);
    let report = go(&plan).await;
    assert_eq!(report.sent + report.not_sent, 50);
    assert!(report.not_sent > 0 && report.sent >= 4, "{report:#?}");
    assert_eq!(
        (report.lost, report.outcomes.timed_out),
        (report.sent, report.sent)
    );
    assert!(
        report.failed_checks[0].contains("NOT SENT"),
        "{:?}",
        report.failed_checks
    );
}

#[tokio::test]
async fn a_server_that_is_gone_loses_requests() {
    let server = LookAlike::start(Script::default()).await;
    let mut plan = plan(&server, http(&server, Dialect::Rerank));
    // It takes the connection that looks whether it is there, and is gone.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { listener.accept().await });
    plan.target.endpoint = Endpoint::Http {
        url: format!("http://{address}"),
        dialect: Dialect::Rerank,
    };
    let report = go(&plan).await;
    assert_eq!((report.lost, report.outcomes.transport_error), (30, 30));
    assert!(!report.is_good());

    // Nothing listens on port 9 (discard) of this address.
    let url = "http://127.0.0.1:9";
    for endpoint in [
        Endpoint::Http {
            url: url.into(),
            dialect: Dialect::Rerank,
        },
        Endpoint::Grpc {
            url: url.into(),
            call: GrpcCall::Score,
            connections: 1,
        },
    ] {
        plan.target.endpoint = endpoint;
        let gone = run(&plan, workload(), Arc::default()).await;
        let error = gone.expect_err("no connection").to_string();
        assert!(error.contains("127.0.0.1:9: "), "{error}");
    }
}

#[tokio::test]
async fn the_key_goes_with_every_request() {
    let server = LookAlike::start(Script::default()).await;
    for endpoint in [
        http(&server, Dialect::Rerank),
        grpc(&server, GrpcCall::Rerank),
    ] {
        server.state.bearers.store(0, Ordering::Relaxed);
        let mut plan = plan(&server, endpoint);
        plan.target.api_key = Some("secret".into());
        go(&plan).await;
        assert_eq!(server.state.bearers.load(Ordering::Relaxed), 30);
    }
}

#[tokio::test]
async fn a_stopped_run_reports_and_is_invalid() {
    let server = LookAlike::start(Script::default()).await;
    let mut plan = plan(&server, http(&server, Dialect::Rerank));
    plan.until = Until::Elapsed(Duration::from_secs(3600));
    for load in [Load::Closed { clients: 2 }, open(50.0, 10)] {
        plan.load = load;
        server.state.requests.send_replace(0);
        let stop: loadtest::run::Stop = Arc::default();
        let mut seen = server.state.requests.subscribe();
        let stopper = async {
            seen.wait_for(|requests| *requests >= 5)
                .await
                .expect("the server lives");
            stop.store(true, Ordering::Relaxed);
        };
        let (report, ()) = tokio::join!(run(&plan, workload(), Arc::clone(&stop)), stopper);
        let report = report.expect("a report");
        assert!(report.sent >= 5 && report.lost == 0, "{report:#?}");
        assert_eq!(report.failed_checks, ["interrupted before its end"]);
    }
}
