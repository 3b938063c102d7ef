//! What serves goes on while something is done to it.

use crate::Swapping;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};

/// Scores of two documents, in their order. The fake prefers the first, the example of `plugins/README.md` the second.
pub(crate) fn scores(swapping: &Swapping, model: &str) -> Vec<f64> {
    let documents = ["green plants in the light", "red cars"];
    let body = json!({"model": model, "query": "green plants", "documents": documents});
    let answer = swapping.server.rerank(&body);
    assert_eq!(answer.status, 200, "{model}: {answer:?}");
    let mut results = answer.results();
    results.sort_by_key(|result| result["index"].as_u64());
    let score = |result: &Value| result["relevance_score"].as_f64().unwrap();
    results.iter().map(score).collect()
}

/// Does it while a client of each model asks over and over, and once afterwards: every answer must be what
/// it was before, and the server healthy throughout.
pub(crate) fn while_serving<T>(swapping: &Swapping, models: &[&str], act: impl FnOnce() -> T) -> T {
    let before: Vec<_> = models.iter().map(|model| scores(swapping, model)).collect();
    let check = |idx: usize| {
        assert_eq!(
            scores(swapping, models[idx]),
            before[idx],
            "{}",
            models[idx]
        );
        for health in ["/livez", "/readyz"] {
            let answer = swapping.server.get(health);
            assert_eq!(answer.status, 200, "{health}: {answer:?}");
        }
    };
    let is_done = AtomicBool::new(false);
    let done = std::thread::scope(|scope| {
        for idx in 0..models.len() {
            let (check, is_done) = (&check, &is_done);
            scope.spawn(move || {
                while !is_done.load(Ordering::Relaxed) {
                    check(idx);
                }
            });
        }
        // A client that panics is noticed at the end of the scope; one that is never told, never.
        let _tell = Tell(&is_done);
        act()
    });
    (0..models.len()).for_each(check);
    done
}

/// Orders a swap that must be refused with these words, without anybody noticing.
#[track_caller]
pub(crate) fn check_refused(swapping: &Swapping, order: &Value, words: &[&str]) {
    let generation = swapping.model()["generation"].clone();
    let answer = while_serving(swapping, &["starter"], || swapping.swap(order));
    assert_eq!(answer.status, 409, "{order}: {answer:?}");
    for word in words {
        assert!(
            answer.text.contains(word),
            "{order}: {answer:?} does not say {word:?}"
        );
    }
    assert_eq!(swapping.model()["generation"], generation, "{order}");
}

/// Tells the clients when it goes, also by a panic.
struct Tell<'a>(&'a AtomicBool);

impl Drop for Tell<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
