//! The instruments of API keys.

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Meter};

/// Counts calls by whose key they showed.
pub(super) struct KeyInstruments {
    requests: Counter<u64>,
    documents: Counter<u64>,
}

impl KeyInstruments {
    pub(super) fn new(meter: &Meter) -> Self {
        let count = |name: &'static str, about: &'static str| {
            meter.u64_counter(name).with_description(about).build()
        };
        Self {
            requests: count(
                "crossgate.key_requests",
                "Calls by the name of their API key, and outcome: ok, limited, refused, failed, unknown (no key).",
            ),
            documents: count(
                "crossgate.key_documents",
                "Documents scored by the name of the API key.",
            ),
        }
    }

    /// A call has ended; one without a name showed no key. Names are few: those that are configured.
    pub(super) fn count(&self, name: &str, outcome: &'static str, n_documents: usize) {
        let labels = [
            KeyValue::new("key", name.to_owned()),
            KeyValue::new("outcome", outcome),
        ];
        self.requests.add(1, &labels);
        if !name.is_empty() {
            self.documents.add(n_documents as u64, &labels[..1]);
        }
    }
}
