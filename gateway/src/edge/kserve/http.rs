//! The Open Inference Protocol over HTTP: JSON, and after it the elements of tensors as bytes, where the client
//! prefers that.

use super::super::Edge;
use super::super::answer::{json, scored, set};
use super::super::body::held;
use super::super::json::{self, Object};
use super::super::layers::Unready;
use super::super::post::{JSON_BYTES, Post};
use super::super::problem::{KserveErrorAnswer, KserveErrors, Problem};
use super::super::scoring::ScoringHeaders;
use super::super::wire::Refusal;
use super::lists::{Few, elements};
use super::{
    ACTIVATION, Described, EXTENSIONS, FP32, Inference, Input, NAME, Output, PLATFORM, Parameters,
    SCORES, WARNINGS, find, pack, unpack,
};
use crate::load::ModelState;
use crate::runtime::aside;
use crate::score::ScoreError;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::ToSchema;

/// The same with a version, which is the model's generation.
pub(in crate::edge) const VERSION: &str = "/v2/models/{id}/versions/{version}";
pub(in crate::edge) const VERSION_READY: &str = "/v2/models/{id}/versions/{version}/ready";
pub(in crate::edge) const VERSION_INFER: &str = "/v2/models/{id}/versions/{version}/infer";

/// Bytes of a score as text, about.
const SCORE_BYTES: usize = 16;

/// The same for names such as the hub has: `owner/name`. Clients leave the slash as it is.
pub(in crate::edge) const OWNED: &str = "/v2/models/{owner}/{name}";
pub(in crate::edge) const OWNED_READY: &str = "/v2/models/{owner}/{name}/ready";
pub(in crate::edge) const OWNED_INFER: &str = "/v2/models/{owner}/{name}/infer";

/// A path's parts, where they are text.
type Parts = Result<Path<BTreeMap<String, String>>, PathRejection>;

/// A path's model, and its version where it names one.
struct Named {
    model: String,
    version: String,
}

/// What the server is.
#[derive(Serialize, ToSchema)]
#[schema(as = KserveServer)]
pub(in crate::edge) struct Server {
    name: &'static str,
    version: &'static str,
    extensions: [&'static str; 2],
}

/// Whether the server runs.
#[derive(Serialize, ToSchema)]
#[schema(as = KserveLive)]
pub(in crate::edge) struct Live {
    live: bool,
}

/// Whether requests are taken.
#[derive(Serialize, ToSchema)]
#[schema(as = KserveReady)]
pub(in crate::edge) struct Ready {
    ready: bool,
}

/// What tensors a model takes and gives.
#[derive(Serialize, ToSchema)]
#[schema(as = KserveModel)]
pub(in crate::edge) struct Model {
    name: String,
    versions: [String; 1],
    platform: &'static str,
    inputs: [Metadata; 2],
    outputs: [Metadata; 1],
}

/// What is known of a tensor before there is one; -1 for a dimension of any size.
#[derive(Serialize, ToSchema)]
#[schema(as = KserveTensor)]
pub(in crate::edge) struct Metadata {
    name: &'static str,
    datatype: &'static str,
    shape: Vec<i64>,
}

/// Tensors `query` (one element, or one for each document; or none, for texts alone) and `documents`.
#[derive(Deserialize, ToSchema)]
#[schema(as = KserveRequest, example = json!({
    "inputs": [
        {"name": "query", "datatype": "BYTES", "shape": [1], "data": ["What is the capital of France?"]},
        {"name": "documents", "datatype": "BYTES", "shape": [2],
         "data": ["Paris is the capital of France.", "Bread is made of flour."]}
    ]
}))]
pub(in crate::edge) struct Request {
    /// Repeated in the answer.
    id: Option<String>,
    /// `raw_scores`, `overflow`, `truncation_side`, `instruction`, `max_tokens_per_doc`, `max_tokens_per_query`,
    /// `truncate_prompt_tokens`, `priority`, `timeout` in microseconds, `binary_data_output`.
    #[schema(value_type = Option<std::collections::HashMap<String, String>>)]
    parameters: Option<Object<Parameters>>,
    #[schema(value_type = Vec<Tensor>)]
    inputs: Option<Few<Object<Tensor>>>,
    /// Absent for all.
    #[schema(value_type = Option<Vec<Wanted>>)]
    outputs: Option<Few<Object<Wanted>>>,
}

