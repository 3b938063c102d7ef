//! What several servers know together, through a Redis or Valkey: values, bounds that hold for all of
//! them, and what fails where. It is an instrument and not a stage: without an answer from Redis each
//! server goes on alone, a few milliseconds later at most.

mod breaker;
mod epoch;
mod leases;
mod link;
mod peers;
mod rate;
mod writes;

pub use leases::Lease;
pub use peers::{Fault, Peer};

use crate::config::Distributed;
use crate::runtime::Runtime;
use crate::score::ScoreError;
use crate::telemetry::{DistributedMetrics, Metrics};
use epoch::Epoch;
use leases::Leases;
use link::Link;
use peers::Peers;
use rate::Rate;
use redis::{FromRedisValue as _, Value};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use writes::Writes;

/// Values in one command: Redis does nothing else meanwhile.
const KEYS_MAX: usize = 256;
/// How often servers look whether all was forgotten, and what fails elsewhere.
const PULSE_PERIOD: Duration = Duration::from_secs(1);
/// When somebody should ask again for what Redis did not do.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// This server's share of what all know. Cheap to clone; the tasks behind it end with the last clone.
#[derive(Clone)]
pub struct Shared(Arc<Inner>);

struct Inner {
    server: String,
    prefix: String,
    link: Arc<Link>,
    epoch: Arc<Epoch>,
    writes: Arc<Writes>,
    leases: Option<Arc<Leases>>,
    rate: Rate,
    peers: Arc<Peers>,
    announced: Arc<Notify>,
    metrics: Arc<DistributedMetrics>,
    _stop: DropGuard,
}

// === impl Shared ===

