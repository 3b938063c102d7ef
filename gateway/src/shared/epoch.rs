//! The number in every value's key. Raising it forgets all values at once, on all servers.

use super::link::Link;
use redis::Script;
use std::sync::Arc;
use tokio::sync::watch;

/// The larger of what Redis and this server know, so that a Redis that has lost its memory does not go back
/// to a number that was given up; the time in microseconds where nobody knows one, or a new one is asked for.
/// What no server wrote is written over.
const LEARN: &str = "
local had = tonumber(redis.call('GET', KEYS[1]) or '0') or 0
if not (had >= 0 and had <= tonumber(ARGV[3])) then had = 0 end
local now = math.max(had, tonumber(ARGV[1]))
if now == 0 or ARGV[2] == 'new' then
  local time = redis.call('TIME')
  now = math.max(now + 1, time[1] * 1000000 + time[2])
end
if now ~= had then redis.call('SET', KEYS[1], string.format('%.0f', now)) end
return string.format('%.0f', now)";

/// Up to here Lua counts exactly, which is until the year 2255. What is more was not written by a server: with
/// it no number would ever be larger.
const NUMBER_MAX: u64 = 1 << 53;

/// What this server knows of the number.
pub(super) struct Epoch {
    link: Arc<Link>,
    /// Where it stands in Redis.
    pub(super) key: String,
    script: Script,
    /// 0 until it is known. Never falls.
    number: watch::Sender<u64>,
}

// === impl Epoch ===

impl Epoch {
    pub(super) fn new(link: Arc<Link>, prefix: &str) -> Self {
        Self {
            link,
            key: format!("{prefix}:epoch"),
            script: Script::new(LEARN),
            number: watch::Sender::new(0),
        }
    }

    /// `None` until Redis has been asked.
    pub(super) fn known(&self) -> Option<u64> {
        Some(*self.number.borrow()).filter(|number| *number != 0)
    }

    /// It changes when all values have been forgotten.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.number.subscribe()
    }

    /// Somebody read it. Whether it is a new one.
    pub(super) fn saw(&self, number: u64) -> bool {
        self.number.send_if_modified(|known| {
            let is_new = *known < number && number <= NUMBER_MAX;
            if is_new {
                *known = number;
            }
            is_new
        })
    }

    /// Asks Redis, and tells it what it has lost.
    pub(super) async fn learn(&self) -> Option<()> {
        self.run("epoch", "").await
    }

    /// Begins a new one.
    pub(super) async fn renew(&self) -> Option<()> {
        self.run("clear", "new").await
    }

    async fn run(&self, operation: &'static str, which: &str) -> Option<()> {
        let mut call = self.script.key(&self.key);
        call.arg(self.known().unwrap_or(0))
            .arg(which)
            .arg(NUMBER_MAX);
        let ask = async |mut connection| call.invoke_async::<u64>(&mut connection).await;
        let number = self.link.ask_patiently(operation, ask).await?;
        self.saw(number);
        Some(())
    }
}
