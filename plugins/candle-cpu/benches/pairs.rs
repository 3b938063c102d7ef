//! How many pairs a second a model folder scores, by dtype and length:
//!
//! ```sh
//! cargo bench -p candle-cpu --bench pairs -- FOLDER [--dtypes f32,int8] [--tokens 32,128,512] [--workers 2]
//! ```
//!
//! Each worker has a thread of its own and scores batches of 32 equal rows, for at least two seconds after
//! one batch to warm up. On Linux also by the time that the threads had a processor: on a machine that others
//! use, that is the figure to compare.

#![allow(clippy::print_stdout)] // A table.

use backend_api::{OpenRequest, PluginLibrary, RaggedBatch, RowControl};
use candle_cpu::CandleCpu;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

const ROWS: usize = 32;
const TIME: Duration = Duration::from_secs(2);

fn main() {
    // Cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let after = |name: &str, default: &str| {
        let at = arguments.iter().position(|argument| argument == name);
        at.and_then(|at| arguments.get(at + 1))
            .map_or(default, |value| value)
            .to_owned()
    };
    let Some(folder) = arguments.first() else {
        println!("no model folder was given; see the head of benches/pairs.rs");
        return;
    };
    let n_workers: u32 = after("--workers", "1")
        .parse()
        .expect("a number of workers");
    let library = PluginLibrary::in_process::<CandleCpu>().expect("a card");
    for dtype in after("--dtypes", "f32").split(',') {
        let started = Instant::now();
        let request = OpenRequest {
            model_dir: folder.into(),
            dtype: dtype.to_owned(),
            n_workers,
            row_tokens_max: 8_192,
            options: after("--options", "{}"),
            ..OpenRequest::default()
        };
        let backend = library
            .open(&request)
            .unwrap_or_else(|fault| panic!("{folder}: {fault}"));
        let described = backend.description();
        println!(
            "{dtype}: {}, {} MB, opened in {:.2} s",
            described.kernel,
            described.memory_bytes / 1_000_000,
            started.elapsed().as_secs_f64()
        );
        for tokens in after("--tokens", "32,128,512").split(',') {
            let tokens: usize = tokens.parse().expect("a number of tokens");
            let [by_clock, by_cpu] = std::thread::scope(|scope| {
                let workers: Vec<_> = (0..n_workers)
                    .map(|_| {
                        let mut worker = backend.worker().expect("a worker");
                        scope.spawn(move || pairs_per_s(&mut worker, tokens))
                    })
                    .collect();
                workers
                    .into_iter()
                    .map(|worker| worker.join().expect("no panic"))
                    .fold([0.0; 2], |[a, b], [c, d]| [a + c, b + d])
            });
            println!(
                "  {tokens} tokens: {by_clock:.1} pairs/s, {by_cpu:.1} in a CPU second of each worker"
            );
        }
    }
}

fn pairs_per_s(worker: &mut backend_api::OpenWorker, tokens: usize) -> [f64; 2] {
    let ids: Vec<u32> = (0..ROWS * tokens).map(|at| (at * 7 % 100) as u32).collect();
    let types = vec![0; ids.len()];
    let offsets: Vec<u32> = (0..=ROWS).map(|row| (row * tokens) as u32).collect();
    let wanted = AtomicBool::new(true);
    let control = RowControl {
        deadline_us: u64::MAX,
        wanted: &wanted,
    };
    let controls = vec![control; ROWS];
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
    .expect("a batch within the limits");
    let (mut logits, mut statuses) = (vec![0.0; ROWS * worker.n_labels()], vec![0; ROWS]);
    let mut score = || {
        let (_, scores) = worker
            .score(&batch, &mut logits, &mut statuses)
            .expect("scores");
        assert!(
            (0..ROWS).all(|row| scores.row(row).is_ok()),
            "a row was not scored"
        );
    };
    score();
    let (started, cpu_started, mut n) = (Instant::now(), cpu_seconds(), 0);
    while started.elapsed() < TIME {
        score();
        n += ROWS;
    }
    let n = n as f64;
    [
        n / started.elapsed().as_secs_f64(),
        n / (cpu_seconds() - cpu_started),
    ]
}

/// How long this thread has had a processor; without an answer of the system, not a number.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text
        .split(' ')
        .next()
        .and_then(|first| first.parse::<f64>().ok());
    nanoseconds.map_or(f64::NAN, |nanoseconds| nanoseconds / 1e9)
}
