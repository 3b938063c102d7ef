//! HTTP and gRPC by TLS, with certificates that are made here.

use crate::fixture::Fixture;
use crate::grpc::proto::scoring_client::ScoringClient;
use crate::grpc::score;
use crate::listen::{HURRY, LONG, Large, Served, ask, closed, connect};
use axum::Router;
use axum::body::Body;
use axum::routing::get;
use bytes::Bytes;
use gateway::edge::{Listener, Patience, Tls, TlsError};
use hyper_util::rt::TokioIo;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tonic::transport::Endpoint;

/// Who the server says that it is.
const NAME: &str = "crossgate.example";

/// Files of the test's own, and the certificate that stands in them.
struct Files {
    dir: tempfile::TempDir,
    cert: CertificateDer<'static>,
}

impl Files {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let mut files = Self {
            dir,
            cert: CertificateDer::from(Vec::new()),
        };
        files.renew();
        files
    }

    /// Another certificate, with another key.
    fn renew(&mut self) {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed([NAME.to_owned()]).expect("a certificate");
        fs::write(self.cert_path(), cert.pem()).expect("written");
        fs::write(self.key_path(), signing_key.serialize_pem()).expect("written");
        self.cert = cert.der().clone();
    }

    fn cert_path(&self) -> PathBuf {
        self.dir.path().join("cert.pem")
    }

    fn key_path(&self) -> PathBuf {
        self.dir.path().join("key.pem")
    }

    fn read(&self) -> Result<Tls, TlsError> {
        Tls::read(&self.cert_path(), &self.key_path())
    }

    fn tls(&self) -> Tls {
        self.read().unwrap_or_else(|error| panic!("{error}"))
    }
}

