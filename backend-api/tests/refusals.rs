//! Real files through [`PluginLibrary::load`]: what is no plugin for this host is refused with a
//! sentence, and what is one works.

mod support;

use abi_stable::library::ROOT_MODULE_LOADER_NAME;
use backend_api::abi::{ABI_MAJOR, ABI_MINOR, AbiStamp, STAMP_SYMBOL};
use backend_api::conformance::{self, Subject};
use backend_api::host::{LoadCause, LoadError};
use backend_api::{OpenRequest, PluginLibrary};
use std::fs;
use std::mem::discriminant;
use std::path::Path;
use std::process::Command;
use support::libraries::{
    self, FAKE, HEADER_SYMBOL, SHORT, cargo_of_stranger, file, impostor, with_foreign_header,
    with_stamp, with_symbol,
};
use support::{CHANGED, GROWN, GROWN_HOST, OLDER};

/// The kinds of refusal, without what they carry.
fn not_a_library() -> LoadCause {
    LoadCause::NotALibrary(String::new())
}
fn not_a_plugin() -> LoadCause {
    LoadCause::NotAPlugin(String::new())
}
fn changed_layout() -> LoadCause {
    LoadCause::ChangedLayout(String::new())
}

fn refusal(path: &Path) -> LoadError {
    match PluginLibrary::load(path) {
        Ok(library) => panic!("{} loads as {:?}", path.display(), library.card()),
        Err(error) => error,
    }
}

