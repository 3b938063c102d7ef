//! Backends that are replaced while they serve, on real sockets and with real library files.

#[path = "swap/arrivals.rs"]
mod arrivals;
#[path = "swap/coming.rs"]
mod coming;
#[path = "swap/devices.rs"]
mod devices;
#[path = "swap/guard.rs"]
mod guard;
#[path = "swap/impostors.rs"]
mod impostors;
#[path = "../../backend-api/tests/support/libraries.rs"]
mod libraries;
#[path = "swap/mixed.rs"]
mod mixed;
#[path = "swap/refused.rs"]
mod refused;
#[path = "serve/server.rs"]
mod server;
#[path = "swap/serving.rs"]
mod serving;
#[path = "swap/shadow.rs"]
mod shadow;
#[path = "swap/two.rs"]
mod two;

use serde_json::{Value, json};
use server::{Server, plugin_dir, token};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A document with a rare word; the fake can be told what to do when it sees it.
const RARE: &str = "a volcano";

fn file_name(stem: &str) -> String {
    let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    format!("{prefix}{stem}{suffix}")
}

/// A folder of plugins of its own, and a server on it.
struct Swapping {
    server: Server,
    dir: tempfile::TempDir,
}

impl Swapping {
    fn start(options: &Value, settings: &[(&str, &str)]) -> Self {
        Self::beside(options, settings, |_| {})
    }

    /// The same, with what `fill` puts into the folder.
    fn beside(options: &Value, settings: &[(&str, &str)], fill: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().display().to_string();
        put(dir.path(), "fake", "");
        fill(dir.path());
        let mut all = vec![("plugins.dir", path.as_str()), ("threads.total", "2")];
        all.extend(settings);
        let server = Server::start(&options.to_string(), &all);
        Self { server, dir }
    }

    /// Orders a swap and waits for it.
    fn swap(&self, order: &Value) -> server::Answer {
        self.server.order("/models/starter/swap", order)
    }

    fn rollback(&self) -> server::Answer {
        self.server.order("/models/starter/rollback", &Value::Null)
    }

    fn model(&self) -> Value {
        let models: Value = serde_json::from_str(&self.server.admin("/models").text).unwrap();
        models["starter"].clone()
    }

    fn scores(&self) -> Vec<f64> {
        let answer = self
            .server
            .rerank(&json!({"query": "green plants", "documents": ["green plants", "red cars"]}));
        assert_eq!(answer.status, 200, "{answer:?}");
        let results = answer.results();
        results
            .iter()
            .map(|result| result["relevance_score"].as_f64().unwrap())
            .collect()
    }

    /// Waits until the last swap has reached this.
    fn until(&self, state: &str) -> Value {
        self.server.until(|| {
            let swap = self.model()["last_swap"].clone();
            (swap["state"] == state).then_some(swap)
        })
    }
}

/// A build of the fake of its own: what follows an ELF's last section belongs to nobody.
fn put(dir: &Path, stem: &str, more: &str) {
    let path = dir.join(file_name(stem));
    std::fs::copy(plugin_dir().join(file_name("fake")), &path).unwrap();
    let mut file = OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(more.as_bytes()).unwrap();
}

/// An order in the last moment of a probation, at whose end nobody looks any more, is done all the same.
#[test]
fn a_probation_can_be_ended_to_its_last_moment() {
    let swapping = Swapping::start(&json!({}), &[]);
    let answer = swapping.swap(&json!({"plugin": "fake", "probation_s": 0.05}));
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = swapping.rollback();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(
        answer.text.contains("\"state\":\"rolled_back\""),
        "{answer:?}"
    );
    let swap = swapping.until("rolled_back");
    assert_eq!(swap["detail"], "an operator asked for it");
}

