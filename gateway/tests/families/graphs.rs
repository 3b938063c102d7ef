//! Models as graphs, by the plugin that reads them, beside plugins that read weights by name.

use crate::lookalike::Hub;
use crate::server::{Answer, Server, plugin_dir};
use crate::{models, start, with, write_tokenizer};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file of the plugins' own tests.
fn plugins(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../plugins")
        .join(name)
}

/// Where `make onnxruntime` puts the library; `None` where there is none and need not be.
fn runtime() -> Option<PathBuf> {
    let library = plugin_dir().parent().unwrap().join("onnxruntime");
    if library.is_dir() {
        return Some(library);
    }
    assert!(
        std::env::var_os("ONNXRUNTIME_REQUIRED").is_none(),
        "there is no ONNX Runtime: run `make onnxruntime`"
    );
    eprintln!(
        "SKIPPED: there is no ONNX Runtime in {}: run `make onnxruntime`",
        library.display()
    );
    None
}

#[track_caller]
fn check_alike(a: &Answer, b: &Answer) {
    let (a, b) = (a.results(), b.results());
    assert_eq!(a.len(), b.len());
    let score = |result: &Value| result["relevance_score"].as_f64().unwrap();
    for (a, b) in a.iter().zip(&b) {
        assert_eq!(a["index"], b["index"]);
        assert!((score(a) - score(b)).abs() < 1e-4, "{a} {b}");
    }
}

/// A model of graphs alone: the seeded BERT of the plugins' tests, with a tokenizer of a few words.
fn model() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("onnx")).unwrap();
    for (from, to) in [
        ("golden/bert/config.json", "config.json"),
        (
            "ort-coreml/tests/models/bert/onnx/model.onnx",
            "onnx/model.onnx",
        ),
    ] {
        std::fs::copy(plugins(from), dir.path().join(to)).unwrap();
    }
    write_tokenizer(dir.path());
    dir
}

#[test]
fn a_model_of_graphs_alone_is_served_by_the_plugin_that_reads_them() {
    if runtime().is_none() {
        return;
    }
    let dir = model();
    let server = start("starter");
    let order = json!({"source": dir.path().display().to_string()});
    let answer = server.order("/models/graphs/load", &order);
    assert_eq!(answer.status, 200, "{answer:?}");
    let models = models(&server);
    assert_eq!(models["graphs"]["backend"], "ort-coreml", "{models}");
    let body = json!({"model": "graphs", "query": "plants", "documents": ["the light", "cars"]});
    assert_eq!(server.rerank(&body).results().len(), 2);
    // The same weights by name, for who computes them itself: the same scores.
    let named = server.rerank(&body);
    std::fs::copy(
        plugins("golden/bert/model.safetensors"),
        dir.path().join("model.safetensors"),
    )
    .unwrap();
    let order = json!({"source": dir.path().display().to_string(), "plugin": "candle-cpu"});
    let answer = server.order("/models/named/load", &order);
    assert_eq!(answer.status, 200, "{answer:?}");
    let mut other = body.clone();
    other["model"] = "named".into();
    let other = server.rerank(&other);
    check_alike(&named, &other);
}

/// A repository that has the same model by name and as a graph.
fn repository() -> Hub {
    let dir = model();
    let of_dir = |name: &'static str| (name, std::fs::read(dir.path().join(name)).unwrap());
    let weights = std::fs::read(plugins("golden/bert/model.safetensors")).unwrap();
    Hub::start(&[
        of_dir("config.json"),
        of_dir("tokenizer.json"),
        of_dir("onnx/model.onnx"),
        ("model.safetensors", weights),
    ])
}

