//! Every family's small model against the logits that `transformers` computes
//! (plugins/golden/make_golden.py), by every kernel that this CPU has; and a row's independence of
//! everything around it.

#![allow(clippy::print_stdout)] // The measured differences, and which kernels ran.

mod common;

use backend_api::{Plugin, RaggedBatch, RowControl, RowStatus, Scores};
use common::{GOLDEN, GoldenRow, golden_dir, golden_rows, kernel_request, open, score, score_bits};
use cpu_int8::CpuInt8;
use cpu_int8::kernel::{Dtype, available};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// The f32 path differs from PyTorch in the order of sums and the last bits of exp and erf only.
const F32_TOLERANCE: f32 = 1e-4;
/// Eight bits of mantissa in every product's operands.
const BF16_TOLERANCE: f32 = 0.03;
/// What i8 costs on these models, whose logits have a standard deviation of about 1: 0.064 at most
/// (see the output with `--nocapture`). Random weights are a harsher case than trained ones.
const INT8_TOLERANCE: f32 = 0.08;

/// Eleven bits of mantissa in the weights alone: 1.4e-3 at most, and no more than f32 where the
/// checkpoint is in F16 or BF16.
const F16_TOLERANCE: f32 = 2e-3;
/// Sixteen levels a group of 16 weights: 0.64 at most. These models' layers are 32 to 64 wide, so that
/// errors hardly average out.
const INT4_TOLERANCE: f32 = 0.7;

/// ModernBERT's gate multiplies two such results, in layers whose stream is never normalised: 0.055
/// and 0.159 at most, over rows of up to 25 times the window. In i8 the largest difference is a matter
/// of luck: with words in f32 it was 0.111, with their scales for 16 or 32 values 0.144 and 0.195.
const MODERN_BF16_TOLERANCE: f32 = 0.08;
const MODERN_INT8_TOLERANCE: f32 = 0.2;
/// 0.89 at most.
const MODERN_INT4_TOLERANCE: f32 = 1.0;

/// What a model's logits may be off by.
fn tolerance(name: &str, dtype: Dtype) -> f32 {
    match (dtype, name.starts_with("modernbert")) {
        (Dtype::F32, _) => F32_TOLERANCE,
        (Dtype::F16, _) => F16_TOLERANCE,
        (Dtype::Int4, false) => INT4_TOLERANCE,
        (Dtype::Int4, true) => MODERN_INT4_TOLERANCE,
        (Dtype::Bf16, false) => BF16_TOLERANCE,
        (Dtype::Bf16, true) => MODERN_BF16_TOLERANCE,
        (Dtype::Int8, false) => INT8_TOLERANCE,
        (Dtype::Int8, true) => MODERN_INT8_TOLERANCE,
    }
}

/// The largest difference to the golden logits of one model by one kernel.
fn worst(name: &str, dtype: Dtype, kernel: &str) -> f32 {
    let backend = open(&kernel_request(&golden_dir(name), dtype.name(), kernel)).unwrap();
    assert_eq!(backend.description().kernel, kernel);
    let rows = golden_rows(name);
    let found = score(
        &mut backend.worker().unwrap(),
        &rows.iter().collect::<Vec<_>>(),
    );
    let mut worst = 0.0_f32;
    for (row, found) in rows.iter().zip(found) {
        let found = found.unwrap();
        assert_eq!(found.len(), row.logits.len(), "{name}: labels");
        for (expected, found) in row.logits.iter().zip(found) {
            assert!(found.is_finite());
            worst = worst.max((expected - found).abs());
        }
    }
    worst
}

