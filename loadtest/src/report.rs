//! The result of a run: figures, and which checks it failed. `text` prints it, serde makes it JSON.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::metrics::{CacheCounts, ServerCounts};
use crate::plan::{Endpoint, HangUp, Load, Plan};
use crate::tally::{Outcomes, Tally};
use crate::workload::Workload;

mod text;

pub use text::write_text;

#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub setup: Setup,
    /// From the first intended start to the last answer.
    pub wall_s: f64,
    /// CPU of this process in that time; `None` where the system cannot say.
    pub client_cpu_s: Option<f64>,
    pub sent: u64,
    pub answered: u64,
    /// Sent and never answered, by a timeout or a broken connection. Hang-ups are not among them.
    pub lost: u64,
    pub not_sent: u64,
    pub outcomes: Outcomes,
    /// Answers that are ok, by wall time.
    pub requests_per_s: f64,
    /// Documents of the answers that are ok, by wall time.
    pub pairs_per_s: f64,
    /// What came in time; `None` without a deadline.
    pub goodput: Option<Goodput>,
    /// 429 and 503, of what was sent.
    pub refused_share: f64,
    /// 504, of what was sent: taken in, worked on, and too late.
    pub deadline_exceeded_share: f64,
    pub latency_us: Latency,
    pub refused_latency_us: Latency,
    pub start_delay_us: Latency,
    pub pairs: u64,
    pub scores_compared: u64,
    pub largest_difference: f32,
    /// What the server counted; `None` when it could not be read, for `server_missing`.
    pub server: Option<ServerCounts>,
    pub server_missing: Option<String>,
    /// 0 where the server has no cache; `None` when its counters could not be read.
    pub cache_hit_rate: Option<f64>,
    /// Empty: the run is good.
    pub failed_checks: Vec<String>,
    pub examples: Vec<String>,
}

/// What was asked for, so that a result explains itself.
#[derive(Debug, Clone, Serialize)]
pub struct Setup {
    pub version: &'static str,
    pub protocol: &'static str,
    pub url: String,
    pub model: Option<String>,
    #[serde(flatten)]
    pub load: Load,
    pub workload: String,
    pub workload_requests: usize,
    pub warmup_s: f64,
    pub zipf: Option<f64>,
    pub seed: u64,
    pub deadline_ms: Option<f64>,
    pub hang_up: Option<HangUp>,
}

/// Answers that are ok and within the deadline, which counts from the intended start.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Goodput {
    pub requests_per_s: f64,
    pub pairs_per_s: f64,
    /// Answers that are ok and later than the deadline: of no use to their client.
    pub late: u64,
}

/// Microseconds. All 0 when `count` is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Latency {
    pub count: u64,
    pub mean: f64,
    pub p50: u64,
    pub p90: u64,
    pub p95: u64,
    pub p99: u64,
    pub max: u64,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        Self {
            count: histogram.len(),
            mean: histogram.mean(),
            p50: histogram.value_at_quantile(0.50),
            p90: histogram.value_at_quantile(0.90),
            p95: histogram.value_at_quantile(0.95),
            p99: histogram.value_at_quantile(0.99),
            max: histogram.max(),
        }
    }
}

/// What a run measured besides its tally.
pub struct Measured {
    pub wall: Duration,
    pub client_cpu_s: Option<f64>,
    pub server: Result<ServerCounts, String>,
    pub interrupted: bool,
}

