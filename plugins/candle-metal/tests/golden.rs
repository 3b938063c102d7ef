//! Every golden model against the logits that `transformers` computes (plugins/golden/make_golden.py), in every data
//! type; and a row's independence of everything around it.

#![cfg(target_os = "macos")]
#![allow(clippy::print_stdout)] // The measured differences.

mod common;

use backend_api::{Fault, OpenRequest, RowStatus};
use common::{GoldenRow, farthest, golden, golden_names, golden_request, open, score, score_all};

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

/// The largest difference to a model's golden logits.
fn worst(name: &str, request: &OpenRequest) -> Result<f32, Fault> {
    let golden = golden(name);
    let backend = open(request)?;
    let mut worker = backend.worker()?;
    let rows: Vec<&GoldenRow> = golden.rows.iter().collect();
    let found = score_all(&mut worker, &rows);
    Ok(farthest(golden.rows.iter().map(|row| &row.logits), &found))
}

#[track_caller]
fn check_all(dtype: &str) {
    let mut failures = Vec::new();
    for name in golden_names() {
        let tolerance = tolerance(&name, dtype);
        match worst(&name, &golden_request(&name, dtype)) {
            Ok(worst) if worst <= tolerance => println!("{name} in {dtype}: {worst:.1e} off"),
            Ok(worst) => failures.push(format!("{name}: {worst} off, {tolerance} allowed")),
            Err(fault) => failures.push(format!("{name}: {fault}")),
        }
    }
    assert!(failures.is_empty(), "{dtype}: {failures:#?}");
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

/// A row's logits alone, in one batch with all others, turned round, and among 64 rows of other lengths.
#[test]
fn a_rows_score_is_its_own() {
    for name in golden_names() {
        for (dtype, tolerance) in [("f32", 2e-5), ("f16", F16_TOLERANCE)] {
            let golden = golden(&name);
            let rows: Vec<&GoldenRow> = golden.rows.iter().collect();
            let backend = open(&golden_request(&name, dtype)).unwrap();
            let mut worker = backend.worker().unwrap();
            let alone = rows.iter().flat_map(|row| score_all(&mut worker, &[row]));
            let alone: Vec<_> = alone.collect();
            let all: Vec<_> = (0..rows.len()).collect();
            let backwards: Vec<_> = all.iter().rev().copied().collect();
            // The long rows stand in the first places but once: 64 of them would be beyond the batch.
            let many: Vec<_> = (0..64).map(|at| at % rows.len().min(8)).collect();
            for picked in [all, backwards, many] {
                let found: Vec<_> = picked.iter().map(|&row| rows[row]).collect();
                let found = score_all(&mut worker, &found);
                let worst = farthest(picked.iter().map(|&row| &alone[row]), &found);
                assert!(worst <= tolerance, "{name} in {dtype}: {worst}");
            }
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

/// What cannot be scored fails alone.
#[test]
fn a_row_that_cannot_be_scored_fails_alone() {
    let rows = golden("bert").rows;
    let mut unknown = rows[4].clone();
    unknown.input_ids[1] = 1_000_000;
    let backend = open(&golden_request("bert", "f32")).unwrap();
    let mut worker = backend.worker().unwrap();
    let found = score(&mut worker, &[&rows[3], &unknown, &rows[5]]);
    assert_eq!(found[1], Err(RowStatus::Failed));
    let expected = [&rows[3].logits, &rows[5].logits];
    let found = [found[0].as_ref().unwrap(), found[2].as_ref().unwrap()];
    assert!(farthest(expected, found) < F32_TOLERANCE);
}