fn check_all(dtype: Dtype) {
    let mut failures = Vec::new();
    for name in GOLDEN {
        let tolerance = tolerance(name, dtype);
        for kernel in available(dtype) {
            let worst = worst(name, dtype, kernel);
            println!("{name} by {kernel}: at most {worst:.2e} off");
            if tolerance < worst {
                failures.push(format!(
                    "{name} by {kernel}: {worst} off, {tolerance} allowed"
                ));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn f32_agrees_with_transformers() {
    check_all(Dtype::F32);
}

#[test]
fn bf16_agrees_with_transformers() {
    check_all(Dtype::Bf16);
}

#[test]
fn int8_agrees_with_transformers() {
    check_all(Dtype::Int8);
}

#[test]
fn f16_agrees_with_transformers() {
    check_all(Dtype::F16);
}

#[test]
fn int4_agrees_with_transformers() {
    check_all(Dtype::Int4);
}

/// Batch, single rows, reversed batch, a second worker on another thread, a batch of copies: the
/// same bits.
#[test]
fn a_rows_score_is_its_own() {
    for name in [
        "bert",
        "roberta",
        "electra-projected",
        "distilbert",
        "modernbert",
        "modernbert-mean-older-keys",
        "deberta-v3",
        "deberta-v2-projected",
        "deberta-v2-c2p",
        "deberta-v2-p2c",
    ] {
        for dtype in Dtype::ALL {
            for kernel in available(dtype) {
                independent(name, dtype, kernel);
            }
        }
    }
}

fn independent(name: &str, dtype: Dtype, kernel: &str) {
    let backend = open(&kernel_request(&golden_dir(name), dtype.name(), kernel)).unwrap();
    let rows = golden_rows(name);
    // 9 rows or more, most of up to 40 tokens, three times: several micro-batches, with every row in each height
    // of tile.
    let many: Vec<&GoldenRow> = rows.iter().chain(&rows).chain(rows.iter().rev()).collect();
    let mut worker = backend.worker().unwrap();
    let together = score_bits(&mut worker, &many);
    for (row_idx, row) in many.iter().enumerate() {
        let alone = score_bits(&mut worker, &[row]);
        assert_eq!(
            alone[0], together[row_idx],
            "{name} by {kernel}: row {row_idx} alone"
        );
    }
    let backwards: Vec<&GoldenRow> = many.iter().rev().copied().collect();
    let mut found = score_bits(&mut worker, &backwards);
    found.reverse();
    assert_eq!(found, together, "{name} by {kernel}: backwards");
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let (mut worker, many, together) = (backend.worker().unwrap(), &many, &together);
            scope.spawn(move || {
                assert_eq!(
                    &score_bits(&mut worker, many),
                    together,
                    "{name} by {kernel}: a thread"
                )
            });
        }
    });
}

/// All i8 kernels have the same sums, of int8 and of int4 weights; only f32 rounding in between may differ (fused or not).
#[test]
fn int8_kernels_agree_with_each_other() {
    for (name, dtype) in GOLDEN
        .iter()
        .flat_map(|name| [(name, Dtype::Int8), (name, Dtype::Int4)])
    {
        let rows = golden_rows(name);
        let rows: Vec<&GoldenRow> = rows.iter().collect();
        let scores = available(dtype).into_iter().map(|kernel| {
            let backend = open(&kernel_request(&golden_dir(name), dtype.name(), kernel)).unwrap();
            (kernel, score(&mut backend.worker().unwrap(), &rows))
        });
        let scores: Vec<_> = scores.collect();
        // The two kernels without an instruction set differ in packing and correction alone: equal
        // bits.
        let of = |name: &str| &scores.iter().find(|(kernel, _)| *kernel == name).unwrap().1;
        assert_eq!(
            of("scalar-i8"),
            of("emulated-u8i8-dpbusd"),
            "{name} in {}: i8 and u8 form",
            dtype.name()
        );
    }
}

/// Rows are looked at between micro-batches: when a deadline passes during a call, what was
/// computed by then is scored and the rest is not.
#[test]
fn a_deadline_ends_a_long_batch() {
    // The slowest kernel: 400 rows of 40 tokens take long beside a thread's delay on a busy
    // machine.
    let backend = CpuInt8::open(&kernel_request(&golden_dir("bert"), "int8", "scalar-i8")).unwrap();
    let mut worker = backend.worker().unwrap();
    let row = golden_rows("bert").pop().unwrap();
    let (n_rows, len) = (400, row.input_ids.len());
    let (ids, types) = (row.input_ids.repeat(n_rows), row.type_ids.repeat(n_rows));
    let offsets: Vec<u32> = (0..=n_rows).map(|row| (row * len) as u32).collect();
    let wanted = AtomicBool::new(true);
    let mut run = |deadline_us: u64| {
        let controls = vec![
            RowControl {
                deadline_us,
                wanted: &wanted
            };
            n_rows
        ];
        let limits = backend.description().limits();
        let started = Instant::now();
        let batch =
            RaggedBatch::check(&ids, &types, &offsets, &[], &controls, &limits, started).unwrap();
        let (mut logits, mut statuses) = (vec![0.0; n_rows], vec![255; n_rows]);
        let mut scores = Scores::check(&mut logits, &mut statuses, 1).unwrap();
        worker.score(&batch, &mut scores).unwrap();
        (
            statuses
                .into_iter()
                .map(RowStatus::from_number)
                .collect::<Vec<_>>(),
            started.elapsed(),
        )
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
