//! GGUF files that are not what they say, or not for this plugin, are refused with a text that names file and tensor;
//! bytes that were changed at random are refused or scored, and nothing else happens.

mod common;

use backend_api::{FaultCode, OpenRequest};
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use common::gguf::{self, Tensors, golden_as, tensors, where_it_fits, with_config_of};
use common::{GoldenRow, golden, golden_dir, golden_request, open, request, score};
use std::path::Path;
use tempfile::TempDir;

const QUERY: &str = "bert.encoder.layer.1.attention.self.query.weight";

/// Opening the folder fails with this code and a text that has all of these words.
#[track_caller]
fn refused(dir: &Path, options: &str, code: FaultCode, words: &[&str]) {
    let Err(fault) = open(&request(dir, "auto", options)) else {
        panic!("accepted: {words:?}")
    };
    assert_eq!(fault.code, code, "{fault}");
    for word in words {
        let text = &fault.text;
        assert!(text.contains(word), "{text:?} does not name {word:?}");
    }
}

/// A BERT whose GGUF file is changed by `edit`.
#[track_caller]
fn refused_with(edit: impl FnOnce(&mut Vec<u8>), words: &[&str]) {
    let dir = golden_as("bert", GgmlDType::Q8_0);
    let path = dir.path().join("model.gguf");
    let mut bytes = std::fs::read(&path).unwrap();
    edit(&mut bytes);
    std::fs::write(path, bytes).unwrap();
    let words = [&["model.gguf"], words].concat();
    refused(dir.path(), "{}", FaultCode::BadModel, &words);
}

/// A BERT with this metadata and tensors.
fn written(metadata: &[(&str, Value)], edit: impl FnOnce(&mut Tensors)) -> TempDir {
    let dir = with_config_of("bert");
    let mut tensors = tensors(&golden_dir("bert"));
    edit(&mut tensors);
    let kind = where_it_fits(GgmlDType::F32);
    gguf::write(&dir.path().join("model.gguf"), metadata, &tensors, kind);
    dir
}

/// Where a tensor's rank stands in a header.
fn place_of(bytes: &[u8], tensor: &str) -> usize {
    let at = bytes.windows(tensor.len());
    at.into_iter()
        .position(|window| window == tensor.as_bytes())
        .unwrap()
        + tensor.len()
}

