//! Nothing of ours is allocated in `score` after a worker's first batches. What ONNX Runtime takes for itself in a run, it takes
//! from C's allocator, which is not counted here.

#![allow(unsafe_code)] // A global allocator that counts.

mod common;

use backend_api::{Plugin, RaggedBatch, RowControl, Scores};
use common::{BERT, FIXED, HALF, INT8, has_runtime, request};
use ort_coreml::OrtCoreMl;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

struct Counting;

thread_local! {
    // Const: reading it allocates nothing. Of this thread alone, whatever the test harness does on others.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps `dealloc`'s contract, and `ptr` came from `System.alloc`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

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
        let before = ALLOCATIONS.get();
        worker.score(&batch, &mut scores).unwrap();
        assert_eq!(ALLOCATIONS.get() - before, 0, "{} {options}", model.name);
        assert!(statuses.iter().all(|&status| status == 0));
    }
}
