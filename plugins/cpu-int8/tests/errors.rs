//! A folder that is not a model for this engine is refused with a text that names the file, key or
//! tensor; a row that cannot be scored fails alone.

mod common;

use backend_api::{FaultCode, OpenRequest, RowStatus};
use common::{GoldenRow, golden_dir, golden_rows, open, request, score};
use cpu_int8::kernel::Dtype;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;

/// A copy of a golden folder.
fn copy(name: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden_dir(name)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

/// Opening the folder fails with this code and a text that has all of these words.
#[track_caller]
fn refused(dir: &Path, code: FaultCode, words: &[&str]) {
    refused_request(&request(dir, "int8", "{}"), code, words);
}

#[track_caller]
fn refused_request(request: &OpenRequest, code: FaultCode, words: &[&str]) {
    let Err(fault) = open(request) else {
        panic!("accepted")
    };
    assert_eq!(fault.code, code, "{fault}");
    for word in words {
        assert!(
            fault.text.contains(word),
            "{:?} does not name {word:?}",
            fault.text
        );
    }
}

/// Rewrites `config.json` with one key set.
fn set_config(dir: &Path, key: &str, value: Value) {
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config[key] = value;
    std::fs::write(path, config.to_string()).unwrap();
}

type Header = BTreeMap<String, Value>;

/// Rewrites `model.safetensors` through `edit`, which gets its header and its data.
fn edit_tensors(dir: &Path, edit: impl FnOnce(&mut Header, &mut Vec<u8>)) {
    let path = dir.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let (len, rest) = bytes.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*len) as usize);
    let (mut header, mut data) = (serde_json::from_slice(header).unwrap(), data.to_vec());
    edit(&mut header, &mut data);
    let header = serde_json::to_vec(&header).unwrap();
    let file = [
        (header.len() as u64).to_le_bytes().as_slice(),
        &header,
        &data,
    ]
    .concat();
    std::fs::write(path, file).unwrap();
}

const QUERY: &str = "bert.encoder.layer.1.attention.self.query.weight";

#[test]
fn an_untouched_copy_opens() {
    open(&request(copy("bert").path(), "int8", "{}")).unwrap();
}

#[test]
fn files_that_are_missing_are_named() {
    let dir = copy("bert");
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    refused(dir.path(), FaultCode::BadModel, &["model.safetensors"]);
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    refused(dir.path(), FaultCode::BadModel, &["config.json"]);
    refused(
        Path::new("/nonexistent"),
        FaultCode::BadModel,
        &["/nonexistent/config.json"],
    );
}

#[test]
fn tensors_that_are_missing_are_named() {
    for tensor in [
        QUERY,
        "bert.embeddings.word_embeddings.weight",
        "bert.embeddings.LayerNorm.bias",
        "bert.encoder.layer.0.output.dense.bias",
        "bert.pooler.dense.weight",
        "classifier.weight",
    ] {
        let dir = copy("bert");
        edit_tensors(dir.path(), |header, _| drop(header.remove(tensor).unwrap()));
        refused(dir.path(), FaultCode::BadModel, &[tensor, "no such tensor"]);
    }
}

#[test]
fn a_modernberts_tensors_are_named() {
    for (model, tensor) in [
        ("modernbert", "model.embeddings.tok_embeddings.weight"),
        ("modernbert", "model.layers.1.attn_norm.weight"),
        ("modernbert", "model.layers.2.attn.Wqkv.weight"),
        ("modernbert", "model.layers.0.mlp.Wi.weight"),
        ("modernbert", "model.final_norm.weight"),
        ("modernbert", "head.norm.weight"),
        ("modernbert-mean-older-keys", "model.layers.0.mlp.Wo.bias"),
        ("modernbert-mean-older-keys", "head.dense.bias"),
    ] {
        let dir = copy(model);
        edit_tensors(dir.path(), |header, _| drop(header.remove(tensor).unwrap()));
        refused(dir.path(), FaultCode::BadModel, &[tensor, "no such tensor"]);
    }
    let dir = copy("modernbert");
    set_config(dir.path(), "intermediate_size", json!(50));
    refused(
        dir.path(),
        FaultCode::BadModel,
        &["mlp.Wi", "[104, 64]", "[100, 64]"],
    );
    set_config(dir.path(), "classifier_pooling", json!("max"));
    refused(
        dir.path(),
        FaultCode::Unsupported,
        &["classifier_pooling", "max"],
    );
}

