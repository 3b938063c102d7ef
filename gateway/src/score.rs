//! The nouns of a request: what is asked, what is answered, what can go wrong. No serde, no HTTP.

mod text;

pub use text::{Form, Side, Texts, text_bytes};

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A model takes some seconds to load.
const NO_MODEL_RETRY_AFTER: Duration = Duration::from_secs(2);

/// What a client asks: scores for rows of texts.
#[derive(Clone, Debug)]
pub struct ScoreRequest {
    /// Names the request in logs and in its answer.
    pub id: RequestId,
    /// A name from `--models`; `None` for the first model.
    pub model: Option<String>,
    /// Scored in this order.
    pub rows: Vec<Texts>,
    /// How they become rows of tokens.
    pub form: Form,
    /// When the answer is of no use any more.
    pub deadline: Instant,
    /// How urgent it is among others.
    pub priority: Priority,
}

/// How urgent a request is: its weight in the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// After others, and still served.
    Low,
    /// What a request is that says nothing.
    #[default]
    Normal,
    /// Before others.
    High,
}

/// What is answered: for each row its logits, in the request's order. Rows count as documents.
#[derive(Clone, Debug)]
pub struct ScoreResponse {
    /// The model's name, as configured.
    pub model: Arc<str>,
    /// rows × labels logits.
    pub logits: Vec<f32>,
    /// Logits for each row.
    pub n_labels: usize,
    /// What turns logits into what clients see.
    pub activation: Activation,
    /// Tokens that the model saw, special tokens included. Those of a document in windows count once, as if
    /// it had fitted.
    pub n_tokens: u64,
    /// Documents that were read in several windows: their indices, and how many windows.
    pub windows: Vec<(u32, u32)>,
    /// Indices of documents that were cut to the model's length.
    pub truncated: Vec<u32>,
    /// Whether the query itself was cut.
    pub query_truncated: bool,
    /// Where the time went.
    pub times: Times,
}

/// A stage's answer on its way. Dropping it stops everything that works on it.
pub type Answer = Pin<Box<dyn Future<Output = Result<ScoreResponse, ScoreError>> + Send>>;

/// How a model's logits become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// The logit itself.
    Identity,
    /// 1 / (1 + e^-x), label by label.
    Sigmoid,
    /// e^x / Σ e^x over the labels.
    Softmax,
}

/// Where a request's time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Waiting for a tokenizer thread and tokenizing.
    pub tokenize: Duration,
    /// From the queue's door until the last row was cut into a batch.
    pub queue: Duration,
    /// The longest batch that held one of the request's rows.
    pub inference: Duration,
}

/// A request's name: the client's own or one made here. At most 128 visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(Arc<str>);