#[test]
fn a_new_build_goes_live_and_is_confirmed() {
    let swapping = Swapping::start(&json!({}), &[]);
    let (before, was) = (swapping.scores(), swapping.model());
    put(swapping.dir.path(), "fake", "a new build");
    let answer = swapping.swap(&json!({"plugin": "fake", "probation_s": 0.3}));
    assert_eq!(answer.status, 200, "{answer:?}");
    let told: Value = serde_json::from_str(&answer.text).unwrap();
    assert_eq!(told["state"], "live");
    let states: Vec<_> = told["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| step["state"].clone())
        .collect();
    assert_eq!(
        states,
        ["found", "verified", "loaded", "warm", "proven", "live"]
    );

    let now = swapping.model();
    assert_eq!(
        (was["generation"].as_u64(), now["generation"].as_u64()),
        (Some(1), Some(2))
    );
    assert_ne!(was["plugin_sha256"], now["plugin_sha256"]);
    assert_eq!(swapping.scores(), before);
    swapping.until("confirmed");
    assert_eq!(swapping.scores(), before);
    assert_eq!(swapping.server.metric("crossgate_plugin_images"), 2.0);
}

#[test]
fn fifty_swaps_to_fifty_images_under_load_fail_no_request() {
    const SWAPS: usize = 50;
    let settings = [
        ("plugins.images_max", "51"),
        ("server.request_timeout", "10s"),
    ];
    let swapping = Swapping::start(&json!({"row_us": 200}), &settings);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|client: usize| {
                let (swapping, stop) = (&swapping, &stop);
                scope.spawn(move || {
                    let mut n_answered = 0;
                    let text = |idx: usize| format!("number {idx} of {client} about plants");
                    let documents: Vec<_> = (0..1 + 5 * client).map(text).collect();
                    while !stop.load(Ordering::Relaxed) {
                        let answer = swapping
                            .server
                            .rerank(&json!({"query": "plants", "documents": documents}));
                        assert_eq!(
                            (answer.status, answer.results().len()),
                            (200, documents.len()),
                            "{answer:?}"
                        );
                        n_answered += 1;
                    }
                    n_answered
                })
            })
            .collect();
        for n in 0..SWAPS {
            put(swapping.dir.path(), "fake", &format!("build {n}"));
            let answer = swapping.swap(&json!({"plugin": "fake", "probation_s": 0}));
            if answer.status != 200 {
                stop.store(true, Ordering::Relaxed);
            }
            assert_eq!(answer.status, 200, "swap {n}: {answer:?}");
            swapping.until("confirmed");
        }
        // One more than there may be images.
        put(swapping.dir.path(), "fake", "one too many");
        let answer = swapping.swap(&json!({"plugin": "fake"}));
        stop.store(true, Ordering::Relaxed);
        assert_eq!(answer.status, 409, "{answer:?}");
        assert!(answer.text.contains("plugins.images_max"), "{answer:?}");
        for client in clients {
            assert!(client.join().unwrap() > 50);
        }
    });
    assert_eq!(swapping.server.metric("crossgate_plugin_images"), 51.0);
    assert_eq!(swapping.model()["generation"], 1 + SWAPS);
    // The old ones are gone: each had two workers.
    swapping
        .server
        .until(|| (swapping.server.metric("crossgate_workers") == 2.0).then_some(()));
    let server = &swapping.server;
    // What counts up does not begin again with each generation.
    assert!(server.metric("crossgate_requests_in_flight") == 0.0);
}

#[test]
fn a_request_under_way_is_answered_by_the_generation_that_began_it() {
    let swapping = Swapping::start(&json!({"bias": 1.0}), &[]);
    let before = swapping.scores();
    let hold = swapping.server.hold();
    let waits = swapping
        .server
        .rerank_later(&json!({"query": "green plants", "documents": ["green plants", "red cars"]}));
    swapping
        .server
        .until(|| (swapping.server.metric("crossgate_workers_busy") > 0.0).then_some(()));
    // The golden rows of what serves wait for the file as well: the swap goes on only when all do.
    let (server, order) = (
        &swapping.server,
        json!({"options": {"bias": 3.0}, "probation_s": 0}),
    );
    std::thread::scope(|scope| {
        let swap = scope.spawn(|| server.order("/models/starter/swap", &order));
        swapping.until("found");
        drop(hold);
        assert_eq!(swap.join().unwrap().status, 409);
    });
    let found = waits.join().unwrap().results();
    let found: Vec<_> = found
        .iter()
        .map(|result| result["relevance_score"].as_f64().unwrap())
        .collect();
    assert_eq!(found, before);
}