#[test]
fn a_debertas_tensors_are_named() {
    for (model, tensor) in [
        ("deberta-v3", "deberta.encoder.rel_embeddings.weight"),
        ("deberta-v3", "deberta.encoder.LayerNorm.bias"),
        (
            "deberta-v3",
            "deberta.encoder.layer.1.attention.self.value_proj.weight",
        ),
        ("deberta-v3", "pooler.dense.bias"),
        (
            "deberta-v2-projected",
            "deberta.embeddings.embed_proj.weight",
        ),
        (
            "deberta-v2-projected",
            "deberta.embeddings.position_embeddings.weight",
        ),
        (
            "deberta-v2-projected",
            "deberta.encoder.layer.0.attention.self.pos_key_proj.bias",
        ),
        (
            "deberta-v2-projected",
            "deberta.encoder.layer.1.attention.self.pos_query_proj.weight",
        ),
    ] {
        let dir = copy(model);
        edit_tensors(dir.path(), |header, _| drop(header.remove(tensor).unwrap()));
        refused(dir.path(), FaultCode::BadModel, &[tensor, "no such tensor"]);
    }
    let dir = copy("deberta-v3");
    set_config(dir.path(), "position_buckets", json!(20));
    refused(
        dir.path(),
        FaultCode::BadModel,
        &["rel_embeddings", "[32, 64]", "[40, 64]"],
    );
    // Keys whose text or number says what is not computed, or cannot be.
    for (key, value, code) in [
        ("conv_kernel_size", json!(3), FaultCode::Unsupported),
        ("pos_att_type", json!("c2p|p2p"), FaultCode::Unsupported),
        ("pooler_hidden_act", json!("mish"), FaultCode::Unsupported),
        ("pooler_hidden_size", json!(128), FaultCode::BadModel),
        ("position_buckets", json!(1), FaultCode::BadModel),
        ("max_relative_positions", json!(9), FaultCode::BadModel),
    ] {
        let dir = copy("deberta-v3");
        set_config(dir.path(), key, value);
        refused(dir.path(), code, &["config.json", key]);
    }
    // Tables of relative positions that are many times the file.
    let many = copy("deberta-v3");
    for (key, value) in [
        ("position_buckets", json!(0)),
        ("max_relative_positions", json!(2_048)),
        ("max_position_embeddings", json!(8_192)),
        ("num_hidden_layers", json!(256)),
    ] {
        set_config(many.path(), key, value);
    }
    refused(
        many.path(),
        FaultCode::BadModel,
        &["values of relative positions", "4096 distances"],
    );
    // Rows too short for a distance that needs the logarithm.
    let short = copy("deberta-v3");
    set_config(short.path(), "max_relative_positions", json!(-1));
    set_config(short.path(), "max_position_embeddings", json!(9));
    open(&request(short.path(), "int8", "{}")).unwrap();
    let first = copy("deberta-v3");
    let names = json!(["DebertaForSequenceClassification"]);
    set_config(first.path(), "architectures", names);
    refused(
        first.path(),
        FaultCode::Unsupported,
        &["DebertaForSequenceClassification"],
    );
}

#[test]
fn misshapen_tensors_are_named() {
    let dir = copy("bert");
    edit_tensors(dir.path(), |header, _| {
        header.get_mut(QUERY).unwrap()["shape"] = json!([24, 96])
    });
    refused(
        dir.path(),
        FaultCode::BadModel,
        &[QUERY, "[24, 96]", "[48, 48]"],
    );
    edit_tensors(dir.path(), |header, _| {
        header.get_mut(QUERY).unwrap()["shape"] = json!([48, 47])
    });
    refused(
        dir.path(),
        FaultCode::BadModel,
        &[QUERY, "[48, 47]", "9216 bytes"],
    );
    edit_tensors(dir.path(), |header, _| {
        header.get_mut(QUERY).unwrap()["shape"] = json!([u64::MAX, 48])
    });
    refused(dir.path(), FaultCode::BadModel, &[QUERY]);
}

