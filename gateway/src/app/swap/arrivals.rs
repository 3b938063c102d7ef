//! Plugin files that arrive while the server runs are swapped to, each model by the plugin that serves it. A file
//! counts when it has been left alone for a while: who copies one into its place is not met half-way.

use super::Swaps;
use crate::control::{SwapError, SwapOrder};
use crate::runtime::now;
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How often the folders are looked at.
const PERIOD: Duration = Duration::from_millis(500);
/// How long a file must not change before it counts as complete.
const QUIET: Duration = Duration::from_secs(2);

/// What tells that a file is another one or was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

/// A file as it was last seen.
struct Seen {
    stamp: Stamp,
    since: Instant,
    is_done: bool,
    // Once it was looked into.
    arrived: Option<Arrived>,
}

/// What is in a file.
struct Arrived {
    /// The plugin's name.
    name: String,
    sha256: String,
    // Models that it was tried with: a refused one is not ordered again because another one must wait.
    tried: BTreeSet<Arc<str>>,
}

/// What lies in the folders.
#[derive(Default)]
struct Arrivals(HashMap<PathBuf, Seen>);

/// Looks at the folders until `stop`.
pub(in crate::app) async fn follow_files(swaps: Swaps, stop: CancellationToken) {
    let mut arrivals = Arrivals::default();
    let first = swaps.stamps().await;
    arrivals.see(now(), &first);
    // What was there at the start is what is served.
    for (path, _) in first {
        arrivals.done(&path);
    }
    let pause = || tokio::time::sleep(PERIOD);
    while stop.run_until_cancelled(pause()).await.is_some() {
        let found = swaps.stamps().await;
        for path in arrivals.see(now(), &found) {
            let before = arrivals.take(&path);
            let arrived = swaps.arrived(&path, before);
            match stop.run_until_cancelled(arrived).await {
                Some(None) => arrivals.done(&path),
                Some(left) => arrivals.put_back(&path, left),
                None => return,
            }
        }
    }
}

impl Swaps {
    async fn stamps(&self) -> Vec<(PathBuf, Stamp)> {
        let host = self.loader.host.clone();
        let look = move || {
            let files = host.look().into_iter();
            files
                .filter_map(|path| Some((path.clone(), stamp(&path)?)))
                .collect()
        };
        self.runtime.blocking(look).await.unwrap_or_default()
    }

    /// Swaps to a complete file, model by model. `None` when there is nothing left to do for it.
    async fn arrived(&self, path: &Path, before: Option<Arrived>) -> Option<Arrived> {
        let mut arrived = match before {
            Some(arrived) => arrived,
            None => self.look_into(path).await?,
        };
        let mut is_done = true;
        for model in self.slots.names() {
            let Ok(live) = self.slots.live(Some(&model)) else {
                // It is being loaded, perhaps by the file that was there before.
                is_done = false;
                continue;
            };
            let facts = Arc::clone(live.facts());
            drop(live);
            let is_its = facts.plugin.0 == arrived.name && facts.image != arrived.sha256;
            if !is_its || arrived.tried.contains(&model) {
                continue;
            }
            if self.swap_to(&model, path, &arrived.sha256).await {
                arrived.tried.insert(model);
            } else {
                is_done = false;
            }
        }
        (!is_done).then_some(arrived)
    }

    async fn look_into(&self, path: &Path) -> Option<Arrived> {
        let (host, file) = (self.loader.host.clone(), path.to_owned());
        let looked = move || host.identify(&file);
        match self.runtime.blocking(looked).await.ok()? {
            Ok((sha256, card)) => Some(Arrived {
                name: card.name,
                sha256,
                tried: BTreeSet::new(),
            }),
            Err(why) => {
                tracing::warn!("a file that arrived is not swapped to: {why}");
                None
            }
        }
    }

    /// Says whether it was tried.
    async fn swap_to(&self, model: &str, path: &Path, sha256: &str) -> bool {
        let order = SwapOrder {
            plugin: Some(path.display().to_string()),
            sha256: Some(sha256.to_owned()),
            ..SwapOrder::of(model)
        };
        let mut reached = match self.start(order) {
            Ok(reached) => reached,
            Err(SwapError::NotNow(why)) => {
                tracing::debug!("later: {why}");
                return false;
            }
            Err(SwapError::Model(error)) => {
                tracing::warn!("{error}");
                return true;
            }
        };
        tracing::info!(model, file = %path.display(), "a new file of its plugin has arrived");
        // One model after the other: each opens one more backend.
        while let Some(step) = reached.recv().await {
            if step.state.is_served() || step.state.is_last() {
                break;
            }
        }
        true
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some(Stamp {
        inode: metadata.ino(),
        bytes: metadata.len(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    })
}

// === impl Arrivals ===

impl Arrivals {
    /// The folders hold `found` now: which of the files are complete and not done.
    fn see(&mut self, now: Instant, found: &[(PathBuf, Stamp)]) -> Vec<PathBuf> {
        self.0
            .retain(|path, _| found.iter().any(|(there, _)| there == path));
        let mut complete = Vec::new();
        for (path, stamp) in found {
            let new = || Seen {
                stamp: *stamp,
                since: now,
                is_done: false,
                arrived: None,
            };
            let seen = self.0.entry(path.clone()).or_insert_with(new);
            if seen.stamp != *stamp {
                *seen = new();
            }
            if !seen.is_done && QUIET <= now.saturating_duration_since(seen.since) {
                complete.push(path.clone());
            }
        }
        complete
    }

    /// What is known of a complete file.
    fn take(&mut self, path: &Path) -> Option<Arrived> {
        self.0.get_mut(path)?.arrived.take()
    }

    /// Something is left to do for it.
    fn put_back(&mut self, path: &Path, arrived: Option<Arrived>) {
        if let Some(seen) = self.0.get_mut(path) {
            seen.arrived = arrived;
        }
    }

    /// Nothing is left to do for a file as it is.
    fn done(&mut self, path: &Path) {
        if let Some(seen) = self.0.get_mut(path) {
            seen.is_done = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_counts_when_it_has_been_left_alone() {
        let (start, path) = (Instant::now(), PathBuf::from("a.so"));
        let at = |ms| start + Duration::from_millis(ms);
        let of = |bytes| {
            let stamp = Stamp {
                inode: 1,
                bytes,
                modified: (0, 0),
            };
            vec![(path.clone(), stamp)]
        };
        let mut arrivals = Arrivals::default();
        assert!(arrivals.see(at(0), &of(1)).is_empty());
        // Still being written.
        assert!(arrivals.see(at(1_900), &of(2)).is_empty());
        assert!(arrivals.see(at(3_800), &of(2)).is_empty());
        assert_eq!(arrivals.see(at(3_900), &of(2)), std::slice::from_ref(&path));
        // Until it is done.
        assert_eq!(arrivals.see(at(4_000), &of(2)), std::slice::from_ref(&path));
        arrivals.done(&path);
        assert!(arrivals.see(at(9_000), &of(2)).is_empty());
        // Gone, and there again: another file.
        assert!(arrivals.see(at(10_000), &[]).is_empty());
        assert!(arrivals.see(at(11_000), &of(2)).is_empty());
        assert_eq!(
            arrivals.see(at(13_000), &of(2)),
            std::slice::from_ref(&path)
        );
    }
}
