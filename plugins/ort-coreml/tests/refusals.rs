//! A folder, an option or a device that does not fit is refused with a text that names it.

mod common;

use backend_api::{FaultCode, OpenRequest};
use common::{BERT, DISTILBERT, EMBEDDER, EXTERNAL, FIXED, HALF, INT8, MODERNBERT, XLM_ROBERTA};
use common::{copy, has_runtime, open, refused, request};
use serde_json::{Value, json};
use std::path::Path;

/// Rewrites `config.json` with one key set; `null` takes it away.
fn set_config(dir: &Path, key: &str, value: Value) {
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config[key] = value;
    std::fs::write(path, config.to_string()).unwrap();
}

#[test]
fn a_folder_without_a_graph_lists_what_it_has() {
    let dir = INT8.dir();
    refused(
        &request(dir.path(), "auto", "{}"),
        FaultCode::Unsupported,
        &[
            "onnx/model_quantized.onnx",
            "model.onnx",
            "f32",
            "options.file",
        ],
    );
    refused(
        &request(dir.path(), "f16", "{}"),
        FaultCode::Unsupported,
        &["onnx/model_quantized.onnx", "model_fp16.onnx"],
    );
    std::fs::remove_dir_all(dir.path().join("onnx")).unwrap();
    refused(
        &request(dir.path(), "auto", "{}"),
        FaultCode::Unsupported,
        &["no .onnx file", "optimum-cli"],
    );
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    refused(
        &request(dir.path(), "auto", "{}"),
        FaultCode::BadModel,
        &["config.json"],
    );
}

#[test]
fn a_quantised_graph_is_nobodys_by_accident() {
    let dir = INT8.dir();
    let onnx = dir.path().join("onnx");
    std::fs::rename(onnx.join("model_quantized.onnx"), onnx.join("model.onnx")).unwrap();
    for dtype in ["auto", "f32"] {
        refused(
            &request(dir.path(), dtype, "{}"),
            FaultCode::BadModel,
            &["onnx/model.onnx", "MatMulInteger", "int8", "options.file"],
        );
    }
    let dir = BERT.dir();
    let onnx = dir.path().join("onnx");
    copy(&onnx.join("model.onnx"), &onnx.join("model_quantized.onnx"));
    refused(
        &request(dir.path(), "int8", "{}"),
        FaultCode::BadModel,
        &["onnx/model_quantized.onnx", "not quantised"],
    );
}

#[test]
fn who_names_a_graph_gets_it() {
    if !has_runtime() {
        return;
    }
    let dir = INT8.dir();
    copy(
        &dir.path().join("onnx/model_quantized.onnx"),
        &dir.path().join("onnx/model.onnx"),
    );
    for file in ["model.onnx", "onnx/model_quantized.onnx"] {
        let options = json!({ "file": file }).to_string();
        let backend = open(&request(dir.path(), "auto", &options)).unwrap();
        assert_eq!(backend.description().dtype, "int8", "{file}");
        assert!(backend.description().numerics_id.contains(file), "{file}");
    }
    let options = json!({ "file": "model_O3.onnx" }).to_string();
    refused(
        &request(dir.path(), "auto", &options),
        FaultCode::BadRequest,
        &[
            "model_O3.onnx",
            "onnx/model.onnx, onnx/model_quantized.onnx",
        ],
    );
    // Not even one that is there.
    let elsewhere = BERT.dir();
    let path = elsewhere.path().join("onnx/model.onnx");
    let up = format!(
        "../{}/onnx/model.onnx",
        elsewhere.path().file_name().unwrap().display()
    );
    for file in [path.to_str().unwrap(), &up] {
        refused(
            &request(dir.path(), "auto", &json!({ "file": file }).to_string()),
            FaultCode::BadRequest,
            &["options.file", file, "not a file of the model's folder"],
        );
    }
    let half = HALF.dir();
    let options = json!({ "file": "onnx/model_fp16.onnx" }).to_string();
    let backend = open(&request(half.path(), "auto", &options)).unwrap();
    assert_eq!(backend.description().dtype, "f16");
}

