//! The suite that every plugin runs: what the contract promises, tried through the border.
//!
//! ```ignore
//! #[test]
//! fn conforms() {
//!     let library = PluginLibrary::in_process::<MyPlugin>().unwrap();
//!     conformance::run(&Subject { library: &library, request, vocab_size: 100, type_vocab_size: 2, tolerance: 0.0 });
//! }
//! ```

use crate::abi::AbiBatch;
use crate::{
    Description, DeviceState, FaultCode, OpenBackend, OpenRequest, OpenWorker, PluginLibrary,
    RaggedBatch, RowControl, RowStatus, Scores,
};
use abi_stable::std_types::RSlice;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// What is tried.
pub struct Subject<'a> {
    /// The plugin.
    pub library: &'a PluginLibrary,
    /// How to open a model that it serves.
    pub request: OpenRequest,
    /// Token ids below this are valid.
    pub vocab_size: u32,
    /// Token types below this are valid.
    pub type_vocab_size: u32,
    /// How far a score may move with the rows beside it; 0 when the backend describes itself as bitwise.
    pub tolerance: f32,
}

/// Rows by value, with no limits: the suite also makes broken ones.
#[derive(Clone, Default)]
struct Rows {
    ids: Vec<u32>,
    types: Vec<u32>,
    offsets: Vec<u32>,
}

/// Runs every check.
///
/// # Panics
/// With the first broken promise.
pub fn run(subject: &Subject<'_>) {
    let card = subject.library.card();
    assert!(
        !card.name.is_empty() && !card.version.is_empty(),
        "the card lacks a name or a version: {card:?}"
    );
    assert!(
        !card.devices.is_empty() && !card.dtypes.is_empty(),
        "the card lacks devices or dtypes: {card:?}"
    );
    let is_known = |file: &String| {
        let is_of = |(dtype, path): (&str, &str)| {
            card.dtypes.iter().any(|known| known == dtype) && Path::new(path).is_relative()
        };
        file.split_once(':').is_some_and(is_of)
    };
    assert!(
        card.files.iter().all(is_known),
        "the card lists a file that is not dtype:path in one of its dtypes: {:?}",
        card.files
    );
    let backend = open(subject);
    let described = backend.description();
    assert!(
        !described.device.is_empty() && !described.kernel.is_empty(),
        "a description lacks device or kernel"
    );
    assert!(
        subject.tolerance == 0.0 || !described.bitwise,
        "a bitwise backend has no tolerance"
    );

    opens_the_same_again(subject, &backend);
    scores_do_not_depend_on_neighbours(subject, &backend);
    workers_agree_on_threads(subject, &backend);
    boundary_rows(subject, &backend);
    nobody_waits(subject, &backend);
    devices_do_well(subject, &backend);
    broken_batches(subject, &backend);
    bad_requests(subject);
}

fn open(subject: &Subject<'_>) -> OpenBackend {
    subject
        .library
        .open(&subject.request)
        .unwrap_or_else(|fault| panic!("the model does not open: {fault}"))
}

fn worker(backend: &OpenBackend) -> OpenWorker {
    backend
        .worker()
        .unwrap_or_else(|fault| panic!("no worker: {fault}"))
}

fn opens_the_same_again(subject: &Subject<'_>, backend: &OpenBackend) {
    let again = open(subject);
    // Speeds are measured, and no two measurements agree.
    let said = |backend: &OpenBackend| Description {
        linear_mop_per_s: 0,
        attention_mop_per_s: 0,
        ..backend.description().clone()
    };
    assert_eq!(
        said(&again),
        said(backend),
        "a second open describes itself otherwise"
    );
    let rows = sample(subject, backend, &[3, 8, 5]);
    let (first, second) = (
        score(&mut worker(backend), &rows),
        score(&mut worker(&again), &rows),
    );
    assert_close(&first, &second, subject.tolerance, "after a second open");
}

