//! Speed of the kernels beside what the CPU's multipliers can do, and of the whole engine on rows
//! of tokens.
//!
//! ```sh
//! cargo bench -p cpu-int8                                   # kernels
//! cargo bench -p cpu-int8 -- MODEL_DIR ROWS.jsonl [THREADS] [KERNEL,…]   # and the engine
//! ```
//!
//! `ROWS.jsonl` has a row a line: `{"input_ids":[…],"type_ids":[…],"logits":[…]}`; the logits may
//! be missing. A case checks its answer before its time: a kernel's against the oracle, the
//! engine's against the given logits (largest difference and Spearman's rho) and batch against
//! single rows.

#![allow(clippy::print_stdout)] // A table on stdout is what it is for.

use backend_api::{OpenBackend, OpenRequest, OpenWorker, PluginLibrary, RaggedBatch, RowControl};
use cpu_int8::CpuInt8;
use cpu_int8::arena::{Codes, TileScratch};
use cpu_int8::gemm::Linear;
use cpu_int8::gemm::finish::Finish;
use cpu_int8::gemm::pack::Packed;
use cpu_int8::kernel::scalar::PortableF32;
use cpu_int8::kernel::{Dtype, Kernel, Visitor, available, peak, visit_all};
use cpu_int8::quant::Code;
use cpu_int8::quant::narrow::Storage;
use serde::Deserialize;
use std::hint::black_box;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

/// Tokens of a batch, as a gateway would cut them.
const BATCH_TOKENS: usize = 2_048;
/// Repetitions; the best counts, as on a shared machine the others are somebody else's noise.
const REPETITIONS: usize = 50;
/// MiniLM's linear layers (output, keys and values, feed-forward) and BERT-base's inner one: (k,
/// n).
const LAYERS: [(usize, usize); 5] = [
    (384, 384),
    (384, 768),
    (384, 1_536),
    (1_536, 384),
    (768, 3_072),
];

fn main() {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| arg != "--bench")
        .collect();
    match args.as_slice() {
        [model, rows, rest @ ..] => {
            let n_threads = rest.first().map_or(2, |n| n.parse().unwrap());
            let chosen = rest
                .get(1)
                .map(|names| names.split(',').collect::<Vec<_>>());
            engine(
                Path::new(model),
                &read_rows(rows),
                n_threads,
                chosen.as_deref(),
            );
        }
        _ => {
            for dtype in Dtype::ALL {
                visit_all(dtype, &mut Kernels(dtype));
            }
        }
    }
}

// === kernels ===

struct Kernels(Dtype);

impl Visitor for Kernels {
    type Output = ();

    fn visit<K: Kernel>(&mut self, kernel: K) {
        let peak = best(|| peak::operations_per_s(kernel)) / 1e9;
        let (dtype, storage) = (self.0.name(), self.0.storage());
        println!("{dtype} by {}: multipliers {peak:.0} GOP/s", K::NAME);
        for (k, n) in LAYERS {
            for m in [6, 74, 256] {
                let found = layer(kernel, storage, m, k, n);
                println!(
                    "  {m:4} × {k:4} × {n:4}: {found:6.1} GOP/s  {:3.0} %",
                    100.0 * found / peak
                );
            }
        }
    }
}

