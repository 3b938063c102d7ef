//! What one row holds is its own affair: it fails, overflows or ignores what it does not need, alone.

mod common;

use backend_api::RowStatus;
use common::edit::{copy, edit_tensors};
use common::{GoldenRow, golden_dir, golden_rows, open, request, score};
use cpu_int8::kernel::Dtype;

/// The table of words of the golden "bert".
const WORDS: &str = "bert.embeddings.word_embeddings.weight";

#[test]
fn a_row_with_unknown_ids_fails_alone() {
    let backend = open(&request(&golden_dir("bert"), "int8", "{}")).unwrap();
    let mut worker = backend.worker().unwrap();
    let good = golden_rows("bert");
    let alone = score(&mut worker, &[&good[3]]);
    let with = |ids: &[u32], types: &[u32]| GoldenRow {
        input_ids: ids.into(),
        type_ids: types.into(),
        logits: vec![],
    };
    for poison in [
        with(&[1, 120, 2], &[0, 0, 0]),
        with(&[u32::MAX], &[0]),
        with(&[1, 2], &[0, 2]),
    ] {
        let found = score(&mut worker, &[&poison, &good[3], &poison]);
        assert_eq!(
            found,
            [
                Err(RowStatus::Failed),
                alone[0].clone(),
                Err(RowStatus::Failed)
            ]
        );
    }
}

#[test]
fn a_row_that_overflows_spoils_no_later_one() {
    let dir = copy("bert");
    edit_tensors(dir.path(), |header, data| {
        // The first word's 48 values: their sum is infinite.
        let start = header[WORDS]["data_offsets"][0].as_u64().unwrap() as usize;
        for value in data[start..][..48 * 4].as_chunks_mut::<4>().0 {
            *value = 3e38_f32.to_le_bytes();
        }
    });
    let overflows = GoldenRow {
        input_ids: vec![0; 30],
        type_ids: vec![0; 30],
        logits: vec![],
    };
    let good = &golden_rows("bert")[4];
    assert!(good.input_ids.len() < 16 && !good.input_ids.contains(&0));
    for dtype in Dtype::ALL {
        let backend = open(&request(dir.path(), dtype.name(), "{}")).unwrap();
        let mut worker = backend.worker().unwrap();
        let before = score(&mut worker, &[good]);
        assert!(before[0].is_ok(), "{before:?}");
        let found = score(&mut worker, &[&overflows, good]);
        assert_ne!(found[0], before[0]);
        assert_eq!(found[1], before[0], "{}", dtype.name());
        assert_eq!(score(&mut worker, &[good]), before, "{}", dtype.name());
    }
}

/// A model with one token type does not look at them: tokenizers of RoBERTa's relatives number the
/// second text 1.
#[test]
fn a_model_without_token_types_ignores_them() {
    for name in ["roberta", "distilbert", "deberta-v3"] {
        let backend = open(&request(&golden_dir(name), "int8", "{}")).unwrap();
        let mut worker = backend.worker().unwrap();
        let row = golden_rows(name).pop().unwrap();
        let typed = GoldenRow {
            type_ids: vec![1; row.input_ids.len()],
            ..row.clone()
        };
        assert_eq!(
            score(&mut worker, &[&row]),
            score(&mut worker, &[&typed]),
            "{name}"
        );
    }
}
