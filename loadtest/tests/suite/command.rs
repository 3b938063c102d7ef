//! The program itself: exit codes, files, what it prints.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::task::spawn_blocking;

use crate::look_alike::{Act, LookAlike, Script};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/workloads/sample.jsonl");

/// Runs the program beside the look-alike that this thread serves.
async fn loadtest(arguments: &str) -> Output {
    let arguments: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
    let running = spawn_blocking(move || {
        Command::new(env!("CARGO_BIN_EXE_loadtest"))
            .args(arguments)
            .env_remove("LOADTEST_API_KEY")
            .output()
    });
    running
        .await
        .expect("no panic")
        .expect("the program starts")
}

#[track_caller]
fn check(output: &Output, code: i32, wanted: &str) {
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.contains(wanted), "no {wanted:?} in {text}");
}

fn path(folder: &TempDir, name: &str) -> String {
    folder
        .path()
        .join(name)
        .to_str()
        .expect("a temporary path is text")
        .to_owned()
}

#[tokio::test]
async fn recorded_scores_are_expected_scores() {
    let server = LookAlike::start(Script::default()).await;
    let (http, grpc) = (&server.http_url, &server.grpc_url);
    let folder = TempDir::new().expect("a folder");
    let (expect, json) = (path(&folder, "expect.jsonl"), path(&folder, "result.json"));

    let output = loadtest(&format!(
        "record --url {http} --workload {SAMPLE} --output {expect}"
    ))
    .await;
    check(&output, 0, "");
    let recorded = fs::read_to_string(&expect).expect("expectations");
    assert_eq!(
        recorded.lines().count(),
        fs::read_to_string(SAMPLE)
            .expect("the sample")
            .lines()
            .count()
    );

    let common = format!("--workload {SAMPLE} --expect {expect} --requests 20 --warmup 0s");
    let output = loadtest(&format!("run --url {http} {common} --json {json}")).await;
    check(&output, 0, "valid: every check passed");
    check(&output, 0, "no cache");
    let result: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&json).expect("a result")).expect("JSON");
    assert_eq!(result["outcomes"]["ok"], 20);
    assert_eq!(result["setup"]["mode"], "closed");

    // Recorded whole, compared after --documents, by gRPC, in an open loop of repeated requests.
    let load = "--mode open --rate 500 --zipf 1.0 --documents 2 --dialect score";
    let output = loadtest(&format!(
        "run --grpc {grpc} {common} {load} --metrics-url {http}/metrics"
    ))
    .await;
    check(&output, 0, "40 as expected");
}

#[tokio::test]
async fn a_failed_check_is_exit_code_1() {
    let act = |number| {
        if number < 8 {
            Act::Score
        } else {
            Act::ScoreOff(0.25)
        }
    };
    let server = LookAlike::start(Script {
        act,
        cache: Some([1, 0, 0]),
        ..Script::default()
    })
    .await;
    let url = &server.http_url;
    let folder = TempDir::new().expect("a folder");
    let expect = path(&folder, "expect.jsonl");
    let target = format!("--url {url} --workload {SAMPLE}");
    check(
        &loadtest(&format!("record {target} --output {expect}")).await,
        0,
        "",
    );

    // One client: a few faults of a kind are described, and which of several clients' come first is chance.
    let run = format!("run {target} --clients 1 --requests 8 --warmup 0s");
    check(
        &loadtest(&format!("{run} --expect {expect}")).await,
        1,
        "request 1: wrong score: document 0: expected",
    );
    check(
        &loadtest(&format!("{run} --expect {expect} --tolerance 0.5")).await,
        0,
        "largest difference 2.5e-1",
    );
    check(
        &loadtest(&format!("{run} --require-no-cache-hits")).await,
        1,
        "8 rows came from the cache",
    );
    // A second load tester leaves the counters to the first.
    check(
        &loadtest(&format!("{run} --metrics-url none")).await,
        0,
        "unknown (no --metrics-url)",
    );
}

#[tokio::test]
async fn wrong_usage_is_exit_code_2() {
    for command in ["run", "record --output x"] {
        check(
            &loadtest(&format!("{command} --workload w")).await,
            2,
            "--url or --grpc",
        );
    }
    let run = format!("run --url http://127.0.0.1:9 --workload {SAMPLE}");
    check(
        &loadtest(&format!("{run} --rate 5")).await,
        2,
        "use --mode open",
    );
    check(
        &loadtest("run --url http://127.0.0.1:9 --workload nowhere.jsonl").await,
        2,
        "nowhere.jsonl: ",
    );
    check(
        &loadtest(&format!(
            "run --url http://127.0.0.1:9 --workload {SAMPLE} --clients 0"
        ))
        .await,
        2,
        "--clients 0",
    );
    let folder = TempDir::new().expect("a folder");
    let missing = path(&folder, "no-folder/x.json");
    assert!(!Path::new(&missing).exists());
    let output = loadtest(&format!(
        "run --url http://127.0.0.1:9 --workload {SAMPLE} --json {missing}"
    ))
    .await;
    check(&output, 2, "x.json: ");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_said_before_the_warm_up() {
    // Ours for a moment, so that nobody listens there afterwards.
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = free.local_addr().expect("an address");
    drop(free);
    for flag in ["--url", "--grpc"] {
        let began = Instant::now();
        let run = format!("run {flag} http://{address} --workload {SAMPLE} --warmup 60s");
        let output = loadtest(&run).await;
        check(&output, 1, "refused");
        check(&output, 1, &address.to_string());
        assert!(output.stdout.is_empty(), "no report");
        assert!(began.elapsed() < Duration::from_secs(30));
    }
}

#[tokio::test]
async fn a_drawn_workload_is_a_workload() {
    let server = LookAlike::start(Script::default()).await;
    let url = &server.http_url;
    let folder = TempDir::new().expect("a folder");
    let drawn = path(&folder, "drawn.jsonl");
    let draw = format!("draw --workload {SAMPLE} --requests 50 --documents 4 --output {drawn}");
    check(&loadtest(&draw).await, 0, "");
    let run = format!("run --url {url} --workload {drawn} --requests 50 --warmup 0s");
    check(&loadtest(&run).await, 0, "for 200 pairs answered");
    check(
        &loadtest(&draw.replace("--documents 4", "--documents 4000")).await,
        2,
        "--documents 4000: must be from 1 to",
    );
}

#[tokio::test]
async fn admitted_requests_that_are_late_are_shown() {
    let act = |number| match number {
        0..2 => Act::Refuse {
            status: 504,
            retry_after: false,
        },
        _ => Act::Score,
    };
    let server = LookAlike::start(Script {
        act,
        ..Script::default()
    })
    .await;
    let url = &server.http_url;
    let run = format!("run --url {url} --workload {SAMPLE} --requests 8 --warmup 0s");
    let late = "LATE: 2 requests, 25.00 % of those sent, were admitted and got 504";
    check(&loadtest(&run).await, 0, late);
}