/// A tensor that the model is given.
#[derive(Deserialize, ToSchema)]
#[schema(as = KserveInput)]
pub(in crate::edge) struct Tensor {
    name: String,
    /// `BYTES`.
    datatype: String,
    #[schema(value_type = Vec<i64>)]
    shape: Few<i64>,
    #[schema(value_type = Option<TensorParameters>)]
    parameters: Option<Object<TensorParameters>>,
    /// The elements, in lists of any depth. Absent where they follow as bytes.
    #[schema(value_type = Option<Vec<String>>)]
    data: Option<Box<RawValue>>,
}

#[derive(Deserialize, ToSchema)]
#[schema(as = KserveInputParameters)]
pub(in crate::edge) struct TensorParameters {
    /// So many of the bytes that follow the JSON are this tensor's: before each element its length in four
    /// bytes, the least first.
    binary_data_size: Option<usize>,
}

/// A tensor that is asked for.
#[derive(Deserialize, ToSchema)]
#[schema(as = KserveRequestedOutput)]
pub(in crate::edge) struct Wanted {
    name: String,
    #[schema(value_type = Option<WantedParameters>)]
    parameters: Option<Object<WantedParameters>>,
}

#[derive(Deserialize, ToSchema)]
#[schema(as = KserveRequestedOutputParameters)]
pub(in crate::edge) struct WantedParameters {
    /// Whether its numbers follow the JSON as bytes.
    #[serde(default, deserialize_with = "json::flag")]
    binary_data: Option<bool>,
}

/// The tensor `scores`.
#[derive(Serialize, ToSchema)]
#[schema(as = KserveAnswer)]
pub(in crate::edge) struct Answer {
    model_name: String,
    model_version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// `activation`, and `warnings` where something was cut.
    parameters: BTreeMap<&'static str, String>,
    outputs: [Scores; 1],
}

/// One score for each document; one for each of its labels where the model has several.
#[derive(Serialize, ToSchema)]
#[schema(as = KserveOutput)]
pub(in crate::edge) struct Scores {
    name: &'static str,
    datatype: &'static str,
    shape: Vec<i64>,
    /// With `binary_data_size` where the numbers follow the JSON as bytes.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    parameters: BTreeMap<&'static str, usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Vec<f32>>,
}

/// What the server is, as KServe's clients ask
#[utoipa::path(get, path = "/v2", tag = "kserve", responses(
    (status = 200, description = "Name and version", body = Server),
))]
pub(in crate::edge) async fn server(State(edge): State<Arc<Edge>>) -> Response {
    let server = Server {
        name: NAME,
        version: edge.settings.version,
        extensions: EXTENSIONS,
    };
    json(StatusCode::OK, &server)
}

/// Whether the server runs, as KServe's clients ask
#[utoipa::path(get, path = "/v2/health/live", tag = "kserve", responses(
    (status = 200, description = "It does", body = Live),
))]
pub(in crate::edge) async fn live() -> Response {
    json(StatusCode::OK, &Live { live: true })
}

/// Whether requests are taken, as KServe's clients ask
#[utoipa::path(get, path = "/v2/health/ready", tag = "kserve", responses(
    (status = 200, description = "They are", body = Ready),
    (status = 503, description = "They are not", body = Ready),
))]
pub(in crate::edge) async fn ready(State(edge): State<Arc<Edge>>) -> Response {
    readiness(&edge.catalog.not_ready().join("; "))
}

/// What tensors a model takes and gives
#[utoipa::path(get, path = "/v2/models/{id}", tag = "kserve",
    params(("id" = String, Path, description = "The model's name")),
    responses(
        (status = 200, description = "Its tensors", body = Model),
        (status = 404, description = "No model of this name", body = KserveErrorAnswer),
        (status = 422, description = "The name is not UTF-8", body = KserveErrorAnswer),
    )
)]
pub(in crate::edge) async fn model(
    State(edge): State<Arc<Edge>>,
    parts: Parts,
) -> Result<Response, Problem> {
    let model = of_path(&edge, parts)?;
    let described = |tensor: Described| Metadata {
        name: tensor.name,
        datatype: tensor.datatype,
        shape: tensor.shape,
    };
    let model = Model {
        name: model.name.to_string(),
        versions: [super::version(&model)],
        platform: PLATFORM,
        inputs: super::inputs().map(described),
        outputs: super::outputs(&model).map(described),
    };
    Ok(json(StatusCode::OK, &model))
}