fn scores_do_not_depend_on_neighbours(subject: &Subject<'_>, backend: &OpenBackend) {
    let longest = backend.limits().row_tokens_max;
    let lengths = [1, 2, 3, 7, 8, 9, 15, 16, 17, 33, longest / 2, 4].map(|n| n.clamp(1, longest));
    let rows = sample(subject, backend, &lengths);
    let mut worker = worker(backend);
    let together = score(&mut worker, &rows);
    let alone: Vec<_> = (0..lengths.len())
        .flat_map(|row| score(&mut worker, &rows.pick(&[row])))
        .collect();
    assert_close(
        &together,
        &alone,
        subject.tolerance,
        "between a batch and single rows",
    );
    let reversed: Vec<_> = (0..lengths.len()).rev().collect();
    let mut backwards = score(&mut worker, &rows.pick(&reversed));
    backwards.reverse();
    assert_close(
        &together,
        &backwards,
        subject.tolerance,
        "when the rows are turned round",
    );
}

fn workers_agree_on_threads(subject: &Subject<'_>, backend: &OpenBackend) {
    let n_workers = backend.description().n_workers_max.min(4);
    let rows = sample(subject, backend, &[5, 6, 7, 20]);
    let expected = score(&mut worker(backend), &rows);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..n_workers)
            .map(|_| {
                let (mut worker, rows) = (worker(backend), &rows);
                scope.spawn(move || score(&mut worker, rows))
            })
            .collect();
        for thread in threads {
            let found = thread
                .join()
                .unwrap_or_else(|_| panic!("a worker's thread panicked"));
            assert_close(&expected, &found, subject.tolerance, "between workers");
        }
    });
}

fn boundary_rows(subject: &Subject<'_>, backend: &OpenBackend) {
    let limits = backend.limits();
    let mut worker = worker(backend);
    score(
        &mut worker,
        &sample(subject, backend, &[limits.row_tokens_max]),
    );
    let n_rows = limits.rows_max.min(limits.tokens_max).min(256);
    score(&mut worker, &sample(subject, backend, &vec![1; n_rows]));
}

fn nobody_waits(subject: &Subject<'_>, backend: &OpenBackend) {
    let rows = sample(subject, backend, &[4, 4, 4]);
    let (yes, no) = (AtomicBool::new(true), AtomicBool::new(false));
    let controls = [
        RowControl {
            deadline_us: u64::MAX,
            wanted: &no,
        },
        RowControl {
            deadline_us: 0,
            wanted: &yes,
        },
        RowControl {
            deadline_us: u64::MAX,
            wanted: &yes,
        },
    ];
    let mut worker = worker(backend);
    let found = call(&mut worker, &rows, &controls)
        .unwrap_or_else(|fault| panic!("unwanted rows fail a batch: {fault}"));
    let cancels = backend.description().cancels;
    for (row, expected) in [(0, RowStatus::Unwanted), (1, RowStatus::Expired)] {
        match &found[row] {
            Err(status) => assert_eq!(*status, expected, "row {row}"),
            Ok(_) => assert!(
                !cancels,
                "a backend that cancels scored row {row}, which nobody waits for"
            ),
        }
    }
    assert!(
        found[2].is_ok(),
        "the row that is waited for is {:?}",
        found[2]
    );
}

/// The fence has looked whether what is told makes sense: it comes as a fault if it does not.
fn devices_do_well(subject: &Subject<'_>, backend: &OpenBackend) {
    let names = |devices: Vec<DeviceState>| -> Vec<_> {
        devices.into_iter().map(|device| device.name).collect()
    };
    let told = || match backend.devices() {
        Ok(devices) => names(devices),
        Err(fault) => panic!("nothing sound is told of the devices: {fault}"),
    };
    let expected = told();
    let rows = sample(subject, backend, &[3, 8, 5]);
    let scores = score(&mut worker(backend), &rows);
    // From any thread, and while a worker computes.
    std::thread::scope(|scope| {
        let asking = [0; 2].map(|_| scope.spawn(|| [0; 8].map(|_| told())));
        let found = score(&mut worker(backend), &rows);
        let when = "while devices are asked for";
        assert_close(&scores, &found, subject.tolerance, when);
        for asked in asking {
            let found = asked
                .join()
                .unwrap_or_else(|_| panic!("devices cannot be asked for beside a worker"));
            for found in found {
                assert_eq!(found, expected, "other devices than before are told of");
            }
        }
    });
}

