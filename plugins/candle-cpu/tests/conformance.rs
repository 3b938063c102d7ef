//! What the contract promises of every plugin, of each kind of model and in each data type.

mod common;

use backend_api::{OpenRequest, PluginLibrary};
use candle_cpu::CandleCpu;
use common::golden_request;
use common::suite::check_contract;

/// Sums in blocks of other sizes.
const TOLERANCE: f32 = 2e-5;

fn check(name: &str, dtypes: &[&str], type_vocab_size: u32) {
    let library = PluginLibrary::in_process::<CandleCpu>().unwrap();
    for dtype in dtypes {
        // T5 has no positions that would bound a row.
        let request = OpenRequest {
            row_tokens_max: 1_024,
            ..golden_request(name, dtype)
        };
        check_contract(&library, request, type_vocab_size, TOLERANCE);
    }
}

const ALL: [&str; 5] = ["f32", "f16", "bf16", "int8", "int4"];

#[test]
fn bert() {
    check("bert", &ALL, 2);
}

#[test]
fn sharded_bert_with_three_labels() {
    check("bert-sharded-3-labels", &["f32"], 2);
}

#[test]
fn roberta() {
    check("roberta", &["f32", "int8"], 1);
}

#[test]
fn distilbert() {
    check("distilbert", &["f32"], 1);
}

#[test]
fn projected_electra() {
    check("electra-projected", &["f32"], 2);
}

#[test]
fn modernbert() {
    check("modernbert", &ALL, 1);
}

#[test]
fn modernbert_that_pools_the_mean() {
    check("modernbert-mean-older-keys", &["f32"], 1);
}

#[test]
fn deberta() {
    check("deberta-v3", &ALL, 1);
}

#[test]
fn jina() {
    check("jina-bert", &["f32", "int8"], 2);
    check("jina-embeddings-v3", &["f32"], 1);
}

#[test]
fn gte() {
    check("gte", &["f32"], 2);
}

#[test]
fn decoders_that_classify() {
    check("qwen2", &["f32"], 1);
    check("qwen3-3-labels", &ALL, 1);
}

#[test]
fn decoders_that_generate() {
    check("qwen3-yes-no", &["f32", "int4"], 1);
    check("t5-true-false", &["f32", "int8"], 1);
}
