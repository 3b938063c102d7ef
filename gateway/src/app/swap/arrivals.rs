//! Plugin files that arrive while the server runs are swapped to, each model by the plugin that serves it. A file
//! counts when it has been left alone for a while: who copies one into its place is not met half-way.

use super::Swaps;
use crate::control::{SwapError, SwapOrder};
use crate::runtime::now;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
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
            let is_done = stop.run_until_cancelled(swaps.arrived(path.clone())).await;
            if is_done == Some(true) {
                arrivals.done(&path);
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

    /// Swaps to a complete file, model by model. Says whether there is nothing left to do for it.
    async fn arrived(&self, path: PathBuf) -> bool {
        let (host, file) = (self.loader.host.clone(), path.clone());
        let looked = move || Ok::<_, String>((host.name_of(&file)?, host.hash_of(&file)?));
        let (name, sha256) = match self.runtime.blocking(looked).await {
            Ok(Ok(found)) => found,
            Ok(Err(why)) => {
                tracing::warn!("a file that arrived is not swapped to: {why}");
                return true;
            }
            Err(_) => return true,
        };
        let mut is_done = true;
        for model in self.slots.names() {
            let Ok(live) = self.slots.live(Some(&model)) else {
                continue;
            };
            let facts = live.facts();
            if facts.plugin.0 != name || facts.image == sha256 {
                continue;
            }
            drop(live);
            tracing::info!(model = %model, file = %path.display(), "a new file of its plugin has arrived");
            is_done &= self.swap_to(&model, &path, &sha256).await;
        }
        is_done
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
            let seen = self.0.entry(path.clone()).or_insert(Seen {
                stamp: *stamp,
                since: now,
                is_done: false,
            });
            if seen.stamp != *stamp {
                *seen = Seen {
                    stamp: *stamp,
                    since: now,
                    is_done: false,
                };
            }
            if !seen.is_done && QUIET <= now.saturating_duration_since(seen.since) {
                complete.push(path.clone());
            }
        }
        complete
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
