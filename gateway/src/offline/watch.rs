//! How a long run shows that it goes on: a bar for a person, a line now and then for a log.

use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// Between two lines where nobody watches.
const LINE_PERIOD: Duration = Duration::from_secs(10);
/// Between two looks of a bar.
const TICK: Duration = Duration::from_millis(200);

/// Tells of pairs that are done, on standard error.
pub(super) struct Watch {
    bar: Option<ProgressBar>,
    started: Instant,
    said: Instant,
    /// Bytes of the input, where they are known, and those that were done before this run.
    bytes: Option<u64>,
    bytes_before: u64,
    pairs: u64,
}

// === impl Watch ===

impl Watch {
    /// The clock runs from now.
    pub(super) fn new(bytes: Option<u64>, bytes_before: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| bar(bytes));
        let now = Instant::now();
        Self {
            bar,
            started: now,
            said: now,
            bytes,
            bytes_before,
            pairs: 0,
        }
    }

    /// So many more pairs are done, and so many bytes of the input in all.
    pub(super) fn add(&mut self, pairs: u64, bytes: u64) {
        self.pairs += pairs;
        let rate = self.pairs as f64 / self.seconds();
        let progress = format!("{} pairs, {rate:.0} pairs/s", HumanCount(self.pairs));
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
            bar.set_message(match self.left(bytes) {
                Some(left) => format!("{progress}, {} left", HumanDuration(left)),
                None => progress,
            });
        } else if self.said.elapsed() >= LINE_PERIOD {
            self.said = Instant::now();
            let left = self.left(bytes).zip(self.bytes).map(|(left, all)| {
                let share = 100 * bytes / all.max(1);
                format!(", {share} %, {} left", HumanDuration(left))
            });
            // Nobody is left to be told when standard error is closed.
            _ = writeln!(std::io::stderr(), "{progress}{}", left.unwrap_or_default());
        }
    }

    /// At the pace so far.
    fn left(&self, bytes: u64) -> Option<Duration> {
        let left = self.bytes?.saturating_sub(bytes) as f64;
        let done = bytes.saturating_sub(self.bytes_before) as f64;
        Duration::try_from_secs_f64(self.seconds() * left / done.max(1.0)).ok()
    }

    pub(super) fn pairs(&self) -> u64 {
        self.pairs
    }

    /// Since the start; above 0.
    pub(super) fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64().max(1e-9)
    }

    /// Takes the bar away.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(bytes: Option<u64>) -> ProgressBar {
    let (bar, template) = match bytes {
        Some(bytes) => (ProgressBar::new(bytes), "{bar:30} {percent:>3} % {msg}"),
        None => (ProgressBar::new_spinner(), "{spinner} {msg}"),
    };
    bar.enable_steady_tick(TICK);
    // A template that does not parse costs its looks only.
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
