//! The Open Inference Protocol (KServe v2): tensors in, tensors out. What it means is told here, once for HTTP
//! and gRPC: `query` and `documents` of type BYTES become rows, and their scores a tensor of type FP32.

pub(super) mod http;
mod lists;

use super::Edge;
use super::call::Call;
use super::overflow::{Overflow, bound, cuts, instruction, side};
use super::post;
use super::wire::Refusal;
use super::words::Words;
use crate::load::ModelState;
use crate::score::{Activation, Form, Priority, ScoreError, ScoreRequest, ScoreResponse, Texts};
use serde::Deserialize;
use std::time::Duration;

/// What is told about the server.
pub(super) const NAME: &str = "crossgate";
/// Parts of the protocol beside its core: elements as bytes after the JSON, and parameters of requests.
pub(super) const EXTENSIONS: [&str; 2] = ["binary_tensor_data", "parameters"];
/// What models run on, as their metadata say.
pub(super) const PLATFORM: &str = "crossgate";
/// The tensors' names and types.
pub(super) const QUERY: &str = "query";
pub(super) const DOCUMENTS: &str = "documents";
pub(super) const SCORES: &str = "scores";
pub(super) const BYTES: &str = "BYTES";
pub(super) const FP32: &str = "FP32";
/// The output's parameters that say how it came about.
pub(super) const ACTIVATION: &str = "activation";
pub(super) const WARNINGS: &str = "warnings";
/// The length before each element of a BYTES tensor, in bytes.
const LENGTH_BYTES: usize = 4;

/// What the core calls otherwise.
const WORDS: Words = Words(&[
    ("row_tokens_max", "parameters.truncate_prompt_tokens"),
    ("instruction", "parameters.instruction"),
    ("queries", "query"),
]);

/// A tensor of texts.
pub(super) struct Input {
    pub(super) name: String,
    pub(super) datatype: String,
    pub(super) shape: Vec<i64>,
    pub(super) texts: Vec<String>,
}

/// What a request says besides its tensors. Others are ignored.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Parameters {
    #[serde(default, deserialize_with = "super::json::flag")]
    pub(super) raw_scores: Option<bool>,
    pub(super) overflow: Option<String>,
    pub(super) truncation_side: Option<String>,
    pub(super) instruction: Option<String>,
    #[serde(default, deserialize_with = "super::json::count")]
    pub(super) max_tokens_per_doc: Option<u64>,
    #[serde(default, deserialize_with = "super::json::count")]
    pub(super) max_tokens_per_query: Option<u64>,
    #[serde(default, deserialize_with = "super::json::count_or_all")]
    pub(super) truncate_prompt_tokens: Option<u64>,
    /// A word, or a number as Triton has it.
    #[serde(default, deserialize_with = "super::json::scalar")]
    pub(super) priority: Option<String>,
    /// Microseconds, as Triton has it.
    #[serde(default, deserialize_with = "super::json::count")]
    pub(super) timeout: Option<u64>,
    /// Over HTTP: whether outputs go out as bytes unless they say otherwise.
    #[serde(default, deserialize_with = "super::json::flag")]
    pub(super) binary_data_output: Option<bool>,
}

/// A request that makes sense.
pub(super) struct Inference {
    rows: Vec<Texts>,
    form: Form,
    overflow: Overflow,
    raw: bool,
    priority: Option<Priority>,
    timeout: Option<Duration>,
}

/// The tensor of scores.
pub(super) struct Output {
    pub(super) model: String,
    pub(super) version: String,
    pub(super) shape: Vec<i64>,
    pub(super) scores: Vec<f32>,
    pub(super) activation: Activation,
    pub(super) warnings: Vec<String>,
    pub(super) response: ScoreResponse,
}

/// A tensor before it is there: -1 for a dimension of any size.
pub(super) struct Described {
    pub(super) name: &'static str,
    pub(super) datatype: &'static str,
    pub(super) shape: Vec<i64>,
}

// === impl Inference ===

