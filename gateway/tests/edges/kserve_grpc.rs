//! The Open Inference Protocol over gRPC: what clients of KServe and Triton see.

use crate::fixture::{BODY_BYTES_MAX, Fixture};
use crate::grpc::connect;
use std::sync::atomic::Ordering;
use tonic::Code;

pub(crate) mod proto {
    #![allow(
        unreachable_pub,
        unused_qualifications,
        clippy::enum_variant_names,
        clippy::too_many_lines,
        reason = "generated"
    )]
    tonic::include_proto!("inference");
}

use proto::grpc_inference_service_client::GrpcInferenceServiceClient as Client;
use proto::infer_parameter::ParameterChoice;
use proto::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use proto::{
    InferParameter, InferTensorContents, ModelInferRequest, ModelMetadataRequest,
    ModelReadyRequest, ServerLiveRequest, ServerMetadataRequest, ServerReadyRequest,
};

fn tensor(name: &str, texts: &[&str], is_raw: bool) -> InferInputTensor {
    let contents = InferTensorContents {
        bytes_contents: texts.iter().map(|text| text.as_bytes().to_vec()).collect(),
        ..InferTensorContents::default()
    };
    InferInputTensor {
        name: name.to_owned(),
        datatype: "BYTES".to_owned(),
        shape: vec![texts.len() as i64],
        contents: (!is_raw).then_some(contents),
        ..InferInputTensor::default()
    }
}

fn infer(query: &str, documents: &[&str], is_raw: bool) -> ModelInferRequest {
    let pack = |texts: &[&str]| {
        let packed = texts.iter().flat_map(|text| {
            let length = (text.len() as u32).to_le_bytes();
            length.into_iter().chain(text.bytes()).collect::<Vec<_>>()
        });
        packed.collect::<Vec<u8>>()
    };
    ModelInferRequest {
        model_name: "default".to_owned(),
        id: "7".to_owned(),
        inputs: vec![
            tensor("query", &[query], is_raw),
            tensor("documents", documents, is_raw),
        ],
        raw_input_contents: match is_raw {
            true => vec![pack(&[query]), pack(documents)],
            false => Vec::new(),
        },
        ..ModelInferRequest::default()
    }
}

#[tokio::test]
async fn tensors_over_grpc() {
    let fixture = Fixture::new();
    let (channel, _) = connect(&fixture).await;
    let mut client = Client::new(channel);
    let answer = client
        .model_infer(infer("q", &["1", "2.5"], false))
        .await
        .expect("scores")
        .into_inner();
    let output = &answer.outputs[0];
    assert_eq!(
        (
            answer.model_name.as_str(),
            answer.model_version.as_str(),
            answer.id.as_str()
        ),
        ("default", "1", "7")
    );
    assert_eq!(
        (output.name.as_str(), output.datatype.as_str()),
        ("scores", "FP32")
    );
    assert_eq!(output.shape, [2]);
    assert_eq!(
        output.contents.as_ref().expect("numbers").fp32_contents,
        [1.0, 2.5]
    );
    assert!(answer.raw_output_contents.is_empty());
    // Raw in, raw out.
    let answer = client
        .model_infer(infer("q", &["1", "2.5"], true))
        .await
        .expect("scores")
        .into_inner();
    assert_eq!(
        answer.raw_output_contents,
        [[1.0_f32.to_le_bytes(), 2.5_f32.to_le_bytes()].concat()]
    );
    assert!(answer.outputs[0].contents.is_none());

    let mut asked = infer("q", &["0"], true);
    asked.model_name = "classes".to_owned();
    asked.parameters.insert(
        "raw_scores".to_owned(),
        InferParameter {
            parameter_choice: Some(ParameterChoice::StringParam("true".to_owned())),
        },
    );
    let answer = client.model_infer(asked.clone()).await.expect("scores");
    assert_eq!(
        answer
            .metadata()
            .get("x-crossgate-activation")
            .expect("metadata"),
        "identity"
    );
    assert_eq!(answer.into_inner().outputs[0].shape, [1, 2]);
    asked.parameters.insert(
        "raw_scores".to_owned(),
        InferParameter {
            parameter_choice: Some(ParameterChoice::StringParam("maybe".to_owned())),
        },
    );
    let refused = client.model_infer(asked).await.expect_err("no flag");
    assert!(refused.message().starts_with("raw_scores: "), "{refused}");
}

