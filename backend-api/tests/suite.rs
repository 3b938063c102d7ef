//! The conformance suite finds what it is for: each plugin here breaks one promise, and the suite must
//! say which.

use backend_api::conformance::{self, Subject};
use backend_api::{
    Backend, Description, DeviceState, Fault, OpenRequest, Phases, Plugin, PluginCard,
    PluginLibrary, RaggedBatch, RowStatus, Scores, Worker,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

const VOCAB_SIZE: u32 = 500;

/// A plugin that keeps every promise but the one that its options name.
struct Crooked;

struct CrookedBackend {
    broken: String,
    /// Counts what a plugin should not let anybody notice: opens, workers, calls.
    counter: Arc<AtomicU32>,
}

struct CrookedWorker {
    broken: String,
    worker: u32,
}

/// All opens of all tests; only a plugin that breaks a promise looks at it.
static N_OPENS: AtomicU32 = AtomicU32::new(0);

impl Plugin for Crooked {
    fn card() -> PluginCard {
        PluginCard {
            name: "crooked".to_owned(),
            version: "1.0.0".to_owned(),
            devices: vec!["cpu".to_owned()],
            dtypes: vec!["f32".to_owned()],
            ..PluginCard::default()
        }
    }

    fn open(request: &OpenRequest) -> Result<Box<dyn Backend>, Fault> {
        let broken = request.options.clone();
        if !matches!(request.device.as_str(), "auto" | "cpu") && broken != "takes any device" {
            return Err(Fault::unsupported("device: cpu only"));
        }
        if !matches!(request.dtype.as_str(), "auto" | "f32") && broken != "takes any dtype" {
            return Err(Fault::unsupported("dtype: f32 only"));
        }
        // The suite's own bad options; this plugin's are no JSON either, so that a case is one text.
        if broken == "{" {
            return Err(Fault::bad_request("options: not JSON"));
        }
        let counter = Arc::new(AtomicU32::new(N_OPENS.fetch_add(1, Ordering::Relaxed)));
        Ok(Box::new(CrookedBackend { broken, counter }))
    }
}

/// Does not look at its options.
struct Deaf;

impl Plugin for Deaf {
    fn card() -> PluginCard {
        Crooked::card()
    }

    fn open(request: &OpenRequest) -> Result<Box<dyn Backend>, Fault> {
        Crooked::open(&OpenRequest {
            options: "{}".to_owned(),
            ..request.clone()
        })
    }
}

/// Does not say what it is.
struct Nameless;

impl Plugin for Nameless {
    fn card() -> PluginCard {
        PluginCard {
            name: String::new(),
            ..Crooked::card()
        }
    }

    fn open(request: &OpenRequest) -> Result<Box<dyn Backend>, Fault> {
        Crooked::open(request)
    }
}

/// Lists a file in a data type that it does not have.
struct Mislabelled;

impl Plugin for Mislabelled {
    fn card() -> PluginCard {
        PluginCard {
            files: vec![
                "f32:model.onnx".to_owned(),
                "int8:model_int8.onnx".to_owned(),
            ],
            ..Crooked::card()
        }
    }

    fn open(request: &OpenRequest) -> Result<Box<dyn Backend>, Fault> {
        Crooked::open(request)
    }
}

impl Backend for CrookedBackend {
    fn description(&self) -> Description {
        let opened = self.counter.load(Ordering::Relaxed);
        let is = |broken: &str| self.broken == broken;
        Description {
            device: if is("describes no device") {
                String::new()
            } else {
                "cpu".to_owned()
            },
            dtype: "f32".to_owned(),
            kernel: "scalar-sum".to_owned(),
            numerics_id: match self.broken.as_str() {
                "describes itself otherwise" => format!("crooked-{opened}"),
                "has no numerics" => String::new(),
                _ => "crooked-1".to_owned(),
            },
            row_tokens_max: 40,
            n_workers_max: 4,
            cancels: !is("says that it does not cancel"),
            bitwise: true,
            ..Description::default()
        }
    }

    fn worker(&self) -> Result<Box<dyn Worker>, Fault> {
        let worker = self.counter.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(CrookedWorker {
            broken: self.broken.clone(),
            worker,
        }))
    }

    fn devices(&self) -> Result<Vec<DeviceState>, Fault> {
        if self.broken == "tells nothing of devices" {
            return Ok(Vec::new());
        }
        let mut first = DeviceState {
            name: "odd:0".to_owned(),
            memory_process_bytes: Some(1),
            memory_used_bytes: Some(4),
            memory_total_bytes: Some(4),
            utilization: Some(1.0),
            ..DeviceState::default()
        };
        match self.broken.as_str() {
            "uses more than there is" => first.memory_used_bytes = Some(5),
            "holds more than there is" => first.memory_process_bytes = Some(5),
            "computes more than all the time" => first.utilization = Some(1.01),
            "computes less than never" => first.utilization = Some(-0.01),
            "computes no number" => first.utilization = Some(f64::NAN),
            "is colder than cold" => first.temperature_celsius = Some(-300.0),
            "takes no number" => first.power_watts = Some(f64::INFINITY),
            "has a nameless device" => first.name = String::new(),
            "has a device with a long name" => first.name = "x".repeat(65),
            "has a device with a line in its name" => first.name = "a\nb".to_owned(),
            "tells of too many devices" => {
                let numbered = |number| DeviceState {
                    name: format!("odd:{number}"),
                    ..DeviceState::default()
                };
                return Ok((0..65).map(numbered).collect());
            }
            "tells of one device twice" => return Ok(vec![first.clone(), first]),
            "tells of other devices each time" => {
                first.name = format!("odd:{}", N_OPENS.fetch_add(1, Ordering::Relaxed));
            }
            "fails when it is asked for devices" => return Err(Fault::internal("no driver")),
            "panics when it is asked for devices" => panic!("no driver at all"),
            _ => {}
        }
        Ok(vec![first])
    }
}