/// Whether a model takes requests
#[utoipa::path(get, path = "/v2/models/{id}/ready", tag = "kserve",
    params(("id" = String, Path, description = "The model's name")),
    responses(
        (status = 200, description = "It does", body = Ready),
        (status = 404, description = "No model of this name", body = KserveErrorAnswer),
        (status = 422, description = "The name is not UTF-8", body = KserveErrorAnswer),
        (status = 503, description = "It does not", body = Ready),
    )
)]
pub(in crate::edge) async fn model_ready(
    State(edge): State<Arc<Edge>>,
    parts: Parts,
) -> Result<Response, Problem> {
    let model = of_path(&edge, parts)?;
    let why = match super::is_ready(&model) {
        true => String::new(),
        false => format!("model {} is {}", model.name, model.state),
    };
    Ok(readiness(&why))
}

/// Scores of documents, by tensors
///
/// With the header `Inference-Header-Content-Length` so many bytes of the body are JSON, and what follows are the
/// elements of those tensors that have a `binary_data_size`.
#[utoipa::path(post, path = "/v2/models/{id}/infer", tag = "kserve", request_body = Request,
    params(
        ("id" = String, Path, description = "The model's name"),
        ("Inference-Header-Content-Length" = Option<u64>, Header, description = "Bytes of JSON"),
        ScoringHeaders,
    ),
    responses(
        (status = 200, description = "The tensor of scores", body = Answer),
        KserveErrors,
    )
)]
pub(in crate::edge) async fn infer(
    State(edge): State<Arc<Edge>>,
    parts: Parts,
    headers: HeaderMap,
    post: Result<Post, Problem>,
) -> Result<Response, Problem> {
    let post = post.map_err(Problem::kserve)?;
    let named = Named::of(parts)?;
    let outcome = inferred(&edge, named, &headers, &post).await;
    let response = outcome.map_err(|refusal| Problem::from(refusal).kserve())?;
    Ok(held(response, post.weight()))
}

async fn inferred(
    edge: &Edge,
    named: Named,
    headers: &HeaderMap,
    post: &Post,
) -> Result<Response, Refusal> {
    let most = edge.door.bounds().documents_max;
    let (inference, id, is_binary) = aside(post.body.len(), || read(&post.body, headers, most))?;
    let Named { model, version } = named;
    let question = |rows, form| post.question(Some(model), rows, form);
    let output = inference.run(edge, &post.call, question, &version).await?;
    Ok(aside(output.scores.len() * SCORE_BYTES, || {
        answer(post, output, id, is_binary)
    }))
}

/// Tensors and options, the request's id, and whether the scores go out as bytes.
fn read(
    body: &[u8],
    headers: &HeaderMap,
    most: usize,
) -> Result<(Inference, Option<String>, bool), Refusal> {
    let (head, mut tail) = split(body, headers)?;
    let request: Request = json::parse(head)?;
    let Few(tensors) = json::required(request.inputs, "inputs", "a list of tensors")?;
    let mut inputs = Vec::with_capacity(tensors.len());
    let n_binary = tail.len();
    for (index, Object(tensor)) in tensors.into_iter().enumerate() {
        let size = tensor.parameters.and_then(|given| given.0.binary_data_size);
        let param = format!("inputs[{index}]");
        let texts = match (size, tensor.data) {
            (None, Some(data)) => elements(&format!("{param}.data"), &data, most)?,
            (Some(size), None) => {
                let (own, rest) = tail.split_at_checked(size).ok_or_else(|| {
                    let why = format!("{size} bytes, of {} that follow the JSON", tail.len());
                    ScoreError::invalid(format!("{param}.parameters.binary_data_size"), why)
                })?;
                tail = rest;
                unpack(&param, own, most)?
            }
            _ => {
                let why = "has no elements, or has them twice; send data or binary_data_size";
                return Err(ScoreError::invalid(param, why).into());
            }
        };
        inputs.push(Input {
            name: tensor.name,
            datatype: tensor.datatype,
            shape: tensor.shape.0,
            texts,
        });
    }
    if !tail.is_empty() {
        let why = format!(
            "{n_binary} bytes follow the JSON, and the tensors' binary_data_size take {} of them; send as many",
            n_binary - tail.len()
        );
        return Err(ScoreError::invalid(JSON_BYTES, why).into());
    }
    let Object(parameters) = request.parameters.unwrap_or_default();
    let Few(outputs) = request.outputs.unwrap_or(Few(Vec::new()));
    let own = outputs
        .iter()
        .find_map(|output| output.0.parameters.as_ref());
    let is_binary = own
        .and_then(|own| own.0.binary_data)
        .or(parameters.binary_data_output)
        .unwrap_or(false);
    let names = outputs.iter().map(|output| output.0.name.as_str());
    let inference = Inference::read(inputs, names, parameters)?;
    Ok((inference, request.id, is_binary))
}

