//! Real connections, and clients that misuse them.

use crate::fixture::Fixture;
use axum::Router;
use axum::body::Body;
use axum::routing::get;
use bytes::Bytes;
use gateway::edge::{Connections, Listener, Patience};
use gateway::runtime::Runtime;
use std::net::SocketAddr;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// How long a head is waited for here.
pub(crate) const HEAD: Duration = Duration::from_millis(400);
/// Long enough for anything that should happen.
pub(crate) const LONG: Duration = Duration::from_secs(30);
pub(crate) const HURRY: Patience = Patience {
    head: HEAD,
    idle: LONG,
    write: HEAD,
    ping: HEAD,
    connections_max: 2,
};

pub(crate) struct Served {
    pub(crate) connections: Connections,
    pub(crate) stop: CancellationToken,
}

impl Served {
    pub(crate) fn new(patience: Patience) -> Self {
        let runtime = Runtime::new(tokio::runtime::Handle::current(), 1);
        let stop = CancellationToken::new();
        let connections = Connections::new(runtime, stop.clone()).with_patience(patience);
        Self { connections, stop }
    }

    async fn port(&self, router: Router) -> SocketAddr {
        let listener = Listener::bind("127.0.0.1", 0).await.expect("a port");
        let address = listener.address();
        self.connections.serve(listener, router);
        address
    }
}

pub(crate) async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.expect("a connection")
}

/// Asks and reads the answer.
pub(crate) async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> String {
    let head = "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("sent");
    answered(stream).await
}

/// Reads an answer, which ends with `}`.
pub(crate) async fn answered(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut answer = Vec::new();
    while !answer.ends_with(b"}") {
        assert_ne!(stream.read_buf(&mut answer).await.expect("more"), 0);
    }
    String::from_utf8(answer).expect("a text")
}

/// Waits until the server has closed the connection.
pub(crate) async fn closed(stream: &mut (impl AsyncRead + Unpin)) -> bool {
    let mut rest = Vec::new();
    let end = tokio::time::timeout(LONG, stream.read_to_end(&mut rest));
    end.await.is_ok()
}

#[tokio::test]
async fn clients_that_begin_and_do_not_go_on_are_cut_off() {
    let served = Served::new(HURRY);
    let address = served.port(Fixture::new().http()).await;
    // Nothing; what may become HTTP/2; half a head.
    for beginning in ["", "P", "PRI * HTTP/2.0\r\n", "GET /livez HTTP/1.1\r\nho"] {
        let mut stream = connect(address).await;
        stream.write_all(beginning.as_bytes()).await.expect("sent");
        assert!(closed(&mut stream).await, "{beginning:?}");
    }
    // Also after an answer.
    let mut stream = connect(address).await;
    assert!(ask(&mut stream).await.starts_with("HTTP/1.1 200"));
    stream.write_all(b"GET /liv").await.expect("sent");
    assert!(closed(&mut stream).await);
}

#[tokio::test]
async fn an_idle_connection_is_kept_longer_than_a_head_is_waited_for() {
    let served = Served::new(HURRY);
    let mut stream = connect(served.port(Fixture::new().http()).await).await;
    for _ in 0..2 {
        assert!(ask(&mut stream).await.starts_with("HTTP/1.1 200"));
        tokio::time::sleep(3 * HEAD).await;
    }
    assert!(ask(&mut stream).await.starts_with("HTTP/1.1 200"));
    // Longer than the usual proxies keep theirs.
    assert!(Duration::from_secs(75) < Patience::default().idle);
}

#[tokio::test]
async fn an_idle_connection_is_not_kept_for_ever() {
    let served = Served::new(Patience {
        idle: HEAD,
        ..HURRY
    });
    let mut stream = connect(served.port(Fixture::new().http()).await).await;
    assert!(ask(&mut stream).await.starts_with("HTTP/1.1 200"));
    assert!(closed(&mut stream).await);
}

#[tokio::test]
async fn an_http2_client_that_answers_no_ping_is_cut_off() {
    let served = Served::new(HURRY);
    let mut stream = connect(served.port(Fixture::new().http()).await).await;
    // The preface and empty settings: all that is needed to be one.
    let beginning = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    stream.write_all(beginning).await.expect("sent");
    assert!(closed(&mut stream).await);
}

/// A frame of HTTP/2: its kind, its flags and what is in it.
async fn frame(stream: &mut (impl AsyncRead + Unpin)) -> (u8, u8, Vec<u8>) {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.expect("a frame's head");
    let bytes = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut rest = vec![0; bytes as usize];
    stream.read_exact(&mut rest).await.expect("a frame");
    (head[3], head[4], rest)
}

#[tokio::test]
async fn http2_is_spoken_on_the_same_port_within_its_bounds() {
    const SETTINGS: u8 = 4;
    const DATA: u8 = 0;
    let served = Served::new(Patience::default());
    let mut stream = connect(served.port(Fixture::new().http()).await).await;
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .expect("sent");
    let (kind, _, settings) = frame(&mut stream).await;
    assert_eq!(kind, SETTINGS);
    let value = |wanted: u8| {
        let mut settings = settings.chunks_exact(6);
        let found = settings.find(|setting| setting[..2] == [0, wanted]);
        found.map(|setting| u32::from_be_bytes(setting[2..].try_into().expect("four bytes")))
    };
    // Streams at once; the head's size.
    assert_eq!((value(3), value(6)), (Some(1_024), Some(64 << 10)));
    // GET, http, /livez and the host x, as HPACK writes them; then nothing more on this stream.
    let head = b"\x82\x86\x04\x06/livez\x01\x01x";
    let mut asked = vec![0, 0, head.len() as u8, 1, 5, 0, 0, 0, 1];
    asked.extend_from_slice(head);
    stream.write_all(&asked).await.expect("sent");
    loop {
        let (kind, _, data) = frame(&mut stream).await;
        if kind == DATA {
            assert!(data.starts_with(b"{"), "{data:?}");
            break;
        }
    }
}

