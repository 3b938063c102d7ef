//! The whole way on real sockets: HTTP to plugin and back, with the fake plugin's library, which holds,
//! fails and panics on command.

#[path = "serve/admin.rs"]
mod admin;
#[path = "serve/devices.rs"]
mod devices;
#[path = "serve/distributed.rs"]
mod distributed;
#[path = "serve/drain.rs"]
mod drain;
#[path = "serve/grpc.rs"]
mod grpc;
#[path = "serve/images.rs"]
mod images;
#[path = "serve/process.rs"]
mod process;
#[path = "serve/public.rs"]
mod public;
#[path = "shared/fixture.rs"]
#[allow(dead_code, reason = "tests/shared.rs uses the rest")]
mod redis;
#[path = "serve/server.rs"]
mod server;
#[path = "serve/starter.rs"]
mod starter;
#[path = "serve/stuck.rs"]
mod stuck;

use serde_json::{Value, json};
use server::{Server, plugin_dir, token};
use std::time::Duration;

/// A document that holds a rare word; the fake can be told what to do when it sees it.
const RARE: &str = "a volcano";

fn documents(n: usize) -> Vec<String> {
    (0..n)
        .map(|idx| format!("document number {idx} about plants and light"))
        .collect()
}

/// What a plugin of this name is called as a file.
fn file_name(stem: &str) -> String {
    let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    format!("{prefix}{stem}{suffix}")
}

#[test]
fn scores_come_back_in_order_of_relevance() {
    let server = Server::start("{}", &[]);
    let answer = server.rerank(
        &json!({"query": "green plants", "documents": ["red cars", "green plants", "green cars"]}),
    );
    assert_eq!(answer.status, 200, "{answer:?}");
    let order: Vec<_> = answer
        .results()
        .iter()
        .map(|result| result["index"].as_u64().unwrap())
        .collect();
    assert_eq!(order, [1, 2, 0]);
}

#[test]
fn a_thousand_documents_in_one_request() {
    let server = Server::start("{}", &[]);
    let answer = server.rerank(&json!({"query": "plants", "documents": documents(1_000)}));
    assert_eq!((answer.status, answer.results().len()), (200, 1_000));
    let answer = server.rerank(&json!({"query": "plants", "documents": documents(1_001)}));
    assert_eq!(answer.status, 413, "{answer:?}");
    assert!(answer.text.contains("intake.documents_max"), "{answer:?}");
}

#[test]
fn a_full_queue_refuses_with_retry_after_and_loses_nothing() {
    let server = Server::start(
        "{}",
        &[
            ("queue.rows_max", "1000"),
            ("server.request_timeout", "30s"),
            ("threads.total", "2"),
            ("batch.rows_max", "8"),
        ],
    );
    let hold = server.hold();
    // Two threads take a batch each and stall; the next rows fill the queue.
    let waiting: Vec<_> = (0..4)
        .map(|_| server.rerank_later(&json!({"query": "q", "documents": documents(600)})))
        .collect();
    // Else the next request may be the first, and wait itself.
    server.until(|| (server.metric("crossgate_queue_rows") > 100.0).then_some(()));
    let refused = server.rerank(&json!({"query": "q", "documents": documents(900)}));
    assert_eq!(refused.status, 429, "{refused:?}");
    assert!(
        refused
            .header("retry-after")
            .unwrap()
            .parse::<u64>()
            .unwrap()
            >= 1,
        "{refused:?}"
    );
    assert!(refused.text.contains("queue"), "{refused:?}");
    drop(hold);
    let statuses: Vec<_> = waiting
        .into_iter()
        .map(|answer| answer.join().unwrap().status)
        .collect();
    assert!(
        statuses.iter().all(|status| [200, 429].contains(status)),
        "{statuses:?}"
    );
    assert!(statuses.contains(&200), "{statuses:?}");
    assert_eq!(
        server
            .rerank(&json!({"query": "q", "documents": documents(900)}))
            .status,
        200
    );
}

