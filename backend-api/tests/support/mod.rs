//! Library files to load: real plugins built by cargo, and impostors built by rustc.
//!
//! Everything is built into the target directory that this test runs from, so that dependencies are
//! compiled once and a second run builds nothing.

use backend_api::abi::{ABI_MAJOR, ABI_MINOR};
use std::env::consts::{DLL_PREFIX, DLL_SUFFIX, EXE_SUFFIX};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex, PoisonError};

const CRATE: &str = env!("CARGO_MANIFEST_DIR");

/// `plugins/fake`, as users get it.
pub(crate) static FAKE: LazyLock<PathBuf> = LazyLock::new(|| {
    cargo_build(&Path::new(CRATE).join("../Cargo.toml"), &["-p", "fake"]);
    built(&file_name("fake"))
});

/// The example of `plugins/README.md`, word for word, its own test included.
pub(crate) static SHORT: LazyLock<PathBuf> = LazyLock::new(|| {
    let readme = read(&Path::new(CRATE).join("../plugins/README.md"));
    let manifest = block(&readme, "toml").replace("../../backend-api", CRATE);
    let folder = package("short", &manifest, &block(&readme, "rust"));
    write(
        &folder.join("tests/conformance.rs"),
        &block(&readme, "rust,ignore"),
    );
    build_aside(&folder, &[file_name("short")], &["--all-targets"])
});

/// The example built against this crate's sources with one field more in [`AbiBatch`]: what somebody
/// ships who changes the contract without changing its version.
///
/// [`AbiBatch`]: backend_api::abi::AbiBatch
pub(crate) static CHANGED: LazyLock<PathBuf> = LazyLock::new(|| {
    let crossing = "controls: RSlice::from_slice(";
    let edits = [
        (
            "abi.rs",
            "RSlice<'a, RowControl<'a>>,",
            "RSlice<'a, RowControl<'a>>, pub surprise: u64,",
        ),
        (
            "host.rs",
            crossing,
            "surprise: 0, controls: RSlice::from_slice(",
        ),
        (
            "conformance.rs",
            crossing,
            "surprise: 0, controls: RSlice::from_slice(",
        ),
    ];
    edited("changed", env!("CARGO_PKG_VERSION"), &edits)
});

/// The example built against the next minor version: a function and a method more, both at the end.
pub(crate) static GROWN: LazyLock<PathBuf> = LazyLock::new(|| {
    let version = format!("{ABI_MAJOR}.{}.0", ABI_MINOR + 1);
    let minor = format!("ABI_MINOR: u32 = {ABI_MINOR};");
    let next = format!("ABI_MINOR: u32 = {};", ABI_MINOR + 1);
    let trait_end = ";\n}\n\npub type AbiBackendBox";
    let module_end = "}\n\nimpl RootModule for PluginModuleRef";
    let edits = [
        ("abi.rs", minor.as_str(), next.as_str()),
        (
            "abi.rs",
            trait_end,
            &format!(
                ";\n    fn rest(&mut self) -> u32 {{ 0 }}{}",
                &trait_end[1..]
            ),
        ),
        (
            "abi.rs",
            module_end,
            &format!("    pub sleep: extern \"C\" fn() -> u32,\n{module_end}"),
        ),
        (
            "abi.rs",
            "open: Self::open",
            "open: Self::open, sleep: Self::sleep",
        ),
        (
            "abi.rs",
            "extern \"C\" fn card()",
            "extern \"C\" fn sleep() -> u32 { 0 }\n\n    extern \"C\" fn card()",
        ),
        // What an older plugin lacks is missed at run time, where the host asks for it.
        (
            "host.rs",
            "let facts = request.to_facts();",
            "let facts = request.to_facts(); self.module.sleep().map(|sleep| sleep());",
        ),
        (
            "host.rs",
            "crossed(self.worker.score(batch, scores))",
            "self.worker.rest(); crossed(self.worker.score(batch, scores))",
        ),
    ];
    edited("grown", &version, &edits)
});

/// A host of that version: loads each file that it is given and runs the suite on it.
pub(crate) static GROWN_HOST: LazyLock<PathBuf> =
    LazyLock::new(|| LazyLock::force(&GROWN).with_file_name(format!("host{EXE_SUFFIX}")));

const HOST: &str = "
use LIBRARY::{OpenRequest, PluginLibrary, conformance};

