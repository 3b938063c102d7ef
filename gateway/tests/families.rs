//! Several families at once, each by the plugin that serves it, with the scores of its reference.

#[path = "families/graphs.rs"]
mod graphs;
#[path = "hub/lookalike.rs"]
mod lookalike;
#[path = "serve/server.rs"]
mod server;

use serde_json::{Value, json};
use server::Server;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

fn prompts(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/prompts")
        .join(name)
}

/// A server that chooses its plugins itself.
fn start(sources: &str) -> Server {
    start_with(sources, &[])
}

fn start_with(sources: &str, more: &[(&str, &str)]) -> Server {
    Server::start("{}", &with(sources, more))
}

/// These settings for these sources.
fn with<'a>(sources: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut settings = vec![
        ("model.sources", sources),
        ("model.backend", "auto"),
        ("model.options", "{}"),
        ("threads.total", "1"),
    ];
    settings.extend(more);
    settings
}

/// Ends the clients, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn models(server: &Server) -> Value {
    serde_json::from_str(&server.get("/models").text).unwrap()
}

#[test]
fn each_model_is_served_by_the_plugin_that_can() {
    let (modular, instructed) = (prompts("modular"), prompts("instructed"));
    let sources = format!(
        "starter,modular={},instructed={}",
        modular.display(),
        instructed.display()
    );
    let server = start(&sources);
    let models = models(&server);
    for (name, backend) in [
        ("starter", "cpu-int8"),
        ("modular", "candle-cpu"),
        ("instructed", "candle-cpu"),
    ] {
        assert_eq!(models[name]["backend"], backend, "{models}");
    }
    let why = models["starter"]["backend_chosen"].as_str().unwrap();
    for word in [
        "measured",
        "cpu-int8 (int8)",
        "candle-cpu (f32)",
        "tokens/s a worker",
    ] {
        assert!(why.contains(word), "{why} does not say {word}");
    }
    let why = models["modular"]["backend_chosen"].as_str().unwrap();
    assert!(why.contains("the only plugin"), "{why}");
    for (name, folder) in [("modular", modular), ("instructed", instructed)] {
        let text = std::fs::read_to_string(folder.join("golden.json")).unwrap();
        let golden: Vec<Value> = serde_json::from_str(&text).unwrap();
        for pair in golden {
            let body =
                json!({"model": name, "query": pair["query"], "documents": [pair["document"]]});
            let answer = server.rerank(&body);
            assert_eq!(answer.status, 200, "{answer:?}");
            let found = answer.results()[0]["relevance_score"].as_f64().unwrap();
            // CrossEncoder's own activation, on its logit.
            let expected = 1.0 / (1.0 + (-pair["score"].as_f64().unwrap()).exp());
            assert!((found - expected).abs() < 1e-5, "{name} {pair}: {found}");
        }
    }
}

#[test]
fn a_model_that_only_generates_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    for file in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    ] {
        std::fs::copy(prompts("modular").join(file), dir.path().join(file)).unwrap();
    }
    let server = start("starter");
    let order = json!({"source": dir.path().display().to_string()});
    let answer = server.order("/models/chatty/load", &order);
    assert_eq!(answer.status, 409, "{answer:?}");
    for word in ["Qwen3ForCausalLM", "generates text", "LogitScore"] {
        assert!(answer.text.contains(word), "{answer:?} does not say {word}");
    }
}

#[test]
fn a_model_goes_from_one_plugin_to_another_under_load() {
    // Golden rows are as long as the model reads, and this is not optimized.
    let server = start_with("starter", &[("model.max_length", "64")]);
    let body = json!({"query": "how do plants make energy", "documents": ["Photosynthesis turns light into sugar.", "red cars"]});
    let before = server.rerank(&body);
    assert_eq!(before.status, 200, "{before:?}");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let answer = server.rerank(&body);
                assert_eq!(answer.status, 200, "{answer:?}");
            }
        });
        let clients = Stop(&stop);
        let swapped = ["candle-cpu", "cpu-int8"].map(|plugin| {
            let order = json!({"plugin": plugin, "dtype": "f32", "probation_s": 0});
            let answer = server.order("/models/starter/swap", &order);
            server.until(|| {
                let state = models(&server)["starter"]["last_swap"]["state"].clone();
                (state == "confirmed" || state == "refused").then_some(())
            });
            answer
        });
        drop(clients);
        client.join().unwrap();
        for answer in swapped {
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    });
    let proof = models(&server)["starter"]["proof"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(proof.contains("as generation 2"), "{proof}");
}
