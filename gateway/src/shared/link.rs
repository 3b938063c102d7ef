//! The way to Redis: one connection, a breaker before it, and a task that keeps both.

use super::breaker::{Breaker, Pass, Rules};
use crate::config::Distributed;
use crate::telemetry::DistributedMetrics;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ErrorKind, RedisError, RedisResult};
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep_until, timeout};

/// Operations on their way at once; more wait, as long as an operation may take. A Redis that hangs can
/// leave FAILURES_MAX times as many unanswered on the connection, until the breaker opens and closes it.
const OPERATIONS_MAX: usize = 256;
/// A slow answer is no outage; a hung Redis costs each request at most so many operations' timeouts, one
/// after the other, before it is given up.
const FAILURES_MAX: u32 = 5;
/// Between an outage's trials, doubling.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Redis refuses (no memory, a replica): said at most this often for each operation.
const COMPLAINT_PERIOD: Duration = Duration::from_secs(60);
/// Different reasons that one outage has in the log.
const REASONS_MAX: usize = 8;

/// Asks Redis in bounded time, or says that there is no answer.
pub(super) struct Link {
    client: Client,
    /// For the log: a host and a port, or a socket's path.
    place: String,
    connect_timeout: Duration,
    operation_timeout: Duration,
    slots: Semaphore,
    state: Mutex<State>,
    /// Whether Redis answers.
    up: watch::Sender<bool>,
    metrics: Arc<DistributedMetrics>,
}

struct State {
    breaker: Breaker,
    /// There while the breaker is closed.
    connection: Option<MultiplexedConnection>,
    /// Why Redis does not answer, as far as the log says already.
    reasons: Vec<String>,
    /// When an operation was last said to be refused.
    complaints: BTreeMap<&'static str, Instant>,
}

// === impl Link ===

impl Link {
    /// Connects to nothing yet: [`keep`](Self::keep) does.
    ///
    /// # Errors
    /// What is wrong with the URL, without its password.
    pub(super) fn new(
        settings: &Distributed,
        metrics: Arc<DistributedMetrics>,
    ) -> Result<Self, String> {
        let client = Client::open(settings.redis_url.secret()).map_err(|error| {
            // Not the whole text, which may repeat a part of the URL.
            let what = error.category();
            format!("the URL cannot be used: {what}")
        })?;
        let rules = Rules {
            failures_max: FAILURES_MAX,
            silence_min: settings.operation_timeout * (FAILURES_MAX - 1),
            pause_min: PAUSE_MIN,
            pause_max: PAUSE_MAX,
        };
        let breaker = Breaker::new(rules, Instant::now());
        metrics.breaker(breaker.level());
        Ok(Self {
            place: client.get_connection_info().addr().to_string(),
            client,
            connect_timeout: settings.connect_timeout,
            operation_timeout: settings.operation_timeout,
            slots: Semaphore::new(OPERATIONS_MAX),
            state: Mutex::new(State {
                breaker,
                connection: None,
                reasons: Vec::new(),
                complaints: BTreeMap::new(),
            }),
            up: watch::Sender::new(false),
            metrics,
        })
    }

    /// What Redis answers, or nothing: it does not in time, it refuses, or it is not asked because it did
    /// not answer before. An answer that comes too late is thrown away; the next one is not taken for it.
    pub(super) async fn ask<T, A>(
        &self,
        operation: &'static str,
        ask: impl FnOnce(MultiplexedConnection) -> A,
    ) -> Option<T>
    where
        A: Future<Output = RedisResult<T>>,
    {
        self.ask_within(self.operation_timeout, operation, ask)
            .await
    }

    /// As [`ask`](Self::ask), for what no request waits for.
    pub(super) async fn ask_patiently<T, A>(
        &self,
        operation: &'static str,
        ask: impl FnOnce(MultiplexedConnection) -> A,
    ) -> Option<T>
    where
        A: Future<Output = RedisResult<T>>,
    {
        let time = self.connect_timeout.max(self.operation_timeout);
        self.ask_within(time, operation, ask).await
    }

    async fn ask_within<T, A>(
        &self,
        time: Duration,
        operation: &'static str,
        ask: impl FnOnce(MultiplexedConnection) -> A,
    ) -> Option<T>
    where
        A: Future<Output = RedisResult<T>>,
    {
        let Some((pass, connection)) = self.connection() else {
            self.metrics.operation(operation, "open", None);
            return None;
        };
        let began = Instant::now();
        let mut asked = pin!(async {
            let _slot = self.slots.acquire().await;
            ask(connection).await
        });
        let mut answer = timeout(time, asked.as_mut()).await;
        if answer.is_err() {
            // Where this process is what is slow, the answer may have arrived unread.
            tokio::task::yield_now().await;
            answer = timeout(Duration::ZERO, asked).await;
        }
        let outcome = match &answer {
            Ok(Ok(_)) => "ok",
            Ok(Err(_)) => "error",
            Err(_) => "timeout",
        };
        self.metrics
            .operation(operation, outcome, Some(began.elapsed()));
        match answer {
            Ok(Ok(answer)) => {
                self.state().breaker.succeeded(pass);
                Some(answer)
            }
            Ok(Err(error)) => {
                self.refused(operation, pass, &error);
                None
            }
            Err(_) => {
                let why = format!("no answer within {time:?}");
                let mut state = self.state();
                if state.breaker.failed(pass, Instant::now()) {
                    self.give_up(&mut state, why);
                }
                None
            }
        }
    }