impl Inference {
    /// From its tensors and the names of the outputs that are asked for; none for all.
    ///
    /// # Errors
    /// `Invalid` and `Empty`, naming the tensor.
    pub(super) fn read<'a>(
        inputs: Vec<Input>,
        outputs: impl IntoIterator<Item = &'a str>,
        parameters: Parameters,
    ) -> Result<Self, Refusal> {
        for (index, name) in outputs.into_iter().enumerate() {
            if name != SCORES {
                let why = format!("there is no {name:?}; ask for {SCORES:?}, or for none");
                return Err(ScoreError::invalid(format!("outputs[{index}].name"), why).into());
            }
        }
        let overflow = Overflow::parse(parameters.overflow.as_deref())?;
        let form = Form {
            instruction: instruction(parameters.instruction),
            query_tokens_max: bound(parameters.max_tokens_per_query),
            document_tokens_max: bound(parameters.max_tokens_per_doc),
            row_tokens_max: bound(parameters.truncate_prompt_tokens),
            side: side("truncation_side", parameters.truncation_side.as_deref())?,
            windows: overflow == Overflow::ChunkMax,
        };
        let timeout = parameters.timeout.filter(|&us| us != 0);
        Ok(Self {
            rows: rows(inputs)?,
            form,
            overflow,
            raw: parameters.raw_scores.unwrap_or(false),
            priority: priority(parameters.priority.as_deref().unwrap_or_default())?,
            timeout: timeout.map(Duration::from_micros),
        })
    }

    /// Asks the core: `question` makes a request of rows and their form.
    pub(super) async fn run(
        self,
        edge: &Edge,
        call: &Call,
        question: impl FnOnce(Vec<Texts>, Form) -> ScoreRequest,
        version: &str,
    ) -> Result<Output, Refusal> {
        let mut request = question(self.rows, self.form.clone());
        request.priority = self.priority.unwrap_or(request.priority);
        if let Some(timeout) = self.timeout {
            let own = call.deadline(edge.settings.request_timeout, Some(timeout));
            request.deadline = request.deadline.min(own);
        }
        let model = find(edge, request.model.as_deref().unwrap_or_default(), version);
        // Whether there is such a model is for the core to say: one may be on its way.
        if let Err(error @ ScoreError::Invalid { .. }) = model {
            return Err(error.into());
        }
        let response = edge.ask(request, self.overflow, &WORDS).await?;
        Ok(output(edge, response, &self.form, self.raw))
    }
}

fn output(edge: &Edge, response: ScoreResponse, form: &Form, raw: bool) -> Output {
    let activation = response.activation_unless(raw);
    let rows = response.logits.chunks_exact(response.n_labels);
    let scores: Vec<f32> = rows.flat_map(|logits| activation.apply(logits)).collect();
    let n_rows = size(scores.len() / response.n_labels);
    let shape = match response.n_labels {
        1 => vec![n_rows],
        n_labels => vec![n_rows, size(n_labels)],
    };
    let model = find(edge, &response.model, "");
    Output {
        model: response.model.to_string(),
        version: model.map_or_else(|_| String::new(), |model| version(&model)),
        shape,
        scores,
        activation,
        warnings: cuts(&response, DOCUMENTS, form),
        response,
    }
}

