//! Everything that can be set, from what users say to what the program may rely on.
//!
//! One table (`table.rs`) names each setting once. `raw.rs` collects what flags, environment and
//! file say about it, with their origins; [`Config::check`] turns that into values with all bounds
//! and relations kept, or says everything that is wrong. No code beyond this point checks again.

mod check;
pub mod file;
mod keys;
mod nearest;
pub(crate) mod older;
pub mod raw;
mod secret;
pub mod setting;
pub mod show;
pub mod table;
pub mod value;

pub use check::spell_dtype;
pub use keys::{ApiKey, KEYS_MAX, Limits};
pub use secret::Secret;

use crate::score::{Activation, Priority};
use raw::{Origin, Raw};
use setting::Setting;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Invariant: every bound and relation holds. Only [`Config::check`] makes one.
#[derive(Clone, Debug)]
pub struct Config {
    raw: Raw,
    models: Models,
    plugins: Plugins,
    server: Server,
    intake: Intake,
    cache: Cache,
    queue: Queue,
    batch: Batch,
    threads: Threads,
    worker: Worker,
    distributed: Option<Distributed>,
    log: Log,
}

/// Models that one server serves.
pub const MODELS_MAX: usize = 64;

/// What is served, and how its backend is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Models {
    /// At least one; names differ. The first answers requests that name none.
    pub sources: Vec<NamedSource>,
    /// A plugin's name; `None` to choose by model and device.
    pub backend: Option<String>,
    /// As plugins spell it: `auto`, `f32`, `f16`, `bf16`, `int8`, `int4`, or a name of their own.
    pub dtype: String,
    /// As plugins spell it: `auto`, `cpu`, `cuda`, `cuda:1`, `cuda:0,1`, `cuda:all`, `metal`.
    pub device: String,
    /// The most tokens in a row; `None` for what the model allows.
    pub max_length: Option<usize>,
    /// `None` for what the model declares.
    pub activation: Option<Activation>,
    /// Before every query; may be empty.
    pub query_prefix: String,
    /// Before every document of a query; may be empty.
    pub document_prefix: String,
    /// A JSON object of the plugin's own options.
    pub options: String,
    /// Where downloads are kept; `None` for the hub's own cache.
    pub cache_dir: Option<PathBuf>,
}

/// One model to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedSource {
    /// What requests call it.
    pub name: String,
    /// Where it comes from, as the user wrote it.
    pub source: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plugins {
    /// Empty for the folder of the program.
    pub dirs: Vec<PathBuf>,
    /// Images in one process.
    pub images_max: usize,
    /// Whether files that arrive are swapped to.
    pub watch: bool,
    /// What tries new plugins out; `None` for this program.
    pub prober: Option<PathBuf>,
    /// For trying one out.
    pub probe_timeout: Duration,
    /// Bytes of memory that one may take when it is tried out; `None` for what is available.
    pub probe_memory_max: Option<u64>,
    /// SHA-256 of the files that may be loaded, in lower-case hexadecimal; empty for any.
    pub sha256: Vec<String>,
}

/// Where the server listens and how long things may take. Port 0 is any free port. Operators who are listened
/// to elsewhere than on loopback or a socket show a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// An IP address, without brackets, or a host name; for HTTP and gRPC.
    pub host: String,
    pub port: u16,
    pub grpc_port: u16,
    pub admin_host: String,
    pub admin_port: u16,
    /// Where operators are listened to instead of `admin_host` and `admin_port`.
    pub admin_socket: Option<PathBuf>,
    /// What operators must show; at most one of it and `admin_key_file`. [`Config::admin_key`] reads either.
    pub admin_key: Option<Secret>,
    pub admin_key_file: Option<PathBuf>,
    /// What clients must show; none, and no file, for nothing. [`Config::api_keys`] reads both.
    pub api_keys: Vec<ApiKey>,
    pub api_key_file: Option<PathBuf>,
    /// Of keys that name none of their own.
    pub key_limits: Limits,
    /// A certificate and its key, in PEM; `None` for no TLS. For HTTP and gRPC.
    pub tls: Option<TlsFiles>,
    /// Where HTTP and gRPC listen, too.
    pub socket: Option<PathBuf>,
    /// Origins of the pages that may ask from a browser; `None` for any, empty for none.
    pub cors_origins: Option<Vec<String>>,
    /// For requests without a deadline of their own.
    pub request_timeout: Duration,
    /// From the signal to stop until what is left is abandoned.
    pub drain_timeout: Duration,
    /// Whether `/v1/rerank` speaks Voyage's dialect.
    pub voyage: bool,
}