fn layer<K: Kernel>(kernel: K, storage: Storage, m: usize, k: usize, n: usize) -> f64 {
    let mut state = 1_u32;
    let mut value = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let x: Vec<f32> = (0..m * k).map(|_| value()).collect();
    let weights: Vec<f32> = (0..n * k).map(|_| value()).collect();
    let packed = Packed::new(kernel, storage, &weights, &vec![0.5; n], k);
    let mut codes = Codes::<K>::new(m, k);
    for (row, x) in x.chunks_exact(k).enumerate() {
        let stride = codes.stride;
        codes.scales[row] =
            K::Left::encode(PortableF32, x, &mut codes.codes[row * stride..][..stride]);
    }
    let mut sums = TileScratch::new(storage, k);
    let mut out = vec![0.0; m * n];
    let mut run = || {
        Linear {
            left: &codes,
            rows: 0..m,
            weights: &packed,
            finish: Finish::Store,
            sums: &mut sums,
            out: &mut out,
        }
        .run(kernel);
    };
    run();
    // About a millisecond: short enough that some of the repetitions are not interrupted.
    let n_runs = 1 + 100_000_000 / (2 * m * k * n);
    let gops = best(|| {
        let started = Instant::now();
        (0..n_runs).for_each(|_| run());
        (n_runs * 2 * m * k * n) as f64 / started.elapsed().as_nanos() as f64
    });
    for (at, &found) in out.iter().enumerate().step_by(97) {
        let (row, column) = (at / n, at % n);
        let exact: f32 = x[row * k..][..k]
            .iter()
            .zip(&weights[column * k..][..k])
            .map(|(a, b)| a * b)
            .sum();
        // Two quantised operands of k terms: each term is off by at most 2 · 1/254 of its range, by
        // 1/30 where weights have 16 levels, or 2⁻⁸ of itself as a bf16.
        let allowed = match (K::Left::QUANTISED, storage) {
            (true, Storage::Narrow) => 0.1 * (k as f32).sqrt(),
            (true, Storage::Whole) => 0.02 * (k as f32).sqrt(),
            (false, Storage::Narrow) => 0.01,
            (false, Storage::Whole) if size_of::<K::Left>() == 2 => 0.01 * (k as f32).sqrt(),
            (false, Storage::Whole) => 1e-3,
        };
        assert!(
            (found - 0.5 - exact).abs() < allowed,
            "{}: {found} is not {exact} + 0.5",
            K::NAME
        );
    }
    gops
}

/// Nanoseconds this thread has run: on a shared machine the wall clock measures the neighbours too.
/// Where the system does not say (anywhere but on Linux), the wall clock it is.
fn thread_ns() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = *START.get_or_init(Instant::now);
    let said = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let running = said.and_then(|text| text.split(' ').next()?.parse().ok());
    running.unwrap_or_else(|| start.elapsed().as_nanos() as u64)
}

fn best(mut measure: impl FnMut() -> f64) -> f64 {
    (0..REPETITIONS).map(|_| measure()).fold(0.0, f64::max)
}

// === engine ===

#[derive(Deserialize)]
struct Row {
    input_ids: Vec<u32>,
    type_ids: Vec<u32>,
    #[serde(default)]
    logits: Vec<f32>,
}

fn read_rows(path: &str) -> Vec<Row> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn engine(model: &Path, rows: &[Row], n_threads: usize, chosen: Option<&[&str]>) {
    let n_tokens: usize = rows.iter().map(|row| row.input_ids.len()).sum();
    println!(
        "{} rows, {:.0} tokens a row, {n_threads} threads",
        rows.len(),
        n_tokens as f64 / rows.len() as f64
    );
    let library = PluginLibrary::in_process::<CpuInt8>().unwrap();
    for dtype in Dtype::ALL {
        let names = available(dtype);
        let default = [names[0]];
        let names: Vec<_> = names
            .iter()
            .copied()
            .filter(|name| chosen.unwrap_or(&default).contains(name))
            .collect();
        for name in names {
            let request = OpenRequest {
                model_dir: model.to_owned(),
                dtype: dtype.name().to_owned(),
                options: format!("{{\"kernel\":\"{name}\"}}"),
                ..OpenRequest::default()
            };
            let (backend, first, fastest) = opened(&library, &request);
            let scores = check(&backend, rows);
            let times = [(); 3].map(|()| timed(&backend, rows, n_threads));
            let wall = times.iter().map(|time| time.0).fold(f64::MAX, f64::min);
            let core = times.iter().map(|time| time.1).fold(f64::MAX, f64::min);
            let pairs = rows.len() as f64;
            println!(
                "{} by {name}: opened in {:.0} ms, the first time {:.0}; {:.1} pairs/s; {:.1} pairs, {:.0} tokens a core's second; {}",
                dtype.name(),
                1e3 * fastest,
                1e3 * first,
                pairs / wall,
                pairs / core,
                n_tokens as f64 / core,
                agreement(rows, &scores)
            );
        }
    }
}

/// Openings; the first finds no memory that the allocator kept.
const OPENINGS: usize = 7;

/// The backend, and the seconds that its first and its fastest opening took, files in the page cache.
fn opened(library: &PluginLibrary, request: &OpenRequest) -> (OpenBackend, f64, f64) {
    let (mut backend, first) = open(library, request);
    let mut fastest = first;
    for _ in 1..OPENINGS {
        drop(backend);
        let seconds;
        (backend, seconds) = open(library, request);
        fastest = fastest.min(seconds);
    }
    (backend, first, fastest)
}

