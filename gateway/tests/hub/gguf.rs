//! A repository with GGUF files: which of them is fetched, and when.

use crate::graphs::wanted;
use crate::lookalike::{Hub, WEIGHTS, model, weights};
use crate::{check_error, model_with};
use gateway::model::{Cause, Folder, Format, ModelError, ModelInfo, Source, fetch, progress::Log};

/// By a plugin that reads weights by name and in GGUF files, and options that name a file.
fn fetch_file(hub: &Hub, file: Option<&str>) -> Result<Folder, ModelError> {
    let options = file.map_or("{}".to_owned(), |file| format!("{{\"file\":{file:?}}}"));
    let by_name = wanted(&["safetensors", "gguf"], "auto", &options);
    hub.fetch_wanted(&by_name, None, &[])
}

#[test]
fn a_gguf_file_is_the_weights_where_there_is_nothing_else_or_it_is_named() {
    let mut files = model_with(WEIGHTS, None);
    files.retain(|(name, _)| *name != "onnx/model.onnx");
    files.push(("model-q8_0.gguf", weights()));
    let hub = Hub::start(&files);
    let folder = fetch_file(&hub, None).unwrap();
    let info = ModelInfo::read(&folder).unwrap();
    assert_eq!(info.format, Format::Gguf);
    assert_eq!(
        std::fs::read(folder.path.join("model-q8_0.gguf")).unwrap(),
        weights()
    );

    files.push(("model-q4_k.gguf", b"less".to_vec()));
    let hub = Hub::start(&files);
    let words = ["model-q4_k.gguf", "model-q8_0.gguf", "--backend-options"];
    check_error(fetch_file(&hub, None), Cause::Unfit, &words);
    assert!(!hub.asked().iter().any(|asked| asked.at == "cdn"));
    let named = |name| fetch_file(&hub, Some(name));
    check_error(named("x.gguf"), Cause::Unfit, &["no x.gguf", "q4_k"]);
    let folder = named("model-q4_k.gguf").unwrap();
    assert!(!folder.path.join("model-q8_0.gguf").exists());
    let small = ModelInfo::read(&folder).unwrap();
    // Another file is another model, also where both are there by now.
    let folder = named("model-q8_0.gguf").unwrap();
    let large = ModelInfo::read(&folder).unwrap();
    assert_eq!((small.format, large.format), (Format::Gguf, Format::Gguf));
    assert_ne!(small.fingerprint, large.fingerprint);
    assert_eq!(large.fingerprint, info.fingerprint);

    // Beside other weights it counts when it is named.
    let mut files = model();
    files.push(("model.gguf", weights()));
    let hub = Hub::start(&files);
    let format = |file| {
        let folder = fetch_file(&hub, file).unwrap();
        ModelInfo::read(&folder).unwrap().format
    };
    assert_eq!(format(None), Format::Safetensors);
    assert_eq!(format(Some("model.gguf")), Format::Gguf);

    // Most repositories of GGUF files hold nothing else.
    let hub = Hub::start(&[("README.md", Vec::new()), ("model.gguf", weights())]);
    let words = ["no config.json", "that it was converted from"];
    check_error(fetch_file(&hub, None), Cause::Unfit, &words);
}

const GRAPH: &str = "onnx/model.onnx";
const EIGHTS: &str = "onnx/model_good.onnx";
const LARGE: &str = "model-q8_0.gguf";
const SMALL: &str = "model-q4_k.gguf";
const NAMED: &str = r#"{"file":"model-q4_k.gguf"}"#;
const GRAPH_NAMED: &str = r#"{"file":"model_good.onnx"}"#;

