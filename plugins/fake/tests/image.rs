//! The library file itself, as a server meets it: loaded, opened, dropped and loaded again, by itself and as a
//! copy, by several threads. `make test-asan` has AddressSanitizer watch.

mod common;

use backend_api::{Fault, FaultCode, OpenBackend, PluginLibrary};
use common::{request, score};
use std::path::{Path, PathBuf};
use std::sync::{Barrier, mpsc};
use std::thread;

/// Often enough that what one round leaves behind meets the next one.
const ROUNDS: usize = 3;
const THREADS: usize = 3;

/// The library that cargo built for this test, and copies of it under other names.
struct Files(Vec<PathBuf>);

impl Files {
    /// `name` keeps the tests' copies apart: the dynamic loader knows files by path.
    fn new(name: &str) -> Self {
        let test = std::env::current_exe().expect("a test knows its file");
        let file = format!(
            "{}fake{}",
            std::env::consts::DLL_PREFIX,
            std::env::consts::DLL_SUFFIX
        );
        let built = test.parent().expect("a file lies in a folder").join(file);
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let copies = ["first", "second"].map(|copy| {
            let path = dir.join(format!("{name}-{copy}{}", std::env::consts::DLL_SUFFIX));
            std::fs::copy(&built, &path)
                .unwrap_or_else(|error| panic!("{}: {error}", built.display()));
            path
        });
        Self(copies.into())
    }

    fn load(&self, idx: usize) -> PluginLibrary {
        let path = &self.0[idx % self.0.len()];
        PluginLibrary::load(path).unwrap_or_else(|error| panic!("{error}"))
    }
}

fn open(library: &PluginLibrary, options: &str) -> OpenBackend {
    library.open(&request(options)).expect("the fake opens")
}

/// The fake prefers what the query has: both rows share their only word.
fn check_scores(backend: &OpenBackend) {
    let mut worker = backend.worker().expect("a worker");
    assert_eq!(score(&mut worker), Ok([Ok(vec![4.0]), Ok(vec![4.0])]));
}

#[test]
fn loaded_scored_dropped_and_loaded_again() {
    let files = Files::new("again");
    // Each file twice in a row, then the other one, and so on.
    for idx in (0..2 * ROUNDS).map(|round| round / 2) {
        let library = files.load(idx);
        let backend = open(&library, "{}");
        check_scores(&backend);
        check_scores(&backend);
        drop(backend);
        assert!(library.open(&request(r#"{"labels":0}"#)).is_err());
        drop(library);
    }
}

#[test]
fn workers_are_dropped_before_their_backend_and_after_it() {
    let files = Files::new("order");
    for idx in 0..ROUNDS {
        let library = files.load(idx);
        let backend = open(&library, "{}");
        let mut workers: Vec<_> = (0..3)
            .map(|_| backend.worker().expect("a worker"))
            .collect();
        drop(workers.pop());
        drop(library);
        assert!(score(&mut workers[0]).is_ok());
        drop(backend);
        for worker in &mut workers {
            assert!(score(worker).is_ok(), "a worker holds on to the weights");
        }
    }
}

/// A worker that panics takes its backend along; the next one begins anew.
fn panic_and_reopen(library: &PluginLibrary) {
    let panicked = |fault: Result<_, Fault>| fault.err().map(|fault| fault.code);
    let backend = open(library, r#"{"panic_on":7}"#);
    let (mut first, mut second) = (
        backend.worker().expect("a worker"),
        backend.worker().expect("a worker"),
    );
    assert_eq!(panicked(score(&mut first)), Some(FaultCode::Panicked));
    drop(first);
    assert_eq!(panicked(score(&mut second)), Some(FaultCode::Poisoned));
    drop(backend);
    drop(second);
    for entry in ["open", "worker", "score", "drop"] {
        let options = format!(r#"{{"panic_in":"{entry}"}}"#);
        let opened = library.open(&request(&options));
        let scored = opened.and_then(|backend| score(&mut backend.worker()?));
        let expected = (entry != "drop").then_some(FaultCode::Panicked);
        assert_eq!(panicked(scored), expected, "{entry}");
    }
    let backend = open(library, r#"{"panic_in":"devices"}"#);
    let fault = backend.devices().expect_err("it panics");
    assert_eq!(fault.code, FaultCode::Panicked);
    drop(backend);
    check_scores(&open(library, "{}"));
}

#[test]
fn panicked_dropped_and_opened_again() {
    let files = Files::new("panic");
    for idx in 0..ROUNDS {
        panic_and_reopen(&files.load(idx));
    }
}

#[test]
fn by_several_threads_at_once() {
    let files = Files::new("threads");
    let together = Barrier::new(THREADS);
    thread::scope(|scope| {
        for number in 0..THREADS {
            let (files, together) = (&files, &together);
            scope.spawn(move || {
                together.wait();
                for idx in 0..ROUNDS {
                    let library = files.load(number + idx);
                    check_scores(&open(&library, "{}"));
                    panic_and_reopen(&library);
                }
            });
        }
    });
}

/// A worker belongs to one thread at a time, not to the one that made it.
#[test]
fn from_hand_to_hand() {
    let files = Files::new("hands");
    let backend = open(&files.load(0), "{}");
    let (give, take) = mpsc::sync_channel(ROUNDS);
    let (give_back, take_back) = mpsc::sync_channel(ROUNDS);
    let scoring = thread::spawn(move || {
        for mut worker in take {
            assert!(score(&mut worker).is_ok());
            give_back.send(worker).expect("somebody waits");
        }
    });
    for _ in 0..ROUNDS {
        give.send(backend.worker().expect("a worker"))
            .expect("the thread runs");
    }
    drop((give, backend));
    // Here they come back, and here they end, after the thread and the backend.
    scoring.join().expect("every worker scores");
    for mut worker in take_back {
        assert!(score(&mut worker).is_ok());
    }
}
