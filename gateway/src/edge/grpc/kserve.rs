//! `inference.GRPCInferenceService`: what clients of KServe and Triton call.

use super::super::Edge;
use super::super::json;
use super::super::kserve::{
    self, ACTIVATION, BYTES, Described, EXTENSIONS, FP32, Inference, Input, NAME, PLATFORM,
    Parameters, SCORES, WARNINGS, pack, text, unpack,
};
use super::super::wire::Refusal;
use super::method::{Answered, Asked, Methods};
use super::options::with_activation;
use super::proto::inference as proto;
use super::proto::inference::infer_parameter::ParameterChoice;
use crate::score::{Priority, ScoreError};
use serde_json::Value;
use std::collections::HashMap;
use tonic_reflection::server::Error;

/// Adds theirs.
pub(super) fn methods(methods: Methods) -> Result<Methods, Error> {
    methods
        .tell("/inference.GRPCInferenceService/ServerLive", server_live)?
        .tell("/inference.GRPCInferenceService/ServerReady", server_ready)?
        .tell("/inference.GRPCInferenceService/ModelReady", model_ready)?
        .tell(
            "/inference.GRPCInferenceService/ServerMetadata",
            server_metadata,
        )?
        .tell(
            "/inference.GRPCInferenceService/ModelMetadata",
            model_metadata,
        )?
        .ask("/inference.GRPCInferenceService/ModelInfer", model_infer)
}

async fn server_live(_: Asked<proto::ServerLiveRequest>) -> Answered<proto::ServerLiveResponse> {
    Ok(tonic::Response::new(proto::ServerLiveResponse {
        live: true,
    }))
}

async fn server_ready(
    asked: Asked<proto::ServerReadyRequest>,
) -> Answered<proto::ServerReadyResponse> {
    let ready = asked.edge.catalog.not_ready().is_empty();
    Ok(tonic::Response::new(proto::ServerReadyResponse { ready }))
}

async fn model_ready(
    asked: Asked<proto::ModelReadyRequest>,
) -> Answered<proto::ModelReadyResponse> {
    let proto::ModelReadyRequest { name, version } = &asked.message;
    let model = kserve::find(&asked.edge, name, version)?;
    let ready = kserve::is_ready(&model);
    Ok(tonic::Response::new(proto::ModelReadyResponse { ready }))
}

async fn server_metadata(
    asked: Asked<proto::ServerMetadataRequest>,
) -> Answered<proto::ServerMetadataResponse> {
    Ok(tonic::Response::new(proto::ServerMetadataResponse {
        name: NAME.to_owned(),
        version: asked.edge.settings.version.to_owned(),
        // The bytes' place over gRPC is a field of its own.
        extensions: EXTENSIONS.map(str::to_owned).to_vec(),
    }))
}

async fn model_metadata(
    asked: Asked<proto::ModelMetadataRequest>,
) -> Answered<proto::ModelMetadataResponse> {
    let proto::ModelMetadataRequest { name, version } = &asked.message;
    let model = kserve::find(&asked.edge, name, version)?;
    Ok(tonic::Response::new(proto::ModelMetadataResponse {
        name: model.name.to_string(),
        versions: vec![kserve::version(&model)],
        platform: PLATFORM.to_owned(),
        inputs: kserve::inputs().map(described).to_vec(),
        outputs: kserve::outputs(&model).map(described).to_vec(),
    }))
}

fn described(tensor: Described) -> proto::model_metadata_response::TensorMetadata {
    proto::model_metadata_response::TensorMetadata {
        name: tensor.name.to_owned(),
        datatype: tensor.datatype.to_owned(),
        shape: tensor.shape,
    }
}

