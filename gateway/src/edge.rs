//! Protocols in, [`ScoreRequest`] out, and the way back: the edge translates, the core decides.
//!
//! Nothing but this module knows HTTP, gRPC, JSON and OpenAPI. A dialect is one file: a body that
//! serde reads, a handler that asks [`Edge::score`], an answer that serde writes, and a line in
//! `http.rs` for its routes. Refusals are values ([`wire::Refusal`]) until the outermost layer
//! writes them down, so that one table says what each becomes and every one carries the request's
//! id.

mod admin;
mod answer;
mod body;
mod both;
mod call;
mod canonical;
mod classes;
mod classify;
mod codec;
mod cors;
mod docs;
mod document;
mod fresh;
mod grpc;
mod grpc_health;
mod health;
mod http;
mod json;
mod key;
mod keyring;
mod kserve;
mod layers;
mod listen;
mod metrics;
mod mixedbread;
mod models;
mod nim;
mod one_or_many;
mod overflow;
mod packed;
mod post;
mod predict;
mod problem;
mod quota;
mod rerank;
mod scoring;
mod socket;
mod stream;
mod swap;
mod tally;
mod tei;
mod tls;
mod vllm;
mod voyage;
mod weaviate;
mod wire;
mod words;

pub use admin::{PluginRow, admin};
pub use both::both;
pub use cors::Origins;
pub use docs::openapi;
pub use grpc::grpc;
pub use grpc_health::HealthReport;
pub use http::http;
pub use key::Key;
pub use keyring::Keyring;
pub use listen::{BindError, Connections, Listener, Listening, Patience, Place};
pub use socket::Socket;
pub use tls::{Tls, TlsError};

use crate::control::Control;
use crate::intake::{Door, Pass};
use crate::load::{Catalog, ModelState};
use crate::runtime::now;
use crate::score::{ScoreError, ScoreRequest, ScoreResponse};
use crate::shared::Shared;
use crate::telemetry::metrics::Series;
use axum::http::{Extensions, HeaderMap};
use call::Call;
use listen::Client;
use overflow::Overflow;
use quota::{Account, too_fast};
use std::sync::Arc;
use std::time::Duration;
use tower::ServiceExt as _;
use tower::util::BoxCloneSyncService;
use words::Words;

/// Whoever answers requests for scores.
pub type Core = BoxCloneSyncService<ScoreRequest, ScoreResponse, ScoreError>;

/// What the edge stands on. Each protocol takes one of its own.
#[derive(Clone)]
pub struct Edge {
    /// Answers requests.
    pub core: Core,
    /// Knows what serves.
    pub catalog: Arc<dyn Catalog>,
    /// Does what operators ask for.
    pub control: Arc<dyn Control>,
    /// Bounds how many requests and bytes are inside.
    pub door: Door,
    /// Counts requests, and shows every metric.
    pub metrics: Arc<dyn Exposition>,
    /// Bounds that clients see.
    pub settings: Settings,
    /// What clients must show; `None` for nothing.
    pub keys: Option<Keyring>,
    /// Knows what fails on other servers; `None` where this one is alone.
    pub shared: Option<Shared>,
}

/// Bounds that clients see, and the version.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The largest body or message that is read.
    pub body_bytes_max: usize,
    /// The longest that a request may take; a client may ask for less.
    pub request_timeout: Duration,
    /// This program's version.
    pub version: &'static str,
    /// Documents in one request, as `/info` shows it. The core refuses what exceeds it.
    pub documents_max: usize,
    /// Requests inside at once, as `/info` and `/health` show it.
    pub requests_max: usize,
    /// Tokens that may wait for a model, as `/health` shows it.
    pub queue_tokens_max: usize,
    /// Tokens in one batch, as `/info` shows it.
    pub batch_tokens_max: usize,
    /// Tokenizer threads, as `/info` shows it.
    pub tokenizer_workers: usize,
    /// The header that names the client whose requests are counted; `None` for the connection's address.
    pub client_header: Option<String>,
    /// Whether `/v1/rerank` answers bodies with `documents` as Voyage does.
    pub voyage: bool,
    /// The pages that may ask from a browser.
    pub cors_origins: Origins,
}

