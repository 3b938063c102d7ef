//! The models that serve: in our own shape and in OpenAI's.

use super::Edge;
use super::answer::json;
use super::problem::{ErrorAnswer, Problem};
use super::wire::Refusal;
use crate::load::ModelState;
use crate::score::ScoreError;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use backend_api::DeviceState;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::ToSchema;

/// One model as it serves.
#[derive(Serialize, ToSchema)]
#[schema(as = Model)]
pub(super) struct Model {
    #[schema(example = 22_713_601)]
    num_parameters: Option<u64>,
    #[schema(example = "cpu")]
    device: String,
    #[schema(example = "int8")]
    dtype: String,
    /// The plugin's name.
    #[schema(example = "cpu-int8")]
    backend: String,
    #[schema(example = "0.1.0")]
    plugin_version: String,
    /// The SHA-256 of the plugin's file.
    plugin_sha256: String,
    /// Why this plugin serves the model: by name, or what was measured.
    backend_chosen: String,
    /// The kernel in use.
    kernel: String,
    /// Tokens that a query and a document may have together, special tokens included.
    #[schema(example = 512)]
    max_length: usize,
    labels: Vec<String>,
    /// What turns logits into scores: `identity`, `sigmoid`, `softmax`.
    #[schema(example = "identity")]
    activation: &'static str,
    /// Where the model came from.
    source: String,
    /// The hub's commit, where it came from a hub.
    revision: Option<String>,
    /// The class in `config.json`.
    architecture: String,
    /// Equal ids promise equal scores.
    numerics_id: String,
    /// Counts up with every swap, from 1.
    generation: u64,
    /// What its scores were compared with, and how they agreed; null if they were not.
    proof: Option<String>,
    /// `live`; `failing` where its backend fails batch after batch; `draining`; `failed` where it has no worker left.
    #[schema(example = "live")]
    state: &'static str,
    /// What its last swap has reached; null if there was none.
    last_swap: Option<LastSwap>,
    load: Load,
    /// How its devices do, as its backend told within the last seconds; empty if it tells nothing.
    devices: Vec<Device>,
}

/// How a device does. What is not known is left out.
#[derive(Serialize, ToSchema)]
pub(super) struct Device {
    #[schema(example = "cuda:0")]
    name: String,
    /// Memory that this server holds, for this model and others.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_process_bytes: Option<u64>,
    /// Memory in use, whoever holds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_used_bytes: Option<u64>,
    /// Memory that it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_total_bytes: Option<u64>,
    /// Share of its last sample period in which it computed, between 0 and 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    utilization: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature_celsius: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    power_watts: Option<f64>,
}

/// What a swap has reached.
#[derive(Serialize, ToSchema)]
pub(super) struct LastSwap {
    /// `found`, `preparing`, `verified`, `loaded`, `draining`, `warm`, `proven`, `shadow`, `live`, `confirmed`, `refused`, `rolled_back`.
    #[schema(example = "confirmed")]
    state: &'static str,
    /// What there is to say of it: for a refusal why. For operators only: it may name files.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Viewer {
    /// Anybody who reaches the public port.
    Client,
    /// Whoever the admin listener lets in.
    Operator,
}

/// How busy a model is at this moment.
#[derive(Serialize, ToSchema)]
pub(super) struct Load {
    requests_in_flight: usize,
    queue_rows: usize,
    queue_tokens: usize,
    /// Predicted time until what waits now has been computed.
    queue_seconds: f64,
    workers: usize,
    workers_busy: usize,
}

/// The models in configured order, as OpenAI's clients list them.
#[derive(Serialize, ToSchema)]
pub(super) struct ModelList {
    #[schema(example = "list")]
    object: &'static str,
    data: Vec<ModelEntry>,
}

/// One model, as OpenAI's clients know it.
#[derive(Serialize, ToSchema)]
pub(super) struct ModelEntry {
    #[schema(example = "default")]
    id: String,
    #[schema(example = "model")]
    object: &'static str,
    /// Always 0: models are opened, not created, here.
    created: u64,
    #[schema(example = "crossgate")]
    owned_by: &'static str,
}

/// The models by name
#[utoipa::path(get, path = "/models", tag = "models", responses(
    (status = 200, description = "Each model as it serves", body = BTreeMap<String, Model>),
))]
pub(super) async fn models(State(edge): State<Arc<Edge>>) -> Response {
    json(StatusCode::OK, &view(&edge, Viewer::Client))
}

