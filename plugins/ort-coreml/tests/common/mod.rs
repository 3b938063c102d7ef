//! What the tests share: small models as ONNX files beside the configurations of plugins/golden, and calls through the border.

#![allow(dead_code, unreachable_pub, unused_imports)] // Each test file is a crate of its own and uses its part.

#[path = "../../../golden/graphs.rs"]
mod graphs;
#[path = "../../../golden/rows.rs"]
mod rows;

pub use graphs::copy;
pub use rows::{GoldenRow, score};

use backend_api::{Fault, FaultCode, OpenBackend, OpenRequest, PluginLibrary};
use ort_coreml::{OrtCoreMl, library};
use rows::golden_rows;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A graph of tests/models: it is called like the golden model that it was exported from, and behind a dot what is special
/// (make_onnx.py).
#[derive(Clone, Copy, Debug)]
pub struct Model {
    pub name: &'static str,
    pub dtype: &'static str,
    /// How far its logits are from `transformers`' in f32.
    pub tolerance: f32,
}

const fn model(name: &'static str, dtype: &'static str, tolerance: f32) -> Model {
    Model {
        name,
        dtype,
        tolerance,
    }
}

/// The f32 graphs differ from PyTorch in the order of sums and the last bits of exp and erf only.
const F32: f32 = 1e-4;

pub const BERT: Model = model("bert", "f32", F32);
pub const DISTILBERT: Model = model("distilbert", "f32", F32);
pub const XLM_ROBERTA: Model = model("xlm-roberta", "f32", F32);
pub const MODERNBERT: Model = model("modernbert-mean-older-keys", "f32", F32);
pub const DEBERTA: Model = model("deberta-v3", "f32", F32);
/// A decoder: the last token that is not padding speaks for a row.
pub const QWEN: Model = model("qwen3-3-labels", "f32", F32);
/// An encoder and a decoder.
pub const T5: Model = model("t5", "f32", F32);
/// Logits of up to 2.7 come in halves.
pub const HALF: Model = model("electra.half", "f16", 1e-3);
/// 0.063 at most: an operator quantises its rows together, so padding moves the rounding.
pub const INT8: Model = model("camembert.int8", "int8", 0.08);
pub const EXTERNAL: Model = model("electra-projected.external", "f32", F32);
/// For 4 rows of 16 tokens only.
pub const FIXED: Model = model("deberta-v2-absolute.fixed", "f32", F32);
pub const EMBEDDER: Model = model("electra.embedder", "f32", F32);

/// Those that are cut, planned and put together in every way. All that were exported are in the gateway's `tests/parity.rs`.
pub const MODELS: [Model; 11] = [
    BERT,
    DISTILBERT,
    XLM_ROBERTA,
    MODERNBERT,
    DEBERTA,
    QWEN,
    T5,
    HALF,
    INT8,
    EXTERNAL,
    FIXED,
];

impl Model {
    /// A model's folder as users have it: config.json, and onnx/ with the graph.
    pub fn dir(&self) -> TempDir {
        graphs::folder_with(self.golden(), &self.onnx_dir())
    }

    /// The graph's file, as it is committed.
    pub fn onnx_dir(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/models")
            .join(self.name)
            .join("onnx")
    }

    pub fn rows(&self) -> Vec<GoldenRow> {
        golden_rows(self.golden())
    }

    fn golden(&self) -> &'static str {
        self.name.split('.').next().unwrap()
    }
}

/// Whether there is an ONNX Runtime; without one the test says so and is skipped, or fails where one is required.
pub fn has_runtime() -> bool {
    let Err(fault) = library::load(None, Path::new("")) else {
        return true;
    };
    assert!(
        std::env::var_os("ONNXRUNTIME_REQUIRED").is_none(),
        "{fault}"
    );
    // Not by a macro: what those print is shown only when a test fails.
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let line = format!("SKIPPED {test}: no ONNX Runtime; `make onnxruntime` fetches one\n");
    _ = std::io::stderr().write_all(line.as_bytes());
    false
}

/// A request for a model folder with this dtype and these options.
pub fn request(dir: &Path, dtype: &str, options: &str) -> OpenRequest {
    OpenRequest {
        model_dir: dir.to_owned(),
        device: "cpu".to_owned(),
        dtype: dtype.to_owned(),
        options: options.to_owned(),
        ..OpenRequest::default()
    }
}

pub fn open(request: &OpenRequest) -> Result<OpenBackend, Fault> {
    PluginLibrary::in_process::<OrtCoreMl>()
        .unwrap()
        .open(request)
}

/// Opening fails with this code and a text that has all of these words.
#[track_caller]
pub fn refused(request: &OpenRequest, code: FaultCode, words: &[&str]) {
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

/// The largest difference of logits.
pub fn difference(expected: &[f32], found: &[f32]) -> f32 {
    assert_eq!(expected.len(), found.len());
    let pairs = expected.iter().zip(found);
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