/// A client that trusts this certificate alone.
async fn secured(
    address: SocketAddr,
    cert: &CertificateDer<'static>,
    protocol: &[u8],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(cert.clone()).expect("a root");
    let provider = Arc::new(ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let name = ServerName::try_from(NAME).expect("a name");
    let stream = connect(address).await;
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

async fn port(served: &Served, tls: Tls) -> SocketAddr {
    let listener = Listener::bind("127.0.0.1", 0).await.expect("a port");
    let address = listener.address();
    served
        .connections
        .serve(listener.with_tls(Some(tls)), Fixture::new().http());
    address
}

#[tokio::test]
async fn http_is_spoken_by_tls_and_not_without() {
    let (files, served) = (Files::new(), Served::new(Patience::default()));
    let address = port(&served, files.tls()).await;
    let stream = secured(address, &files.cert, b"http/1.1").await;
    let mut stream = stream.expect("a handshake");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    for _ in 0..2 {
        assert!(ask(&mut stream).await.starts_with("HTTP/1.1 200"));
    }
    let mut plain = connect(address).await;
    plain
        .write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .expect("sent");
    assert!(closed(&mut plain).await);
}

#[tokio::test]
async fn grpc_is_spoken_by_tls() {
    let (files, served) = (Files::new(), Served::new(Patience::default()));
    let listener = Listener::bind("127.0.0.1", 0).await.expect("a port");
    let address = listener.address();
    let (router, _report) = crate::grpc::router(&Fixture::new()).await;
    let listener = listener.with_tls(Some(files.tls()));
    served.connections.serve(listener, router);
    let cert = files.cert.clone();
    let dial = tower::service_fn(move |_| {
        let cert = cert.clone();
        async move {
            let stream = secured(address, &cert, b"h2").await?;
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    // The connector is the one who knows of TLS.
    let endpoint = Endpoint::from_static("http://crossgate.example");
    let channel = endpoint.connect_with_connector(dial).await;
    let mut client = ScoringClient::new(channel.expect("a connection"));
    let answer = client.score(score("q", &["1"])).await.expect("scores");
    assert_eq!(answer.into_inner().scores, [1.0]);
}

#[tokio::test]
async fn a_handshake_that_does_not_go_on_is_cut_off_and_delays_nobody() {
    let (files, served) = (Files::new(), Served::new(HURRY));
    let address = port(&served, files.tls()).await;
    let mut slow = connect(address).await;
    // How a handshake begins.
    slow.write_all(&[22, 3, 1]).await.expect("sent");
    let stream = secured(address, &files.cert, b"http/1.1").await;
    assert!(
        ask(&mut stream.expect("a handshake"))
            .await
            .contains("200 OK")
    );
    assert!(closed(&mut slow).await);
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_off() {
    let (files, served) = (Files::new(), Served::new(HURRY));
    let (tell, hear) = sync_channel(1);
    let large = move || {
        let bytes = Bytes::from_owner(Large(vec![b' '; 64 << 20], tell.clone()));
        async { Body::from(bytes) }
    };
    let listener = Listener::bind("127.0.0.1", 0).await.expect("a port");
    let address = listener.address();
    let router = Router::new().route("/large", get(large));
    let listener = listener.with_tls(Some(files.tls()));
    served.connections.serve(listener, router);
    let stream = secured(address, &files.cert, b"http/1.1").await;
    let mut stream = stream.expect("a handshake");
    let head = b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n";
    stream.write_all(head).await.expect("sent");
    stream.flush().await.expect("sent");
    let freed = tokio::task::spawn_blocking(move || hear.recv_timeout(LONG));
    assert_eq!(freed.await.expect("no panic"), Ok(()));
    drop(stream);
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_to_those_who_come() {
    let (mut files, served) = (Files::new(), Served::new(Patience::default()));
    let (tls, old) = (files.tls(), files.cert.clone());
    let address = port(&served, tls.clone()).await;
    let trusts =
        async |cert: &CertificateDer<'static>| secured(address, cert, b"http/1.1").await.is_ok();
    let mut kept = secured(address, &old, b"http/1.1")
        .await
        .expect("a handshake");
    files.renew();
    // What is half written is not used.
    let key = fs::read(files.key_path()).expect("a key");
    fs::write(files.key_path(), "").expect("written");
    tls.refresh();
    assert!(trusts(&old).await);
    fs::write(files.key_path(), key).expect("written");
    tls.refresh();
    assert!(trusts(&files.cert).await && !trusts(&old).await);
    assert!(ask(&mut kept).await.contains("200 OK"));
}

#[test]
fn files_that_make_no_sense_are_named() {
    let other = Files::new();
    let case = |of_key: bool, break_it: &dyn Fn(&Files), words: &[&str]| {
        let files = Files::new();
        break_it(&files);
        let error = files.read().err().expect("this is wrong");
        assert_eq!(error.is_key(), of_key, "{error}");
        let path = if of_key {
            files.key_path()
        } else {
            files.cert_path()
        };
        let error = error.to_string();
        for word in words.iter().chain(&[&*path.display().to_string()]) {
            assert!(error.contains(word), "{error} does not say {word}");
        }
    };
    let write = |path: PathBuf, text: &[u8]| fs::write(path, text).expect("written");
    case(
        false,
        &|files| fs::remove_file(files.cert_path()).expect("gone"),
        &["No such file"],
    );
    case(
        true,
        &|files| fs::remove_file(files.key_path()).expect("gone"),
        &["No such file"],
    );
    case(
        false,
        &|files| write(files.cert_path(), b"x"),
        &["there is none in it", "PEM"],
    );
    case(
        true,
        &|files| write(files.key_path(), b"x"),
        &["private key in PEM"],
    );
    case(
        false,
        &|files| write(files.cert_path(), &vec![b' '; 2 << 20]),
        &["1048576 bytes"],
    );
    // The key of another certificate.
    let key = fs::read(other.key_path()).expect("a key");
    case(
        true,
        &|files| write(files.key_path(), &key),
        &["certificate's private key"],
    );
}
