//! What stands behind the edge: the stages from intake to the queue, and what loads their models. Serving
//! puts ports before it; measuring calls it directly, so that both run the same code.

use super::models::Loader;
use super::plugins::{check_backend, check_plugin_dirs, scan};
use super::swap::Swaps;
use super::{StartError, bounds, sources};
use crate::admit::Admit;
use crate::cache::{Board, Cache, Levels, Store};
use crate::config::{Config, Threads};
use crate::generation::{Generation, Slots};
use crate::host::Host;
use crate::intake::Intake;
use crate::model::{Source, hub};
use crate::runtime::Runtime;
use crate::shared::Shared;
use crate::telemetry::Metrics;
use crate::tokenize::{Pool, Tokenize};
use crate::windows::Window;
use std::sync::Arc;

/// Jobs that may wait for a tokenizer thread; each is one request's.
const TOKENIZER_JOBS_MAX: usize = 1_024;

/// The whole way of a request but the edge.
pub(crate) struct Core {
    /// Where requests come in.
    pub(crate) intake: Intake<Window<Cache>>,
    /// The tokenizer threads, of all models.
    pub(crate) pool: Arc<Pool>,
    /// The models' places; empty until they are [loaded](Self::load).
    pub(crate) slots: Arc<Slots>,
    /// Where pairs are looked for before they are computed.
    pub(crate) levels: Levels,
    /// Every instrument.
    pub(crate) metrics: Arc<Metrics>,
    /// The plugins.
    pub(crate) host: Arc<Host>,
    /// Starts threads and tasks.
    pub(crate) runtime: Runtime,
    /// What this server knows together with others; `None` where it is alone.
    pub(crate) shared: Option<Shared>,
    /// How many threads there are for what; none is 0.
    pub(crate) threads: Threads,
    loader: Arc<Loader>,
    sources: Vec<Source>,
}

impl Core {
    /// Everything but the models. Tasks go to the runtime that calls; `hub` is where models are fetched
    /// from.
    ///
    /// # Errors
    /// A value that turns out wrong, or a system without more threads.
    pub(crate) fn new(
        config: &Config,
        hub: hub::Settings,
        reuse: Reuse,
    ) -> Result<Self, StartError> {
        let threads = config.threads();
        let runtime = Runtime::new(tokio::runtime::Handle::current(), threads.total);
        let threads = threads.resolve(runtime.n_threads());
        let sources = sources(config)?;
        check_plugin_dirs(config).map_err(StartError::Config)?;
        let host = Arc::new(scan(config, &hub)?);
        check_backend(config, &host)?;
        let metrics = Metrics::new().map_err(StartError::Other)?;
        let share = |settings| {
            let shared = Shared::start(settings, &runtime, &metrics);
            let refuse = |why| config.refuse("distributed.redis_url", why);
            shared.map_err(|why| StartError::Config(refuse(why)))
        };
        let distributed = config
            .distributed()
            .filter(|_| reuse == Reuse::AsConfigured);
        let shared = distributed.map(share).transpose()?;
        let levels = match reuse {
            Reuse::AsConfigured | Reuse::Alone => levels(config, shared.clone()),
            Reuse::Never => Levels::default(),
        };
        let pool = Pool::start(&runtime, threads.tokenizers, TOKENIZER_JOBS_MAX)
            .map_err(StartError::Other)?;
        let pool = Arc::new(pool);
        let names = config.models().sources.iter();
        let slots = Arc::new(Slots::new(names.map(|named| named.name.as_str().into())));
        let way = |levels: Levels, shared: Option<Shared>| {
            let (admit, tokenize) = (Admit::new(shared), Tokenize::new(Arc::clone(&pool)));
            let cache = Cache::new(levels, admit, tokenize, runtime.clone());
            let rows_max = config.queue().rows_max;
            Window::new(cache, rows_max, threads.tokenizers, runtime.clone())
        };
        let intake = Intake::new(
            Arc::clone(&slots),
            bounds(config),
            way(levels.clone(), shared.clone()),
            way(Levels::default(), None),
            runtime.clone(),
        );
        let loader = Arc::new(Loader {
            config: config.clone(),
            host: Arc::clone(&host),
            hub,
            runtime: runtime.clone(),
            metrics: Arc::clone(&metrics),
            threads,
        });
        Ok(Self {
            intake,
            pool,
            slots,
            levels,
            metrics,
            host,
            runtime,
            shared,
            threads,
            loader,
            sources,
        })
    }

    /// What replaces models while they serve.
    pub(super) fn swaps(&self) -> Swaps {
        Swaps::new(
            Arc::clone(&self.loader),
            Arc::clone(&self.slots),
            self.levels.clone(),
            self.runtime.clone(),
        )
    }

    /// Loads every model on a thread of its own, and publishes each as soon as it is warm.
    pub(crate) fn load(self) -> tokio::task::JoinHandle<Result<(), StartError>> {
        let Self {
            loader,
            sources,
            slots,
            runtime,
            ..
        } = self;
        runtime.blocking(move || loader.load_all(sources, &slots))
    }

    /// Loads the first model, and waits until it serves.
    ///
    /// # Errors
    /// That of loading it.
    pub(crate) async fn load_first(self) -> Result<Arc<Generation>, StartError> {
        let slots = Arc::clone(&self.slots);
        self.load()
            .await
            .unwrap_or_else(|error| Err(StartError::Other(format!("loading failed: {error}"))))?;
        let live = slots.live(None);
        live.map_err(|error| StartError::Other(error.to_string()))
    }
}

/// Whether scores may be used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// In the levels that are configured.
    AsConfigured,
    /// In those of this process; others are not asked, and keep their share of what is bounded together.
    Alone,
    /// Every request is computed.
    Never,
}

fn levels(config: &Config, shared: Option<Shared>) -> Levels {
    let cache = config.cache();
    Levels {
        store: cache
            .is_enabled
            .then(|| Store::new(cache.bytes_max, cache.ttl)),
        board: cache.coalesces.then(Arc::<Board>::default),
        shared,
    }
}
