//! What the contract promises of every plugin, by every kernel that this CPU has.

mod common;

use backend_api::PluginLibrary;
use backend_api::conformance::{self, Subject};
use common::{golden_dir, kernel_request};
use cpu_int8::CpuInt8;
use cpu_int8::kernel::{Dtype, available};

fn check(name: &str, type_vocab_size: u32) {
    let library = PluginLibrary::in_process::<CpuInt8>().unwrap();
    for dtype in Dtype::ALL {
        for kernel in available(dtype) {
            let request = kernel_request(&golden_dir(name), dtype.name(), kernel);
            // Bit for bit: a tolerance of nothing.
            let subject = Subject {
                library: &library,
                request,
                vocab_size: 120,
                type_vocab_size,
                tolerance: 0.0,
            };
            conformance::run(&subject);
        }
    }
}

#[test]
fn bert() {
    check("bert", 2);
}

#[test]
fn sharded_bert_with_three_labels() {
    check("bert-sharded-3-labels", 2);
}

#[test]
fn roberta() {
    check("roberta", 1);
}

#[test]
fn projected_electra() {
    check("electra-projected", 2);
}

#[test]
fn distilbert() {
    check("distilbert", 1);
}

#[test]
fn modernbert() {
    check("modernbert", 1);
}

#[test]
fn deberta() {
    check("deberta-v3", 1);
}

#[test]
fn deberta_with_projections_and_types() {
    check("deberta-v2-projected", 2);
}

#[test]
fn modernbert_that_pools_the_mean() {
    check("modernbert-mean-older-keys", 1);
}
