//! The contract, tried on the fake; and the fake's own misbehaviour, which the gateway's tests rely on.

mod common;

use backend_api::conformance::{self, Subject};
use backend_api::{DeviceState, FaultCode, PluginLibrary, RowStatus};
use common::{request, score};
use fake::Fake;

fn library() -> PluginLibrary {
    PluginLibrary::in_process::<Fake>().expect("the fake has a card")
}

#[test]
fn conforms() {
    for options in [
        "{}",
        r#"{"labels":3,"bias":0.5}"#,
        r#"{"devices":[{"name":"fake:0","memory_used_bytes":1,"memory_total_bytes":2},{"name":"fake:1","utilization":0}]}"#,
    ] {
        let options = options
            .replacen('{', r#"{"vocab_size":1000,"#, 1)
            .replace(",}", "}");
        conformance::run(&Subject {
            library: &library(),
            request: request(&options),
            vocab_size: 1_000,
            type_vocab_size: 2,
            tolerance: 0.0,
        });
    }
}

#[track_caller]
fn check_open_fails(options: &str, code: FaultCode, text: &str) {
    let fault = match library()
        .open(&request(options))
        .and_then(|backend| backend.worker())
    {
        Ok(_) => panic!("{options} opens"),
        Err(fault) => fault,
    };
    assert_eq!(fault.code, code, "{fault}");
    assert!(fault.text.contains(text), "{fault} lacks {text:?}");
}

#[test]
fn a_panic_in_open_is_a_value() {
    check_open_fails(
        r#"{"panic_in":"open"}"#,
        FaultCode::Panicked,
        "asked to panic in Open",
    );
}
#[test]
fn a_panic_in_worker_is_a_value() {
    check_open_fails(
        r#"{"panic_in":"worker"}"#,
        FaultCode::Panicked,
        "asked to panic in Worker",
    );
}
#[test]
fn a_fault_in_open_keeps_its_text() {
    check_open_fails(
        r#"{"fault_in":"open"}"#,
        FaultCode::Internal,
        "asked to fail in Open",
    );
}
#[test]
fn an_unknown_option_is_named() {
    check_open_fails(r#"{"colour":1}"#, FaultCode::BadRequest, "colour");
}

#[test]
fn a_panic_in_drop_stays_inside() {
    drop(
        library()
            .open(&request(r#"{"panic_in":"drop"}"#))
            .expect("it opens"),
    );
}

#[test]
fn a_panic_poisons_the_backend_and_its_workers() {
    let backend = library()
        .open(&request(r#"{"panic_on":7}"#))
        .expect("it opens");
    let (mut first, mut second) = (
        backend.worker().expect("a worker"),
        backend.worker().expect("a worker"),
    );
    let fault = score(&mut first).expect_err("row 1 panics");
    assert_eq!(
        (fault.code, fault.text.as_str()),
        (FaultCode::Panicked, "asked to panic on row 1")
    );
    assert_eq!(
        score(&mut second).expect_err("poisoned").code,
        FaultCode::Poisoned
    );
    let reopened = library().open(&request("{}")).expect("it opens again");
    assert!(score(&mut reopened.worker().expect("a worker")).is_ok());
}

/// Whoever asks gets what was made up, and nothing else.
#[test]
fn devices_are_as_made_up() {
    let options = r#"{"devices":[{"name":"fake:0","memory_process_bytes":1,"memory_used_bytes":2,
        "memory_total_bytes":3,"utilization":0.25,"temperature_celsius":40.5,"power_watts":71},{"name":"fake:1"}]}"#;
    let backend = library().open(&request(options)).expect("it opens");
    let all = DeviceState {
        name: "fake:0".to_owned(),
        memory_process_bytes: Some(1),
        memory_used_bytes: Some(2),
        memory_total_bytes: Some(3),
        utilization: Some(0.25),
        temperature_celsius: Some(40.5),
        power_watts: Some(71.0),
    };
    let only_its_name = DeviceState {
        name: "fake:1".to_owned(),
        ..DeviceState::default()
    };
    assert_eq!(backend.devices(), Ok(vec![all, only_its_name]));
    let none = library().open(&request("{}")).expect("it opens");
    assert_eq!(none.devices(), Ok(Vec::new()));
}

#[test]
fn devices_misbehave_on_command() {
    for (options, code, text) in [
        (
            r#"{"panic_in":"devices"}"#,
            FaultCode::Panicked,
            "asked to panic in Devices",
        ),
        (
            r#"{"fault_in":"devices"}"#,
            FaultCode::Internal,
            "asked to fail in Devices",
        ),
        (
            r#"{"devices":[{"name":"fake:0","utilization":1.5}]}"#,
            FaultCode::Internal,
            "fake:0 has utilization = 1.5",
        ),
    ] {
        let backend = library().open(&request(options)).expect("it opens");
        let fault = backend.devices().expect_err(options);
        assert_eq!(fault.code, code, "{fault}");
        assert!(fault.text.contains(text), "{fault} lacks {text:?}");
    }
}

#[test]
fn one_row_fails_alone() {
    let cases = [
        ("fail_row_on", RowStatus::Failed),
        ("nan_on", RowStatus::NotFinite),
    ];
    for (option, status) in cases {
        let backend = library()
            .open(&request(&format!(r#"{{"{option}":7}}"#)))
            .expect("it opens");
        let [good, bad] =
            score(&mut backend.worker().expect("a worker")).expect("the batch is fine");
        assert_eq!((good.is_ok(), bad), (true, Err(status)), "{option}");
    }
}

#[test]
fn a_forgotten_row_is_a_fault_that_names_it() {
    let backend = library()
        .open(&request(r#"{"skip_on":7}"#))
        .expect("it opens");
    let fault = score(&mut backend.worker().expect("a worker")).expect_err("row 1 was forgotten");
    assert!(fault.text.contains("row 1"), "{fault}");
}

#[test]
fn scores_are_the_share_of_tokens() {
    let backend = library().open(&request("{}")).expect("it opens");
    let found = score(&mut backend.worker().expect("a worker")).expect("scored");
    // Row 0: the document's only token is in the query. Row 1: so is its 7.
    assert_eq!(found, [Ok(vec![4.0]), Ok(vec![4.0])]);
}
