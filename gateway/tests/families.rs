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
            let body = json!({"model": name, "query": pair["query"], "documents": [pair["document"]],
                    "instruction": pair["instruction"]});
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

/// Writes a tokenizer of a few words.
fn write_tokenizer(dir: &Path) {
    let words = [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", "plants", "light", "cars", "the",
    ];
    let vocab: serde_json::Map<_, _> = words
        .iter()
        .enumerate()
        .map(|(id, word)| ((*word).to_owned(), json!(id)))
        .collect();
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true})
    };
    let piece = |id: &str, segment: u32| json!({"SpecialToken": {"id": id, "type_id": segment}});
    let text = |id: &str, segment: u32| json!({"Sequence": {"id": id, "type_id": segment}});
    let of = |id: &str, number: u32| json!({"id": id, "ids": [number], "tokens": [id]});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "decoder": null,
        "added_tokens": [special(0, "[PAD]"), special(1, "[UNK]"), special(2, "[CLS]"), special(3, "[SEP]")],
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [piece("[CLS]", 0), text("A", 0), piece("[SEP]", 0)],
            "pair": [piece("[CLS]", 0), text("A", 0), piece("[SEP]", 0), text("B", 1), piece("[SEP]", 1)],
            "special_tokens": {"[CLS]": of("[CLS]", 2), "[SEP]": of("[SEP]", 3)}},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}
    });
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

/// A seeded RoBERTa of the plugins' tests, as llama.cpp writes it.
#[test]
fn a_gguf_file_is_served_by_the_plugin_that_reads_it() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/golden/roberta");
    let dir = tempfile::tempdir().unwrap();
    let copy = |from: &str, to: &str| {
        std::fs::copy(golden.join(from), dir.path().join(to)).unwrap();
    };
    copy("llama-cpp.gguf", "model.gguf");
    copy("config.json", "config.json");
    let server = start("starter");
    let load = |name: &str, more: Value| {
        let mut order = json!({"source": dir.path().display().to_string()});
        order
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        server.order(&format!("/models/{name}/load"), &order)
    };
    let answer = load("stored", json!({}));
    assert_eq!(answer.status, 409, "{answer:?}");
    for word in ["no tokenizer.json", "that it was converted from"] {
        assert!(answer.text.contains(word), "{answer:?} does not say {word}");
    }
    write_tokenizer(dir.path());
    let answer = load("stored", json!({"plugin": "cpu-int8"}));
    assert_eq!(answer.status, 409, "{answer:?}");
    let why = "reads safetensors, and the weights are written as gguf";
    assert!(answer.text.contains(why), "{answer:?}");
    let answer = load("stored", json!({}));
    assert_eq!(answer.status, 200, "{answer:?}");
    // The same weights from safetensors, and from the file again, which is named beside them.
    copy("model.safetensors", "model.safetensors");
    let answer = load("named", json!({"plugin": "candle-cpu"}));
    assert_eq!(answer.status, 200, "{answer:?}");
    copy("llama-cpp.gguf", "other.gguf");
    let options =
        json!({"plugin": "candle-cpu", "options": {"file": "other.gguf"}, "dtype": "f16"});
    let answer = load("halves", options);
    assert_eq!(answer.status, 200, "{answer:?}");
    let models = models(&server);
    for (name, dtype) in [("stored", "f32"), ("named", "f32"), ("halves", "f16")] {
        assert_eq!(models[name]["backend"], "candle-cpu", "{models}");
        assert_eq!(models[name]["dtype"], dtype, "{models}");
    }
    let proof = models["halves"]["proof"].as_str().unwrap();
    assert!(proof.contains("its own f32 path"), "{proof}");
    let scores = |name: &str| {
        let body = json!({"model": name, "query": "plants", "documents": ["the light", "cars"]});
        let answer = server.rerank(&body);
        assert_eq!(answer.status, 200, "{answer:?}");
        let score = |result: &Value| result["relevance_score"].as_f64().unwrap();
        answer.results().iter().map(score).collect::<Vec<_>>()
    };
    for (name, tolerance) in [("stored", 1e-6), ("halves", 1e-3)] {
        for (a, b) in scores("named").iter().zip(scores(name)) {
            assert!((a - b).abs() < tolerance, "{name}: {a} {b}");
        }
    }
}

/// What serves is compared with what is to serve, of the same file; another file is another model.
#[test]
fn a_gguf_file_is_proven_when_it_is_swapped() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/golden/modernbert");
    let dir = tempfile::tempdir().unwrap();
    for (from, to) in [("llama-cpp.gguf", "a.gguf"), ("config.json", "config.json")] {
        std::fs::copy(golden.join(from), dir.path().join(to)).unwrap();
    }
    write_tokenizer(dir.path());
    let server = start("starter");
    let order = json!({"source": dir.path().display().to_string()});
    let answer = server.order("/models/blocks/load", &order);
    assert_eq!(answer.status, 200, "{answer:?}");
    let model = models(&server)["blocks"].clone();
    assert_eq!(model["dtype"], "q8_0", "{model}");
    let proof = model["proof"].as_str().unwrap();
    assert!(proof.contains("its own f32 path"), "{proof}");
    let swap = |more: Value| {
        let mut order = json!({"plugin": "candle-cpu", "probation_s": 0});
        let more = more.as_object().unwrap().clone();
        order.as_object_mut().unwrap().extend(more);
        server.order("/models/blocks/swap", &order)
    };
    let answer = swap(json!({"dtype": "f32"}));
    assert_eq!(answer.status, 200, "{answer:?}");
    server.until(|| {
        let model = &models(&server)["blocks"];
        (model["last_swap"]["state"] == "confirmed").then_some(())
    });
    let model = models(&server)["blocks"].clone();
    assert_eq!(model["dtype"], "f32", "{model}");
    let proof = model["proof"].as_str().unwrap();
    assert!(proof.contains("as generation 1"), "{proof}");
    let answer = swap(json!({"dtype": "int4"}));
    assert_eq!(answer.status, 409, "{answer:?}");
    assert!(answer.text.contains("q8_0"), "{answer:?}");
    std::fs::copy(dir.path().join("a.gguf"), dir.path().join("b.gguf")).unwrap();
    let answer = swap(json!({"options": {"file": "b.gguf"}}));
    assert_eq!(answer.status, 409, "{answer:?}");
    assert!(answer.text.contains("other weights"), "{answer:?}");
    // Beside weights by name it was made of them, as graphs are: no change is to be expected.
    std::fs::copy(
        golden.join("model.safetensors"),
        dir.path().join("model.safetensors"),
    )
    .unwrap();
    let order = json!({"source": dir.path().display().to_string(), "plugin": "candle-cpu"});
    let answer = server.order("/models/named/load", &order);
    assert_eq!(answer.status, 200, "{answer:?}");
    let order = json!({"plugin": "candle-cpu", "options": {"file": "a.gguf"}});
    let answer = server.order("/models/named/swap", &order);
    assert_eq!(answer.status, 200, "{answer:?}");
    let models = models(&server);
    assert_eq!(models["named"]["dtype"], "q8_0", "{models}");
    let proof = models["named"]["proof"].as_str().unwrap();
    assert!(proof.contains("as generation 1"), "{proof}");
}
