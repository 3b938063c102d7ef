//! What serves and how busy it is: read-only snapshots, for health, admission and metrics.

use crate::score::{Activation, ScoreError};
use backend_api::DeviceState;
use std::ops::AddAssign;
use std::sync::Arc;
use std::time::Duration;

/// Whoever knows the models that serve. Never waits behind inference.
pub trait Catalog: Send + Sync + 'static {
    /// Every model, in configured order.
    fn models(&self) -> Vec<ModelState>;

    /// What keeps the server from taking requests; empty when it is ready.
    fn not_ready(&self) -> Vec<String>;

    /// A text as the first model's tokenizer reads it, with what it puts around texts if `special`. Takes a
    /// while for a long text.
    ///
    /// # Errors
    /// `Unavailable` where no model serves, and `Internal` for the tokenizer's own.
    fn encode(&self, text: &str, special: bool) -> Result<Vec<Piece>, ScoreError>;

    /// The text of the first model's tokens, without those around texts if `plain`. Ids that stand for
    /// nothing are passed over.
    ///
    /// # Errors
    /// As of [`encode`](Self::encode).
    fn decode(&self, ids: &[u32], plain: bool) -> Result<String, ScoreError>;
}

/// One token of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its number in the vocabulary.
    pub id: u32,
    /// What it stands for: a piece of the text, or its own name where it stands for none.
    pub text: String,
    /// From where to where it stands in the text, in characters; `None` where it was put around it.
    pub place: Option<(usize, usize)>,
}

/// One model as it serves.
#[derive(Clone, Debug)]
pub struct ModelState {
    /// As configured: what requests name.
    pub name: Arc<str>,
    /// Where it came from, as the user wrote it.
    pub source: String,
    /// Hub commit, or empty.
    pub revision: String,
    /// The class in `config.json`.
    pub architecture: String,
    /// Label names in the logits' order.
    pub labels: Vec<String>,
    /// What turns logits into scores.
    pub activation: Activation,
    /// Parameters, from the weights' headers.
    pub num_parameters: Option<u64>,
    /// Tokens that one row may have, special tokens included.
    pub row_tokens_max: usize,
    /// The plugin's name and version.
    pub plugin: (String, String),
    /// The SHA-256 of the plugin's file.
    pub image: String,
    /// Why this plugin.
    pub chosen: String,
    /// The device in use.
    pub device: String,
    /// The arithmetic in use.
    pub dtype: String,
    /// The kernel in use.
    pub kernel: String,
    /// Equal ids promise equal scores.
    pub numerics_id: String,
    /// Counts up with every swap, from 1.
    pub generation: u64,
    /// What its scores were compared with, and how they agreed; `None` if they were not.
    pub proof: Option<String>,
    /// `live`, `failing`, `draining`, `failed`.
    pub state: &'static str,
    /// How busy it is.
    pub load: Load,
    /// How its devices do, as its backend told last; none if it tells nothing, or does not come back.
    pub devices: Arc<[DeviceState]>,
    /// What it and those before it have done since the start.
    pub totals: Totals,
    /// What the last swap of it has reached; `None` if there was none.
    pub last_swap: Option<LastSwap>,
}

/// What a swap has reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastSwap {
    /// One of `SwapState`'s names.
    pub state: &'static str,
    /// What there is to say of it: for a refusal why.
    pub detail: String,
}

/// How busy a generation is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Requests between intake and answer.
    pub requests_in_flight: usize,
    /// Rows that wait in the queue.
    pub queue_rows: usize,
    /// Tokens that wait in the queue.
    pub queue_tokens: usize,
    /// Bytes of tokens that wait, and of texts that are being tokenized.
    pub queue_bytes: usize,
    /// Predicted time until what waits now has been computed, over all workers.
    pub queue_time: Duration,
    /// Workers that can be called.
    pub workers: usize,
    /// Workers that compute at this moment.
    pub workers_busy: usize,
    /// Workers that have not come back from a batch in time.
    pub workers_stuck: usize,
    /// What predictions are made of.
    pub learned: Learned,
}