/// The JSON, and what follows it.
fn split<'a>(body: &'a [u8], headers: &HeaderMap) -> Result<(&'a [u8], &'a [u8]), ScoreError> {
    let Some(value) = headers.get(JSON_BYTES) else {
        return Ok((body, &[]));
    };
    let length = value.to_str().ok().and_then(|text| text.parse().ok());
    let parts = length.and_then(|length: usize| body.split_at_checked(length));
    parts.ok_or_else(|| {
        let why = format!(
            "is {value:?}; send how many of the body's {} bytes are JSON",
            body.len()
        );
        ScoreError::invalid(JSON_BYTES, why)
    })
}

fn answer(post: &Post, output: Output, id: Option<String>, is_binary: bool) -> Response {
    let mut parameters = BTreeMap::from([(ACTIVATION, output.activation.name().to_owned())]);
    if !output.warnings.is_empty() {
        parameters.insert(WARNINGS, output.warnings.join("; "));
    }
    let packed = is_binary.then(|| pack(&output.scores));
    let sized = packed
        .as_ref()
        .map(|bytes| ("binary_data_size", bytes.len()));
    let head = Answer {
        model_name: output.model,
        model_version: output.version,
        id,
        parameters,
        outputs: [Scores {
            name: SCORES,
            datatype: FP32,
            shape: output.shape,
            parameters: sized.into_iter().collect(),
            data: (!is_binary).then_some(output.scores),
        }],
    };
    let mut response = scored(&post.call, &output.response, output.activation, &head);
    if let Some(tail) = packed {
        // Ours always serialize.
        let mut bytes = serde_json::to_vec(&head).unwrap_or_default();
        set(&mut response, JSON_BYTES, &bytes.len().to_string());
        bytes.extend(tail);
        *response.body_mut() = Body::from(bytes);
        let media_type = HeaderValue::from_static("application/octet-stream");
        response.headers_mut().insert(CONTENT_TYPE, media_type);
    }
    response
}

/// Ready, if nothing speaks against it.
fn readiness(why: &str) -> Response {
    if why.is_empty() {
        return json(StatusCode::OK, &Ready { ready: true });
    }
    let mut response = json(StatusCode::SERVICE_UNAVAILABLE, &Ready { ready: false });
    response.extensions_mut().insert(Unready(why.to_owned()));
    response
}

fn of_path(edge: &Edge, parts: Parts) -> Result<ModelState, Problem> {
    let Named { model, version } = Named::of(parts)?;
    let found = find(edge, &model, &version);
    found.map_err(|error| Problem::from(error).kserve())
}

// === impl Named ===

impl Named {
    fn of(parts: Parts) -> Result<Self, Problem> {
        let Path(mut parts) = parts.map_err(|rejection| {
            let error = ScoreError::invalid("id", rejection.body_text());
            Problem::from(error).kserve()
        })?;
        let mut part = |name: &str| parts.remove(name).unwrap_or_default();
        let (id, owner, name) = (part("id"), part("owner"), part("name"));
        Ok(Self {
            model: match owner.is_empty() {
                true => id,
                false => format!("{owner}/{name}"),
            },
            version: part("version"),
        })
    }
}
