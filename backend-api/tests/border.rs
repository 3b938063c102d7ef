//! What the border does with panics, with names it does not know, and with slices that do not fit.

use abi_stable::std_types::RSlice;
use backend_api::abi::{Fact, root_module};
use backend_api::{
    Backend, Description, DeviceState, Fault, FaultCode, Limits, OpenBackend, OpenRequest,
    OpenWorker, Phases, Plugin, PluginCard, PluginLibrary, RaggedBatch, RowControl, Scores, Worker,
};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// A plugin that panics where its options say.
struct Trap;

struct TrapBackend(String);

struct TrapWorker(String);

/// A panic's payload whose destructor panics as well.
struct Bomb;

fn step_on(options: &str, place: &str) {
    let asked = |word: &str| options.split_whitespace().any(|option| option == word);
    assert!(!asked(place), "asked to panic in {place}");
    if place == "score" && asked("bomb") {
        std::panic::panic_any(Bomb);
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("a payload's destructor");
    }
}

impl Plugin for Trap {
    fn card() -> PluginCard {
        PluginCard {
            name: "trap".to_owned(),
            ..PluginCard::default()
        }
    }

    fn open(request: &OpenRequest) -> Result<Box<dyn Backend>, Fault> {
        step_on(&request.options, "open");
        Ok(Box::new(TrapBackend(request.options.clone())))
    }
}

impl Backend for TrapBackend {
    fn description(&self) -> Description {
        step_on(&self.0, "description");
        let n_labels = if self.0.contains("no-labels") { 0 } else { 2 };
        Description {
            numerics_id: "trap-1".to_owned(),
            n_labels,
            ..Description::default()
        }
    }

    fn worker(&self) -> Result<Box<dyn Worker>, Fault> {
        step_on(&self.0, "worker");
        Ok(Box::new(TrapWorker(self.0.clone())))
    }

    fn devices(&self) -> Result<Vec<DeviceState>, Fault> {
        step_on(&self.0, "devices");
        let only_its_name = DeviceState {
            name: "trap:0".to_owned(),
            ..DeviceState::default()
        };
        let all = DeviceState {
            name: "trap:1".to_owned(),
            memory_process_bytes: Some(1),
            memory_used_bytes: Some(u64::MAX - 1),
            memory_total_bytes: Some(u64::MAX),
            utilization: Some(0.1 + 0.2),
            temperature_celsius: Some(-0.5),
            power_watts: Some(0.0),
        };
        Ok(vec![only_its_name, all])
    }
}

impl Drop for TrapBackend {
    fn drop(&mut self) {
        step_on(&self.0, "backend-drop");
    }
}

impl Worker for TrapWorker {
    fn score(&mut self, batch: &RaggedBatch<'_>, out: &mut Scores<'_>) -> Result<Phases, Fault> {
        step_on(&self.0, "score");
        for row in 0..batch.n_rows() {
            out.set(row, &[1.0, 2.0]);
        }
        Ok(Phases::default())
    }
}

impl Drop for TrapWorker {
    fn drop(&mut self) {
        step_on(&self.0, "worker-drop");
    }
}

fn open(options: &str) -> OpenBackend {
    let library = PluginLibrary::in_process::<Trap>().expect("a card");
    let request = OpenRequest {
        options: options.to_owned(),
        ..OpenRequest::default()
    };
    library.open(&request).expect("it opens")
}

/// Opens, scores two rows into slices of these lengths, and drops everything.
fn run(options: &str, n_logits: usize, n_statuses: usize) -> Result<(), Fault> {
    let library = PluginLibrary::in_process::<Trap>()?;
    let backend = library.open(&OpenRequest {
        options: options.to_owned(),
        ..OpenRequest::default()
    })?;
    let first = score(&mut backend.worker()?, n_logits, n_statuses);
    if matches!(&first, Err(fault) if fault.code == FaultCode::Panicked) {
        let after = backend.worker().err().map(|fault| fault.code);
        assert_eq!(
            after,
            Some(FaultCode::Poisoned),
            "{options}: nobody enters after a panic"
        );
    }
    first
}

fn score(worker: &mut OpenWorker, n_logits: usize, n_statuses: usize) -> Result<(), Fault> {
    let wanted = AtomicBool::new(true);
    let controls = [RowControl {
        deadline_us: u64::MAX,
        wanted: &wanted,
    }; 2];
    let limits = worker.limits();
    let batch = RaggedBatch::check(
        &[1, 2, 3],
        &[0; 3],
        &[0, 1, 3],
        &[],
        &controls,
        &limits,
        Instant::now(),
    )
    .map_err(Fault::bad_batch)?;
    let (mut logits, mut statuses) = (vec![0.0; n_logits], vec![0; n_statuses]);
    worker.score(&batch, &mut logits, &mut statuses).map(|_| ())
}