impl Report {
    pub fn new(plan: &Plan, workload: &Workload, tally: &Tally, measured: Measured) -> Self {
        let outcomes = tally.outcomes.clone();
        let answered = outcomes.answered();
        let wall_s = measured.wall.as_secs_f64();
        let (server, server_missing) = match measured.server {
            Ok(counts) => (Some(counts), None),
            Err(reason) => (None, Some(reason)),
        };
        let cache_hit_rate = server.map(|counts| counts.cache.map_or(0.0, CacheCounts::hit_rate));
        let mut report = Self {
            setup: Setup::new(plan, workload),
            wall_s,
            client_cpu_s: measured.client_cpu_s,
            sent: tally.sent,
            answered,
            lost: tally.sent.saturating_sub(answered + outcomes.hung_up),
            not_sent: tally.not_sent,
            requests_per_s: per(outcomes.ok, wall_s),
            pairs_per_s: per(tally.pairs, wall_s),
            goodput: plan.target.deadline.map(|_| Goodput {
                requests_per_s: per(outcomes.ok - tally.late, wall_s),
                pairs_per_s: per(tally.pairs - tally.late_pairs, wall_s),
                late: tally.late,
            }),
            refused_share: per(outcomes.refused(), tally.sent as f64),
            deadline_exceeded_share: per(outcomes.deadline_exceeded, tally.sent as f64),
            outcomes,
            latency_us: Latency::of(&tally.latency_us),
            refused_latency_us: Latency::of(&tally.refused_latency_us),
            start_delay_us: Latency::of(&tally.start_delay_us),
            pairs: tally.pairs,
            scores_compared: tally.scores_compared,
            largest_difference: tally.largest_difference,
            server,
            server_missing,
            cache_hit_rate,
            failed_checks: Vec::new(),
            examples: tally.examples.clone(),
        };
        report.failed_checks = report.failures(plan, measured.interrupted);
        report
    }

    pub fn is_good(&self) -> bool {
        self.failed_checks.is_empty()
    }

    fn failures(&self, plan: &Plan, interrupted: bool) -> Vec<String> {
        let outcomes = &self.outcomes;
        let counted = [
            (
                self.not_sent,
                "NOT SENT: --in-flight-max was reached, so the load was lower than asked for",
            ),
            (self.lost, "lost: sent and never answered"),
            (outcomes.wrong_answer, "wrong answers"),
            (
                outcomes.wrong_score,
                "answers with a score further from the expected one than --tolerance",
            ),
            (
                outcomes.too_many_without_retry_after,
                "answers with 429 and no Retry-After",
            ),
            (
                outcomes.other(),
                "answers with a status that no load explains",
            ),
        ];
        let mut failures: Vec<String> = counted
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        if outcomes.ok == 0 {
            failures.push("no request was answered with scores".into());
        }
        if interrupted {
            failures.push("interrupted before its end".into());
        }
        if plan.forbid_cache_hits {
            failures.extend(self.cache_failure());
        }
        failures
    }

    fn cache_failure(&self) -> Option<String> {
        let Some(server) = self.server else {
            return Some(
                "cache hits cannot be ruled out: the server's counters could not be read".into(),
            );
        };
        let cache = server.cache?;
        let rows = cache.not_computed();
        (rows > 0).then(|| {
            format!("{rows} rows came from the cache or another's flight (--require-no-cache-hits)")
        })
    }
}

impl Setup {
    fn new(plan: &Plan, workload: &Workload) -> Self {
        use crate::plan::{Dialect, GrpcCall};
        let (protocol, url) = match &plan.target.endpoint {
            Endpoint::Http { url, dialect } => {
                let protocol = match dialect {
                    Dialect::Rerank => "http rerank",
                    Dialect::Tei => "http tei",
                    Dialect::Score => "http score",
                };
                (protocol, url)
            }
            Endpoint::Grpc {
                url,
                call: GrpcCall::Score,
                ..
            } => ("grpc score", url),
            Endpoint::Grpc {
                url,
                call: GrpcCall::Rerank,
                ..
            } => ("grpc rerank", url),
        };
        Self {
            version: env!("CARGO_PKG_VERSION"),
            protocol,
            url: url.clone(),
            model: plan.target.model.clone(),
            load: plan.load,
            workload: workload.name.clone(),
            workload_requests: workload.requests.len(),
            warmup_s: plan.warmup.as_secs_f64(),
            zipf: plan.zipf,
            seed: plan.seed,
            deadline_ms: plan.target.deadline.map(|time| time.as_secs_f64() * 1e3),
            hang_up: plan.hang_up,
        }
    }
}

/// 0 when there is nothing to divide by.
fn per(count: u64, whole: f64) -> f64 {
    if whole > 0.0 {
        count as f64 / whole
    } else {
        0.0
    }
}
