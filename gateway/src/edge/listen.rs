//! Ports, sockets and connections: HTTP/1 and HTTP/2 on each, bounded and drained.

use super::socket::Socket;
use super::stream::{Stream, Traffic, Watched};
use super::tls::Tls;
use crate::runtime::{Runtime, now};
use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixStream, lookup_host};
use tokio::sync::Semaphore;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Open connections of one port or socket. Beyond it new ones wait in the kernel's backlog. Ports do not share
/// them: operators get in however many clients there are.
const CONNECTIONS_MAX: usize = 8_192;
/// A client that does not finish a request's head in this time is cut off.
const HEAD_TIME_MAX: Duration = Duration::from_secs(10);
/// A client that has been answered may keep its connection for this long. Longer than the proxies in
/// front of us keep theirs (nginx and load balancers 60 to 75 s): whoever closes first meets the other's
/// next request.
const IDLE_TIME_MAX: Duration = Duration::from_secs(90);
/// A client that takes nothing of what it is sent for this long is cut off.
const WRITE_TIME_MAX: Duration = Duration::from_secs(30);
/// HTTP/2 clients are asked this often whether they are still there, and have as long to say so.
const PING_PERIOD: Duration = Duration::from_secs(20);
/// When everybody has been answered, what is still open is idle, or a stream without an end (health
/// that is watched, reflection): it has this long to close.
const LINGER: Duration = Duration::from_secs(1);
/// Calls at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 1_024;
/// Streams of a connection that its client has given up before they were looked at; beyond it, it is an attack. Who
/// hedges requests gives up many at once.
const RESETS_MAX: usize = 512;
/// A request's head, all its headers together; a longer one is refused with 431.
const HEAD_BYTES_MAX: u32 = 64 << 10;
/// Headers of an HTTP/1 request; each of an HTTP/2 one counts 32 bytes more than it has.
const HEADERS_MAX: usize = 100;
/// A pause when the process has no more file descriptors, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Clients that the kernel takes in before we accept them; one more is told nothing and tries again a
/// second later. The kernel's own bound (`net.core.somaxconn`) is 4096 on today's Linux.
pub(super) const BACKLOG: u32 = 1_024;

/// Why a port could not be opened.
#[derive(Debug)]
pub enum BindError {
    /// The host has no address, or none of this machine's.
    Host {
        /// As it was given.
        host: String,
        /// The system's words or ours.
        why: String,
    },
    /// The port is taken or not allowed.
    Port {
        /// Where it was tried.
        address: SocketAddr,
        /// The system's words.
        error: io::Error,
    },
}

/// A port that is ours.
pub struct Listener {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<Tls>,
}

/// A port or a socket that is ours.
pub enum Listening {
    /// On an address.
    Port(Listener),
    /// On a file.
    Socket(Socket),
}

/// Where somebody is listened to; shows itself as `crossgate swap --admin` takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// An address, with its port.
    Port(SocketAddr),
    /// A Unix socket's file.
    Socket(PathBuf),
}

/// How long clients are waited for, and how many.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a request's head, once it or the connection has begun; before it for TLS's handshake.
    pub head: Duration,
    /// For the next request's first byte; HTTP/1.
    pub idle: Duration,
    /// For anything to be taken of what is sent.
    pub write: Duration,
    /// For a sign of life; HTTP/2.
    pub ping: Duration,
    /// Open connections of one port or socket.
    pub connections_max: usize,
}

/// Where a request's connection comes from; stands in its extensions. Not over a socket, where it comes from this
/// machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client(pub(super) IpAddr);

/// A connection that has come, before anything was said.
struct Accepted {
    stream: Either<TcpStream, UnixStream>,
    tls: Option<Tls>,
    client: Option<Client>,
}

/// All connections of all ports and sockets.
pub struct Connections {
    runtime: Runtime,
    patience: Patience,
    stop: CancellationToken,
    /// Those who accept.
    accepting: TaskTracker,
    /// Ends what is still open when the server has been drained.
    cut: CancellationToken,
    graceful: Arc<Mutex<Option<GracefulShutdown>>>,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            head: HEAD_TIME_MAX,
            idle: IDLE_TIME_MAX,
            write: WRITE_TIME_MAX,
            ping: PING_PERIOD,
            connections_max: CONNECTIONS_MAX,
        }
    }
}