    /// Whether Redis answers, as it changes.
    pub(super) fn up(&self) -> watch::Receiver<bool> {
        self.up.subscribe()
    }

    /// Connects, and again whenever the breaker has been open long enough. Never ends.
    pub(super) async fn keep(self: Arc<Self>) {
        let mut up = self.up();
        loop {
            let try_at = self.state().breaker.try_at();
            match try_at {
                Some(at) => {
                    sleep_until(at.into()).await;
                    self.try_again().await;
                }
                // The sender lives as long as we do.
                None => _ = up.wait_for(|up| !up).await,
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connection(&self) -> Option<(Pass, MultiplexedConnection)> {
        let state = self.state();
        state.breaker.pass().zip(state.connection.clone())
    }

    /// Redis said no, or the connection did.
    fn refused(&self, operation: &'static str, pass: Pass, error: &RedisError) {
        let (mut state, now) = (self.state(), Instant::now());
        // What cannot be read as what was asked for came whole: whoever can write into Redis need not be trusted.
        // After an answer that was none the connection ends, and the next operation finds it so.
        let is_answer = error.kind() == ErrorKind::Parse;
        if !is_answer && (error.is_unrecoverable_error() || error.is_io_error()) {
            if state.breaker.lost(pass, now) {
                self.give_up(&mut state, self.words(error));
            }
            return;
        }
        // It answers, and quickly: that costs nobody any time, so it is no reason to stop asking.
        state.breaker.succeeded(pass);
        let last = state.complaints.get(operation);
        if last.is_none_or(|last| COMPLAINT_PERIOD <= now.saturating_duration_since(*last)) {
            state.complaints.insert(operation, now);
            tracing::warn!(redis = self.place, operation, why = %self.words(error), "Redis refuses");
        }
    }

    /// The breaker is open: the connection goes, with all that is still unanswered on it.
    fn give_up(&self, state: &mut State, why: String) {
        state.connection = None;
        self.metrics.breaker(state.breaker.level());
        self.say(state, why);
        self.up.send_replace(false);
    }

    /// Once for each reason and outage.
    fn say(&self, state: &mut State, why: String) {
        if state.reasons.len() < REASONS_MAX && !state.reasons.contains(&why) {
            tracing::warn!(
                redis = self.place,
                why,
                "Redis does not answer; this server serves alone until it does"
            );
            state.reasons.push(why);
        }
    }

    async fn try_again(&self) {
        {
            let mut state = self.state();
            state.breaker.begin_trial();
            self.metrics.breaker(state.breaker.level());
        }
        let outcome = self.connect().await;
        let mut state = self.state();
        let is_well = outcome.is_ok();
        state.breaker.end_trial(is_well, Instant::now());
        self.metrics.breaker(state.breaker.level());
        match outcome {
            Ok(connection) => {
                state.connection = Some(connection);
                state.reasons.clear();
                tracing::info!(redis = self.place, "Redis answers");
                self.up.send_replace(true);
            }
            Err(why) => self.say(&mut state, why),
        }
    }

    /// A connection on which Redis has answered as quickly as requests need it.
    async fn connect(&self) -> Result<MultiplexedConnection, String> {
        // The times are ours: they also hold for waiting until something can be sent.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None);
        let connecting = self
            .client
            .get_multiplexed_async_connection_with_config(&config);
        let mut connection = timeout(self.connect_timeout, connecting)
            .await
            .map_err(|_| format!("no connection within {:?}", self.connect_timeout))?
            .map_err(|error| self.words(&error))?;
        let ping = redis::cmd("PING");
        let asked = ping.query_async::<()>(&mut connection);
        timeout(self.operation_timeout, asked)
            .await
            .map_err(|_| format!("no answer within {:?}", self.operation_timeout))?
            .map_err(|error| self.words(&error))?;
        Ok(connection)
    }

    /// An error as it may be logged. Old servers repeat a command that they do not know, AUTH as well.
    fn words(&self, error: &RedisError) -> String {
        let settings = self.client.get_connection_info().redis_settings();
        let words = error.to_string();
        let words = match settings.password() {
            Some(password) if !password.is_empty() => words.replace(password, "***"),
            _ => words,
        };
        match error.kind() {
            ErrorKind::AuthenticationFailed => {
                "it refuses the user or the password of distributed.redis_url".to_owned()
            }
            _ if words.contains("NOAUTH") => {
                "it wants a password, which belongs into distributed.redis_url".to_owned()
            }
            _ => words,
        }
    }
}