fn broken_batches(subject: &Subject<'_>, backend: &OpenBackend) {
    let good = sample(subject, backend, &[3, 4]);
    let mut worker = worker(backend);
    let expected = score(&mut worker, &good);
    let with_offsets = |offsets: &[u32]| Rows {
        offsets: offsets.to_vec(),
        ..good.clone()
    };
    let broken = [
        ("offsets not from 0", with_offsets(&[1, 3, 7])),
        ("an empty row", with_offsets(&[0, 0, 7])),
        ("falling offsets", with_offsets(&[0, 9, 7])),
        ("offsets past the end", with_offsets(&[0, 3, 8])),
        ("offsets before the end", with_offsets(&[0, 3, 6])),
        (
            "too few type ids",
            Rows {
                types: good.types[1..].to_vec(),
                ..good.clone()
            },
        ),
        (
            "a row too long",
            sample_of(subject, &[backend.limits().row_tokens_max + 1, 1]),
        ),
    ];
    let wanted = AtomicBool::new(true);
    let controls = [RowControl {
        deadline_us: u64::MAX,
        wanted: &wanted,
    }; 2];
    for (what, rows) in broken {
        let mut logits = vec![0.0; 2 * worker.n_labels()];
        let mut statuses = [RowStatus::Untouched as u8; 2];
        let n_labels = worker.n_labels();
        let mut scores = Scores::check(&mut logits, &mut statuses, n_labels)
            .unwrap_or_else(|why| panic!("{why}"));
        match worker.cross(rows.crossing(&controls), &mut scores) {
            Err(fault) => assert_eq!(fault.code, FaultCode::BadBatch, "{what}: {fault}"),
            Ok(_) => panic!("{what}: accepted"),
        }
    }
    assert_eq!(expected, score(&mut worker, &good), "after broken batches");

    // An id beyond the vocabulary is one row's failure.
    let mut poison = good.clone();
    poison.ids[0] = subject.vocab_size;
    let controls = [RowControl {
        deadline_us: u64::MAX,
        wanted: &wanted,
    }; 2];
    let found = call(&mut worker, &poison, &controls)
        .unwrap_or_else(|fault| panic!("one bad id fails a batch: {fault}"));
    assert_eq!(
        found[0],
        Err(RowStatus::Failed),
        "a row with an id beyond the vocabulary"
    );
    assert!(found[1].is_ok(), "the row beside it is {:?}", found[1]);
}

fn bad_requests(subject: &Subject<'_>) {
    let bad = [
        (
            "options that are not JSON",
            OpenRequest {
                options: "{".to_owned(),
                ..subject.request.clone()
            },
        ),
        (
            "an unknown dtype",
            OpenRequest {
                dtype: "f7".to_owned(),
                ..subject.request.clone()
            },
        ),
        (
            "an unknown device",
            OpenRequest {
                device: "abacus".to_owned(),
                ..subject.request.clone()
            },
        ),
    ];
    for (what, request) in bad {
        match subject.library.open(&request) {
            Err(fault) => assert!(
                matches!(fault.code, FaultCode::BadRequest | FaultCode::Unsupported)
                    && !fault.text.is_empty(),
                "{what}: {fault}"
            ),
            Ok(_) => panic!("{what}: accepted"),
        }
    }
}

// === rows and calls ===

