//! The library file itself, as a server meets it: loaded, opened, dropped and loaded again, by itself and as a
//! copy, by several threads. `make test-asan` has AddressSanitizer watch.

mod common;

use backend_api::PluginLibrary;
use common::{golden_dir, golden_rows, open, request, score};
use std::path::Path;
use std::sync::Barrier;
use std::thread;

const ROUNDS: usize = 3;
const THREADS: usize = 2;

/// The library that cargo built for this test, under a name of its own.
fn copy(name: &str) -> std::path::PathBuf {
    let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let test = std::env::current_exe().unwrap();
    let built = test.with_file_name(format!("{prefix}cpu_int8{suffix}"));
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}{suffix}"));
    std::fs::copy(&built, &path).unwrap_or_else(|error| panic!("{}: {error}", built.display()));
    path
}

#[test]
fn loaded_scored_dropped_and_loaded_again() {
    let files = ["int8-first", "int8-second"].map(copy);
    let rows = golden_rows("bert");
    let rows: Vec<_> = rows.iter().collect();
    for dtype in ["f32", "int8"] {
        let request = request(&golden_dir("bert"), dtype, "{}");
        // What the same code says in this image.
        let expected = score(&mut open(&request).unwrap().worker().unwrap(), &rows);
        let together = Barrier::new(THREADS);
        thread::scope(|scope| {
            for number in 0..THREADS {
                let (files, rows, request) = (&files, &rows, &request);
                let (expected, together) = (&expected, &together);
                scope.spawn(move || {
                    together.wait();
                    for idx in number..number + ROUNDS {
                        let library = PluginLibrary::load(&files[idx % files.len()]).unwrap();
                        let backend = library.open(request).unwrap();
                        drop(library);
                        let mut workers = [(); 3].map(|()| backend.worker().unwrap());
                        assert_eq!(&score(&mut workers[0], rows), expected);
                        let [first, mut last, unused] = workers;
                        drop((first, unused));
                        // The last worker holds on to the weights.
                        drop(backend);
                        assert_eq!(&score(&mut last, rows), expected);
                    }
                });
            }
        });
    }
}
