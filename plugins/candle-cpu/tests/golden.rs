//! Every golden model against the logits that `transformers` computes (plugins/golden/make_golden.py), in
//! every data type; and a row's independence of everything around it.

mod common;

use backend_api::{OpenRequest, Plugin, RaggedBatch, RowControl, RowStatus, Scores};
use candle_cpu::CandleCpu;
use common::edit::{copy, edit_tensors, set_config};
use common::suite::{check_a_row_fails_alone, check_logits, check_own_scores};
use common::{
    GoldenRow, farthest, golden, golden_names, golden_request, open, score, score_all, with_option,
};
use serde_json::json;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// Products and sums in another order than PyTorch's, and the last bits of exp and erf: 3.9e-6 at most.
const F32_TOLERANCE: f32 = 1e-4;
/// Eleven bits of mantissa in the weights, and no more than f32 where the checkpoint is in halves: 1.7e-3.
const F16_TOLERANCE: f32 = 3e-3;
/// Eight bits: 0.02.
const BF16_TOLERANCE: f32 = 0.03;
/// 32 weights of 8 bits with a scale: 0.083 in most models, whose logits have a standard deviation of
/// about 1. Random weights are a harsher case than trained ones.
const INT8_TOLERANCE: f32 = 0.1;
/// 32 weights of 4 bits with a scale and a least one; these models are so narrow that errors hardly
/// average out: 1.2.
const INT4_TOLERANCE: f32 = 1.4;
/// UMT5 adds what it computes to a stream that is never normed, twice as often as the others: 0.16 and 1.
const UMT5_INT8_TOLERANCE: f32 = 0.2;

fn tolerance(name: &str, dtype: &str) -> f32 {
    match dtype {
        "f32" => F32_TOLERANCE,
        "f16" => F16_TOLERANCE,
        "bf16" => BF16_TOLERANCE,
        "int8" if name == "umt5" => UMT5_INT8_TOLERANCE,
        "int8" => INT8_TOLERANCE,
        _ => INT4_TOLERANCE,
    }
}

/// Eleven bits in whatever is passed on, too: 0.015.
const HALVES_TOLERANCE: f32 = 0.02;

/// How far a score may move with the rows beside it, the threads and the order: sums in blocks of other sizes.
const NEIGHBOURS_TOLERANCE: f32 = 2e-5;

#[track_caller]
fn check_all(dtype: &str, option: Option<&str>) {
    let request = |name: &str| {
        let request = golden_request(name, dtype);
        match option {
            // On CPUs gemm keeps parts of a long sum in f16: 0.16 off where a query sees 8,192 keys alike. Metal's
            // products add up in f32.
            Some("halves") if name.ends_with("-8192") => None,
            Some(option) => Some(with_option(request, option, json!(true))),
            None => Some(request),
        }
    };
    check_logits(dtype, request, |name| match option {
        Some("halves") => HALVES_TOLERANCE,
        _ => tolerance(name, dtype),
    });
}

#[test]
fn f32_agrees_with_transformers() {
    check_all("f32", None);
}

#[test]
fn f16_agrees_with_transformers() {
    check_all("f16", None);
}

#[test]
fn bf16_agrees_with_transformers() {
    check_all("bf16", None);
}

#[test]
fn int8_agrees_with_transformers() {
    check_all("int8", None);
}

#[test]
fn int4_agrees_with_transformers() {
    check_all("int4", None);
}

/// candle's own operations, which other devices compute with: the same models, in f64.
#[test]
fn the_reference_agrees_with_transformers() {
    check_all("f32", Some("reference"));
}

/// The same operations in f16, as a GPU computes them by Metal.
#[test]
fn halves_agree_with_transformers() {
    check_all("f16", Some("halves"));
}

/// On one thread and on two.
#[test]
fn a_rows_score_is_its_own() {
    for name in golden_names() {
        for dtype in ["f32", "int4"] {
            let request = golden_request(&name, dtype);
            let two = OpenRequest {
                n_threads: 2,
                ..request.clone()
            };
            check_own_scores(&name, &[request, two], NEIGHBOURS_TOLERANCE);
        }
    }
}

#[test]
fn a_row_that_cannot_be_scored_fails_alone() {
    check_a_row_fails_alone(F32_TOLERANCE);
}