#[test]
fn a_request_that_is_too_much_for_its_deadline_is_told_so() {
    // 20 ms a row, which the warm-up learns: 1,000 take 20 s.
    let server = Server::start(r#"{"row_us": 20000}"#, &[("threads.total", "1")]);
    let hold = server.hold();
    let before = server.rerank_later(&json!({"query": "q", "documents": documents(2)}));
    server.until(|| (server.metric("crossgate_queue_rows") > 0.0).then_some(()));
    let refused = server.rerank(&json!({"query": "q", "documents": documents(1_000)}));
    // Coming again does not help.
    assert_eq!((refused.status, refused.header("retry-after")), (413, None));
    for words in [
        "this request alone needs about",
        "its deadline leaves 10.0 s",
    ] {
        assert!(refused.text.contains(words), "{refused:?}");
    }
    drop(hold);
    assert_eq!(before.join().unwrap().status, 200);
}

#[test]
fn a_deadline_is_a_504_and_what_it_left_is_not_computed() {
    let server = Server::start(
        "{}",
        &[("server.request_timeout", "300ms"), ("threads.total", "1")],
    );
    let hold = server.hold();
    let answer = server.rerank(&json!({"query": "q", "documents": documents(700)}));
    assert_eq!(answer.status, 504, "{answer:?}");
    assert!(answer.text.contains("not done within 0."), "{answer:?}");
    drop(hold);
    assert_eq!(
        server
            .rerank(&json!({"query": "q", "documents": ["x"]}))
            .status,
        200
    );
    // Neither the hundreds that waited nor those of the held batch, which the plugin skipped.
    assert_eq!(server.metric("crossgate_rows_total"), 1.0);
    let (skipped, dropped) = (
        server.metric("crossgate_rows_skipped_total"),
        server.metric("crossgate_rows_dropped_total"),
    );
    assert!(0.0 < skipped && 0.0 < dropped, "{skipped}, {dropped}");
    assert_eq!(skipped + dropped, 700.0);
    assert_eq!(server.metric("crossgate_rows_unwanted_total"), 0.0);
    assert_eq!(server.metric("crossgate_requests_late_total"), 1.0);
    assert_eq!(server.metric("crossgate_queue_rows"), 0.0);
}

#[test]
fn a_client_that_goes_away_is_not_computed_for() {
    let server = Server::start(
        "{}",
        &[("threads.total", "1"), ("server.request_timeout", "60s")],
    );
    let hold = server.hold();
    let gone = server.connect_and_ask(&json!({"query": "q", "documents": documents(700)}));
    server.until(|| (server.metric("crossgate_queue_rows") > 100.0).then_some(()));
    drop(gone);
    server.until(|| (server.metric("crossgate_queue_rows") == 0.0).then_some(()));
    let cancelled = r#"outcome="cancelled"} 1"#;
    server.until(|| {
        server
            .get("/metrics")
            .text
            .contains(cancelled)
            .then_some(())
    });
    drop(hold);
    assert_eq!(
        server
            .rerank(&json!({"query": "q", "documents": ["x"]}))
            .status,
        200
    );
    assert_eq!(server.metric("crossgate_rows_total"), 1.0);
    let text = server.get("/metrics").text;
    let cancelled = r#"crossgate_rows_dropped_total{model="starter",reason="cancelled"} "#;
    let dropped = text.lines().find_map(|line| line.strip_prefix(cancelled));
    assert!(dropped.is_some_and(|rows| rows != "0"), "{text}");
    assert_eq!(server.metric("crossgate_requests_late_total"), 0.0);
}

#[test]
fn what_is_learned_is_shown() {
    let server = Server::start(r#"{"row_us": 2000}"#, &[("threads.total", "1")]);
    let answer = server.rerank(&json!({"query": "q", "documents": ["x"]}));
    assert_eq!(answer.status, 200);
    let text = server.get("/metrics").text;
    for name in ["cost_batch_seconds", "cost_square_seconds", "queue_bytes"] {
        let line = format!("crossgate_{name}{{model=\"starter\"}} ");
        assert!(text.contains(&line), "{line} in {text}");
    }
    assert!(server.metric("crossgate_cost_token_seconds") > 0.0);
    assert!(server.metric("crossgate_pace") >= 0.5);
    assert_eq!(server.metric("crossgate_admission_share"), 0.75);
    assert_eq!(server.metric("crossgate_queue_bytes"), 0.0);
}

#[test]
fn who_waits_too_long_for_a_worker_is_told_to_try_elsewhere() {
    let bounds = [("threads.total", "1"), ("queue.wait_max", "10ms")];
    let server = Server::start("{}", &bounds);
    let hold = server.hold();
    let first = server.rerank_later(&json!({"query": "q", "documents": ["x"]}));
    server.until(|| (server.metric("crossgate_workers_busy") == 1.0).then_some(()));
    let waits = server.rerank_later(&json!({"query": "q", "documents": ["x", "y"]}));
    // It is told while the worker is busy still.
    let told = waits.join().unwrap();
    drop(hold);
    assert_eq!(first.join().unwrap().status, 200);
    assert_eq!(told.status, 503, "{told:?}");
    assert!(told.header("retry-after").is_some(), "{told:?}");
    assert!(told.text.contains("queue.wait_max"), "{told:?}");
    let dropped = server.metric("crossgate_rows_dropped_total");
    assert_eq!(dropped, 2.0);
}

#[test]
fn a_panic_fails_its_request_alone_and_the_backend_comes_back() {
    let options = json!({"panic_on": token("volcano")}).to_string();
    let server = Server::start(&options, &[("threads.total", "2")]);
    let hold = server.hold();
    let innocent: Vec<_> = (0..6)
        .map(|_| server.rerank_later(&json!({"query": "q", "documents": documents(5)})))
        .collect();
    let guilty = server.rerank_later(&json!({"query": "q", "documents": [RARE]}));
    server.until(|| (server.metric("crossgate_requests_in_flight") >= 7.0).then_some(()));
    drop(hold);
    let answer = guilty.join().unwrap();
    assert_eq!(answer.status, 502, "{answer:?}");
    assert!(answer.text.contains("panic"), "{answer:?}");
    for answer in innocent {
        assert_eq!(answer.join().unwrap().status, 200);
    }
    assert_eq!(
        server
            .rerank(&json!({"query": "q", "documents": documents(5)}))
            .status,
        200
    );
    assert_eq!(server.get("/readyz").status, 200);
    assert!(server.metric("crossgate_backend_faults_total") >= 1.0);
}

#[test]
fn one_bad_row_names_its_document() {
    let options = json!({"fail_row_on": token("volcano")}).to_string();
    let server = Server::start(&options, &[]);
    let answer = server.rerank(&json!({"query": "q", "documents": ["fine", RARE, "fine"]}));
    // The plugin's failure, not the client's.
    assert_eq!(answer.status, 502, "{answer:?}");
    assert!(answer.text.contains("documents[1]"), "{answer:?}");
    assert_eq!(
        server
            .rerank(&json!({"query": "q", "documents": ["fine"]}))
            .status,
        200
    );
}

#[test]
fn not_a_number_is_a_502() {
    let options = json!({"nan_on": token("volcano")}).to_string();
    let server = Server::start(&options, &[]);
    let answer = server.rerank(&json!({"query": "q", "documents": [RARE]}));
    assert_eq!(answer.status, 502, "{answer:?}");
    assert!(answer.text.contains("not a number"), "{answer:?}");
}

#[test]
fn probes_do_not_wait_behind_inference() {
    let server = Server::start("{}", &[]);
    let hold = server.hold();
    let waiting: Vec<_> = (0..8)
        .map(|_| server.rerank_later(&json!({"query": "q", "documents": documents(300)})))
        .collect();
    server.until(|| (server.metric("crossgate_queue_rows") > 0.0).then_some(()));
    for path in ["/livez", "/readyz", "/health", "/metrics", "/models"] {
        assert_eq!(
            server.get_within(path, Duration::from_secs(2)).status,
            200,
            "{path}"
        );
    }
    drop(hold);
    for answer in waiting {
        assert_eq!(answer.join().unwrap().status, 200);
    }
}

#[test]
fn an_unknown_model_is_a_404_that_names_the_models() {
    let server = Server::start("{}", &[]);
    let answer = server.rerank(&json!({"model": "nobody", "query": "q", "documents": ["x"]}));
    assert_eq!(answer.status, 404);
    assert!(
        answer.text.contains("nobody") && answer.text.contains("starter"),
        "{answer:?}"
    );
}

#[test]
fn too_many_requests_at_once_are_refused_before_their_body_is_read() {
    let server = Server::start("{}", &[("intake.requests_max", "2")]);
    let hold = server.hold();
    let inside: Vec<_> = (0..2)
        .map(|_| server.rerank_later(&json!({"query": "q", "documents": ["x"]})))
        .collect();
    server.until(|| (server.metric("crossgate_requests_in_flight") >= 2.0).then_some(()));
    let refused = server.rerank(&json!({"query": "q", "documents": ["x"]}));
    assert_eq!(refused.status, 429, "{refused:?}");
    assert!(refused.text.contains("intake.requests_max"), "{refused:?}");
    drop(hold);
    for answer in inside {
        assert_eq!(answer.join().unwrap().status, 200);
    }
}

#[test]
fn a_broken_plugin_is_refused_by_name_and_the_server_goes_on() {
    let name = file_name;
    let dir = tempfile::tempdir().unwrap();
    let good = std::fs::read(plugin_dir().join(name("fake"))).unwrap();
    std::fs::write(dir.path().join(name("good")), &good).unwrap();
    std::fs::write(dir.path().join(name("half")), &good[..good.len() / 2]).unwrap();
    std::fs::write(
        dir.path().join(name("text")),
        "CROSSGATE_PLUGIN_ABI, but not a library",
    )
    .unwrap();
    std::fs::write(dir.path().join(name("other")), "no library").unwrap();
    std::fs::write(
        dir.path().join(name("foreign")),
        b"\x7fELF of somebody else",
    )
    .unwrap();
    let server = Server::start("{}", &[("plugins.dir", &dir.path().display().to_string())]);
    assert_eq!(
        server
            .rerank(&json!({"query": "q", "documents": ["x"]}))
            .status,
        200
    );
    let listed = server.admin("/plugins");
    let rows: Vec<Value> = serde_json::from_str(&listed.text).unwrap();
    let refused = |stem: &str| {
        let row = rows
            .iter()
            .find(|row| row["path"].as_str().unwrap().ends_with(&name(stem)));
        row.unwrap_or_else(|| panic!("{stem} is not listed: {}", listed.text))["refused"].clone()
    };
    assert_eq!(refused("good"), Value::Null);
    for stem in ["half", "text"] {
        let why = refused(stem)
            .as_str()
            .unwrap_or_else(|| panic!("{stem} was not refused"))
            .to_owned();
        assert!(why.contains(&name(stem)), "{why} does not name the file");
    }
    for (stem, word) in [
        ("other", "not a shared library"),
        ("foreign", "not a Crossgate plugin"),
    ] {
        let why = refused(stem).as_str().unwrap().to_owned();
        for word in [word, "CROSSGATE_PLUGIN_ABI", &name(stem)] {
            assert!(why.contains(word), "{why} does not say {word}");
        }
    }
    assert_eq!(rows.len(), 5, "{}", listed.text);
}

#[test]
#[cfg(target_os = "linux")]
fn a_plugin_that_lacks_a_symbol_is_refused_with_the_symbol() {
    let dir = tempfile::tempdir().unwrap();
    let good = std::fs::read(plugin_dir().join("libfake.so")).unwrap();
    // The name of a function of libc that every library needs becomes one that nobody has.
    let (known, unknown) = (b"\0memmove\0", b"\0memmovX\0");
    let places = memchr::memmem::find_iter(&good, known).collect::<Vec<_>>();
    assert!(!places.is_empty());
    let mut bad = good;
    for place in places {
        bad[place..place + unknown.len()].copy_from_slice(unknown);
    }
    std::fs::write(dir.path().join("libbad.so"), bad).unwrap();
    let server = Server::start("{}", &[("plugins.dir", &both(dir.path()))]);
    let listed = server.admin("/plugins").text;
    assert!(listed.contains("undefined symbol: memmovX"), "{listed}");
}

/// The fake's folder, and another one.
fn both(dir: &std::path::Path) -> String {
    format!("{},{}", plugin_dir().display(), dir.display())
}

#[test]
fn rows_are_cut_to_what_the_plugin_takes() {
    let server = Server::start(r#"{"row_tokens_max": 12}"#, &[]);
    let long = "light ".repeat(40);
    let answer = server.rerank(&json!({"query": "plants", "documents": ["light", long]}));
    assert_eq!(answer.status, 200, "{answer:?}");
    let cut = "cut to the model's length: documents[1]";
    assert!(answer.text.contains(cut), "{answer:?}");
    let models: Value = serde_json::from_str(&server.admin("/models").text).unwrap();
    assert!(models.to_string().contains(":12"), "{models}");
}

#[test]
fn a_query_of_more_than_half_a_row_is_not_cut_when_the_pair_fits() {
    let server = Server::start(r#"{"row_tokens_max": 16}"#, &[]);
    let ask = |n_query: usize, n_document: usize| {
        let (query, document) = ("plants ".repeat(n_query), "light ".repeat(n_document));
        let answer = server.rerank(&json!({"query": query, "documents": [document]}));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.text
    };
    // 13 tokens are left beside the three special ones.
    assert!(!ask(10, 3).contains("cut"));
    assert!(ask(11, 3).contains("query was cut"));
    assert!(!ask(3, 11).contains("query was cut"));
}