/// Files in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, and those that vouch for it.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Bounds of requests: document_bytes_max, query_bytes_max ≤ body_bytes_max ≤ bytes_max.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intake {
    pub body_bytes_max: usize,
    pub document_bytes_max: usize,
    pub query_bytes_max: usize,
    pub documents_max: usize,
    /// Requests between intake and answer.
    pub requests_max: usize,
    /// Bodies held at once.
    pub bytes_max: usize,
    /// What is more urgent is lowered to it.
    pub priority_max: Priority,
}

/// What is kept of scores, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Whether pairs that were scored are kept.
    pub is_enabled: bool,
    /// Whether equal pairs that are asked for at the same time are computed once.
    pub coalesces: bool,
    /// In memory.
    pub bytes_max: u64,
    pub ttl: Duration,
    /// Between two times at which everything is forgotten.
    pub clear_interval: Option<Duration>,
}

/// Bounds of a model's queue: a request of documents_max rows has room in an empty one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    pub rows_max: usize,
    pub tokens_max: usize,
    pub requests_max: usize,
    /// Tokens of what waits, and texts of what is being tokenized.
    pub bytes_max: usize,
    /// Until a request's first row is cut; `None` for until its deadline. Not below `Batch::wait_max`.
    pub wait_max: Option<Duration>,
}

/// Bounds of a batch: a row of max_length fits. Where that is unset, rows are cut to tokens_max.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Predicted microseconds.
    pub us_max: u64,
    pub rows_max: usize,
    pub tokens_max: usize,
    /// For which a batch may be held back.
    pub wait_max: Duration,
    /// A batch of so many rows is not held back; at most `rows_max`.
    pub rows_preferred: usize,
    /// Whether batches are held back only where that pays.
    pub is_adaptive: bool,
}

/// What becomes of a worker's batch that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worker {
    /// For one batch.
    pub timeout: Duration,
    /// After the first try.
    pub retries_max: usize,
    /// Batches that may fail within `faults_window`.
    pub faults_max: usize,
    /// See `faults_max`.
    pub faults_window: Duration,
}

/// Numbers of threads as said; [`Threads::resolve`] replaces the zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threads {
    /// Threads that compute for each model; 0 for one per CPU.
    pub total: usize,
    /// Backend workers for each model, each a thread; 0 for `total`.
    pub workers: usize,
    /// Threads that tokenize; 0 for as many as compute.
    pub tokenizers: usize,
}

/// What several servers do together, through a Redis or Valkey.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distributed {
    pub redis_url: RedisUrl,
    /// Begins every key.
    pub prefix: String,
    pub connect_timeout: Duration,
    pub operation_timeout: Duration,
    /// Of a value, at most.
    pub ttl: Duration,
    /// That wait to be written.
    pub write_bytes_max: usize,
    /// Requests that all servers compute at once; `None` for any number.
    pub requests_max: Option<u32>,
    /// Of each client; `None` for any.
    pub rate: Option<Rate>,
    /// The header that names the client; `None` for its address.
    pub client_header: Option<String>,
}

/// How many requests one client may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub per_second: u32,
    /// At once, after a rest.
    pub burst: u32,
}

/// May hold a password, so that it does not show itself.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl(String);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// A level, or directives by target.
    pub filter: String,
    pub is_json: bool,
}

/// Everything that is wrong, a sentence each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(Vec<String>);

// === impl Config ===

impl Config {
    /// Reads what was said as values and checks their bounds and relations. The error names every
    /// offending key with its value, who said it and what is expected.
    pub fn check(raw: &Raw) -> Result<Self, ConfigError> {
        check::check(raw).map_err(ConfigError)
    }