#[test]
fn one_that_fails_after_going_live_is_rolled_back_by_itself() {
    let swapping = Swapping::start(&json!({}), &[("worker.retries_max", "0")]);
    let order = json!({"options": {"fault_on": token("volcano")}, "probation_s": 600});
    assert_eq!(swapping.swap(&order).status, 200);
    assert_eq!(swapping.model()["generation"], 2);
    let swap = swapping.server.until(|| {
        // What it fails, the one before it answers: nobody notices.
        let answer = swapping
            .server
            .rerank(&json!({"query": "q", "documents": [RARE]}));
        assert_eq!(answer.status, 200, "{answer:?}");
        let swap = swapping.model()["last_swap"].clone();
        (swap["state"] == "rolled_back").then_some(swap)
    });
    assert!(
        swap["detail"].as_str().unwrap().contains("batches failed"),
        "{swap}"
    );
    assert_eq!(swapping.model()["generation"], 1);
    assert_eq!(
        swapping
            .server
            .rerank(&json!({"query": "q", "documents": [RARE]}))
            .status,
        200
    );
}

#[test]
fn one_that_is_slower_than_before_is_rolled_back_by_itself() {
    let swapping = Swapping::start(&json!({"row_us": 100}), &[]);
    let documents: Vec<_> = (0..200)
        .map(|idx| format!("document {idx} about plants and the light of day"))
        .collect();
    let busy = json!({"query": "how do plants grow", "documents": documents});
    for _ in 0..10 {
        assert_eq!(swapping.server.rerank(&busy).status, 200);
    }
    assert_eq!(
        swapping
            .swap(&json!({"options": {"row_us": 2_000}, "probation_s": 600}))
            .status,
        200
    );
    let swap = swapping.server.until(|| {
        assert_eq!(swapping.server.rerank(&busy).status, 200);
        let swap = swapping.model()["last_swap"].clone();
        (swap["state"] == "rolled_back").then_some(swap)
    });
    assert!(
        swap["detail"]
            .as_str()
            .unwrap()
            .contains("times as long as before"),
        "{swap}"
    );
    assert_eq!(swapping.server.rerank(&busy).status, 200);
}

#[test]
fn an_operator_rolls_back() {
    let swapping = Swapping::start(&json!({}), &[]);
    let before = swapping.scores();
    let refused = swapping.rollback();
    assert_eq!(refused.status, 409, "{refused:?}");
    let order = json!({"options": {"bias": 0.001}, "probation_s": 600});
    assert_eq!(swapping.swap(&order).status, 200);
    assert_ne!(swapping.scores(), before);
    let again = swapping.swap(&json!({}));
    assert_eq!(again.status, 409, "{again:?}");
    assert!(again.text.contains("probation"), "{again:?}");
    let back = swapping.rollback();
    assert_eq!(back.status, 200, "{back:?}");
    assert!(back.text.contains("operator"), "{back:?}");
    assert_eq!(swapping.scores(), before);
}

#[test]
fn an_operator_rolls_back_after_the_probation_too() {
    let swapping = Swapping::start(&json!({}), &[]);
    let (before, was) = (swapping.scores(), swapping.model());
    put(swapping.dir.path(), "fake", "another build");
    let order = json!({"plugin": "fake", "options": {"bias": 0.001}, "probation_s": 0});
    assert_eq!(swapping.swap(&order).status, 200);
    swapping.until("confirmed");
    assert_ne!(swapping.scores(), before);
    let back = swapping.rollback();
    assert_eq!(back.status, 200, "{back:?}");
    assert_eq!(swapping.scores(), before);
    let now = swapping.model();
    // Its file was overwritten; its image is there.
    assert_eq!(now["plugin_sha256"], was["plugin_sha256"]);
    assert_eq!(now["generation"], 3);
    // There is nothing before it any more.
    assert_eq!(swapping.rollback().status, 409);
}

