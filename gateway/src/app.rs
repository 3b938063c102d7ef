//! Composition: the only module that knows all of the others. Nobody imports it but `main` and tests.

mod choice;
pub(crate) mod core;
mod models;
mod plugins;
mod ports;
mod swap;

pub use plugins::plugins;

use crate::cache::Levels;
use crate::config::{Config, ConfigError};
use crate::control::{Control, SwapError, SwapOrder, SwapStep};
use crate::edge::{self, Connections, Edge, Exposition, Key, Place};
use crate::generation::Slots;
use crate::host::Host;
use crate::intake::{Bounds, Door};
use crate::load::{CacheState, Catalog};
use crate::model::{Source, hub};
use crate::runtime::{Runtime, now};
use crate::shared::{Fault, Shared};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::Series;
use core::{Core, Reuse};
use ports::Ports;
use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use swap::Swaps;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tower::util::BoxCloneSyncService;

/// How often the other servers are told which models fail here.
const FAULTS_PERIOD: Duration = Duration::from_secs(1);
/// How often a draining server looks whether the last request has been answered.
const DRAIN_PERIOD: Duration = Duration::from_millis(10);

/// What was not answered before `server.drain_timeout` is answered with an error, which has this long to be
/// written.
const FAREWELL: Duration = Duration::from_millis(100);

/// A server that runs.
pub struct App {
    /// Where HTTP listens.
    pub http: SocketAddr,
    /// Whether HTTP and gRPC listen by TLS.
    pub has_tls: bool,
    /// Whether their clients must show a key.
    pub needs_api_key: bool,
    /// Where gRPC listens.
    pub grpc: SocketAddr,
    /// Where operators are listened to.
    pub admin: Place,
    /// Whether operators must show a key.
    pub admin_needs_key: bool,
    slots: Arc<Slots>,
    host: Arc<Host>,
    door: Door,
    stop: CancellationToken,
    connections: Connections,
    runtime: Runtime,
    drain_timeout: Duration,
    loading: tokio::task::JoinHandle<Result<(), StartError>>,
}

/// Why the server does not start. Says what to do.
#[derive(Debug)]
pub enum StartError {
    /// A configured value turned out wrong.
    Config(ConfigError),
    /// Anything else.
    Other(String),
}

// === impl App ===

impl App {
    /// Opens the ports and starts to load the models; the server is ready when [`loaded`](Self::loaded)
    /// says so. `hub` is where models are fetched from.
    ///
    /// # Errors
    /// A value that turns out wrong, or a port that is taken.
    pub async fn start(config: &Config, hub: hub::Settings) -> Result<Self, StartError> {
        let key = config.admin_key().map_err(StartError::Config)?;
        let key = key.map(|secret| Key::new(secret.reveal()));
        let core = Core::new(config, hub, Reuse::AsConfigured)?;
        let (runtime, slots) = (core.runtime.clone(), Arc::clone(&core.slots));
        let door = Door::new(bounds(config));
        let catalog: Arc<dyn Catalog> = Arc::clone(&slots) as Arc<dyn Catalog>;
        core.metrics.observe(&catalog);
        let levels = core.levels.clone();
        core.metrics.observe_cache(move || levels.state());
        let host = Arc::clone(&core.host);
        core.metrics.observe_images(move || host.n_images());
        let (swaps, stop) = (core.swaps(), CancellationToken::new());
        runtime.task(swap::stand_guard(swaps.clone(), stop.clone()));
        if config.plugins().watch {
            runtime.task(swap::follow_files(swaps.clone(), stop.clone()));
        }
        let edge = Edge {
            core: BoxCloneSyncService::new(core.intake.clone()),
            catalog,
            control: Arc::new(Controls {
                levels: core.levels.clone(),
                swaps,
            }),
            door: door.clone(),
            metrics: Arc::new(Shown(Arc::clone(&core.metrics))),
            settings: settings(config, core.threads.tokenizers),
            keys: ports::keys(config, &runtime, &stop)?,
            shared: core.shared.clone(),
        };
        if let Some(interval) = config.cache().clear_interval {
            runtime.task(clear_again_and_again(
                core.levels.clone(),
                interval,
                stop.clone(),
            ));
        }
        if let Some(shared) = &core.shared {
            join(shared, &core, Arc::clone(&edge.catalog), stop.clone());
        }
        let ports = Ports::bind(config, &runtime, &stop).await?;
        let (http, grpc) = (ports.http.address(), ports.grpc.address());
        let (admin, has_tls) = (ports.admin.place(), ports.has_tls);
        let needs_api_key = edge.keys.is_some();
        let connections = Connections::new(runtime.clone(), stop.clone());
        ports
            .serve((edge, key), &core.host, &connections, &runtime, &stop)
            .await?;
        let host = Arc::clone(&core.host);
        let loading = core.load();
        let drain_timeout = config.server().drain_timeout;
        Ok(Self {
            http,
            has_tls,
            needs_api_key,
            grpc,
            admin,
            admin_needs_key: key.is_some(),
            slots,
            host,
            door,
            stop,
            connections,
            runtime,
            drain_timeout,
            loading,
        })
    }

