//! GGUF files: the scores of the models that they were made of, in the blocks that they store.

mod common;

use backend_api::{FaultCode, OpenRequest};
use candle_core::quantized::GgmlDType;
use common::gguf::{self, KINDS, golden_as, save, tensors, where_it_fits, wide, with_config_of};
use common::{
    GoldenRow, farthest, golden, golden_dir, golden_names, golden_request, open, request,
    score_all, with_option,
};
use serde_json::json;
use std::path::Path;

/// As in tests/golden.rs.
const F32_TOLERANCE: f32 = 1e-4;
const F16_TOLERANCE: f32 = 3e-3;
const BF16_TOLERANCE: f32 = 0.03;
/// Heads and tables of words in 8 bits, too: 0.11.
const Q8_0_TOLERANCE: f32 = 0.2;

/// The logits of a golden model's rows by a request, and the dtype that serves.
fn logits(request: &OpenRequest, name: &str) -> (Vec<Vec<f32>>, String) {
    let backend = open(request).unwrap_or_else(|fault| panic!("{name}: {fault}"));
    let rows = golden(name).rows;
    let rows: Vec<&GoldenRow> = rows.iter().collect();
    let found = score_all(&mut backend.worker().unwrap(), &rows);
    (found, backend.description().dtype.clone())
}

/// How far a golden model's logits by this request are from those of transformers.
fn off(request: &OpenRequest, name: &str) -> f32 {
    let golden = golden(name);
    let (found, _) = logits(request, name);
    farthest(golden.rows.iter().map(|row| &row.logits), &found)
}

fn in_dir(dir: &Path, request: OpenRequest) -> OpenRequest {
    OpenRequest {
        model_dir: dir.to_owned(),
        ..request
    }
}

/// Every family, under transformers' names: the same values are the same scores, bit for bit; halves and, where
/// layers are wide enough, bytes are as near as they are from safetensors.
#[test]
fn every_golden_model_scores_from_gguf() {
    for name in golden_names() {
        let dir = golden_as(&name, GgmlDType::F32);
        let asked = in_dir(dir.path(), golden_request(&name, "auto"));
        let (found, dtype) = logits(&asked, &name);
        let (expected, _) = logits(&golden_request(&name, "f32"), &name);
        assert_eq!((found, dtype.as_str()), (expected, "f32"), "{name}");
        for (kind, tolerance) in [
            (GgmlDType::F16, F16_TOLERANCE),
            (GgmlDType::Q8_0, Q8_0_TOLERANCE),
        ] {
            let dir = golden_as(&name, kind);
            let asked = in_dir(dir.path(), golden_request(&name, "auto"));
            let off = off(&asked, &name);
            assert!(off <= tolerance, "{name} in {kind:?}: {off}");
        }
    }
}

/// What `gguf` of llama.cpp writes under llama.cpp's names (plugins/golden/make_gguf.py), with its position tables cut
/// off and its projections fused.
#[test]
fn llama_cpps_files_score_as_their_models() {
    for (name, dtype, tolerance) in [
        ("roberta", "f32", F32_TOLERANCE),
        ("xlm-roberta-flash", "bf16", BF16_TOLERANCE),
        ("distilbert", "f16", F16_TOLERANCE),
        ("modernbert", "q8_0", Q8_0_TOLERANCE),
        ("qwen2-yes-no", "f16", F16_TOLERANCE),
        ("qwen3-yes-no", "f16", F16_TOLERANCE),
    ] {
        // Beside the safetensors by its name, and alone.
        let alone = with_config_of(name);
        std::fs::copy(
            golden_dir(name).join("llama-cpp.gguf"),
            alone.path().join("any.gguf"),
        )
        .unwrap();
        for asked in [
            with_option(
                golden_request(name, "auto"),
                "file",
                json!("llama-cpp.gguf"),
            ),
            in_dir(alone.path(), golden_request(name, "auto")),
        ] {
            let (found, stored) = logits(&asked, name);
            assert_eq!(stored, dtype, "{name}");
            let golden = golden(name).rows;
            let cut_off = ["roberta", "xlm-roberta-flash"].contains(&name);
            let expected = match cut_off {
                true => without_positions_of_padding(name),
                false => golden.iter().map(|row| row.logits.clone()).collect(),
            };
            let off = farthest(&expected, &found);
            assert!(off <= tolerance, "{name}: {off}");
            // Rows without padding inside do not miss what was cut off.
            let pairs = golden.iter().zip(&found);
            let pairs = pairs.filter(|(row, _)| !cut_off || !row.input_ids.contains(&1));
            let (rows, found): (Vec<_>, Vec<_>) = pairs.unzip();
            assert!(3 <= rows.len(), "{name}: {} rows", rows.len());
            let off = farthest(rows.iter().map(|row| &row.logits), found);
            assert!(off <= tolerance, "{name}: {off}");
        }
    }
}

/// The logits of a RoBERTa that has zeros for the positions up to that of padding tokens, which llama.cpp's files
/// have not: training leaves them so.
fn without_positions_of_padding(name: &str) -> Vec<Vec<f32>> {
    let (dir, mut tensors) = (with_config_of(name), tensors(&golden_dir(name)));
    let table = tensors
        .get_mut("roberta.embeddings.position_embeddings.weight")
        .unwrap();
    let n = table.dim(0).unwrap();
    let rest = table.narrow(0, 2, n - 2).unwrap();
    *table = rest.pad_with_zeros(0, 2, 0).unwrap();
    save(dir.path(), &tensors);
    logits(&request(dir.path(), "f32", "{}"), name).0
}