/// What becomes of a repository with all of it: who asks, in which dtype and with which options, for what.
const OF_ALL_FORMS: [(&[&str], &str, &str, &str); 11] = [
    (&["safetensors"], "auto", "{}", WEIGHTS),
    (&["safetensors", "gguf"], "auto", "{}", WEIGHTS),
    (&["safetensors", "gguf"], "int4", NAMED, SMALL),
    (&["onnx"], "auto", "{}", GRAPH),
    (&["onnx"], "int8", "{}", EIGHTS),
    (&["onnx"], "auto", GRAPH_NAMED, EIGHTS),
    // Nobody who is asked reads that file.
    (&["onnx"], "auto", NAMED, GRAPH),
    (&["safetensors"], "auto", NAMED, WEIGHTS),
    // Whoever will do.
    (&["onnx", "safetensors", "gguf"], "int8", "{}", WEIGHTS),
    (&["onnx", "safetensors", "gguf"], "auto", NAMED, SMALL),
    (&["onnx", "safetensors", "gguf"], "f32", GRAPH_NAMED, EIGHTS),
];

/// The weights that a folder holds.
fn held(folder: &Folder) -> Vec<&'static str> {
    let all = [WEIGHTS, GRAPH, EIGHTS, LARGE, SMALL].into_iter();
    all.filter(|name| folder.path.join(name).is_file())
        .collect()
}

fn format_of(name: &str) -> Format {
    match name {
        WEIGHTS => Format::Safetensors,
        GRAPH | EIGHTS => Format::Onnx,
        _ => Format::Gguf,
    }
}

#[test]
fn of_all_forms_comes_the_one_that_will_be_opened() {
    let mut files = model();
    files.push((EIGHTS, b"eights".to_vec()));
    files.push((LARGE, b"large".to_vec()));
    files.push((SMALL, b"small".to_vec()));
    for (formats, dtype, options, want) in OF_ALL_FORMS {
        let (hub, wanted) = (Hub::start(&files), wanted(formats, dtype, options));
        let folder = hub.fetch_wanted(&wanted, None, &[]).unwrap();
        assert_eq!(held(&folder), [want], "{wanted:?}");
        let format = ModelInfo::read(&folder).unwrap().format;
        assert_eq!(format, format_of(want), "{wanted:?}");
        hub.asked();
        let offline = [("HF_HUB_OFFLINE", "1")];
        assert_eq!(hub.fetch_wanted(&wanted, None, &offline).unwrap(), folder);
        assert!(hub.asked().is_empty());
        // The same files in a folder: the same is opened.
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("onnx")).unwrap();
        for (name, bytes) in &files {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        let source = Source::Folder(dir.path().into());
        let folder = fetch(&source, &wanted, &hub.settings(&[]), &Log).unwrap();
        let format = ModelInfo::read(&folder).unwrap().format;
        assert_eq!(format, format_of(want), "{wanted:?}");
    }
}

#[test]
fn without_weights_by_name_graphs_come_before_gguf_files() {
    let mut files = model_with(WEIGHTS, None);
    files.push((LARGE, b"large".to_vec()));
    let check = |formats: &[&str], dtype: &str, want: &str| {
        let hub = Hub::start(&files);
        let folder = hub.fetch_wanted(&wanted(formats, dtype, "{}"), None, &[]);
        assert_eq!(held(&folder.unwrap()), [want], "{formats:?} {dtype}");
    };
    let all = ["onnx", "safetensors", "gguf"];
    check(&all, "auto", GRAPH);
    // No graph is in this type.
    check(&all, "int8", LARGE);
    check(&["safetensors", "gguf"], "auto", LARGE);
    // What is there is named, and what would be read.
    let hub = Hub::start(&files);
    let says = [GRAPH, LARGE, "not as model.safetensors"];
    let by_name = hub.fetch_wanted(&wanted(&["safetensors"], "auto", "{}"), None, &[]);
    check_error(by_name, Cause::Unfit, &says);
    files.retain(|(name, _)| *name != GRAPH && *name != "pytorch_model.bin");
    let hub = Hub::start(&files);
    let says = ["only as model-q8_0.gguf", "the plugin reads onnx: onnx/"];
    let graphs = hub.fetch_wanted(&wanted(&["onnx"], "auto", "{}"), None, &[]);
    check_error(graphs, Cause::Unfit, &says);
    assert!(!hub.asked().iter().any(|asked| asked.path.contains("gguf")));
}