#[test]
fn the_cache_does_not_mix_generations() {
    let swapping = Swapping::start(
        &json!({}),
        &[("cache.enabled", "true"), ("cache.coalesce", "true")],
    );
    let before = swapping.scores();
    let order = json!({"options": {"bias": 0.001}, "probation_s": 600});
    assert_eq!(swapping.swap(&order).status, 200);
    let after = swapping.scores();
    assert!(
        before.iter().zip(&after).all(|(a, b)| a < b),
        "{before:?} {after:?}"
    );
    assert_eq!(swapping.rollback().status, 200);
    assert_eq!(swapping.scores(), before);
    // The first generation's pairs are good again.
    assert!(
        swapping
            .server
            .metric_of("crossgate_cache_rows_total", "outcome=\"hit\"")
            >= 2.0
    );
}

#[test]
fn every_step_is_streamed_to_the_end_of_the_probation() {
    let swapping = Swapping::start(&json!({}), &[]);
    let events = swapping
        .server
        .order_stream("/models/starter/swap", &json!({"probation_s": 0.2}));
    let names: Vec<_> = events
        .lines()
        .filter_map(|line| line.strip_prefix("event: "))
        .collect();
    assert_eq!(
        names,
        [
            "found",
            "verified",
            "loaded",
            "warm",
            "proven",
            "live",
            "confirmed"
        ]
    );
    let data = events
        .lines()
        .find_map(|line| line.strip_prefix("data: "))
        .unwrap();
    let data: Value = serde_json::from_str(data).unwrap();
    assert!(data["detail"].as_str().unwrap().contains("fake"), "{data}");
    let events = swapping
        .server
        .order_stream("/models/starter/swap", &json!({"options": {"skew": 1}}));
    assert!(
        events.contains("event: refused") && events.contains("golden row"),
        "{events}"
    );
}

#[test]
fn a_server_stops_in_the_middle_of_a_probation() {
    let swapping = Swapping::start(&json!({}), &[]);
    assert_eq!(swapping.swap(&json!({"probation_s": 600})).status, 200);
    let started = std::time::Instant::now();
    swapping.server.shut_down_later().join().unwrap();
    assert!(started.elapsed() < Duration::from_secs(5));
}

/// `crossgate swap` with these arguments: its exit code, and what it says.
fn command(swapping: &Swapping, args: &[&str]) -> (Option<i32>, String) {
    run(swapping, &[&["swap", "starter"], args].concat())
}

fn run(swapping: &Swapping, args: &[&str]) -> (Option<i32>, String) {
    let admin = swapping.server.admin_address().to_string();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_crossgate"))
        .args(args)
        .args(["--admin", &admin])
        .output()
        .unwrap();
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn the_command_shows_each_step_and_fails_when_it_is_refused() {
    let swapping = Swapping::start(&json!({}), &[]);
    let (code, said) = command(&swapping, &["fake", "--probation", "0.2"]);
    assert_eq!(code, Some(0), "{said}");
    for state in [
        "found",
        "verified",
        "loaded",
        "warm",
        "proven",
        "live",
        "confirmed",
    ] {
        assert!(said.contains(&format!("starter: {state}")), "{said}");
    }
    let (code, said) = command(&swapping, &["--options", r#"{"skew": 1}"#]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("refused") && said.contains("golden row"),
        "{said}"
    );
    let (code, said) = command(&swapping, &["--no-wait"]);
    assert_eq!(code, Some(0), "{said}");
    for _ in 0..2 {
        // The one in its probation, and the one that was confirmed before it.
        let (code, said) = command(&swapping, &["--rollback"]);
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(swapping.model()["last_swap"]["state"], "rolled_back");
    }
    let (code, said) = command(&swapping, &["--rollback"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("nothing served before"), "{said}");
    for wrong in [
        &["--probation", "soon"][..],
        &["--probation", "inf"],
        &["--options", "x"],
        &["--rollback", "--dtype", "f32"],
    ] {
        let (code, said) = command(&swapping, wrong);
        assert_eq!(code, Some(2), "{wrong:?}: {said}");
    }
}

#[test]
fn a_model_s_name_may_be_a_path() {
    for name in ["owner/model", "a@1"] {
        let source = format!("{name}=starter");
        let swapping = Swapping::start(&json!({}), &[("model.sources", &source)]);
        let admin = swapping.server.admin_address().to_string();
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_crossgate"))
            .args(["swap", name, "--no-wait", "--admin", &admin])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && said.contains(": live"),
            "{name}: {said}"
        );
    }
}
