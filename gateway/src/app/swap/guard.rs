//! The guard over what serves, outside of any probation: what fails batch after batch makes way for what served
//! before it; without such, the server says that it is not ready until its scores come back.

use super::Swaps;
use crate::generation::probation::Window;
use crate::generation::{Generation, Golden};
use crate::runtime::now;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often everything is looked at.
const PERIOD: Duration = Duration::from_millis(500);
/// How long a failing generation's golden rows may take.
const GOLDEN_MAX: Duration = Duration::from_secs(5);

/// Looks after all models until `stop`.
pub(in crate::app) async fn stand_guard(swaps: Swaps, stop: CancellationToken) {
    let mut windows: BTreeMap<Arc<str>, Window> = BTreeMap::new();
    let pause = || tokio::time::sleep(PERIOD);
    while stop.run_until_cancelled(pause()).await.is_some() {
        let names = swaps.slots.names();
        windows.retain(|name, _| names.contains(name));
        for name in names {
            let Ok(live) = swaps.slots.live(Some(&name)) else {
                continue;
            };
            if live.is_failing() {
                let swaps = swaps.clone();
                let looking = swaps
                    .runtime
                    .clone()
                    .blocking(move || swaps.look_again(&live));
                let _ = looking.await;
                continue;
            }
            let bounds = swaps.loader.fault_bounds();
            let window = windows.entry(name).or_default();
            let facts = live.facts();
            let why = window.add(now(), facts.number, live.line().totals(), &bounds);
            if let Some(why) = why {
                *window = Window::default();
                swaps.replace_failing(&live, why);
            }
        }
    }
}

impl Swaps {
    fn replace_failing(&self, live: &Arc<Generation>, why: String) {
        let name = live.name();
        let looked = self.record(&name, |record| match record.running {
            Some(_) => None,
            // Taken: if it does not open, it is not tried again and again.
            None => Some(record.before.take()),
        });
        let Some(before) = looked else {
            // Its probation looks after it.
            return;
        };
        tracing::error!(model = %name, "{why}");
        let back = before.map(|before| self.go_back(&name, before, why));
        if back.is_none_or(|back| back.is_err()) {
            live.set_failing(true);
        }
    }

    /// A failing generation takes requests again when it scores what is known to be good.
    fn look_again(&self, live: &Generation) {
        let again = Golden::of(live, &self.runtime, now() + GOLDEN_MAX);
        match again {
            Ok(_) => {
                tracing::info!(model = %live.name(), "its backend scores again: it is ready");
                live.set_failing(false);
            }
            Err(why) => tracing::debug!(model = %live.name(), "it is failing still: {why}"),
        }
    }
}