/// The models, as OpenAI lists them
#[utoipa::path(get, path = "/v1/models", tag = "models", responses(
    (status = 200, description = "The models in configured order", body = ModelList),
))]
pub(super) async fn list(State(edge): State<Arc<Edge>>) -> Response {
    let models = edge.catalog.models();
    let data = models.iter().map(|model| entry(&model.name)).collect();
    json(
        StatusCode::OK,
        &ModelList {
            object: "list",
            data,
        },
    )
}

/// One model, as OpenAI shows it
#[utoipa::path(get, path = "/v1/models/{id}", tag = "models",
    params(("id" = String, Path, description = "The model's name")),
    responses(
        (status = 200, description = "The model", body = ModelEntry),
        (status = 404, description = "No model of this name", body = ErrorAnswer),
        (status = 422, description = "The name is not UTF-8", body = ErrorAnswer),
    )
)]
pub(super) async fn one(
    State(edge): State<Arc<Edge>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let Path(id) = id.map_err(not_text)?;
    find(&edge, id)
}

/// The same for a name such as the hub has: `owner/name`.
pub(super) async fn one_of_owner(
    State(edge): State<Arc<Edge>>,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<Response, Problem> {
    let Path((owner, name)) = path.map_err(not_text)?;
    find(&edge, format!("{owner}/{name}"))
}

/// What is percent-encoded in the path is not UTF-8: no model is called so.
fn not_text(rejection: PathRejection) -> Refusal {
    ScoreError::invalid("id", rejection.body_text()).into()
}

fn find(edge: &Edge, id: String) -> Result<Response, Problem> {
    let models = edge.catalog.models();
    if models.iter().any(|model| *model.name == *id) {
        return Ok(json(StatusCode::OK, &entry(&id)));
    }
    let known = models.iter().map(|model| model.name.to_string()).collect();
    Err(ScoreError::UnknownModel { name: id, known }.into())
}

/// Each model as it serves.
pub(super) fn view(edge: &Edge, viewer: Viewer) -> BTreeMap<String, Model> {
    let seen = |state: ModelState| {
        let name = state.name.to_string();
        let mut model = Model::from(state);
        if let (Viewer::Client, Some(swap)) = (viewer, &mut model.last_swap) {
            swap.detail = None;
        }
        (name, model)
    };
    edge.catalog.models().into_iter().map(seen).collect()
}

fn entry(name: &str) -> ModelEntry {
    ModelEntry {
        id: name.to_owned(),
        object: "model",
        created: 0,
        owned_by: "crossgate",
    }
}

impl From<ModelState> for Model {
    fn from(state: ModelState) -> Self {
        let load = state.load;
        let (backend, plugin_version) = state.plugin;
        Self {
            num_parameters: state.num_parameters,
            device: state.device,
            dtype: state.dtype,
            backend,
            plugin_version,
            plugin_sha256: state.image,
            backend_chosen: state.chosen,
            kernel: state.kernel,
            max_length: state.row_tokens_max,
            labels: state.labels,
            activation: state.activation.name(),
            source: state.source,
            revision: Some(state.revision).filter(|revision| !revision.is_empty()),
            architecture: state.architecture,
            numerics_id: state.numerics_id,
            generation: state.generation,
            proof: state.proof,
            state: state.state,
            last_swap: state.last_swap.map(|swap| LastSwap {
                state: swap.state,
                detail: Some(swap.detail),
            }),
            load: Load {
                requests_in_flight: load.requests_in_flight,
                queue_rows: load.queue_rows,
                queue_tokens: load.queue_tokens,
                queue_seconds: load.queue_time.as_secs_f64(),
                workers: load.workers,
                workers_busy: load.workers_busy,
            },
            devices: state.devices.iter().map(Device::from).collect(),
        }
    }
}

impl From<&DeviceState> for Device {
    fn from(state: &DeviceState) -> Self {
        Self {
            name: state.name.clone(),
            memory_process_bytes: state.memory_process_bytes,
            memory_used_bytes: state.memory_used_bytes,
            memory_total_bytes: state.memory_total_bytes,
            utilization: state.utilization,
            temperature_celsius: state.temperature_celsius,
            power_watts: state.power_watts,
        }
    }
}
