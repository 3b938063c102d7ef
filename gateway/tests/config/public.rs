//! Who may reach the public listeners, and how.

use crate::{Env, check_error, serve, set, yaml};
use gateway::config::{Config, TlsFiles};
use std::path::Path;

fn of(said: &[(&str, &str)]) -> Result<Config, String> {
    Config::of(said).map_err(|error| error.to_string())
}

#[test]
fn pages_are_named_by_their_origins() {
    let origins = |text: &str| {
        set("server.cors_origins", text).map(|config| config.server().cors_origins.clone())
    };
    assert_eq!(serve("crossgate", &[]).server().cors_origins, None);
    assert_eq!(origins("*").unwrap(), None);
    assert_eq!(origins("none").unwrap(), Some(Vec::new()));
    let two = ["https://app.example", "http://localhost:3000"];
    let wanted = Some(two.map(str::to_owned).to_vec());
    assert_eq!(origins(&two.join(", ")).unwrap(), wanted);
    let line = format!(
        "crossgate --cors-origins {} --cors-origins {}",
        two[0], two[1]
    );
    assert_eq!(serve(&line, &[]).server().cors_origins, wanted);
    for wrong in [
        "app.example",
        "https://app.example/",
        "https://app.example/path",
        "https://",
        "://app.example",
        "https://*.example",
        "https://a.example,*",
        "none,https://a.example",
    ] {
        check_error(
            origins(wrong),
            &["server.cors_origins", "is no origin", "https://app.example"],
        );
    }
}

#[test]
fn tls_needs_two_files() {
    let (cert, key) = (("server.tls_cert", "/c.pem"), ("server.tls_key", "/k.pem"));
    assert_eq!(serve("crossgate", &[]).server().tls, None);
    let config = of(&[cert, key]).unwrap();
    let files = TlsFiles {
        cert: "/c.pem".into(),
        key: "/k.pem".into(),
    };
    assert_eq!(config.server().tls, Some(files));
    check_error(
        of(&[cert]),
        &["server.tls_cert = \"/c.pem\"", "expected server.tls_key"],
    );
    check_error(
        of(&[key]),
        &["server.tls_key = \"/k.pem\"", "expected server.tls_cert"],
    );
}

#[test]
fn a_socket_of_its_own() {
    let config = yaml("server:\n  socket: /run/crossgate/http.sock\n").unwrap();
    let path = Path::new("/run/crossgate/http.sock");
    assert_eq!(config.server().socket.as_deref(), Some(path));
    let both = [
        ("server.socket", "/x.sock"),
        ("server.admin_socket", "/x.sock"),
    ];
    check_error(
        of(&both),
        &["server.socket", "another path", "server.admin_socket"],
    );
}

#[test]
fn of_several_variables_the_first_that_is_set_counts() {
    let cases: [(Env, u16); 5] = [
        (&[("PORT", "1"), ("CROSSGATE_PORT", "2")], 2),
        (&[("PORT", "1"), ("CROSSGATE_PORT", " ")], 1),
        (&[("PORT", "")], 8000),
        (
            &[("PORT", "1"), ("CROSSGATE_PORT", "tcp://10.0.0.1:8000")],
            1,
        ),
        // PORT alone moves HTTP, not the other listeners.
        (&[("CROSSGATE_GRPC_PORT", "1")], 8000),
    ];
    for (env, port) in cases {
        assert_eq!(serve("crossgate", env).server().port, port, "{env:?}");
    }
    let server = serve("crossgate", &[("PORT", "1")]).server().clone();
    assert_eq!((server.grpc_port, server.admin_port), (50051, 9001));
}
