//! Every golden model against the logits that `transformers` computes (plugins/golden/make_golden.py), in every data
//! type; and a row's independence of everything around it.

#![cfg(target_os = "macos")]

mod common;

use common::suite::{check_a_row_fails_alone, check_logits, check_own_scores};
use common::{GoldenRow, farthest, golden, golden_names, golden_request, open, score_all};

/// Sums in another order than PyTorch's, and an erf by a polynomial.
const F32_TOLERANCE: f32 = 1e-4;
/// Eleven bits of mantissa in weights and activations.
const F16_TOLERANCE: f32 = 2e-2;
/// Eight bits.
const BF16_TOLERANCE: f32 = 0.15;
/// UMT5 adds to a stream that is never normed, twice as often as others.
const UMT5: &str = "umt5";
const UMT5_FACTOR: f32 = 4.0;

fn tolerance(name: &str, dtype: &str) -> f32 {
    let tolerance = match dtype {
        "f32" => return F32_TOLERANCE,
        "f16" => F16_TOLERANCE,
        _ => BF16_TOLERANCE,
    };
    if name == UMT5 {
        UMT5_FACTOR * tolerance
    } else {
        tolerance
    }
}

#[track_caller]
fn check_all(dtype: &str) {
    let request = |name: &str| Some(golden_request(name, dtype));
    check_logits(dtype, request, |name| tolerance(name, dtype));
}

#[test]
fn f32_agrees_with_transformers() {
    check_all("f32");
}

#[test]
fn f16_agrees_with_transformers() {
    check_all("f16");
}

#[test]
fn bf16_agrees_with_transformers() {
    check_all("bf16");
}

/// Halves where the request leaves it open.
#[test]
fn auto_is_halves() {
    let backend = open(&golden_request("bert", "auto")).unwrap();
    assert_eq!(backend.description().dtype, "f16");
}

#[test]
fn a_rows_score_is_its_own() {
    for name in golden_names() {
        for (dtype, tolerance) in [("f32", 2e-5), ("f16", F16_TOLERANCE)] {
            check_own_scores(&name, &[golden_request(&name, dtype)], tolerance);
        }
    }
}

/// Two workers of one backend, which candle puts into one queue.
#[test]
fn workers_do_not_disturb_each_other() {
    let golden = golden("bert");
    let backend = open(&golden_request("bert", "f32")).unwrap();
    let rows: Vec<&GoldenRow> = golden.rows.iter().collect();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let mut worker = backend.worker().unwrap();
            let (golden, rows) = (&golden, &rows);
            scope.spawn(move || {
                for _ in 0..50 {
                    let found = score_all(&mut worker, rows);
                    let expected = golden.rows.iter().map(|row| &row.logits);
                    assert!(farthest(expected, &found) <= F32_TOLERANCE);
                }
            });
        }
    });
}

#[test]
fn a_row_that_cannot_be_scored_fails_alone() {
    check_a_row_fails_alone(F32_TOLERANCE);
}