#[track_caller]
fn check(options: &str, slices: (usize, usize), expected: Result<(), (FaultCode, &str)>) {
    match (run(options, slices.0, slices.1), expected) {
        (Ok(()), Ok(())) => {}
        (Err(fault), Err((code, text))) => {
            assert_eq!(fault.code, code, "{options}: {fault}");
            assert!(
                fault.text.contains(text),
                "{options}: {fault} lacks {text:?}"
            );
        }
        (found, expected) => panic!("{options}: {found:?}, not {expected:?}"),
    }
}

// === the fence ===

#[test]
fn a_panic_is_a_value() {
    for place in ["open", "description", "worker", "score"] {
        check(
            place,
            (4, 2),
            Err((FaultCode::Panicked, &format!("asked to panic in {place}"))),
        );
    }
}
#[test]
fn a_panic_when_asked_for_devices_is_a_value_and_poisons() {
    let backend = open("devices");
    let mut worker = backend.worker().expect("a worker");
    let fault = backend.devices().expect_err("it panics");
    assert_eq!(
        (fault.code, fault.text.as_str()),
        (FaultCode::Panicked, "asked to panic in devices")
    );
    let after = [
        backend.devices().err(),
        backend.worker().err(),
        score(&mut worker, 4, 2).err(),
    ];
    for fault in after {
        assert_eq!(fault.map(|fault| fault.code), Some(FaultCode::Poisoned));
    }
}
#[test]
fn a_panic_in_a_destructor_stays_inside() {
    for place in ["backend-drop", "worker-drop"] {
        check(place, (4, 2), Ok(()));
    }
}
/// The second panic comes while the first is being dealt with: by unwinding, the process would end.
#[test]
fn a_panic_after_a_panic_stays_inside() {
    check(
        "description backend-drop",
        (4, 2),
        Err((FaultCode::Panicked, "description")),
    );
    check(
        "no-labels backend-drop",
        (4, 2),
        Err((FaultCode::Internal, "n_labels = 0")),
    );
    check(
        "score worker-drop backend-drop",
        (4, 2),
        Err((FaultCode::Panicked, "score")),
    );
}
#[test]
fn a_payload_that_panics_stays_inside() {
    check(
        "bomb",
        (4, 2),
        Err((FaultCode::Panicked, "a panic without text")),
    );
}
#[test]
fn a_panic_in_the_card_is_a_value() {
    struct Faceless;
    impl Plugin for Faceless {
        fn card() -> PluginCard {
            panic!("no face today");
        }
        fn open(_: &OpenRequest) -> Result<Box<dyn Backend>, Fault> {
            Err(Fault::unsupported("never reached"))
        }
    }
    let fault = PluginLibrary::in_process::<Faceless>()
        .err()
        .expect("there is no card");
    assert_eq!(
        (fault.code, fault.text.as_str()),
        (FaultCode::Panicked, "no face today")
    );
}

// === the slices ===

#[test]
fn scores_fit_exactly() {
    check("{}", (4, 2), Ok(()));
}
#[test]
fn too_few_logits() {
    check(
        "{}",
        (3, 2),
        Err((FaultCode::BadBatch, "3 logits for 2 rows of 2 labels")),
    );
}
/// Both slices agree with each other, so it takes the plugin's side, which knows the batch, to see it.
#[test]
fn room_for_fewer_rows_than_the_batch_has() {
    check(
        "{}",
        (2, 1),
        Err((FaultCode::BadBatch, "1 statuses for 2 rows")),
    );
}
#[test]
fn room_for_more_rows_than_the_batch_has() {
    check(
        "{}",
        (6, 3),
        Err((FaultCode::BadBatch, "3 statuses for 2 rows")),
    );
}

/// Ids, types, offsets, prefix lengths, and how many row controls.
type Slices = (
    &'static [u32],
    &'static [u32],
    &'static [u32],
    &'static [u32],
    usize,
);

const IDS: &[u32] = &[5, 6, 7];
const TYPES: &[u32] = &[0, 0, 1];
const AT: &[u32] = &[0, 1, 3];

#[track_caller]
fn check_batch(slices: Slices, expected: Result<(), &str>) {
    let (ids, types, offsets, prefix_lens, n_controls) = slices;
    let limits = Limits {
        rows_max: 3,
        tokens_max: 6,
        row_tokens_max: 3,
    };
    let wanted = AtomicBool::new(true);
    let controls = vec![
        RowControl {
            deadline_us: u64::MAX,
            wanted: &wanted
        };
        n_controls
    ];
    let now = Instant::now();
    let found = RaggedBatch::check(ids, types, offsets, prefix_lens, &controls, &limits, now);
    match (found.map(|_| ()), expected) {
        (Err(text), Err(part)) => assert!(text.contains(part), "{text:?} lacks {part:?}"),
        (found, expected) => assert_eq!(found.is_ok(), expected.is_ok(), "{found:?}"),
    }
}

