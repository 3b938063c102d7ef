//! Requests on which a generation is tried out before it goes live.

use crate::server::token;
use crate::{RARE, Swapping};
use serde_json::{Value, json};

/// Orders a swap that is tried out, and asks until it has ended.
fn tried_out(swapping: &Swapping, order: &Value) -> crate::server::Answer {
    let before = swapping.scores();
    std::thread::scope(|scope| {
        let swap = scope.spawn(|| swapping.swap(order));
        while !swap.is_finished() {
            // Whoever asks meanwhile notices nothing.
            let is_tried = || swapping.model()["last_swap"]["state"] == "shadow";
            if is_tried() {
                let scores = swapping.scores();
                // It may have gone live in between.
                assert!(scores == before || !is_tried(), "{scores:?}");
                let body = json!({"query": "q", "documents": [RARE]});
                assert_eq!(swapping.server.rerank(&body).status, 200);
            }
        }
        swap.join().unwrap()
    })
}

#[test]
fn one_whose_scores_agree_goes_live_and_the_differences_are_metrics() {
    // The cache would answer for both.
    let swapping = Swapping::start(&json!({}), &[("cache.enabled", "true")]);
    let order = json!({"options": {"bias": 0.001}, "shadow_fraction": 0.5, "shadow_s": 0.5, "probation_s": 0});
    let answer = tried_out(&swapping, &order);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.text.contains("50 % of the requests"), "{answer:?}");
    let swap = swapping.until("confirmed");
    let told = swap["detail"].as_str().unwrap();
    assert!(
        told.contains("tried out on") && told.contains("largest difference 0.001"),
        "{told}"
    );
    let server = &swapping.server;
    let compared = server.metric_of("crossgate_shadow_requests_total", "outcome=\"compared\"");
    let asked = server.metric_of("crossgate_score_requests_total", "outcome=\"ok\"");
    assert!(
        0.0 < compared && compared <= asked / 2.0 + 1.0,
        "{compared} of {asked}"
    );
    assert!(server.metric("crossgate_shadow_difference_count") >= compared);
    assert!(server.metric("crossgate_shadow_difference_sum") > 0.0);
}

#[test]
fn one_that_differs_on_requests_only_is_refused() {
    let swapping = Swapping::start(&json!({}), &[]);
    // No golden row has a volcano.
    for (option, words) in [
        ("skew_on", ["document 0 of the request", "same numerics id"]),
        (
            "fault_on",
            ["tried out on requests it failed", "asked to fail"],
        ),
        (
            "nan_on",
            ["tried out on requests it failed", "not a number"],
        ),
    ] {
        let order =
            json!({"options": {option: token("volcano")}, "shadow_fraction": 1, "shadow_s": 0.5});
        let answer = tried_out(&swapping, &order);
        assert_eq!(answer.status, 409, "{option}: {answer:?}");
        for word in words {
            assert!(
                answer.text.contains(word),
                "{option}: {answer:?} does not say {word}"
            );
        }
        assert_eq!(swapping.model()["generation"], 1);
    }
}

#[test]
fn nobody_asks_and_an_operator_does_not_wait_for_it() {
    let swapping = Swapping::start(&json!({}), &[]);
    let order = json!({"shadow_fraction": 1, "shadow_s": 600});
    std::thread::scope(|scope| {
        let swap = scope.spawn(|| swapping.swap(&order));
        swapping.until("shadow");
        // Whoever ends it has what he wanted.
        let (code, said) = crate::command(&swapping, &["--rollback"]);
        assert_eq!(code, Some(0), "{said}");
        let answer = swap.join().unwrap();
        assert_eq!(answer.status, 409, "{answer:?}");
        assert!(answer.text.contains("operator"), "{answer:?}");
    });
    let order = json!({"shadow_fraction": 1, "shadow_s": 0, "probation_s": 0});
    assert_eq!(swapping.swap(&order).status, 200);
    for wrong in [
        json!({"shadow_fraction": 1.5}),
        json!({"shadow_fraction": -1}),
        json!({"shadow_s": 1}),
        json!({"shadow_fraction": 1, "shadow_s": -1}),
    ] {
        assert_eq!(swapping.swap(&wrong).status, 422, "{wrong}");
    }
}

/// The starter as a model with two labels: of its weights the fake needs none.
fn two_labels(dir: &std::path::Path) -> Value {
    let starter = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("starter");
    std::fs::copy(starter.join("tokenizer.json"), dir.join("tokenizer.json")).unwrap();
    let head = json!({"classifier.weight": {"dtype": "F32", "shape": [2, 384], "data_offsets": [0, 3072]}}).to_string();
    let head = [&(head.len() as u64).to_le_bytes(), head.as_bytes()].concat();
    std::fs::write(
        dir.join("model.safetensors"),
        [head, vec![0; 3072]].concat(),
    )
    .unwrap();
    let config = std::fs::read(starter.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["id2label"] = json!({"0": "no", "1": "yes"});
    config["num_labels"] = 2.into();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    dir.display().to_string().into()
}

#[test]
fn other_weights_with_other_labels_can_be_tried_out() {
    let (swapping, dir) = (
        Swapping::start(&json!({}), &[]),
        tempfile::tempdir().unwrap(),
    );
    let order = json!({"source": two_labels(dir.path()), "options": {"labels": 2}, "expect_change": true,
        "shadow_fraction": 1, "shadow_s": 0.5, "probation_s": 0});
    let answer = tried_out(&swapping, &order);
    assert_eq!(answer.status, 200, "{answer:?}");
    let swap = swapping.until("confirmed");
    let told = swap["detail"].as_str().unwrap();
    assert!(told.contains("it has other labels"), "{told}");
    let compared = "outcome=\"compared\"";
    let name = "crossgate_shadow_requests_total";
    assert!(swapping.server.metric_of(name, compared) > 0.0);
}
