//! Clients that have a deadline, and clients that hang up.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::timeout;

use loadtest::plan::{Dialect, GrpcCall, HangUp, Until};

use crate::look_alike::{DEADLINE, LookAlike, Script, stall_first};
use crate::runs::{DOCUMENTS, go, grpc, http, open, plan};

#[tokio::test]
async fn goodput_counts_what_is_within_the_deadline() {
    // The first request stops the runtime for twice the deadline: about half of those that wait for it
    // come too late.
    let act = |number| stall_first(number, 2 * DEADLINE);
    let server = LookAlike::start(Script {
        act,
        ..Script::default()
    })
    .await;
    let mut plan = plan(&server, http(&server, Dialect::Rerank));
    plan.load = open(100.0, 100);
    plan.until = Until::Requests(40);
    assert_eq!(go(&plan).await.goodput, None);

    server.state.requests.send_replace(0);
    plan.target.deadline = Some(DEADLINE);
    let report = go(&plan).await;
    assert!(report.is_good(), "{report:#?}");
    let goodput = report.goodput.expect("a deadline");
    assert!((5..30).contains(&goodput.late), "{goodput:?}");
    let in_time = (report.outcomes.ok - goodput.late) as f64 / report.wall_s;
    assert!((goodput.requests_per_s - in_time).abs() < 1e-6);
    assert!((goodput.pairs_per_s - in_time * DOCUMENTS as f64).abs() < 1e-6);
    assert_eq!(server.state.deadlines.load(Ordering::Relaxed), 40);
}

#[tokio::test]
async fn a_grpc_client_ends_its_call_at_the_deadline() {
    let server = LookAlike::start(Script {
        hold_until: u64::MAX,
        ..Script::default()
    })
    .await;
    let mut plan = plan(&server, grpc(&server, GrpcCall::Rerank));
    plan.target.deadline = Some(DEADLINE);
    let report = go(&plan).await;
    assert_eq!((report.outcomes.deadline_exceeded, report.lost), (30, 0));
    assert_eq!(server.state.deadlines.load(Ordering::Relaxed), 30);
}

#[tokio::test]
async fn a_client_that_hangs_up_is_seen_by_the_server() {
    let server = LookAlike::start(Script {
        hold_until: u64::MAX,
        ..Script::default()
    })
    .await;
    for endpoint in [
        http(&server, Dialect::Rerank),
        grpc(&server, GrpcCall::Score),
    ] {
        server.state.abandoned.send_replace(0);
        let mut plan = plan(&server, endpoint);
        plan.hang_up = Some(HangUp {
            share: 1.0,
            after: Duration::from_millis(20),
        });
        let report = go(&plan).await;
        assert_eq!((report.outcomes.hung_up, report.lost), (30, 0));
        assert_eq!(report.answered, 0);
        let mut abandoned = server.state.abandoned.subscribe();
        let all = abandoned.wait_for(|abandoned| *abandoned == 30);
        timeout(Duration::from_secs(20), all)
            .await
            .expect("every request is dropped by the server")
            .expect("the server lives");
    }
}

#[tokio::test]
async fn an_answer_that_comes_before_is_no_hang_up() {
    let server = LookAlike::start(Script::default()).await;
    let mut plan = plan(&server, http(&server, Dialect::Rerank));
    plan.hang_up = Some(HangUp {
        share: 1.0,
        after: Duration::from_secs(20),
    });
    let report = go(&plan).await;
    assert!(report.is_good(), "{report:#?}");
    assert_eq!((report.outcomes.ok, report.outcomes.hung_up), (30, 0));
}
