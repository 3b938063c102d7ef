//! Load tester for rerank servers: it sends a workload over HTTP or gRPC, checks every answer, and
//! reports throughput, latency from the intended start, refusals and cache hits.
//!
//! A client only: it knows `proto/` and HTTP, and nothing of the server's crates.
//!
//! workload → arrivals → client → answers → verdict → tally → report; `run` drives them, `record`
//! writes the scores that a later run expects, `draw` makes a workload for caches.

pub mod error;
pub mod workload;

pub mod arrivals;
pub mod draw;
pub mod plan;

pub mod answers;
pub mod client;
pub mod verdict;

pub mod metrics;
pub mod process;
pub mod tally;

mod drive;
mod progress;
pub mod record;
pub mod report;
pub mod run;

pub use error::Error;

/// The messages and services of `proto/crossgate/v1/scoring.proto`.
pub mod proto {
    #![allow(
        clippy::too_many_lines,
        clippy::wildcard_imports,
        unused_qualifications,
        reason = "generated code"
    )]
    tonic::include_proto!("crossgate.v1");
}
