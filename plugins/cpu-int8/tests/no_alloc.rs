//! Nothing is allocated in `score` after a worker's first batch.

#![allow(unsafe_code)] // A global allocator that counts.

#[path = "../../golden/allocations.rs"]
mod allocations;
mod common;

use allocations::allocations;
use backend_api::{Plugin, RaggedBatch, RowControl, Scores};
use common::{golden_dir, golden_rows, request};
use cpu_int8::CpuInt8;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

#[test]
fn score_allocates_nothing_after_warm_up() {
    for (name, dtype) in [
        ("bert", "int8"),
        ("bert", "f32"),
        ("bert", "int4"),
        ("bert", "f16"),
        ("roberta", "int8"),
        ("electra-projected", "int8"),
        ("modernbert", "int8"),
        ("modernbert", "int4"),
        ("modernbert-mean-older-keys", "bf16"),
        ("deberta-v3", "int8"),
        ("deberta-v2-projected", "f32"),
    ] {
        let rows = golden_rows(name);
        let wanted = AtomicBool::new(true);
        let (mut ids, mut types, mut offsets) = (Vec::new(), Vec::new(), vec![0]);
        for row in rows.iter().cycle().take(50) {
            ids.extend_from_slice(&row.input_ids);
            types.extend_from_slice(&row.type_ids);
            offsets.push(ids.len() as u32);
        }
        let controls = vec![
            RowControl {
                deadline_us: u64::MAX,
                wanted: &wanted
            };
            50
        ];
        // Straight to the worker: what the border allocates for an error is not this crate's.
        let backend = CpuInt8::open(&request(&golden_dir(name), dtype, "{}")).unwrap();
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
        assert_eq!(allocations() - before, 0, "{name} in {dtype}");
        assert!(statuses.iter().all(|&status| status == 0));
    }
}