#[test]
fn values_that_are_not_finite_are_named() {
    for bad in [f32::NAN, f32::INFINITY] {
        let dir = copy("bert");
        edit_tensors(dir.path(), |header, data| {
            let start = header[QUERY]["data_offsets"][0].as_u64().unwrap() as usize + 4 * 7;
            data[start..start + 4].copy_from_slice(&bad.to_le_bytes());
        });
        refused(
            dir.path(),
            FaultCode::BadModel,
            &[QUERY, "value 7", "not a finite number"],
        );
    }
}

#[test]
fn types_that_are_not_floats_are_named() {
    let dir = copy("bert");
    edit_tensors(dir.path(), |header, _| {
        header.get_mut(QUERY).unwrap()["dtype"] = json!("I32")
    });
    refused(dir.path(), FaultCode::Unsupported, &[QUERY, "I32", "BF16"]);
}

#[test]
fn truncated_files_are_named() {
    let dir = copy("bert");
    let path = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    // Inside the data, inside the header, inside the header's length, and nothing at all.
    for len in [bytes.len() - 100, 500, 5, 0] {
        std::fs::write(&path, &bytes[..len]).unwrap();
        refused(dir.path(), FaultCode::BadModel, &["model.safetensors"]);
    }
    let huge = [u64::MAX.to_le_bytes().as_slice(), &bytes[8..]].concat();
    std::fs::write(&path, huge).unwrap();
    refused(
        dir.path(),
        FaultCode::BadModel,
        &["model.safetensors", "18446744073709551615"],
    );
    let not_json = [100_u64.to_le_bytes().as_slice(), &[b'x'; 200]].concat();
    std::fs::write(&path, not_json).unwrap();
    refused(
        dir.path(),
        FaultCode::BadModel,
        &["model.safetensors", "header"],
    );
}

#[test]
fn offsets_outside_the_file_are_named() {
    for offsets in [
        json!([0, 1_u64 << 60]),
        json!([9_216, 0]),
        json!([u64::MAX, u64::MAX]),
    ] {
        let dir = copy("bert");
        edit_tensors(dir.path(), |header, _| {
            header.get_mut(QUERY).unwrap()["data_offsets"] = offsets
        });
        refused(dir.path(), FaultCode::BadModel, &[QUERY, "not within"]);
    }
}

/// Names for the same bytes would make a large model of a small file.
#[test]
fn tensors_that_share_bytes_are_refused() {
    let dir = copy("bert");
    edit_tensors(dir.path(), |header, _| {
        header.insert("alias".to_owned(), header[QUERY].clone());
    });
    refused(
        dir.path(),
        FaultCode::BadModel,
        &["model.safetensors", "share bytes"],
    );
}

#[test]
fn shards_are_named() {
    let dir = copy("bert-sharded-3-labels");
    let shard = "model-00002-of-00002.safetensors";
    let index_path = dir.path().join("model.safetensors.index.json");
    let index = std::fs::read_to_string(&index_path).unwrap();
    std::fs::write(&index_path, index.replace(shard, "../model.safetensors")).unwrap();
    refused(
        dir.path(),
        FaultCode::BadModel,
        &["../model.safetensors", "index.json"],
    );
    let mut misplaced: Value = serde_json::from_str(&index).unwrap();
    let tensor = "bert.embeddings.word_embeddings.weight";
    let placed = misplaced["weight_map"][tensor].as_str().unwrap().to_owned();
    let other = if placed == shard {
        "model-00001-of-00002.safetensors"
    } else {
        shard
    };
    misplaced["weight_map"][tensor] = json!(other);
    std::fs::write(&index_path, misplaced.to_string()).unwrap();
    refused(dir.path(), FaultCode::BadModel, &[tensor, other]);
    std::fs::write(&index_path, &index).unwrap();
    std::fs::remove_file(dir.path().join(shard)).unwrap();
    refused(dir.path(), FaultCode::BadModel, &[shard]);
    std::fs::write(&index_path, "{").unwrap();
    refused(dir.path(), FaultCode::BadModel, &["index.json"]);
}

