//! Every golden model against the logits that `transformers` computes (plugins/golden/make_golden.py), in
//! every data type; and a row's independence of everything around it.

#![allow(clippy::print_stdout)] // The measured differences.

mod common;

use backend_api::Fault;
use common::{GoldenRow, farthest, golden, golden_names, golden_request, open, score_all};

/// Products and sums in another order than PyTorch's, and the last bits of exp and erf.
const F32_TOLERANCE: f32 = 1e-4;
/// Eleven bits of mantissa in the weights.
const F16_TOLERANCE: f32 = 4e-3;
/// Eight bits.
const BF16_TOLERANCE: f32 = 0.06;
/// 32 weights of 8 bits with a scale.
const INT8_TOLERANCE: f32 = 0.06;
/// 32 weights of 4 bits with a scale; these models are so narrow that errors hardly average out.
const INT4_TOLERANCE: f32 = 1.2;

/// The largest difference to the golden logits: of all rows in one batch, and of 64 of them.
fn worst(name: &str, dtype: &str) -> Result<f32, Fault> {
    let golden = golden(name);
    let backend = open(&golden_request(name, dtype))?;
    let mut worker = backend.worker().unwrap();
    let rows: Vec<&GoldenRow> = golden.rows.iter().collect();
    let found = score_all(&mut worker, &rows);
    Ok(farthest(golden.rows.iter().map(|row| &row.logits), &found))
}

#[track_caller]
fn check_all(dtype: &str, tolerance: f32) {
    let mut failures = Vec::new();
    for name in golden_names() {
        match worst(&name, dtype) {
            Ok(worst) if worst <= tolerance => println!("{name} in {dtype}: {worst:.1e} off"),
            Ok(worst) => failures.push(format!("{name}: {worst} off, {tolerance} allowed")),
            Err(fault) => failures.push(format!("{name}: {fault}")),
        }
    }
    assert!(failures.is_empty(), "{dtype}: {failures:#?}");
}

#[test]
fn f32_agrees_with_transformers() {
    check_all("f32", F32_TOLERANCE);
}

#[test]
fn f16_agrees_with_transformers() {
    check_all("f16", F16_TOLERANCE);
}

#[test]
fn bf16_agrees_with_transformers() {
    check_all("bf16", BF16_TOLERANCE);
}

#[test]
fn int8_agrees_with_transformers() {
    check_all("int8", INT8_TOLERANCE);
}

#[test]
fn int4_agrees_with_transformers() {
    check_all("int4", INT4_TOLERANCE);
}
