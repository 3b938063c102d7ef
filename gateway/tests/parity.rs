//! Parity with `transformers`: every golden model by every plugin that claims its architecture, in every data type
//! that the plugin's card names, through the libraries that a server loads. `make parity` writes what is measured
//! into the table of plugins/README.md; without BLESS the table must list just what is claimed.

#![allow(dead_code, unreachable_pub)] // rows.rs is shared: each test uses its part.

#[path = "parity/claims.rs"]
mod claims;
#[path = "../../plugins/golden/graphs.rs"]
mod graphs;
#[path = "parity/measure.rs"]
mod measure;
#[path = "../../plugins/golden/rows.rs"]
mod rows;
#[path = "parity/table.rs"]
mod table;

use claims::{Folder, Plugin, Reason};
use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use table::Table;

/// The plugins of this repository that compute on a CPU.
const PLUGINS: [&str; 3] = ["cpu-int8", "candle-cpu", "ort-coreml"];
/// Plugins of this repository that have no column.
const NO_COLUMN: [(&str, Reason); 3] = [
    ("fake", "it has no model"),
    ("candle-cuda", ON_A_GPU),
    ("candle-metal", ON_A_GPU),
];
const ON_A_GPU: Reason = "it needs a GPU: its own tests try the golden models there";

/// Golden models that a plugin refuses although it claims their architecture, and words of its refusal.
const REFUSED: [(&str, &str, Reason); 1] = [
    // jina-reranker-v2: an XLM-RoBERTa under names of its own.
    ("cpu-int8", "xlm-roberta-flash", "implementation of its own"),
];

/// What a host has to read in a refusal to ask the next plugin.
const LEFT_TO_OTHERS: &str = "(unsupported)";

/// Architectures of which no graph is exported.
const NOT_EXPORTED: [(&str, Reason); 4] = [
    ("Qwen2ForCausalLM", GENERATES),
    ("Qwen3ForCausalLM", GENERATES),
    ("T5ForConditionalGeneration", GENERATES),
    ("MT5ForConditionalGeneration", GENERATES),
];
const GENERATES: Reason =
    "a graph gives a logit for each word, and the plugin reads those of labels";

/// How far a logit may be off, by data type: on any CPU, whatever its kernels round. The plugins' own tests are
/// stricter, family by family.
fn tolerance(dtype: &str) -> f32 {
    match dtype {
        // Sums in another order, and the last bits of exp and erf.
        "f32" => 1e-4,
        // Eleven bits of mantissa.
        "f16" => 3e-3,
        // Eight bits; gates multiply two such results.
        "bf16" => 0.08,
        // Random weights are a harsher case than trained ones.
        "int8" => 0.2,
        // Layers of 32 to 64 values, in which errors hardly average out.
        "int4" => 1.4,
        other => panic!("there is no tolerance for {other}"),
    }
}

#[test]
fn every_claim_is_kept_and_the_table_says_so() {
    let (plugins, folders) = (PLUGINS.map(Plugin::load), Folder::all());
    let mut claims: Vec<_> = plugins
        .iter()
        .flat_map(|plugin| plugin.claims(&folders))
        .collect();
    let mut table = Table::new(&plugins, &claims);
    if !has_runtime() {
        claims.retain(|claim| !claim.plugin.reads("onnx"));
    }
    let mut wrong = Vec::new();
    for (claim, found) in claims.iter().zip(measure::all(&claims)) {
        let refusal = REFUSED
            .iter()
            .find(|(plugin, golden, _)| (*plugin, *golden) == (&claim.plugin.name, &claim.name));
        match (found, refusal) {
            (Ok(worst), None) if worst <= tolerance(&claim.dtype) => table.measured(claim, worst),
            (Ok(worst), None) => wrong.push(format!("{claim}: {worst} off")),
            (Ok(_), Some(_)) => wrong.push(format!("{claim} is in the list of what is refused")),
            (Err(why), Some((_, _, words)))
                if why.contains(words) && why.contains(LEFT_TO_OTHERS) => {}
            (Err(why), _) => wrong.push(format!("{claim}: {why}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let readme = rows::plugins_dir().join("README.md");
    if std::env::var_os("BLESS").is_some() {
        assert!(has_runtime(), "BLESS needs `make onnxruntime`");
        table.write(&readme);
    } else {
        table.check(&readme, tolerance);
    }
}

/// A card names no architecture that nobody has tried.
#[test]
fn every_architecture_has_a_golden_folder() {
    let folders = Folder::all();
    let tried: BTreeSet<_> = folders.iter().map(|folder| &folder.architecture).collect();
    for plugin in PLUGINS.map(Plugin::load) {
        let untried = plugin.card().architectures.iter();
        let untried: Vec<_> = untried.filter(|name| !tried.contains(name)).collect();
        assert!(untried.is_empty(), "{}: {untried:?}", plugin.name);
    }
}

/// What a plugin for graphs claims is what was exported: each architecture, or the reason why not.
#[test]
fn every_architecture_is_exported_or_says_why_not() {
    let folders = Folder::all();
    for plugin in PLUGINS.map(Plugin::load) {
        if !plugin.reads("onnx") {
            continue;
        }
        let claims = plugin.claims(&folders);
        let whole = claims.iter().filter(|claim| claim.dtype == "f32");
        let exported: BTreeSet<_> = whole.map(|claim| &claim.folder.architecture).collect();
        for folder in &folders {
            let listed = NOT_EXPORTED
                .iter()
                .any(|(name, _)| *name == folder.architecture);
            assert_ne!(
                exported.contains(&folder.architecture),
                listed,
                "{}: export it in make_onnx.py, or say why not",
                folder.architecture
            );
        }
        for dtype in &plugin.card().dtypes {
            let has_one = claims.iter().any(|claim| claim.dtype == *dtype);
            assert!(has_one, "{}: no graph in {dtype}", plugin.name);
        }
    }
}

/// A plugin that is added has a column, or a reason.
#[test]
fn every_plugin_has_a_column() {
    for entry in std::fs::read_dir(rows::plugins_dir()).unwrap() {
        let dir = entry.unwrap().path();
        let manifest = std::fs::read_to_string(dir.join("Cargo.toml")).unwrap_or_default();
        let name = dir.file_name().unwrap().to_str().unwrap();
        let listed = PLUGINS
            .into_iter()
            .chain(NO_COLUMN.map(|(name, _)| name))
            .any(|known| known == name);
        assert_eq!(manifest.contains("cdylib"), listed, "{name}");
    }
}

/// Whether there is an ONNX Runtime; without one its plugin's scores are not measured, or the test fails where one is
/// required.
fn has_runtime() -> bool {
    let place = claims::library_dir()
        .parent()
        .map(|target| target.join("onnxruntime"));
    if place.as_deref().is_some_and(Path::is_dir) || std::env::var_os("ORT_DYLIB_PATH").is_some() {
        return true;
    }
    assert!(
        std::env::var_os("ONNXRUNTIME_REQUIRED").is_none(),
        "there is no ONNX Runtime: run `make onnxruntime`"
    );
    // Not by a macro: what those print is shown only when a test fails.
    let line =
        "SKIPPED the scores of ort-coreml: no ONNX Runtime; `make onnxruntime` fetches one\n";
    _ = std::io::stderr().write_all(line.as_bytes());
    false
}