#[test]
fn a_file_that_is_no_graph_is_named() {
    if !has_runtime() {
        return;
    }
    let dir = BERT.dir();
    let path = dir.path().join("onnx/model.onnx");
    let bytes = std::fs::read(&path).unwrap();
    // Cut in its weights, cut in its nodes, another file, an empty one.
    for broken in [
        &bytes[..bytes.len() - 5_000],
        &bytes[..500],
        b"no graph at all",
        b"",
    ] {
        std::fs::write(&path, broken).unwrap();
        refused(
            &request(dir.path(), "f32", "{}"),
            FaultCode::BadModel,
            &["onnx/model.onnx", "is no ONNX graph", "ONNX Runtime 1."],
        );
    }
}

#[test]
fn data_files_that_are_missing_or_short_are_named() {
    let dir = EXTERNAL.dir();
    let data = dir.path().join("onnx/model.onnx_data");
    let bytes = std::fs::read(&data).unwrap();
    std::fs::remove_file(&data).unwrap();
    refused(
        &request(dir.path(), "f32", "{}"),
        FaultCode::BadModel,
        &["onnx/model.onnx:", "onnx/model.onnx_data", "No such file"],
    );
    if !has_runtime() {
        return;
    }
    std::fs::write(&data, &bytes[..1_000]).unwrap();
    refused(
        &request(dir.path(), "f32", "{}"),
        FaultCode::BadModel,
        &["onnx/model.onnx", "model.onnx_data"],
    );
}

/// The hub's cache keeps files under their hashes and links to them from a model's folder.
#[cfg(unix)]
#[test]
fn links_into_a_cache_are_followed() {
    if !has_runtime() {
        return;
    }
    for model in [BERT, EXTERNAL] {
        let (cache, dir) = (tempfile::tempdir().unwrap(), model.dir());
        for (number, entry) in std::fs::read_dir(dir.path().join("onnx"))
            .unwrap()
            .enumerate()
        {
            let (path, blob) = (entry.unwrap().path(), cache.path().join(number.to_string()));
            std::fs::rename(&path, &blob).unwrap();
            std::os::unix::fs::symlink(&blob, &path).unwrap();
        }
        if let Err(fault) = open(&request(dir.path(), "f32", "{}")) {
            panic!("{}: {fault}", model.name);
        }
    }
}

#[test]
fn a_graph_that_is_no_classifier_says_what_it_is() {
    if !has_runtime() {
        return;
    }
    let dir = EMBEDDER.dir();
    refused(
        &request(dir.path(), "f32", "{}"),
        FaultCode::Unsupported,
        &[
            "no classifier",
            "4",
            "token_embeddings f32 [batch, sequence, 48]",
            "sentence_embedding f32 [batch, 48]",
        ],
    );
    // Without labels in the configuration a name is needed all the more.
    set_config(dir.path(), "id2label", Value::Null);
    refused(
        &request(dir.path(), "f32", "{}"),
        FaultCode::Unsupported,
        &["rows × labels"],
    );
}

#[test]
fn labels_must_be_the_configurations() {
    if !has_runtime() {
        return;
    }
    let dir = BERT.dir();
    set_config(dir.path(), "id2label", json!({"0": "a", "1": "b"}));
    refused(
        &request(dir.path(), "f32", "{}"),
        FaultCode::BadModel,
        &["1 logits a row", "2 labels"],
    );
    set_config(dir.path(), "id2label", Value::Null);
    assert_eq!(
        open(&request(dir.path(), "f32", "{}"))
            .unwrap()
            .description()
            .n_labels,
        1
    );
}