impl Listener {
    /// Opens a port; port 0 is any that is free.
    ///
    /// # Errors
    /// Says whether the host or the port is at fault.
    pub async fn bind(host: &str, port: u16) -> Result<Self, BindError> {
        let of_host = |why: String| BindError::Host {
            host: host.to_owned(),
            why,
        };
        let addresses = lookup_host((host, port)).await;
        let addresses = addresses.map_err(|error| of_host(error.to_string()))?;
        let mut last = of_host("it has no address".to_owned());
        for address in addresses {
            match listen(address) {
                Ok(listener) => {
                    let address = listener.local_addr().unwrap_or(address);
                    return Ok(Self {
                        listener,
                        address,
                        tls: None,
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                    last = of_host("it is not an address of this machine".to_owned());
                }
                Err(error) => last = BindError::Port { address, error },
            }
        }
        Err(last)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// By TLS, where there is one.
    #[must_use]
    pub fn with_tls(self, tls: Option<Tls>) -> Self {
        Self { tls, ..self }
    }
}

/// As the standard library does, with a longer backlog.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    // On Unix: a restart does not wait for the last connections' TIME_WAIT. On Windows the option
    // means that others may take the port, too.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

// === impl Listening ===

impl Listening {
    /// Where it listens.
    pub fn place(&self) -> Place {
        match self {
            Self::Port(listener) => Place::Port(listener.address),
            Self::Socket(socket) => Place::Socket(socket.path().to_owned()),
        }
    }

    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Port(listener) => {
                let (stream, address) = listener.listener.accept().await?;
                // Small answers should not wait for more to send.
                let _ = stream.set_nodelay(true);
                Ok(Accepted {
                    stream: Either::Left(stream),
                    tls: listener.tls.clone(),
                    client: Some(Client(address.ip())),
                })
            }
            Self::Socket(socket) => Ok(Accepted {
                stream: Either::Right(socket.accept().await?),
                tls: None,
                client: None,
            }),
        }
    }
}

// === impl Accepted ===

impl Accepted {
    /// After TLS's handshake, where there is one; within so much time.
    async fn secured(self, time: Duration) -> io::Result<Stream> {
        match (self.stream, self.tls) {
            (Either::Left(stream), None) => Ok(Either::Left(stream)),
            (Either::Right(stream), _) => Ok(Either::Right(Either::Right(stream))),
            (Either::Left(stream), Some(tls)) => {
                let secured = tokio::time::timeout(time, tls.accept(stream)).await;
                let secured = secured.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
                Ok(Either::Right(Either::Left(Box::new(secured))))
            }
        }
    }
}

impl From<Listener> for Listening {
    fn from(listener: Listener) -> Self {
        Self::Port(listener)
    }
}

impl From<Socket> for Listening {
    fn from(socket: Socket) -> Self {
        Self::Socket(socket)
    }
}

// === impl Place ===

impl Place {
    /// Its address, if it is a port.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Port(address) => Some(*address),
            Self::Socket(_) => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(address) => address.fmt(f),
            Self::Socket(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

// === impl BindError ===

impl BindError {
    /// The host is at fault, not the port.
    pub fn is_host(&self) -> bool {
        matches!(self, Self::Host { .. })
    }
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host { host, why } => write!(
                f,
                "{host:?} cannot be listened on: {why}; name an address of this machine, or 0.0.0.0 for all"
            ),
            Self::Port { address, error } => write!(f, "{address}: {error}"),
        }
    }
}

impl std::error::Error for BindError {}

impl Connections {
    /// No connections yet; `stop` ends the accepting.
    pub fn new(runtime: Runtime, stop: CancellationToken) -> Self {
        raise_open_files();
        Self {
            runtime,
            patience: Patience::default(),
            stop,
            accepting: TaskTracker::new(),
            cut: CancellationToken::new(),
            graceful: Arc::new(Mutex::new(Some(GracefulShutdown::new()))),
        }
    }

