//! What the contract promises of every plugin, of each kind of model and in each data type.

#![cfg(target_os = "macos")]

mod common;

use backend_api::{OpenRequest, PluginLibrary};
use candle_metal::CandleMetal;
use common::golden_request;
use common::suite::{check_contract, order_tolerance};

#[track_caller]
fn check(name: &str, dtypes: &[&str], type_vocab_size: u32) {
    let library = PluginLibrary::in_process::<CandleMetal>().unwrap();
    for dtype in dtypes {
        // T5 has no positions that would bound a row.
        let request = OpenRequest {
            row_tokens_max: 1_024,
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
fn scores_that_fall_with_distance() {
    check("jina-bert", &["f32", "f16"], 2);
}

#[test]
fn decoders() {
    check("qwen3-3-labels", &ALL, 1);
    check("qwen3-yes-no", &["f16"], 1);
    check("t5-true-false", &["f32"], 1);
}
