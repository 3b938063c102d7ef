//! What fails on other servers: each says so in Redis while it lasts, and reads what the others say.

use super::link::Link;
use crate::telemetry::DistributedMetrics;
use redis::Script;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What a server said holds for so long, unless it says it again; also for who cannot read any more.
const TTL: Duration = Duration::from_secs(5);
/// Faults that one server announces; as many as it may have models.
const FAULTS_MAX: usize = 64;
/// Faults of others that are kept.
const PEERS_MAX: usize = 1_024;
/// Of a reason; the log of the server itself has all of it.
const REASON_CHARS_MAX: usize = 400;

/// Says ARGV[2] (nothing: takes back what was said) for the server ARGV[1], and answers what others say.
const EXCHANGE: &str = "
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if ARGV[2] == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f ', now + ARGV[3]) .. ARGV[2])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
local said, all = {}, redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local till, text = string.match(all[i + 1], '^(%d+) (.*)$')
  if not till or tonumber(till) <= now then
    redis.call('HDEL', KEYS[1], all[i])
  elseif all[i] ~= ARGV[1] then
    said[#said + 1] = all[i]
    said[#said + 1] = text
  end
end
return said";

/// A model whose backend fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The model's name.
    pub model: String,
    /// The plugin's name.
    pub plugin: String,
    /// What is known of why.
    pub reason: String,
}

/// A model that fails on another server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The server's name.
    pub server: String,
    /// What fails there.
    pub fault: Fault,
    /// Since when, by that server's clock.
    pub since: SystemTime,
}

/// A fault as it stands in Redis.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Announced {
    #[serde(flatten)]
    fault: Fault,
    since_ms: u64,
}

/// Both sides: ours and theirs.
pub(super) struct Peers {
    link: Arc<Link>,
    metrics: Arc<DistributedMetrics>,
    key: String,
    server: String,
    script: Script,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    ours: Vec<Announced>,
    theirs: Vec<Peer>,
    heard: Option<Instant>,
}

// === impl Peers ===

impl Peers {
    pub(super) fn new(
        link: Arc<Link>,
        metrics: Arc<DistributedMetrics>,
        prefix: &str,
        server: String,
    ) -> Self {
        Self {
            link,
            metrics,
            key: format!("{prefix}:faults"),
            server,
            script: Script::new(EXCHANGE),
            book: Mutex::default(),
        }
    }

    /// What fails here from now on, instead of what failed before. Whether anything changed.
    pub(super) fn announce(&self, faults: Vec<Fault>) -> bool {
        let mut book = self.book();
        let cut = |mut fault: Fault| {
            if let Some((at, _)) = fault.reason.char_indices().nth(REASON_CHARS_MAX) {
                fault.reason.truncate(at);
            }
            let known = book
                .ours
                .iter()
                .find(|ours| ours.fault.model == fault.model);
            let since_ms = known.map_or_else(now_ms, |ours| ours.since_ms);
            Announced { fault, since_ms }
        };
        let ours: Vec<Announced> = faults.into_iter().take(FAULTS_MAX).map(cut).collect();
        let of = |said: &[Announced]| -> Vec<Fault> {
            said.iter().map(|said| said.fault.clone()).collect()
        };
        let is_new = of(&ours) != of(&book.ours);
        book.ours = ours;
        is_new
    }

    /// What is known of the others.
    pub(super) fn theirs(&self) -> Vec<Peer> {
        self.book().theirs.clone()
    }

    /// Says ours and hears theirs.
    pub(super) async fn exchange(&self) {
        let ours = {
            let book = self.book();
            // Plain texts and numbers always have a JSON form.
            let text = serde_json::to_string(&book.ours).unwrap_or_default();
            if book.ours.is_empty() {
                String::new()
            } else {
                text
            }
        };
        let mut call = self.script.key(&self.key);
        call.arg(&self.server).arg(ours).arg(TTL.as_millis() as u64);
        let ask = async |mut connection| {
            call.invoke_async::<BTreeMap<Vec<u8>, Vec<u8>>>(&mut connection)
                .await
        };
        let said = self.link.ask_patiently("peers", ask).await;
        self.hear(said.map(|said| read(&said)), Instant::now());
    }

    /// Somebody could not ask: what was heard holds for a while.
    pub(super) fn forget(&self, now: Instant) {
        self.hear(None, now);
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, said: Option<Vec<Peer>>, now: Instant) {
        let mut book = self.book();
        let theirs = match said {
            Some(theirs) => {
                book.heard = Some(now);
                theirs
            }
            None if book.heard.is_some_and(|heard| now < heard + TTL) => return,
            None => Vec::new(),
        };
        let before = std::mem::replace(&mut book.theirs, theirs.clone());
        drop(book);
        self.tell(&before, &theirs);
    }

    /// Says in log and metrics what has begun and what has ended.
    fn tell(&self, before: &[Peer], now: &[Peer]) {
        let name = |peer: &Peer| (peer.server.clone(), peer.fault.model.clone());
        let names = |peers: &[Peer]| peers.iter().map(name).collect::<BTreeSet<_>>();
        let (old, new) = (names(before), names(now));
        for peer in now.iter().filter(|peer| !old.contains(&name(peer))) {
            let Fault {
                model,
                plugin,
                reason,
            } = &peer.fault;
            tracing::warn!(
                server = peer.server,
                model,
                plugin,
                reason,
                "a model fails on another server"
            );
        }
        for (server, model) in old.difference(&new) {
            tracing::info!(server, model, "a model fails no more on another server");
        }
        let models: BTreeSet<&str> = before
            .iter()
            .chain(now)
            .map(|peer| peer.fault.model.as_str())
            .collect();
        for model in models {
            let n = now.iter().filter(|peer| peer.fault.model == model).count();
            self.metrics.peer_faults(model, n);
        }
    }
}

/// What servers say, as far as it can be read: they may be of another version.
fn read(said: &BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<Peer> {
    let faults = said.iter().flat_map(|(server, text)| {
        let faults: Vec<Announced> = serde_json::from_slice(text).unwrap_or_default();
        faults.into_iter().take(FAULTS_MAX).map(|said| Peer {
            server: String::from_utf8_lossy(server).into_owned(),
            fault: said.fault,
            since: UNIX_EPOCH + Duration::from_millis(said.since_ms),
        })
    });
    faults.take(PEERS_MAX).collect()
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_millis() as u64)
}
