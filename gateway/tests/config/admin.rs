//! Who may reach the admin listener, and that its key is never shown.

use crate::{Env, check_error, print, run, serve, set, yaml};
use gateway::cli::{CliError, Command};
use gateway::config::Config;
use std::path::{Path, PathBuf};

const KEY: &str = "swordfish-swordfish";

fn of(said: &[(&str, &str)]) -> Result<Config, String> {
    Config::of(said).map_err(|error| error.to_string())
}

#[test]
fn beyond_loopback_a_key_is_needed() {
    for host in [
        "127.0.0.1",
        "127.8.8.8",
        "::1",
        "[::1]",
        "localhost",
        "LocalHost",
        "::ffff:127.0.0.1",
    ] {
        of(&[("server.admin_host", host)]).unwrap_or_else(|why| panic!("{host}: {why}"));
    }
    for host in [
        "0.0.0.0",
        "::",
        "10.0.0.7",
        "128.0.0.1",
        "crossgate-1",
        "localhost.example",
    ] {
        let host = ("server.admin_host", host);
        check_error(
            of(&[host]),
            &[
                "server.admin_host",
                host.1,
                "server.admin_key",
                "CROSSGATE_ADMIN_KEY",
                "server.admin_socket",
            ],
        );
        for safe in [
            ("server.admin_key", KEY),
            ("server.admin_key_file", "/run/secrets/admin"),
            // Its host is not listened on.
            ("server.admin_socket", "/run/crossgate/admin.sock"),
        ] {
            of(&[host, safe]).unwrap_or_else(|why| panic!("{host:?}, {safe:?}: {why}"));
        }
    }
}

#[test]
fn a_socket_takes_no_port() {
    let port = ("server.admin_port", "8000");
    check_error(of(&[port]), &["server.admin_port", "any free one"]);
    let config = of(&[port, ("server.admin_socket", "./admin.sock")]).unwrap();
    assert_eq!(
        config.server().admin_socket.as_deref(),
        Some(Path::new("./admin.sock"))
    );
}

#[test]
fn keys_that_can_be_guessed_or_not_sent_are_refused() {
    let key = |text: &str| set("server.admin_key", text);
    for wrong in [
        "x",
        "swordfish-sword",
        "sword fish sword fish",
        "schwertfisch-ß-schwertfisch",
        &"x".repeat(513),
    ] {
        let error = key(wrong).expect_err(wrong);
        assert!(
            error.contains("server.admin_key") && error.contains("16 to 512"),
            "{error}"
        );
        assert!(wrong == "x" || !error.contains(wrong), "{error}");
    }
    for fine in ["swordfish-swordf", &format!("  {KEY}\n"), &"x".repeat(512)] {
        let config = key(fine).unwrap();
        let key = config.admin_key().unwrap().expect("a key");
        assert_eq!(key.reveal(), fine.trim());
    }
    // Set to nothing, as compose files do.
    for nothing in ["", " "] {
        assert!(key(nothing).unwrap().admin_key().unwrap().is_none());
    }
}

#[test]
fn a_file_holds_the_key_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let file = |content: &str| {
        let path = dir.path().join("key");
        std::fs::write(&path, content).unwrap();
        read(path)
    };
    for content in [
        KEY.to_owned(),
        format!("{KEY}\n"),
        format!("\n {KEY}\r\n\n"),
    ] {
        assert_eq!(file(&content).unwrap(), KEY);
    }
    for (content, word) in [
        ("", "found 0 characters"),
        ("swordfish", "found 9 characters"),
        (
            "swordfish-swordfish\nswordfish-swordfish\n",
            "without spaces",
        ),
        (&"x".repeat(1_025), "more than 1024 bytes"),
    ] {
        check_error(
            file(content),
            &["server.admin_key_file", "--admin-key-file", word],
        );
    }
    check_error(
        read(dir.path().join("none")),
        &["server.admin_key_file", "none: No such file"],
    );
    let both = [("server.admin_key", KEY), ("server.admin_key_file", "/x")];
    let error = of(&both).unwrap_err();
    assert!(
        error.contains("server.admin_key = \"***\"") && error.contains("not both"),
        "{error}"
    );
}

