//! A response is of one generation, however it is cut into batches and whatever else is computed at the time.

use crate::Swapping;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

/// Every generation adds as much as the one before, so that a score tells whose it is.
const STEP: f64 = 0.001;

/// In the documents' order.
fn scores(swapping: &Swapping, documents: &[impl serde::Serialize]) -> Vec<f64> {
    let body = json!({"query": "plants", "documents": documents});
    let answer = swapping.server.rerank(&body);
    assert_eq!(answer.status, 200, "{answer:?}");
    let mut results = answer.results();
    results.sort_by_key(|result| result["index"].as_u64());
    let score = |result: &Value| result["relevance_score"].as_f64().unwrap();
    results.iter().map(score).collect()
}

#[test]
fn no_response_is_of_two_generations() {
    const SWAPS: usize = 8;
    // Small batches of slow rows: a request is under way for long, beside others and across a swap.
    let settings = [
        ("batch.rows_max", "4"),
        ("server.request_timeout", "20s"),
        ("cache.enabled", "true"),
        ("cache.coalesce", "true"),
        ("model.activation", "identity"),
    ];
    let options = |step: usize| json!({"row_us": 500, "bias": step as f64 * STEP});
    let swapping = Swapping::start(&options(0), &settings);
    let texts: Vec<_> = (0..200).map(|idx| format!("car {idx}")).collect();
    let first = scores(&swapping, &texts);
    let stop = AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..3)
            .map(|client: usize| {
                let (swapping, stop, texts, first) = (&swapping, &stop, &texts, &first);
                scope.spawn(move || {
                    let mut seen = BTreeSet::new();
                    for round in 0_usize.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        // Pairs that were asked for before, new ones, and those that others ask for just now.
                        let place = |idx: usize| (idx * (1 + client) + round) % texts.len();
                        let places: Vec<_> = (0..60).map(place).collect();
                        let asked: Vec<_> = places.iter().map(|place| &texts[*place]).collect();
                        let found = scores(swapping, &asked);
                        let steps = found
                            .iter()
                            .zip(&places)
                            .map(|(found, place)| ((found - first[*place]) / STEP).round() as i64);
                        let generations: BTreeSet<_> = steps.collect();
                        assert_eq!(generations.len(), 1, "{generations:?} in one response");
                        seen.extend(generations);
                    }
                    seen
                })
            })
            .collect();
        for step in 1..=SWAPS {
            let order = json!({"options": options(step), "probation_s": 0});
            let answer = swapping.swap(&order);
            if answer.status != 200 {
                stop.store(true, Ordering::Relaxed);
            }
            assert_eq!(answer.status, 200, "swap {step}: {answer:?}");
            swapping.until("confirmed");
        }
        stop.store(true, Ordering::Relaxed);
        let seen = clients.into_iter().map(|client| client.join().unwrap());
        seen.reduce(|mut all, one| {
            all.extend(one);
            all
        })
    });
    // They were there to be mixed.
    assert!(seen.unwrap().len() > SWAPS / 2);
}
