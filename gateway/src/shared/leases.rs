//! The bound on requests of all servers together: a place in a sorted set of Redis for each of them, that
//! expires unless its server renews it.

use super::link::Link;
use crate::score::ScoreError;
use crate::telemetry::DistributedMetrics;
use redis::Script;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::time::timeout;

/// After a crash a server's share is back in this time.
const LEASE: Duration = Duration::from_secs(5);
/// Several renewals may fail before a lease is lost.
const RENEW_PERIOD: Duration = Duration::from_secs(1);
/// Leases in one call of a script.
const BATCH_MAX: usize = 1_000;
/// Leases that wait to be returned. What is beyond expires by itself.
const RETURNED_MAX: usize = 1 << 16;
/// The longest wait that a refused client is told, and what it is told before any request has ended.
const RETRY_AFTER_MAX: Duration = LEASE;
const RETRY_AFTER_FIRST: Duration = Duration::from_secs(1);

/// Takes a place if there is one. Answers whether, and the milliseconds until the first one expires.
const ENTER: &str = "
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[3]) then
  local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
  return {0, math.ceil(tonumber(first[2]) - now)}
end
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2]), ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {1, 0}";

/// Returns the first ARGV[2] places and renews the others. What a Redis that lost its memory has forgotten
/// comes back with it.
const RENEW: &str = "
local time = redis.call('TIME')
local till = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[1])
local returned = 2 + tonumber(ARGV[2])
for i = 3, returned do redis.call('ZREM', KEYS[1], ARGV[i]) end
for i = returned + 1, #ARGV do redis.call('ZADD', KEYS[1], till, ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])";

/// The places of this server.
pub(super) struct Leases {
    link: Arc<Link>,
    metrics: Arc<DistributedMetrics>,
    key: String,
    /// Places of all servers.
    max: u32,
    /// Begins the name of each lease.
    server: String,
    enter: Script,
    renew: Script,
    numbers: AtomicU64,
    book: Mutex<Book>,
    returned: Notify,
}

#[derive(Default)]
struct Book {
    held: BTreeSet<u64>,
    returned: Vec<u64>,
    /// How long a place is taken, over the last ones.
    hold: Option<Duration>,
}

/// A place among the requests of all servers; dropping it gives the place back.
pub struct Lease {
    leases: Arc<Leases>,
    number: u64,
    /// When it was granted.
    since: Option<Instant>,
    /// Whether Redis has it, or may have it.
    is_taken: bool,
}

// === impl Leases ===

impl Leases {
    /// No place taken yet, of `max` for all servers.
    pub(super) fn new(
        link: Arc<Link>,
        metrics: Arc<DistributedMetrics>,
        prefix: &str,
        server: String,
        max: u32,
    ) -> Self {
        Self {
            link,
            metrics,
            key: format!("{prefix}:leases"),
            max,
            server,
            enter: Script::new(ENTER),
            renew: Script::new(RENEW),
            numbers: AtomicU64::new(0),
            book: Mutex::default(),
            returned: Notify::new(),
        }
    }

    /// Takes a place; `None` where Redis does not say whether there is one.
    ///
    /// # Errors
    /// `Overloaded` when all are taken.
    pub(super) async fn enter(self: &Arc<Self>) -> Result<Option<Lease>, ScoreError> {
        // Before the question: if its answer does not come, the place may be taken all the same, and
        // dropping the lease returns it.
        let mut lease = Lease {
            leases: Arc::clone(self),
            number: self.numbers.fetch_add(1, Ordering::Relaxed),
            since: None,
            is_taken: true,
        };
        let mut call = self.enter.key(&self.key);
        call.arg(self.name(lease.number))
            .arg(LEASE.as_millis() as u64)
            .arg(self.max);
        let ask = async |mut connection| call.invoke_async::<(u8, u64)>(&mut connection).await;
        match self.link.ask("enter", ask).await {
            None => {
                self.metrics.unlimited("requests");
                Ok(None)
            }
            Some((0, first_ms)) => {
                lease.is_taken = false;
                self.metrics.refused("requests");
                Err(self.full(Duration::from_millis(first_ms)))
            }
            Some(_) => {
                lease.since = Some(Instant::now());
                self.book().held.insert(lease.number);
                self.metrics.leases(1);
                Ok(Some(lease))
            }
        }
    }

    /// Returns places soon and renews the others in time. Never ends.
    pub(super) async fn work(self: Arc<Self>) {
        // One task does both: a place that has been returned is not renewed afterwards.
        let mut renewed = Instant::now();
        let mut up = self.link.up();
        loop {
            let _ = timeout(RENEW_PERIOD, self.returned.notified()).await;
            let is_due = RENEW_PERIOD <= renewed.elapsed();
            let (returned, held) = {
                let mut book = self.book();
                let returned = std::mem::take(&mut book.returned);
                let held = if is_due {
                    book.held.iter().copied().collect()
                } else {
                    Vec::new()
                };
                (returned, held)
            };
            if is_due {
                renewed = Instant::now();
            }
            // What cannot be returned now expires before long.
            if *up.borrow_and_update() {
                self.send(&returned, true).await;
                self.send(&held, false).await;
            }
        }
    }

    async fn send(&self, numbers: &[u64], is_return: bool) {
        for numbers in numbers.chunks(BATCH_MAX) {
            let mut call = self.renew.key(&self.key);
            call.arg(LEASE.as_millis() as u64)
                .arg(if is_return { numbers.len() } else { 0 });
            for number in numbers {
                call.arg(self.name(*number));
            }
            let operation = if is_return { "return" } else { "renew" };
            let ask = async |mut connection| call.invoke_async::<()>(&mut connection).await;
            self.link.ask_patiently(operation, ask).await;
        }
    }

    fn name(&self, number: u64) -> String {
        format!("{}:{number}", self.server)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those who are inside now will be gone after about the time that a place is taken.
    fn full(&self, first: Duration) -> ScoreError {
        let hold = self.book().hold.unwrap_or(RETRY_AFTER_FIRST);
        ScoreError::Overloaded {
            why: format!(
                "{} requests are being answered by all servers, as many as distributed.requests_max allows",
                self.max
            ),
            retry_after: hold
                .min(first)
                .clamp(Duration::from_millis(1), RETRY_AFTER_MAX),
        }
    }
}

// === impl Lease ===

impl Drop for Lease {
    fn drop(&mut self) {
        let mut book = self.leases.book();
        if let Some(since) = self.since {
            book.held.remove(&self.number);
            let took = since.elapsed();
            book.hold = Some(match book.hold {
                // The last sixteen or so.
                Some(hold) => (hold * 15 + took) / 16,
                None => took,
            });
            self.leases.metrics.leases(-1);
        }
        if self.is_taken && book.returned.len() < RETURNED_MAX {
            book.returned.push(self.number);
            drop(book);
            self.leases.returned.notify_one();
        }
    }
}
