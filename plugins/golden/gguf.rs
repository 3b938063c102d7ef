//! GGUF files out of golden folders, written by candle.

use super::edit::set_config;
use super::golden_dir;
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::Path;
use tempfile::TempDir;

/// Every type that weights are stored in, and its name.
pub const KINDS: [(GgmlDType, &str); 13] = [
    (GgmlDType::F32, "f32"),
    (GgmlDType::F16, "f16"),
    (GgmlDType::BF16, "bf16"),
    (GgmlDType::Q4_0, "q4_0"),
    (GgmlDType::Q4_1, "q4_1"),
    (GgmlDType::Q5_0, "q5_0"),
    (GgmlDType::Q5_1, "q5_1"),
    (GgmlDType::Q8_0, "q8_0"),
    (GgmlDType::Q2K, "q2_k"),
    (GgmlDType::Q3K, "q3_k"),
    (GgmlDType::Q4K, "q4_k"),
    (GgmlDType::Q5K, "q5_k"),
    (GgmlDType::Q6K, "q6_k"),
];

pub type Tensors = BTreeMap<String, Tensor>;

/// The tensors of a folder's safetensors files, in f32.
pub fn tensors(dir: &Path) -> Tensors {
    let mut all = Tensors::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|kind| kind == "safetensors") {
            let found = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
            let floats = found.into_iter().filter(|(_, x)| x.dtype().is_float());
            all.extend(floats.map(|(name, x)| (name, x.to_dtype(DType::F32).unwrap())));
        }
    }
    all
}

/// Writes tensors, each in the type that `kind` says.
pub fn write(
    path: &Path,
    metadata: &[(&str, Value)],
    tensors: &Tensors,
    kind: impl Fn(&str, &Tensor) -> GgmlDType,
) {
    let made = tensors.iter().map(|(name, x)| {
        let stored = QTensor::quantize(x, kind(name, x)).unwrap();
        (name.as_str(), stored)
    });
    let made: Vec<_> = made.collect();
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<_> = made.iter().map(|(name, x)| (*name, x)).collect();
    gguf_file::write(&mut File::create(path).unwrap(), &metadata, &tensors).unwrap();
}

/// `kind` for matrices whose rows are whole blocks of it, halves for others, f32 for vectors: as llama.cpp has it.
pub fn where_it_fits(kind: GgmlDType) -> impl Fn(&str, &Tensor) -> GgmlDType {
    move |_, x| match x.dims() {
        [_, width] if width.is_multiple_of(kind.block_size()) => kind,
        [_, _] => GgmlDType::F16,
        _ => GgmlDType::F32,
    }
}

/// A golden folder with its tensors in a GGUF file, under transformers' names.
pub fn golden_as(name: &str, kind: GgmlDType) -> TempDir {
    let dir = with_config_of(name);
    let tensors = tensors(&golden_dir(name));
    let path = dir.path().join("model.gguf");
    write(&path, &[], &tensors, where_it_fits(kind));
    dir
}

/// A golden folder's configuration, and its tokenizer if it has one.
pub fn with_config_of(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json"] {
        let from = golden_dir(name).join(file);
        if from.exists() {
            std::fs::copy(from, dir.path().join(file)).unwrap();
        }
    }
    dir
}

/// Of a BERT as wide as the widest blocks: tensors, and a folder with its configuration and nothing else.
pub fn wide() -> (Tensors, TempDir) {
    let dir = with_config_of("bert");
    set_config(dir.path(), "hidden_size", json!(256));
    set_config(dir.path(), "intermediate_size", json!(512));
    let wider = |&side: &usize| match side {
        48 => 256,
        100 => 512,
        other => other,
    };
    let mut all = Tensors::new();
    for (at, (name, x)) in tensors(&golden_dir("bert")).into_iter().enumerate() {
        let shape: Vec<usize> = x.dims().iter().map(wider).collect();
        let middle = if name.ends_with("LayerNorm.weight") {
            1.0
        } else {
            0.0
        };
        let n = shape.iter().product();
        let values = (0..n).map(|place: usize| {
            let angle = (place as f32 + 1.0) * (1.3 + at as f32 * 0.17);
            middle + 0.15 * angle.sin() * (angle * 0.31).cos()
        });
        let values = values.collect::<Vec<f32>>();
        all.insert(name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap());
    }
    (all, dir)
}

/// Writes a folder's `model.safetensors`.
pub fn save(dir: &Path, tensors: &Tensors) {
    let tensors: HashMap<_, _> = tensors.clone().into_iter().collect();
    candle_core::safetensors::save(&tensors, dir.join("model.safetensors")).unwrap();
}
