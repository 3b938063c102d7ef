//! What is read when somebody asks, and not counted as it happens: one row each.

use crate::load::{CacheState, ModelState, Totals};

/// A gauge that is read from a state: name, unit, description, value.
pub(super) type Gauge<State> = (&'static str, &'static str, &'static str, fn(&State) -> f64);

/// Of each model.
pub(super) const GAUGES: [Gauge<ModelState>; 15] = [
    (
        "crossgate.requests_in_flight",
        "",
        "Requests between admission and answer.",
        |model| model.load.requests_in_flight as f64,
    ),
    (
        "crossgate.queue_rows",
        "",
        "Rows that wait for a worker.",
        |model| model.load.queue_rows as f64,
    ),
    (
        "crossgate.queue_tokens",
        "",
        "Tokens that wait for a worker.",
        |model| model.load.queue_tokens as f64,
    ),
    (
        "crossgate.queue_bytes",
        "",
        "Bytes of tokens that wait for a worker, and of texts that are being tokenized.",
        |model| model.load.queue_bytes as f64,
    ),
    (
        "crossgate.queue_time",
        "s",
        "Predicted time until what waits now has been computed.",
        |model| model.load.queue_time.as_secs_f64(),
    ),
    (
        "crossgate.workers",
        "",
        "Workers that can be called.",
        |model| model.load.workers as f64,
    ),
    (
        "crossgate.workers_busy",
        "",
        "Workers that compute at this moment.",
        |model| model.load.workers_busy as f64,
    ),
    (
        "crossgate.workers_stuck",
        "",
        "Workers that have not come back from a batch in time.",
        |model| model.load.workers_stuck as f64,
    ),
    (
        "crossgate.model_generation",
        "",
        "Counts up with every swap of the model.",
        |model| model.generation as f64,
    ),
    (
        "crossgate.model_ready",
        "",
        "1 while the model takes requests.",
        |model| f64::from(model.state == "live"),
    ),
    (
        "crossgate.cost_batch",
        "s",
        "Learned: time of a batch beside its rows.",
        |model| model.load.learned.batch_s,
    ),
    (
        "crossgate.cost_token",
        "s",
        "Learned: time that a token adds to a batch.",
        |model| model.load.learned.token_s,
    ),
    (
        "crossgate.cost_square",
        "s",
        "Learned: time that a squared token of a row adds to a batch.",
        |model| model.load.learned.square_s,
    ),
    (
        "crossgate.pace",
        "",
        "Learned: seconds that pass for each predicted one.",
        |model| model.load.learned.pace,
    ),
    (
        "crossgate.admission_share",
        "",
        "Learned: share of the time before its deadline in which a request must be predicted to be done.",
        |model| model.load.learned.share,
    ),
];

/// A counter that is read from a model's totals: name, description, and for each reason (none where there
/// is but one) its value.
pub(super) type Count = (&'static str, &'static str, &'static [Reason]);
pub(super) type Reason = (Option<&'static str>, fn(&Totals) -> u64);

pub(super) const COUNTS: [Count; 6] = [
    (
        "crossgate.requests_late",
        "Requests that were admitted and had no scores at their deadline.",
        &[(None, |totals| totals.late)],
    ),
    (
        "crossgate.rows_unwanted",
        "Rows computed whose request was gone by then.",
        &[(None, |totals| totals.unwanted)],
    ),
    (
        "crossgate.rows_skipped",
        "Rows that the plugin passed over because their request was gone.",
        &[(None, |totals| totals.skipped)],
    ),
    (
        "crossgate.rows_retried",
        "Rows that were tried again after a fault of the backend.",
        &[(None, |totals| totals.retried)],
    ),
    (
        "crossgate.workers_lost",
        "Workers that did not come back from a batch in time.",
        &[(None, |totals| totals.stuck)],
    ),
    (
        "crossgate.rows_dropped",
        "Rows that left the queue before they were computed, by reason.",
        &[
            (Some("cancelled"), |totals| totals.dropped.cancelled),
            (Some("expired"), |totals| totals.dropped.expired),
            (Some("hopeless"), |totals| totals.dropped.hopeless),
        ],
    ),
];

/// Of the number of plugin images.
pub(super) const HOST_GAUGES: [Gauge<usize>; 1] = [(
    "crossgate.plugin_images",
    "",
    "Plugin images that are mapped; none goes before the process ends.",
    |n_images| *n_images as f64,
)];

/// Of what is kept of scores.
pub(super) const CACHE_GAUGES: [Gauge<CacheState>; 3] = [
    (
        "crossgate.cache_entries",
        "",
        "Pairs whose scores are kept.",
        |cache| cache.entries as f64,
    ),
    (
        "crossgate.cache_size",
        "By",
        "Memory of the kept scores, about.",
        |cache| cache.bytes as f64,
    ),
    (
        "crossgate.cache_flights",
        "",
        "Pairs that are being computed and can be waited for.",
        |cache| cache.flights as f64,
    ),
];