/// What a generation has learned about time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Learned {
    /// Seconds of a batch beside its rows.
    pub batch_s: f64,
    /// Seconds of a token.
    pub token_s: f64,
    /// Seconds of a squared token of a row.
    pub square_s: f64,
    /// Seconds that pass for each predicted one.
    pub pace: f64,
    /// Share of the time before its deadline in which a request must be predicted to be done.
    pub share: f64,
}

/// What a generation has done since it went live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests answered, well or not.
    pub requests: u64,
    /// Requests that were admitted and had no scores at their deadline.
    pub late: u64,
    /// Batches computed.
    pub batches: u64,
    /// Rows computed.
    pub rows: u64,
    /// Tokens computed.
    pub tokens: u64,
    /// Rows of each batch times its longest row: the tokens of the rectangles that a backend which pads
    /// would compute.
    pub rectangle_tokens: u64,
    /// Time spent in the backend, over all workers.
    pub inference: Duration,
    /// Rows computed whose request was gone by then.
    pub unwanted: u64,
    /// Rows that the backend passed over because their request was gone.
    pub skipped: u64,
    /// Rows that were tried again, once for each try.
    pub retried: u64,
    /// Workers that did not come back from a batch in time.
    pub stuck: u64,
    /// Batches that the backend failed.
    pub faults: u64,
    /// Rows that were not given to the backend.
    pub dropped: Dropped,
}

/// Rows that left the queue before they were computed, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Nobody waited for them any more.
    pub cancelled: u64,
    /// Their request's deadline, or its time in the queue, had passed.
    pub expired: u64,
    /// They would not have been done in time.
    pub hopeless: u64,
}

/// Where a request's pairs came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origins {
    /// The first level.
    pub hit: usize,
    /// The second level.
    pub hit_distributed: usize,
    /// A flight that was under way.
    pub coalesced: usize,
    /// Computed for this request.
    pub miss: usize,
}

/// What is kept of scores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheState {
    /// Whether anything is.
    pub is_enabled: bool,
    /// Pairs.
    pub entries: u64,
    /// Their bytes in memory, about.
    pub bytes: u64,
    /// Pairs that are being computed and can be waited for.
    pub flights: usize,
}

// === impl Totals ===

impl Totals {
    /// What was done after `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            requests: self.requests - before.requests,
            late: self.late - before.late,
            batches: self.batches - before.batches,
            rows: self.rows - before.rows,
            tokens: self.tokens - before.tokens,
            rectangle_tokens: self.rectangle_tokens - before.rectangle_tokens,
            inference: self.inference.saturating_sub(before.inference),
            unwanted: self.unwanted - before.unwanted,
            skipped: self.skipped - before.skipped,
            retried: self.retried - before.retried,
            stuck: self.stuck - before.stuck,
            faults: self.faults - before.faults,
            dropped: Dropped {
                cancelled: self.dropped.cancelled - before.dropped.cancelled,
                expired: self.dropped.expired - before.dropped.expired,
                hopeless: self.dropped.hopeless - before.dropped.hopeless,
            },
        }
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        let Self {
            requests,
            late,
            batches,
            rows,
            tokens,
            rectangle_tokens,
            inference,
            unwanted,
            skipped,
            retried,
            stuck,
            faults,
            dropped,
        } = other;
        self.requests += requests;
        self.late += late;
        self.batches += batches;
        self.rows += rows;
        self.tokens += tokens;
        self.rectangle_tokens += rectangle_tokens;
        self.inference += inference;
        self.unwanted += unwanted;
        self.skipped += skipped;
        self.retried += retried;
        self.stuck += stuck;
        self.faults += faults;
        self.dropped.cancelled += dropped.cancelled;
        self.dropped.expired += dropped.expired;
        self.dropped.hopeless += dropped.hopeless;
    }
}