#[test]
fn good_batches() {
    check_batch((IDS, TYPES, AT, &[], 2), Ok(()));
    check_batch((IDS, TYPES, AT, &[1, 2], 2), Ok(()));
    check_batch((&[], &[], &[0], &[], 0), Ok(()));
}
#[test]
fn broken_offsets() {
    check_batch(
        (IDS, TYPES, &[], &[], 2),
        Err("offsets must hold one more entry than rows"),
    );
    check_batch(
        (IDS, TYPES, &[1, 2, 3], &[], 2),
        Err("offsets must start at 0, not 1"),
    );
    check_batch((IDS, TYPES, &[0, 0, 3], &[], 2), Err("row 0 is empty"));
    check_batch(
        (IDS, TYPES, &[0, 4, 3], &[], 2),
        Err("row 1 is empty or ends before it starts"),
    );
    check_batch(
        (IDS, TYPES, &[0, 1, 2], &[], 2),
        Err("offsets end at 2, but there are 3 input"),
    );
    check_batch(
        (IDS, TYPES, &[0, 1, u32::MAX], &[], 2),
        Err("but there are 3 input ids"),
    );
}
#[test]
fn truncated_slices() {
    check_batch(
        (&IDS[..2], TYPES, AT, &[], 2),
        Err("offsets end at 3, but there are 2 input ids"),
    );
    check_batch(
        (IDS, &TYPES[..2], AT, &[], 2),
        Err("2 type ids for 3 input ids"),
    );
    check_batch((IDS, TYPES, AT, &[], 1), Err("1 row controls for 2 rows"));
    check_batch(
        (IDS, TYPES, AT, &[1], 2),
        Err("1 prefix lengths for 2 rows"),
    );
    check_batch(
        (IDS, TYPES, AT, &[1, 3], 2),
        Err("row 1 has a prefix of more than its 2 tokens"),
    );
}
#[test]
fn more_than_was_agreed() {
    let rising = &[0, 1, 2, 3, 4];
    check_batch(
        (&[9; 4], &[0; 4], rising, &[], 4),
        Err("4 rows, at most 3 were agreed"),
    );
    check_batch(
        (&[9; 4], &[0; 4], &[0, 4], &[], 1),
        Err("row 0 has 4 tokens, at most 3"),
    );
    check_batch(
        (&[9; 7], &[0; 7], &[0, 3, 6, 7], &[], 3),
        Err("7 tokens, at most 6 were agreed"),
    );
}

// === the facts ===

/// What a plugin of today makes of a request that a host of another version sends.
#[track_caller]
fn check_facts(facts: &[(&str, &str)], expected: Result<(), &str>) {
    let facts: Vec<_> = facts
        .iter()
        .map(|&(key, value)| Fact::new(key, value))
        .collect();
    let opened = root_module::<Trap>().open()(RSlice::from_slice(&facts)).into_result();
    match (opened.map_err(Fault::from), expected) {
        (Err(fault), Err(part)) => assert!(fault.text.contains(part), "{fault} lacks {part:?}"),
        (opened, expected) => assert_eq!(opened.is_ok(), expected.is_ok(), "{:?}", opened.err()),
    }
}

#[test]
fn a_request_without_facts_is_all_defaults() {
    check_facts(&[], Ok(()));
}
#[test]
fn an_unknown_fact_is_passed_over() {
    check_facts(
        &[("moon_phase", "waxing"), ("rows_max", "7"), ("", "")],
        Ok(()),
    );
}
#[test]
fn a_fact_that_cannot_be_read_is_named() {
    check_facts(&[("rows_max", "many")], Err("rows_max = \"many\""));
}
#[test]
fn a_fact_that_is_known_is_used() {
    check_facts(&[("options", "open")], Err("asked to panic in open"));
}

// === the devices ===

/// What is known comes over to the bit, and what is not stays unknown.
#[test]
fn devices_cross_as_they_are() {
    let devices = open("{}").devices().expect("two devices");
    let Ok([only_its_name, all]) = <[DeviceState; 2]>::try_from(devices) else {
        panic!("not two devices")
    };
    let nothing = DeviceState {
        name: "trap:0".to_owned(),
        ..DeviceState::default()
    };
    assert_eq!(only_its_name, nothing);
    assert_eq!(
        all,
        DeviceState {
            name: "trap:1".to_owned(),
            memory_process_bytes: Some(1),
            memory_used_bytes: Some(u64::MAX - 1),
            memory_total_bytes: Some(u64::MAX),
            utilization: Some(0.1 + 0.2),
            temperature_celsius: Some(-0.5),
            power_watts: Some(0.0),
        }
    );
}
