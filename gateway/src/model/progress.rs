//! How a download shows that it is alive: a bar for a person, a log line for a log.

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressStyle};

/// Told about one file after another, from one thread.
pub trait Progress {
    /// A file starts. `bytes_total` is not known if the hub does not say.
    fn begin(&self, name: &str, bytes_total: Option<u64>);
    /// So many bytes of the file are on disk; falls back to 0 if the hub cannot resume.
    fn at(&self, bytes_done: u64);
    /// The file is complete, or was given up.
    fn end(&self);
    /// Whether anybody still waits for it. Asked again and again on the way.
    fn is_wanted(&self) -> bool {
        true
    }
}

/// A bar on standard error where a person sees it, else a log line per file.
#[must_use]
pub fn for_stderr() -> Box<dyn Progress> {
    if std::io::stderr().is_terminal() {
        Box::new(Bar::default())
    } else {
        Box::new(Log)
    }
}

/// Logs the start of each file: a log that is read later needs no percentages.
#[derive(Debug, Clone, Copy, Default)]
pub struct Log;

/// Draws one bar at a time.
#[derive(Debug, Default)]
pub struct Bar(Mutex<Option<ProgressBar>>);

// === impl Log ===

impl Progress for Log {
    fn begin(&self, name: &str, bytes_total: Option<u64>) {
        tracing::info!(file = name, bytes = bytes_total, "downloading");
    }

    fn at(&self, _bytes_done: u64) {}

    fn end(&self) {}
}

// === impl Bar ===

impl Bar {
    fn with(&self, act: impl FnOnce(&mut Option<ProgressBar>)) {
        // A bar has no state worth protecting from a panic elsewhere.
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Progress for Bar {
    fn begin(&self, name: &str, bytes_total: Option<u64>) {
        let (bar, template) = match bytes_total {
            Some(total) => (
                ProgressBar::new(total),
                "{msg:32!} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            ),
            None => (
                ProgressBar::new_spinner(),
                "{msg:32!} {bytes} {bytes_per_sec}",
            ),
        };
        // The templates are ours; the default style is good enough if one of them is wrong.
        let style =
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style);
        bar.set_message(name.to_owned());
        self.with(|slot| *slot = Some(bar));
    }

    fn at(&self, bytes_done: u64) {
        self.with(|slot| {
            if let Some(bar) = slot {
                bar.set_position(bytes_done);
            }
        });
    }

    fn end(&self) {
        self.with(|slot| {
            if let Some(bar) = slot.take() {
                bar.abandon();
            }
        });
    }
}
