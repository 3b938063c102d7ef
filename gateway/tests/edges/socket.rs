//! APIs over a Unix socket, and its file.

use crate::fixture::Fixture;
use crate::grpc::proto::scoring_client::ScoringClient;
use crate::grpc::score;
use crate::listen::{HEAD, HURRY, LONG, Served, answered, ask, closed};
use gateway::edge::{Listening, Patience, Socket};
use hyper_util::rt::TokioIo;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tonic::transport::Endpoint;

/// A folder of the test's own, and a path in it where nothing is.
fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("admin.sock");
    (dir, path)
}

async fn bind(path: &Path) -> Socket {
    let socket = Socket::bind(path).await;
    socket.unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

/// Why it cannot be listened on.
async fn refused(path: &Path) -> String {
    let socket = Socket::bind(path).await;
    socket.err().expect("this is refused")
}

async fn connect(path: &Path) -> UnixStream {
    UnixStream::connect(path).await.expect("a connection")
}

/// Leaves a socket's file to which nobody listens.
fn leave_stale(path: &Path) {
    drop(UnixListener::bind(path).expect("a socket"));
    assert!(path.exists());
}

#[tokio::test]
async fn the_admin_api_answers_over_a_socket_as_over_a_port() {
    let (_dir, path) = place();
    let served = Served::new(Patience::default());
    served
        .connections
        .serve(bind(&path).await, Fixture::new().admin());
    let mut stream = connect(&path).await;
    for (host, word) in [("localhost", "200 OK"), ("evil.example", "foreign_host")] {
        let head = format!("GET /health HTTP/1.1\r\nhost: {host}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.expect("sent");
        let answer = answered(&mut stream).await;
        assert!(answer.contains(word), "{host}: {answer}");
    }
}

#[tokio::test]
async fn the_public_apis_share_a_socket() {
    let (_dir, path) = place();
    let (served, fixture) = (Served::new(Patience::default()), Fixture::new());
    let (grpc, _report) = crate::grpc::router(&fixture).await;
    let socket = Socket::bind_for_group(&path).await.expect("a socket");
    let mode = fs::symlink_metadata(&path).expect("a file").permissions();
    assert_eq!(mode.mode() & 0o7777, 0o660);
    let router = gateway::edge::both(fixture.http(), grpc);
    served.connections.serve(socket, router);
    assert!(ask(&mut connect(&path).await).await.contains("200 OK"));
    let dial = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    let channel = endpoint.connect_with_connector(dial).await;
    let mut client = ScoringClient::new(channel.expect("a connection"));
    let answer = client.score(score("q", &["1"])).await.expect("scores");
    assert_eq!(answer.into_inner().scores, [1.0]);
    // By its full name, as over a port.
    let counted = fixture.metrics.0.lock().expect("no panic").clone();
    for call in [
        ("http", "/livez", 200),
        ("grpc", "/crossgate.v1.Scoring/Score", 0),
    ] {
        assert!(counted.contains(&call), "{counted:?}");
    }
}

#[tokio::test]
async fn its_clients_are_bound_as_those_of_a_port() {
    let (_dir, path) = place();
    let served = Served::new(HURRY);
    served
        .connections
        .serve(bind(&path).await, Fixture::new().http());
    let mut slow = connect(&path).await;
    slow.write_all(b"GET /livez HTTP/1.1\r\nho")
        .await
        .expect("sent");
    assert!(closed(&mut slow).await);
    drop(slow);

    let mut full = Vec::new();
    for _ in 0..HURRY.connections_max {
        let mut stream = connect(&path).await;
        assert!(ask(&mut stream).await.contains("200 OK"));
        full.push(stream);
    }
    let mut one_more = connect(&path).await;
    let mut asking = Box::pin(ask(&mut one_more));
    let early = tokio::time::timeout(HEAD / 2, &mut asking).await;
    assert!(early.is_err(), "{early:?}");
    full.pop();
    assert!(asking.await.contains("200 OK"));
}

#[tokio::test]
async fn only_its_user_may_connect_and_the_file_goes_with_the_server() {
    let (_dir, path) = place();
    let served = Served::new(Patience::default());
    let socket = bind(&path).await;
    let mode = |path: &Path| fs::symlink_metadata(path).expect("a file").permissions();
    assert_eq!(mode(&path).mode() & 0o7777, 0o600);
    let listening = Listening::from(socket);
    assert_eq!(
        listening.place().to_string(),
        format!("unix:{}", path.display())
    );
    assert_eq!(listening.place().address(), None);
    served.connections.serve(listening, Fixture::new().admin());
    served.stop.cancel();
    served.connections.drained(Instant::now() + LONG).await;
    assert!(!path.exists());
}

#[tokio::test]
async fn what_a_dead_server_left_is_replaced() {
    let (_dir, path) = place();
    leave_stale(&path);
    let served = Served::new(Patience::default());
    served
        .connections
        .serve(bind(&path).await, Fixture::new().http());
    assert!(ask(&mut connect(&path).await).await.contains("200 OK"));
}

#[tokio::test]
async fn a_live_server_keeps_its_socket() {
    let (_dir, path) = place();
    let served = Served::new(Patience::default());
    served
        .connections
        .serve(bind(&path).await, Fixture::new().http());
    let why = refused(&path).await;
    assert!(why.contains("another program listens there"), "{why}");
    assert!(ask(&mut connect(&path).await).await.contains("200 OK"));
}

#[tokio::test]
async fn what_is_no_socket_is_left_alone() {
    let (dir, path) = place();
    let real = dir.path().join("real.sock");
    let _listener = UnixListener::bind(&real).expect("a socket");
    let make: [fn(&Path, &Path); 3] = [
        |path, _| fs::write(path, "precious").expect("a file"),
        |path, _| fs::create_dir(path).expect("a folder"),
        |path, real| symlink(real, path).expect("a link"),
    ];
    for (i, make) in make.into_iter().enumerate() {
        let path = path.with_extension(i.to_string());
        make(&path, &real);
        let before = fs::symlink_metadata(&path)
            .expect("it is there")
            .file_type();
        let why = refused(&path).await;
        assert!(why.contains("is no socket"), "{why}");
        let after = fs::symlink_metadata(&path)
            .expect("it is there")
            .file_type();
        assert_eq!(before, after);
    }
    assert!(
        fs::symlink_metadata(&real)
            .expect("it is there")
            .file_type()
            .is_socket()
    );
    let nowhere = dir.path().join("missing/admin.sock");
    let why = refused(&nowhere).await;
    assert!(
        why.contains(&dir.path().join("missing").display().to_string()),
        "{why}"
    );
    // Longer than the system's addresses are.
    let why = refused(&dir.path().join("x".repeat(120))).await;
    assert!(why.contains("cannot be listened on"), "{why}");
}

#[tokio::test]
async fn a_server_removes_its_own_file_alone() {
    let (_dir, path) = place();
    let first = bind(&path).await;
    fs::remove_file(&path).expect("it was there");
    let second = bind(&path).await;
    drop(first);
    assert!(path.exists());
    drop(second);
    assert!(!path.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_servers_that_start_at_once_one_listens() {
    const SERVERS: usize = 8;
    for _ in 0..25 {
        let (_dir, path) = place();
        leave_stale(&path);
        let (path, all) = (Arc::new(path), Arc::new(tokio::sync::Barrier::new(SERVERS)));
        let starting: Vec<_> = (0..SERVERS)
            .map(|_| {
                let (path, all) = (Arc::clone(&path), Arc::clone(&all));
                tokio::spawn(async move {
                    all.wait().await;
                    Socket::bind(&path).await
                })
            })
            .collect();
        let mut listening = Vec::new();
        for starting in starting {
            match starting.await.expect("no panic") {
                Ok(socket) => listening.push(socket),
                Err(why) => assert!(why.contains("another program listens there"), "{why}"),
            }
        }
        assert_eq!(listening.len(), 1);
        connect(&path).await;
    }
}
