//! The checked description of a run: what to send where, how fast and for how long.

use std::time::Duration;

use serde::Serialize;

use crate::Error;
use crate::arrivals::Spacing;

/// Closed-loop clients at most. Beyond it the load tester itself is what is measured.
pub const CLIENTS_MAX: usize = 4096;
/// Requests in flight at most, in open loop. Each one over HTTP/1.1 holds a connection.
pub const IN_FLIGHT_MAX: usize = 65_536;
/// Requests per second at most, in open loop.
pub const RATE_MAX: f64 = 1e6;
/// gRPC connections at most. HTTP/1.1 opens one for each request in flight.
pub const CONNECTIONS_MAX: usize = 256;

#[derive(Debug, Clone)]
pub struct Target {
    pub endpoint: Endpoint,
    /// The model's name in each request; `None` leaves the choice to the server.
    pub model: Option<String>,
    /// Sent as `authorization: Bearer`.
    pub api_key: Option<String>,
    /// How long an answer may take from the moment its request is sent.
    pub timeout: Duration,
    /// Ask for logits, which is what expected scores are.
    pub raw_scores: bool,
    /// Told to the server with each request (`X-Request-Timeout-Ms`, `grpc-timeout`).
    pub deadline: Option<Duration>,
}

#[derive(Debug, Clone)]
pub enum Endpoint {
    Http {
        url: String,
        dialect: Dialect,
    },
    Grpc {
        url: String,
        call: GrpcCall,
        connections: usize,
    },
}

/// The shape of HTTP bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `{query, documents}` to `/v1/rerank` (Cohere, Jina).
    Rerank,
    /// `{query, texts}` to `/rerank` (text-embeddings-inference).
    Tei,
    /// `{text_1, text_2}` to `/v1/score` (vLLM).
    Score,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrpcCall {
    Score,
    Rerank,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(tag = "mode", rename_all = "lowercase")]
pub enum Load {
    /// Each client sends its next request when the last one is answered.
    Closed { clients: usize },
    /// Requests start on a schedule, whatever the server does.
    Open {
        rate_per_s: f64,
        arrivals: Spacing,
        in_flight_max: usize,
    },
}

#[derive(Debug, Clone, Copy)]
pub enum Until {
    /// Requests start for this long; then the last ones are waited for.
    Elapsed(Duration),
    /// This many requests are started.
    Requests(u64),
}

/// Clients that lose patience.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct HangUp {
    /// Of all requests, from 0 to 1.
    pub share: f64,
    /// From the moment of sending; an answer that is there before counts as any other.
    pub after: Duration,
}

#[derive(Debug, Clone)]
pub struct Plan {
    pub target: Target,
    pub load: Load,
    pub until: Until,
    /// The same load, sent and answered in full before the measured part starts.
    pub warmup: Duration,
    /// Exponent of the repetition; `None` sends the workload in order, again and again.
    pub zipf: Option<f64>,
    pub seed: u64,
    /// Largest absolute difference from an expected score.
    pub tolerance: f32,
    pub forbid_cache_hits: bool,
    pub hang_up: Option<HangUp>,
    /// Where the counters of each server are; none runs without them.
    pub metrics_urls: Vec<String>,
}

impl Plan {
    /// Refuses values that no run can honour, by name and bound.
    pub fn check(&self) -> Result<(), Error> {
        match self.load {
            Load::Closed { clients } => bounded("--clients", clients, CLIENTS_MAX)?,
            Load::Open {
                rate_per_s,
                in_flight_max,
                ..
            } => {
                if !(rate_per_s > 0.0 && rate_per_s <= RATE_MAX) {
                    return Err(usage(format!(
                        "--rate {rate_per_s}: must be above 0 and at most {RATE_MAX}"
                    )));
                }
                bounded("--in-flight-max", in_flight_max, IN_FLIGHT_MAX)?;
            }
        }
        if let Endpoint::Grpc { connections, .. } = self.target.endpoint {
            bounded("--connections", connections, CONNECTIONS_MAX)?;
        }
        match self.until {
            Until::Elapsed(Duration::ZERO) => {
                return Err(usage("--duration: must be above 0".into()));
            }
            Until::Requests(0) => return Err(usage("--requests: must be at least 1".into())),
            Until::Elapsed(_) | Until::Requests(_) => {}
        }
        if self
            .zipf
            .is_some_and(|exponent| !(exponent >= 0.0 && exponent.is_finite()))
        {
            return Err(usage("--zipf: must be a number of at least 0".into()));
        }
        if self.tolerance.is_nan() || self.tolerance < 0.0 {
            return Err(usage(format!(
                "--tolerance {}: must be at least 0",
                self.tolerance
            )));
        }
        if self.target.timeout.is_zero() {
            return Err(usage("--timeout: must be above 0".into()));
        }
        if self.forbid_cache_hits && self.metrics_urls.is_empty() {
            return Err(usage(
                "--require-no-cache-hits needs --metrics-url: over gRPC there is no default".into(),
            ));
        }
        self.check_clients()
    }

    /// What the clients do with what they wait for.
    fn check_clients(&self) -> Result<(), Error> {
        if let Some(HangUp { share, after }) = self.hang_up {
            if !(0.0..=1.0).contains(&share) {
                return Err(usage(format!("--hang-up {share}: must be from 0 to 1")));
            }
            if after.is_zero() {
                return Err(usage("--hang-up-after: must be above 0".into()));
            }
        }
        if self
            .target
            .deadline
            .is_some_and(|deadline| deadline.as_millis() == 0)
        {
            return Err(usage("--deadline: must be at least 1ms".into()));
        }
        Ok(())
    }
}

fn bounded(name: &str, value: usize, max: usize) -> Result<(), Error> {
    if (1..=max).contains(&value) {
        return Ok(());
    }
    Err(usage(format!("{name} {value}: must be from 1 to {max}")))
}

fn usage(reason: String) -> Error {
    Error::Usage(reason)
}