fn main() {
    for path in std::env::args_os().skip(1) {
        let library = PluginLibrary::load(path.as_ref()).unwrap_or_else(|error| panic!(\"{error}\"));
        let request = OpenRequest { row_tokens_max: 64, ..OpenRequest::default() };
        let subject = conformance::Subject {
            library: &library,
            request,
            vocab_size: 30_522,
            type_vocab_size: 2,
            tolerance: 0.0,
        };
        conformance::run(&subject);
    }
}
";

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

// === packages of their own ===

/// A package in a workspace of its own, which shares profiles and locked versions with ours: the same
/// dependencies, built the same way, are not built again.
fn package(name: &str, manifest: &str, lib: &str) -> PathBuf {
    let (folder, root) = (scratch("packages").join(name), Path::new(CRATE).join(".."));
    let workspace = read(&root.join("Cargo.toml"));
    let profiles: String = workspace
        .split_inclusive('\n')
        .scan(false, |inside, line| {
            *inside = if line.starts_with('[') {
                line.starts_with("[profile")
            } else {
                *inside
            };
            Some(if *inside { line } else { "" })
        })
        .collect();
    let manifest = format!("{manifest}\n[workspace]\n\n{profiles}");
    write(&folder.join("Cargo.toml"), &manifest);
    write(&folder.join("src/lib.rs"), lib);
    // Cargo rewrites its copy, so what it was copied from is kept beside it.
    let lock = read(&root.join("Cargo.lock"));
    if write(&folder.join("Cargo.lock.copied"), &lock) {
        write(&folder.join("Cargo.lock"), &lock);
    }
    folder
}

/// A file, a text in it, and what stands there instead.
type Edit<'a> = (&'a str, &'a str, &'a str);

/// The example, built against a copy of this crate with these edits, and a host of the same kind. The plugin lives in the crate it is
/// built against, so that one compilation makes both; abi_stable compares the package's name and version.
fn edited(library: &str, version: &str, edits: &[Edit<'_>]) -> PathBuf {
    let dependencies = read(&Path::new(CRATE).join("Cargo.toml"));
    let dependencies = dependencies
        .split_once("[dependencies]")
        .expect("this crate has dependencies")
        .1;
    let dependencies = dependencies.split("\n[").next().unwrap_or_default();
    let manifest = format!(
        "[package]\nname = \"{}\"\nversion = \"{version}\"\nedition = \"2024\"\n\n\
         [lib]\nname = \"{library}\"\ncrate-type = [\"cdylib\", \"rlib\"]\n\n[dependencies]{dependencies}",
        env!("CARGO_PKG_NAME")
    );
    let sources = Path::new(CRATE).join("src");
    let lib = read(&sources.join("lib.rs")) + "extern crate self as backend_api;\nmod plugged;\n";
    let folder = package(library, &manifest, &lib);
    copy_sources(&sources, &folder.join("src"), edits);
    write(&folder.join("README.md"), "");
    write(
        &folder.join("src/plugged.rs"),
        &block(
            &read(&Path::new(CRATE).join("../plugins/README.md")),
            "rust",
        ),
    );
    write(
        &folder.join("src/bin/host.rs"),
        &HOST.replace("LIBRARY", library),
    );
    build_aside(
        &folder,
        &[file_name(library), format!("host{EXE_SUFFIX}")],
        &[],
    )
}

/// Copies all sources but the root.
fn copy_sources(from: &Path, to: &Path, edits: &[Edit<'_>]) {
    for entry in fs::read_dir(from).expect("this crate has sources") {
        let from = entry.expect("a folder can be listed").path();
        let to = to.join(from.file_name().expect("an entry has a name"));
        if from.is_dir() {
            copy_sources(&from, &to, edits);
        } else if !from.ends_with("lib.rs") {
            write(&to, &edit(&from, edits));
        }
    }
}

fn edit(file: &Path, edits: &[Edit<'_>]) -> String {
    edits.iter().filter(|(name, ..)| file.ends_with(name)).fold(
        read(file),
        |text, (name, old, new)| {
            assert_eq!(
                text.matches(old).count(),
                1,
                "{name} does not say {old:?} once"
            );
            text.replace(old, new)
        },
    )
}

static BUILDING: Mutex<()> = Mutex::new(());

/// Builds a package and takes what it makes out of the folder where a user's `--plugin-dir` may look.
/// The first file's new place is returned.
fn build_aside(folder: &Path, files: &[String], arguments: &[&str]) -> PathBuf {
    // Packages make files of one name (`host`) in one folder: between its making and its moving, no other
    // test may make its own.
    let _one_at_a_time = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    cargo_build(&folder.join("Cargo.toml"), arguments);
    for file in files {
        fs::rename(built(file), folder.join(file))
            .expect("a file can be moved within the target directory");
    }
    folder.join(&files[0])
}

// === cargo and rustc ===

fn cargo_build(manifest: &Path, arguments: &[&str]) {
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

fn built(file: &str) -> PathBuf {
    let (target, profile) = target_and_profile();
    let folder = if profile == "dev" { "debug" } else { &profile };
    target.join(folder).join(file)
}

/// This test runs from `target/folder/deps/`.
fn target_and_profile() -> (PathBuf, String) {
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

fn succeed(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn file_name(name: &str) -> String {
    format!("{DLL_PREFIX}{name}{DLL_SUFFIX}")
}

// === files ===

fn scratch(folder: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(folder);
    fs::create_dir_all(&folder).expect("the target directory can be written");
    folder
}

pub(crate) fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Leaves an equal file alone, so that cargo sees nothing new. Says whether it wrote.
fn write(path: &Path, text: &str) -> bool {
    fs::create_dir_all(path.parent().expect("a file lies in a folder"))
        .expect("a folder can be made");
    let stale = fs::read_to_string(path).ok().as_deref() != Some(text);
    if stale {
        fs::write(path, text).expect("a scratch file can be written");
    }
    stale
}