fn sample(subject: &Subject<'_>, backend: &OpenBackend, lengths: &[usize]) -> Rows {
    let longest = backend.limits().row_tokens_max;
    let lengths: Vec<_> = lengths.iter().map(|&n| n.min(longest)).collect();
    sample_of(subject, &lengths)
}

/// Rows of these lengths; ids from a small congruential generator, so that every run has the same.
fn sample_of(subject: &Subject<'_>, lengths: &[usize]) -> Rows {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut rows = Rows {
        offsets: vec![0],
        ..Rows::default()
    };
    for &length in lengths {
        for position in 0..length {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            rows.ids.push((state >> 33) as u32 % subject.vocab_size);
            let second_half = u32::from(length < 2 * position);
            rows.types
                .push(second_half.min(subject.type_vocab_size.max(1) - 1));
        }
        rows.offsets.push(rows.ids.len() as u32);
    }
    rows
}

impl Rows {
    fn pick(&self, rows: &[usize]) -> Self {
        let mut picked = Self {
            offsets: vec![0],
            ..Self::default()
        };
        for &row in rows {
            let range = self.offsets[row] as usize..self.offsets[row + 1] as usize;
            picked.ids.extend_from_slice(&self.ids[range.clone()]);
            picked.types.extend_from_slice(&self.types[range]);
            picked.offsets.push(picked.ids.len() as u32);
        }
        picked
    }

    fn crossing<'a>(&'a self, controls: &'a [RowControl<'a>]) -> AbiBatch<'a> {
        AbiBatch {
            input_ids: RSlice::from_slice(&self.ids),
            type_ids: RSlice::from_slice(&self.types),
            offsets: RSlice::from_slice(&self.offsets),
            prefix_lens: RSlice::from_slice(&[]),
            controls: RSlice::from_slice(controls),
        }
    }
}

fn call(
    worker: &mut OpenWorker,
    rows: &Rows,
    controls: &[RowControl<'_>],
) -> Result<Vec<Result<Vec<f32>, RowStatus>>, crate::Fault> {
    let limits = worker.limits();
    let batch = RaggedBatch::check(
        &rows.ids,
        &rows.types,
        &rows.offsets,
        &[],
        controls,
        &limits,
        Instant::now(),
    )
    .map_err(crate::Fault::bad_batch)?;
    let mut logits = vec![f32::NAN; batch.n_rows() * worker.n_labels()];
    let mut statuses = vec![0; batch.n_rows()];
    let (_, scores) = worker.score(&batch, &mut logits, &mut statuses)?;
    Ok((0..batch.n_rows())
        .map(|row| scores.row(row).map(<[f32]>::to_vec))
        .collect())
}

/// Scores of rows that must all be scored.
fn score(worker: &mut OpenWorker, rows: &Rows) -> Vec<Vec<f32>> {
    let wanted = AtomicBool::new(true);
    let controls = vec![
        RowControl {
            deadline_us: u64::MAX,
            wanted: &wanted
        };
        rows.offsets.len() - 1
    ];
    let scored =
        call(worker, rows, &controls).unwrap_or_else(|fault| panic!("a good batch fails: {fault}"));
    scored
        .into_iter()
        .enumerate()
        .map(|(row, logits)| {
            logits.unwrap_or_else(|status| panic!("row {row} of a good batch is {status:?}"))
        })
        .collect()
}

#[track_caller]
fn assert_close(expected: &[Vec<f32>], found: &[Vec<f32>], tolerance: f32, when: &str) {
    assert_eq!(expected.len(), found.len(), "rows {when}");
    for (row, (expected, found)) in expected.iter().zip(found).enumerate() {
        for (a, b) in expected.iter().zip(found) {
            // Bits, not values: 0.0 and -0.0 would be told apart by a cache.
            let same = if tolerance == 0.0 {
                a.to_bits() == b.to_bits()
            } else {
                (a - b).abs() <= tolerance
            };
            assert!(same, "row {row}: {a} and {b} {when}, tolerance {tolerance}");
        }
    }
}
