//! Library files to load: real plugins built by cargo, and impostors built by rustc. Used by the tests of
//! this crate and of the gateway.
//!
//! Everything is built into the target directory that the test runs from, so that dependencies are
//! compiled once and a second run builds nothing.
#![allow(dead_code, reason = "each test uses a part of it")]

use backend_api::abi::{AbiStamp, STAMP_SYMBOL};
use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

/// The repository, from any crate in a folder of its own.
pub(crate) const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The name under which abi_stable looks for a library's header.
pub(crate) const HEADER_SYMBOL: &str = "_1as_0lib_1header_0root_bmodule_bloader";

/// `plugins/fake`, as users get it.
pub(crate) static FAKE: LazyLock<PathBuf> = LazyLock::new(|| {
    cargo_build(&Path::new(ROOT).join("Cargo.toml"), &["-p", "fake"]);
    built(&file_name("fake"))
});

/// The folder of somebody who reads `plugins/README.md` and writes what stands there: outside the tree, in
/// no workspace, beside a clone of the repository (a link to it), with the three blocks as they are.
pub(crate) static STRANGER: LazyLock<PathBuf> = LazyLock::new(|| {
    let readme = read(&Path::new(ROOT).join("plugins/README.md"));
    let home = outside();
    let clone = home.join("crossgate");
    let root = fs::canonicalize(ROOT).expect("the repository is somewhere");
    if fs::read_link(&clone).ok().as_ref() != Some(&root) {
        let _ = fs::remove_file(&clone);
        symlink(root, &clone).expect("a link can be made");
    }
    // A machine's own settings, which no stranger has to have. Only what he makes lies in his folder; what
    // it is made from is built with ours. The lock file names versions that are on this machine already.
    let settings = format!(
        "[build]\nbuild-dir = {:?}\n\n[net]\noffline = true\n\n{}",
        target_and_profile().0,
        profiles()
    );
    write(&home.join(".cargo/config.toml"), &settings);
    let folder = home.join("short");
    write(&folder.join("Cargo.toml"), &block(&readme, "toml"));
    write(&folder.join("src/lib.rs"), &block(&readme, "rust"));
    write(
        &folder.join("tests/conformance.rs"),
        &block(&readme, "rust,ignore"),
    );
    copy_lock(&folder);
    folder
});

/// The example of `plugins/README.md`, word for word, built as a stranger builds it.
pub(crate) static SHORT: LazyLock<PathBuf> = LazyLock::new(|| {
    let (_, profile) = target_and_profile();
    succeed(cargo_of_stranger("build").args(["--quiet", "--profile", &profile]));
    STRANGER
        .join("target")
        .join(folder_of(&profile))
        .join(file_name("short"))
});

/// A command of cargo's in the stranger's folder, where nothing of this test's own run is set.
pub(crate) fn cargo_of_stranger(command: &str) -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.arg(command);
    of_stranger(&mut cargo);
    cargo
}

/// Has a command run where the stranger would.
pub(crate) fn of_stranger(command: &mut Command) {
    command.current_dir(&*STRANGER);
    for ours in [
        "CARGO_TARGET_DIR",
        "CARGO_BUILD_TARGET_DIR",
        "CARGO_BUILD_BUILD_DIR",
    ] {
        command.env_remove(ours);
    }
}

/// A folder outside the tree, the same in each run: cargo builds anew what lies elsewhere.
fn outside() -> PathBuf {
    let mut hasher = DefaultHasher::new();
    env!("CARGO_TARGET_TMPDIR").hash(&mut hasher);
    let folder = std::env::temp_dir().join(format!("crossgate-stranger-{:016x}", hasher.finish()));
    fs::create_dir_all(&folder).expect("the temporary folder can be written");
    folder
}

// === impostors ===

/// A library of its own, without any of our crates, from this source.
pub(crate) fn impostor(name: &str, source: &str) -> PathBuf {
    let folder = scratch("impostors");
    let (file, library) = (
        folder.join(format!("{name}.rs")),
        folder.join(file_name(name)),
    );
    write(&file, source);
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc
        .args(["--edition=2024", "--crate-type=cdylib", "-o"])
        .arg(&library)
        .arg(&file);
    succeed(&mut rustc);
    library
}

/// The source of a library that has something under the stamp's name.
pub(crate) fn with_symbol(item: &str) -> String {
    format!("#[unsafe(export_name = \"{STAMP_SYMBOL}\")]\npub {item}\n")
}

