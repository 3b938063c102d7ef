//! What servers share, on a real redis-server: two servers of one process are two `Shared`s.

#[path = "shared/bounds.rs"]
mod bounds;
#[path = "shared/fixture.rs"]
mod fixture;
#[path = "shared/outage.rs"]
mod outage;
#[path = "shared/settings.rs"]
mod settings;

use fixture::{Redis, until};
use gateway::config::Config;
use gateway::runtime::Runtime;
use gateway::shared::{Fault, Shared};
use gateway::telemetry::Metrics;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the tests allow an operation: this machine may be busy with other tests.
const OPERATION: Duration = Duration::from_millis(250);

/// A server's share, and its metrics.
struct Server {
    shared: Shared,
    metrics: Arc<Metrics>,
}

impl Server {
    /// One that may not have reached Redis yet.
    fn new(url: &str, settings: &[(&str, &str)]) -> Self {
        let mut all = vec![
            ("distributed.enabled", "true"),
            ("distributed.redis_url", url),
            ("distributed.operation_timeout", "250ms"),
        ];
        all.extend(settings);
        let config = Config::of(&all).unwrap();
        let runtime = Runtime::new(tokio::runtime::Handle::current(), 1);
        let metrics = Metrics::new().unwrap();
        let shared = Shared::start(config.distributed().unwrap(), &runtime, &metrics).unwrap();
        Self { shared, metrics }
    }

    /// One that knows what Redis knows.
    async fn connected(redis: &Redis, settings: &[(&str, &str)]) -> Self {
        let server = Self::new(&redis.url(), settings);
        server.is(true).await;
        let mut epoch = server.shared.cleared();
        epoch.wait_for(|epoch| *epoch > 0).await.unwrap();
        server
    }

    /// Waits until Redis answers, or does not.
    async fn is(&self, up: bool) {
        let mut seen = self.shared.up();
        let seen = seen.wait_for(|is_up| *is_up == up);
        let seen = tokio::time::timeout(Duration::from_secs(30), seen).await;
        seen.expect("in time").expect("it lives");
    }

    async fn get_one(&self, key: u128) -> Option<Vec<u8>> {
        self.shared.get(&[key]).await.remove(0)
    }

    /// Puts a value and waits until it can be read.
    async fn keep(&self, key: u128, value: &[u8]) {
        self.shared.put(vec![(key, value.to_vec())]);
        until("the write", async || self.get_one(key).await).await;
    }

    /// A line of the metrics by how it begins; 0 when it is not there.
    fn metric(&self, name: &str) -> f64 {
        let text = self.metrics.text();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map_or(0.0, |value| value.trim().parse().unwrap())
    }
}

#[tokio::test]
async fn what_one_server_puts_another_gets() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let (a, b) = (
        Server::connected(&redis, &[]).await,
        Server::connected(&redis, &[]).await,
    );
    // More than one command's worth, and every byte that a value may have.
    let value = |key: u128| vec![key as u8, 0, b'\r', b'\n', 255];
    let entries: Vec<_> = (0..1_000).map(|key| (key << 64, value(key))).collect();
    a.shared.put(entries.clone());
    let mut keys: Vec<u128> = entries.iter().map(|(key, _)| *key).collect();
    keys.insert(500, u128::MAX);
    let found = until("the last write", async || {
        let found = b.shared.get(&keys).await;
        (found.iter().flatten().count() == 1_000).then_some(found)
    })
    .await;
    for (key, found) in keys.iter().zip(found) {
        let expected = (*key != u128::MAX).then(|| value(key >> 64));
        assert_eq!(found, expected, "{key}");
    }
    assert_eq!(b.shared.get(&[]).await, Vec::<Option<Vec<u8>>>::new());
    until("the count", async || {
        let name = "crossgate_distributed_writes_total{outcome=\"written\"}";
        (a.metric(name) == 1_000.0).then_some(())
    })
    .await;
    let miss = b.metric("crossgate_distributed_values_total{outcome=\"miss\"}");
    let hit = b.metric("crossgate_distributed_values_total{outcome=\"hit\"}");
    assert!(hit >= 1_000.0 && miss >= 1.0, "{hit} {miss}");
    // Another prefix is another world.
    let other = Server::connected(&redis, &[("distributed.prefix", "other")]).await;
    assert_eq!(other.get_one(0).await, None);
}

#[tokio::test]
async fn what_was_written_together_does_not_expire_together() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let server = Server::connected(&redis, &[("distributed.ttl", "1000s")]).await;
    let keys: Vec<u128> = (0..300).collect();
    server
        .shared
        .put(keys.iter().map(|key| (*key, vec![1])).collect());
    until("the last write", async || {
        let found = server.shared.get(&keys).await;
        found.iter().all(Option::is_some).then_some(())
    })
    .await;
    let mut client = redis.client();
    let names: Vec<Vec<u8>> = redis::cmd("KEYS")
        .arg("crossgate:v*")
        .query(&mut client)
        .unwrap();
    assert_eq!(names.len(), 300);
    let lives: Vec<i64> = names
        .iter()
        .map(|name| redis::cmd("PTTL").arg(name).query(&mut client).unwrap())
        .collect();
    let (least, most) = (*lives.iter().min().unwrap(), *lives.iter().max().unwrap());
    assert!((760_000..830_000).contains(&least), "{least}");
    assert!((950_000..=1_000_000).contains(&most), "{most}");
}

