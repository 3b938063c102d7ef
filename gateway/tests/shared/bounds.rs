//! Bounds that hold for all servers together.

use crate::fixture::{Redis, until};
use crate::{OPERATION, Server};
use gateway::config::Rate;
use gateway::score::ScoreError;
use gateway::shared::Lease;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// When a refused client may come back; fails on anything else.
#[track_caller]
fn retry_after<T>(refused: Result<T, ScoreError>, bound: &str) -> Duration {
    match refused.map(|_| ()) {
        Err(ScoreError::Overloaded { why, retry_after }) => {
            assert!(why.contains(bound), "{why}");
            retry_after
        }
        other => panic!("{other:?}"),
    }
}

async fn lease(server: &Server) -> Lease {
    server.shared.enter().await.unwrap().expect("a place")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn never_more_requests_than_allowed_over_two_servers() {
    const MAX: usize = 5;
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let settings = [("distributed.requests_max", "5")];
    let mut servers = Vec::new();
    for _ in 0..2 {
        servers.push(Arc::new(Server::connected(&redis, &settings).await));
    }
    let inside = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..40)
        .map(|idx: usize| {
            let (server, inside) = (Arc::clone(&servers[idx % 2]), Arc::clone(&inside));
            tokio::spawn(async move {
                let (mut n_served, mut most, mut n_refused) = (0, 0, 0);
                while n_served < 5 {
                    match server.shared.enter().await {
                        Ok(lease) => {
                            let lease = lease.expect("Redis answers");
                            most = most.max(1 + inside.fetch_add(1, Ordering::SeqCst));
                            tokio::time::sleep(Duration::from_millis(3)).await;
                            inside.fetch_sub(1, Ordering::SeqCst);
                            drop(lease);
                            n_served += 1;
                        }
                        Err(error) => {
                            let wait = retry_after(Err::<(), _>(error), "distributed.requests_max");
                            assert!(Duration::ZERO < wait && wait <= Duration::from_secs(5));
                            n_refused += 1;
                            tokio::time::sleep(Duration::from_millis(2)).await;
                        }
                    }
                }
                (most, n_refused)
            })
        })
        .collect();
    let (mut most, mut n_refused) = (0, 0);
    for task in tasks {
        let (seen, refused) = task.await.unwrap();
        most = most.max(seen);
        n_refused += refused;
    }
    assert!((2..=MAX).contains(&most), "{most} at once");
    assert!(n_refused > 0, "the bound was never reached");
    // Everything has been returned.
    let mut client = redis.client();
    until("the last return", async || {
        let n: usize = redis::cmd("ZCARD")
            .arg("crossgate:leases")
            .query(&mut client)
            .unwrap();
        (n == 0).then_some(())
    })
    .await;
    for server in servers {
        assert_eq!(server.metric("crossgate_distributed_leases"), 0.0);
    }
}

#[tokio::test]
async fn a_crashed_server_s_share_returns_and_a_living_one_s_stays() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let settings = [("distributed.requests_max", "2")];
    let (b, c) = (
        Server::connected(&redis, &settings).await,
        Server::connected(&redis, &settings).await,
    );
    let held = lease(&c).await;
    // A crash: all tasks of a server end, whatever they were about to do.
    let url = redis.url();
    let crash = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let a = Server::new(&url, &[("distributed.requests_max", "2")]);
            a.is(true).await;
            let lease = lease(&a).await;
            (a, lease)
        })
        // The runtime ends here.
    });
    let crashed = crash.join().unwrap();
    let wait = retry_after(b.shared.enter().await, "distributed.requests_max");
    assert!(wait <= Duration::from_secs(5), "{wait:?}");
    let start = Instant::now();
    let second = until("the share's return", async || b.shared.enter().await.ok()).await;
    assert!(second.is_some());
    assert!(
        start.elapsed() < Duration::from_secs(8),
        "{:?}",
        start.elapsed()
    );
    // By now the one that is held would have expired, had it not been renewed.
    tokio::time::sleep(Duration::from_secs(6).saturating_sub(start.elapsed())).await;
    assert_eq!(c.metric("crossgate_distributed_leases"), 1.0);
    retry_after(b.shared.enter().await, "distributed.requests_max");
    drop(held);
    until("a return", async || b.shared.enter().await.ok().flatten()).await;
    drop(crashed);
}