    /// With other bounds than the usual.
    #[must_use]
    pub fn with_patience(self, patience: Patience) -> Self {
        Self { patience, ..self }
    }

    /// Accepts and serves connections until told to stop.
    pub fn serve(&self, listener: impl Into<Listening>, router: Router) {
        let listener = listener.into();
        let (runtime, patience) = (self.runtime.clone(), self.patience);
        let (stop, cut) = (self.stop.clone(), self.cut.clone());
        let graceful = Arc::clone(&self.graceful);
        let open = Arc::new(Semaphore::new(patience.connections_max));
        let accepting = async move {
            loop {
                let accepted = async {
                    // Acquired first: at the bound nobody is accepted. The semaphore is never closed.
                    let permit = Arc::clone(&open).acquire_owned().await;
                    (permit, listener.accept().await)
                };
                let Some((permit, accepted)) = stop.run_until_cancelled(accepted).await else {
                    return;
                };
                match accepted {
                    Ok(accepted) => {
                        let graceful = Arc::clone(&graceful);
                        let connection = connection(accepted, router.clone(), patience, graceful);
                        let cut = cut.clone();
                        runtime.task(async move {
                            cut.run_until_cancelled(connection).await;
                            drop(permit);
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        self.runtime.task(self.accepting.track_future(accepting));
    }

    /// Waits until nobody accepts any more, so that ports are closed and sockets' files gone; tells clients to
    /// close their connections, waits a moment for those that do, at most until `deadline`, and closes the rest.
    /// To be called when accepting was told to stop and everybody has been answered.
    pub async fn drained(&self, deadline: Instant) {
        self.accepting.close();
        let _ = tokio::time::timeout_at(deadline.into(), self.accepting.wait()).await;
        let graceful = self
            .graceful
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(graceful) = graceful {
            let deadline = deadline.min(now() + LINGER);
            let _ = tokio::time::timeout_at(deadline.into(), graceful.shutdown()).await;
        }
        self.cut.cancel();
    }
}

/// Raises the limit on open files to what the system allows: the usual 1024 is less than the
/// connections that are accepted.
fn raise_open_files() {
    #[cfg(unix)]
    {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};

        if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
            && soft < hard
            && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
        {
            tracing::warn!(%error, soft, hard, "the limit on open files could not be raised");
        }
    }
}

async fn connection(
    accepted: Accepted,
    router: Router,
    patience: Patience,
    graceful: Arc<Mutex<Option<GracefulShutdown>>>,
) {
    let client = accepted.client;
    let stream = match accepted.secured(patience.head).await {
        Ok(stream) => stream,
        Err(error) => {
            // Scanners and those who speak without TLS are everyday life.
            tracing::debug!(%error, "a connection's TLS handshake failed");
            return;
        }
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // No `half_close`: a client that closes its connection and one that will still read send the same
    // FIN, and only a write would tell them apart. Those who go away are many, and their documents
    // should not be computed; those who close the half that they have written are few.
    builder
        .http1()
        .timer(TokioTimer::new())
        .max_buf_size(HEAD_BYTES_MAX as usize)
        .max_headers(HEADERS_MAX)
        // It runs from the last answer's end: a head that has begun is watched by the stream.
        .header_read_timeout(patience.idle);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(patience.ping)
        .keep_alive_timeout(patience.ping)
        .max_concurrent_streams(STREAMS_MAX)
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX);
    let traffic = Arc::new(Traffic::default());
    let stream = Watched::new(stream, Arc::clone(&traffic), patience);
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        if let Some(client) = client {
            request.extensions_mut().insert(client);
        }
        let inside = traffic.call();
        let answer = router.call(request);
        async move {
            let answer = answer.await;
            drop(inside);
            answer
        }
    });
    let served = builder
        .serve_connection(TokioIo::new(stream), service)
        .into_owned();
    let watched = graceful
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .as_ref()
        .map(|graceful| graceful.watch(served));
    let Some(watched) = watched else { return };
    if let Err(error) = watched.await {
        // Clients that go away are everyday life.
        tracing::debug!(%error, "a connection ended early");
    }
}