    /// Waits until every model serves.
    ///
    /// # Errors
    /// The first model that could not be loaded.
    pub async fn loaded(&mut self) -> Result<(), StartError> {
        (&mut self.loading)
            .await
            .unwrap_or_else(|error| Err(StartError::Other(format!("loading failed: {error}"))))
    }

    /// Stops: new requests are refused with 503; those that were let in are answered (at most `drain_timeout`
    /// long), also where their bodies are still to come; then the ports close. How many were not answered in time.
    pub async fn shut_down(self) -> usize {
        let deadline = now() + self.drain_timeout;
        self.door.close();
        self.slots.drain();
        tracing::info!(in_flight = self.door.inside(), "draining");
        while !self.door.is_idle() && now() < deadline {
            tokio::time::sleep(DRAIN_PERIOD).await;
        }
        // Counted before what is left gets an error or a closed connection, and is gone as well.
        let unanswered = self.door.inside();
        if unanswered > 0 {
            tracing::warn!(unanswered, "server.drain_timeout has passed");
        }
        let slots = Arc::clone(&self.slots);
        let joined = self
            .runtime
            .blocking(move || slots.shut_down(deadline.max(now() + DRAIN_PERIOD)));
        if joined.await.is_err() {
            tracing::error!("the workers could not be waited for");
        }
        self.stop.cancel();
        let deadline = deadline.max(now() + FAREWELL);
        self.connections.drained(deadline).await;
        // Tasks may hold it for longer than the process lives.
        self.host.end();
        tracing::info!(unanswered, "stopped");
        unanswered
    }
}

fn sources(config: &Config) -> Result<Vec<Source>, StartError> {
    let parse = |named: &crate::config::NamedSource| {
        Source::parse(&named.source)
            .map_err(|why| StartError::Config(config.refuse("model.sources", why)))
    };
    config.models().sources.iter().map(parse).collect()
}

/// What one request may bring, as configured.
pub(crate) fn bounds(config: &Config) -> Bounds {
    let intake = config.intake();
    Bounds {
        body_bytes_max: intake.body_bytes_max,
        bytes_max: intake.bytes_max,
        requests_max: intake.requests_max,
        documents_max: intake.documents_max,
        document_bytes_max: intake.document_bytes_max,
        query_bytes_max: intake.query_bytes_max,
        priority_max: intake.priority_max,
    }
}

