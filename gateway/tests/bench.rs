//! `crossgate bench` as its users run it: the program itself, the starter and the real engine.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Two requests of two and one documents.
const WORKLOAD: &str = r#"{"query": "how do plants make energy", "documents": ["Photosynthesis turns sunlight, water and carbon dioxide into glucose.", "Berlin is the capital of Germany."]}
{"query": "stories", "documents": ["a very long story about water and light"]}
"#;

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new(workload: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("w.jsonl"), workload).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, args: &[&str]) -> Output {
        let program = Path::new(env!("CARGO_BIN_EXE_crossgate"));
        Command::new(program)
            .args([
                "bench",
                "--backend",
                "cpu-int8",
                "--log-level",
                "error",
                "--plugin-dir",
            ])
            .arg(program.parent().unwrap())
            .arg("--cache-dir")
            .arg(self.path("cache"))
            .arg("--workload")
            .arg(self.path("w.jsonl"))
            .args(args)
            .output()
            .unwrap()
    }

    #[track_caller]
    fn report(&self, args: &[&str]) -> Value {
        let output = self.run(&[args, &["--json"]].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {said}");
        serde_json::from_slice(&output.stdout).expect("the report is JSON")
    }

    #[track_caller]
    fn check_refused(&self, args: &[&str], code: i32, words: &[&str]) {
        let output = self.run(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{said} does not say {word:?}");
        }
    }
}

/// A number above 0 at a place of the report.
#[track_caller]
fn positive(report: &Value, place: &str) -> f64 {
    let found = report.pointer(place).and_then(Value::as_f64);
    let found = found.unwrap_or_else(|| panic!("no number at {place} of {report:#}"));
    assert!(found > 0.0, "{place} is {found}");
    found
}

#[test]
fn every_stage_reports_what_belongs_to_it() {
    let bench = Bench::new(WORKLOAD);
    for (stage, phases, absent) in [
        ("inference", &["queue", "compute"][..], &["tokenize"][..]),
        ("tokenize", &["tokenize"], &["queue", "compute"]),
        ("pipeline", &["tokenize", "compute"], &[]),
    ] {
        let report = bench.report(&["--stage", stage, "--rounds", "2", "--threads", "1"]);
        assert_eq!(report["stage"], stage);
        assert_eq!(report["workload"]["pairs"], 3);
        assert_eq!(report["rounds_s"].as_array().unwrap().len(), 2);
        assert_eq!(
            (&report["model"]["plugin"], &report["model"]["dtype"]),
            (&"cpu-int8".into(), &"int8".into())
        );
        assert_eq!(report["model"]["workers"], 1);
        let pairs_per_s = positive(&report, "/pairs_per_s");
        let tokens_per_s = positive(&report, "/tokens_per_s");
        let per_pair = positive(&report, "/workload/tokens_per_pair");
        assert!((tokens_per_s / pairs_per_s / per_pair - 1.0).abs() < 1e-6);
        for phase in phases.iter().chain(&["request"]) {
            let [p50, p99] = ["p50", "p99"]
                .map(|quantile| positive(&report, &format!("/latency_ms/{phase}/{quantile}")));
            assert!(p50 <= p99, "{phase}");
        }
        for phase in absent {
            assert!(report["latency_ms"][phase].is_null(), "{stage} has {phase}");
        }
        let scores = stage != "tokenize";
        assert_eq!(report["answers"]["bitwise_equal"], scores);
        assert_eq!(report["batches"].is_object(), scores);
        assert_eq!(report["arithmetic"].is_object(), scores);
        if scores {
            assert_eq!(report["batches"]["padding_ratio"], 0.0);
            positive(&report, "/batches/rows_mean");
            let total = positive(&report, "/arithmetic/total_gop_per_s");
            // Whatever the build, nothing is faster than the multipliers.
            let roofline = positive(&report, "/arithmetic/roofline_ratio");
            assert!(roofline < 1.0, "{roofline}");
            let parts = positive(&report, "/arithmetic/linear_gop_per_s")
                + positive(&report, "/arithmetic/attention_gop_per_s");
            assert!((parts / total - 1.0).abs() < 1e-6);
        }
    }
}

#[test]
fn inference_and_pipeline_score_the_same() {
    let bench = Bench::new(WORKLOAD);
    let scores = |stage: &str| {
        let file = bench.path(stage);
        let path = file.display().to_string();
        bench.report(&["--stage", stage, "--rounds", "1", "--output", &path]);
        std::fs::read_to_string(file).unwrap()
    };
    let found = scores("inference");
    assert_eq!(found, scores("pipeline"));
    let first: Value = serde_json::from_str(found.lines().next().unwrap()).unwrap();
    assert_eq!(first["query"], "how do plants make energy");
    let logits: Vec<_> = first["scores"]
        .as_array()
        .unwrap()
        .iter()
        .map(|logit| logit.as_f64().unwrap())
        .collect();
    assert!(logits[0] > logits[1], "{logits:?}");
}

#[test]
fn a_report_for_people() {
    let bench = Bench::new(WORKLOAD);
    let output = bench.run(&["--stage", "inference", "--requests", "1", "--rounds", "1"]);
    let text = String::from_utf8(output.stdout).unwrap();
    for word in [
        "2 pairs of",
        "1 requests",
        "equal bit for bit",
        "pairs/s",
        "padding 0.0 %",
        "GOP/s",
        "roofline",
    ] {
        assert!(text.contains(word), "{text} does not say {word:?}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    let bench = Bench::new(WORKLOAD);
    let stage = ["--stage", "inference"];
    bench.check_refused(
        &["--stage", "warp"],
        2,
        &["'warp'", "inference, tokenize, pipeline"],
    );
    bench.check_refused(&[], 2, &["--stage"]);
    bench.check_refused(
        &[&stage[..], &["--rounds", "0"]].concat(),
        2,
        &["--rounds", "1..="],
    );
    bench.check_refused(
        &[&stage[..], &["--models", "starter,b=starter"]].concat(),
        2,
        &["measures one model", "--models"],
    );
    bench.check_refused(
        &[&stage[..], &["--output", "/nowhere/scores"]].concat(),
        1,
        &["--output /nowhere/scores"],
    );
    let broken = Bench::new(&format!("{WORKLOAD}\n{{\"query\": 1}}\n"));
    broken.check_refused(
        &stage,
        2,
        &["w.jsonl:4:", "expected a string", "\"documents\": ["],
    );
    Bench::new("").check_refused(&stage, 2, &["w.jsonl holds no requests"]);
    std::fs::remove_file(bench.path("w.jsonl")).unwrap();
    bench.check_refused(&stage, 2, &["w.jsonl cannot be read", "No such file"]);
}
