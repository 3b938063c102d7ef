//! Every metric, one table. OpenTelemetry names and units inside; the Prometheus exporter makes
//! `crossgate_batch_rows_total` and `crossgate_stage_duration_seconds` of them.

use crate::load::{Catalog, ModelState};
use backend_api::Phases;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{
    Counter, Gauge as Level, Histogram, Meter, MeterProvider, ObservableGauge, UpDownCounter,
};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Registry, TextEncoder};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Seconds, from a row of a small model to a request at its deadline.
const SECONDS: [f64; 16] = [
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0,
];
/// Seconds, of a round trip in a machine room.
const TRIP_SECONDS: [f64; 10] = [
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1,
];
/// Rows in a batch.
const ROWS: [f64; 11] = [
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0,
];
/// Tokens in a batch.
const TOKENS: [f64; 11] = [
    16.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0,
];

/// All instruments.
pub struct Metrics {
    registry: Registry,
    requests: Counter<u64>,
    request_seconds: Histogram<f64>,
    stage_seconds: Histogram<f64>,
    scored: Counter<u64>,
    rows: Counter<u64>,
    tokens: Counter<u64>,
    batches: Counter<u64>,
    batch_rows: Histogram<u64>,
    batch_tokens: Histogram<u64>,
    batch_seconds: Histogram<f64>,
    backend_seconds: Counter<f64>,
    faults: Counter<u64>,
    // Kept alive: dropping an observable gauge stops it.
    gauges: Mutex<Vec<ObservableGauge<f64>>>,
    // Shuts the reader down when dropped.
    provider: SdkMeterProvider,
}

/// One model's share of the instruments.
pub struct ModelMetrics {
    metrics: Arc<Metrics>,
    model: KeyValue,
}

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

/// A request in the core; it is counted once, however it ends.
pub struct OpenRequest {
    metrics: Arc<ModelMetrics>,
    outcome: &'static str,
}

/// The outcome of a request whose answer nobody waited for.
const CANCELLED: &str = "cancelled";

/// A gauge that is read from a model's state: name, unit, description, value.
type Gauge = (
    &'static str,
    &'static str,
    &'static str,
    fn(&ModelState) -> f64,
);

const GAUGES: [Gauge; 8] = [
    (
        "crossgate.requests_in_flight",
        "",
        "Requests between admission and answer.",
        |model| model.load.requests_in_flight as f64,
    ),
    (
        "crossgate.queue_rows",
        "",
        "Rows that wait for a worker.",
        |model| model.load.queue_rows as f64,
    ),
    (
        "crossgate.queue_tokens",
        "",
        "Tokens that wait for a worker.",
        |model| model.load.queue_tokens as f64,
    ),
    (
        "crossgate.queue_time",
        "s",
        "Predicted time until what waits now has been computed.",
        |model| model.load.queue_time.as_secs_f64(),
    ),
    (
        "crossgate.workers",
        "",
        "Workers that can be called.",
        |model| model.load.workers as f64,
    ),
    (
        "crossgate.workers_busy",
        "",
        "Workers that compute at this moment.",
        |model| model.load.workers_busy as f64,
    ),
    (
        "crossgate.model_generation",
        "",
        "Counts up with every swap of the model.",
        |model| model.generation as f64,
    ),
    (
        "crossgate.model_ready",
        "",
        "1 while the model takes requests.",
        |model| f64::from(model.state == "live"),
    ),
];

// === impl Metrics ===

impl Metrics {
    /// All instruments, at nothing.
    ///
    /// # Errors
    /// When the exporter cannot be built.
    pub fn new() -> Result<Arc<Self>, String> {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .without_target_info()
            .build()
            .map_err(|error| format!("the metrics exporter does not start: {error}"))?;
        let provider = SdkMeterProvider::builder().with_reader(exporter).build();
        let meter = provider.meter("crossgate");
        Ok(Arc::new(Self::instruments(registry, &meter, provider)))
    }

    fn instruments(registry: Registry, meter: &Meter, provider: SdkMeterProvider) -> Self {
        let count = |name: &'static str, about: &'static str| {
            meter.u64_counter(name).with_description(about).build()
        };
        let seconds = |name: &'static str, about: &'static str| {
            meter
                .f64_histogram(name)
                .with_unit("s")
                .with_description(about)
                .with_boundaries(SECONDS.to_vec())
                .build()
        };
        let sizes = |name: &'static str, about: &'static str, bounds: &[f64]| {
            meter
                .u64_histogram(name)
                .with_description(about)
                .with_boundaries(bounds.to_vec())
                .build()
        };
        Self {
            requests: count(
                "crossgate.requests",
                "Calls answered at the edge, by protocol, route and status.",
            ),
            request_seconds: seconds(
                "crossgate.request_duration",
                "From the first byte of a call to its answer.",
            ),
            stage_seconds: seconds(
                "crossgate.stage_duration",
                "Time of a scored request in each stage.",
            ),
            scored: count(
                "crossgate.score_requests",
                "Requests to the core, by model and outcome.",
            ),
            rows: count("crossgate.rows", "Rows computed."),
            tokens: count("crossgate.tokens", "Tokens computed."),
            batches: count("crossgate.batches", "Batches computed."),
            batch_rows: sizes("crossgate.batch_rows", "Rows in a batch.", &ROWS),
            batch_tokens: sizes("crossgate.batch_tokens", "Tokens in a batch.", &TOKENS),
            batch_seconds: seconds(
                "crossgate.batch_duration",
                "Time of a batch, the plugin's call included.",
            ),
            backend_seconds: meter
                .f64_counter("crossgate.backend_busy")
                .with_unit("s")
                .with_description("Time inside the plugin by its own account, by phase.")
                .build(),
            faults: count(
                "crossgate.backend_faults",
                "Batches that the plugin failed, by kind of fault.",
            ),
            gauges: Mutex::new(Vec::new()),
            registry,
            provider,
        }
    }

