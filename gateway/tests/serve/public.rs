//! The public listeners of the program itself: TLS, keys, a socket.

use crate::process::{PATIENCE, Process};
use crate::server::Server;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use serde_json::json;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

const KEY: &str = "0123456789abcdefABCDEF";
const OTHER: &str = "fedcba9876543210FEDCBA";

/// Writes a certificate for this machine, and its key.
fn certify(cert_path: &Path, key_path: &Path) -> Certificate<'static> {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    fs::write(key_path, signing_key.serialize_pem()).unwrap();
    fs::write(cert_path, cert.pem()).unwrap();
    Certificate::from_pem(cert.pem().as_bytes()).unwrap()
}

/// The status of a request over a new connection, by a client that trusts this certificate alone.
fn status(address: SocketAddr, path: &str, cert: &Certificate<'static>, key: &str) -> Option<u16> {
    let roots = RootCerts::Specific(Arc::new(vec![cert.clone()]));
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(PATIENCE))
        .tls_config(TlsConfig::builder().root_certs(roots).build())
        .build()
        .new_agent();
    let request = agent.get(format!("https://{address}{path}"));
    let answer = request
        .header("authorization", format!("Bearer {key}"))
        .call();
    answer.ok().map(|answer| answer.status().as_u16())
}

#[track_caller]
fn until(mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "what was waited for did not come");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn files_are_renewed_while_the_program_serves() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let text = |name: &str| path(name).display().to_string();
    let old = certify(&path("cert"), &path("key"));
    fs::write(path("keys"), format!("first={KEY}\n")).unwrap();
    let (cert, key, keys) = (text("cert"), text("key"), text("keys"));
    let args = [
        "--tls-cert",
        &cert,
        "--tls-key",
        &key,
        "--api-key-file",
        &keys,
    ];
    let mut process = Process::start_with(&args, &[]);
    let address = process.address();
    assert_eq!(status(address, "/livez", &old, ""), Some(200));
    assert_eq!(status(address, "/models", &old, KEY), Some(200));
    assert_eq!(status(address, "/models", &old, OTHER), Some(401));

    fs::write(path("keys"), format!("second={OTHER}\n")).unwrap();
    until(|| status(address, "/models", &old, OTHER) == Some(200));
    assert_eq!(status(address, "/models", &old, KEY), Some(401));
    let new = certify(&path("cert"), &path("key"));
    until(|| status(address, "/livez", &new, "") == Some(200));
    assert_eq!(status(address, "/livez", &old, ""), None);
}

#[test]
fn a_start_says_which_file_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let text = |name: &str| path(name).display().to_string();
    certify(&path("cert"), &path("key"));
    fs::write(path("x"), "x").unwrap();
    for (args, words) in [
        (
            ["--tls-cert", &text("x"), "--tls-key", &text("key")],
            ["server.tls_cert", &text("x")],
        ),
        (
            ["--tls-cert", &text("cert"), "--tls-key", &text("none")],
            ["server.tls_key", &text("none")],
        ),
        (
            ["--api-key-file", &text("x"), "--log-level", "info"],
            ["server.api_key_file", "line 1"],
        ),
        (
            ["--socket", &text("none/x"), "--log-level", "info"],
            ["server.socket", &text("none")],
        ),
    ] {
        let mut process = Process::start_with(&args, &[]);
        let (status, said) = process.end_within(PATIENCE);
        assert_eq!(status.code(), Some(2), "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    }
}

#[test]
fn keys_are_counted_by_their_names_and_a_socket_answers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("http.sock");
    let keys = format!("search={KEY}");
    let server = Server::start(
        "{}",
        &[
            ("server.api_keys", &keys),
            ("server.socket", &path.display().to_string()),
        ],
    );
    let body = json!({"query": "q", "documents": ["a", "b"]});
    assert_eq!(server.rerank(&body).status, 401);
    let shown = format!("Bearer {KEY}");
    assert_eq!(
        server.rerank_with(("authorization", &shown), &body).status,
        200
    );
    assert_eq!(server.get("/metrics").status, 401);
    // Over the socket: the same routes, and the same keys.
    let mut stream = UnixStream::connect(&path).unwrap();
    write!(
        stream,
        "GET /metrics HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut metrics = String::new();
    stream.read_to_string(&mut metrics).unwrap();
    for line in [
        "crossgate_key_requests_total{key=\"search\",outcome=\"ok\"} 1",
        "crossgate_key_requests_total{key=\"\",outcome=\"unknown\"} 2",
        "crossgate_key_documents_total{key=\"search\"} 2",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}
