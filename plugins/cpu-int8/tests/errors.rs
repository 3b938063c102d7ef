//! A folder that is not a model for this engine is refused with a text that names the file, key or
//! tensor.

mod common;

use backend_api::{FaultCode, OpenRequest};
use common::edit::{copy, edit_tensors, set_config};
use common::{golden_dir, open, request};
use cpu_int8::kernel::Dtype;
use serde_json::{Value, json};
use std::path::Path;

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

/// Another plugin computes it, so it is not called broken.
#[test]
fn a_checkpoint_of_another_implementation_is_left_to_others() {
    let dir = copy("xlm-roberta-flash");
    refused(dir.path(), FaultCode::Unsupported, &["mixer.Wqkv"]);
    // Families that write keys of ModernBERT's in forms of their own.
    for name in ["gte", "qwen2", "qwen3-3-labels", "jina-embeddings-v3", "t5"] {
        let dir = copy(name);
        refused(dir.path(), FaultCode::Unsupported, &["architectures"]);
    }
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
    let dir = copy("bert");
    edit_tensors(dir.path(), |header, _| {
        drop(header.remove("classifier.weight"))
    });
    let words = [
        "classifier.weight",
        "no head that scores",
        "name a reranker",
    ];
    refused(dir.path(), FaultCode::BadModel, &words);
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
fn a_debertas_distances_fit_its_size() {
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