fn read(path: PathBuf) -> Result<String, String> {
    let config = of(&[("server.admin_key_file", &path.display().to_string())])?;
    let key = config.admin_key().map_err(|error| error.to_string())?;
    Ok(key.expect("a file gives one").reveal().to_owned())
}

#[test]
fn a_key_is_never_shown() {
    let env = [("CROSSGATE_ADMIN_KEY", KEY)];
    let shown = [
        print("crossgate config", &env),
        print("crossgate config --json", &env),
        print(&format!("crossgate config --admin-key {KEY}"), &[]),
        format!("{:?}", serve("crossgate", &env)),
        format!(
            "{:?}",
            yaml(&format!("server:\n  admin_key: {KEY}\n")).unwrap()
        ),
        format!(
            "{:?}",
            serve("crossgate", &env).refuse("server.admin_key", "why")
        ),
        format!("{:?}", order(&format!("--admin-key {KEY}"), &[])),
        format!("{:?}", order("", &env)),
        format!("{:?}", run("crossgate --admin-key sword", &[])),
    ];
    for shown in &shown {
        assert!(!shown.contains("sword"), "{shown}");
    }
    let row = |text: &str| {
        let row = text
            .lines()
            .find(|row| row.starts_with("server.admin_key "))
            .unwrap();
        row.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        row(&shown[0]),
        "server.admin_key *** env CROSSGATE_ADMIN_KEY"
    );
    assert_eq!(
        row(&print("crossgate config", &[])),
        "server.admin_key (unset) default"
    );
    assert!(shown[1].contains("\"***\""), "{}", shown[1]);
}

// === the operators' commands ===

fn order(flags: &str, env: Env) -> Result<Command, String> {
    run(&format!("crossgate swap starter {flags}"), env).map_err(|error| error.to_string())
}

#[test]
fn commands_know_where_and_with_which_key() {
    let socket = ("CROSSGATE_ADMIN_SOCKET", "/env.sock");
    let cases: [(&str, Env, &str); 9] = [
        ("", &[], "Port(\"127.0.0.1:9001\"), key: None"),
        ("--admin h:1", &[], "Port(\"h:1\"), key: None"),
        (
            "--admin unix:/a.sock",
            &[],
            "Socket(\"/a.sock\"), key: None",
        ),
        (
            "--admin unix:///a.sock",
            &[],
            "Socket(\"/a.sock\"), key: None",
        ),
        ("--admin unix:a.sock", &[], "Socket(\"a.sock\"), key: None"),
        ("", &[socket], "Socket(\"/env.sock\"), key: None"),
        ("--admin h:1", &[socket], "Port(\"h:1\"), key: None"),
        (
            "",
            &[("CROSSGATE_ADMIN_SOCKET", "")],
            "Port(\"127.0.0.1:9001\")",
        ),
        ("", &[("CROSSGATE_ADMIN_KEY", KEY)], "key: Some(***)"),
    ];
    for (flags, env, wanted) in cases {
        let order = format!("{:?}", order(flags, env).unwrap());
        assert!(order.contains(wanted), "{flags} {env:?}: {order}");
    }
    // A flag counts before the environment, be it good or not.
    let env = [
        ("CROSSGATE_ADMIN_KEY", "short"),
        ("CROSSGATE_ADMIN_KEY_FILE", "/none"),
    ];
    order(&format!("--admin-key {KEY}"), &env).unwrap();
    for (flags, env, words) in [
        ("--admin unix:", &[][..], ["--admin unix:", "unix:/PATH"]),
        ("--admin-key short", &[], ["--admin-key", "16 to 512"]),
        ("--admin-key-file /none", &[], ["--admin-key-file", "/none"]),
        (
            "--admin-key a --admin-key-file b",
            &[],
            ["--admin-key", "cannot be used with"],
        ),
        ("", &env[..1], ["CROSSGATE_ADMIN_KEY", "found 5"]),
        ("", &env[1..], ["CROSSGATE_ADMIN_KEY_FILE", "/none"]),
    ] {
        let error: CliError = run(&format!("crossgate swap starter {flags}"), env).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        check_error::<()>(Err(error.to_string()), &words);
    }
}
