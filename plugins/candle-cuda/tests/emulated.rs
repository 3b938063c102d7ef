//! What only the emulated driver can tell: what was copied and computed, what happens when memory ends or a context dies.
//!
//! It reads its settings once a process, so each test runs the others' code in a process of its own.

#![allow(clippy::print_stderr)] // What the other process said.

mod common;

use backend_api::{FaultCode, OpenRequest, PluginLibrary};
use candle_core::{DType, Device, Tensor};
use common::{GoldenRow, farthest, golden, golden_request, open, score_all, with_graphs};
use std::path::{Path, PathBuf};
use std::process::Command;

const INSIDE: &str = "CROSSGATE_TEST_INSIDE";

/// Whether this is the process of its own; if not, starts it with these settings and waits. On a GPU there is nothing
/// to set: it says so, and that is all.
fn is_inside(test: &str, settings: &[(&str, &str)]) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if std::env::var_os("CANDLE_CUDA_EMULATED").is_none() {
        eprintln!("{test}: NOT RUN: only the emulated driver can tell");
        return false;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(INSIDE, "1")
        .envs(settings.iter().copied())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{test}: {}\n{said}", output.status);
    // One that was not found would pass, too.
    let ran = String::from_utf8_lossy(&output.stdout);
    assert!(ran.contains("1 passed"), "{ran}");
    false
}

/// What cuBLAS works in, on the GPU that is emulated, and what others leave.
const WORKSPACE_BYTES: u64 = 4 << 20;
const LEFT_BYTES: u64 = 500_000;

/// Takes the GPU's memory but for so much.
fn fill_gpu(left_bytes: u64) -> Vec<Tensor> {
    const CHUNK: usize = 100_000;
    let device = Device::new_cuda(0).unwrap();
    let chunks = std::iter::from_fn(|| Tensor::zeros(CHUNK, DType::U8, &device).ok());
    let mut chunks: Vec<_> = chunks.take(1_000).collect();
    assert!(chunks.len() < 1_000, "they take nothing");
    chunks.truncate(chunks.len() - left_bytes as usize / CHUNK);
    chunks
}

/// A BERT with batches that are larger than all of its golden rows.
fn large_request() -> OpenRequest {
    OpenRequest {
        tokens_max: 4_096,
        rows_max: 256,
        ..golden_request("bert", "f32")
    }
}

/// The longest row as often as `most` tokens allow.
fn longest_rows(rows: &[GoldenRow], most: usize) -> Vec<&GoldenRow> {
    let longest = rows.iter().max_by_key(|row| row.input_ids.len()).unwrap();
    vec![longest; most / longest.input_ids.len()]
}

/// In a process of its own, the file that its driver writes a log to.
fn log_inside(test: &str) -> Option<PathBuf> {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let settings = [("EMULATED_CUDA_LOG", log.to_str().unwrap())];
    is_inside(test, &settings).then(|| std::env::var_os("EMULATED_CUDA_LOG").unwrap().into())
}