#[test]
fn configurations_that_do_not_fit_the_weights_name_the_tensor() {
    let dir = copy("bert");
    set_config(dir.path(), "vocab_size", json!(121));
    refused(
        dir.path(),
        FaultCode::BadModel,
        &["word_embeddings", "[121, 48]"],
    );
    let dir = copy("bert");
    set_config(dir.path(), "num_hidden_layers", json!(3));
    refused(
        dir.path(),
        FaultCode::BadModel,
        &["bert.encoder.layer.2.", "no such tensor"],
    );
    let dir = copy("bert");
    set_config(dir.path(), "id2label", json!({"0": "a", "1": "b"}));
    refused(
        dir.path(),
        FaultCode::BadModel,
        &["classifier.weight", "[2, 48]"],
    );
    let dir = copy("bert");
    set_config(dir.path(), "num_attention_heads", json!(5));
    refused(
        dir.path(),
        FaultCode::BadModel,
        &["hidden_size = 48", "num_attention_heads = 5"],
    );
}

#[test]
fn what_this_engine_does_not_compute_is_unsupported() {
    for (key, value) in [
        ("architectures", json!(["GPT2ForSequenceClassification"])),
        ("hidden_act", json!("mish")),
        ("position_embedding_type", json!("relative_key_query")),
        ("is_decoder", json!(true)),
    ] {
        let dir = copy("bert");
        set_config(dir.path(), key, value);
        refused(dir.path(), FaultCode::Unsupported, &[key]);
    }
    let dir = golden_dir("bert");
    let gpu = OpenRequest {
        device: "cuda:0".to_owned(),
        ..request(&dir, "int8", "{}")
    };
    refused_request(&gpu, FaultCode::Unsupported, &["cuda:0"]);
    refused_request(
        &request(&dir, "q4_0", "{}"),
        FaultCode::Unsupported,
        &["q4_0", "int8"],
    );
}