#[tokio::test]
async fn what_does_not_fit_is_dropped_and_counted() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let settings = [("distributed.write_bytes_max", "1KiB")];
    let server = Server::connected(&redis, &settings).await;
    let start = Instant::now();
    // On a runtime of one thread nobody empties the queue meanwhile.
    server
        .shared
        .put((0..100).map(|key| (key, vec![0; 36])).collect());
    server.shared.put(vec![(1_000, vec![0; 2_000])]);
    assert!(start.elapsed() < OPERATION);
    let full = server.metric("crossgate_distributed_writes_total{outcome=\"full\"}");
    assert_eq!(full, 91.0, "{}", server.metrics.text());
    until("the rest", async || {
        let found = server.shared.get(&Vec::from_iter(0..100)).await;
        (found.iter().flatten().count() == 10).then_some(())
    })
    .await;
    // There is room again.
    server.keep(2_000, b"x").await;
}

#[tokio::test]
async fn clearing_is_one_operation_that_all_servers_see() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let (a, b) = (
        Server::connected(&redis, &[]).await,
        Server::connected(&redis, &[]).await,
    );
    a.keep(1, b"old").await;
    assert_eq!(b.get_one(1).await.as_deref(), Some(&b"old"[..]));
    let (mut at_a, mut at_b) = (a.shared.cleared(), b.shared.cleared());
    at_a.mark_unchanged();
    at_b.mark_unchanged();
    a.shared.clear().await.unwrap();
    assert!(
        at_a.has_changed().unwrap(),
        "the server itself hears it too"
    );
    // Without waiting for the pulse: an answer says by itself that it is of no use.
    assert_eq!(b.get_one(1).await, None);
    assert!(at_b.has_changed().unwrap());
    assert_eq!(a.get_one(1).await, None);
    b.keep(1, b"new").await;
    assert_eq!(a.get_one(1).await.as_deref(), Some(&b"new"[..]));

    // A server that asks for nothing hears it as well.
    at_b.mark_unchanged();
    a.shared.clear().await.unwrap();
    let heard = tokio::time::timeout(Duration::from_secs(5), at_b.changed()).await;
    heard.expect("within the pulse").unwrap();
    assert_eq!(*at_b.borrow(), *a.shared.cleared().borrow());
}

#[tokio::test]
async fn a_redis_that_loses_its_memory_does_not_bring_back_what_was_cleared() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let (a, b) = (
        Server::connected(&redis, &[]).await,
        Server::connected(&redis, &[]).await,
    );
    a.shared.clear().await.unwrap();
    let epoch = *a.shared.cleared().borrow();
    b.shared
        .cleared()
        .wait_for(|seen| *seen == epoch)
        .await
        .unwrap();
    let (mut at_a, mut at_b) = (a.shared.cleared(), b.shared.cleared());
    at_a.mark_unchanged();
    at_b.mark_unchanged();
    let mut client = redis.client();
    redis::cmd("FLUSHALL").exec(&mut client).unwrap();
    until("the number", async || {
        let seen: Option<u64> = redis::cmd("GET")
            .arg("crossgate:epoch")
            .query(&mut client)
            .unwrap();
        (seen == Some(epoch)).then_some(())
    })
    .await;
    // The servers' own caches are still right: nobody is told to clear them.
    assert!(!at_a.has_changed().unwrap() && !at_b.has_changed().unwrap());
    let late = Server::connected(&redis, &[]).await;
    assert_eq!(*late.shared.cleared().borrow(), epoch);
    a.keep(7, b"x").await;
    assert!(late.get_one(7).await.is_some());
}

#[tokio::test]
async fn faults_are_announced_while_they_last() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let (a, b) = (
        Server::connected(&redis, &[]).await,
        Server::connected(&redis, &[]).await,
    );
    let fault = Fault {
        model: "m".to_owned(),
        plugin: "fake".to_owned(),
        reason: "it \"broke\"\né".to_owned(),
    };
    a.shared.announce(vec![fault.clone()]);
    let peers = until("the announcement", async || {
        Some(b.shared.peers()).filter(|peers| !peers.is_empty())
    })
    .await;
    assert_eq!(peers.len(), 1);
    assert_eq!(
        (&peers[0].fault, peers[0].server.as_str()),
        (&fault, a.shared.server())
    );
    assert!(peers[0].since.elapsed().unwrap() < Duration::from_secs(30));
    assert_ne!(a.shared.server(), b.shared.server());
    assert_eq!(a.shared.peers(), [], "its own fault is no news");
    let gauge = "crossgate_distributed_peer_faults{model=\"m\"}";
    assert_eq!(b.metric(gauge), 1.0);
    // Longer than what was said holds: it is said again.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let still = b.shared.peers();
    assert_eq!(still, peers);

    a.shared.announce(Vec::new());
    until("the end", async || {
        b.shared.peers().is_empty().then_some(())
    })
    .await;
    until("the gauge", async || (b.metric(gauge) == 0.0).then_some(())).await;

    // A server that is gone takes back nothing; what it said ends by itself.
    a.shared.announce(vec![fault]);
    until("the fault", async || {
        (b.shared.peers().len() == 1).then_some(())
    })
    .await;
    drop(a);
    until("its end", async || {
        b.shared.peers().is_empty().then_some(())
    })
    .await;
}
