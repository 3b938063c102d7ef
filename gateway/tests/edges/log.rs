//! What the log has room for.

use crate::fixture::{Fixture, JSON, block_on, send};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use tracing::Level;
use tracing_subscriber::fmt::MakeWriter;

/// Keeps what is written.
#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl io::Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Page {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// What `work` writes to the log, down to `level`.
pub(crate) fn written(level: Level, work: impl FnOnce()) -> String {
    let page = Page::default();
    let log = tracing_subscriber::fmt()
        .with_writer(page.clone())
        .with_ansi(false)
        .with_max_level(level)
        .finish();
    tracing::subscriber::with_default(log, work);
    let bytes = page.0.lock().expect("no panic").clone();
    String::from_utf8(bytes).expect("a text")
}

/// So many requests to one edge, each answered with the error that the query names.
fn flood(query: &str, n: usize) {
    let router = Fixture::new().http();
    let body = format!(r#"{{"query":"{query}","documents":["a"]}}"#);
    block_on(async {
        for _ in 0..n {
            send(router.clone(), "POST /rerank", JSON, body.clone()).await;
        }
    });
}

#[test]
fn a_flood_of_refusals_is_few_lines() {
    let log = written(Level::INFO, || flood("overloaded", 500));
    // The first; the rest when the edge is dropped, or more of them on a machine that took seconds.
    let lines: Vec<&str> = log.lines().collect();
    assert!((2..=20).contains(&lines.len()), "{log}");
    assert!(lines[0].contains("status=429") && lines[0].contains("the reason"));
    let last = lines[lines.len() - 1];
    assert!(last.contains("more refusals"), "{log}");
    if lines.len() == 2 {
        assert!(
            last.contains(r#"refused=499 by_status="429: 499""#),
            "{log}"
        );
    }
    // Each by itself where somebody looks for it.
    let log = written(Level::DEBUG, || flood("overloaded", 50));
    assert_eq!(log.matches("the reason").count(), 50, "{log}");
}

#[test]
fn a_flood_of_failures_is_few_lines() {
    for query in ["internal", "backend"] {
        let log = written(Level::INFO, || flood(query, 500));
        assert!((6..=60).contains(&log.lines().count()), "{log}");
        // With what the client is not told.
        assert!(log.starts_with("20") && log.contains("WARN"), "{log}");
        assert!(
            log.contains("the reason") && log.contains("failed="),
            "{log}"
        );
    }
}

#[test]
fn readiness_is_no_news_and_says_why() {
    let probe = || {
        let fixture = Fixture::new();
        fixture.catalog.is_ready.store(false, Ordering::Relaxed);
        for line in ["GET /readyz", "GET /health"] {
            block_on(send(fixture.http(), line, &[], ""));
        }
    };
    assert_eq!(written(Level::INFO, probe), "");
    let log = written(Level::DEBUG, probe);
    let why = r#"status=503 rows=0"#;
    assert_eq!(log.matches(why).count(), 2, "{log}");
    assert_eq!(log.matches("model default is loading").count(), 2, "{log}");
}
