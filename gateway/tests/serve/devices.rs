//! How a backend's devices do: shown as it is told, and nobody waits for it.

use crate::server::Server;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What nobody may be kept from.
const SOON: Duration = Duration::from_secs(2);

fn one() -> Value {
    json!({"query": "plants", "documents": ["green plants"]})
}

fn cards() -> Value {
    json!([
        {"name": "cuda:0", "memory_process_bytes": 1 << 20, "memory_used_bytes": 3_u64 << 30,
            "memory_total_bytes": 80_u64 << 30, "utilization": 0.25, "temperature_celsius": 40.5, "power_watts": 71},
        {"name": "cuda:1", "memory_used_bytes": 0}
    ])
}

/// The lines of `/metrics` that say how devices do.
fn lines(server: &Server) -> Vec<String> {
    let text = server.get_within("/metrics", SOON).text;
    let of_devices = |line: &&str| line.starts_with("crossgate_device_");
    text.lines().filter(of_devices).map(str::to_owned).collect()
}

fn devices(server: &Server) -> Value {
    let models: Value = serde_json::from_str(&server.get_within("/models", SOON).text).unwrap();
    models["starter"]["devices"].clone()
}

/// A server whose backend tells of two devices, but not while the file is there.
fn held(dir: &tempfile::TempDir) -> (Server, PathBuf) {
    let hold = dir.path().join("hold-devices");
    let options = json!({"devices": cards(), "hold_devices": hold});
    let settings = [("threads.total", "2"), ("plugins.probe_timeout", "2s")];
    (Server::start(&options.to_string(), &settings), hold)
}

/// Scores come, and everything can be asked for.
fn check_serves(server: &Server) {
    assert_eq!(server.rerank(&one()).status, 200);
    for path in [
        "/metrics",
        "/metrics?format=json",
        "/models",
        "/health",
        "/readyz",
    ] {
        assert_eq!(server.get_within(path, SOON).status, 200, "{path}");
    }
}

#[test]
fn what_is_told_is_shown_in_base_units_and_what_is_not_known_is_not() {
    let options = json!({"devices": cards()}).to_string();
    let server = Server::start(&options, &[]);
    let mut found = server.until(|| Some(lines(&server)).filter(|lines| !lines.is_empty()));
    let line = |name: &str, device: u8, value: &str| {
        format!("crossgate_device_{name}{{device=\"cuda:{device}\",model=\"starter\"}} {value}")
    };
    let mut expected = vec![
        line("memory_process_bytes", 0, "1048576"),
        line("memory_total_bytes", 0, "85899345920"),
        line("memory_used_bytes", 0, "3221225472"),
        line("memory_used_bytes", 1, "0"),
        line("power_watts", 0, "71"),
        line("temperature_celsius", 0, "40.5"),
        line("utilization_ratio", 0, "0.25"),
    ];
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    let mut shown = cards();
    shown[0]["power_watts"] = json!(71.0);
    assert_eq!(devices(&server), shown);
    let table: Value =
        serde_json::from_str(&server.get("/metrics?format=json").text).expect("a table");
    let of_utilization = |row: &&Value| row["name"] == "crossgate_device_utilization_ratio";
    let rows = table["metrics"].as_array().expect("rows").iter();
    let rows: Vec<_> = rows.filter(of_utilization).collect();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["value"], 0.25);
}

#[test]
fn a_backend_that_tells_nothing_has_no_gauges() {
    let server = Server::start("{}", &[]);
    check_serves(&server);
    assert_eq!(lines(&server), Vec::<String>::new());
    assert_eq!(devices(&server), json!([]));
}

/// What was told before is forgotten, and comes back with the plugin.
#[test]
fn a_plugin_that_does_not_come_back_hangs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (server, hold) = held(&dir);
    server.until(|| (lines(&server).len() == 7).then_some(()));
    std::fs::write(&hold, "").unwrap();
    server.until(|| {
        check_serves(&server);
        lines(&server).is_empty().then_some(())
    });
    assert_eq!(devices(&server), json!([]));
    check_serves(&server);
    std::fs::remove_file(&hold).unwrap();
    server.until(|| (lines(&server).len() == 7).then_some(()));
}

#[test]
fn a_plugin_that_never_comes_back_holds_up_neither_start_nor_end() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("hold-devices"), "").unwrap();
    let (server, hold) = held(&dir);
    check_serves(&server);
    assert_eq!(lines(&server), Vec::<String>::new());
    let started = Instant::now();
    server.shut_down_later().join().unwrap();
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    std::fs::remove_file(hold).unwrap();
}

/// The panic costs one backend, no request, and no second backend.
#[test]
fn a_plugin_that_panics_over_its_devices_is_asked_once() {
    let options = json!({"panic_in": "devices"}).to_string();
    let server = Server::start(&options, &[("threads.total", "2")]);
    let poisoned = || server.metric_of("crossgate_backend_faults_total", "fault=\"poisoned\"");
    server.until(|| {
        check_serves(&server);
        (poisoned() >= 1.0).then_some(())
    });
    // By now each of the two workers has met the poisoned backend, or will once.
    let end = Instant::now() + Duration::from_millis(2_500);
    while Instant::now() < end {
        check_serves(&server);
    }
    assert!(poisoned() <= 2.0, "{}", poisoned());
    assert_eq!(lines(&server), Vec::<String>::new());
}

#[test]
fn a_plugin_that_fails_over_its_devices_serves_all_the_same() {
    for options in [
        json!({"fault_in": "devices"}),
        json!({"devices": [{"name": "cuda:0", "memory_used_bytes": 2, "memory_total_bytes": 1}]}),
        json!({"devices": [{"name": "cuda:0"}, {"name": "cuda:0", "utilization": 0.5}]}),
    ] {
        let server = Server::start(&options.to_string(), &[]);
        check_serves(&server);
        assert_eq!(lines(&server), Vec::<String>::new(), "{options}");
    }
}

/// Whoever looks for a metric by its name on the page finds it.
#[test]
fn every_metric_on_the_page_is_told() {
    let options = json!({"devices": cards()}).to_string();
    let server = Server::start(&options, &[]);
    assert_eq!(server.rerank(&one()).status, 200);
    server.until(|| (lines(&server).len() == 7).then_some(()));
    let page = include_str!("../../METRICS.md");
    let is_of_name = |c: char| c.is_ascii_lowercase() || c == '_';
    let words = page.split(|c| !is_of_name(c));
    let names = words.filter(|word| {
        word.strip_prefix("crossgate_")
            .is_some_and(|rest| !rest.is_empty())
    });
    let text = server.get("/metrics").text;
    let mut n_names = 0;
    for name in names {
        assert!(
            text.contains(&format!("# TYPE {name} ")),
            "{name} is not told"
        );
        n_names += 1;
    }
    assert!(n_names > 20, "{n_names}");
}