#[test]
fn wrong_options_are_named() {
    let dir = golden_dir("bert");
    let bad = FaultCode::BadRequest;
    refused_request(
        &request(&dir, "int8", r#"{"kernel":"abacus"}"#),
        bad,
        &["abacus", "scalar-i8"],
    );
    refused_request(
        &request(&dir, "f32", r#"{"kernel":"scalar-i8"}"#),
        bad,
        &["scalar-i8", "portable-f32"],
    );
    refused_request(&request(&dir, "int8", r#"{"colour":1}"#), bad, &["colour"]);
    refused_request(&request(&dir, "int8", "[1"), bad, &["options"]);
    let no_rows = OpenRequest {
        rows_max: 0,
        ..request(&dir, "int8", "{}")
    };
    refused_request(&no_rows, bad, &["rows_max = 0"]);
}

/// The host keeps to the described limit, so a longer row never reaches the engine.
#[test]
fn the_longest_row_is_the_models_positions() {
    for (name, expected) in [
        ("bert", 40),
        ("roberta", 38),
        ("roberta-pad-3-legacy-names", 36),
        ("distilbert", 40),
        ("modernbert", 200),
        ("deberta-v3", 240),
    ] {
        let backend = open(&request(&golden_dir(name), "int8", "{}")).unwrap();
        assert_eq!(backend.limits().row_tokens_max, expected, "{name}");
    }
    let short = OpenRequest {
        row_tokens_max: 7,
        ..request(&golden_dir("bert"), "int8", "{}")
    };
    assert_eq!(open(&short).unwrap().limits().row_tokens_max, 7);
}

#[test]
fn a_row_with_unknown_ids_fails_alone() {
    let backend = open(&request(&golden_dir("bert"), "int8", "{}")).unwrap();
    let mut worker = backend.worker().unwrap();
    let good = golden_rows("bert");
    let alone = score(&mut worker, &[&good[3]]);
    let with = |ids: &[u32], types: &[u32]| GoldenRow {
        input_ids: ids.into(),
        type_ids: types.into(),
        logits: vec![],
    };
    for poison in [
        with(&[1, 120, 2], &[0, 0, 0]),
        with(&[u32::MAX], &[0]),
        with(&[1, 2], &[0, 2]),
    ] {
        let found = score(&mut worker, &[&poison, &good[3], &poison]);
        assert_eq!(
            found,
            [
                Err(RowStatus::Failed),
                alone[0].clone(),
                Err(RowStatus::Failed)
            ]
        );
    }
}

/// The table of words of the golden "bert".
const WORDS: &str = "bert.embeddings.word_embeddings.weight";

#[test]
fn a_row_that_overflows_spoils_no_later_one() {
    let dir = copy("bert");
    edit_tensors(dir.path(), |header, data| {
        // The first word's 48 values: their sum is infinite.
        let start = header[WORDS]["data_offsets"][0].as_u64().unwrap() as usize;
        for value in data[start..][..48 * 4].as_chunks_mut::<4>().0 {
            *value = 3e38_f32.to_le_bytes();
        }
    });
    let overflows = GoldenRow {
        input_ids: vec![0; 30],
        type_ids: vec![0; 30],
        logits: vec![],
    };
    let good = &golden_rows("bert")[4];
    assert!(good.input_ids.len() < 16 && !good.input_ids.contains(&0));
    for dtype in Dtype::ALL {
        let backend = open(&request(dir.path(), dtype.name(), "{}")).unwrap();
        let mut worker = backend.worker().unwrap();
        let before = score(&mut worker, &[good]);
        assert!(before[0].is_ok(), "{before:?}");
        let found = score(&mut worker, &[&overflows, good]);
        assert_ne!(found[0], before[0]);
        assert_eq!(found[1], before[0], "{}", dtype.name());
        assert_eq!(score(&mut worker, &[good]), before, "{}", dtype.name());
    }
}

/// A model with one token type does not look at them: tokenizers of RoBERTa's relatives number the
/// second text 1.
#[test]
fn a_model_without_token_types_ignores_them() {
    for name in ["roberta", "distilbert", "deberta-v3"] {
        let backend = open(&request(&golden_dir(name), "int8", "{}")).unwrap();
        let mut worker = backend.worker().unwrap();
        let row = golden_rows(name).pop().unwrap();
        let typed = GoldenRow {
            type_ids: vec![1; row.input_ids.len()],
            ..row.clone()
        };
        assert_eq!(
            score(&mut worker, &[&row]),
            score(&mut worker, &[&typed]),
            "{name}"
        );
    }
}

/// Equal models have equal ids; another weight, kernel or configuration makes another.
#[test]
fn numerics_ids_tell_models_and_kernels_apart() {
    let id = |request: &OpenRequest| open(request).unwrap().description().numerics_id.clone();
    let dir = copy("bert");
    let of = |dtype: &str, options: &str| id(&request(dir.path(), dtype, options));
    let first = of("int8", "{}");
    assert_eq!(first, id(&request(&golden_dir("bert"), "int8", "{}")));
    // Kernels are shared: by int8 and int4, by f32 and f16.
    let ids = Dtype::ALL.map(|dtype| of(dtype.name(), "{}"));
    for (at, id) in ids.iter().enumerate() {
        assert!(!ids[..at].contains(id), "{id}");
    }
    assert_ne!(
        of("int8", r#"{"kernel":"scalar-i8"}"#),
        of("int8", r#"{"kernel":"emulated-u8i8-dpbusd"}"#)
    );
    edit_tensors(dir.path(), |header, data| {
        let start = header[QUERY]["data_offsets"][0].as_u64().unwrap() as usize;
        data[start] ^= 1;
    });
    assert_ne!(first, of("int8", "{}"));
}
