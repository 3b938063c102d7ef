//! A bar on standard error, for people: absent when nobody watches.

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::plan::Until;

/// A bar of requests, or of milliseconds where the run is bounded by time.
pub(crate) fn bar(title: &'static str, until: Until) -> ProgressBar {
    if !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (length, template) = match until {
        Until::Elapsed(duration) => (
            milliseconds(duration),
            "{prefix} {bar:30} {percent:>3}% {msg}",
        ),
        Until::Requests(count) => (count, "{prefix} {bar:30} {pos}/{len} {msg}"),
    };
    let bar = ProgressBar::new(length).with_prefix(title);
    // A template that does not parse costs its looks only.
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
