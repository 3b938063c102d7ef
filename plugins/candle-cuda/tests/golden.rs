//! Every golden model against the logits that `transformers` computes (plugins/golden/make_golden.py), in every data
//! type; and a row's independence of everything around it.

mod common;

use backend_api::{OpenRequest, RowStatus};
use common::edit::{copy, edit_tensors};
use common::suite::{check_a_row_fails_alone, check_logits, check_own_scores, order_tolerance};
use common::{
    F32_TOLERANCE, farthest, golden, golden_request, open, score, score_all, tolerance, with_graphs,
};

/// Models with a row of 8,192 tokens: emulated, their attention takes a minute each, so they are tried in one type.
const LONG: &str = "-8192";

#[track_caller]
fn check_all(dtype: &str, which: impl Fn(&str) -> bool) {
    let request = |name: &str| which(name).then(|| golden_request(name, dtype));
    check_logits(dtype, request, |_| tolerance(dtype));
}

#[test]
fn f32_agrees_with_transformers() {
    check_all("f32", |name| !name.ends_with(LONG));
}

#[test]
fn f16_agrees_with_transformers() {
    check_all("f16", |name| !name.ends_with(LONG));
}

#[test]
fn bf16_agrees_with_transformers() {
    check_all("bf16", |name| !name.ends_with(LONG));
}

#[test]
fn rows_of_8192_tokens_agree_with_transformers() {
    check_all("f16", |name| name.ends_with(LONG));
}

/// Small batches whose launches are one, among rows that nobody asked for.
#[test]
fn graphs_agree_with_transformers() {
    for (dtype, which) in [("f32", ""), ("f16", "bert")] {
        let request = |name: &str| {
            let is_tried = !name.ends_with(LONG) && name.starts_with(which);
            // A batch that is smaller than the largest graph.
            let request = is_tried.then(|| OpenRequest {
                tokens_max: 512,
                row_tokens_max: 512,
                ..golden_request(name, dtype)
            });
            request.map(|request| with_graphs(&request, Some(true)))
        };
        check_logits(dtype, request, |_| tolerance(dtype));
    }
}

/// Rows may be shorter than the model's positions: what is looked up by distance or position then is, too, and no row that fills
/// a batch up is longer.
#[test]
fn graphs_keep_to_the_longest_row() {
    const LONGEST: usize = 48;
    for name in [
        "gte-8192",
        "jina-bert-8192",
        "modernbert-8192",
        "qwen3-8192",
        "t5-512",
    ] {
        let request = OpenRequest {
            tokens_max: 1_100,
            row_tokens_max: LONGEST as u32,
            ..golden_request(name, "f32")
        };
        let mut worker = open(&with_graphs(&request, Some(true)))
            .unwrap()
            .worker()
            .unwrap();
        let golden = golden(name);
        let short = golden
            .rows
            .iter()
            .filter(|row| row.input_ids.len() <= LONGEST);
        let short: Vec<_> = short.collect();
        // A row less than shapes have, so that one is left to take up the rest.
        for n_rows in [2, 4, 16, 32] {
            let rows: Vec<_> = (0..n_rows).map(|at| short[at % short.len()]).collect();
            let found = score_all(&mut worker, &rows);
            let worst = farthest(rows.iter().map(|row| &row.logits), &found);
            assert!(worst <= F32_TOLERANCE, "{name}, {n_rows} rows: {worst}");
        }
    }
}

/// Halves where the request leaves it open: f16, or bf16 where the checkpoint is in it or the family outgrows f16.
#[test]
fn auto_is_halves() {
    for (name, expected) in [("bert", "f16"), ("t5-true-false", "bf16")] {
        let backend = open(&golden_request(name, "auto")).unwrap();
        assert_eq!(backend.description().dtype, expected, "{name}");
    }
}

#[test]
fn a_rows_score_is_its_own() {
    for name in [
        "bert",
        "modernbert",
        "deberta-v3",
        "jina-bert",
        "qwen3-yes-no",
        "t5",
    ] {
        for dtype in ["f32", "f16"] {
            let request = OpenRequest {
                tokens_max: 4_096,
                ..golden_request(name, dtype)
            };
            check_own_scores(name, &[request], order_tolerance(dtype));
        }
    }
}

#[test]
fn a_row_that_cannot_be_scored_fails_alone() {
    check_a_row_fails_alone(F32_TOLERANCE);
}

/// A state that f16 cannot hold makes its row no score, which the border says; bf16 holds it.
#[test]
fn states_beyond_f16_are_no_scores() {
    let (dir, tensor) = (copy("bert"), "bert.encoder.layer.0.intermediate.dense.bias");
    edit_tensors(dir.path(), |header, data| {
        let at = |at: usize| header[tensor]["data_offsets"][at].as_u64().unwrap() as usize;
        let (values, _) = data[at(0)..at(1)].as_chunks_mut::<4>();
        values.fill(1e5_f32.to_le_bytes());
    });
    let row = &golden("bert").rows[4];
    for (dtype, is_score) in [("f16", false), ("bf16", true), ("f32", true)] {
        let request = OpenRequest {
            model_dir: dir.path().to_owned(),
            ..golden_request("bert", dtype)
        };
        let mut worker = open(&request).unwrap().worker().unwrap();
        match score(&mut worker, &[row]).swap_remove(0) {
            Ok(logits) => assert!(is_score && logits[0].is_finite(), "{dtype}"),
            Err(status) => assert!(!is_score && status == RowStatus::NotFinite, "{dtype}"),
        }
    }
}