#[tokio::test]
async fn a_refused_client_is_told_how_long_places_are_taken() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let server = Server::connected(&redis, &[("distributed.requests_max", "1")]).await;
    for _ in 0..3 {
        let lease = until("a place", async || {
            server.shared.enter().await.ok().flatten()
        })
        .await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        drop(lease);
    }
    let _lease = until("a place", async || {
        server.shared.enter().await.ok().flatten()
    })
    .await;
    let wait = retry_after(server.shared.enter().await, "distributed.requests_max");
    assert!(
        (Duration::from_millis(300)..Duration::from_secs(3)).contains(&wait),
        "{wait:?}"
    );
    let refused = "crossgate_distributed_refusals_total{limit=\"requests\"}";
    assert!(server.metric(refused) >= 1.0);
}

#[tokio::test]
async fn a_place_is_returned_when_nobody_waited_for_it() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let server = Server::connected(&redis, &[("distributed.requests_max", "1")]).await;
    // Let in without an answer; Redis takes the place as soon as it goes on.
    redis.hang();
    assert!(server.shared.enter().await.unwrap().is_none());
    redis.go_on();
    assert_eq!(
        server.metric("crossgate_distributed_unlimited_total{limit=\"requests\"}"),
        1.0
    );
    let start = Instant::now();
    until("the return", async || {
        server.shared.enter().await.ok().flatten()
    })
    .await;
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "it expired instead"
    );
}

#[tokio::test]
async fn one_rate_over_two_servers() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let settings = [
        ("distributed.rate_max", "2"),
        ("distributed.rate_burst", "6"),
    ];
    let (a, b) = (
        Server::connected(&redis, &settings).await,
        Server::connected(&redis, &settings).await,
    );
    let start = Instant::now();
    let mut n_allowed = 0;
    let wait = loop {
        let server = if n_allowed % 2 == 0 { &a } else { &b };
        match server.shared.allow("10.0.0.1").await {
            Ok(()) => n_allowed += 1,
            refused => break retry_after(refused, "distributed.rate_max"),
        }
    };
    // The burst, and what came free while it was spent.
    let free = (start.elapsed().as_secs_f64() * 2.0).ceil() as usize;
    assert!(
        (6..=6 + free).contains(&n_allowed),
        "{n_allowed} in {:?}",
        start.elapsed()
    );
    assert!(
        Duration::ZERO < wait && wait <= Duration::from_millis(500),
        "{wait:?}"
    );
    // Others are not concerned.
    b.shared.allow("10.0.0.2").await.unwrap();
    // What was said is true: not before, but then.
    let early = wait.saturating_sub(start.elapsed()).min(wait / 2);
    if early > OPERATION {
        retry_after(b.shared.allow("10.0.0.1").await, "distributed.rate_max");
    }
    tokio::time::sleep(wait).await;
    b.shared.allow("10.0.0.1").await.unwrap();
    // No client's name, which may be a key, stands in Redis.
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg("*")
        .query(&mut redis.client())
        .unwrap();
    assert!(
        keys.iter().any(|key| key.starts_with("crossgate:rate:")),
        "{keys:?}"
    );
    assert!(!keys.iter().any(|key| key.contains("10.0.0")), "{keys:?}");
}

#[tokio::test]
async fn a_client_with_a_limit_of_its_own() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    // Without any for the others.
    let (a, b) = (
        Server::connected(&redis, &[]).await,
        Server::connected(&redis, &[]).await,
    );
    let limit = Rate {
        per_second: 1,
        burst: 3,
    };
    let mut n_allowed = 0;
    let refused = loop {
        let server = if n_allowed % 2 == 0 { &a } else { &b };
        let why = || "the key is too fast".to_owned();
        match server.shared.allow_at("key:slow", limit, why).await {
            Ok(()) => n_allowed += 1,
            refused => break refused,
        }
    };
    assert!(3 <= n_allowed);
    let wait = retry_after(refused, "the key is too fast");
    assert!(Duration::ZERO < wait && wait <= Duration::from_secs(1));
    b.shared.allow("key:slow").await.unwrap();
}

#[tokio::test]
async fn without_a_bound_nobody_is_asked() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let server = Server::connected(&redis, &[]).await;
    for _ in 0..100 {
        assert!(server.shared.enter().await.unwrap().is_none());
        server.shared.allow("x").await.unwrap();
    }
    let text = server.metrics.text();
    assert!(
        !text.contains("operation=\"enter\"") && !text.contains("operation=\"allow\""),
        "{text}"
    );
}
