//! What the contract promises of every plugin.

mod common;

use backend_api::PluginLibrary;
use backend_api::conformance::{self, Subject};
use common::{BERT, DEBERTA, DISTILBERT, EXTERNAL, HALF, INT8, MODERNBERT, Model, XLM_ROBERTA};
use common::{has_runtime, request};
use ort_coreml::OrtCoreMl;

/// How far a score may move with the rows beside it: sums in another order.
const TOLERANCE: f32 = 1e-5;
/// The same where logits come in halves.
const HALF_TOLERANCE: f32 = 2e-3;
/// Dynamic quantisation has one scale for a whole rectangle, so a row's rounding depends on what lies beside it.
const INT8_TOLERANCE: f32 = 0.15;

fn check(model: Model, type_vocab_size: u32, tolerance: f32) {
    if !has_runtime() {
        return;
    }
    let (library, dir) = (
        PluginLibrary::in_process::<OrtCoreMl>().unwrap(),
        model.dir(),
    );
    for options in ["{}", r#"{"rectangle_tokens":40,"width_multiple":8}"#] {
        conformance::run(&Subject {
            library: &library,
            request: request(dir.path(), model.dtype, options),
            vocab_size: 120,
            type_vocab_size,
            tolerance,
        });
    }
}

#[test]
fn bert() {
    check(BERT, 2, TOLERANCE);
}

#[test]
fn distilbert() {
    check(DISTILBERT, 1, TOLERANCE);
}

#[test]
fn xlm_roberta() {
    check(XLM_ROBERTA, 1, TOLERANCE);
}

#[test]
fn modernbert() {
    check(MODERNBERT, 1, TOLERANCE);
}

#[test]
fn deberta() {
    check(DEBERTA, 1, TOLERANCE);
}

#[test]
fn electra_in_halves() {
    check(HALF, 2, HALF_TOLERANCE);
}

#[test]
fn camembert_in_int8() {
    check(INT8, 1, INT8_TOLERANCE);
}

#[test]
fn electra_with_external_data() {
    check(EXTERNAL, 2, TOLERANCE);
}