fn settings(config: &Config, tokenizer_workers: usize) -> edge::Settings {
    edge::Settings {
        body_bytes_max: config.intake().body_bytes_max,
        request_timeout: config.server().request_timeout,
        version: env!("CARGO_PKG_VERSION"),
        documents_max: config.intake().documents_max,
        requests_max: config.intake().requests_max,
        queue_tokens_max: config.queue().tokens_max,
        batch_tokens_max: config.batch().tokens_max,
        tokenizer_workers,
        client_header: config
            .distributed()
            .and_then(|settings| settings.client_header.clone()),
        voyage: config.server().voyage,
        cors_origins: match &config.server().cors_origins {
            None => edge::Origins::Any,
            Some(origins) => edge::Origins::These(origins.clone()),
        },
    }
}

async fn clear_again_and_again(levels: Levels, interval: Duration, stop: CancellationToken) {
    while stop
        .run_until_cancelled(tokio::time::sleep(interval))
        .await
        .is_some()
    {
        levels.clear();
        tracing::debug!("cache.clear_interval has passed: the cache is cleared");
    }
}

/// What another server has cleared is not known here either. Ends with the last who share.
async fn clear_with_others(levels: Levels, mut cleared: watch::Receiver<u64>) {
    while cleared.changed().await.is_ok() {
        levels.clear();
    }
}

/// What operators can do.
struct Controls {
    levels: Levels,
    swaps: Swaps,
}

impl Control for Controls {
    fn cache(&self) -> CacheState {
        self.levels.state()
    }

    fn swap(&self, order: SwapOrder) -> Result<mpsc::Receiver<SwapStep>, SwapError> {
        self.swaps.start(order)
    }

    fn rollback(&self, model: &str) -> Result<mpsc::Receiver<SwapStep>, SwapError> {
        self.swaps.rollback(model)
    }

    fn load(&self, order: SwapOrder) -> Result<mpsc::Receiver<SwapStep>, SwapError> {
        self.swaps.load(order)
    }

    fn unload(&self, model: &str) -> Result<mpsc::Receiver<SwapStep>, SwapError> {
        self.swaps.unload(model)
    }

    fn clear_cache(&self) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(async {
            self.levels.clear();
            match &self.levels.shared {
                Some(shared) => shared.clear().await.map_err(|error| error.to_string()),
                None => Ok(()),
            }
        })
    }
}

/// From now on this server and the others tell each other what they know.
fn join(shared: &Shared, core: &Core, catalog: Arc<dyn Catalog>, stop: CancellationToken) {
    let announcing = announce(shared.clone(), catalog);
    let runtime = &core.runtime;
    runtime.task(async move { _ = stop.run_until_cancelled(announcing).await });
    // Without their share, which would keep itself alive.
    let levels = core.levels.alone();
    runtime.task(clear_with_others(levels, shared.cleared()));
}

/// Tells the other servers what fails here, as long as it does. Never ends.
async fn announce(shared: Shared, catalog: Arc<dyn Catalog>) {
    loop {
        let models = catalog.models();
        let failed = models.iter().filter(|model| model.state == "failed");
        let faults = failed.map(|model| Fault {
            model: model.name.to_string(),
            plugin: model.plugin.0.clone(),
            reason: "no worker of its backend is left".to_owned(),
        });
        shared.announce(faults.collect());
        tokio::time::sleep(FAULTS_PERIOD).await;
    }
}

/// The metrics as the edge sees them.
struct Shown(Arc<Metrics>);

impl Exposition for Shown {
    fn text(&self) -> String {
        self.0.text()
    }

    fn series(&self) -> Vec<Series> {
        self.0.series()
    }

    fn reset(&self) {
        self.0.reset();
    }

    fn request(&self, protocol: &'static str, route: &'static str, status: u16, seconds: f64) {
        self.0.request(
            protocol,
            route,
            status,
            Duration::try_from_secs_f64(seconds).unwrap_or_default(),
        );
    }

    fn key(&self, name: &str, outcome: &'static str, n_documents: usize) {
        self.0.key(name, outcome, n_documents);
    }
}

// === impl StartError ===

impl StartError {
    fn other(error: impl fmt::Display) -> Self {
        Self::Other(error.to_string())
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::Other(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for StartError {}
