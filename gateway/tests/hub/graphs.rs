//! A repository with a model in several forms: of the weights only what a plugin reads is fetched.

use crate::lookalike::{COMMIT, Hub, WEIGHTS};
use crate::{check_error, model_with};
use gateway::model::{Cause, Folder, Format, ModelInfo, Reads, Wanted};

/// As a plugin's card lists them on some machine.
const FILES: [&str; 5] = [
    "f32:onnx/model.onnx",
    "f32:model.onnx",
    "int8:onnx/model_best.onnx",
    "int8:onnx/model_good.onnx",
    "f16:onnx/model_half.onnx",
];
/// Everything that the repository has in ONNX.
const GRAPHS: [&str; 6] = [
    "onnx/model.onnx",
    "onnx/model.onnx_data",
    "onnx/model_good.onnx",
    "onnx/model_good.onnx.data",
    "onnx/model_O3.onnx",
    "onnx/model_other.onnx",
];

fn hub() -> Hub {
    let mut files = model_with("onnx/model.onnx", None);
    files.extend(GRAPHS.map(|name| (name, name.as_bytes().to_vec())));
    Hub::start(&files)
}

/// By plugins that read these formats.
pub(crate) fn wanted(formats: &[&str], dtype: &str, options: &str) -> Wanted {
    let (files, none) = (FILES.map(str::to_owned), []);
    let formats: Vec<_> = formats
        .iter()
        .map(|format| [(*format).to_owned()])
        .collect();
    let reads = formats.iter().map(|formats| Reads {
        formats,
        files: if formats[0] == "onnx" { &files } else { &none },
    });
    Wanted::by(reads, dtype, options)
}

/// The weights that a folder holds, in any form.
fn held(folder: &Folder) -> Vec<&'static str> {
    let all = GRAPHS.into_iter().chain([WEIGHTS]);
    all.filter(|name| folder.path.join(name).is_file())
        .collect()
}

#[track_caller]
fn check(formats: &[&str], dtype: &str, options: &str, want: &[&str]) {
    let (hub, wanted) = (hub(), wanted(formats, dtype, options));
    let folder = hub.fetch_wanted(&wanted, None, &[]).unwrap();
    assert_eq!(held(&folder), want, "{wanted:?}");
    // What was fetched once is there without the hub, and is not fetched again.
    hub.asked();
    let offline = [("HF_HUB_OFFLINE", "1")];
    assert_eq!(hub.fetch_wanted(&wanted, None, &offline).unwrap(), folder);
    assert!(hub.asked().is_empty());
    hub.fetch_wanted(&wanted, None, &[]).unwrap();
    assert_eq!(hub.asked().len(), 1, "what main means");
}

#[test]
fn only_the_graph_in_the_dtype_comes_with_its_data() {
    check(&["onnx"], "auto", "{}", &GRAPHS[..2]);
    check(&["onnx"], "f32", "{}", &GRAPHS[..2]);
    check(&["onnx"], "int8", "{}", &GRAPHS[2..4]);
    check(&["safetensors"], "auto", "{}", &[WEIGHTS]);
    check(&["onnx", "safetensors"], "auto", "{}", &[WEIGHTS]);
}

#[test]
fn a_graph_that_the_options_name_comes() {
    let named = r#"{"file":"model_O3.onnx"}"#;
    check(&["onnx"], "auto", named, &["onnx/model_O3.onnx"]);
    check(&["onnx"], "int8", named, &["onnx/model_O3.onnx"]);
    let unknown = wanted(&["onnx"], "auto", r#"{"file":"mine.onnx"}"#);
    let says = ["mine.onnx", "option `file`", "onnx/model_O3.onnx, "];
    check_error(hub().fetch_wanted(&unknown, None, &[]), Cause::Unfit, &says);
}

#[test]
fn a_dtype_that_is_not_there_is_named_with_what_is() {
    let (hub, halves) = (hub(), wanted(&["onnx"], "f16", "{}"));
    let says = [
        "org/name at main",
        "dtype f16",
        "onnx/model_half.onnx",
        "it holds onnx/model.onnx, onnx/model_good.onnx, ",
    ];
    check_error(hub.fetch_wanted(&halves, None, &[]), Cause::Unfit, &says);
    assert!(!hub.asked().iter().any(|asked| asked.path.contains("onnx")));
}

#[test]
fn a_model_of_graphs_alone_comes_for_whoever_reads_them() {
    let hub = hub();
    hub.state().files.retain(|file| file.0 != WEIGHTS);
    let any = wanted(&["onnx", "safetensors"], "auto", "{}");
    let folder = hub.fetch_wanted(&any, None, &[]).unwrap();
    assert_eq!(held(&folder), GRAPHS[..2]);
    let info = ModelInfo::read(&folder).unwrap();
    assert_eq!((info.format, info.num_parameters), (Format::Onnx, 0));
    // Without a plugin for them, none is fetched.
    let says = ["onnx/model.onnx", "not as model.safetensors"];
    let named = wanted(&["safetensors"], "auto", "{}");
    check_error(hub.fetch_wanted(&named, None, &[]), Cause::Unfit, &says);
}

#[test]
fn what_one_plugin_has_fetched_is_not_enough_for_another() {
    let (hub, graph) = (hub(), wanted(&["onnx"], "int8", "{}"));
    let named = hub.fetch(Some(COMMIT), &[]).unwrap();
    let before = ModelInfo::read(&named).unwrap();
    let offline = [("HF_HUB_OFFLINE", "1")];
    let says = ["not complete", "onnx/model_best.onnx or ", "HF_HUB_OFFLINE"];
    let without = hub.fetch_wanted(&graph, Some(COMMIT), &offline);
    check_error(without, Cause::NotFound, &says);
    hub.asked();
    let both = hub.fetch_wanted(&graph, Some(COMMIT), &[]).unwrap();
    assert_eq!(both.path, named.path);
    assert_eq!(held(&both), [GRAPHS[2], GRAPHS[3], WEIGHTS]);
    assert!(!hub.asked().iter().any(|asked| asked.at == "cdn"));
    // It is the same model to whoever compares, with all of its files or a part of them.
    std::fs::remove_file(both.path.join(WEIGHTS)).unwrap();
    let after = ModelInfo::read(&both).unwrap();
    assert_ne!(before.fingerprint, after.fingerprint);
    assert!(after.has_weights_of(&before));
    let older = hub.fetch(Some("refs/pr/1"), &[]).unwrap();
    assert!(!after.has_weights_of(&ModelInfo::read(&older).unwrap()));
}

#[test]
fn a_graph_is_there_when_its_data_is() {
    let (hub, graph) = (hub(), wanted(&["onnx"], "auto", "{}"));
    // The graph's own blob cannot be written; its data has come before.
    hub.fetch(None, &[]).unwrap();
    let graph_blob = &crate::lookalike::sha256(GRAPHS[0].as_bytes())[..40];
    let blobs = hub.repo().join("blobs");
    std::fs::create_dir(blobs.join(graph_blob)).unwrap();
    hub.fetch_wanted(&graph, None, &[]).unwrap_err();
    let snapshot = hub.repo().join("snapshots").join(COMMIT);
    assert!(snapshot.join(GRAPHS[1]).is_file());
    assert!(!snapshot.join(GRAPHS[0]).exists());
}
