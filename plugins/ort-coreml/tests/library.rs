//! How ONNX Runtime is found, and what a library that is none leads to: a refusal, never a panic.
//!
//! A process takes one ONNX Runtime for ever, so each case is a process of its own: this test again, told to open a model.

mod common;

use backend_api::{FaultCode, OpenRequest};
use common::{BERT, has_runtime, open, refused, request};
use ort_coreml::library;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Tells the test that it is the child, and the options to open with.
const CHILD: &str = "CROSSGATE_TEST_OPTIONS";
/// The folder in which it says that the plugin was found.
const PLUGIN_DIR: &str = "CROSSGATE_TEST_PLUGIN_DIR";

/// What the child does; in the parent, nothing.
#[test]
fn child() {
    let Ok(options) = std::env::var(CHILD) else {
        return;
    };
    let dir = BERT.dir();
    let request = OpenRequest {
        plugin_dir: std::env::var_os(PLUGIN_DIR).unwrap_or_default().into(),
        ..request(dir.path(), "f32", &options)
    };
    let line = match open(&request) {
        Ok(backend) => format!("opened {}", backend.description().numerics_id),
        Err(fault) => format!("refused {fault}"),
    };
    std::fs::write(std::env::var("CROSSGATE_TEST_OUTPUT").unwrap(), line).unwrap();
}

/// What a process of `program` says that opens a model with these options and variables.
fn opened(program: &Path, options: &str, variables: &[(&str, &Path)]) -> String {
    let output = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new(program);
    command
        .args(["--exact", "child"])
        .env_clear()
        .env(CHILD, options);
    command
        .env("CROSSGATE_TEST_OUTPUT", output.path())
        .envs(variables.iter().copied());
    let done = command.output().unwrap();
    assert!(
        done.status.success(),
        "{}: {}",
        done.status,
        String::from_utf8_lossy(&done.stderr)
    );
    std::fs::read_to_string(output.path()).unwrap()
}

/// The library that this process finds.
fn loaded() -> PathBuf {
    library::load(None, Path::new("")).unwrap().path
}

fn this() -> PathBuf {
    std::env::current_exe().unwrap()
}

#[track_caller]
fn check(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "{said:?} lacks {word:?}");
    }
}

/// A library of this source.
fn build(dir: &Path, source: &str) -> PathBuf {
    let (from, to) = (dir.join("library.rs"), dir.join("libonnxruntime.so"));
    std::fs::write(&from, source).unwrap();
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    let built = command
        .arg("--cap-lints=allow")
        .args(["--edition=2024", "--crate-type=cdylib", "-o"])
        .arg(&to)
        .arg(&from)
        .status();
    assert!(built.unwrap().success());
    to
}

/// A library with the one function by which ONNX Runtime is known, which returns what `base` says.
fn look_alike(base: &str) -> String {
    format!(
        r#"
#[repr(C)] pub struct Base {{ api: extern "C" fn(u32) -> *const u8, version: extern "C" fn() -> *const u8 }}
extern "C" fn api(_: u32) -> *const u8 {{ std::ptr::null() }}
extern "C" fn version() -> *const u8 {{ c"1.10.0".as_ptr().cast() }}
static BASE: Base = Base {{ api, version }};
#[unsafe(no_mangle)] pub extern "C" fn OrtGetApiBase() -> *const Base {{ {base} }}
"#
    )
}

#[test]
fn a_variable_that_names_no_library_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text.so");
    std::fs::write(&text, "not a library").unwrap();
    let nowhere = Path::new("/nonexistent/libonnxruntime.so");
    for path in [nowhere, text.as_path()] {
        let said = opened(&this(), "{}", &[("ORT_DYLIB_PATH", path)]);
        let (path, why) = (path.to_str().unwrap(), "cannot be loaded");
        check(
            &said,
            &[
                "refused",
                "(unsupported)",
                path,
                "ORT_DYLIB_PATH",
                why,
                "make onnxruntime",
            ],
        );
    }
}

#[test]
fn libraries_that_are_not_onnx_runtime_or_too_old_are_refused() {
    let cases = [
        ("pub fn nothing() {}".to_owned(), "no OrtGetApiBase"),
        (look_alike("std::ptr::null()"), "returns nothing"),
        (
            look_alike("&BASE"),
            "it is ONNX Runtime 1.10.0, and 1.20 or newer is needed",
        ),
    ];
    for (source, why) in cases {
        let dir = tempfile::tempdir().unwrap();
        let path = build(dir.path(), &source);
        let said = opened(&this(), "{}", &[("ORT_DYLIB_PATH", &path)]);
        check(
            &said,
            &[
                "refused",
                "(unsupported)",
                path.to_str().unwrap(),
                why,
                "make onnxruntime",
            ],
        );
    }
}

