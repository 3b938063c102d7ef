//! GGUF files: widened at load, so that a GPU computes what their blocks say.

mod common;

use backend_api::OpenRequest;
use candle_core::quantized::GgmlDType;
use common::gguf::{KINDS, Tensors, golden_as, save, where_it_fits, wide, with_config_of, write};
use common::{farthest, golden, golden_names, golden_request, open, score_all, tolerance};
use std::path::Path;

/// The logits of a golden model's rows by the model in a folder.
fn logits(dir: &Path, name: &str, dtype: &str) -> Vec<Vec<f32>> {
    let request = OpenRequest {
        model_dir: dir.to_owned(),
        ..golden_request(name, dtype)
    };
    let backend = open(&request).unwrap_or_else(|fault| panic!("{name}: {fault}"));
    let rows = golden(name).rows;
    score_all(
        &mut backend.worker().unwrap(),
        &rows.iter().collect::<Vec<_>>(),
    )
}

/// Of each family: the same values are the same logits, bit for bit.
#[test]
fn f32_scores_as_from_safetensors() {
    let short = golden_names()
        .into_iter()
        .filter(|name| !name.ends_with("-8192"));
    for name in short {
        let dir = golden_as(&name, GgmlDType::F32);
        let expected = logits(&common::golden_dir(&name), &name, "f32");
        assert_eq!(logits(dir.path(), &name, "f32"), expected, "{name}");
    }
}

/// Every type that blocks are stored in: the logits are those of the values that they stand for.
#[test]
fn every_type_is_widened_to_what_it_stores() {
    let (tensors, dir) = wide();
    for (kind, name) in KINDS {
        let path = dir.path().join("x.gguf");
        write(&path, &[], &tensors, where_it_fits(kind));
        let plain = with_config_of("bert");
        std::fs::copy(
            dir.path().join("config.json"),
            plain.path().join("config.json"),
        )
        .unwrap();
        save(plain.path(), &stored(&path));
        let expected = logits(plain.path(), "bert", "f32");
        assert_eq!(logits(dir.path(), "bert", "f32"), expected, "{name}");
        for dtype in ["f16", "bf16"] {
            let off = farthest(&expected, &logits(dir.path(), "bert", dtype));
            assert!(off < tolerance(dtype), "{name} in {dtype}: {off}");
        }
    }
}

/// What a GGUF file's tensors stand for, as candle reads them.
fn stored(path: &Path) -> Tensors {
    let mut file = std::fs::File::open(path).unwrap();
    let content = candle_core::quantized::gguf_file::Content::read(&mut file).unwrap();
    let cpu = candle_core::Device::Cpu;
    let widened = content.tensor_infos.keys().map(|name| {
        let stored = content.tensor(&mut file, name, &cpu).unwrap();
        (name.clone(), stored.dequantize(&cpu).unwrap())
    });
    widened.collect()
}