/// Why a request has no scores. Each variant has one line in `edge/wire.rs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScoreError {
    /// The request makes no sense as it stands; `param` names the field (and index).
    Invalid {
        /// The field, with an index where there is one: `documents[3]`.
        param: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// Larger than a bound that the server has.
    TooLarge {
        /// The field, with an index where there is one.
        param: String,
        /// The size found, the bound's name and value.
        why: String,
    },
    /// No model of this name.
    UnknownModel {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// No room, or no way to be in time: come back later.
    Overloaded {
        /// Why it was refused.
        why: String,
        /// When there should be room.
        retry_after: Duration,
    },
    /// Starting up or shutting down, or the model is being replaced.
    Unavailable {
        /// Which of them.
        why: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// The deadline passed first.
    DeadlinePassed {
        /// How long the request had.
        after: Duration,
    },
    /// The backend failed.
    Backend {
        /// The plugin's own words, or ours about its answer.
        why: String,
    },
    /// The client went away; nobody reads this.
    Cancelled,
    /// A mistake of ours.
    Internal {
        /// For the log.
        why: String,
    },
}

// === impl ScoreRequest ===

impl ScoreRequest {
    /// Bytes of all texts, each once.
    pub fn text_bytes(&self) -> usize {
        text_bytes(&self.rows)
    }

    /// The first row's query; empty where there is none.
    pub fn query(&self) -> &str {
        self.rows.first().map_or("", Texts::query)
    }
}

// === impl Priority ===

impl Priority {
    /// From its name, in any case.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::High, Self::Normal, Self::Low]
            .into_iter()
            .find(|priority| text.trim().eq_ignore_ascii_case(priority.name()))
    }

    /// The name in requests and configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }
}

// === impl ScoreResponse ===

impl ScoreResponse {
    /// One score for each document: the first label's, through the activation unless `raw`.
    ///
    /// A reranker has one label; of a classifier with several, the last is the relevant one by the
    /// convention of NLI-style rerankers, but no rule says so: the first label is what peers answer.
    pub fn scores(&self, raw: bool) -> Vec<f32> {
        self.scores_by(self.activation_unless(raw))
    }

    /// The same through another activation.
    pub fn scores_by(&self, activation: Activation) -> Vec<f32> {
        let rows = self.logits.chunks_exact(self.n_labels);
        rows.map(|logits| activation.apply(logits)[0]).collect()
    }

    /// What makes scores of its logits: nothing where these are wanted `raw`.
    pub fn activation_unless(&self, raw: bool) -> Activation {
        match raw {
            true => Activation::Identity,
            false => self.activation,
        }
    }
}

/// Indices of `scores` by falling score; equal scores keep their order.
pub fn ranking(scores: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order
}

// === impl Activation ===

impl Activation {
    /// Scores of one row's logits.
    pub fn apply(self, logits: &[f32]) -> Vec<f32> {
        match self {
            Self::Identity => logits.to_vec(),
            Self::Sigmoid => logits.iter().map(|&x| sigmoid(x)).collect(),
            Self::Softmax => softmax(logits),
        }
    }

    /// From a name or a Python path: `sigmoid`, `torch.nn.modules.activation.Sigmoid`.
    pub fn parse(text: &str) -> Option<Self> {
        let class = text
            .rsplit('.')
            .next()
            .unwrap_or(text)
            .trim_end_matches("()");
        [Self::Identity, Self::Sigmoid, Self::Softmax]
            .into_iter()
            .find(|activation| class.eq_ignore_ascii_case(activation.name()))
    }

    /// The name in `/models` and configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Sigmoid => "sigmoid",
            Self::Softmax => "softmax",
        }
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    // Less the largest, so that no exponential overflows.
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = logits.iter().map(|&x| (x - max).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

// === impl Times ===

impl Times {
    /// The longer of each.
    pub fn max(self, other: Self) -> Self {
        Self {
            tokenize: self.tokenize.max(other.tokenize),
            queue: self.queue.max(other.queue),
            inference: self.inference.max(other.inference),
        }
    }
}

// === impl RequestId ===

impl RequestId {
    /// The client's name for the request, if it is fit to be repeated in headers and logs.
    pub fn given(text: &str) -> Option<Self> {
        let fit =
            (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        fit.then(|| Self(text.into()))
    }

    /// A new random name.
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4().to_string().into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl ScoreError ===

impl ScoreError {
    /// A field that makes no sense.
    pub fn invalid(param: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid {
            param: param.into(),
            why: why.into(),
        }
    }

    /// A request names no model, and there is none to be the first.
    pub fn no_model() -> Self {
        Self::Unavailable {
            why: "no model is loaded; wait for GET /readyz".to_owned(),
            retry_after: NO_MODEL_RETRY_AFTER,
        }
    }

    /// The outcome's name in metrics and logs.
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "invalid",
            Self::TooLarge { .. } => "too_large",
            Self::UnknownModel { .. } => "unknown_model",
            Self::Overloaded { .. } => "overloaded",
            Self::Unavailable { .. } => "unavailable",
            Self::DeadlinePassed { .. } => "deadline_passed",
            Self::Backend { .. } => "backend",
            Self::Cancelled => "cancelled",
            Self::Internal { .. } => "internal",
        }
    }
}

impl fmt::Display for ScoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid { param, why } | Self::TooLarge { param, why } => {
                write!(f, "{param}: {why}")
            }
            Self::UnknownModel { known, .. } if known.is_empty() => {
                f.write_str("there is no model here: none is loaded")
            }
            Self::UnknownModel { name, known } => {
                write!(
                    f,
                    "there is no model {name:?} here; there is {}",
                    known.join(", ")
                )
            }
            Self::Overloaded { why, retry_after } => {
                write!(f, "{why}; try again in {} s", retry_after.as_secs().max(1))
            }
            Self::Unavailable { why, .. } | Self::Internal { why } => f.write_str(why),
            Self::DeadlinePassed { after } => {
                write!(
                    f,
                    "not done within {:.3} s; send fewer documents or allow more time",
                    after.as_secs_f64()
                )
            }
            Self::Backend { why } => write!(f, "the backend failed: {why}"),
            Self::Cancelled => f.write_str("the client went away"),
        }
    }
}

impl std::error::Error for ScoreError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_keep_their_order() {
        assert_eq!(ranking(&[0.5, 2.0, 0.5, -1.0, 2.0]), [1, 4, 0, 2, 3]);
    }

    #[test]
    fn activations() {
        assert_eq!(Activation::Identity.apply(&[3.0]), [3.0]);
        assert_eq!(Activation::Sigmoid.apply(&[0.0, -200.0]), [0.5, 0.0]);
        // Large logits do not overflow.
        assert_eq!(Activation::Softmax.apply(&[1000.0, 1000.0]), [0.5, 0.5]);
    }

    #[test]
    fn request_ids_that_could_break_a_header_are_not_taken() {
        assert!(RequestId::given("abc-1").is_some());
        for bad in ["", "a b", "a\nb", "é", &"x".repeat(129)] {
            assert!(RequestId::given(bad).is_none(), "{bad:?}");
        }
    }
}