/// Rows are looked at between rectangles: when a deadline passes during a call, what was computed by then
/// is scored and the rest is not.
#[test]
fn a_deadline_ends_a_long_batch() {
    let backend = CandleCpu::open(&golden_request("bert", "f32")).unwrap();
    let mut worker = backend.worker().unwrap();
    let row = golden("bert").rows.pop().unwrap();
    let (n_rows, len) = (400, row.input_ids.len());
    let (ids, types) = (row.input_ids.repeat(n_rows), row.type_ids.repeat(n_rows));
    let offsets: Vec<u32> = (0..=n_rows).map(|row| (row * len) as u32).collect();
    let wanted = AtomicBool::new(true);
    let mut run = |deadline_us: u64| {
        let control = RowControl {
            deadline_us,
            wanted: &wanted,
        };
        let controls = vec![control; n_rows];
        let limits = backend.description().limits();
        let started = Instant::now();
        let batch =
            RaggedBatch::check(&ids, &types, &offsets, &[], &controls, &limits, started).unwrap();
        let (mut logits, mut statuses) = (vec![0.0; n_rows], vec![255; n_rows]);
        let mut scores = Scores::check(&mut logits, &mut statuses, 1).unwrap();
        worker.score(&batch, &mut scores).unwrap();
        let statuses = statuses.into_iter().map(RowStatus::from_number);
        (statuses.collect::<Vec<_>>(), started.elapsed())
    };
    let (all, elapsed) = run(u64::MAX);
    assert!(all.iter().all(|&status| status == RowStatus::Scored));
    // Half of the time that one run took may be all of another's: whatever else the machine does.
    let mut shares = (1..=40).map(|try_| elapsed.as_micros() as u64 * try_ / 40);
    let mut found = (Vec::new(), 0);
    let was_cut = shares.any(|deadline_us| {
        let (some, _) = run(deadline_us);
        let scored = some
            .iter()
            .take_while(|&&status| status == RowStatus::Scored);
        let n_scored = scored.count();
        found = (some, n_scored);
        0 < n_scored && n_scored < n_rows
    });
    let (some, n_scored) = found;
    assert!(was_cut, "no deadline ended a batch in its middle");
    assert!(
        some[n_scored..]
            .iter()
            .all(|&status| status == RowStatus::Expired)
    );
}

/// The last token that is not padding speaks for a row, and a row without the token that a T5's head reads
/// fails alone.
#[test]
fn a_row_without_an_end_fails_alone() {
    let backend = open(&golden_request("t5", "f32")).unwrap();
    let rows = golden("t5").rows;
    let mut endless = rows[4].clone();
    for id in &mut endless.input_ids {
        *id = (*id).max(2);
    }
    let found = score(
        &mut backend.worker().unwrap(),
        &[&rows[3], &endless, &rows[5]],
    );
    assert_eq!(found[1], Err(RowStatus::Failed));
    let expected = [&rows[3].logits, &rows[5].logits];
    let found = [found[0].as_ref().unwrap(), found[2].as_ref().unwrap()];
    assert!(farthest(expected, found) < F32_TOLERANCE);
}

/// Where there is one type, or none, types are passed over; elsewhere one beyond the table fails its row.
#[test]
fn types_that_tell_nothing_apart_are_passed_over() {
    for (name, expected) in [("xlm-roberta", true), ("distilbert", true), ("bert", false)] {
        let mut row = golden(name).rows.swap_remove(4);
        let mut worker = open(&golden_request(name, "f32"))
            .unwrap()
            .worker()
            .unwrap();
        row.type_ids.fill(7);
        let found = score(&mut worker, &[&row]).swap_remove(0);
        match found {
            Ok(found) => assert!(
                expected && farthest([&row.logits], [&found]) < F32_TOLERANCE,
                "{name}"
            ),
            Err(status) => assert!(
                !expected && status == RowStatus::Failed,
                "{name}: {status:?}"
            ),
        }
    }
}

/// The host names the tokens; without the second the first one's logit is the score.
#[test]
fn tokens_come_with_the_request() {
    let golden = golden("qwen3-yes-no");
    let rows: Vec<&GoldenRow> = golden.rows.iter().collect();
    let by = |yes_token: u32, no_token: Option<u32>| {
        let asked = OpenRequest {
            yes_token: Some(yes_token),
            no_token,
            options: "{}".to_owned(),
            ..golden_request("qwen3-yes-no", "f32")
        };
        score_all(&mut open(&asked).unwrap().worker().unwrap(), &rows)
    };
    let expected = golden.rows.iter().map(|row| &row.logits);
    assert!(farthest(expected.clone(), &by(9, Some(21))) < F32_TOLERANCE);
    let (yes, no) = (by(9, None), by(21, None));
    let found = yes.iter().zip(&no).map(|(yes, no)| vec![yes[0] - no[0]]);
    assert!(farthest(expected, &found.collect::<Vec<_>>()) < F32_TOLERANCE);
}

/// T5 1.1 has an output table of its own, and does not scale what it decodes.
#[test]
fn a_t5s_own_output_counts() {
    let dir = copy("t5-true-false");
    edit_tensors(dir.path(), |header, data| {
        let shared = header["shared.weight"].clone();
        let range = |at: usize| shared["data_offsets"][at].as_u64().unwrap() as usize;
        let (start, end) = (data.len(), data.len() + range(1) - range(0));
        data.extend_from_within(range(0)..range(1));
        let mut own = shared.clone();
        own["data_offsets"] = json!([start, end]);
        header.insert("lm_head.weight".to_owned(), own);
        // Nobody may read the words in place of it: their token of yes is another now.
        let row = (range(1) - range(0)) / 120;
        data[range(0) + 30 * row..range(0) + 31 * row].fill(0);
    });
    set_config(dir.path(), "scale_decoder_outputs", json!(false));
    let request = OpenRequest {
        model_dir: dir.path().to_owned(),
        ..golden_request("t5-true-false", "f32")
    };
    let mut worker = open(&request).unwrap().worker().unwrap();
    for row in golden("t5-true-false").rows {
        if row.input_ids.contains(&30) {
            continue;
        }
        let found = score_all(&mut worker, &[&row]);
        let expected = row.logits[0] * 32.0_f32.sqrt();
        assert!(
            (found[0][0] - expected).abs() < F32_TOLERANCE,
            "{found:?}, {expected}"
        );
    }
}