    /// The defaults, and for these keys these texts, as if flags had given them.
    pub fn of(settings: &[(&str, &str)]) -> Result<Self, ConfigError> {
        let mut raw = Raw::defaults();
        for (key, text) in settings {
            let Some(setting) = table::find(key) else {
                return Err(ConfigError(vec![raw::no_such_key(key)]));
            };
            raw.say(setting.key, *text, Origin::Flag(setting.flag));
        }
        Self::check(&raw)
    }

    /// For what only shows later, such as a port that is taken: the key, its value, who said it,
    /// `why` it cannot be, and the ways to change it.
    #[must_use]
    pub fn refuse(&self, key: &str, why: impl fmt::Display) -> ConfigError {
        let ways = table::find(key).map(Setting::ways).unwrap_or_default();
        let said = self.raw.said(key);
        ConfigError(vec![format!("{said}: {why}; change it with {ways}")])
    }

    /// What operators must show; `None` for nothing.
    ///
    /// # Errors
    /// A file of the key that cannot be read, or that holds none.
    pub fn admin_key(&self) -> Result<Option<Secret>, ConfigError> {
        match &self.server.admin_key_file {
            None => Ok(self.server.admin_key.clone()),
            Some(path) => Secret::read(path)
                .map(Some)
                .map_err(|why| self.refuse("server.admin_key_file", why)),
        }
    }

    /// What clients must show: keys that were named, and those of the file as it is now; none for nothing.
    ///
    /// # Errors
    /// A file of keys that cannot be read, or makes no sense.
    pub fn api_keys(&self) -> Result<Vec<ApiKey>, ConfigError> {
        let server = &self.server;
        let mut entries = keys::Entries::new(server.key_limits, server.api_keys.clone());
        if let Some(path) = &server.api_key_file {
            let added = entries.add_file(path);
            added.map_err(|why| self.refuse("server.api_key_file", why))?;
        }
        Ok(entries.keys())
    }

    /// What became of variables of older deployments, a sentence each for the log.
    #[must_use]
    pub fn notices(&self) -> &[String] {
        self.raw.notices()
    }

    /// What is served, and how its backend is opened.
    #[must_use]
    pub fn models(&self) -> &Models {
        &self.models
    }

    /// Where plugins are looked for.
    #[must_use]
    pub fn plugins(&self) -> &Plugins {
        &self.plugins
    }

    /// Addresses and times.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Bounds of requests.
    #[must_use]
    pub fn intake(&self) -> &Intake {
        &self.intake
    }

    /// What is kept of scores.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Bounds of a model's queue.
    #[must_use]
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Bounds of a batch.
    #[must_use]
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// Numbers of threads.
    #[must_use]
    pub fn threads(&self) -> Threads {
        self.threads
    }

    /// What becomes of a batch that fails.
    #[must_use]
    pub fn worker(&self) -> Worker {
        self.worker
    }

    /// What several servers do together; `None` where each is alone.
    #[must_use]
    pub fn distributed(&self) -> Option<&Distributed> {
        self.distributed.as_ref()
    }

    /// What is logged, and how.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.log
    }
}

// === impl RedisUrl ===

impl RedisUrl {
    /// As somebody wrote it, for whoever connects.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }

    /// With its password; not for eyes.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&value::hide_password(&self.0))
    }
}

// === impl Threads ===

impl Threads {
    /// Replaces zeros on a machine where the process may use `n_cpus`. No number stays 0.
    #[must_use]
    pub fn resolve(self, n_cpus: usize) -> Self {
        let or = |said: usize, otherwise| if said == 0 { otherwise } else { said };
        let total = or(self.total, n_cpus.max(1));
        Self {
            total,
            workers: or(self.workers, total),
            tokenizers: or(self.tokenizers, total),
        }
    }
}

// === impl ConfigError ===

impl ConfigError {
    pub(crate) fn new(sentences: Vec<String>) -> Self {
        Self(sentences)
    }

    /// What is wrong, a sentence each; at least one.
    #[must_use]
    pub fn sentences(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for ConfigError {}
