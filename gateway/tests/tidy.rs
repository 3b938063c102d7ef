//! The rules of dependence, read from `cargo metadata` and from the modules' own imports.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Modules that use no stage. Each may use those before it.
const GROUND: [&str; 10] = [
    "digest",
    "sync",
    "score",
    "load",
    "control",
    "config",
    "model",
    "runtime",
    "telemetry",
    "shared",
];
/// The way of a request: each may use those after it.
const WAY: [&str; 8] = [
    "edge",
    "intake",
    "windows",
    "cache",
    "admit",
    "tokenize",
    "generation",
    "host",
];
/// Stages whose time is `runtime::now`, which tests stop.
const TIMED: [&str; 6] = [
    "intake",
    "windows",
    "cache",
    "admit",
    "tokenize",
    "generation",
];
/// Whatever composes: may use everything, and nothing above uses it.
const TOP: [&str; 4] = ["app", "bench", "offline", "cli"];
/// Crates that only some modules may name.
const OWNERS: [(&str, &[&str]); 15] = [
    ("shuttle", &["sync"]),
    ("moka", &["cache"]),
    ("axum", &["edge"]),
    ("hyper", &["edge"]),
    ("hyper_util", &["edge"]),
    ("tonic", &["edge"]),
    ("tower_http", &["edge"]),
    ("tokio_rustls", &["edge"]),
    ("async_compression", &["edge"]),
    ("prost", &["edge"]),
    ("utoipa", &["edge"]),
    ("libloading", &["host"]),
    ("clap", &["cli"]),
    ("tokenizers", &["model"]),
    ("redis", &["shared"]),
];
/// Files in which `unsafe` may stand; ARCHITECTURE.md names them too.
const UNSAFE_DIRS: [&str; 9] = [
    "backend-api/src/abi.rs",
    "backend-api/src/guard.rs",
    "backend-api/src/host",
    "gateway/src/host/image.rs",
    "plugins/cpu-int8/src/kernel",
    "plugins/cpu-int8/src/gemm",
    "plugins/candle/src/block/product.rs",
    "plugins/candle/src/cuda/driver",
    "plugins/ort-coreml/src/native",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All Rust files below `dir` of the repository, as (path from the repository's root, text).
fn sources(dir: &str) -> Vec<(String, String)> {
    let (root, mut found, mut dirs) = (root(), Vec::new(), vec![root().join(dir)]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
        {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&root).unwrap().display().to_string();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(!found.is_empty(), "no Rust files below {dir}");
    found
}

/// What a file is made of outside comments and its unit tests.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The module of a file of the gateway: `gateway/src/edge/wire.rs` is of `edge`.
fn module(path: &str) -> &str {
    let below = path.strip_prefix("gateway/src/").unwrap();
    below.split(['/', '.']).next().unwrap()
}

/// Modules that `code` names as `crate::module`, also inside `use crate::{a, b}`.
fn used(code: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        let list = after
            .strip_prefix('{')
            .and_then(|list| list.split('}').next());
        for path in
            list.unwrap_or(after)
                .split(',')
                .take(if list.is_some() { usize::MAX } else { 1 })
        {
            let name: String = path
                .trim()
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            names.insert(name);
        }
    }
    names
}

#[test]
fn imports_point_downstream() {
    let mut wrong = Vec::new();
    for (path, text) in sources("gateway/src") {
        let from = module(&path);
        if ["lib", "main"].contains(&from) || TOP.contains(&from) {
            continue;
        }
        let ground = GROUND.iter().position(|name| *name == from);
        let stage = WAY.iter().position(|name| *name == from);
        assert!(
            ground.is_some() || stage.is_some(),
            "{path}: the module {from} has no place in this test's lists"
        );
        for to in used(&code(&text)) {
            let allowed = match (
                GROUND.iter().position(|name| *name == to),
                WAY.iter().position(|name| *name == to),
            ) {
                (Some(to), _) => stage.is_some() || ground >= Some(to),
                (_, Some(to)) => stage.is_some_and(|from| from <= to),
                _ => !TOP.contains(&to.as_str()),
            };
            if !allowed {
                wrong.push(format!("{path} uses {to}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "imports that point upstream:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn foreign_crates_stay_in_their_modules() {
    let mut wrong = Vec::new();
    for (path, text) in sources("gateway/src") {
        let code = code(&text);
        for (name, owners) in OWNERS {
            let named =
                code.contains(&format!("use {name}::")) || code.contains(&format!("{name}::"));
            // `crate::…::hyper::` would be ours; no module of ours is called like a crate.
            if named && !owners.contains(&module(&path)) {
                wrong.push(format!(
                    "{path} names {name}, which belongs to {}",
                    owners.join(", ")
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn stages_have_one_clock() {
    let of_stages = sources("gateway/src").into_iter().filter(|(path, text)| {
        let is_test = path.ends_with("/tests.rs") || path.contains("/tests/");
        !is_test && TIMED.contains(&module(path)) && code(text).contains("Instant::now")
    });
    let wrong: Vec<_> = of_stages.map(|(path, _)| path).collect();
    assert!(
        wrong.is_empty(),
        "they read a clock that no test can stop: {wrong:?}"
    );
}

#[test]
fn crates_depend_as_the_plan_says() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    let mut normal: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        let dependencies = package["dependencies"].as_array().unwrap().iter();
        let names = dependencies.filter(|dependency| dependency["kind"].is_null());
        let names = names
            .map(|dependency| dependency["name"].as_str().unwrap().to_owned())
            .collect();
        normal.insert(package["name"].as_str().unwrap().to_owned(), names);
    }
    let ours: BTreeSet<String> = normal.keys().cloned().collect();
    assert_eq!(
        normal["backend-api"],
        BTreeSet::from(["abi_stable".to_owned()]),
        "backend-api stands on abi_stable alone"
    );
    for (name, dependencies) in &normal {
        let mut allowed = BTreeSet::new();
        if !["backend-api", "loadtest"].contains(&name.as_str()) {
            allowed.insert("backend-api".to_owned());
        }
        // A few lines each, of what they share.
        if name.starts_with("candle-") && name != "candle-plugin" {
            allowed.insert("candle-plugin".to_owned());
        }
        let of_ours: BTreeSet<_> = dependencies.intersection(&ours).cloned().collect();
        assert!(
            of_ours.is_subset(&allowed),
            "{name} depends on {of_ours:?}, allowed is {allowed:?}"
        );
        let names_abi_stable = dependencies.contains("abi_stable");
        assert!(
            name == "backend-api" || !names_abi_stable,
            "{name} uses abi_stable itself"
        );
    }
}

#[test]
fn panics_unwind() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let set = manifest
        .lines()
        .map(|line| line.split('#').next().unwrap())
        .any(|line| line.trim().starts_with("panic"));
    assert!(
        !set,
        "Cargo.toml sets `panic`: the fence around plugin code needs to unwind"
    );
}

#[test]
fn unsafe_stands_in_named_files() {
    let mut wrong = Vec::new();
    for dir in ["backend-api/src", "gateway/src", "plugins", "loadtest/src"] {
        for (path, text) in sources(dir) {
            let code = code(&text);
            let has = [
                "unsafe {",
                "unsafe fn",
                "unsafe impl",
                "unsafe trait",
                "unsafe(",
            ]
            .iter()
            .any(|form| code.contains(form));
            if has
                && path.contains("/src/")
                && !UNSAFE_DIRS.iter().any(|allowed| path.starts_with(allowed))
            {
                wrong.push(path);
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "unsafe code outside the named files: {wrong:?}"
    );
    let plan = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    for dir in UNSAFE_DIRS {
        assert!(plan.contains(dir), "ARCHITECTURE.md does not name {dir}");
    }
}

#[test]
fn files_fit_a_desk() {
    let dirs = [
        "backend-api",
        "gateway/src",
        "gateway/tests",
        "plugins",
        "loadtest",
    ];
    let long: Vec<_> = dirs
        .iter()
        .flat_map(|dir| sources(dir))
        .filter(|(_, text)| text.lines().count() > 500)
        .map(|(path, text)| format!("{path}: {} lines", text.lines().count()))
        .collect();
    assert!(
        long.is_empty(),
        "a file over 500 lines is a sign that a noun is missing:\n{}",
        long.join("\n")
    );
}
