//! Swaps that are refused: what serves goes on, and the answer names the cause.

use crate::server::token;
use crate::serving::{check_refused, while_serving};
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
    let told = swapping.until("refused");
    assert!(
        told["detail"].as_str().unwrap().contains("golden row"),
        "{told}"
    );
    // Clients hear that, and not why: it may name files.
    let public: Value = serde_json::from_str(&swapping.server.get("/models").text).unwrap();
    assert_eq!(public["starter"]["last_swap"], json!({"state": "refused"}));
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
        check_refused(&swapping, &order, &[word]);
    }
    assert_eq!(
        swapping
            .server
            .order("/models/nobody/swap", &json!({}))
            .status,
        404
    );
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
        check_refused(&swapping, &json!({"options": {"crash": crash}}), &[word]);
    }
    // Nothing of it was mapped here, and nothing is in the way of a good one.
    assert_eq!(swapping.server.metric("crossgate_plugin_images"), 1.0);
    assert_eq!(swapping.swap(&json!({"probation_s": 0})).status, 200);
}

#[test]
fn what_hangs_or_takes_too_long_is_ended() {
    let swapping = Swapping::start(&json!({}), &[("plugins.probe_timeout", "1s")]);
    let hold = swapping.dir.path().join("hold");
    std::fs::write(&hold, "").unwrap();
    for options in [
        json!({"crash": "hang"}),
        json!({"hold": hold}),
        json!({"row_us": 500_000}),
    ] {
        let words = ["it hangs", "plugins.probe_timeout"];
        check_refused(&swapping, &json!({"options": options}), &words);
    }
}

/// A destructor has nobody to tell: it is fenced like every other entry, and its backend is gone.
#[test]
fn a_panic_in_a_destructor_harms_nobody() {
    let swapping = Swapping::start(&json!({}), &[]);
    for options in [json!({"panic_in": "drop"}), json!({})] {
        let order = json!({"options": options, "probation_s": 0});
        while_serving(&swapping, &["starter"], || {
            assert_eq!(swapping.swap(&order).status, 200, "{order}");
            swapping.until("confirmed");
            // Those of the one before it, which it was opened beside, are gone.
            let n_workers = || swapping.server.metric("crossgate_workers");
            swapping.server.until(|| (n_workers() == 2.0).then_some(()));
        });
    }
}

/// An order that names no plugin means the file of the one that serves, whatever has become of that file.
#[test]
fn a_new_build_that_did_not_stay_is_in_the_way_of_no_other_order() {
    let swapping = Swapping::start(&json!({}), &[("plugins.images_max", "3")]);
    let dir = swapping.dir.path();
    let again = || {
        assert_eq!(swapping.swap(&json!({"probation_s": 0})).status, 200);
        swapping.until("confirmed");
    };
    // Refused when it was mapped already.
    put(dir, "fake", "a wrong build");
    check_refused(&swapping, &json!({"options": {"skew": 1}}), &["golden row"]);
    again();
    // Taken back.
    put(dir, "fake", "another build");
    let order = json!({"plugin": "fake", "probation_s": 600});
    assert_eq!(swapping.swap(&order).status, 200);
    assert_eq!(swapping.rollback().status, 200);
    again();
    // Refused before it is mapped; the plugin has its name still.
    put(dir, "fake", "one too many");
    check_refused(&swapping, &json!({}), &["plugins.images_max"]);
    put(dir, "fake", "another build");
    assert_eq!(swapping.swap(&json!({"plugin": "fake"})).status, 200);
}

#[test]
fn an_order_may_say_what_a_configuration_may() {
    let outside = tempfile::tempdir().unwrap();
    put(outside.path(), "fake", "elsewhere");
    let swapping = Swapping::beside(&json!({}), &[], |dir| {
        let link = dir.join(file_name("linked"));
        std::os::unix::fs::symlink(outside.path().join(file_name("fake")), link).unwrap();
    });
    for order in [
        json!({"plugin": file_name("linked"), "probation_s": 0}),
        json!({"dtype": "float32", "probation_s": 0}),
        json!({"plugin": "fake", "probation_s": 0}),
    ] {
        let answer = swapping.swap(&order);
        assert_eq!(answer.status, 200, "{order}: {answer:?}");
        swapping.until("confirmed");
    }
}