/// The source of a library that has this stamp.
pub(crate) fn with_stamp(stamp: AbiStamp) -> String {
    let AbiStamp {
        magic,
        major,
        minor,
        host_minor_min,
        reserved,
    } = stamp;
    let numbers = [
        u64::from(major) | u64::from(minor) << 32,
        u64::from(host_minor_min) | u64::from(reserved) << 32,
    ];
    with_symbol(&format!(
        "static STAMP: [u64; 3] = [{magic}, {}, {}];",
        numbers[0], numbers[1]
    ))
}

/// The source of a library with today's stamp and another header than abi_stable's of today.
pub(crate) fn with_foreign_header() -> String {
    let header = format!(
        "#[unsafe(export_name = \"{HEADER_SYMBOL}\")]\npub static HEADER: [u64; 64] = [0; 64];\n"
    );
    with_stamp(AbiStamp::CURRENT) + &header
}

/// A file with this content and a library's name.
pub(crate) fn file(name: &str, content: &[u8]) -> PathBuf {
    let path = scratch("files").join(file_name(name));
    fs::write(&path, content).expect("a scratch file can be written");
    path
}

/// The first fenced block of this language.
pub(crate) fn block(readme: &str, language: &str) -> String {
    let start = format!("\n```{language}\n");
    let rest = readme
        .split_once(&start)
        .unwrap_or_else(|| panic!("no {language} block"))
        .1;
    rest.split_once("\n```")
        .unwrap_or_else(|| panic!("an open {language} block"))
        .0
        .to_owned()
        + "\n"
}

// === cargo and rustc ===

pub(crate) fn cargo_build(manifest: &Path, arguments: &[&str]) {
    let (target, profile) = target_and_profile();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--offline", "--quiet", "--profile", &profile]);
    cargo
        .arg("--target-dir")
        .arg(target)
        .arg("--manifest-path")
        .arg(manifest)
        .args(arguments);
    succeed(&mut cargo);
}

pub(crate) fn built(file: &str) -> PathBuf {
    let (target, profile) = target_and_profile();
    target.join(folder_of(&profile)).join(file)
}

fn folder_of(profile: &str) -> &str {
    if profile == "dev" { "debug" } else { profile }
}

/// This test runs from `target/folder/deps/`.
pub(crate) fn target_and_profile() -> (PathBuf, String) {
    let test = std::env::current_exe().expect("a test knows its file");
    let mut folders = test.ancestors().skip(2);
    let profile = folders
        .next()
        .and_then(Path::file_name)
        .expect("target/debug");
    let target = folders.next().expect("target");
    // The one profile whose folder is called otherwise.
    let profile = if profile == "debug" {
        "dev".into()
    } else {
        profile.to_string_lossy()
    };
    (target.to_owned(), profile.into_owned())
}

pub(crate) fn succeed(command: &mut Command) -> Output {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

pub(crate) fn file_name(name: &str) -> String {
    format!("{DLL_PREFIX}{name}{DLL_SUFFIX}")
}

// === files ===

pub(crate) fn scratch(folder: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(folder);
    fs::create_dir_all(&folder).expect("the target directory can be written");
    folder
}

/// The workspace's profiles, which are also a configuration of cargo's: the same dependencies, built the same
/// way, are not built again.
pub(crate) fn profiles() -> String {
    let workspace = read(&Path::new(ROOT).join("Cargo.toml"));
    let mut is_inside = false;
    let of_profiles = |line: &&str| {
        if line.starts_with('[') {
            is_inside = line.starts_with("[profile");
        }
        is_inside
    };
    workspace
        .split_inclusive('\n')
        .filter(of_profiles)
        .collect()
}

/// Gives a package the workspace's locked versions.
pub(crate) fn copy_lock(folder: &Path) {
    // Cargo rewrites its copy, so what it was copied from is kept beside it.
    let lock = read(&Path::new(ROOT).join("Cargo.lock"));
    if write(&folder.join("Cargo.lock.copied"), &lock) {
        write(&folder.join("Cargo.lock"), &lock);
    }
}

pub(crate) fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Leaves an equal file alone, so that cargo sees nothing new. Says whether it wrote.
pub(crate) fn write(path: &Path, text: &str) -> bool {
    fs::create_dir_all(path.parent().expect("a file lies in a folder"))
        .expect("a folder can be made");
    let stale = fs::read_to_string(path).ok().as_deref() != Some(text);
    if stale {
        fs::write(path, text).expect("a scratch file can be written");
    }
    stale
}
