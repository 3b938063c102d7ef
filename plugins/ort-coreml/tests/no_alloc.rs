//! Nothing of ours is allocated in `score` after a worker's first batches. What ONNX Runtime takes for itself in a run, it takes
//! from C's allocator, which is not counted here.

#![allow(unsafe_code)] // A global allocator that counts.

#[path = "../../golden/allocations.rs"]
mod allocations;
mod common;

use allocations::allocations;
use backend_api::{Plugin, RaggedBatch, RowControl, Scores};
use common::{BERT, FIXED, HALF, INT8, has_runtime, request};
use ort_coreml::OrtCoreMl;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

#[test]
fn score_allocates_nothing_after_warm_up() {
    if !has_runtime() {
        return;
    }
    for (model, options) in [
        (BERT, "{}"),
        (BERT, r#"{"rectangle_tokens":50}"#),
        (BERT, r#"{"shapes":[[4,8],[2,40]]}"#),
        (HALF, "{}"),
        (INT8, "{}"),
        (FIXED, "{}"),
    ] {
        let rows = model.rows();
        let (mut ids, mut types, mut offsets) = (Vec::new(), Vec::new(), vec![0]);
        for row in rows
            .iter()
            .filter(|row| row.input_ids.len() <= 16)
            .cycle()
            .take(50)
        {
            ids.extend_from_slice(&row.input_ids);
            types.extend_from_slice(&row.type_ids);
            offsets.push(ids.len() as u32);
        }
        let wanted = AtomicBool::new(true);
        let controls = [RowControl {
            deadline_us: u64::MAX,
            wanted: &wanted,
        }; 50];
        // Straight to the worker: what the border allocates for an error is not this crate's.
        let dir = model.dir();
        let backend = OrtCoreMl::open(&request(dir.path(), model.dtype, options)).unwrap();
        let limits = backend.description().limits();
        let batch = RaggedBatch::check(
            &ids,
            &types,
            &offsets,
            &[],
            &controls,
            &limits,
            Instant::now(),
        )
        .unwrap();
        let n_labels = backend.description().n_labels as usize;
        let (mut logits, mut statuses) = (vec![0.0; 50 * n_labels], vec![255; 50]);
        let mut scores = Scores::check(&mut logits, &mut statuses, n_labels).unwrap();
        let mut worker = backend.worker().unwrap();
        worker.score(&batch, &mut scores).unwrap();
        let before = allocations();
        worker.score(&batch, &mut scores).unwrap();
        assert_eq!(allocations() - before, 0, "{} {options}", model.name);
        assert!(statuses.iter().all(|&status| status == 0));
    }
}