impl Worker for CrookedWorker {
    fn score(&mut self, batch: &RaggedBatch<'_>, out: &mut Scores<'_>) -> Result<Phases, Fault> {
        for row in 0..batch.n_rows() {
            let ids = batch.row(row).input_ids;
            match batch.state(row) {
                status @ (RowStatus::Unwanted | RowStatus::Expired) => {
                    self.pass_over(row, status, out)
                }
                _ if ids.iter().any(|&id| VOCAB_SIZE <= id) => self.refuse(row, out)?,
                _ => self.score_row(batch, row, out),
            }
        }
        Ok(Phases::default())
    }
}

impl CrookedWorker {
    fn pass_over(&self, row: usize, status: RowStatus, out: &mut Scores<'_>) {
        match self.broken.as_str() {
            "scores what nobody wants" | "says that it does not cancel" => out.set(row, &[0.0]),
            "calls what is unwanted late" => out.fail(row, RowStatus::Expired),
            _ => out.fail(row, status),
        }
    }

    fn refuse(&self, row: usize, out: &mut Scores<'_>) -> Result<(), Fault> {
        match self.broken.as_str() {
            "fails the batch for one row" => {
                return Err(Fault::internal("an id beyond the vocabulary"));
            }
            "scores ids beyond the vocabulary" => out.set(row, &[0.0]),
            _ => out.fail(row, RowStatus::Failed),
        }
        Ok(())
    }

    fn score_row(&self, batch: &RaggedBatch<'_>, row: usize, out: &mut Scores<'_>) {
        let ids = batch.row(row).input_ids;
        let sum = ids.iter().sum::<u32>() as f32;
        match self.broken.as_str() {
            "adds the rows beside it" => out.set(row, &[sum + batch.n_rows() as f32]),
            "adds the row's place" => out.set(row, &[sum + row as f32]),
            "adds the worker's number" => out.set(row, &[sum + self.worker as f32]),
            "refuses the longest row" if ids.len() == 40 => out.fail(row, RowStatus::Failed),
            "forgets the last of many" if row == 200 => {}
            "gives NaN for one token" if ids.len() == 1 => out.set(row, &[f32::NAN]),
            "cancels everybody"
                if batch
                    .controls()
                    .iter()
                    .any(|control| control.deadline_us == 0) =>
            {
                out.fail(row, RowStatus::Unwanted);
            }
            "panics over a short row" if ids.len() == 2 => panic!("two tokens are too few"),
            _ => out.set(row, &[sum]),
        }
    }
}

