//! A folder or a request that is not for this plugin is refused with a text that names the file, key, tensor
//! or option, and what would do.

mod common;

use backend_api::{FaultCode, OpenRequest};
use common::edit::{copy, edit_tensors, set_config};
use common::{golden, golden_dir, golden_request, open, request, score, try_score, with_option};
use serde_json::{Value, json};
use std::path::Path;

/// Opening the folder fails with this code and a text that has all of these words.
#[track_caller]
fn refused(dir: &Path, code: FaultCode, words: &[&str]) {
    refused_request(&request(dir, "f32", "{}"), code, words);
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
fn files_that_are_missing_are_named() {
    let dir = copy("bert");
    open(&request(dir.path(), "f32", "{}")).unwrap();
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    refused(
        dir.path(),
        FaultCode::BadModel,
        &["model.safetensors", "index.json"],
    );
    // Pickles run code when they are read.
    std::fs::write(dir.path().join("pytorch_model.bin"), b"").unwrap();
    refused(
        dir.path(),
        FaultCode::BadModel,
        &["pytorch_model.bin", "safetensors"],
    );
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    refused(dir.path(), FaultCode::BadModel, &["config.json"]);
}

/// One tensor of each kind, of each family.
#[test]
fn tensors_that_are_missing_are_named() {
    for (model, tensor) in [
        ("bert", QUERY),
        ("bert", "bert.embeddings.LayerNorm.bias"),
        ("bert", "bert.pooler.dense.weight"),
        ("bert", "classifier.weight"),
        (
            "roberta-pad-3-legacy-names",
            "roberta.encoder.layer.0.output.LayerNorm.beta",
        ),
        (
            "xlm-roberta-flash",
            "roberta.encoder.layers.1.mixer.Wqkv.bias",
        ),
        ("jina-bert", "bert.encoder.layer.0.mlp.gated_layers.weight"),
        ("gte", "gte.encoder.layer.1.mlp_ln.weight"),
        ("modernbert", "model.layers.1.attn_norm.weight"),
        ("modernbert", "head.norm.weight"),
        ("deberta-v3", "deberta.encoder.rel_embeddings.weight"),
        (
            "deberta-v2-projected",
            "deberta.encoder.layer.0.attention.self.pos_key_proj.bias",
        ),
        ("qwen2", "score.weight"),
        ("qwen2", "model.layers.0.self_attn.k_proj.bias"),
        ("qwen3-yes-no", "model.layers.1.self_attn.q_norm.weight"),
        ("qwen2-yes-no", "lm_head.weight"),
        (
            "t5",
            "transformer.decoder.block.1.layer.1.EncDecAttention.v.weight",
        ),
        (
            "t5",
            "transformer.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        ),
        ("t5", "classification_head.out_proj.weight"),
        (
            "umt5",
            "transformer.encoder.block.1.layer.1.DenseReluDense.wi_1.weight",
        ),
    ] {
        let dir = copy(model);
        edit_tensors(dir.path(), |header, _| drop(header.remove(tensor).unwrap()));
        let request = OpenRequest {
            model_dir: dir.path().to_owned(),
            ..golden_request(model, "f32")
        };
        refused_request(&request, FaultCode::BadModel, &[tensor, "no such tensor"]);
    }
}

#[test]
fn tensors_that_are_wrong_are_named() {
    let with_query = |key: &str, value: Value| {
        let dir = copy("bert");
        edit_tensors(dir.path(), |header, _| {
            header.get_mut(QUERY).unwrap()[key] = value
        });
        dir
    };
    let bad = FaultCode::BadModel;
    refused(
        with_query("shape", json!([24, 96])).path(),
        bad,
        &[QUERY, "[24, 96]", "[48, 48]"],
    );
    refused(
        with_query("shape", json!([48, 47])).path(),
        bad,
        &[QUERY, "[48, 47]", "9216 bytes"],
    );
    refused(
        with_query("shape", json!([u64::MAX, 48])).path(),
        bad,
        &[QUERY],
    );
    let integers = with_query("dtype", json!("I32"));
    refused(
        integers.path(),
        FaultCode::Unsupported,
        &[QUERY, "I32", "BF16"],
    );
    for offsets in [
        json!([0, 1_u64 << 60]),
        json!([9_216, 0]),
        json!([u64::MAX, u64::MAX]),
    ] {
        refused(
            with_query("data_offsets", offsets).path(),
            bad,
            &[QUERY, "cut off"],
        );
    }
    let dir = copy("bert");
    edit_tensors(dir.path(), |header, _| {
        header.insert("alias".to_owned(), header[QUERY].clone());
    });
    refused(dir.path(), bad, &["model.safetensors", "share bytes"]);
    for number in [f32::NAN, f32::INFINITY] {
        let dir = copy("bert");
        edit_tensors(dir.path(), |header, data| {
            let start = header[QUERY]["data_offsets"][0].as_u64().unwrap() as usize + 4 * 7;
            data[start..start + 4].copy_from_slice(&number.to_le_bytes());
        });
        refused(dir.path(), bad, &[QUERY, "value 7"]);
    }
}

#[test]
fn broken_files_are_named() {
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
fn shards_are_named() {
    let dir = copy("bert-sharded-3-labels");
    let shard = "model-00002-of-00002.safetensors";
    let index_path = dir.path().join("model.safetensors.index.json");
    let index = std::fs::read_to_string(&index_path).unwrap();
    let bad = FaultCode::BadModel;
    std::fs::write(&index_path, index.replace(shard, "../model.safetensors")).unwrap();
    refused(dir.path(), bad, &["../model.safetensors", "index.json"]);
    std::fs::write(
        &index_path,
        index.replace("bert.pooler.dense.bias", "bert.other"),
    )
    .unwrap();
    refused(dir.path(), bad, &["bert.other"]);
    std::fs::write(&index_path, "{").unwrap();
    refused(dir.path(), bad, &["index.json"]);
    std::fs::write(&index_path, &index).unwrap();
    std::fs::remove_file(dir.path().join(shard)).unwrap();
    refused(dir.path(), bad, &[shard]);
}

/// A model, a key of its configuration, a value, and whether that cannot be or is only not computed here.
const WRONG_VALUES: &str = r#"
bert architectures ["GPT2ForSequenceClassification"] unsupported
bert architectures "Bert" bad
bert hidden_size 50 bad
bert hidden_size "many" bad
bert hidden_size -1 bad
bert num_attention_heads 0 bad
bert num_hidden_layers 1000000 bad
bert hidden_act "mish" unsupported
bert layer_norm_eps -1.0 bad
bert position_embedding_type "relative_key" unsupported
bert is_decoder true unsupported
bert id2label {} bad
bert quantization_config {"bits":4} unsupported
roberta pad_token_id 39 bad
jina-bert feed_forward_type "original" unsupported
jina-bert position_embedding_type "absolute" unsupported
gte rope_scaling {"type":"ntk"} unsupported
modernbert classifier_pooling "max" unsupported
modernbert layer_types ["full_attention"] bad
modernbert-mean-older-keys local_rope_theta "x" bad
deberta-v3 conv_kernel_size 3 unsupported
deberta-v3 pos_att_type ["p2p"] unsupported
deberta-v3 norm_rel_ebd "batch_norm" unsupported
deberta-v3 max_relative_positions 9 bad
deberta-v3 pooler_hidden_size 128 bad
qwen3-3-labels head_dim 15 bad
qwen3-3-labels num_key_value_heads 3 bad
qwen3-3-labels rope_scaling {"rope_type":"yarn"} unsupported
t5 feed_forward_proj "gated-mish" unsupported
t5 relative_attention_num_buckets 2 bad
t5 decoder_start_token_id 120 bad
"#;

/// The text of a refusal has the key, and the value if that is a text or a number.
#[test]
fn configurations_name_key_and_value() {
    for line in WRONG_VALUES.trim().lines() {
        let parts: Vec<&str> = line.split(' ').collect();
        let [model, key, value, kind] = parts[..] else {
            panic!("{line}")
        };
        let code = match kind {
            "bad" => FaultCode::BadModel,
            _ => FaultCode::Unsupported,
        };
        let dir = copy(model);
        let value: Value = serde_json::from_str(value).unwrap();
        let text = match &value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => String::new(),
        };
        set_config(dir.path(), key, value);
        refused(dir.path(), code, &[key, &text]);
    }
}

#[test]
fn an_unknown_architecture_is_told_what_there_is() {
    let dir = copy("bert");
    set_config(
        dir.path(),
        "architectures",
        json!(["GPT2ForSequenceClassification"]),
    );
    let known = ["BertFor", "ModernBertFor", "Qwen3ForCausalLM", "T5For"];
    refused(dir.path(), FaultCode::Unsupported, &known);
    set_config(dir.path(), "architectures", json!(null));
    open(&request(dir.path(), "f32", "{}")).unwrap();
    set_config(dir.path(), "model_type", json!("gpt2"));
    refused(dir.path(), FaultCode::Unsupported, &["gpt2", "BertFor"]);
}

#[test]
fn a_model_that_generates_needs_a_token_to_answer_by() {
    let dir = golden_dir("qwen3-yes-no");
    refused(
        &dir,
        FaultCode::BadModel,
        &["no head", "yes_token", "classifier_from_token"],
    );
    let asked = |options: &str| request(&dir, "f32", options);
    let bad = FaultCode::BadRequest;
    refused_request(&asked(r#"{"no_token":9}"#), bad, &["yes_token", "missing"]);
    open(&asked(r#"{"yes_token":9}"#)).unwrap();
    // The host may have read them in the model's files, which are to blame then.
    for (no_token, words) in [(120, ["120", "vocabulary"]), (9, ["both", "token 9"])] {
        let named = OpenRequest {
            yes_token: Some(9),
            no_token: Some(no_token),
            ..asked("{}")
        };
        refused_request(&named, FaultCode::BadModel, &words);
        refused_request(&named, FaultCode::BadModel, &["its files"]);
    }
    refused_request(
        &asked(r#"{"yes_token":9,"no_token":120}"#),
        bad,
        &["120", "vocabulary"],
    );
    refused_request(&asked(r#"{"yes_token":9,"no_token":9}"#), bad, &["both"]);
    let texts = asked(r#"{"yes_token":"yes","no_token":"no"}"#);
    refused_request(&texts, FaultCode::BadModel, &["tokenizer.json"]);
    let known = golden_request("qwen2-yes-no", "f32");
    open(&known).unwrap();
    let unknown = with_option(known, "yes_token", json!("maybe"));
    refused_request(&unknown, FaultCode::BadModel, &["maybe", "tokenizer.json"]);
}

/// T5's head reads the last </s>: a tokenizer that adds none makes rows that nobody can score.
#[test]
fn rows_without_the_token_that_is_read_are_told_so() {
    let mut worker = open(&golden_request("t5", "f32"))
        .unwrap()
        .worker()
        .unwrap();
    let rows = golden("t5").rows;
    let whole = rows.iter().find(|row| 3 < row.input_ids.len()).unwrap();
    let mut cut = whole.clone();
    cut.input_ids.retain(|&id| id != 1);
    cut.type_ids.truncate(cut.input_ids.len());
    let fault = try_score(&mut worker, &[&cut, &cut]).unwrap_err();
    assert_eq!(fault.code, FaultCode::BadModel, "{fault}");
    for word in ["eos_token_id", "token 1", "tokenizer.json"] {
        assert!(fault.text.contains(word), "{fault} does not say {word}");
    }
    // Beside others it fails alone.
    let scored = score(&mut worker, &[&cut, whole]);
    assert!(scored[0].is_err() && scored[1].is_ok(), "{scored:?}");
}

/// The configuration's own tokens do as well as options, and say the same.
#[test]
fn tokens_may_stand_in_the_configuration() {
    let dir = copy("qwen2-yes-no");
    set_config(dir.path(), "classifier_from_token", json!(["0", "1"]));
    let named = open(&request(dir.path(), "f32", "{}")).unwrap();
    let asked = open(&golden_request("qwen2-yes-no", "f32")).unwrap();
    let rows = golden("qwen2-yes-no").rows;
    let rows: Vec<_> = rows.iter().collect();
    let score = |backend: &backend_api::OpenBackend| {
        common::score_all(&mut backend.worker().unwrap(), &rows)
    };
    assert_eq!(score(&named), score(&asked));
    set_config(dir.path(), "classifier_from_token", json!(["0"]));
    refused(
        dir.path(),
        FaultCode::BadModel,
        &["classifier_from_token", "two"],
    );
}

#[test]
fn requests_name_the_option() {
    let asked = |dtype, options: &str| request(&golden_dir("bert"), dtype, options);
    refused_request(&asked("f8", "{}"), FaultCode::Unsupported, &["f8", "int4"]);
    refused_request(&asked("f32", "{"), FaultCode::BadRequest, &["options"]);
    let graphs = asked("f32", r#"{"graphs": true}"#);
    refused_request(&graphs, FaultCode::BadRequest, &["graphs", "CUDA", "cpu"]);
    refused_request(
        &asked("f32", r#"{"kernels":1}"#),
        FaultCode::BadRequest,
        &["kernels"],
    );
    let gpu = OpenRequest {
        device: "cuda:0".to_owned(),
        ..asked("f32", "{}")
    };
    refused_request(&gpu, FaultCode::Unsupported, &["cuda:0", "cpu"]);
    let none = OpenRequest {
        rows_max: 0,
        ..asked("f32", "{}")
    };
    refused_request(&none, FaultCode::BadRequest, &["rows_max"]);
}

/// A table of words in f16 holds no more than f16 does.
#[test]
fn words_beyond_f16_are_named() {
    let dir = copy("bert");
    let words = "bert.embeddings.word_embeddings.weight";
    edit_tensors(dir.path(), |header, data| {
        let start = header[words]["data_offsets"][0].as_u64().unwrap() as usize;
        data[start..start + 4].copy_from_slice(&1e6_f32.to_le_bytes());
    });
    refused_request(
        &request(dir.path(), "int8", "{}"),
        FaultCode::Unsupported,
        &[words, "bf16"],
    );
    open(&request(dir.path(), "bf16", "{}")).unwrap();
}