/// Refused for this kind of reason, in a sentence that names the file and has these parts: what was
/// found, and what is needed.
#[track_caller]
fn check_refused(path: &Path, kind: &LoadCause, parts: &[&str]) {
    let error = refusal(path);
    assert_eq!(discriminant(&error.cause), discriminant(kind), "{error}");
    assert_eq!(error.path, path);
    let text = error.to_string();
    let name = path
        .file_name()
        .expect("a file has a name")
        .to_string_lossy();
    for part in parts.iter().chain([&&*name]) {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
    assert!(
        !text.contains(['\n', '\t']) && text.len() < 1_500,
        "{text:?} is no sentence"
    );
}

// === no library ===

#[test]
fn a_missing_file() {
    check_refused(
        Path::new("/nowhere/libnothing.so"),
        &not_a_library(),
        &["shared library for", "No such file"],
    );
}
#[test]
fn a_folder() {
    check_refused(
        Path::new(env!("CARGO_MANIFEST_DIR")),
        &not_a_library(),
        &["irectory"],
    );
}
#[test]
fn an_empty_file() {
    check_refused(
        &file("empty", b""),
        &not_a_library(),
        &[std::env::consts::ARCH],
    );
}
#[test]
fn a_text() {
    check_refused(
        &file(
            "text",
            &b"no library, but long enough for a header\n".repeat(20),
        ),
        &not_a_library(),
        &[std::env::consts::OS],
    );
}

/// A copy that was cut short: the gateway never offers one, but a user may. Linux's loader would map it.
#[test]
fn a_truncated_plugin() {
    let whole = fs::read(&*FAKE).expect("the fake can be read");
    for (name, length) in [
        ("header", 60),
        ("table", 300),
        ("twentieth", whole.len() / 20),
        ("half", whole.len() / 2),
        ("almost", whole.len() - 1),
    ] {
        check_refused(
            &file(&format!("cut-at-{name}"), &whole[..length]),
            &not_a_library(),
            &["shared library for"],
        );
    }
}

/// Whole, and nothing wrong with it but that it is for another machine.
#[cfg(target_os = "linux")]
#[test]
fn a_plugin_for_another_processor() {
    // `e_machine` of the file's header; 0x5a5a is nobody's.
    let mut bytes = fs::read(&*FAKE).expect("the fake can be read");
    bytes[18..20].copy_from_slice(&[0x5a, 0x5a]);
    check_refused(
        &file("another-processor", &bytes),
        &not_a_library(),
        &["shared library for linux on", std::env::consts::ARCH],
    );
}

// === no plugin ===

#[test]
fn a_library_of_somebody_else() {
    check_refused(
        &impostor("stranger", "pub fn nothing() {}"),
        &not_a_plugin(),
        &["no symbol", STAMP_SYMBOL],
    );
}
#[test]
fn another_magic_number() {
    let path = impostor(
        "magic",
        &with_stamp(AbiStamp {
            magic: 7,
            ..AbiStamp::CURRENT
        }),
    );
    check_refused(&path, &not_a_plugin(), &["magic number", STAMP_SYMBOL]);
}
/// Shorter than a stamp, shorter than its first field, or code: it is looked at no further than is safe.
#[test]
fn something_else_under_the_stamps_name() {
    for (name, item) in [
        ("byte", "static STAMP: u8 = 1;"),
        ("odd", "static STAMP: [u8; 3] = [1, 2, 3];"),
        ("writable", "static mut STAMP: u32 = 1;"),
        ("function", "extern \"C\" fn stamp() -> u32 { 1 }"),
    ] {
        check_refused(
            &impostor(name, &with_symbol(item)),
            &not_a_plugin(),
            &[STAMP_SYMBOL],
        );
    }
}

// === a plugin for another host ===

#[test]
fn another_major() {
    for major in [ABI_MAJOR - 1, ABI_MAJOR + 1, u32::MAX] {
        let path = impostor(
            &format!("major-{major}"),
            &with_stamp(AbiStamp {
                major,
                minor: 7,
                ..AbiStamp::CURRENT
            }),
        );
        let (found, needed) = (
            format!("interface {major}.7"),
            format!("needs plugin interface {ABI_MAJOR}.{ABI_MINOR}"),
        );
        check_refused(
            &path,
            &LoadCause::OtherMajor { found: (0, 0) },
            &[&found, &needed, "rebuild it"],
        );
    }
}
#[test]
fn a_plugin_that_needs_a_newer_host() {
    let (minor, host_minor_min) = (ABI_MINOR + 3, ABI_MINOR + 2);
    let path = impostor(
        "newer",
        &with_stamp(AbiStamp {
            minor,
            host_minor_min,
            ..AbiStamp::CURRENT
        }),
    );
    let (found, needed) = (
        format!("interface {ABI_MAJOR}.{minor}"),
        format!("{ABI_MAJOR}.{host_minor_min} or newer"),
    );
    let kind = LoadCause::HostTooOld {
        found: (0, 0),
        host_minor_min: 0,
    };
    check_refused(&path, &kind, &[&found, &needed, "update the server"]);
}
#[test]
fn a_stamp_and_nothing_behind_it() {
    check_refused(
        &impostor("hollow", &with_stamp(AbiStamp::CURRENT)),
        &not_a_plugin(),
        &["no root module", "export_plugin!"],
    );
}
/// A newer minor that asks for nothing new passes the version rule: what stops this one is the next check.
#[test]
fn a_newer_minor_is_no_reason() {
    let path = impostor(
        "minor",
        &with_stamp(AbiStamp {
            minor: ABI_MINOR + 9,
            ..AbiStamp::CURRENT
        }),
    );
    check_refused(&path, &not_a_plugin(), &["no root module"]);
}
#[test]
fn another_abi_stable() {
    assert_eq!(HEADER_SYMBOL, ROOT_MODULE_LOADER_NAME);
    let path = impostor("other-abi-stable", &with_foreign_header());
    check_refused(
        &path,
        &changed_layout(),
        &["abi_stable's ABI 0.0", "unchanged backend-api"],
    );
}
/// The version says 1, the types say otherwise: a field more in the batch.
#[test]
fn a_changed_struct() {
    check_refused(
        &CHANGED,
        &changed_layout(),
        &["AbiBatch", "expected 80, found 88", "unchanged backend-api"],
    );
}

/// Its constructors have run, so a refused image stays.
#[cfg(target_os = "linux")]
#[test]
fn a_refused_image_stays_mapped() {
    let path = impostor(
        "stays",
        &with_stamp(AbiStamp {
            major: 99,
            ..AbiStamp::CURRENT
        }),
    );
    refusal(&path);
    let maps = fs::read_to_string("/proc/self/maps").expect("Linux says what is mapped");
    assert!(
        maps.contains(&*path.to_string_lossy()),
        "{} was unmapped",
        path.display()
    );
}

// === plugins ===

fn load(path: &Path) -> PluginLibrary {
    PluginLibrary::load(path).unwrap_or_else(|error| panic!("{error}"))
}

fn check_conforms(library: &PluginLibrary, options: &str, vocab_size: u32) {
    let request = OpenRequest {
        options: options.to_owned(),
        row_tokens_max: 64,
        ..OpenRequest::default()
    };
    conformance::run(&Subject {
        library,
        request,
        vocab_size,
        type_vocab_size: 2,
        tolerance: 0.0,
    });
}

#[test]
fn two_plugins_at_once() {
    let (fake, short) = (load(&FAKE), load(&SHORT));
    assert_eq!(
        (fake.card().name.as_str(), short.card().name.as_str()),
        ("fake", "short")
    );
    std::thread::scope(|scope| {
        scope.spawn(|| check_conforms(&fake, r#"{"vocab_size":1000}"#, 1_000));
        scope.spawn(|| check_conforms(&short, "{}", 30_522));
    });
}

#[test]
fn the_same_file_twice() {
    let (first, second) = (load(&FAKE), load(&FAKE));
    assert_eq!(first.card(), second.card());
    let request = OpenRequest::default();
    let backends = [&first, &second].map(|library| library.open(&request).expect("the fake opens"));
    drop(first);
    for backend in backends {
        assert!(
            backend.worker().is_ok(),
            "a backend outlives the library value it was opened by"
        );
    }
}

/// Built against the next minor version, with a function and a method more at the end: works here.
#[test]
fn a_plugin_of_the_next_minor_version() {
    check_conforms(&load(&GROWN), "{}", 30_522);
}

/// Built against 1.3: what it lacks is not called, and it tells of no device.
#[test]
fn a_plugin_of_an_older_minor_version() {
    let library = load(&OLDER);
    check_conforms(&library, "{}", 30_522);
    let backend = library.open(&OpenRequest::default()).expect("it opens");
    assert_eq!(backend.devices(), Ok(Vec::new()));
}

/// And the other way round: a host of the next minor version runs the plugins of today.
#[test]
fn a_host_of_the_next_minor_version() {
    let output = Command::new(&*GROWN_HOST)
        .args([&*SHORT, &*GROWN, &*SHORT])
        .output()
        .expect("the host starts");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A compiler lays out Rust's own types as it likes, so none of them may cross: here it does so at random, and
/// beside it are the compilers that `COMPILERS` names by their paths. Each builds everything again.
#[test]
#[ignore = "builds everything again for each compiler: make test-compilers"]
fn plugins_of_other_compilers() {
    let named = std::env::var("COMPILERS").unwrap_or_default();
    let named = named.split_whitespace().map(|path| (Some(path), ""));
    let at_random = ["7", "8"].map(|seed| (None, seed));
    for (number, (compiler, seed)) in at_random.into_iter().chain(named).enumerate() {
        let target = libraries::scratch("compilers").join(number.to_string());
        let mut cargo = cargo_of_stranger("build");
        cargo.args(["--quiet", "--ignore-rust-version", "--target-dir"]);
        cargo.arg(&target).env("CARGO_BUILD_BUILD_DIR", &target);
        match compiler {
            Some(path) => cargo.env("RUSTC", path),
            None => cargo.env("RUSTC_BOOTSTRAP", "1").env(
                "RUSTFLAGS",
                format!("-Zrandomize-layout -Zlayout-seed={seed}"),
            ),
        };
        libraries::succeed(&mut cargo);
        let built = target.join("debug").join(libraries::file_name("short"));
        check_conforms(&load(&built), "{}", 30_522);
    }
}

/// Without unwinding the fence catches nothing, and the host could not tell: so it is no plugin at all.
#[test]
fn a_plugin_that_aborts_on_panic_does_not_compile() {
    let (_, profile) = libraries::target_and_profile();
    let mut cargo = cargo_of_stranger("rustc");
    // For the plugin alone: what it is made from stays as it was built for the others.
    cargo.args([
        "--lib",
        "--quiet",
        "--profile",
        &profile,
        "--",
        "-Cpanic=abort",
    ]);
    let output = cargo.output().expect("cargo starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "it was built: {said}");
    assert!(said.contains("needs panic = \"unwind\""), "{said}");
}

/// The example of the contract is the one of `plugins/README.md`, which is built and loaded above.
#[test]
fn both_pages_show_one_example() {
    let pages = ["README.md", "../plugins/README.md"].map(|page| {
        libraries::block(
            &libraries::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join(page)),
            "rust",
        )
    });
    assert!(
        pages[0].starts_with(&pages[1]),
        "the examples differ:\n{}\n---\n{}",
        pages[0],
        pages[1]
    );
}
