//! The instruments of what several servers know together.

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge as Level, Histogram, Meter, UpDownCounter};
use std::time::Duration;

/// Seconds, of a round trip in a machine room.
const TRIP_SECONDS: [f64; 10] = [
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1,
];

/// What happens between this server and the Redis that it shares with others.
pub struct DistributedMetrics {
    operations: Counter<u64>,
    operation_seconds: Histogram<f64>,
    values: Counter<u64>,
    writes: Counter<u64>,
    breaker: Level<u64>,
    leases: UpDownCounter<i64>,
    refusals: Counter<u64>,
    unlimited: Counter<u64>,
    peer_faults: Level<u64>,
}

// === impl DistributedMetrics ===

impl DistributedMetrics {
    /// All of them, at nothing.
    pub(super) fn new(meter: &Meter) -> Self {
        let count = |name: &'static str, about: &'static str| {
            meter.u64_counter(name).with_description(about).build()
        };
        let level = |name: &'static str, about: &'static str| {
            meter.u64_gauge(name).with_description(about).build()
        };
        Self {
            operations: count(
                "crossgate.distributed_operations",
                "What Redis was asked, by operation and outcome: ok, timeout, error, open (not asked).",
            ),
            operation_seconds: meter
                .f64_histogram("crossgate.distributed_operation_duration")
                .with_unit("s")
                .with_description("Time of what Redis was asked, by operation.")
                .with_boundaries(TRIP_SECONDS.to_vec())
                .build(),
            values: count(
                "crossgate.distributed_values",
                "Values that Redis was asked for, by outcome: hit, miss, unknown (no answer).",
            ),
            writes: count(
                "crossgate.distributed_writes",
                "Values that were to be written, by outcome: written, full, failed, cleared.",
            ),
            breaker: level(
                "crossgate.distributed_breaker",
                "0 while Redis answers, 2 while it is not asked, 1 while it is tried again.",
            ),
            leases: meter
                .i64_up_down_counter("crossgate.distributed_leases")
                .with_description("Leases of the shared bound on requests that this server holds.")
                .build(),
            refusals: count(
                "crossgate.distributed_refusals",
                "Requests refused by a bound of all servers: requests or rate.",
            ),
            unlimited: count(
                "crossgate.distributed_unlimited",
                "Requests let in past a bound of all servers because Redis did not answer.",
            ),
            peer_faults: level(
                "crossgate.distributed_peer_faults",
                "Other servers on which a model fails, by model.",
            ),
        }
    }

    /// Redis was asked, or was not because the breaker is open.
    pub fn operation(
        &self,
        operation: &'static str,
        outcome: &'static str,
        took: Option<Duration>,
    ) {
        let labels = [
            KeyValue::new("operation", operation),
            KeyValue::new("outcome", outcome),
        ];
        self.operations.add(1, &labels);
        if let Some(took) = took {
            self.operation_seconds
                .record(took.as_secs_f64(), &labels[..1]);
        }
    }

    /// So many values were asked for with this outcome.
    pub fn values(&self, outcome: &'static str, n: usize) {
        self.values
            .add(n as u64, &[KeyValue::new("outcome", outcome)]);
    }

    /// So many values were to be written and had this outcome.
    pub fn writes(&self, outcome: &'static str, n: usize) {
        self.writes
            .add(n as u64, &[KeyValue::new("outcome", outcome)]);
    }

    /// The breaker is closed (0), tries (1) or is open (2).
    pub fn breaker(&self, state: u64) {
        self.breaker.record(state, &[]);
    }

    /// So many more leases are held.
    pub fn leases(&self, more: i64) {
        self.leases.add(more, &[]);
    }

    /// A bound of all servers refused a request.
    pub fn refused(&self, limit: &'static str) {
        self.refusals.add(1, &[KeyValue::new("limit", limit)]);
    }

    /// A request came in past a bound of all servers.
    pub fn unlimited(&self, limit: &'static str) {
        self.unlimited.add(1, &[KeyValue::new("limit", limit)]);
    }

    /// On so many other servers the model fails.
    pub fn peer_faults(&self, model: &str, n: usize) {
        self.peer_faults
            .record(n as u64, &[KeyValue::new("model", model.to_owned())]);
    }
}