/// What the suite says about a plugin that breaks this promise; nothing if it finds it sound.
fn verdict<P: Plugin>(broken: &str) -> Option<String> {
    let library = PluginLibrary::in_process::<P>().expect("there is a card");
    let request = OpenRequest {
        options: broken.to_owned(),
        ..OpenRequest::default()
    };
    let subject = Subject {
        library: &library,
        request,
        vocab_size: VOCAB_SIZE,
        type_vocab_size: 2,
        tolerance: 0.0,
    };
    let payload = catch_unwind(AssertUnwindSafe(|| conformance::run(&subject))).err()?;
    let text = payload.downcast_ref::<&str>().map(|&text| text.to_owned());
    Some(
        text.or_else(|| payload.downcast_ref::<String>().cloned())
            .expect("a panic of the suite has a text"),
    )
}

#[track_caller]
fn check_found<P: Plugin>(broken: &str, part: &str) {
    let verdict = verdict::<P>(broken)
        .unwrap_or_else(|| panic!("the suite finds nothing wrong with {broken:?}"));
    assert!(
        verdict.contains(part),
        "{broken:?}: {verdict:?} lacks {part:?}"
    );
}

#[test]
fn a_sound_plugin_passes() {
    for sound in [
        "{}",
        "says that it does not cancel",
        "tells nothing of devices",
    ] {
        assert_eq!(verdict::<Crooked>(sound), None, "{sound:?}");
    }
}

#[test]
fn every_broken_promise_is_named() {
    for (broken, part) in [
        (
            "describes itself otherwise",
            "a second open describes itself otherwise",
        ),
        ("describes no device", "lacks device or kernel"),
        ("has no numerics", "no numerics_id"),
        ("adds the rows beside it", "between a batch and single rows"),
        ("adds the row's place", "between a batch and single rows"),
        ("adds the worker's number", "after a second open"),
        ("refuses the longest row", "row 0 of a good batch is Failed"),
        (
            "forgets the last of many",
            "left row 200 without score and status",
        ),
        ("gives NaN for one token", "of a good batch is NotFinite"),
        ("panics over a short row", "two tokens are too few"),
        (
            "scores what nobody wants",
            "scored row 0, which nobody waits for",
        ),
        ("calls what is unwanted late", "row 0"),
        ("cancels everybody", "the row that is waited for"),
        ("fails the batch for one row", "one bad id fails a batch"),
        (
            "scores ids beyond the vocabulary",
            "a row with an id beyond the vocabulary",
        ),
        ("takes any dtype", "an unknown dtype: accepted"),
        ("takes any device", "an unknown device: accepted"),
    ] {
        check_found::<Crooked>(broken, part);
    }
}

#[test]
fn devices_that_make_no_sense_are_named() {
    for (broken, part) in [
        (
            "uses more than there is",
            "odd:0 has memory_used_bytes = 5, more than memory_total_bytes = 4",
        ),
        (
            "holds more than there is",
            "odd:0 has memory_process_bytes = 5, more than",
        ),
        (
            "computes more than all the time",
            "odd:0 has utilization = 1.01, not within 0.0..=1.0",
        ),
        ("computes less than never", "utilization = -0.01"),
        ("computes no number", "utilization = NaN"),
        ("is colder than cold", "temperature_celsius = -300"),
        ("takes no number", "power_watts = inf"),
        ("has a nameless device", "calls a device \"\", not 1 to 64"),
        ("has a device with a long name", "not 1 to 64 bytes"),
        ("has a device with a line in its name", "printable ASCII"),
        (
            "tells of too many devices",
            "tells of 65 devices, at most 64 may be",
        ),
        ("tells of one device twice", "odd:0 is told of twice"),
        (
            "tells of other devices each time",
            "other devices than before",
        ),
        ("fails when it is asked for devices", "no driver"),
        ("panics when it is asked for devices", "no driver at all"),
    ] {
        check_found::<Crooked>(broken, part);
    }
}

#[test]
fn options_that_are_not_read_are_named() {
    check_found::<Deaf>("{}", "options that are not JSON: accepted");
}

#[test]
fn a_card_without_a_name_is_named() {
    check_found::<Nameless>("{}", "the card lacks a name or a version");
}

#[test]
fn a_file_in_no_dtype_of_the_card_is_named() {
    check_found::<Mislabelled>("{}", "not dtype:path in one of its dtypes");
}
