//! Swaps that are refused: what serves goes on, and the answer names the cause.

use crate::server::token;
use crate::{Swapping, file_name, put};
use serde_json::{Value, json};

#[test]
fn equal_numerics_and_wrong_scores_are_refused_with_row_scores_and_tolerance() {
    let swapping = Swapping::start(&json!({}), &[]);
    let before = swapping.scores();
    let answer = swapping.swap(&json!({"options": {"skew": 0.01}}));
    assert_eq!(answer.status, 409, "{answer:?}");
    for word in [
        "golden row",
        "a difference of 0.0100",
        "0 is tolerated",
        "same numerics id",
    ] {
        assert!(
            answer.text.contains(word),
            "{answer:?} does not say {word:?}"
        );
    }
    assert_eq!(swapping.model()["generation"], 1);
    assert_eq!(swapping.until("refused")["state"], "refused");
    assert_eq!(swapping.scores(), before);
    // And nothing is in the way of the next one.
    assert_eq!(swapping.swap(&json!({"probation_s": 0})).status, 200);
}

#[test]
fn another_arithmetic_may_differ_a_little() {
    let swapping = Swapping::start(&json!({}), &[]);
    // The fake computes in f32: 2e-3 is tolerated.
    let answer = swapping.swap(&json!({"options": {"bias": 0.001}, "probation_s": 0}));
    assert_eq!(answer.status, 200, "{answer:?}");
    swapping.until("confirmed");
    let answer = swapping.swap(&json!({"options": {"bias": 1.0}}));
    assert_eq!(answer.status, 409, "{answer:?}");
    assert!(answer.text.contains("both compute in f32"), "{answer:?}");
}

/// Orders, and what the answer must say.
fn wrong_orders(elsewhere: &str) -> Vec<(Value, &'static str)> {
    vec![
        (json!({"plugin": "nobody"}), "there is no plugin"),
        (
            json!({"plugin": elsewhere}),
            "no file in a folder of plugins",
        ),
        (
            json!({"plugin": "../../etc/passwd"}),
            "no file in a folder of plugins",
        ),
        (json!({"plugin": file_name("half")}), "half"),
        (json!({"plugin": file_name("text")}), "text"),
        (
            json!({"plugin": "fake", "sha256": "0".repeat(64)}),
            "the order says",
        ),
        (json!({"dtype": "int7"}), "int7"),
        (json!({"device": "moon"}), "moon"),
        (json!({"options": {"nonsense": 1}}), "nonsense"),
        (json!({"options": {"panic_in": "open"}}), "panic"),
        (
            json!({"options": {"fault_in": "open"}}),
            "asked to fail in Open",
        ),
        (json!({"options": {"panic_in": "worker"}}), "panic"),
        (json!({"options": {"panic_in": "score"}}), "panic"),
        (
            json!({"options": {"fault_in": "score"}}),
            "asked to fail in Score",
        ),
        (json!({"options": {"nan_on": token("plants")}}), "NotFinite"),
        (
            json!({"options": {"skip_on": token("plants")}}),
            "without score",
        ),
        (json!({"options": {"labels": 2}}), "labels"),
        (json!({"source": "/no/such/folder"}), "/no/such/folder"),
    ]
}

#[test]
fn what_cannot_be_swapped_to_is_refused_and_the_cause_is_named() {
    let swapping = Swapping::start(&json!({}), &[]);
    let dir = swapping.dir.path();
    let outside = tempfile::tempdir().unwrap();
    put(outside.path(), "fake", "elsewhere");
    let elsewhere = outside.path().join(file_name("fake")).display().to_string();
    let good = std::fs::read(dir.join(file_name("fake"))).unwrap();
    std::fs::write(dir.join(file_name("half")), &good[..good.len() / 2]).unwrap();
    std::fs::write(
        dir.join(file_name("text")),
        "CROSSGATE_PLUGIN_ABI, but not a library",
    )
    .unwrap();
    for (order, word) in wrong_orders(&elsewhere) {
        let answer = swapping.swap(&order);
        assert_eq!(answer.status, 409, "{order}: {answer:?}");
        assert!(
            answer.text.contains(word),
            "{order}: {answer:?} does not say {word:?}"
        );
        assert_eq!(swapping.model()["generation"], 1, "{order}");
    }
    assert_eq!(
        swapping
            .server
            .order("/models/nobody/swap", &json!({}))
            .status,
        404
    );
    assert_eq!(swapping.scores().len(), 2);
    let wrong = swapping.swap(&json!({"probation_s": -1}));
    assert_eq!(wrong.status, 422, "{wrong:?}");
    assert_eq!(swapping.swap(&json!({"plugins": "x"})).status, 422);
}

#[test]
fn what_crashes_or_eats_memory_does_so_in_a_process_of_its_own() {
    let settings = [("plugins.probe_memory_max", "1GiB")];
    let swapping = Swapping::start(&json!({}), &settings);
    let cases = [
        ("abort", "signal 6 (abort)"),
        ("exit", "ended with code 0 and without a report"),
        ("eat", "memory allocation of"),
    ];
    for (crash, word) in cases {
        let answer = swapping.swap(&json!({"options": {"crash": crash}}));
        assert_eq!(answer.status, 409, "{crash}: {answer:?}");
        assert!(
            answer.text.contains(word),
            "{crash}: {answer:?} does not say {word:?}"
        );
        assert_eq!(swapping.scores().len(), 2);
    }
    // Nothing of it was mapped here, and nothing is in the way of a good one.
    assert_eq!(swapping.server.metric("crossgate_plugin_images"), 1.0);
    assert_eq!(swapping.swap(&json!({"probation_s": 0})).status, 200);
}

#[test]
fn what_hangs_is_ended() {
    let swapping = Swapping::start(&json!({}), &[("plugins.probe_timeout", "1s")]);
    let answer = swapping.swap(&json!({"options": {"crash": "hang"}}));
    assert_eq!(answer.status, 409, "{answer:?}");
    assert!(answer.text.contains("plugins.probe_timeout"), "{answer:?}");
    assert_eq!(swapping.scores().len(), 2);
}