#[test]
fn wrong_options_are_named() {
    let dir = BERT.dir();
    let bad = FaultCode::BadRequest;
    let with = |options: &str| request(dir.path(), "f32", options);
    refused(
        &with(r#"{"colour":1}"#),
        bad,
        &["colour", "rectangle_tokens"],
    );
    refused(
        &with(r#"{"rectangle_tokens":0}"#),
        bad,
        &["rectangle_tokens = 0", "8388608"],
    );
    refused(
        &with(r#"{"optimization":"most"}"#),
        bad,
        &["most", "extended"],
    );
    refused(
        &with(r#"{"provider":"abacus"}"#),
        bad,
        &["abacus", "coreml"],
    );
    refused(
        &with(r#"{"provider":"cuda"}"#),
        bad,
        &["cuda", "device is \"cpu\""],
    );
    refused(&with("[1"), bad, &["options"]);
    let no_rows = OpenRequest {
        rows_max: 0,
        ..with("{}")
    };
    refused(&no_rows, bad, &["rows_max = 0"]);
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let dir = BERT.dir();
    let bad = FaultCode::BadRequest;
    let with = |options: &str| request(dir.path(), "f32", options);
    refused(
        &with(r#"{"shapes":[[0,8]]}"#),
        bad,
        &["options.shapes", "[0, 8]"],
    );
    refused(
        &with(r#"{"shapes":[[4096,4096]]}"#),
        bad,
        &["[4096, 4096]", "8388608"],
    );
    refused(
        &with(r#"{"shapes":[[4,8],[2,8]]}"#),
        bad,
        &["two of width 8"],
    );
    if !has_runtime() {
        return;
    }
    refused(
        &with(r#"{"shapes":[[1,41]]}"#),
        bad,
        &["width of 41", "40 tokens"],
    );
    let dir = FIXED.dir();
    let fixed = request(dir.path(), "f32", r#"{"shapes":[[4,8]]}"#);
    refused(
        &fixed,
        bad,
        &["options.shapes", "onnx/model.onnx", "no names"],
    );
}

#[test]
fn devices_that_are_not_there_are_named() {
    let dir = BERT.dir();
    let on = |device: &str| OpenRequest {
        device: device.to_owned(),
        ..request(dir.path(), "f32", "{}")
    };
    refused(&on("tpu"), FaultCode::Unsupported, &["tpu", "cuda:N"]);
    refused(
        &request(dir.path(), "q4_0", "{}"),
        FaultCode::Unsupported,
        &["q4_0", "f32, f16, int8"],
    );
    if !has_runtime() {
        return;
    }
    refused(
        &on("cuda:0"),
        FaultCode::Unsupported,
        &["cuda:0", "ONNX Runtime 1.", "has cpu"],
    );
    if cfg!(not(target_os = "macos")) {
        refused(
            &on("metal"),
            FaultCode::Unsupported,
            &["coreml on metal", "has cpu"],
        );
    }
}

/// The host keeps to the described limit, so a longer row never reaches the graph.
#[test]
fn the_longest_row_is_the_models_positions() {
    if !has_runtime() {
        return;
    }
    for (model, expected) in [
        (BERT, 40),
        (DISTILBERT, 40),
        (XLM_ROBERTA, 38),
        (MODERNBERT, 200),
        // The graph's, of the model's 40.
        (FIXED, 16),
    ] {
        let dir = model.dir();
        let backend = open(&request(dir.path(), model.dtype, "{}")).unwrap();
        assert_eq!(backend.limits().row_tokens_max, expected, "{}", model.name);
    }
    let dir = BERT.dir();
    let short = OpenRequest {
        row_tokens_max: 7,
        ..request(dir.path(), "f32", "{}")
    };
    assert_eq!(open(&short).unwrap().limits().row_tokens_max, 7);
}

/// Equal ids promise equal scores: whatever moves them is in there.
#[test]
fn numerics_ids_tell_what_was_opened() {
    if !has_runtime() {
        return;
    }
    let dir = BERT.dir();
    let id = |options: &str| {
        let backend = open(&request(dir.path(), "f32", options)).unwrap();
        backend.description().numerics_id.clone()
    };
    let first = id("{}");
    assert_eq!(first, id(r#"{"memory_arena":false}"#));
    assert_ne!(first, id(r#"{"optimization":"basic"}"#));
    for part in [
        "ort-coreml-",
        "/1.",
        "/cpu/",
        "/f32/",
        "/all/",
        "/onnx/model.onnx/",
    ] {
        assert!(first.contains(part), "{first} lacks {part}");
    }
    copy(
        &DISTILBERT.onnx_dir().join("model.onnx"),
        &dir.path().join("onnx/model.onnx"),
    );
    assert_ne!(first, id("{}"));
}
