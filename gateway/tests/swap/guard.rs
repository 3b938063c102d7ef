//! What is looked after when no swap is under way.

use crate::server::token;
use crate::{RARE, Swapping};
use serde_json::json;

#[test]
fn one_that_fails_after_its_probation_makes_way_for_what_served_before() {
    let settings = [("worker.retries_max", "0"), ("worker.faults_max", "4")];
    let swapping = Swapping::start(&json!({}), &settings);
    let order = json!({"options": {"fault_on": token("volcano")}, "probation_s": 0});
    assert_eq!(swapping.swap(&order).status, 200);
    swapping.until("confirmed");
    let rare = || {
        let body = json!({"query": "q", "documents": [RARE]});
        swapping.server.rerank(&body).status
    };
    let swap = swapping.server.until(|| {
        rare();
        let swap = swapping.model()["last_swap"].clone();
        (swap["state"] == "rolled_back").then_some(swap)
    });
    let detail = swap["detail"].as_str().unwrap();
    assert!(detail.contains("batches failed within"), "{detail}");
    assert_eq!(rare(), 200);
    assert_eq!(swapping.model()["generation"], 3);
}

#[test]
fn without_anything_before_it_the_server_is_not_ready_until_it_scores_again() {
    let dir = tempfile::tempdir().unwrap();
    let broken = dir.path().join("broken");
    let settings = [
        ("worker.retries_max", "0"),
        ("worker.faults_max", "4"),
        ("worker.faults_window", "10s"),
    ];
    let swapping = Swapping::start(&json!({"fault_while": broken}), &settings);
    assert_eq!(swapping.server.get("/readyz").status, 200);
    std::fs::write(&broken, "").unwrap();
    let body = json!({"query": "q", "documents": [RARE]});
    swapping.server.until(|| {
        let _ = swapping.server.rerank(&body);
        (swapping.server.get("/readyz").status == 503).then_some(())
    });
    assert_eq!(swapping.model()["state"], "failing");
    assert_eq!(swapping.server.metric("crossgate_model_ready"), 0.0);
    std::fs::remove_file(&broken).unwrap();
    swapping
        .server
        .until(|| (swapping.server.get("/readyz").status == 200).then_some(()));
    assert_eq!(swapping.server.rerank(&body).status, 200);
}

/// What fails can be compared with nothing: that must not keep an operator from mending it.
#[test]
fn one_that_fails_is_swapped_to_one_that_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let broken = dir.path().join("broken");
    let settings = [("worker.retries_max", "0"), ("worker.faults_max", "4")];
    let swapping = Swapping::start(&json!({"fault_while": broken}), &settings);
    let before = swapping.scores();
    std::fs::write(&broken, "").unwrap();
    let body = json!({"query": "q", "documents": [RARE]});
    swapping.server.until(|| {
        let _ = swapping.server.rerank(&body);
        (swapping.server.get("/readyz").status == 503).then_some(())
    });
    let answer = swapping.swap(&json!({"options": {}, "probation_s": 600}));
    assert_eq!(answer.status, 200, "{answer:?}");
    for word in ["unproven", "what serves is failing itself"] {
        assert!(answer.text.contains(word), "{answer:?} does not say {word}");
    }
    assert_eq!(swapping.server.get("/readyz").status, 200);
    assert_eq!(swapping.scores(), before);
}

#[test]
fn one_that_scores_nothing_but_nan_is_opened_again_and_nobody_notices() {
    let dir = tempfile::tempdir().unwrap();
    let spoil = dir.path().join("spoil");
    let swapping = Swapping::start(&json!({"spoil": spoil, "nan_on": token("volcano")}), &[]);
    let before = swapping.scores();
    // A row that is NaN for reasons of its own fails alone, and costs nobody a backend.
    let body = json!({"query": "q", "documents": [RARE]});
    assert_eq!(swapping.server.rerank(&body).status, 502);
    let faults = || {
        let name = "crossgate_backend_faults_total";
        swapping.server.metric_of(name, "fault=\"poisoned\"")
    };
    assert_eq!(faults(), 0.0);
    std::fs::write(&spoil, "").unwrap();
    assert_eq!(swapping.scores(), before);
    assert!(!spoil.exists());
    // Each worker that has met it says so.
    assert!((1.0..=2.0).contains(&faults()));
    assert_eq!(swapping.model()["state"], "live");
}

/// Two generations of one numerics id share the cache: a wrong one that was taken back has left its scores there.
#[test]
fn scores_of_one_that_was_taken_back_are_forgotten() {
    for (memory_bytes, probation_s) in [(0, 600), (0, 0), (1_u64 << 50, 600)] {
        let options = json!({"memory_bytes": memory_bytes});
        let swapping = Swapping::start(&options, &[("cache.enabled", "true")]);
        let score = || {
            let body = json!({"query": "q", "documents": [RARE]});
            swapping.server.rerank(&body).results()[0]["relevance_score"].clone()
        };
        // No golden row has a volcano.
        let options = json!({"memory_bytes": memory_bytes, "skew_on": token("volcano")});
        let order = json!({"options": options, "probation_s": probation_s});
        assert_eq!(swapping.swap(&order).status, 200);
        if probation_s == 0 {
            swapping.until("confirmed");
        }
        let wrong = score();
        assert_eq!(swapping.rollback().status, 200);
        let right = score();
        assert_ne!(right, wrong, "{order}");
        assert_eq!(score(), right);
        assert_eq!(swapping.server.act("/cache/clear").status, 200);
        assert_eq!(score(), right);
    }
}

#[test]
fn what_does_not_open_again_is_told_and_can_be_asked_for_again() {
    let dir = tempfile::tempdir().unwrap();
    let broken = dir.path().join("broken");
    let swapping = Swapping::start(&json!({"broken": broken}), &[]);
    let before = swapping.scores();
    let order = json!({"options": {"bias": 0.001}, "probation_s": 0});
    assert_eq!(swapping.swap(&order).status, 200);
    swapping.until("confirmed");
    std::fs::write(&broken, "").unwrap();
    let answer = swapping.rollback();
    assert_eq!(answer.status, 409, "{answer:?}");
    for word in ["asked to be broken", "what serves goes on"] {
        assert!(answer.text.contains(word), "{answer:?} does not say {word}");
    }
    assert_ne!(swapping.scores(), before);
    std::fs::remove_file(&broken).unwrap();
    assert_eq!(swapping.rollback().status, 200);
    assert_eq!(swapping.scores(), before);
}