async fn model_infer(
    mut asked: Asked<proto::ModelInferRequest>,
) -> Answered<proto::ModelInferResponse> {
    let message = std::mem::take(&mut asked.message);
    // Answered as it was asked.
    let is_raw = !message.raw_input_contents.is_empty();
    let inputs = inputs(&asked.edge, message.inputs, message.raw_input_contents)?;
    let names = message.outputs.iter().map(|output| output.name.as_str());
    let inference = Inference::read(inputs, names, parameters(message.parameters)?)?;
    let (call, deadline) = (&asked.call, asked.deadline);
    let model = Some(message.model_name);
    let question = |rows, form| call.question(model, rows, form, deadline, Priority::default());
    let output = inference
        .run(&asked.edge, call, question, &message.model_version)
        .await?;
    let mut parameters = HashMap::new();
    let word = |text: String| proto::InferParameter {
        parameter_choice: Some(ParameterChoice::StringParam(text)),
    };
    parameters.insert(
        ACTIVATION.to_owned(),
        word(output.activation.name().to_owned()),
    );
    if !output.warnings.is_empty() {
        parameters.insert(WARNINGS.to_owned(), word(output.warnings.join("; ")));
    }
    let (contents, raw_output_contents) = match is_raw {
        true => (None, vec![pack(&output.scores)]),
        false => {
            let contents = proto::InferTensorContents {
                fp32_contents: output.scores,
                ..proto::InferTensorContents::default()
            };
            (Some(contents), Vec::new())
        }
    };
    let scores = proto::model_infer_response::InferOutputTensor {
        name: SCORES.to_owned(),
        datatype: FP32.to_owned(),
        shape: output.shape,
        parameters: HashMap::new(),
        contents,
    };
    let inferred = proto::ModelInferResponse {
        model_name: output.model,
        model_version: output.version,
        id: message.id,
        parameters,
        outputs: vec![scores],
        raw_output_contents,
    };
    Ok(with_activation(output.activation, inferred))
}

/// Tensors with their elements, wherever those stand.
fn inputs(
    edge: &Edge,
    tensors: Vec<proto::model_infer_request::InferInputTensor>,
    raw: Vec<Vec<u8>>,
) -> Result<Vec<Input>, ScoreError> {
    if !raw.is_empty() && raw.len() != tensors.len() {
        let why = format!(
            "has {} elements for {} inputs; send one for each, or none",
            raw.len(),
            tensors.len()
        );
        return Err(ScoreError::invalid("raw_input_contents", why));
    }
    let most = edge.door.bounds().documents_max;
    let mut raw = raw.into_iter();
    let read = tensors.into_iter().enumerate().map(|(index, tensor)| {
        let texts = match (raw.next(), tensor.contents) {
            (Some(_), Some(_)) => {
                let why = "stands beside raw_input_contents; send one of them";
                return Err(ScoreError::invalid(
                    format!("inputs[{index}].contents"),
                    why,
                ));
            }
            (Some(bytes), None) if tensor.datatype == BYTES => {
                unpack(&format!("raw_input_contents[{index}]"), &bytes, most)?
            }
            // Of another type: refused by it.
            (Some(_), None) | (None, None) => Vec::new(),
            (None, Some(contents)) => {
                let param = format!("inputs[{index}].contents.bytes_contents");
                let elements = contents.bytes_contents.into_iter().enumerate();
                let texts = elements.map(|(place, element)| text(&param, place, element));
                texts.collect::<Result<_, _>>()?
            }
        };
        Ok(Input {
            name: tensor.name,
            datatype: tensor.datatype,
            shape: tensor.shape,
            texts,
        })
    });
    read.collect()
}

/// Read as they would be over HTTP.
fn parameters(given: HashMap<String, proto::InferParameter>) -> Result<Parameters, Refusal> {
    let given = given.into_iter().filter_map(|(name, parameter)| {
        let value = match parameter.parameter_choice? {
            ParameterChoice::BoolParam(flag) => Value::from(flag),
            ParameterChoice::Int64Param(n) => Value::from(n),
            ParameterChoice::Uint64Param(n) => Value::from(n),
            ParameterChoice::DoubleParam(n) => Value::from(n),
            ParameterChoice::StringParam(text) => Value::from(text),
        };
        Some((name, value))
    });
    let object = Value::Object(given.collect());
    json::parse(object.to_string().as_bytes())
}
