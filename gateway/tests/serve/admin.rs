//! The program's admin listener: where it is, who may call it, and `crossgate swap` as its caller.

use crate::process::{PATIENCE, Process, SOON};
use std::process::Command;

const KEY: &str = "swordfish-swordfish";
const NO_HUB: &str = "http://127.0.0.1:1";

/// `crossgate swap` of the starter, not waiting for its probation: its exit code, and what it says.
fn swap(flags: &[&str], env: &[(&str, &str)]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_crossgate"))
        .args(["swap", "starter", "--no-wait", "--probation", "0"])
        .args(flags)
        .envs(env.iter().copied())
        // Nobody is there: an operator's listener is called without a proxy.
        .envs([("HTTP_PROXY", NO_HUB), ("ALL_PROXY", NO_HUB)])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

#[track_caller]
fn check_swap(flags: &[&str], env: &[(&str, &str)], code: i32, words: &[&str]) {
    let (found, said) = swap(flags, env);
    assert_eq!(found, Some(code), "{flags:?} {env:?}: {said}");
    for word in words {
        assert!(
            said.contains(word),
            "{flags:?} {env:?}: {said} does not say {word}"
        );
    }
    assert!(!said.contains(KEY), "{said}");
}

/// Ends it as a signal asks.
fn stop(mut process: Process) -> String {
    process.signal("-TERM");
    let (status, said) = process.end_within(SOON);
    assert!(status.success(), "{status}: {said}");
    said
}

#[test]
fn a_socket_is_listened_on_instead_of_a_port() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let (file, place) = (
        path.display().to_string(),
        format!("unix:{}", path.display()),
    );
    let args = ["--admin-socket", file.as_str()];
    let mut process = Process::start(&args, NO_HUB);
    let line = process.line_with("listening");
    for word in [&format!("admin={place}"), "admin_key=\"none\""] {
        assert!(line.contains(word), "{line}");
    }
    process.line_with("ready");
    check_swap(&["--admin", &place], &[], 0, &["starter: live"]);
    check_swap(
        &[],
        &[("CROSSGATE_ADMIN_SOCKET", &file)],
        0,
        &["starter: live"],
    );
    check_swap(
        &["nobody", "--admin", &place],
        &[],
        1,
        &["refused", "nobody"],
    );
    check_swap(
        &["--rollback", "--admin", &place],
        &[],
        0,
        &["starter: rolled_back"],
    );

    // Whoever lives keeps it; whoever was killed leaves it to the next.
    let (status, said) = Process::start(&args, NO_HUB).end_within(PATIENCE);
    assert_eq!(status.code(), Some(2), "{said}");
    for word in [
        "server.admin_socket",
        "another program listens there",
        "--admin-socket",
    ] {
        assert!(said.contains(word), "{said} does not say {word}");
    }
    process.signal("-KILL");
    process.end_within(SOON);
    assert!(path.exists());
    check_swap(
        &["--admin", &place],
        &[],
        1,
        &["no answer from", &place, "refused"],
    );
    let mut next = Process::start(&args, NO_HUB);
    next.line_with("ready");
    check_swap(&["--admin", &place], &[], 0, &["starter: live"]);
    stop(next);
    assert!(!path.exists());
    check_swap(&["--admin", &place], &[], 1, &["No such file"]);
}

#[test]
fn a_key_is_asked_of_commands_and_never_logged() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key");
    std::fs::write(&file, format!("{KEY}\n")).unwrap();
    let file = file.display().to_string();
    let everywhere = [
        "--admin-host",
        "0.0.0.0",
        "--admin-key-file",
        &file,
        "--log-level",
        "info,gateway=debug",
    ];
    let mut process = Process::start(&everywhere, NO_HUB);
    let line = process.line_with("listening ");
    assert!(line.contains("admin_key=\"required\""), "{line}");
    let port = line.split("admin=0.0.0.0:").nth(1).unwrap();
    let port = port.split_whitespace().next().unwrap();
    // By a name, too.
    let admin = ["--admin", &format!("localhost:{port}")];
    process.line_with("ready");

    let help = ["the admin key", "CROSSGATE_ADMIN_KEY", "--admin-key-file"];
    check_swap(&admin, &[], 1, &[&help[..], &["is missing"]].concat());
    let wrong = ("CROSSGATE_ADMIN_KEY", "a-wrong-swordfish");
    check_swap(
        &admin,
        &[wrong],
        1,
        &[&help[..], &["is not the server's"]].concat(),
    );
    for env in [
        ("CROSSGATE_ADMIN_KEY", KEY),
        ("CROSSGATE_ADMIN_KEY_FILE", &file),
    ] {
        check_swap(&admin, &[env], 0, &["starter: live"]);
    }
    for flag in [["--admin-key", KEY], ["--admin-key-file", &file]] {
        check_swap(&[admin, flag].concat(), &[wrong], 0, &["starter: live"]);
    }
    let said = stop(process);
    assert!(said.contains("status=401"), "{said}");
    assert!(!said.contains(KEY), "{said}");
}

#[test]
fn an_admin_listener_that_is_not_safe_is_not_started() {
    let dir = tempfile::tempdir().unwrap();
    let precious = dir.path().join("precious");
    std::fs::write(&precious, "as before").unwrap();
    let cases: [([&str; 2], &[&str]); 5] = [
        (
            ["--admin-host", "0.0.0.0"],
            &[
                "server.admin_host",
                "server.admin_key",
                "server.admin_socket",
            ],
        ),
        (
            ["--admin-key", "swordfish"],
            &["server.admin_key", "16 to 512", "openssl rand"],
        ),
        (
            ["--admin-key-file", "/none"],
            &["server.admin_key_file", "/none: No such file"],
        ),
        (
            ["--admin-socket", precious.to_str().unwrap()],
            &["server.admin_socket", "is no socket"],
        ),
        (
            ["--admin-socket", "/none/admin.sock"],
            &["server.admin_socket", "/none: No such file"],
        ),
    ];
    for (args, words) in cases {
        let (status, said) = Process::start(&args, NO_HUB).end_within(PATIENCE);
        assert_eq!(status.code(), Some(2), "{args:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{args:?}: {said} does not say {word}");
        }
        assert!(!said.contains("swordfish"), "{said}");
    }
    assert_eq!(std::fs::read_to_string(precious).unwrap(), "as before");
}
