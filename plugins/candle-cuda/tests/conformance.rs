//! What the contract promises of every plugin, of each kind of model and in each data type.

mod common;

use backend_api::{OpenRequest, PluginLibrary};
use candle_cuda::CandleCuda;
use common::golden_request;
use common::suite::{check_contract, order_tolerance};

fn check(name: &str, dtypes: &[&str], type_vocab_size: u32) {
    let library = PluginLibrary::in_process::<CandleCuda>().unwrap();
    for dtype in dtypes {
        // The suite computes rows of the longest length that it is allowed, emulated as on a GPU.
        let request = OpenRequest {
            rows_max: 64,
            tokens_max: 512,
            row_tokens_max: 128,
            ..golden_request(name, dtype)
        };
        check_contract(&library, request, type_vocab_size, order_tolerance(dtype));
    }
}

const ALL: [&str; 3] = ["f32", "f16", "bf16"];

#[test]
fn bert() {
    check("bert", &ALL, 2);
}

#[test]
fn three_labels() {
    check("bert-sharded-3-labels", &["f16"], 2);
}

#[test]
fn modernbert() {
    check("modernbert", &ALL, 1);
}

#[test]
fn deberta() {
    check("deberta-v3", &ALL, 1);
}

#[test]
fn jina() {
    check("jina-bert", &["f32", "f16"], 2);
}

#[test]
fn decoders() {
    check("qwen3-3-labels", &["f32", "bf16"], 1);
    check("qwen2-yes-no", &["f32"], 1);
}

#[test]
fn t5() {
    check("t5-true-false", &["f32", "bf16"], 1);
}
