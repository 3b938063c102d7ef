//! Models that come and go while others serve, and one that must go before the next one comes.

use crate::server::Answer;
use crate::{Swapping, put};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};

impl Swapping {
    fn act(&self, model: &str, deed: &str, order: &Value) -> Answer {
        self.server.order(&format!("/models/{model}/{deed}"), order)
    }

    fn ask_of(&self, model: &str) -> Answer {
        let body = json!({"model": model, "query": "green plants", "documents": ["green plants", "red cars"]});
        self.server.rerank(&body)
    }

    fn names(&self) -> Vec<String> {
        let models: Value = serde_json::from_str(&self.server.get("/models").text).unwrap();
        models.as_object().unwrap().keys().cloned().collect()
    }
}

/// Ends the clients, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn models_come_and_go_while_another_one_serves() {
    let swapping = Swapping::start(&json!({}), &[]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut n_answered = 0;
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(swapping.ask_of("starter").status, 200);
                n_answered += 1;
            }
            n_answered
        });
        let clients = Stop(&stop);
        for round in 0..3 {
            let order = json!({"source": "starter", "plugin": "fake", "options": {"bias": 1}});
            let answer = swapping.act("owner/second", "load", &order);
            assert_eq!(answer.status, 200, "{round}: {answer:?}");
            let told: Value = serde_json::from_str(&answer.text).unwrap();
            assert_eq!(told["state"], "confirmed");
            assert_eq!(swapping.names(), ["owner/second", "starter"]);
            let found = swapping.ask_of("owner/second");
            assert_eq!(found.status, 200, "{found:?}");
            assert_ne!(found.results(), swapping.ask_of("starter").results());
            let gone = swapping.act("owner/second", "unload", &Value::Null);
            assert_eq!(gone.status, 200, "{gone:?}");
            assert_eq!(swapping.names(), ["starter"]);
            assert_eq!(swapping.ask_of("owner/second").status, 404);
        }
        drop(clients);
        assert!(client.join().unwrap() > 10);
    });
    // What is gone is not told to be there.
    let of_second = "model=\"owner/second\"";
    let server = &swapping.server;
    assert_eq!(server.metric_of("crossgate_model_ready", of_second), 0.0);
    assert_eq!(server.metric_of("crossgate_workers", of_second), 0.0);
    assert_eq!(
        server.metric_of("crossgate_swaps_total", "outcome=\"unloaded\""),
        3.0
    );
    assert_eq!(server.get("/readyz").status, 200);
}

#[test]
fn what_is_under_way_is_answered_before_its_model_goes() {
    let swapping = Swapping::start(&json!({}), &[]);
    let hold = swapping.server.hold();
    let body = json!({"query": "green plants", "documents": ["green plants"]});
    let waits = swapping.server.rerank_later(&body);
    swapping
        .server
        .until(|| (swapping.server.metric("crossgate_workers_busy") > 0.0).then_some(()));
    std::thread::scope(|scope| {
        let unload = scope.spawn(|| swapping.act("starter", "unload", &Value::Null));
        swapping
            .server
            .until(|| swapping.names().is_empty().then_some(()));
        let answer = swapping.ask_of("starter");
        assert_eq!(answer.status, 404);
        assert!(answer.text.contains("none is loaded"), "{answer:?}");
        assert_eq!(swapping.server.get("/readyz").status, 503);
        assert!(!unload.is_finished());
        drop(hold);
        assert_eq!(unload.join().unwrap().status, 200);
    });
    assert_eq!(waits.join().unwrap().status, 200);
    // A server without models takes one.
    let answer = swapping.act("starter", "load", &json!({}));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(swapping.server.get("/readyz").status, 200);
}

#[test]
fn what_cannot_be_loaded_or_unloaded_is_named() {
    let swapping = Swapping::start(&json!({}), &[]);
    let long = "n".repeat(300);
    for (model, deed, order, status, word) in [
        (
            "starter",
            "load",
            json!({}),
            409,
            "there is a model of this name",
        ),
        (
            "other",
            "load",
            json!({"source": "/no/such"}),
            409,
            "/no/such",
        ),
        (
            "other",
            "load",
            json!({"source": "starter", "plugin": "nobody"}),
            409,
            "no plugin",
        ),
        (
            "other",
            "load",
            json!({"source": "starter", "options": {"panic_in": "open"}}),
            409,
            "panic",
        ),
        ("other", "unload", Value::Null, 404, "no model"),
        (
            long.as_str(),
            "load",
            json!({"source": "starter"}),
            422,
            "no name for a model",
        ),
    ] {
        let answer = swapping.act(model, deed, &order);
        assert_eq!(answer.status, status, "{model} {deed}: {answer:?}");
        assert!(answer.text.contains(word), "{model} {deed}: {answer:?}");
    }
    assert_eq!(swapping.names(), ["starter"]);
    assert_eq!(swapping.ask_of("starter").status, 200);
}

/// More than any machine has: there is no room for two.
const MUCH: u64 = 1 << 50;