/// Where requests are counted and metrics are read.
pub trait Exposition: Send + Sync + 'static {
    /// Every metric, in Prometheus' text format.
    fn text(&self) -> String;

    /// The same as numbers, since they were [reset](Self::reset).
    fn series(&self) -> Vec<Series>;

    /// Numbers count from here on; the text goes on.
    fn reset(&self);

    /// One call has ended. `protocol` is `http`, `grpc` or `admin`; `route` is one of a fixed list;
    /// `status` is HTTP's, or gRPC's code; a client that went away counts as 499, or 1 (cancelled).
    fn request(&self, protocol: &'static str, route: &'static str, status: u16, seconds: f64);

    /// A call of the API key of this name has ended: `ok`, `limited` (by the key's own limits), `refused` or
    /// `failed`; its documents were scored. Without a name: a call that showed no key (`unknown`).
    fn key(&self, _name: &str, _outcome: &'static str, _n_documents: usize) {}
}

// === impl Edge ===

impl Edge {
    /// Before a body is read that announces so many bytes: whether there is room for it, and whether its
    /// client may ask now. Who finds no room has not been counted.
    async fn enter(
        &self,
        (headers, extensions): (&HeaderMap, &Extensions),
        body_bytes: Option<u64>,
    ) -> Result<Pass, ScoreError> {
        let pass = self.door.enter(body_bytes)?;
        let call = extensions.get::<Call>();
        if let Some((call, account)) = call.and_then(|call| Some((call, call.account()?))) {
            let allowed = self.allow(account).await;
            return allowed.map(|()| pass).inspect_err(|_| call.limit());
        }
        if let Some(shared) = &self.shared {
            let named = self.settings.client_header.as_deref();
            let named = named.and_then(|name| headers.get(name));
            let client = match (named, extensions.get::<Client>()) {
                (Some(name), _) => String::from_utf8_lossy(name.as_bytes()).into_owned(),
                (None, Some(Client(address))) => address.to_string(),
                // Nobody came over a connection.
                (None, None) => return Ok(pass),
            };
            shared.allow(&client).await?;
        }
        Ok(pass)
    }

    /// Asks the core; what was cut is refused, where `overflow` says so. Failures are told in the dialect's
    /// `words`.
    async fn ask(
        &self,
        question: ScoreRequest,
        overflow: Overflow,
        words: &Words,
    ) -> Result<ScoreResponse, ScoreError> {
        let answer = async {
            let response = self.score(question).await?;
            overflow.check(&response, self)?;
            Ok(response)
        };
        answer.await.map_err(|error| words.say(error))
    }

    /// The model that has answered; `None` where it has gone meanwhile.
    fn model_of(&self, response: &ScoreResponse) -> Option<ModelState> {
        let mut models = self.catalog.models().into_iter();
        models.find(|model| model.name == response.model)
    }

    /// Whether the bearer of a key may ask now: this server first, then all servers together.
    async fn allow(&self, account: &Account) -> Result<(), ScoreError> {
        account.begin(now())?;
        let Some(shared) = &self.shared else {
            return Ok(());
        };
        // Not the name of any client that shows none.
        let client = format!("key:{}", account.name());
        match account.limits().rate {
            Some(rate) => {
                let why = || too_fast(account.name(), rate);
                shared.allow_at(&client, rate, why).await
            }
            None => shared.allow(&client).await,
        }
    }

    /// Asks the core. An answer has one row for each document, and its numbers are finite: JSON has
    /// no others.
    async fn score(&self, request: ScoreRequest) -> Result<ScoreResponse, ScoreError> {
        let n_documents = request.rows.len();
        let outcome = self.core.clone().oneshot(request).await;
        outcome.and_then(|response| check(response, n_documents))
    }
}

/// One row of finite numbers for each document, or whose fault it is.
fn check(response: ScoreResponse, n_documents: usize) -> Result<ScoreResponse, ScoreError> {
    let n_labels = response.n_labels;
    if n_labels == 0 || response.logits.len() != n_documents * n_labels {
        let n_logits = response.logits.len();
        let why = format!("{n_logits} logits of {n_labels} labels for {n_documents} documents");
        return Err(ScoreError::Internal { why });
    }
    match response.logits.iter().position(|logit| !logit.is_finite()) {
        None => Ok(response),
        Some(idx) => {
            let why = format!("the score of document {} is not a number", idx / n_labels);
            Err(ScoreError::Backend { why })
        }
    }
}
