//! A plugin starts no thread beyond its budget. candle has a pool of as many spinning threads as the machine
//! has cores, and gemm and rayon have theirs: none may come to life, whatever is computed.

#![cfg(target_os = "linux")] // Threads are counted in /proc.

mod common;

use backend_api::OpenRequest;
use common::{GoldenRow, golden, golden_names, golden_request, open, score_all};

/// What those pools read their size from, on machines with one core too.
const POOL_SIZE: &str = "RAYON_NUM_THREADS";

/// Names of this process's threads.
fn threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.map(|task| {
        // A thread may end while we look.
        let name = std::fs::read_to_string(task.unwrap().path().join("comm"));
        name.unwrap_or_default().trim().to_owned()
    });
    names.collect()
}

/// In a process of its own, whose environment asks for pools of four threads.
#[test]
fn pools_stay_asleep() {
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "no_thread_is_left_or_added"])
        .env(POOL_SIZE, "4")
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

#[test]
#[ignore = "pools_stay_asleep runs it"]
fn no_thread_is_left_or_added() {
    assert_eq!(std::env::var(POOL_SIZE).as_deref(), Ok("4"));
    let before = threads();
    for name in golden_names() {
        let rows = golden(&name).rows;
        // Enough for every threshold in candle and gemm: rectangles of 512 cells, and one of 8,192.
        let short = rows.iter().take(8).cycle().take(500);
        let many: Vec<&GoldenRow> = rows.iter().chain(short).collect();
        for dtype in ["f32", "f16", "bf16", "int8", "int4"] {
            let mut worker = open(&golden_request(&name, dtype))
                .unwrap()
                .worker()
                .unwrap();
            score_all(&mut worker, &many);
            assert_eq!(threads(), before, "{name} in {dtype}");
        }
        // With two threads one comes and goes within the call.
        let two = OpenRequest {
            n_threads: 2,
            ..golden_request(&name, "f32")
        };
        let mut worker = open(&two).unwrap().worker().unwrap();
        score_all(&mut worker, &many);
        assert_eq!(threads(), before, "{name} with two threads");
    }
}
