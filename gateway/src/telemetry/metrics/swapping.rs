//! Instruments of models that are replaced while they serve.

use super::ModelMetrics;
use crate::load::Catalog;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter, ObservableGauge};
use std::sync::{Arc, Weak};

/// Differences of logits: rerankers' span about 20.
const DIFFERENCES: [f64; 10] = [1e-5, 1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0];

/// What is counted as it happens.
pub(super) struct SwapInstruments {
    swaps: Counter<u64>,
    shadow_requests: Counter<u64>,
    shadow_difference: Histogram<f64>,
}

impl SwapInstruments {
    pub(super) fn new(meter: &Meter) -> Self {
        Self {
            swaps: meter
                .u64_counter("crossgate.swaps")
                .with_description("Swaps, loads and unloads of models, by outcome.")
                .build(),
            shadow_requests: meter
                .u64_counter("crossgate.shadow_requests")
                .with_description(
                    "Requests chosen to be tried out on a generation that does not serve yet, by outcome.",
                )
                .build(),
            shadow_difference: meter
                .f64_histogram("crossgate.shadow_difference")
                .with_description(
                    "Difference of two logits for the same pair: of what serves, and of what is tried out.",
                )
                .with_boundaries(DIFFERENCES.to_vec())
                .build(),
        }
    }
}

/// What the last swap of each model has reached: 1 for that state, 0 for the others that it went through.
pub(super) fn swap_state(meter: &Meter, catalog: Weak<dyn Catalog>) -> ObservableGauge<f64> {
    meter
        .f64_observable_gauge("crossgate.swap_state")
        .with_description(
            "1 for what the last swap of a model has reached, 0 for every other state.",
        )
        .with_callback(move |observer| {
            let catalog = catalog.upgrade();
            for model in catalog.map(|catalog| catalog.models()).unwrap_or_default() {
                let Some(last) = &model.last_swap else {
                    continue;
                };
                for state in crate::control::SwapState::ALL {
                    let labels = [
                        KeyValue::new("model", model.name.to_string()),
                        KeyValue::new("state", state.name()),
                    ];
                    observer.observe(f64::from(last.state == state.name()), &labels);
                }
            }
        })
        .build()
}

impl ModelMetrics {
    /// A swap of the model has ended: `confirmed`, `refused`, `rolled_back`, `unloaded`.
    pub fn swap(&self, outcome: &'static str) {
        let labels = [self.model.clone(), KeyValue::new("outcome", outcome)];
        self.metrics.swapping.swaps.add(1, &labels);
    }

    /// A request was chosen to be tried out: `compared`, `failed`, `skipped`.
    pub fn shadow(&self, outcome: &'static str) {
        let labels = [self.model.clone(), KeyValue::new("outcome", outcome)];
        self.metrics.swapping.shadow_requests.add(1, &labels);
    }

    /// So far apart are two logits of one pair.
    pub fn shadow_difference(&self, difference: f64) {
        let labels = std::slice::from_ref(&self.model);
        self.metrics
            .swapping
            .shadow_difference
            .record(difference, labels);
    }
}

/// For what is read of each model that was there once and is not any more: 0, because an exporter tells the
/// last value of every label that it has seen.
#[derive(Clone, Default)]
pub(super) struct Known(Arc<std::sync::Mutex<std::collections::BTreeSet<String>>>);

impl Known {
    /// Those of whom nothing is heard any more.
    pub(super) fn gone(&self, models: &[crate::load::ModelState]) -> Vec<String> {
        let mut known = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        known.extend(models.iter().map(|model| model.name.to_string()));
        let is_there = |name: &String| models.iter().any(|model| *model.name == **name);
        known
            .iter()
            .filter(|name| !is_there(name))
            .cloned()
            .collect()
    }
}