impl Shared {
    /// Starts tasks that connect; nothing here waits for Redis.
    ///
    /// # Errors
    /// What is wrong with `settings.redis_url`, without its password.
    pub fn start(
        settings: &Distributed,
        runtime: &Runtime,
        metrics: &Metrics,
    ) -> Result<Self, String> {
        let metrics = Arc::new(metrics.distributed());
        let prefix = settings.prefix.clone();
        let server = server_name();
        let link = Arc::new(Link::new(settings, Arc::clone(&metrics))?);
        let of_all = || (Arc::clone(&link), Arc::clone(&metrics));
        let epoch = Arc::new(Epoch::new(Arc::clone(&link), &prefix));
        let writes = Arc::new(Writes::new(
            (Arc::clone(&link), Arc::clone(&epoch)),
            Arc::clone(&metrics),
            prefix.clone(),
            settings.ttl,
            settings.write_bytes_max,
        ));
        let (link_of, metrics_of) = of_all();
        let peers = Arc::new(Peers::new(link_of, metrics_of, &prefix, server.clone()));
        let leases = settings.requests_max.map(|max| {
            let (link, metrics) = of_all();
            Arc::new(Leases::new(link, metrics, &prefix, server.clone(), max))
        });
        let (link_of, metrics_of) = of_all();
        let rate = Rate::new(link_of, metrics_of, prefix.clone(), settings.rate);
        let announced = Arc::new(Notify::new());
        let stop = CancellationToken::new();
        let task = |work: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
            let stop = stop.clone();
            runtime.task(async move { _ = stop.run_until_cancelled(work).await });
        };
        task(Box::pin(Arc::clone(&link).keep()));
        task(Box::pin(Arc::clone(&writes).work()));
        task(Box::pin(pulse(
            Arc::clone(&link),
            Arc::clone(&epoch),
            Arc::clone(&peers),
            Arc::clone(&announced),
        )));
        if let Some(leases) = &leases {
            task(Box::pin(Arc::clone(leases).work()));
        }
        Ok(Self(Arc::new(Inner {
            server,
            prefix,
            link,
            epoch,
            writes,
            leases,
            rate,
            peers,
            announced,
            metrics,
            _stop: stop.drop_guard(),
        })))
    }

    /// This server's name among the others.
    pub fn server(&self) -> &str {
        &self.0.server
    }

    /// Whether Redis answers, as it changes.
    pub fn up(&self) -> watch::Receiver<bool> {
        self.0.link.up()
    }

    /// The values of these keys, in their order; `None` for what is not there, and for all of them when
    /// Redis does not answer in time.
    pub async fn get(&self, keys: &[u128]) -> Vec<Option<Vec<u8>>> {
        let values = match self.0.epoch.known() {
            Some(epoch) if !keys.is_empty() => self.read(epoch, keys).await,
            _ => None,
        };
        let Some(values) = values else {
            self.0.metrics.values("unknown", keys.len());
            return vec![None; keys.len()];
        };
        let n_hits = values.iter().flatten().count();
        self.0.metrics.values("hit", n_hits);
        self.0.metrics.values("miss", values.len() - n_hits);
        values
    }

    /// Values for all servers. Returns at once: they are written when Redis has time, and lost where they
    /// do not fit into the queue or Redis does not take them.
    pub fn put(&self, entries: Vec<(u128, Vec<u8>)>) {
        self.0.writes.put(entries);
    }

    /// Forgets all values, of all servers. They learn it within a second, or with their next
    /// [`get`](Self::get).
    ///
    /// # Errors
    /// `Unavailable` when Redis does not say that it was done.
    pub async fn clear(&self) -> Result<(), ScoreError> {
        let done = self.0.epoch.renew().await;
        done.ok_or_else(|| ScoreError::Unavailable {
            why: "Redis did not answer, so the other servers may remember".to_owned(),
            retry_after: RETRY_AFTER,
        })
    }

    /// Changes whenever all values have been forgotten, by this server or another one. It also changes once
    /// when Redis is reached first: nobody knows what was forgotten before.
    pub fn cleared(&self) -> watch::Receiver<u64> {
        self.0.epoch.changes()
    }

    /// A place among the requests that all servers may compute at once; dropping it gives it back. `None`
    /// where no bound is set, or Redis does not say.
    ///
    /// # Errors
    /// `Overloaded` when all places are taken, with the time after which those inside should be done.
    pub async fn enter(&self) -> Result<Option<Lease>, ScoreError> {
        match &self.0.leases {
            Some(leases) => leases.enter().await,
            None => Ok(None),
        }
    }

    /// Whether a client (its address, or its key) may send a request now; it is counted if so. Yes where
    /// no bound is set, or Redis does not say.
    ///
    /// # Errors
    /// `Overloaded` with the time until the client's next request is allowed.
    pub async fn allow(&self, client: &str) -> Result<(), ScoreError> {
        self.0.rate.allow(client).await
    }

    /// The same by a limit of the client's own; `why` is said of one request too many.
    ///
    /// # Errors
    /// Those of [`allow`](Self::allow).
    pub async fn allow_at(
        &self,
        client: &str,
        limit: crate::config::Rate,
        why: impl FnOnce() -> String,
    ) -> Result<(), ScoreError> {
        self.0.rate.allow_at(client, limit, why).await
    }

    /// What fails on this server from now on, instead of what was announced before. It is told to the others
    /// until this server says otherwise, or is not heard of for a few seconds.
    pub fn announce(&self, faults: Vec<Fault>) {
        if self.0.peers.announce(faults) {
            self.0.announced.notify_one();
        }
    }

    /// What fails on other servers. Does not wait.
    pub fn peers(&self) -> Vec<Peer> {
        self.0.peers.theirs()
    }

    async fn read(&self, epoch: u64, keys: &[u128]) -> Option<Vec<Option<Vec<u8>>>> {
        let mut pipe = redis::pipe();
        // Whether the values still count is asked with them.
        pipe.cmd("GET").arg(&self.0.epoch.key);
        for keys in keys.chunks(KEYS_MAX) {
            let get = pipe.cmd("MGET");
            for key in keys {
                get.arg(value_key(&self.0.prefix, epoch, *key));
            }
        }
        let ask = async |mut connection| pipe.query_async::<Vec<Value>>(&mut connection).await;
        let mut answers = self.0.link.ask("get", ask).await?.into_iter();
        let now = Option::<u64>::from_redis_value(answers.next()?).ok()?;
        if now.is_some_and(|now| self.0.epoch.saw(now)) {
            return Some(vec![None; keys.len()]);
        }
        let mut values = Vec::with_capacity(keys.len());
        for answer in answers {
            values.extend(Vec::<Option<Vec<u8>>>::from_redis_value(answer).ok()?);
        }
        (values.len() == keys.len()).then_some(values)
    }
}

/// Once a second, and when there is something to say: the epoch and the others. Never ends.
async fn pulse(link: Arc<Link>, epoch: Arc<Epoch>, peers: Arc<Peers>, announced: Arc<Notify>) {
    let mut up = link.up();
    loop {
        if *up.borrow_and_update() {
            epoch.learn().await;
            peers.exchange().await;
        } else {
            peers.forget(Instant::now());
        }
        tokio::select! {
            () = tokio::time::sleep(PULSE_PERIOD) => {}
            () = announced.notified() => {}
            // The sender lives as long as the link.
            _ = up.changed() => {}
        }
    }
}

/// `crossgate:v1764044866000000:` and the key's 16 bytes: half of what digits would take on the wire.
fn value_key(prefix: &str, epoch: u64, key: u128) -> Vec<u8> {
    let mut name = format!("{prefix}:v{epoch}:").into_bytes();
    name.extend_from_slice(&key.to_be_bytes());
    name
}

/// The host's name, where it has one, and some chance: two servers of a host differ, and so does one that
/// starts again.
fn server_name() -> String {
    let chance = uuid::Uuid::new_v4().simple().to_string();
    let host = std::env::var("HOSTNAME").ok();
    #[cfg(unix)]
    let host = nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .or(host);
    let host = host.filter(|host| !host.is_empty());
    format!("{}-{}", host.as_deref().unwrap_or("server"), &chance[..8])
}
