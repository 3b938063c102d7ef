//! Values on their way to Redis: a bounded queue that nobody waits for, and a task that empties it.

use super::epoch::Epoch;
use super::link::Link;
use super::value_key;
use crate::telemetry::DistributedMetrics;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// Values in one write: a millisecond of Redis' time, so that it is soon there for others.
const ENTRIES_MAX: usize = 512;
/// What an entry costs beside its value: the key, and its place in the queue.
const ENTRY_BYTES: usize = 64;
/// What was written together expires over this share of its time, the last one: not all is computed
/// again at once.
const JITTER: f64 = 0.2;

/// Values that wait to be written.
pub(super) struct Writes {
    link: Arc<Link>,
    epoch: Arc<Epoch>,
    metrics: Arc<DistributedMetrics>,
    prefix: String,
    ttl: Duration,
    bytes_max: usize,
    waiting: Mutex<Waiting>,
    came: Notify,
}

#[derive(Default)]
struct Waiting {
    entries: VecDeque<Entry>,
    bytes: usize,
}

struct Entry {
    /// When it was put: what has been forgotten since then does not come back.
    epoch: u64,
    key: u128,
    value: Vec<u8>,
}

// === impl Writes ===

impl Writes {
    /// An empty queue of at most `bytes_max`; values live for `ttl` at most.
    pub(super) fn new(
        (link, epoch): (Arc<Link>, Arc<Epoch>),
        metrics: Arc<DistributedMetrics>,
        prefix: String,
        ttl: Duration,
        bytes_max: usize,
    ) -> Self {
        Self {
            link,
            epoch,
            metrics,
            prefix,
            ttl,
            bytes_max,
            waiting: Mutex::default(),
            came: Notify::new(),
        }
    }

    /// Puts values into the queue, as far as it has room.
    pub(super) fn put(&self, entries: Vec<(u128, Vec<u8>)>) {
        let (n_entries, mut n_taken) = (entries.len(), 0);
        if let Some(epoch) = self.epoch.known() {
            let mut waiting = self.waiting();
            for (key, value) in entries {
                let bytes = value.len() + ENTRY_BYTES;
                if waiting.bytes + bytes <= self.bytes_max {
                    waiting.bytes += bytes;
                    waiting.entries.push_back(Entry { epoch, key, value });
                    n_taken += 1;
                }
            }
        }
        if n_taken < n_entries {
            self.metrics.writes("full", n_entries - n_taken);
        }
        if n_taken > 0 {
            self.came.notify_one();
        }
    }

    /// Writes what comes, while Redis answers. Never ends.
    pub(super) async fn work(self: Arc<Self>) {
        let mut up = self.link.up();
        loop {
            // The sender lives as long as the link.
            _ = up.wait_for(|up| *up).await;
            match self.take() {
                entries if entries.is_empty() => self.came.notified().await,
                entries => self.write(entries).await,
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Vec<Entry> {
        let mut waiting = self.waiting();
        let n = waiting.entries.len().min(ENTRIES_MAX);
        let entries: Vec<Entry> = waiting.entries.drain(..n).collect();
        let bytes = |entry: &Entry| entry.value.len() + ENTRY_BYTES;
        waiting.bytes -= entries.iter().map(bytes).sum::<usize>();
        entries
    }

    async fn write(&self, mut entries: Vec<Entry>) {
        let n_entries = entries.len();
        let epoch = self.epoch.known();
        entries.retain(|entry| Some(entry.epoch) == epoch);
        self.metrics.writes("cleared", n_entries - entries.len());
        if entries.is_empty() {
            return;
        }
        let mut pipe = redis::pipe();
        for Entry { epoch, key, value } in &entries {
            pipe.cmd("SET")
                .arg(value_key(&self.prefix, *epoch, *key))
                .arg(value.as_slice())
                .arg("PX")
                .arg(lifetime_ms(self.ttl, *key))
                .ignore();
        }
        let ask = async |mut connection| pipe.query_async::<()>(&mut connection).await;
        let outcome = match self.link.ask_patiently("put", ask).await {
            Some(()) => "written",
            None => "failed",
        };
        self.metrics.writes(outcome, entries.len());
    }
}

/// Milliseconds from `1 - JITTER` of `ttl` up to all of it, by the key: no source of chance is needed.
fn lifetime_ms(ttl: Duration, key: u128) -> u64 {
    // The multiplier of PCG, so that keys which are near each other (in tests) are not in time.
    let mixed = key.wrapping_mul(0x2360_ED05_1FC6_5DA4_4385_DF64_9FCC_F645) >> 96;
    let share = mixed as f64 / f64::from(u32::MAX);
    let ms = ttl.as_millis() as f64 * (1.0 - JITTER * share);
    (ms as u64).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_spread_below_the_ttl() {
        let ttl = Duration::from_secs(100);
        let mut decades = [0; 11];
        for key in 0..1_000_u128 {
            let ms = lifetime_ms(ttl, key);
            assert!((80_000..=100_000).contains(&ms), "{ms}");
            assert_eq!(ms, lifetime_ms(ttl, key));
            decades[((ms - 80_000) / 2_000) as usize] += 1;
        }
        let [first, .., last, _] = decades;
        assert!(50 < first && 50 < last, "{decades:?}");
        assert_eq!(lifetime_ms(Duration::ZERO, 1), 1);
    }
}