fn lines(log: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(log).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// Of each batch one copy goes up and one comes down; between them nothing is copied, and nothing waits.
#[test]
fn ids_go_up_and_logits_come_down() {
    let Some(log) = log_inside("ids_go_up_and_logits_come_down") else {
        return;
    };
    let log = log.as_path();
    for name in [
        "bert",
        "roberta",
        "modernbert-mean-older-keys",
        "deberta-v3",
        "jina-bert",
        "qwen3-yes-no",
        "t5",
        "mt5-true-false",
    ] {
        let backend = open(&golden_request(name, "f16")).unwrap();
        let mut worker = backend.worker().unwrap();
        let golden = golden(name);
        let rows: Vec<&GoldenRow> = golden.rows.iter().take(6).collect();
        score_all(&mut worker, &rows);
        let before = lines(log).len();
        score_all(&mut worker, &rows);
        let lines = lines(log).split_off(before);
        let of = |what: &str| -> Vec<&String> {
            lines.iter().filter(|line| line.starts_with(what)).collect()
        };
        assert_eq!(of("copy htod").len(), 1, "{name}: {lines:#?}");
        assert_eq!(of("copy dtoh").len(), 1, "{name}: {lines:#?}");
        // It waits for events: its own, and those of buffers that nobody else has copied.
        let is_other = |line: &String| line.starts_with("sync") && !line.ends_with("event");
        assert!(!lines.iter().any(is_other), "{name}: {lines:#?}");
        assert!(
            of("memset").is_empty() && of("pinned").is_empty(),
            "{name}: {lines:#?}"
        );
        let n_bytes = rows.len() * golden.rows[0].logits.len() * size_of::<f32>();
        assert_eq!(
            *of("copy dtoh")[0],
            format!("copy dtoh {n_bytes}"),
            "{name}"
        );
        // ModernBERT's first layer has no norm, and its stream is copied for it.
        let n_copies = usize::from(name.starts_with("modernbert"));
        assert_eq!(of("copy dtod").len(), n_copies, "{name}: {lines:#?}");
    }
}

/// A small batch is one graph: nothing else is enqueued, and its logits are its rows'. One that is larger than all graphs, or
/// that no others fill up to one, is launched as ever.
#[test]
fn a_small_batch_is_one_graph() {
    let Some(log) = log_inside("a_small_batch_is_one_graph") else {
        return;
    };
    let log = log.as_path();
    for name in ["bert", "deberta-v3", "qwen3-yes-no", "t5", "mt5-true-false"] {
        let golden = golden(name);
        let request = OpenRequest {
            rows_max: 64,
            tokens_max: 256,
            row_tokens_max: 64,
            ..golden_request(name, "f32")
        };
        let backend = open(&with_graphs(&request, Some(true))).unwrap();
        let mut worker = backend.worker().unwrap();
        let short = |row: &&GoldenRow| row.input_ids.len() <= 64;
        let mut rows: Vec<&GoldenRow> = golden.rows.iter().filter(short).collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.input_ids.len()));
        let mut check = |rows: &[&GoldenRow]| {
            let before = lines(log).len();
            let found = score_all(&mut worker, rows);
            let expected = rows.iter().map(|row| &row.logits);
            assert!(farthest(expected, &found) < 1e-4, "{name}");
            let lines = lines(log).split_off(before);
            let is_waited = |line: &String| line.as_str() == "synchronize event";
            lines
                .into_iter()
                .filter(|line| !is_waited(line))
                .collect::<Vec<_>>()
        };
        for n_rows in [1, 2, 3] {
            let lines = check(&rows[..n_rows]);
            let [line] = &lines[..] else {
                panic!("{name}, {n_rows} rows: {lines:#?}");
            };
            assert!(line.starts_with("graph "), "{name}: {line}");
        }
        // More rows than the largest shape has.
        let many = [*rows.last().unwrap(); 17];
        let lines = check(&many);
        assert!(lines.iter().any(|line| line.starts_with("launch ")));
        assert!(!lines.iter().any(|line| line.starts_with("graph ")));
    }
}

/// Graphs' memory is said, and given back with the model.
#[test]
fn graphs_have_memory_of_their_own() {
    let settings = [("EMULATED_CUDA_MEMORY_BYTES", "16000000")];
    if !is_inside("graphs_have_memory_of_their_own", &settings) {
        return;
    }
    let request = golden_request("bert", "f32");
    let bytes = |graphs| {
        let backend = open(&with_graphs(&request, Some(graphs))).unwrap();
        backend.description().memory_bytes
    };
    let [without, with] = [false, true].map(bytes);
    assert!(without < with, "{without} {with}");
    for _ in 0..3 {
        assert_eq!(bytes(true), with);
    }
    // More than there is: it does without, unless they were asked for.
    let much = OpenRequest {
        tokens_max: 8_192,
        rows_max: 1_024,
        ..request.clone()
    };
    let backend = open(&with_graphs(&much, None)).unwrap();
    let row = golden("bert").rows.remove(4);
    let found = score_all(&mut backend.worker().unwrap(), &[&row]);
    assert!(farthest([&row.logits], &found) < 1e-4);
}

/// Left open, it is measured which graphs there are. Whatever comes of it here, the logits are right.
#[test]
fn graphs_are_measured() {
    let Some(log) = log_inside("graphs_are_measured") else {
        return;
    };
    let backend = open(&with_graphs(&golden_request("bert", "f32"), None)).unwrap();
    let n_graphs = lines(&log)
        .iter()
        .filter(|line| line.starts_with("graph "))
        .count();
    assert!(2 <= n_graphs, "none was tried");
    let mut worker = backend.worker().unwrap();
    for row in &golden("bert").rows {
        let found = score_all(&mut worker, &[row]);
        assert!(farthest([&row.logits], &found) < 1e-4);
    }
}

/// The largest batch that was asked for does not fit; what is described does, and is scored.
#[test]
fn limits_shrink_to_the_memory() {
    let settings = [("EMULATED_CUDA_MEMORY_BYTES", "6200000")];
    if !is_inside("limits_shrink_to_the_memory", &settings) {
        return;
    }
    let request = large_request();
    let backend = open(&request).unwrap();
    let description = backend.description().clone();
    assert!(description.tokens_max < 4_096, "{description:?}");
    assert!(64 <= description.tokens_max, "{description:?}");
    assert!(
        (WORKSPACE_BYTES..6_200_000).contains(&description.memory_bytes),
        "{description:?}"
    );
    let golden = golden("bert");
    let mut worker = backend.worker().unwrap();
    for row in &golden.rows {
        let found = score_all(&mut worker, &[row]);
        assert!(farthest([&row.logits], &found) < 1e-4);
    }
    drop((worker, backend));
    // Nothing is left behind.
    for _ in 0..3 {
        assert_eq!(*open(&request).unwrap().description(), description);
    }
}