/// Of an output table that is not tied llama.cpp keeps two rows, by the texts of their tokens.
#[test]
fn rows_that_were_kept_stand_for_the_output_table() {
    let dir = with_config_of("qwen3-yes-no");
    std::fs::copy(
        golden_dir("qwen3-yes-no").join("llama-cpp.gguf"),
        dir.path().join("kept.gguf"),
    )
    .unwrap();
    common::edit::set_config(dir.path(), "tie_word_embeddings", json!(false));
    let tokenizer = |yes: u32| {
        let vocab = json!({"yes": yes, "no": 21});
        let text = json!({"model": {"type": "BPE", "vocab": vocab}, "added_tokens": []});
        std::fs::write(dir.path().join("tokenizer.json"), text.to_string()).unwrap();
    };
    let asked = in_dir(dir.path(), golden_request("qwen3-yes-no", "auto"));
    tokenizer(9);
    assert!(off(&asked, "qwen3-yes-no") <= F16_TOLERANCE);
    // Of another token there is no row.
    tokenizer(10);
    let fault = open(&asked).err().unwrap();
    assert_eq!(fault.code, FaultCode::BadModel, "{fault}");
    assert!(fault.text.contains("output.weight"), "{fault}");
}

/// Blocks that a file stores compute what the same blocks do that are made at load.
#[test]
fn stored_blocks_are_those_of_quantising_at_load() {
    let (tensors, dir) = wide();
    save(dir.path(), &tensors);
    for (dtype, kind, stored) in [
        ("int8", GgmlDType::Q8_0, "q8_0"),
        ("int4", GgmlDType::Q4K, "q4_k"),
    ] {
        let (expected, _) = logits(&request(dir.path(), dtype, "{}"), "bert");
        // The table of words is in halves then, heads and small tables are f32.
        gguf::write(
            &dir.path().join("x.gguf"),
            &[],
            &tensors,
            |name, x| match x.rank() {
                2 if name.contains("encoder") => kind,
                2 if name.contains("word_embeddings") => GgmlDType::F16,
                _ => GgmlDType::F32,
            },
        );
        let file = r#"{"file": "x.gguf"}"#;
        let (found, name) = logits(&request(dir.path(), "auto", file), "bert");
        assert_eq!((found, name.as_str()), (expected.clone(), stored));
        // Asked for by its name, too.
        let (found, name) = logits(&request(dir.path(), dtype, file), "bert");
        assert_eq!((found, name.as_str()), (expected, dtype));
        // But not in other blocks.
        let other = if dtype == "int8" { "int4" } else { "int8" };
        let fault = open(&request(dir.path(), other, file)).err().unwrap();
        assert_eq!(fault.code, FaultCode::Unsupported, "{fault}");
        for word in [stored, other, "auto", "encoder.layer.0"] {
            assert!(fault.text.contains(word), "{fault} does not say {word}");
        }
    }
}

/// Every type: what is widened product by product is what f32 widens at load, and the reference computes it too.
#[test]
fn every_type_is_widened_to_what_it_stores() {
    let (tensors, dir) = wide();
    for (kind, name) in KINDS {
        gguf::write(
            &dir.path().join("x.gguf"),
            &[],
            &tensors,
            where_it_fits(kind),
        );
        let (found, dtype) = logits(&request(dir.path(), "auto", "{}"), "bert");
        assert_eq!(dtype, name);
        let (widened, dtype) = logits(&request(dir.path(), "f32", "{}"), "bert");
        assert_eq!(dtype, "f32");
        let off = farthest(&widened, &found);
        assert!(off < 1e-5, "{name}: {off}");
        let (exact, _) = logits(
            &request(dir.path(), "auto", r#"{"reference": true}"#),
            "bert",
        );
        let off = farthest(&exact, &found);
        assert!(off < F32_TOLERANCE, "{name}: {off}");
        // Halves of what it stores.
        let (halves, _) = logits(&request(dir.path(), "f16", "{}"), "bert");
        let off = farthest(&halves, &found);
        assert!(off < F16_TOLERANCE, "{name}: {off}");
    }
}

/// Recipes such as Q4_K_M store some values' projections in other blocks than keys', and heads in floats.
#[test]
fn layers_in_several_types_are_joined() {
    let (tensors, dir) = wide();
    gguf::write(
        &dir.path().join("x.gguf"),
        &[],
        &tensors,
        |name, x| match x.rank() {
            2 if name.contains("layer.0.attention.self.value") => GgmlDType::Q6K,
            2 if name.contains("layer.1.attention.self.value") => GgmlDType::F16,
            2 if name.contains("word_embeddings") => GgmlDType::Q6K,
            2 if name.contains("encoder") => GgmlDType::Q4K,
            _ => GgmlDType::F32,
        },
    );
    let (found, dtype) = logits(&request(dir.path(), "auto", "{}"), "bert");
    assert_eq!(dtype, "q4_k");
    let (widened, _) = logits(&request(dir.path(), "f32", "{}"), "bert");
    assert!(farthest(&widened, &found) < 1e-5);
}

/// Equal files have equal numerics ids, others others, and what is asked for counts.
#[test]
fn numerics_ids_tell_files_and_dtypes_apart() {
    let id = |dir: &Path, dtype: &str| {
        let backend = open(&in_dir(dir, golden_request("gte", dtype))).unwrap();
        backend.description().numerics_id.clone()
    };
    let (f32s, again) = (
        golden_as("gte", GgmlDType::F32),
        golden_as("gte", GgmlDType::F32),
    );
    let halves = golden_as("gte", GgmlDType::F16);
    let first = id(f32s.path(), "auto");
    assert_eq!(first, id(again.path(), "auto"));
    assert_ne!(first, id(halves.path(), "auto"));
    assert_ne!(id(halves.path(), "auto"), id(halves.path(), "f32"));
}