    /// Reads the gauges from `catalog` whenever somebody asks for the metrics.
    pub fn observe(&self, catalog: &Arc<dyn Catalog>) {
        let meter = self.provider.meter("crossgate");
        let gauges = GAUGES.map(|(name, unit, about, value)| {
            let catalog = Arc::downgrade(catalog);
            meter
                .f64_observable_gauge(name)
                .with_unit(unit)
                .with_description(about)
                .with_callback(move |observer| {
                    for model in catalog
                        .upgrade()
                        .map(|catalog| catalog.models())
                        .unwrap_or_default()
                    {
                        observer.observe(
                            value(&model),
                            &[KeyValue::new("model", model.name.to_string())],
                        );
                    }
                })
                .build()
        });
        self.gauges
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(gauges);
    }

    /// What Prometheus scrapes.
    pub fn text(&self) -> String {
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap_or_else(|error| format!("# the metrics cannot be written: {error}\n"))
    }

    /// A call was answered at the edge. `route` must come from a fixed set.
    pub fn request(&self, protocol: &'static str, route: &str, status: u16, took: Duration) {
        let labels = [
            KeyValue::new("protocol", protocol),
            KeyValue::new("route", route.to_owned()),
            KeyValue::new("status", i64::from(status)),
        ];
        self.requests.add(1, &labels);
        self.request_seconds
            .record(took.as_secs_f64(), &labels[..2]);
    }

    /// The instruments of one model.
    pub fn for_model(self: &Arc<Self>, model: &str) -> ModelMetrics {
        ModelMetrics {
            metrics: Arc::clone(self),
            model: KeyValue::new("model", model.to_owned()),
        }
    }

    /// The instruments of what servers share.
    pub fn distributed(&self) -> DistributedMetrics {
        let meter = self.provider.meter("crossgate");
        let count = |name: &'static str, about: &'static str| {
            meter.u64_counter(name).with_description(about).build()
        };
        let level = |name: &'static str, about: &'static str| {
            meter.u64_gauge(name).with_description(about).build()
        };
        DistributedMetrics {
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
}

// === impl DistributedMetrics ===

impl DistributedMetrics {
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

// === impl ModelMetrics ===

impl ModelMetrics {
    /// A request came to the core. Dropped before [`OpenRequest::end`] it counts as cancelled.
    pub fn open(self: &Arc<Self>) -> OpenRequest {
        OpenRequest {
            metrics: Arc::clone(self),
            outcome: CANCELLED,
        }
    }

    /// A scored request spent this long in a stage.
    pub fn stage(&self, stage: &'static str, took: Duration) {
        self.metrics.stage_seconds.record(
            took.as_secs_f64(),
            &[self.model.clone(), KeyValue::new("stage", stage)],
        );
    }

    /// A batch was computed.
    pub fn batch(&self, n_rows: usize, n_tokens: usize, took: Duration, phases: &Phases) {
        let labels = std::slice::from_ref(&self.model);
        self.metrics.batches.add(1, labels);
        self.metrics.rows.add(n_rows as u64, labels);
        self.metrics.tokens.add(n_tokens as u64, labels);
        self.metrics.batch_rows.record(n_rows as u64, labels);
        self.metrics.batch_tokens.record(n_tokens as u64, labels);
        self.metrics
            .batch_seconds
            .record(took.as_secs_f64(), labels);
        let phases = [
            ("prepare", phases.prepare_us),
            ("compute", phases.compute_us),
            ("collect", phases.collect_us),
        ];
        for (phase, us) in phases {
            let labels = [self.model.clone(), KeyValue::new("phase", phase)];
            self.metrics.backend_seconds.add(us as f64 / 1e6, &labels);
        }
    }

    /// A plugin failed a batch.
    pub fn fault(&self, code: &'static str) {
        self.metrics
            .faults
            .add(1, &[self.model.clone(), KeyValue::new("fault", code)]);
    }
}

// === impl OpenRequest ===

impl OpenRequest {
    /// It has been answered.
    pub fn end(mut self, outcome: &'static str) {
        self.outcome = outcome;
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let ModelMetrics { metrics, model } = &*self.metrics;
        let outcome = KeyValue::new("outcome", self.outcome);
        metrics.scored.add(1, &[model.clone(), outcome]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_nobody_waits_for_are_counted() {
        let metrics = Metrics::new().expect("instruments");
        let model = Arc::new(metrics.for_model("m"));
        model.open().end("ok");
        drop(model.open());
        let text = metrics.text();
        for outcome in ["cancelled", "ok"] {
            let line =
                format!("crossgate_score_requests_total{{model=\"m\",outcome=\"{outcome}\"}} 1\n");
            assert!(text.contains(&line), "{line} in {text}");
        }
    }
}
