//! What candle's plugins promise of every golden model, on whichever device: the logits of `transformers`, scores that
//! are a row's own, and the contract. Their tests take this file in beside rows.rs, in a module that also has `open`
//! and `golden_request`.

#![allow(clippy::print_stdout)] // The measured differences.

use super::rows::{GoldenRow, farthest, golden, golden_dir, golden_names, score};
use super::{golden_request, open};
use backend_api::conformance::{self, Subject};
use backend_api::{Fault, OpenRequest, OpenWorker, PluginLibrary, RowStatus};
use std::path::Path;

/// A request for a model folder with this dtype and these options.
pub fn request(dir: &Path, dtype: &str, options: &str) -> OpenRequest {
    OpenRequest {
        model_dir: dir.to_owned(),
        dtype: dtype.to_owned(),
        options: options.to_owned(),
        row_tokens_max: 8_192,
        ..OpenRequest::default()
    }
}

/// A request for a golden folder, with the options that it needs.
pub fn request_of_golden(name: &str, dtype: &str) -> OpenRequest {
    let options = serde_json::Value::from(golden(name).options);
    request(&golden_dir(name), dtype, &options.to_string())
}

/// The same request with one more option.
pub fn with_option(request: OpenRequest, name: &str, value: serde_json::Value) -> OpenRequest {
    let mut options: serde_json::Value = serde_json::from_str(&request.options).unwrap();
    options[name] = value;
    OpenRequest {
        options: options.to_string(),
        ..request
    }
}

/// How far a GPU's logits may move with the rows beside them: sums in another order; in halves their last bits.
pub fn order_tolerance(dtype: &str) -> f32 {
    match dtype {
        "f32" => 2e-5,
        "f16" => 1e-2,
        _ => 0.1,
    }
}

/// Scores rows that must all be scored.
pub fn score_all(worker: &mut OpenWorker, rows: &[&GoldenRow]) -> Vec<Vec<f32>> {
    score(worker, rows)
        .into_iter()
        .map(|row| row.unwrap())
        .collect()
}

/// The largest difference to a model's golden logits, of rows with as many others as one batch holds.
fn worst(name: &str, request: &OpenRequest) -> Result<f32, Fault> {
    let golden = golden(name);
    let backend = open(request)?;
    let mut worker = backend.worker()?;
    let (mut found, mut rows) = (Vec::new(), golden.rows.iter().collect::<Vec<_>>());
    while !rows.is_empty() {
        let mut left = request.tokens_max as usize;
        let fit = rows.iter().take_while(|row| {
            let fits = row.input_ids.len() <= left;
            left -= if fits { row.input_ids.len() } else { 0 };
            fits
        });
        let batch: Vec<_> = rows.drain(..fit.count()).collect();
        found.extend(score_all(&mut worker, &batch));
    }
    Ok(farthest(golden.rows.iter().map(|row| &row.logits), &found))
}

/// Every golden model that gets a request agrees with `transformers`.
#[track_caller]
pub fn check_logits(
    dtype: &str,
    request: impl Fn(&str) -> Option<OpenRequest>,
    tolerance: impl Fn(&str) -> f32,
) {
    let (mut failures, mut n_models) = (Vec::new(), 0);
    for name in golden_names() {
        let Some(request) = request(&name) else {
            continue;
        };
        n_models += 1;
        let tolerance = tolerance(&name);
        match worst(&name, &request) {
            Ok(worst) if worst <= tolerance => println!("{name} in {dtype}: {worst:.1e} off"),
            Ok(worst) => failures.push(format!("{name}: {worst} off, {tolerance} allowed")),
            Err(fault) => failures.push(format!("{name}: {fault}")),
        }
    }
    assert!(failures.is_empty(), "{dtype}: {failures:#?}");
    assert!(0 < n_models, "{dtype}: no model was tried");
}

/// A row's logits alone, by the first of these requests, are those that it has by each of them in one batch with all
/// others, turned round, and among 64 rows.
#[track_caller]
pub fn check_own_scores(name: &str, requests: &[OpenRequest], tolerance: f32) {
    let golden = golden(name);
    let rows: Vec<&GoldenRow> = golden.rows.iter().collect();
    let mut worker = open(&requests[0]).unwrap().worker().unwrap();
    let alone = rows.iter().flat_map(|row| score_all(&mut worker, &[row]));
    let alone: Vec<_> = alone.collect();
    let all: Vec<_> = (0..rows.len()).collect();
    let backwards: Vec<_> = all.iter().rev().copied().collect();
    // The long rows stand in the first places but once: 64 of them would be beyond the batch.
    let many: Vec<_> = (0..64).map(|at| at % rows.len().min(8)).collect();
    for request in requests {
        let mut worker = open(request).unwrap().worker().unwrap();
        for (what, picked) in [
            ("together", &all),
            ("backwards", &backwards),
            ("among 64", &many),
        ] {
            let found: Vec<_> = picked.iter().map(|&row| rows[row]).collect();
            let found = score_all(&mut worker, &found);
            let worst = farthest(picked.iter().map(|&row| &alone[row]), &found);
            let (dtype, threads) = (&request.dtype, request.n_threads);
            assert!(
                worst <= tolerance,
                "{name} in {dtype} on {threads} threads, {what}: {worst}"
            );
        }
    }
}

/// What cannot be scored fails alone.
#[track_caller]
pub fn check_a_row_fails_alone(tolerance: f32) {
    let rows = golden("bert").rows;
    let mut unknown = rows[4].clone();
    unknown.input_ids[1] = 1_000_000;
    let backend = open(&golden_request("bert", "f32")).unwrap();
    let mut worker = backend.worker().unwrap();
    let found = score(&mut worker, &[&rows[3], &unknown, &rows[5]]);
    assert_eq!(found[1], Err(RowStatus::Failed));
    let expected = [&rows[3].logits, &rows[5].logits];
    let found = [found[0].as_ref().unwrap(), found[2].as_ref().unwrap()];
    assert!(farthest(expected, found) < tolerance);
}

/// A model keeps what the contract promises of every plugin.
#[track_caller]
pub fn check_contract(
    library: &PluginLibrary,
    request: OpenRequest,
    type_vocab_size: u32,
    tolerance: f32,
) {
    conformance::run(&Subject {
        library,
        request,
        vocab_size: 120,
        type_vocab_size,
        tolerance,
    });
}