fn open(library: &PluginLibrary, request: &OpenRequest) -> (OpenBackend, f64) {
    let started = Instant::now();
    let backend = library.open(request).unwrap();
    (backend, started.elapsed().as_secs_f64())
}

/// All scores, after a comparison of a few single rows with the batch.
fn check(backend: &OpenBackend, rows: &[Row]) -> Vec<f32> {
    let mut worker = backend.worker().unwrap();
    let scores: Vec<f32> = batches(rows)
        .iter()
        .flat_map(|batch| score(&mut worker, &rows[batch.clone()]))
        .collect();
    let n_labels = worker.n_labels();
    for at in (0..rows.len()).step_by(rows.len().div_ceil(5)) {
        let alone = score(&mut worker, &rows[at..=at]);
        assert_eq!(alone, scores[at * n_labels..][..n_labels], "row {at} alone");
    }
    scores
}

/// Seconds by the wall clock, and seconds that the workers' threads ran, together.
fn timed(backend: &OpenBackend, rows: &[Row], n_threads: usize) -> (f64, f64) {
    let running = AtomicU64::new(0);
    let (batches, next) = (batches(rows), AtomicUsize::new(0));
    let workers: Vec<_> = (0..n_threads).map(|_| backend.worker().unwrap()).collect();
    let started = Instant::now();
    std::thread::scope(|scope| {
        for mut worker in workers {
            let (batches, next, running) = (&batches, &next, &running);
            scope.spawn(move || {
                let began = thread_ns();
                while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
                    black_box(score(&mut worker, &rows[batch.clone()]));
                }
                running.fetch_add(thread_ns() - began, Ordering::Relaxed);
            });
        }
    });
    (
        started.elapsed().as_secs_f64(),
        running.into_inner() as f64 / 1e9,
    )
}

fn batches(rows: &[Row]) -> Vec<std::ops::Range<usize>> {
    let mut batches = Vec::new();
    let (mut start, mut n_tokens) = (0, 0);
    for (at, row) in rows.iter().enumerate() {
        n_tokens += row.input_ids.len();
        if BATCH_TOKENS < n_tokens {
            batches.push(start..at);
            (start, n_tokens) = (at, row.input_ids.len());
        }
    }
    batches.push(start..rows.len());
    batches
}

fn score(worker: &mut OpenWorker, rows: &[Row]) -> Vec<f32> {
    let wanted = AtomicBool::new(true);
    let controls = vec![
        RowControl {
            deadline_us: u64::MAX,
            wanted: &wanted
        };
        rows.len()
    ];
    let ids: Vec<u32> = rows
        .iter()
        .flat_map(|row| &row.input_ids)
        .copied()
        .collect();
    let types: Vec<u32> = rows.iter().flat_map(|row| &row.type_ids).copied().collect();
    let mut offsets = vec![0];
    offsets.extend(rows.iter().scan(0, |end, row| {
        *end += row.input_ids.len() as u32;
        Some(*end)
    }));
    let limits = worker.limits();
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
    let mut logits = vec![0.0; rows.len() * worker.n_labels()];
    let mut statuses = vec![0; rows.len()];
    worker.score(&batch, &mut logits, &mut statuses).unwrap();
    assert!(
        statuses.iter().all(|&status| status == 0),
        "a row without scores"
    );
    logits
}

/// The largest difference to the given logits and the rank correlation with them.
fn agreement(rows: &[Row], scores: &[f32]) -> String {
    let given: Vec<f32> = rows.iter().flat_map(|row| &row.logits).copied().collect();
    if given.len() != scores.len() {
        return "no logits to compare with".to_owned();
    }
    let worst = given
        .iter()
        .zip(scores)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    let rms = (given
        .iter()
        .zip(scores)
        .map(|(a, b)| (a - b).powi(2))
        .sum::<f32>()
        / given.len() as f32)
        .sqrt();
    format!(
        "at most {worst:.2e} off, rms {rms:.2e}, rho {:.4}",
        correlation(&ranks(&given), &ranks(scores))
    )
}

fn ranks(values: &[f32]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    for (rank, at) in order.into_iter().enumerate() {
        ranks[at] = rank as f64;
    }
    ranks
}

fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let product = |x: &[f64], mx: f64, y: &[f64], my: f64| -> f64 {
        x.iter().zip(y).map(|(x, y)| (x - mx) * (y - my)).sum()
    };
    product(a, mean_a, b, mean_b)
        / (product(a, mean_a, a, mean_a) * product(b, mean_b, b, mean_b)).sqrt()
}
