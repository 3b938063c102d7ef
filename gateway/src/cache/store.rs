//! The first level: pairs in this process's memory.

use super::key::{BuildKeyHasher, Key};
use super::pair::Pair;
use std::time::Duration;

/// What an entry takes beside its logits: key, pair, and what the map keeps about them (measured: see
/// `an_entry_takes_what_it_weighs`).
const ENTRY_BYTES: usize = 320;

/// Pairs by key, the less useful ones forgotten when there is no room.
#[derive(Clone)]
pub struct Store {
    pairs: moka::sync::Cache<Key, Pair, BuildKeyHasher>,
}

/// How much is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Pairs.
    pub entries: u64,
    /// Their bytes, about.
    pub bytes: u64,
}

// === impl Store ===

impl Store {
    /// Room for so many bytes; what is older than `ttl` is forgotten.
    pub fn new(bytes_max: u64, ttl: Duration) -> Self {
        let pairs = moka::sync::Cache::builder()
            .weigher(|_, pair: &Pair| weight(pair))
            .max_capacity(bytes_max)
            .time_to_live(ttl)
            .build_with_hasher(BuildKeyHasher::default());
        Self { pairs }
    }

    /// The pair of this key.
    pub fn get(&self, key: Key) -> Option<Pair> {
        self.pairs.get(&key)
    }

    /// Keeps a pair.
    pub fn insert(&self, key: Key, pair: Pair) {
        self.pairs.insert(key, pair);
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.pairs.invalidate_all();
        self.pairs.run_pending_tasks();
    }

    /// How much is kept.
    pub fn kept(&self) -> Kept {
        // The counts are as of the last time that it tidied up.
        self.pairs.run_pending_tasks();
        Kept {
            entries: self.pairs.entry_count(),
            bytes: self.pairs.weighted_size(),
        }
    }
}

fn weight(pair: &Pair) -> u32 {
    let on_heap = if pair.logits.spilled() {
        pair.logits.capacity() * size_of::<f32>()
    } else {
        0
    };
    u32::try_from(ENTRY_BYTES + on_heap).unwrap_or(u32::MAX)
}
