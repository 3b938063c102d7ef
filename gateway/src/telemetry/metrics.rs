//! Every metric, one table. OpenTelemetry names and units inside; the Prometheus exporter makes
//! `crossgate_batch_rows_total` and `crossgate_stage_duration_seconds` of them.

mod devices;
mod distributed;
mod keys;
mod observed;
mod series;
mod swapping;

pub use distributed::DistributedMetrics;
pub use series::{Figure, Series, Spread};

use crate::load::{CacheState, Catalog, Origins};
use crate::score::Times;
use backend_api::Phases;
use keys::KeyInstruments;
use observed::{CACHE_GAUGES, COUNTS, GAUGES, Gauge, HOST_GAUGES};
use opentelemetry::KeyValue;
use opentelemetry::metrics::{
    Counter, Histogram, Meter, MeterProvider, ObservableCounter, ObservableGauge,
};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Registry, TextEncoder};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use swapping::{Known, SwapInstruments, swap_state};

/// Seconds, from a row of a small model to a request at its deadline.
const SECONDS: [f64; 16] = [
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0,
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
    cache_rows: Counter<u64>,
    keys: KeyInstruments,
    swapping: SwapInstruments,
    // Kept alive: dropping an observable instrument stops it.
    gauges: Mutex<Vec<ObservableGauge<f64>>>,
    counts: Mutex<Vec<ObservableCounter<u64>>>,
    /// As they stood at the last reset.
    base: Mutex<Vec<Series>>,
    // Shuts the reader down when dropped.
    provider: SdkMeterProvider,
}

/// One model's share of the instruments.
pub struct ModelMetrics {
    metrics: Arc<Metrics>,
    model: KeyValue,
}

/// A request in the core; it is counted once, however it ends.
pub struct OpenRequest {
    metrics: Arc<ModelMetrics>,
    outcome: &'static str,
}

/// The outcome of a request whose answer nobody waited for.
const CANCELLED: &str = "cancelled";

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
            cache_rows: count(
                "crossgate.cache_rows",
                "Pairs of answered requests, by where their scores came from.",
            ),
            keys: KeyInstruments::new(meter),
            swapping: SwapInstruments::new(meter),
            gauges: Mutex::new(Vec::new()),
            counts: Mutex::new(Vec::new()),
            base: Mutex::new(Vec::new()),
            registry,
            provider,
        }
    }

    /// Reads gauges and totals from `catalog` whenever somebody asks for the metrics.
    pub fn observe(&self, catalog: &Arc<dyn Catalog>) {
        let meter = self.provider.meter("crossgate");
        let (gauged, known) = (Arc::downgrade(catalog), Known::default());
        self.gauges(&GAUGES, move |see| {
            let catalog = gauged.upgrade();
            let models = catalog.map(|catalog| catalog.models()).unwrap_or_default();
            for model in &models {
                let name = KeyValue::new("model", model.name.to_string());
                see(Some(model), &[name]);
            }
            for gone in known.gone(&models) {
                see(None, &[KeyValue::new("model", gone)]);
            }
        });
        self.kept(swap_state(&meter, Arc::downgrade(catalog)));
        for gauge in devices::gauges(&meter, catalog) {
            self.kept(gauge);
        }
        let counts = COUNTS.map(|(name, about, reasons)| {
            let catalog = Arc::downgrade(catalog);
            meter
                .u64_observable_counter(name)
                .with_description(about)
                .with_callback(move |observer| {
                    let catalog = catalog.upgrade();
                    for model in catalog.map(|catalog| catalog.models()).unwrap_or_default() {
                        for (reason, value) in reasons {
                            let reason = reason.map(|reason| KeyValue::new("reason", reason));
                            let name = KeyValue::new("model", model.name.to_string());
                            let labels: Vec<_> = [name].into_iter().chain(reason).collect();
                            observer.observe(value(&model.totals), &labels);
                        }
                    }
                })
                .build()
        });
        self.counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(counts);
    }

    /// Reads what is kept of scores from `state` whenever somebody asks for the metrics.
    pub fn observe_cache(&self, state: impl Fn() -> CacheState + Clone + Send + Sync + 'static) {
        self.gauges(&CACHE_GAUGES, move |see| see(Some(&state()), &[]));
    }

    /// Reads how many plugin images are mapped whenever somebody asks for the metrics.
    pub fn observe_images(&self, n_images: impl Fn() -> usize + Clone + Send + Sync + 'static) {
        self.gauges(&HOST_GAUGES, move |see| see(Some(&n_images()), &[]));
    }

    /// Reads each of `rows` from what `visit` shows, whenever somebody asks for the metrics; 0 of what is
    /// shown to be gone.
    fn gauges<State: 'static>(
        &self,
        rows: &[Gauge<State>],
        visit: impl Fn(&mut dyn FnMut(Option<&State>, &[KeyValue])) + Clone + Send + Sync + 'static,
    ) {
        let meter = self.provider.meter("crossgate");
        for &(name, unit, about, value) in rows {
            let visit = visit.clone();
            let gauge = meter
                .f64_observable_gauge(name)
                .with_unit(unit)
                .with_description(about)
                .with_callback(move |observer| {
                    visit(&mut |state, labels| observer.observe(state.map_or(0.0, value), labels));
                })
                .build();
            self.kept(gauge);
        }
    }

    fn kept(&self, gauge: ObservableGauge<f64>) {
        let mut gauges = self.gauges.lock().unwrap_or_else(PoisonError::into_inner);
        gauges.push(gauge);
    }

    /// What Prometheus scrapes.
    pub fn text(&self) -> String {
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap_or_else(|error| format!("# the metrics cannot be written: {error}\n"))
    }

    /// The same as numbers, since the last [`reset`](Self::reset).
    pub fn series(&self) -> Vec<Series> {
        let all = series::series(&self.registry.gather());
        let base = self.base.lock().unwrap_or_else(PoisonError::into_inner);
        series::since(&base, all)
    }

    /// Numbers count from here on. What Prometheus scrapes goes on: its rates are computed from counts that only grow.
    pub fn reset(&self) {
        let all = series::series(&self.registry.gather());
        *self.base.lock().unwrap_or_else(PoisonError::into_inner) = all;
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

    /// A call of the API key of this name has ended. Names are few: those that are configured.
    pub fn key(&self, name: &str, outcome: &'static str, n_documents: usize) {
        self.keys.count(name, outcome, n_documents);
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
        DistributedMetrics::new(&self.provider.meter("crossgate"))
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

    /// Where a scored request's time went.
    pub fn times(&self, times: &Times) {
        let stages = [
            ("tokenize", times.tokenize),
            ("queue", times.queue),
            ("inference", times.inference),
        ];
        for (stage, took) in stages {
            let labels = [self.model.clone(), KeyValue::new("stage", stage)];
            self.metrics
                .stage_seconds
                .record(took.as_secs_f64(), &labels);
        }
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

    /// A request's pairs were answered from there.
    pub fn cache(&self, origins: &Origins) {
        let outcomes = [
            ("hit", origins.hit),
            ("hit_distributed", origins.hit_distributed),
            ("coalesced", origins.coalesced),
            ("miss", origins.miss),
        ];
        for (outcome, n_rows) in outcomes {
            let labels = [self.model.clone(), KeyValue::new("outcome", outcome)];
            // Counters that stand still are there, too: 0 is a figure.
            self.metrics.cache_rows.add(n_rows as u64, &labels);
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