#[test]
fn a_swap_fetches_the_graph_that_the_new_plugin_reads() {
    if runtime().is_none() {
        return;
    }
    let hub = repository();
    let settings = [("model.backend", "candle-cpu"), ("model.max_length", "64")];
    let settings = with("m=org/name", &settings);
    let server = Server::start_from(hub.settings(&[]), "{}", &settings);
    let body = json!({"query": "plants", "documents": ["the light", "cars"]});
    let named = server.rerank(&body);
    let asked_for = |part: &str| {
        let asked = hub.asked();
        asked.iter().any(|asked| asked.path.ends_with(part))
    };
    assert!(!asked_for("model.onnx"));

    // A hub that fails is named, and so is what it has not.
    hub.state().failures = vec![(503, ""); 9];
    let order = json!({"plugin": "ort-coreml", "dtype": "f32", "probation_s": 0});
    let answer = server.order("/models/m/swap", &order);
    assert_eq!(answer.status, 409, "{answer:?}");
    assert!(answer.text.contains("HTTP 503"), "{answer:?}");
    hub.state().failures.clear();
    let int8 = json!({"plugin": "ort-coreml", "dtype": "int8"});
    let answer = server.order("/models/m/swap", &int8);
    assert_eq!(answer.status, 409, "{answer:?}");
    for word in [
        "dtype int8",
        "model_quantized.onnx",
        "it holds onnx/model.onnx",
    ] {
        assert!(answer.text.contains(word), "{answer:?} does not say {word}");
    }

    let told = server.order_stream("/models/m/swap", &order);
    let states: Vec<_> = told
        .lines()
        .filter_map(|line| line.strip_prefix("event: "))
        .collect();
    let expected = [
        "found",
        "preparing",
        "verified",
        "loaded",
        "warm",
        "proven",
        "live",
        "confirmed",
    ];
    assert_eq!(states, expected, "{told}");
    for word in ["onnx/model.onnx is being fetched", "as generation 1"] {
        assert!(told.contains(word), "{told} does not say {word}");
    }
    assert!(asked_for("model.onnx"));
    check_alike(&named, &server.rerank(&body));
    // And back: nothing is fetched, nothing is another model.
    let back = server.order("/models/m/rollback", &Value::Null);
    assert_eq!(back.status, 200, "{back:?}");
    assert_eq!(models(&server)["m"]["backend"], "candle-cpu");
    check_alike(&named, &server.rerank(&body));
}

#[test]
fn a_model_that_came_as_a_graph_goes_to_named_weights_and_back() {
    if runtime().is_none() {
        return;
    }
    let hub = repository();
    let settings = [("model.backend", "ort-coreml"), ("model.max_length", "64")];
    let settings = with("m=org/name", &settings);
    let server = Server::start_from(hub.settings(&[]), "{}", &settings);
    assert!(
        !hub.asked()
            .iter()
            .any(|asked| asked.path.ends_with("model.safetensors"))
    );
    let body = json!({"query": "plants", "documents": ["the light", "cars"]});
    let graph = server.rerank(&body);
    let order = json!({"plugin": "candle-cpu", "dtype": "f32", "probation_s": 0});
    let answer = server.order("/models/m/swap", &order);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.text.contains("as generation 1"), "{answer:?}");
    server.until(|| {
        let state = models(&server)["m"]["last_swap"]["state"].clone();
        (state == "confirmed").then_some(())
    });
    check_alike(&graph, &server.rerank(&body));
    let back = server.order("/models/m/rollback", &Value::Null);
    assert_eq!(back.status, 200, "{back:?}");
    assert_eq!(models(&server)["m"]["backend"], "ort-coreml");
}

/// The gateway runs a copy of the plugin, and tells it where the file lies that users know. The program lies where
/// there is no ONNX Runtime.
#[test]
fn a_library_beside_the_plugin_is_found_from_its_copy() {
    let Some(runtime) = runtime() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (bin, folder, cache) = (
        dir.path().join("bin"),
        dir.path().join("plugins"),
        dir.path().join("cache"),
    );
    std::fs::create_dir(&bin).unwrap();
    std::fs::create_dir(&folder).unwrap();
    let program = bin.join("crossgate");
    std::fs::copy(env!("CARGO_BIN_EXE_crossgate"), &program).unwrap();
    let plugin = format!(
        "{}ort_coreml{}",
        std::env::consts::DLL_PREFIX,
        std::env::consts::DLL_SUFFIX
    );
    std::fs::copy(plugin_dir().join(&plugin), folder.join(&plugin)).unwrap();
    let (model, workload) = (model(), dir.path().join("pairs.jsonl"));
    std::fs::write(
        &workload,
        json!({"query": "plants", "documents": ["cars"]}).to_string(),
    )
    .unwrap();
    let bench = || {
        let mut command = Command::new(&program);
        command
            .args([
                "bench",
                "--stage",
                "inference",
                "--requests",
                "1",
                "--rounds",
                "1",
            ])
            .args(["--backend", "ort-coreml", "--max-length", "64", "--model"])
            .arg(model.path())
            .arg("--plugin-dir")
            .arg(&folder)
            .arg("--cache-dir")
            .arg(&cache)
            .arg("--workload")
            .arg(&workload)
            .env_clear();
        let output = command.output().unwrap();
        (
            output.status.success(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    // One that is none is named by where it lies: nobody knows the folder of copies.
    let broken = folder.join("libonnxruntime.so.1.99.0");
    std::fs::write(&broken, "").unwrap();
    let (is_found, said) = bench();
    if !is_found {
        let beside = format!("{} (beside the plugin)", broken.display());
        assert!(said.contains(&beside), "{said}");
    }
    std::os::unix::fs::symlink(runtime, folder.join("onnxruntime")).unwrap();
    let (is_found, said) = bench();
    assert!(is_found, "{said}");
}
