//! Plugins and a host that are built against another version of this crate.

pub(crate) mod libraries;

use backend_api::abi::{ABI_MAJOR, ABI_MINOR};
use libraries::{
    ROOT, block, built, cargo_build, copy_lock, file_name, profiles, read, scratch, write,
};
use std::env::consts::EXE_SUFFIX;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};

const CRATE: &str = env!("CARGO_MANIFEST_DIR");

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

/// The example built against version 1.3, which knew nothing of `devices`.
pub(crate) static OLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let minor = format!("ABI_MINOR: u32 = {ABI_MINOR};");
    let edits = [
        ("abi.rs", minor.as_str(), "ABI_MINOR: u32 = 3;"),
        (
            "abi.rs",
            "    /// Since 1.4: an older plugin tells of no device.\n    fn devices(&self) -> RResult<RVec<Facts>, AbiFault> {\n        RResult::ROk(RVec::new())\n    }\n",
            "",
        ),
        (
            "abi.rs",
            "fn devices(&self) -> RResult<RVec<Facts>, AbiFault> {\n        let",
            "} impl FencedBackend { fn unheard_of(&self) -> RResult<RVec<Facts>, AbiFault> {\n        let",
        ),
        (
            "host.rs",
            "DeviceState::from_crossing(&crossed(self.backend.devices())?)",
            "DeviceState::from_crossing(&[])",
        ),
    ];
    edited("older", "1.3.0", &edits)
});

/// A host of the next minor version: loads each file that it is given and runs the suite on it.
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

// === packages of their own ===

/// A package in a workspace of its own, which shares profiles and locked versions with ours: the same
/// dependencies, built the same way, are not built again.
fn package(name: &str, manifest: &str, lib: &str) -> PathBuf {
    let folder = scratch("packages").join(name);
    let manifest = format!("{manifest}\n[workspace]\n\n{}", profiles());
    write(&folder.join("Cargo.toml"), &manifest);
    write(&folder.join("src/lib.rs"), lib);
    copy_lock(&folder);
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
        &block(&read(&Path::new(ROOT).join("plugins/README.md")), "rust"),
    );
    write(
        &folder.join("src/bin/host.rs"),
        &HOST.replace("LIBRARY", library),
    );
    build_aside(&folder, &[file_name(library), format!("host{EXE_SUFFIX}")])
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
fn build_aside(folder: &Path, files: &[String]) -> PathBuf {
    // Packages make files of one name (`host`) in one folder: between its making and its moving, no other
    // test may make its own.
    let _one_at_a_time = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    cargo_build(&folder.join("Cargo.toml"), &[]);
    for file in files {
        let place = folder.join(file);
        // What cargo made an earlier time is the same file under two names, and to rename one of these to the
        // other does nothing.
        if fs::exists(&place).expect("a folder of ours can be looked into") {
            fs::remove_file(&place).expect("a file of ours can be removed");
        }
        fs::rename(built(file), place).expect("a file can be moved within the target directory");
    }
    folder.join(&files[0])
}
