//! Files that are no plugins for this server, ordered while it serves: real libraries, each with one thing
//! wrong.

use crate::libraries::{impostor, with_foreign_header, with_stamp, with_symbol};
use crate::serving::check_refused;
use crate::{Swapping, file_name};
use backend_api::abi::{ABI_MAJOR, ABI_MINOR, AbiStamp, STAMP_SYMBOL};
use gateway::host::{Host, ImageBounds, Listing, Prober};
use serde_json::{Value, json};
use std::env::consts::DLL_SUFFIX;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

/// A library's source, and what the answer must say.
type Case = (&'static str, String, Vec<String>);

fn case(name: &'static str, source: String, words: &[&str]) -> Case {
    let words = words.iter().map(|&word| word.to_owned()).collect();
    (name, source, words)
}

/// Code that runs when a library is mapped, before anybody has looked at it.
fn at_load(code: &str) -> String {
    let start = "#[unsafe(link_section = \".init_array\")]\n#[used]\nstatic START: extern \"C\" fn() = start;";
    with_stamp(AbiStamp::CURRENT) + &format!("{start}\nextern \"C\" fn start() {{ {code} }}\n")
}

/// Libraries with the stamp's symbol and something wrong with it.
fn stamps() -> Vec<Case> {
    let ours = format!("needs plugin interface {ABI_MAJOR}.{ABI_MINOR}");
    let other = ABI_MAJOR + 1;
    let newer = ABI_MINOR + 1;
    vec![
        case(
            "swap-magic",
            with_stamp(AbiStamp {
                magic: 7,
                ..AbiStamp::CURRENT
            }),
            &["magic number", STAMP_SYMBOL],
        ),
        case(
            "swap-byte",
            with_symbol("static STAMP: u8 = 1;"),
            &["not a Crossgate plugin"],
        ),
        case(
            "swap-major",
            with_stamp(AbiStamp {
                major: other,
                minor: 0,
                ..AbiStamp::CURRENT
            }),
            &[&format!("interface {other}.0"), &ours, "rebuild it"],
        ),
        case(
            "swap-newer",
            with_stamp(AbiStamp {
                minor: newer,
                host_minor_min: newer,
                ..AbiStamp::CURRENT
            }),
            &[
                &format!("{ABI_MAJOR}.{newer} or newer"),
                &ours,
                "update the server",
            ],
        ),
        case(
            "swap-hollow",
            with_stamp(AbiStamp::CURRENT),
            &["no root module", "export_plugin!"],
        ),
        case(
            "swap-header",
            with_foreign_header(),
            &["abi_stable's ABI 0.0"],
        ),
    ]
}

/// Libraries that the dynamic loader does not get through.
fn loads() -> Vec<Case> {
    let calls_nobody = "unsafe extern \"C\" { fn crossgate_nowhere(); }\n\
                        #[unsafe(no_mangle)]\npub extern \"C\" fn call() { unsafe { crossgate_nowhere() } }\n";
    vec![
        case(
            "swap-stranger",
            "pub fn nothing() {}".to_owned(),
            &["not a Crossgate plugin", "holds no symbol", STAMP_SYMBOL],
        ),
        case(
            "swap-unresolved",
            with_stamp(AbiStamp::CURRENT) + calls_nobody,
            &[
                "libswap-unresolved",
                "undefined symbol",
                "crossgate_nowhere",
            ],
        ),
        case(
            "swap-abort",
            at_load("std::process::abort()"),
            &["signal 6 (abort)"],
        ),
        case(
            "swap-segfault",
            at_load("unsafe { std::ptr::with_exposed_provenance_mut::<u8>(8).write_volatile(1) }"),
            &["signal 11 (segmentation fault)"],
        ),
        // Who is left behind holds the pipes of its process open: nobody waits for him.
        case(
            "swap-daemon",
            at_load(
                "_ = std::process::Command::new(\"sleep\").arg(\"600\").spawn(); std::process::abort()",
            ),
            &["signal 6 (abort)"],
        ),
        case(
            "swap-exit",
            at_load("std::process::exit(0)"),
            &["ended with code 0 and without a report"],
        ),
    ]
}

#[test]
fn a_server_starts_beside_a_library_that_takes_its_process_along() {
    let swapping = Swapping::beside(&json!({}), &[], |dir| {
        for (name, source, _) in loads() {
            fs::copy(impostor(name, &source), dir.join(file_name(name))).unwrap();
        }
    });
    assert_eq!(swapping.scores().len(), 2);
    let listed: Value = serde_json::from_str(&swapping.server.admin("/plugins").text).unwrap();
    let row = |name: &str| {
        let mut rows = listed.as_array().unwrap().iter();
        let row = rows.find(|row| row["path"].as_str().unwrap().contains(name));
        row.unwrap()["refused"].as_str().unwrap().to_owned()
    };
    for (name, _, words) in loads() {
        let refused = row(name);
        for word in words {
            assert!(
                refused.contains(&word),
                "{name}: {refused} does not say {word}"
            );
        }
    }
}

fn check(cases: Vec<Case>) {
    let swapping = Swapping::start(&json!({}), &[]);
    for (name, source, words) in cases {
        let file = file_name(name);
        fs::copy(impostor(name, &source), swapping.dir.path().join(&file)).unwrap();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        check_refused(&swapping, &json!({"plugin": file}), &words);
    }
    // None of them was mapped here, and none is in the way of a good one.
    assert_eq!(swapping.server.metric("crossgate_plugin_images"), 1.0);
    assert_eq!(swapping.swap(&json!({"probation_s": 0})).status, 200);
}

#[test]
fn libraries_with_another_stamp_are_refused_and_the_cause_is_named() {
    check(stamps());
}

#[test]
fn libraries_that_do_not_load_are_refused_and_the_cause_is_named() {
    check(loads());
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_crossgate");

/// What looks at the plugins in a folder, and copies them to another one.
fn host(plugins: &Path, images: &Path, program: &str) -> Host {
    let prober = Prober {
        program: program.into(),
        timeout: Duration::from_secs(20),
        memory_max: None,
    };
    let bounds = ImageBounds {
        images_max: 8,
        ..ImageBounds::default()
    };
    Host::scan(&[plugins.into()], Listing::All, images, bounds, prober).unwrap()
}

/// A copy that is there may be of a file that was found to end its process, or of a trial that nobody saw the end of.
#[test]
fn a_copy_that_was_not_tried_is_tried_before_it_is_mapped() {
    let (plugins, images) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = host(plugins.path(), images.path(), PROGRAM);
    let library = plugins.path().join(file_name("swap-abort"));
    let source = at_load("std::process::abort()");
    fs::copy(impostor("swap-abort", &source), &library).unwrap();
    let why = first.identify(&library).unwrap_err();
    assert!(why.contains("signal 6"), "{why}");
    let after = host(plugins.path(), images.path(), PROGRAM);
    let hash = after.files()[0].sha256.clone().unwrap();
    let copy = file_name("swap-abort").replace(DLL_SUFFIX, &format!("-{hash}{DLL_SUFFIX}"));
    let copy = images.path().join(copy);
    assert!(
        after.files()[0].found.is_err() && !copy.exists(),
        "{copy:?}"
    );
    // As by a server that was killed while it tried it.
    fs::copy(&library, &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o600)).unwrap();
    let after = host(plugins.path(), images.path(), PROGRAM);
    assert!(after.files()[0].found.is_err() && !copy.exists());

    // One that is as it should be is tried once.
    fs::remove_file(&library).unwrap();
    crate::put(plugins.path(), "fake", "");
    let good = plugins.path().join(file_name("fake"));
    assert_eq!(first.identify(&good).unwrap().1.name, "fake");
    let again = host(plugins.path(), images.path(), "/no/such/program");
    assert!(again.files()[0].found.is_ok());
}