fn set(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

#[test]
fn headers_that_are_wrong_are_refused() {
    refused_with(|bytes| bytes[0] = b'X', &["does not start with GGUF"]);
    refused_with(|bytes| bytes.clear(), &["its magic", "cut off"]);
    refused_with(|bytes| bytes[4] = 1, &["version 1", "2 and 3"]);
    refused_with(|bytes| bytes[4] = 9, &["version 9"]);
    refused_with(
        |bytes| set(bytes, 4, &3_u32.to_be_bytes()),
        &["big-endian", "convert"],
    );
    for (at, what) in [(8, "tensors"), (16, "keys")] {
        let most = u64::MAX.to_le_bytes();
        refused_with(|bytes| set(bytes, at, &most), &["at most 65536", what]);
    }
    // More keys than there are: tensors are read as keys.
    refused_with(|bytes| bytes[16] = 200, &[]);
}

#[test]
fn metadata_that_is_wrong_is_refused() {
    let bad = FaultCode::BadModel;
    for (alignment, word) in [(0, "= 0"), (24, "= 24"), (1 << 20, "65536")] {
        let dir = written(&[("general.alignment", Value::U32(alignment))], |_| ());
        refused(dir.path(), "{}", bad, &["general.alignment", word]);
    }
    let dir = written(&[("split.count", Value::U16(3))], |_| ());
    let words = ["model.gguf", "one of 3 parts", "llama-gguf-split --merge"];
    refused(dir.path(), "{}", bad, &words);
    let labels = |n| Value::Array(vec![Value::String("x".to_owned()); n]);
    let dir = written(&[("bert.classifier.output_labels", labels(65))], |_| ());
    refused(dir.path(), "{}", bad, &["output_labels", "64 texts"]);
    let nested = (0..5).fold(Value::U8(0), |value, _| Value::Array(vec![value]));
    let dir = written(&[("nested", nested)], |_| ());
    refused(dir.path(), "{}", bad, &["nested", "lists"]);
    // What is passed over may be of any type.
    let values = [
        Value::U8(1),
        Value::I64(-1),
        Value::F64(0.5),
        Value::Bool(true),
        Value::String("x".repeat(5_000)),
        Value::Array(vec![labels(3), labels(2)]),
    ];
    let metadata: Vec<_> = values
        .into_iter()
        .map(|value| ("some.key", value))
        .collect();
    let dir = written(&metadata, |_| ());
    open(&request(dir.path(), "auto", "{}")).unwrap();
    // A list that is longer than its file.
    let dir = written(&[("x.list", labels(2))], |_| ());
    let path = dir.path().join("model.gguf");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = place_of(&bytes, "x.list");
    set(&mut bytes, at + 8, &(1_u64 << 60).to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    refused(dir.path(), "{}", bad, &["x.list", "cut off"]);
}

#[test]
fn tensors_that_are_wrong_are_named() {
    let at = |bytes: &[u8]| place_of(bytes, QUERY);
    // Behind the name: rank, two sides, type, place.
    let with = |offset: usize, value: Vec<u8>, words: &[&str]| {
        let words = [&[QUERY], words].concat();
        let edit = |bytes: &mut Vec<u8>| {
            let at = at(bytes) + offset;
            set(bytes, at, &value);
        };
        refused_with(edit, &words);
    };
    let word = |value: u32| value.to_le_bytes().to_vec();
    let long = |value: u64| value.to_le_bytes().to_vec();
    with(0, word(0), &["0 dimensions"]);
    with(0, word(5), &["5 dimensions"]);
    with(4, long(0), &["a side of 0"]);
    with(12, long(u64::MAX / 2), &["a side of"]);
    with(12, long(1 << 40), &["cut off"]);
    with(20, word(20), &["number 20", "q4_k", "quantise"]);
    with(20, word(15), &["number 15"]);
    with(20, word(12), &["rows of 48 values", "blocks of 256 (q4_k)"]);
    with(24, long(1), &["multiple of 32"]);
    with(24, long(u64::MAX - 31), &["cut off"]);
    refused_with(
        |bytes| {
            let (mine, other) = (at(bytes), place_of(bytes, "bert.pooler.dense.weight"));
            let place = bytes[other + 24..other + 32].to_vec();
            set(bytes, mine + 24, &place);
        },
        &["share bytes"],
    );
    refused_with(
        |bytes| {
            let twin = "bert.encoder.layer.0.attention.self.query.weight";
            let end = at(bytes);
            set(bytes, end - twin.len(), twin.as_bytes());
        },
        &["query.weight stands in it twice"],
    );
    refused_with(|bytes| bytes.truncate(bytes.len() / 2), &["cut off"]);
    refused_with(|bytes| bytes.truncate(1_000), &["cut off"]);
}

#[test]
fn values_that_are_not_finite_are_found() {
    for (kind, offset) in [(GgmlDType::F16, 6), (GgmlDType::Q8_0, 34)] {
        let (tensors, dir) = gguf::wide();
        let path = dir.path().join("model.gguf");
        gguf::write(&path, &[], &tensors, where_it_fits(kind));
        let mut bytes = std::fs::read(&path).unwrap();
        let first = bytes.len();
        let header = place_of(&bytes, QUERY);
        let place: [u8; 8] = bytes[header + 24..header + 32].try_into().unwrap();
        // The data ends with the file, in the order of names.
        let rest: usize = tensors
            .iter()
            .map(|(name, x)| {
                let used = where_it_fits(kind)(name, x);
                let n = x.elem_count() / used.block_size() * used.type_size();
                n.next_multiple_of(32)
            })
            .sum();
        let at = first - rest + u64::from_le_bytes(place) as usize + offset;
        set(&mut bytes, at, &[0xff, 0x7f]);
        std::fs::write(path, bytes).unwrap();
        let words = [QUERY, "model.gguf", "not finite"];
        refused(dir.path(), "{}", FaultCode::BadModel, &words);
    }
}

#[test]
fn shapes_and_heads_are_asked_for() {
    let bad = FaultCode::BadModel;
    let dir = written(&[], |tensors| drop(tensors.remove("classifier.weight")));
    refused(dir.path(), "{}", bad, &["classifier.weight", "no head"]);
    let dir = written(&[], |tensors| {
        let narrow = tensors[QUERY].narrow(0, 0, 24).unwrap();
        let narrow = narrow.force_contiguous().unwrap();
        tensors.insert(QUERY.to_owned(), narrow);
    });
    refused(dir.path(), "{}", bad, &[QUERY, "[24, 48]", "[48, 48]"]);
}

/// llama.cpp's names of an architecture that is not known, and of a BERT, whose pooler its converter leaves out.
#[test]
fn llama_cpps_names_of_others_are_refused() {
    let named = |architecture: &str| {
        let text = Value::String(architecture.to_owned());
        written(&[("general.architecture", text)], |tensors| {
            let words = tensors.remove("bert.embeddings.word_embeddings.weight");
            tensors.insert("token_embd.weight".to_owned(), words.unwrap());
            let head = tensors.remove("classifier.weight").unwrap();
            tensors.insert("cls.output.weight".to_owned(), head);
        })
    };
    let dir = named("t5encoder");
    let words = ["model.gguf", "t5encoder", "bert, modern-bert, qwen2, qwen3"];
    refused(dir.path(), "{}", FaultCode::Unsupported, &words);
    let words = [
        "bert.pooler.dense.weight",
        "cls.weight",
        "pooler",
        "original",
    ];
    refused(named("bert").path(), "{}", FaultCode::BadModel, &words);
}

#[test]
fn a_file_is_chosen_or_asked_for() {
    let (bad, request_is_bad) = (FaultCode::BadModel, FaultCode::BadRequest);
    let dir = golden_as("bert", GgmlDType::F32);
    let copy = |to: &str| {
        std::fs::copy(dir.path().join("model.gguf"), dir.path().join(to)).unwrap();
    };
    copy("another.gguf");
    let words = ["another.gguf, model.gguf", "file"];
    refused(dir.path(), "{}", bad, &words);
    let named = r#"{"file": "another.gguf"}"#;
    open(&request(dir.path(), "auto", named)).unwrap();
    let away = r#"{"file": "../x.gguf"}"#;
    refused(dir.path(), away, request_is_bad, &["../x.gguf"]);
    let other = r#"{"file": "model.safetensors"}"#;
    refused(dir.path(), other, request_is_bad, &["model.safetensors"]);
    refused(dir.path(), r#"{"file": "x.gguf"}"#, bad, &["x.gguf"]);
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    let words = ["config.json", "tokenizer.json", "converted from"];
    refused(dir.path(), named, bad, &words);
}

/// Numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (self.0 >> 33) as usize % n
    }
}

/// Bytes of headers and data changed, and files cut off: what opens scores, or its rows fail.
#[test]
fn no_file_panics() {
    let mut random = Random(7);
    let (mut n_opened, mut n_refused) = (0, 0);
    for (name, kind) in [
        ("jina-bert", None),
        ("modernbert", None),
        ("qwen3-yes-no", None),
        ("bert-512", Some(GgmlDType::Q8_0)),
        ("t5", Some(GgmlDType::Q4_0)),
    ] {
        let (dir, path) = match kind {
            Some(kind) => {
                let dir = golden_as(name, kind);
                let path = dir.path().join("model.gguf");
                (dir, path)
            }
            None => {
                let dir = with_config_of(name);
                let path = dir.path().join("model.gguf");
                let from = golden_dir(name).join("llama-cpp.gguf");
                if from.exists() {
                    std::fs::copy(from, &path).unwrap();
                } else {
                    let kind = where_it_fits(GgmlDType::BF16);
                    gguf::write(&path, &[], &tensors(&golden_dir(name)), kind);
                }
                (dir, path)
            }
        };
        let whole = std::fs::read(&path).unwrap();
        let header = whole.len().min(4_096);
        let rows = golden(name).rows;
        let rows: Vec<&GoldenRow> = rows.iter().take(3).collect();
        let asked = OpenRequest {
            model_dir: dir.path().to_owned(),
            row_tokens_max: 256,
            ..golden_request(name, "auto")
        };
        for round in 0..400 {
            let mut bytes = whole.clone();
            match round % 4 {
                0 => bytes.truncate(random.below(whole.len())),
                1 => bytes.truncate(random.below(header)),
                _ => {
                    let end = if round % 4 == 2 { header } else { whole.len() };
                    for _ in 0..=random.below(4) {
                        bytes[random.below(end)] = random.below(256) as u8;
                    }
                }
            }
            std::fs::write(&path, bytes).unwrap();
            match open(&asked) {
                Ok(backend) => {
                    n_opened += 1;
                    score(&mut backend.worker().unwrap(), &rows);
                }
                Err(fault) => {
                    n_refused += 1;
                    let known = [FaultCode::BadModel, FaultCode::Unsupported];
                    assert!(known.contains(&fault.code), "{name}, {round}: {fault}");
                }
            }
        }
    }
    assert!(400 < n_opened && 400 < n_refused, "{n_opened}, {n_refused}");
}
