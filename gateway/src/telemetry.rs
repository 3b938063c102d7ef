//! Logs and metrics. Every metric stands in `telemetry/metrics.rs`.

pub mod metrics;

pub use metrics::{DistributedMetrics, Metrics, ModelMetrics};

use std::io::IsTerminal as _;
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// An object a line, for log collectors.
    Json,
}

/// Starts logging to stderr. `level` is a level or a filter such as `info,gateway::host=debug`.
///
/// # Errors
/// When `level` is no filter.
pub fn start_logging(level: &str, format: LogFormat) -> Result<(), String> {
    let filter =
        EnvFilter::try_new(level).map_err(|error| format!("log.level = {level:?}: {error}"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // Colours are for eyes; a file or a collector would keep the escapes.
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    // A second start (tests) keeps the first one's choice.
    let _ = match format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}
