//! What operators do: the trait by which the admin listener acts.

use crate::load::CacheState;
use crate::score::ScoreError;
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::mpsc;

/// How long what went live is watched unless the order says otherwise.
pub const PROBATION: Duration = Duration::from_secs(60);

/// Whoever can do it.
pub trait Control: Send + Sync + 'static {
    /// What is kept of scores.
    fn cache(&self) -> CacheState;

    /// Forgets all scores that were kept.
    ///
    /// # Errors
    /// Says what could not be cleared; what could has been.
    fn clear_cache(&self) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>>;

    /// Begins to have a model served by something else. What it reaches comes one after the other; the last
    /// step says how it ended. Whoever stops listening does not stop it.
    ///
    /// # Errors
    /// [`SwapError`].
    fn swap(&self, order: SwapOrder) -> Result<mpsc::Receiver<SwapStep>, SwapError>;

    /// Begins to have what served before the last swap serve again, or ends a swap that has not gone live.
    ///
    /// # Errors
    /// [`SwapError`].
    fn rollback(&self, model: &str) -> Result<mpsc::Receiver<SwapStep>, SwapError>;

    /// Begins to load a model that is not there yet, while others serve. Steps come as for a swap.
    ///
    /// # Errors
    /// [`SwapError`].
    fn load(&self, order: SwapOrder) -> Result<mpsc::Receiver<SwapStep>, SwapError>;

    /// Begins to take a model away. What it has admitted is answered first.
    ///
    /// # Errors
    /// [`SwapError`].
    fn unload(&self, model: &str) -> Result<mpsc::Receiver<SwapStep>, SwapError>;
}

/// What a model is to be served by from now on. What is not said stays as it is.
#[derive(Clone, Debug, PartialEq)]
pub struct SwapOrder {
    /// The model's name.
    pub model: String,
    /// A plugin's name, or a file in a folder of plugins.
    pub plugin: Option<String>,
    /// The SHA-256 that the plugin's file must have, in hexadecimal.
    pub sha256: Option<String>,
    /// As plugins spell it.
    pub dtype: Option<String>,
    /// As plugins spell it.
    pub device: Option<String>,
    /// A JSON object of the plugin's own options.
    pub options: Option<String>,
    /// Where the model comes from: another revision, another model.
    pub source: Option<String>,
    /// Other weights may give other scores.
    pub expect_change: bool,
    /// Requests on which it is tried out before it goes live; `None` for none.
    pub shadow: Option<ShadowOrder>,
    /// How long what serves then is watched, and what served before is kept.
    pub probation: Duration,
}

/// Requests on which something is tried out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShadowOrder {
    /// Of all that come, above 0 and at most 1.
    pub share: f64,
    /// How long.
    pub time: Duration,
}

/// What a swap has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwapState {
    /// The plugin's file is there.
    Found,
    /// Files of the model that the plugin needs are being fetched.
    Preparing,
    /// It is what was ordered, and has done its work in a process of its own.
    Verified,
    /// There is no memory for both: what served is gone, requests wait for what is to come.
    Draining,
    /// It is a plugin, and is mapped.
    Loaded,
    /// It has opened the model, and computed.
    Warm,
    /// Its scores are what they should be.
    Proven,
    /// A share of the requests is tried out on it.
    Shadow,
    /// It serves. What served before is kept.
    Live,
    /// It has served through its probation; what served before is gone.
    Confirmed,
    /// The model is gone.
    Unloaded,
    /// What served goes on; where it had ended for want of memory and does not open again, the detail says so.
    Refused,
    /// What served before serves again, or goes on: the swap was ended before it went live.
    RolledBack,
}

/// One step of a swap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwapStep {
    /// What is reached.
    pub state: SwapState,
    /// What there is to say of it: for a refusal why, and what to do.
    pub detail: String,
    /// Since the order.
    pub after: Duration,
}

/// Why a swap does not even begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SwapError {
    /// No such model, or it does not serve yet.
    Model(ScoreError),
    /// Not now: says why.
    NotNow(String),
}

// === impl SwapOrder, SwapState ===

impl SwapOrder {
    /// Nothing is to be changed about this model.
    pub fn of(model: &str) -> Self {
        Self {
            model: model.to_owned(),
            plugin: None,
            sha256: None,
            dtype: None,
            device: None,
            options: None,
            source: None,
            expect_change: false,
            shadow: None,
            probation: PROBATION,
        }
    }
}

impl SwapState {
    /// Every one of them.
    pub const ALL: [Self; 13] = [
        Self::Found,
        Self::Preparing,
        Self::Verified,
        Self::Draining,
        Self::Loaded,
        Self::Warm,
        Self::Proven,
        Self::Shadow,
        Self::Live,
        Self::Confirmed,
        Self::Unloaded,
        Self::Refused,
        Self::RolledBack,
    ];

    /// As operators read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Found => "found",
            Self::Preparing => "preparing",
            Self::Verified => "verified",
            Self::Draining => "draining",
            Self::Loaded => "loaded",
            Self::Warm => "warm",
            Self::Proven => "proven",
            Self::Shadow => "shadow",
            Self::Live => "live",
            Self::Confirmed => "confirmed",
            Self::Unloaded => "unloaded",
            Self::Refused => "refused",
            Self::RolledBack => "rolled_back",
        }
    }

    /// Whether requests are answered by the new generation from here on.
    pub fn is_served(self) -> bool {
        matches!(self, Self::Live | Self::Confirmed)
    }

    /// Whether nothing comes after it.
    pub fn is_last(self) -> bool {
        matches!(
            self,
            Self::Confirmed | Self::Unloaded | Self::Refused | Self::RolledBack
        )
    }
}
