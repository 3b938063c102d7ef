//! What is not for this plugin is refused with a text that says what would do.

mod common;

use backend_api::{FaultCode, OpenRequest};
use common::edit::{copy, edit_tensors};
use common::{golden_request, open};

#[track_caller]
fn refused(request: &OpenRequest, code: FaultCode, words: &[&str]) {
    let Err(fault) = open(request) else {
        panic!("accepted")
    };
    assert_eq!(fault.code, code, "{fault}");
    for word in words {
        assert!(fault.text.contains(word), "{fault} does not name {word:?}");
    }
}

#[test]
fn devices_that_are_not_there_are_refused() {
    for (device, word) in [
        ("cpu", "cuda:N"),
        ("cuda:99", "no GPU 99"),
        ("cuda:0,0", "twice"),
        ("cuda:x", "no number"),
    ] {
        let request = OpenRequest {
            device: device.to_owned(),
            ..golden_request("bert", "f32")
        };
        refused(&request, FaultCode::Unsupported, &[device, word]);
    }
}

#[test]
fn quantised_weights_are_for_others() {
    for dtype in ["int8", "int4"] {
        let request = golden_request("bert", dtype);
        let words = [dtype, "f16, bf16, f32", "candle-cpu"];
        refused(&request, FaultCode::Unsupported, &words);
    }
    let request = OpenRequest {
        options: r#"{"reference": true}"#.to_owned(),
        ..golden_request("bert", "f32")
    };
    refused(
        &request,
        FaultCode::Unsupported,
        &["reference", "candle-cpu"],
    );
}

#[test]
fn limits_of_nothing_are_refused() {
    let request = OpenRequest {
        tokens_max: 0,
        ..golden_request("bert", "f32")
    };
    refused(&request, FaultCode::BadRequest, &["tokens_max = 0"]);
}

#[test]
fn a_tensor_that_is_missing_is_named() {
    let (dir, tensor) = (copy("bert"), "bert.pooler.dense.weight");
    edit_tensors(dir.path(), |header, _| drop(header.remove(tensor)));
    let request = OpenRequest {
        model_dir: dir.path().to_owned(),
        ..golden_request("bert", "f16")
    };
    refused(&request, FaultCode::BadModel, &[tensor]);
}