/// Memory that was there at open is gone: others took it. A batch is computed in parts that fit.
#[test]
fn a_batch_is_split_where_memory_is_gone() {
    let settings = [("EMULATED_CUDA_MEMORY_BYTES", "12000000")];
    if !is_inside("a_batch_is_split_where_memory_is_gone", &settings) {
        return;
    }
    let request = large_request();
    let backend = open(&request).unwrap();
    let description = backend.description().clone();
    let _others = fill_gpu(LEFT_BYTES);
    let golden = golden("bert");
    let most = description.tokens_max as usize;
    let rows = longest_rows(&golden.rows, most);
    let needed = description.memory_bytes - WORKSPACE_BYTES;
    assert!(LEFT_BYTES < needed, "{description:?}");
    let found = score_all(&mut backend.worker().unwrap(), &rows);
    assert!(farthest(rows.iter().map(|row| &row.logits), &found) < 1e-4);
}

/// Another model that is closed takes the memory of graphs that nobody uses, and others fill the GPU: what was a graph is
/// launched, in parts that fit.
#[test]
fn graphs_whose_memory_is_gone_are_launched() {
    let settings = [("EMULATED_CUDA_MEMORY_BYTES", "16000000")];
    if !is_inside("graphs_whose_memory_is_gone_are_launched", &settings) {
        return;
    }
    let request = with_graphs(&golden_request("bert", "f32"), Some(true));
    let backend = open(&request).unwrap();
    drop(open(&request).unwrap());
    let _others = fill_gpu(LEFT_BYTES);
    let golden = golden("bert");
    let most = request.tokens_max as usize - 1;
    let rows = longest_rows(&golden.rows, most);
    let found = score_all(&mut backend.worker().unwrap(), &rows);
    assert!(farthest(rows.iter().map(|row| &row.logits), &found) < 1e-4);
}

/// Where not even one token fits, the model does not open.
#[test]
fn a_model_that_does_not_fit_says_so() {
    let settings = [("EMULATED_CUDA_MEMORY_BYTES", "100000")];
    if !is_inside("a_model_that_does_not_fit_says_so", &settings) {
        return;
    }
    let Err(fault) = open(&golden_request("bert", "f32")) else {
        panic!("100 kB are not enough")
    };
    assert_eq!(fault.code, FaultCode::OutOfMemory, "{fault}");
    assert!(fault.text.contains("GPU 0"), "{fault}");
}

/// A kernel that ends the context fails its batch as `DeviceLost`, with CUDA's own name of it; every worker of it is told
/// so, and the model opens again on a new context while they are still there.
#[test]
fn a_dead_context_is_said_and_made_anew() {
    check_dead_context("a_dead_context_is_said_and_made_anew", "400", false);
}

/// The same where the kernel is one of a graph's.
#[test]
fn a_context_that_dies_in_a_graph_is_said() {
    check_dead_context("a_context_that_dies_in_a_graph_is_said", "4000", true);
}

#[track_caller]
fn check_dead_context(test: &str, fatal_launch: &str, graphs: bool) {
    if !is_inside(test, &[("EMULATED_CUDA_FATAL_LAUNCH", fatal_launch)]) {
        return;
    }
    let request = with_graphs(&golden_request("bert", "f32"), Some(graphs));
    let row = golden("bert").rows.remove(4);
    let backend = open(&request).unwrap();
    let (mut first, mut second) = (backend.worker().unwrap(), backend.worker().unwrap());
    let fault = (0..4_000)
        .find_map(|_| common::try_score(&mut first, &[&row]).err())
        .unwrap();
    assert_eq!(fault.code, FaultCode::DeviceLost, "{fault}");
    for word in ["GPU 0", "CUDA_ERROR_", "opened next"] {
        assert!(fault.text.contains(word), "{fault} does not name {word:?}");
    }
    for worker in [&mut first, &mut second] {
        let fault = common::try_score(worker, &[&row]).err().unwrap();
        assert_eq!(fault.code, FaultCode::DeviceLost, "{fault}");
    }
    let again = open(&request).unwrap();
    let found = score_all(&mut again.worker().unwrap(), &[&row]);
    assert!(farthest([&row.logits], &found) < 1e-4);
    drop((first, second, backend));
    let found = score_all(&mut again.worker().unwrap(), &[&row]);
    assert!(farthest([&row.logits], &found) < 1e-4);
}

