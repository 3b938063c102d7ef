//! Every setting, in the order in which `--help`, `crossgate config` and `CONFIG.md` show them.

mod cache;
mod distributed;
mod keys;
mod log;
mod plugins;
mod server;
mod worker;

use super::setting::{Kind, Setting, Unit, setting};
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3_600);
const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;

/// Offsets of rows and tokens cross the plugin contract as 32-bit numbers; this leaves room.
const TOKENS_MAX: u64 = 1 << 30;
const ROWS_MAX: u64 = 1 << 24;
const THREADS_MAX: u64 = 4_096;

/// Where the file is named: the one key that a file cannot set.
pub const FILE_KEY: &str = "config.file";

/// The one table: flags, environment, file, defaults and reference are made from it.
pub static SETTINGS: &[Setting] = &[
    setting(
        FILE_KEY,
        "config",
        &["CROSSGATE_CONFIG"],
        Kind::Path,
        "",
        "A YAML file with any of these settings; unset: none is read.",
    )
    .short('c')
    .value_name("FILE.yaml"),
    setting(
        "model.sources",
        "models",
        &["CROSSGATE_MODELS", "MODELS", "MODEL"],
        Kind::List {
            unit: "NAME=SOURCE",
        },
        "starter",
        "Models to serve: `starter`, a folder, or a hub id `org/name[@revision]`; \
         without NAME= the source is the name, and the first one answers requests that name none.",
    )
    .also(&["model"])
    .short('m')
    .value_name("NAME=SOURCE,..."),
    setting(
        "model.backend",
        "backend",
        &["CROSSGATE_BACKEND"],
        Kind::Word,
        "auto",
        "The plugin that computes; auto chooses by model and device.",
    )
    .value_name("PLUGIN"),
    setting(
        "model.dtype",
        "dtype",
        &["CROSSGATE_DTYPE"],
        Kind::Word,
        "auto",
        "The data type to compute in, such as f32, f16, bf16, int8 or int4; auto is the plugin's best.",
    )
    .value_name("DTYPE"),
    setting(
        "model.device",
        "device",
        &["CROSSGATE_DEVICE", "DEVICE_PREFERENCE"],
        Kind::Device,
        "auto",
        "The device to compute on: auto, cpu, cuda (the first GPU), cuda:N, several as cuda:0,1 or cuda:all, or metal (also called mps).",
    ),
    setting(
        "model.max_length",
        "max-length",
        &["CROSSGATE_MAX_LENGTH"],
        Kind::Count {
            unit: "tokens",
            min: 8,
            max: 1 << 20,
        },
        "",
        "The most tokens in a row, special tokens included; unset, or more than the model reads: what the \
         model reads.",
    )
    .also(&["max-sequence-length"]),
    setting(
        "model.activation",
        "activation",
        &["CROSSGATE_ACTIVATION"],
        Kind::Choice(&["auto", "identity", "sigmoid", "softmax"]),
        "auto",
        "What makes scores of logits: auto (as the model declares), identity, sigmoid or softmax.",
    ),
    setting(
        "model.query_prefix",
        "query-prefix",
        &["CROSSGATE_QUERY_PREFIX"],
        Kind::Text { bytes_max: 4_096 },
        "",
        "What stands before every query, spaces at its ends included, for models that were taught with it.",
    ),
    setting(
        "model.document_prefix",
        "document-prefix",
        &["CROSSGATE_DOCUMENT_PREFIX"],
        Kind::Text { bytes_max: 4_096 },
        "",
        "The same before every document that is compared with a query.",
    ),
    setting(
        "model.options",
        "backend-options",
        &["CROSSGATE_BACKEND_OPTIONS"],
        Kind::Json,
        "{}",
        "Options that the plugin defines; in the file also a mapping.",
    ),
    setting(
        "model.cache_dir",
        "cache-dir",
        &["CROSSGATE_CACHE_DIR"],
        Kind::Path,
        "",
        "The folder that keeps downloaded models; unset: the hub's own cache.",
    )
    .value_name("FOLDER"),
    plugins::DIR,
    plugins::IMAGES_MAX,
    plugins::PROBE_MEMORY_MAX,
    plugins::PROBE_TIMEOUT,
    plugins::PROBER,
    plugins::SHA256,
    plugins::WATCH,
    server::HOST,
    server::PORT,
    server::GRPC_PORT,
    server::ADMIN_HOST,
    server::ADMIN_PORT,
    server::ADMIN_SOCKET,
    server::ADMIN_KEY,
    server::ADMIN_KEY_FILE,
    server::API_KEYS,
    server::API_KEY_FILE,
    server::SOCKET,
    server::TLS_CERT,
    server::TLS_KEY,
    server::CORS_ORIGINS,
    server::REQUEST_TIMEOUT,
    server::DRAIN_TIMEOUT,
    server::VOYAGE,
    keys::RATE_MAX,
    keys::RATE_BURST,
    keys::DOCUMENTS_PER_MINUTE,
    keys::DOCUMENTS_PER_DAY,
    setting(
        "intake.body_bytes_max",
        "body-bytes-max",
        &["CROSSGATE_BODY_BYTES_MAX"],
        Kind::Bytes { min: KIB, max: GIB },
        "32MiB",
        "The largest body of a request.",
    ),
    setting(
        "intake.document_bytes_max",
        "document-bytes-max",
        &["CROSSGATE_DOCUMENT_BYTES_MAX"],
        Kind::Bytes { min: 1, max: GIB },
        "256KiB",
        "The largest document; what is longer is refused before it is tokenized.",
    ),
    setting(
        "intake.query_bytes_max",
        "query-bytes-max",
        &["CROSSGATE_QUERY_BYTES_MAX"],
        Kind::Bytes { min: 1, max: GIB },
        "64KiB",
        "The largest query.",
    ),
    setting(
        "intake.documents_max",
        "documents-max",
        &["CROSSGATE_DOCUMENTS_MAX"],
        Kind::Count {
            unit: "documents",
            min: 1,
            max: ROWS_MAX,
        },
        "1000",
        "The most documents in a request.",
    ),
    setting(
        "intake.requests_max",
        "requests-max",
        &["CROSSGATE_REQUESTS_MAX"],
        Kind::Count {
            unit: "requests",
            min: 1,
            max: 1 << 20,
        },
        "1024",
        "The most requests between intake and answer.",
    ),
    setting(
        "intake.bytes_max",
        "intake-bytes-max",
        &["CROSSGATE_INTAKE_BYTES_MAX"],
        Kind::Bytes {
            min: KIB,
            max: 1_024 * GIB,
        },
        "256MiB",
        "The most bytes of bodies held at once.",
    ),
    setting(
        "intake.priority_max",
        "priority-max",
        &["CROSSGATE_PRIORITY_MAX"],
        Kind::Choice(&["high", "normal", "low"]),
        "high",
        "The highest priority that a request may ask for: high, normal or low; what asks for more gets this.",
    ),
    cache::ENABLED,
    cache::COALESCE,
    cache::BYTES_MAX,
    cache::TTL,
    cache::CLEAR_INTERVAL,
    setting(
        "queue.rows_max",
        "queue-rows-max",
        &["CROSSGATE_QUEUE_ROWS_MAX"],
        Kind::Count {
            unit: "rows",
            min: 1,
            max: ROWS_MAX,
        },
        "16384",
        "The most rows that wait in a model's queue.",
    ),
    setting(
        "queue.tokens_max",
        "queue-tokens-max",
        &["CROSSGATE_QUEUE_TOKENS_MAX"],
        Kind::Count {
            unit: "tokens",
            min: 1,
            max: TOKENS_MAX,
        },
        "2097152",
        "The most tokens that wait in a model's queue.",
    ),
    setting(
        "queue.requests_max",
        "queue-requests-max",
        &["CROSSGATE_QUEUE_REQUESTS_MAX", "MAX_QUEUE_SIZE"],
        Kind::Count {
            unit: "requests",
            min: 1,
            max: 1 << 20,
        },
        "1024",
        "The most requests that wait in a model's queue, or are being tokenized for it.",
    )
    .also(&["max-queue-size"]),
    setting(
        "queue.bytes_max",
        "queue-bytes-max",
        &["CROSSGATE_QUEUE_BYTES_MAX"],
        Kind::Bytes {
            min: KIB,
            max: 1_024 * GIB,
        },
        // Four times what tokens_max tokens take: the rest is for texts.
        "64MiB",
        "The most bytes of a model's tokens that wait (8 for each), and of texts that are being tokenized \
         for it.",
    ),
    setting(
        "queue.wait_max",
        "queue-wait-max",
        &["CROSSGATE_QUEUE_WAIT_MAX", "QUEUE_TIMEOUT_SECONDS"],
        Kind::Time {
            unit: Unit::Seconds,
            min: Duration::from_millis(1),
            max: HOUR,
        },
        "",
        "The longest time that a request waits for its first row to be computed: who would wait longer is \
         refused with 429 at once, who did is answered with 503; unset: its deadline alone counts.",
    )
    .also(&["queue-timeout-seconds"]),
    setting(
        "batch.us_max",
        "batch-us-max",
        &["CROSSGATE_BATCH_US_MAX"],
        Kind::Time {
            unit: Unit::Microseconds,
            min: Duration::from_micros(1),
            max: Duration::from_secs(60),
        },
        "10000",
        "The longest time that a batch is predicted to compute, so that a single pair never waits \
         behind a thousand.",
    ),
    setting(
        "batch.rows_max",
        "max-batch-size",
        &["CROSSGATE_MAX_BATCH_SIZE", "BATCH_SIZE"],
        Kind::Count {
            unit: "rows",
            min: 1,
            max: 1 << 16,
        },
        "256",
        "The most rows in a batch.",
    )
    .also(&["batch-size"]),
    setting(
        "batch.tokens_max",
        "max-batch-tokens",
        &["CROSSGATE_MAX_BATCH_TOKENS"],
        Kind::Count {
            unit: "tokens",
            // As model.max_length: a row must fit.
            min: 8,
            max: 1 << 24,
        },
        "8192",
        "The most tokens in a batch; unless max_length is set, longer rows are cut to it.",
    ),
    setting(
        "batch.wait_max",
        "max-wait-time",
        &["CROSSGATE_MAX_WAIT_TIME"],
        Kind::Time {
            unit: Unit::Seconds,
            min: Duration::ZERO,
            max: Duration::from_secs(1),
        },
        // As long as a batch may take: what comes too late for one waits as long for the next.
        "10ms",
        "The longest time that a batch is held back for more rows, since its oldest request came; 0: never.",
    ),
    setting(
        "batch.rows_preferred",
        "preferred-batch-size",
        &["CROSSGATE_PREFERRED_BATCH_SIZE"],
        Kind::Count {
            unit: "rows",
            min: 1,
            max: 1 << 16,
        },
        // As far as a GPU computes short rows in about the time of one.
        "32",
        "A batch of so many rows is not held back for more.",
    ),
    setting(
        "batch.adaptive",
        "adaptive-batching",
        &["CROSSGATE_ADAPTIVE_BATCHING"],
        Kind::Switch,
        "true",
        "Whether a batch is held back only where the learned cost and the arrivals say that it pays; false: \
         until the preferred rows are there, or the time is up.",
    )
    .off(&["disable-adaptive-batching"]),
    setting(
        "threads.total",
        "threads",
        &["CROSSGATE_THREADS"],
        Kind::Count {
            unit: "threads",
            min: 0,
            max: THREADS_MAX,
        },
        "0",
        "Threads that compute, for each model; 0: one for each CPU that the process may use. \
         Several models share the CPUs: name fewer threads where they are busy at the same time.",
    ),
    setting(
        "threads.workers",
        "workers",
        &["CROSSGATE_WORKERS", "MAX_PARALLEL_REQUESTS"],
        Kind::Count {
            unit: "workers",
            min: 0,
            max: THREADS_MAX,
        },
        "0",
        "Backend workers for each model, instead of one for each of threads.total; each computes one batch \
         at a time; 0: as many.",
    )
    .also(&["max-parallel-requests"]),
    setting(
        "threads.tokenizers",
        "tokenizers",
        &["CROSSGATE_TOKENIZERS"],
        Kind::Count {
            unit: "threads",
            min: 0,
            max: THREADS_MAX,
        },
        "0",
        "Threads that tokenize, for all models together; 0: as many as threads.total.",
    ),
    distributed::ENABLED,
    distributed::REDIS_URL,
    distributed::PREFIX,
    distributed::CONNECT_TIMEOUT,
    distributed::OPERATION_TIMEOUT,
    distributed::TTL,
    distributed::WRITE_BYTES_MAX,
    distributed::REQUESTS_MAX,
    distributed::RATE_MAX,
    distributed::RATE_BURST,
    distributed::CLIENT_HEADER,
    worker::TIMEOUT,
    worker::RETRIES_MAX,
    worker::FAULTS_MAX,
    worker::FAULTS_WINDOW,
    log::LEVEL,
    log::FORMAT,
];

/// Titles of the groups, in the table's order.
pub static GROUPS: &[(&str, &str)] = &[
    ("config", "Configuration"),
    ("model", "Models"),
    ("plugins", "Plugins"),
    ("server", "Server"),
    ("keys", "Limits of API keys"),
    ("intake", "Bounds of requests"),
    ("cache", "Cache of scores"),
    ("queue", "Bounds of a queue"),
    ("batch", "Bounds of a batch"),
    ("threads", "Threads"),
    ("worker", "Workers that fail"),
    ("distributed", "Several servers"),
    ("log", "Log"),
];

/// The row of this key.
#[must_use]
pub fn find(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}