#[tokio::test]
async fn wrong_tensors_over_grpc() {
    let fixture = Fixture::within(crate::fixture::USUAL);
    let (channel, _) = connect(&fixture).await;
    let mut client = Client::new(channel);
    let mut both = infer("q", &["1"], true);
    both.inputs = infer("q", &["1"], false).inputs;
    let mut few = infer("q", &["1"], true);
    few.raw_input_contents.pop();
    let mut cut = infer("q", &["1"], true);
    cut.raw_input_contents[1].pop();
    let mut other = infer("q", &["1"], true);
    other.outputs.push(InferRequestedOutputTensor {
        name: "logits".to_owned(),
        ..InferRequestedOutputTensor::default()
    });
    let mut version = infer("q", &["1"], true);
    version.model_version = "2".to_owned();
    let mut none = infer("q", &["1"], true);
    none.model_name = "none".to_owned();
    let mut crowd = infer("q", &["1"], false);
    crowd.inputs = vec![InferInputTensor::default(); 3_000];
    let lines = [
        (
            both,
            Code::InvalidArgument,
            "inputs[0].contents: stands beside raw_input_contents",
        ),
        (
            few,
            Code::InvalidArgument,
            "raw_input_contents: has 1 elements for 2 inputs",
        ),
        (
            cut,
            Code::InvalidArgument,
            "raw_input_contents[1]: ends within an element",
        ),
        (
            other,
            Code::InvalidArgument,
            "outputs[0].name: there is no \"logits\"",
        ),
        (version, Code::InvalidArgument, "model_version: "),
        (none, Code::NotFound, "there is no model \"none\""),
        (
            infer("overloaded", &["1"], true),
            Code::ResourceExhausted,
            "the reason",
        ),
        (
            infer("q", &[""; 1_001], true),
            Code::InvalidArgument,
            "raw_input_contents[1]: more elements than intake.documents_max",
        ),
        // Refused before they are unpacked.
        (
            infer("q", &[""; 3_000], false),
            Code::InvalidArgument,
            "bytes_contents: ",
        ),
        (
            crowd,
            Code::InvalidArgument,
            "inputs: 3000 elements of lists are more than 2064",
        ),
    ];
    for (asked, code, text) in lines {
        let refused = client.model_infer(asked).await.expect_err(text);
        assert_eq!(refused.code(), code, "{text}: {refused}");
        assert!(refused.message().contains(text), "{text}: {refused}");
    }
}

#[tokio::test]
async fn servers_over_grpc() {
    let fixture = Fixture::with_room_for(0);
    let (channel, _) = connect(&fixture).await;
    let mut client = Client::new(channel);
    assert!(
        client
            .server_live(ServerLiveRequest {})
            .await
            .expect("an answer")
            .into_inner()
            .live
    );
    assert!(
        client
            .server_ready(ServerReadyRequest {})
            .await
            .expect("an answer")
            .into_inner()
            .ready
    );
    fixture.catalog.is_ready.store(false, Ordering::Relaxed);
    assert!(
        !client
            .server_ready(ServerReadyRequest {})
            .await
            .expect("an answer")
            .into_inner()
            .ready
    );
    let server = client
        .server_metadata(ServerMetadataRequest {})
        .await
        .expect("an answer")
        .into_inner();
    assert_eq!(
        (server.name.as_str(), server.version.as_str()),
        ("crossgate", "0.0.0-test")
    );
}

#[tokio::test]
async fn models_over_grpc() {
    // Without a pass.
    let (channel, _) = connect(&Fixture::with_room_for(0)).await;
    let mut client = Client::new(channel);
    let ready = ModelReadyRequest {
        name: "classes".to_owned(),
        version: "1".to_owned(),
    };
    assert!(
        client
            .model_ready(ready)
            .await
            .expect("an answer")
            .into_inner()
            .ready
    );
    let none = ModelReadyRequest {
        name: "none".to_owned(),
        version: String::new(),
    };
    assert_eq!(
        client.model_ready(none).await.expect_err("no model").code(),
        Code::NotFound
    );
    let asked = ModelMetadataRequest {
        name: "classes".to_owned(),
        version: String::new(),
    };
    let model = client
        .model_metadata(asked)
        .await
        .expect("an answer")
        .into_inner();
    assert_eq!(model.versions, ["1"]);
    let names: Vec<_> = model
        .inputs
        .iter()
        .map(|input| (input.name.as_str(), input.datatype.as_str()))
        .collect();
    assert_eq!(names, [("query", "BYTES"), ("documents", "BYTES")]);
    assert_eq!(model.outputs[0].shape, [-1, 2]);
}

#[tokio::test]
async fn a_question_has_the_bounds_of_a_request() {
    let (channel, _) = connect(&Fixture::new()).await;
    let long = ModelReadyRequest {
        name: "x".repeat(BODY_BYTES_MAX),
        ..ModelReadyRequest::default()
    };
    let refused = Client::new(channel).model_ready(long).await;
    let refused = refused.expect_err("too long");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("body_bytes_max"), "{refused}");
}

#[tokio::test]
async fn what_there_is_too_much_of_is_named() {
    let fixture = Fixture::within(crate::fixture::USUAL);
    let mut client = Client::new(connect(&fixture).await.0);
    let many = ModelInferRequest {
        parameters: (0..100_000)
            .map(|n| (n.to_string(), InferParameter::default()))
            .collect(),
        inputs: vec![tensor("documents", &["1"], false)],
        ..ModelInferRequest::default()
    };
    let refused = client.model_infer(many).await.expect_err("too many");
    assert!(
        refused.message().starts_with("parameters: 100002 elements"),
        "{refused}"
    );
}