#[test]
fn without_memory_for_both_what_serves_ends_first_and_no_request_is_lost() {
    let swapping = Swapping::start(&json!({"memory_bytes": MUCH}), &[]);
    let before = swapping.scores();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let answer = swapping.ask_of("starter");
                assert_eq!(answer.status, 200, "{answer:?}");
            }
        });
        let clients = Stop(&stop);
        put(swapping.dir.path(), "fake", "another build");
        let answer = swapping.swap(&json!({"plugin": "fake", "probation_s": 0}));
        assert_eq!(answer.status, 200, "{answer:?}");
        for word in ["draining", "MiB are available", "requests wait"] {
            assert!(answer.text.contains(word), "{answer:?} does not say {word}");
        }
        swapping.until("confirmed");
        // One that cannot open: what served before is opened again.
        let answer = swapping.swap(&json!({"options": {"memory_bytes": MUCH, "skew": 1}}));
        assert_eq!(answer.status, 409, "{answer:?}");
        assert!(answer.text.contains("golden row"), "{answer:?}");
        drop(clients);
        client.join().unwrap();
    });
    assert_eq!(swapping.scores(), before);
    assert_eq!(swapping.model()["state"], "live");
    // And one that goes live and is then taken back.
    let order = json!({"options": {"memory_bytes": MUCH, "bias": 0.001}, "probation_s": 600});
    assert_eq!(swapping.swap(&order).status, 200);
    assert_ne!(swapping.scores(), before);
    assert_eq!(swapping.rollback().status, 200);
    assert_eq!(swapping.scores(), before);
}

#[test]
fn a_model_that_ended_for_one_that_did_not_come_can_be_loaded_or_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    let broken = dir.path().join("broken");
    let options = json!({"memory_bytes": MUCH, "broken": broken});
    let swapping = Swapping::start(&options, &[]);
    let before = swapping.scores();
    // What comes in its place computes wrongly, and it does not open again itself.
    let lose = |swapping: &Swapping| {
        std::fs::write(&broken, "").unwrap();
        let wrong = json!({"memory_bytes": MUCH, "skew": 1});
        let answer = swapping.swap(&json!({"options": wrong}));
        assert_eq!(answer.status, 409, "{answer:?}");
        for word in ["asked to be broken", "load it again"] {
            assert!(answer.text.contains(word), "{answer:?} does not say {word}");
        }
        let answer = swapping.ask_of("starter");
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(answer.text.contains("not served any more"), "{answer:?}");
        assert_eq!(swapping.server.get("/readyz").status, 503);
        std::fs::remove_file(&broken).unwrap();
    };
    lose(&swapping);
    let order = json!({"options": {"broken": broken}});
    let answer = swapping.act("starter", "load", &order);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(swapping.scores(), before);
    assert_eq!(swapping.server.get("/readyz").status, 200);
    assert_eq!(swapping.act("starter", "load", &order).status, 409);

    let swapping = Swapping::start(&options, &[]);
    lose(&swapping);
    let answer = swapping.act("starter", "unload", &Value::Null);
    assert_eq!(answer.status, 200, "{answer:?}");
    // Who names it is told that there is none of this name; who names none, that there is none at all.
    assert_eq!(swapping.ask_of("starter").status, 404);
    let server = &swapping.server;
    let unnamed = server.rerank(&json!({"query": "q", "documents": ["x"]}));
    for answer in [unnamed, server.get("/info")] {
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(answer.text.contains("no model is loaded"), "{answer:?}");
        assert!(answer.header("retry-after").is_some(), "{answer:?}");
    }
}

#[test]
fn an_order_without_a_name_takes_no_model_away() {
    let swapping = Swapping::start(&json!({}), &[]);
    for deed in ["unload", "swap", "rollback", "load"] {
        let answer = swapping.act("", deed, &Value::Null);
        assert_eq!(answer.status, 404, "{deed}: {answer:?}");
        assert!(answer.text.contains("/models/{model}/swap"), "{answer:?}");
    }
    let long = json!({"source": "x".repeat(1 << 17)});
    let answer = swapping.act("starter", "swap", &long);
    assert_eq!(answer.status, 413, "{answer:?}");
    assert!(answer.text.contains("an order has at most"), "{answer:?}");
    assert_eq!(swapping.names(), ["starter"]);
}

#[test]
fn what_has_no_room_at_all_is_refused() {
    let swapping = Swapping::start(&json!({}), &[]);
    let answer = swapping.swap(&json!({"options": {"memory_bytes": MUCH}}));
    assert_eq!(answer.status, 409, "{answer:?}");
    assert!(answer.text.contains("free memory"), "{answer:?}");
    assert_eq!(swapping.model()["generation"], 1);
    let order = json!({"source": "starter", "options": {"memory_bytes": MUCH}});
    let answer = swapping.act("second", "load", &order);
    assert_eq!(answer.status, 409, "{answer:?}");
    assert!(answer.text.contains("free memory"), "{answer:?}");
}

#[test]
fn the_commands_load_and_unload() {
    let swapping = Swapping::start(&json!({}), &[]);
    let options = r#"{"bias": 0.5}"#;
    let load = [
        "load",
        "second",
        "starter",
        "--plugin",
        "fake",
        "--options",
        options,
    ];
    let (code, said) = crate::run(&swapping, &load);
    assert_eq!(code, Some(0), "{said}");
    for word in [
        "second: warm",
        "second: live",
        "unproven",
        "second: confirmed",
    ] {
        assert!(said.contains(word), "{said} does not say {word}");
    }
    assert_eq!(swapping.ask_of("second").status, 200);
    let (code, said) = crate::run(&swapping, &load);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("there is a model of this name"), "{said}");
    let (code, said) = crate::run(&swapping, &["unload", "second"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(swapping.ask_of("second").status, 404);
    assert_eq!(crate::run(&swapping, &["unload", "second"]).0, Some(1));
    let (code, said) = crate::run(
        &swapping,
        &[
            "swap",
            "starter",
            "--shadow",
            "0.5",
            "--shadow-time",
            "0.2",
            "--no-wait",
        ],
    );
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("starter: shadow"), "{said}");
    let (code, said) = crate::run(&swapping, &["swap", "starter", "--shadow", "some"]);
    assert_eq!(code, Some(2), "{said}");
}