#[tokio::test]
async fn heads_are_bound_in_bytes_and_headers() {
    let served = Served::new(Patience::default());
    let address = served.port(Fixture::new().http()).await;
    for headers in [
        "x: y\r\n".repeat(101),
        format!("x: {}\r\n", "y".repeat(64 << 10)),
    ] {
        let mut stream = connect(address).await;
        let head = format!("GET /livez HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
}

#[tokio::test]
async fn ports_do_not_share_connections() {
    let served = Served::new(Patience {
        head: LONG,
        ..HURRY
    });
    let fixture = Fixture::new();
    let (public, own) = (
        served.port(fixture.http()).await,
        served.port(fixture.http()).await,
    );
    let mut full = Vec::new();
    for _ in 0..HURRY.connections_max {
        full.push(connect(public).await);
    }
    assert!(ask(&mut connect(own).await).await.contains("200 OK"));
}

#[tokio::test]
async fn a_client_that_sends_too_much_reads_why() {
    let served = Served::new(Patience::default());
    let address = served.port(Fixture::new().http()).await;
    // More than the system's buffers take: who does not read until everything has been sent would
    // hear of a broken pipe.
    let body = vec![b' '; 24 << 20];
    let mut stream = connect(address).await;
    let head = format!(
        "POST /rerank HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    stream.write_all(&body).await.expect("sent to its end");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("body_bytes_max"), "{answer}");
}

#[tokio::test]
async fn a_client_that_never_ends_is_not_listened_to_for_ever() {
    let served = Served::new(Patience::default());
    let address = served.port(Fixture::new().http()).await;
    let mut stream = connect(address).await;
    let head = format!(
        "POST /rerank HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        1_u64 << 40
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    let piece = vec![b' '; 1 << 20];
    let sending = async { while stream.write_all(&piece).await.is_ok() {} };
    assert!(tokio::time::timeout(LONG, sending).await.is_ok());
}

#[tokio::test]
async fn many_clients_may_come_at_once() {
    // More than the 128 that are usual, of whom none has been accepted yet.
    const CLIENTS: usize = 512;
    let _files = Served::new(HURRY);
    let listener = Listener::bind("127.0.0.1", 0).await.expect("a port");
    let mut waiting = Vec::new();
    for _ in 0..CLIENTS {
        let coming = TcpStream::connect(listener.address());
        // The kernel answers at once, or not before the client asks again a second later.
        let coming = tokio::time::timeout(LONG, coming).await;
        waiting.push(coming.expect("in time").expect("a connection"));
    }
}

#[tokio::test]
async fn a_host_that_is_not_ours_is_told_from_a_port_that_is_taken() {
    for host in ["not a host", "203.0.113.1"] {
        let error = Listener::bind(host, 0).await.err().expect("no such host");
        assert!(
            error.is_host() && error.to_string().contains(host),
            "{error}"
        );
    }
    let taken = Listener::bind("127.0.0.1", 0).await.expect("a port");
    let error = Listener::bind("127.0.0.1", taken.address().port()).await;
    let error = error.err().expect("a port can be ours once");
    assert!(!error.is_host(), "{error}");
}

/// Many bytes that tell when nobody holds them any more.
pub(crate) struct Large(pub(crate) Vec<u8>, pub(crate) SyncSender<()>);

impl AsRef<[u8]> for Large {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        let _ = self.1.send(());
    }
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_off() {
    let served = Served::new(HURRY);
    let (tell, hear) = sync_channel(1);
    let large = move || {
        let bytes = Bytes::from_owner(Large(vec![b' '; 64 << 20], tell.clone()));
        async { Body::from(bytes) }
    };
    let address = served.port(Router::new().route("/large", get(large))).await;
    let mut stream = connect(address).await;
    let head = b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n";
    stream.write_all(head).await.expect("sent");
    let freed = tokio::task::spawn_blocking(move || hear.recv_timeout(LONG));
    assert_eq!(freed.await.expect("no panic"), Ok(()));
    drop(stream);
}

#[tokio::test]
async fn a_drain_does_not_wait_for_those_who_only_watch() {
    let served = Served::new(Patience::default());
    let fixture = Fixture::new();
    let (router, _report) = crate::grpc::router(&fixture).await;
    let address = served.port(router).await;
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    let channel = endpoint.connect().await.expect("a connection");
    let service = String::new();
    let mut watched = HealthClient::new(channel)
        .watch(HealthCheckRequest { service })
        .await
        .expect("a stream")
        .into_inner();
    assert!(watched.message().await.expect("a state").is_some());
    served.stop.cancel();
    let began = Instant::now();
    served.connections.drained(began + LONG).await;
    assert!(began.elapsed() < LONG / 2, "{:?}", began.elapsed());
    // And it is told.
    assert!(watched.message().await.is_err());
}

#[cfg(unix)]
#[tokio::test]
async fn as_many_files_as_the_system_allows() {
    use nix::sys::resource::{Resource, getrlimit};

    let _served = Served::new(HURRY);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    assert_eq!(soft, hard);
}