#[test]
fn an_option_that_names_no_library_is_a_bad_request() {
    let said = opened(
        &this(),
        r#"{"library":"/nonexistent/libonnxruntime.so"}"#,
        &[],
    );
    check(
        &said,
        &[
            "refused",
            "(bad_request)",
            "/nonexistent/libonnxruntime.so",
            "options.library",
        ],
    );
}

#[test]
fn an_option_comes_before_the_variable() {
    if !has_runtime() {
        return;
    }
    let path = loaded();
    let options = format!("{{\"library\":{:?}}}", path.display().to_string());
    let said = opened(
        &this(),
        &options,
        &[("ORT_DYLIB_PATH", Path::new("/nonexistent"))],
    );
    check(&said, &["opened ort-coreml-"]);
}

/// Away from the source tree: a Python environment's wheel is found, and before it what lies beside the program.
#[test]
fn places_are_tried_in_order() {
    if !has_runtime() {
        return;
    }
    let path = loaded().canonicalize().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let capi = dir
        .path()
        .join("venv/lib/python3.12/site-packages/onnxruntime/capi");
    let bin = dir.path().join("bin");
    std::fs::create_dir_all(&capi).unwrap();
    std::fs::create_dir_all(&bin).unwrap();
    std::fs::hard_link(this(), bin.join("program"))
        .or_else(|_| std::fs::copy(this(), bin.join("program")).map(|_| ()))
        .unwrap();
    let program = bin.join("program");
    std::os::unix::fs::symlink(&path, capi.join(path.file_name().unwrap())).unwrap();
    let venv = dir.path().join("venv");
    check(
        &opened(&program, "{}", &[("VIRTUAL_ENV", &venv)]),
        &["opened ort-coreml-"],
    );
    // What is beside the program is tried first; as it is no library, the next place's is taken.
    std::fs::write(bin.join("libonnxruntime.so.1.99.0"), "broken").unwrap();
    check(
        &opened(&program, "{}", &[("VIRTUAL_ENV", &venv)]),
        &["opened ort-coreml-"],
    );
    std::fs::remove_file(capi.join(path.file_name().unwrap())).unwrap();
    let said = opened(&program, "{}", &[("VIRTUAL_ENV", &venv)]);
    if said.starts_with("refused") {
        let first = said.find("libonnxruntime.so.1.99.0 (beside the program)");
        let last = said.find("(the system's loader)");
        assert!(first.is_some() && first < last, "{said}");
    }
}

/// The host runs a copy of the plugin, and says where users have put it.
#[test]
fn what_lies_beside_the_plugin_comes_before_the_program_s() {
    if !has_runtime() {
        return;
    }
    let path = loaded().canonicalize().unwrap();
    let name = path.file_name().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (bin, plugins) = (dir.path().join("bin"), dir.path().join("plugins"));
    let folder = plugins.join("onnxruntime");
    std::fs::create_dir_all(&bin).unwrap();
    std::fs::create_dir_all(&folder).unwrap();
    let program = bin.join("program");
    std::fs::copy(this(), &program).unwrap();
    std::fs::write(bin.join("libonnxruntime.so"), "broken").unwrap();
    let said = |library: &Path| {
        std::os::unix::fs::symlink(&path, library).unwrap();
        let said = opened(&program, "{}", &[(PLUGIN_DIR, &plugins)]);
        std::fs::remove_file(library).unwrap();
        said
    };
    check(&said(&plugins.join(name)), &["opened ort-coreml-"]);
    check(&said(&folder.join(name)), &["opened ort-coreml-"]);
    // What is none is passed over, and named in its place.
    std::fs::write(plugins.join("libonnxruntime.so"), "broken").unwrap();
    check(&said(&folder.join(name)), &["opened ort-coreml-"]);
    let said = opened(&program, "{}", &[(PLUGIN_DIR, &plugins)]);
    if said.starts_with("refused") {
        let first = said.find("plugins/libonnxruntime.so (beside the plugin)");
        let second = said.find("bin/libonnxruntime.so (beside the program)");
        assert!(first.is_some() && first < second, "{said}");
    }
}

/// `ort` keeps the first library for ever.
#[test]
fn a_second_library_is_refused() {
    if !has_runtime() {
        return;
    }
    let dir = BERT.dir();
    let loaded = loaded();
    let same = format!("{{\"library\":{:?}}}", loaded.display().to_string());
    assert!(open(&request(dir.path(), "f32", &same)).is_ok());
    refused(
        &request(
            dir.path(),
            "f32",
            r#"{"library":"/other/libonnxruntime.so"}"#,
        ),
        FaultCode::BadRequest,
        &[
            "/other/libonnxruntime.so",
            "loaded",
            loaded.to_str().unwrap(),
            "start it again",
        ],
    );
}