fn size(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Rows of a query with its documents, of as many queries as documents, or of documents alone.
fn rows(inputs: Vec<Input>) -> Result<Vec<Texts>, Refusal> {
    let (mut query, mut documents) = (None, None);
    for (index, input) in inputs.into_iter().enumerate() {
        check(&input, index)?;
        let place = match input.name.as_str() {
            QUERY => &mut query,
            DOCUMENTS => &mut documents,
            other => {
                let why = format!("there is no {other:?}; send {QUERY:?} and {DOCUMENTS:?}");
                return Err(ScoreError::invalid(format!("inputs[{index}].name"), why).into());
            }
        };
        if place.replace(input.texts).is_some() {
            let why = "stands there twice; send each tensor once";
            return Err(ScoreError::invalid(format!("inputs[{index}].name"), why).into());
        }
    }
    let documents = documents.ok_or_else(|| {
        ScoreError::invalid(DOCUMENTS, "is missing; send a BYTES tensor of this name")
    })?;
    if documents.is_empty() {
        return Err(Refusal::Empty {
            param: DOCUMENTS,
            why: "is empty; send at least one element",
        });
    }
    let Some(mut queries) = query else {
        return Ok(Texts::alone(documents));
    };
    match queries.len() {
        1 => Ok(Texts::of_query(queries.remove(0), documents)),
        n if n == documents.len() => Ok(Texts::of_pairs(queries.into_iter().zip(documents))),
        n => {
            let why = format!(
                "has {n} elements for {} documents; send one, or one for each document",
                documents.len()
            );
            Err(ScoreError::invalid(QUERY, why).into())
        }
    }
}

fn check(input: &Input, index: usize) -> Result<(), ScoreError> {
    if input.datatype != BYTES {
        let why = format!("is {:?}; send {BYTES:?}", input.datatype);
        return Err(ScoreError::invalid(
            format!("inputs[{index}].datatype"),
            why,
        ));
    }
    let sizes = input.shape.iter().map(|&size| usize::try_from(size).ok());
    let n = sizes.reduce(|a, b| a?.checked_mul(b?)).flatten();
    if n != Some(input.texts.len()) {
        let why = format!(
            "{:?} is not the shape of {} elements; send [{}]",
            input.shape,
            input.texts.len(),
            input.texts.len()
        );
        return Err(ScoreError::invalid(format!("inputs[{index}].shape"), why));
    }
    Ok(())
}

/// By a word, or by Triton's numbers: 0 for none, 1 for the most urgent.
fn priority(text: &str) -> Result<Option<Priority>, ScoreError> {
    match text.trim().parse::<u64>() {
        Ok(0) => Ok(None),
        Ok(1) => Ok(Some(Priority::High)),
        Ok(2) => Ok(Some(Priority::Normal)),
        Ok(_) => Ok(Some(Priority::Low)),
        Err(_) => post::priority("priority", text),
    }
}

/// The texts of a BYTES tensor: before each stands its length, the least byte first.
///
/// # Errors
/// `Invalid` where the bytes are no such tensor, `TooLarge` beyond `most` elements.
pub(super) fn unpack(
    param: &str,
    mut bytes: &[u8],
    most: usize,
) -> Result<Vec<String>, ScoreError> {
    let mut texts = Vec::new();
    while !bytes.is_empty() {
        if texts.len() == most {
            let why = format!("more elements than intake.documents_max = {most}; send less");
            return Err(ScoreError::TooLarge {
                param: param.to_owned(),
                why,
            });
        }
        let cut = || {
            let why = "ends within an element; send four bytes of length before each";
            ScoreError::invalid(param, why)
        };
        let (length, rest) = bytes.split_first_chunk::<LENGTH_BYTES>().ok_or_else(cut)?;
        let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| cut())?;
        let (element, rest) = rest.split_at_checked(length).ok_or_else(cut)?;
        texts.push(text(param, texts.len(), element.to_vec())?);
        bytes = rest;
    }
    Ok(texts)
}

/// An element as text.
pub(super) fn text(param: &str, index: usize, element: Vec<u8>) -> Result<String, ScoreError> {
    String::from_utf8(element)
        .map_err(|_| ScoreError::invalid(format!("{param}[{index}]"), "is not UTF-8; send text"))
}

/// Scores as bytes, the least first.
pub(super) fn pack(scores: &[f32]) -> Vec<u8> {
    scores
        .iter()
        .flat_map(|score| score.to_le_bytes())
        .collect()
}

/// The model of this name and version; the first one where there is no name.
///
/// # Errors
/// `UnknownModel`, or `Unavailable` where none is named and there is none; `Invalid` for another version than the one
/// that serves.
pub(super) fn find(edge: &Edge, name: &str, version: &str) -> Result<ModelState, ScoreError> {
    let mut models = edge.catalog.models();
    let known = || models.iter().map(|model| model.name.to_string()).collect();
    let place = models
        .iter()
        .position(|model| name.is_empty() || *model.name == *name)
        .ok_or_else(|| match name {
            "" => ScoreError::no_model(),
            _ => ScoreError::UnknownModel {
                name: name.to_owned(),
                known: known(),
            },
        })?;
    let model = models.swap_remove(place);
    let own = self::version(&model);
    if !version.is_empty() && version != own {
        let why = format!("{name:?} serves version {own}, not {version:?}; leave the version out");
        return Err(ScoreError::invalid("model_version", why));
    }
    Ok(model)
}

/// A model's version is its generation: every swap makes another one.
pub(super) fn version(model: &ModelState) -> String {
    model.generation.to_string()
}

pub(super) fn is_ready(model: &ModelState) -> bool {
    model.state == "live"
}

/// What a model takes.
pub(super) fn inputs() -> [Described; 2] {
    [QUERY, DOCUMENTS].map(|name| Described {
        name,
        datatype: BYTES,
        shape: vec![-1],
    })
}

/// What it gives.
pub(super) fn outputs(model: &ModelState) -> [Described; 1] {
    let shape = match model.labels.len() {
        0 | 1 => vec![-1],
        n_labels => vec![-1, size(n_labels)],
    };
    [Described {
        name: SCORES,
        datatype: FP32,
        shape,
    }]
}
