//! The bound on the requests of one client per second, over all servers.

use super::link::Link;
use crate::config;
use crate::score::ScoreError;
use crate::telemetry::DistributedMetrics;
use redis::Script;
use std::sync::Arc;
use std::time::Duration;

/// GCRA (ITU-T I.371, the virtual scheduling algorithm), in microseconds on Redis' own clock: each request
/// moves the client's theoretical arrival time on by one interval; who is earlier than it by more than
/// `burst - 1` intervals is told how much to wait. Rests with the key when it expires.
const ALLOW: &str = "
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local due = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now)
local wait = due - (burst - 1) * interval - now
if wait > 0 then return math.ceil(wait) end
due = due + interval
redis.call('SET', KEYS[1], string.format('%.0f', due), 'PX', math.ceil((due - now) / 1000))
return 0";

/// Counts requests by client.
pub(super) struct Rate {
    link: Arc<Link>,
    metrics: Arc<DistributedMetrics>,
    prefix: String,
    /// Of clients that have none of their own.
    limit: Option<config::Rate>,
    script: Script,
}

// === impl Rate ===

impl Rate {
    /// Nobody has asked yet.
    pub(super) fn new(
        link: Arc<Link>,
        metrics: Arc<DistributedMetrics>,
        prefix: String,
        limit: Option<config::Rate>,
    ) -> Self {
        Self {
            link,
            metrics,
            prefix,
            limit,
            script: Script::new(ALLOW),
        }
    }

    /// Counts a request of `client`.
    ///
    /// # Errors
    /// `Overloaded`, with the time until the next one is allowed.
    pub(super) async fn allow(&self, client: &str) -> Result<(), ScoreError> {
        let Some(limit) = self.limit else {
            return Ok(());
        };
        let why = || {
            format!(
                "this client has sent more than the {} requests per second that distributed.rate_max \
                 allows, and {} at once",
                limit.per_second, limit.burst
            )
        };
        self.allow_at(client, limit, why).await
    }

    /// Counts a request of `client` by a limit of its own; `why` is said of one too many.
    ///
    /// # Errors
    /// Those of [`allow`](Self::allow).
    pub(super) async fn allow_at(
        &self,
        client: &str,
        config::Rate { per_second, burst }: config::Rate,
        why: impl FnOnce() -> String,
    ) -> Result<(), ScoreError> {
        // A client may be a secret key; what stands in Redis is none, and of bounded length.
        let client = blake3::hash(client.as_bytes());
        let mut call = self
            .script
            .key(format!("{}:rate:{}", self.prefix, client.to_hex()));
        call.arg(1e6 / f64::from(per_second.max(1)))
            .arg(burst.max(1));
        let ask = async |mut connection| call.invoke_async::<u64>(&mut connection).await;
        match self.link.ask("allow", ask).await {
            Some(0) => Ok(()),
            Some(wait_us) => {
                self.metrics.refused("rate");
                Err(ScoreError::Overloaded {
                    why: why(),
                    retry_after: Duration::from_micros(wait_us),
                })
            }
            None => {
                self.metrics.unlimited("rate");
                Ok(())
            }
        }
    }
}
