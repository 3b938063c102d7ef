//! What was counted, for tests to see.

use gateway::edge::Exposition;
use gateway::telemetry::metrics::Series;
use std::sync::Mutex;

/// Remembers what was counted.
#[derive(Default)]
pub(crate) struct FakeMetrics(
    pub(crate) Mutex<Vec<(&'static str, &'static str, u16)>>,
    /// By key: its name, what became of the call, and its documents.
    pub(crate) Mutex<Vec<(String, &'static str, usize)>>,
    /// What is exposed as figures, until they are reset.
    pub(crate) Mutex<Vec<Series>>,
);

impl Exposition for FakeMetrics {
    fn text(&self) -> String {
        "# TYPE crossgate_requests_total counter\n".to_owned()
    }

    fn series(&self) -> Vec<Series> {
        self.2.lock().expect("no test panics in here").clone()
    }

    fn reset(&self) {
        self.2.lock().expect("no test panics in here").clear();
    }

    fn request(&self, protocol: &'static str, route: &'static str, status: u16, _seconds: f64) {
        let mut counted = self.0.lock().expect("no test panics in here");
        counted.push((protocol, route, status));
    }

    fn key(&self, name: &str, outcome: &'static str, n_documents: usize) {
        let mut counted = self.1.lock().expect("no test panics in here");
        counted.push((name.to_owned(), outcome, n_documents));
    }
}
