//! What the servers count during a run.

use loadtest::plan::Dialect;
use loadtest::report::Report;

use crate::look_alike::{LookAlike, Script};
use crate::runs::{go, http, plan};

#[tokio::test]
async fn cache_hits_are_read_from_the_metrics() {
    let server = LookAlike::start(Script {
        cache: Some([1, 0, 0]),
        ..Script::default()
    })
    .await;
    let mut plan = plan(&server, http(&server, Dialect::Rerank));
    let rate = |report: &Report| report.cache_hit_rate.expect("counters");
    let report = go(&plan).await;
    assert!(report.is_good());
    assert!((rate(&report) - 1.0 / 3.0).abs() < 1e-9);

    plan.forbid_cache_hits = true;
    let report = go(&plan).await;
    assert_eq!(
        report.failed_checks,
        ["30 rows came from the cache or another's flight (--require-no-cache-hits)"]
    );

    // A run's counters are those of all the servers that are named.
    let other = LookAlike::start(Script::default()).await;
    plan.metrics_urls
        .push(format!("{}/metrics", other.http_url));
    assert_eq!(go(&plan).await.server.and_then(|all| all.rows), Some(60));

    plan.metrics_urls = vec![format!("{}/nowhere", server.http_url)];
    let report = go(&plan).await;
    assert_eq!(report.cache_hit_rate, None);
    assert!(
        report.failed_checks[0].contains("cannot be ruled out"),
        "{:?}",
        report.failed_checks
    );

    let server = LookAlike::start(Script::default()).await;
    plan.metrics_urls = vec![format!("{}/metrics", server.http_url)];
    plan.target.endpoint = http(&server, Dialect::Rerank);
    let report = go(&plan).await;
    assert!(report.is_good(), "no cache cannot hit");
    assert_eq!(report.cache_hit_rate, Some(0.0));
}

#[tokio::test]
async fn whatever_was_not_computed_is_no_cold_row() {
    for (cache, hit_rate) in [([0, 1, 0], 1.0 / 3.0), ([0, 0, 2], 0.0)] {
        let server = LookAlike::start(Script {
            cache: Some(cache),
            ..Script::default()
        })
        .await;
        let mut plan = plan(&server, http(&server, Dialect::Rerank));
        plan.forbid_cache_hits = true;
        let report = go(&plan).await;
        assert_eq!(report.failed_checks.len(), 1, "{cache:?}");
        assert!(
            report
                .cache_hit_rate
                .is_some_and(|rate| (rate - hit_rate).abs() < 1e-9)
        );
    }
}