/// Two versions of the plugin in one process, as during a swap, on one GPU. What one of them loses the other has lost, too: it
/// lets go when it is asked how its GPU does, and both are there again on a new context.
#[test]
fn two_versions_lose_a_gpu_together() {
    let settings = [("EMULATED_CUDA_FATAL_LAUNCH", "600")];
    if !is_inside("two_versions_lose_a_gpu_together", &settings) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let built = std::env::current_exe().unwrap();
    let built = built.parent().unwrap().join("libcandle_cuda.so");
    let version = |name: &str| {
        let path = dir.path().join(name);
        std::fs::copy(&built, &path).unwrap();
        PluginLibrary::load(&path).unwrap()
    };
    let [first, second] = ["first.so", "second.so"].map(version);
    let request = golden_request("bert", "f32");
    let row = golden("bert").rows.remove(4);
    let (kept, lost) = (
        first.open(&request).unwrap(),
        second.open(&request).unwrap(),
    );
    let (mut idle, mut busy) = (kept.worker().unwrap(), lost.worker().unwrap());
    let fault = (0..600).find_map(|_| common::try_score(&mut busy, &[&row]).err());
    assert_eq!(fault.unwrap().code, FaultCode::DeviceLost);
    drop((busy, lost));
    // As long as the other holds it there is no new context.
    let Err(fault) = second.open(&request) else {
        panic!("on a dead context")
    };
    assert_eq!(fault.code, FaultCode::DeviceLost, "{fault}");
    assert!(fault.text.contains("others in this process"), "{fault}");
    kept.devices().unwrap();
    let again = second.open(&request).unwrap();
    let found = score_all(&mut again.worker().unwrap(), &[&row]);
    assert!(farthest([&row.logits], &found) < 1e-4);
    let fault = common::try_score(&mut idle, &[&row]).err().unwrap();
    assert_eq!(fault.code, FaultCode::DeviceLost, "{fault}");
    drop((idle, kept));
    // It is no one's loss that the first one opens again.
    let kept = first.open(&request).unwrap();
    for backend in [&kept, &again] {
        let found = score_all(&mut backend.worker().unwrap(), &[&row]);
        assert!(farthest([&row.logits], &found) < 1e-4);
    }
}

/// Weights on each of two GPUs, and workers dealt in turn.
#[test]
fn several_gpus_share_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let settings = [
        ("EMULATED_CUDA_DEVICES", "2"),
        ("EMULATED_CUDA_LOG", log.to_str().unwrap()),
    ];
    if !is_inside("several_gpus_share_the_work", &settings) {
        return;
    }
    let row = golden("bert").rows.remove(4);
    for (device, name) in [
        ("cuda:all", "cuda:0,1"),
        ("cuda:1,0", "cuda:1,0"),
        ("cuda:1", "cuda:1"),
    ] {
        let request = OpenRequest {
            device: device.to_owned(),
            n_workers: 2,
            ..golden_request("bert", "f32")
        };
        let backend = open(&request).unwrap();
        assert_eq!(backend.description().device, name);
        for _ in 0..3 {
            let found = score_all(&mut backend.worker().unwrap(), &[&row]);
            assert!(farthest([&row.logits], &found) < 1e-4);
        }
    }
}

/// Two workers on threads of their own, at once: each gets its own rows' logits.
#[test]
fn workers_compute_beside_each_other() {
    let golden = golden("bert");
    let request = OpenRequest {
        n_workers: 2,
        ..golden_request("bert", "f32")
    };
    let backend = open(&request).unwrap();
    std::thread::scope(|scope| {
        for first in 0..2 {
            let (backend, rows) = (&backend, &golden.rows);
            scope.spawn(move || {
                let mut worker = backend.worker().unwrap();
                for row in rows.iter().skip(first).chain(rows.iter().take(first)) {
                    let found = score_all(&mut worker, &[row]);
                    assert!(farthest([&row.logits], &found) < 1e-4);
                }
            });
        }
    });
}

/// Without a GPU the text says what to do.
#[test]
fn no_gpu_is_said() {
    if !is_inside("no_gpu_is_said", &[("EMULATED_CUDA_DEVICES", "0")]) {
        return;
    }
    let Err(fault) = open(&golden_request("bert", "f32")) else {
        panic!("without a GPU")
    };
    assert_eq!(fault.code, FaultCode::Unsupported, "{fault}");
    for word in ["CUDA_ERROR_NO_DEVICE", "nvidia-smi"] {
        assert!(fault.text.contains(word), "{fault} does not name {word:?}");
    }
}
