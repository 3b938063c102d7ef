//! Ports and connections: HTTP/1 and HTTP/2 on each, bounded and drained.

use crate::runtime::Runtime;
use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Open connections, over all ports. Beyond it new ones wait in the kernel's backlog.
const CONNECTIONS_MAX: usize = 8_192;
/// A client that does not finish its headers in this time is cut off.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Calls at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 1_024;
/// A pause when the process has no more file descriptors, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A port that is ours.
pub struct Listener {
    listener: TcpListener,
    address: SocketAddr,
}

/// All connections of all ports.
pub struct Connections {
    runtime: Runtime,
    stop: CancellationToken,
    open: Arc<Semaphore>,
    graceful: Arc<Mutex<Option<GracefulShutdown>>>,
}

impl Listener {
    /// Opens a port; port 0 is any that is free.
    pub async fn bind(host: &str, port: u16) -> io::Result<Self> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
        for address in lookup_host((host, port)).await? {
            match TcpListener::bind(address).await {
                Ok(listener) => {
                    let address = listener.local_addr()?;
                    return Ok(Self { listener, address });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Connections {
    /// No connections yet; `stop` ends the accepting.
    pub fn new(runtime: Runtime, stop: CancellationToken) -> Self {
        Self {
            runtime,
            stop,
            open: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            graceful: Arc::new(Mutex::new(Some(GracefulShutdown::new()))),
        }
    }

    /// Accepts and serves connections until told to stop.
    pub fn serve(&self, listener: Listener, router: Router) {
        let (runtime, stop) = (self.runtime.clone(), self.stop.clone());
        let (open, graceful) = (Arc::clone(&self.open), Arc::clone(&self.graceful));
        self.runtime.task(async move {
            loop {
                let accepted = async {
                    // Acquired first: at the bound nobody is accepted. The semaphore is never closed.
                    let permit = Arc::clone(&open).acquire_owned().await;
                    (permit, listener.listener.accept().await)
                };
                let Some((permit, accepted)) = stop.run_until_cancelled(accepted).await else {
                    return;
                };
                match accepted {
                    Ok((stream, _)) => {
                        let connection = connection(stream, router.clone(), &graceful);
                        runtime.task(async move {
                            connection.await;
                            drop(permit);
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        });
    }

    /// Lets open connections finish the call they are in, at most until `deadline`.
    pub async fn drained(&self, deadline: Instant) {
        let graceful = self
            .graceful
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(graceful) = graceful {
            // Clients that keep an idle connection do not count: they are told to close it.
            let _ = tokio::time::timeout_at(deadline.into(), graceful.shutdown()).await;
        }
    }
}

fn connection(
    stream: TcpStream,
    router: Router,
    graceful: &Mutex<Option<GracefulShutdown>>,
) -> impl Future<Output = ()> + Send + use<> {
    // Small answers should not wait for more to send.
    let _ = stream.set_nodelay(true);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX);
    let served = builder
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .into_owned();
    let watched = graceful
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .as_ref()
        .map(|graceful| graceful.watch(served));
    async move {
        let Some(watched) = watched else { return };
        if let Err(error) = watched.await {
            // Clients that go away are everyday life.
            tracing::debug!(%error, "a connection ended early");
        }
    }
}
