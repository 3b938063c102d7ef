//! A connection's bytes, under a watch: who keeps it without using it is cut off.
//!
//! The server loop above has one timer, from the end of an answer to the end of the next head. It
//! cannot tell an idle client, which may take its time, from one that has begun to speak and
//! stopped; nor does it run before the client has shown which HTTP it speaks.

use super::listen::Patience;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

/// After the last answer, the longest that a client is listened to that is still sending.
const LINGER_TIME_MAX: Duration = Duration::from_secs(1);
/// And the most of it that is read: twice the largest body by default, so that a client that reads
/// only after it has sent everything learns that its body was too long.
const LINGER_BYTES_MAX: usize = 64 << 20;
/// Read at once from a client to whom nobody listens.
const LINGER_PIECE_BYTES: usize = 16 << 10;

/// What every HTTP/2 client says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Over a port, openly or by TLS, or over a socket.
pub(super) type Stream = Either<TcpStream, Either<Box<TlsStream<TcpStream>>, UnixStream>>;

/// Calls of one connection, as its service counts them.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    begun: AtomicUsize,
    ended: AtomicUsize,
}

/// A call; it ends when this is dropped.
pub(super) struct Inside(Arc<Traffic>);

/// A stream with a watch.
pub(super) struct Watched {
    stream: Stream,
    traffic: Arc<Traffic>,
    patience: Patience,
    speaks: Speaks,
    /// Runs while a head is due: from the first byte of it, or of the connection.
    head: Option<Pin<Box<Sleep>>>,
    /// Calls that had begun when the head was last looked at.
    begun: usize,
    /// Runs while the client takes nothing of what is sent.
    write: Option<Pin<Box<Sleep>>>,
    /// Runs from our end of the connection to the client's.
    linger: Option<Linger>,
}

/// Closing a connection on which bytes are still arriving resets it, and the client loses the answer
/// that it has not read yet.
struct Linger {
    until: Pin<Box<Sleep>>,
    bytes: usize,
}

/// Which HTTP a client speaks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Speaks {
    /// So many bytes of the preface, and no other.
    Unknown(usize),
    Http1,
    /// It has pings to show who is still there.
    Http2,
}

// === impl Traffic ===

impl Traffic {
    /// A head has been read.
    pub(super) fn call(self: &Arc<Self>) -> Inside {
        self.begun.fetch_add(1, Ordering::Relaxed);
        Inside(Arc::clone(self))
    }

    fn begun(&self) -> usize {
        self.begun.load(Ordering::Relaxed)
    }

    fn is_idle(&self) -> bool {
        self.ended.load(Ordering::Relaxed) == self.begun()
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}

// === impl Speaks ===

impl Speaks {
    fn after(self, bytes: &[u8]) -> Self {
        let Self::Unknown(seen) = self else {
            return self;
        };
        let rest = &PREFACE[seen..];
        let n = rest.len().min(bytes.len());
        if rest[..n] != bytes[..n] {
            Self::Http1
        } else if n == rest.len() {
            Self::Http2
        } else {
            Self::Unknown(seen + n)
        }
    }
}

// === impl Watched ===

impl Watched {
    /// The first head is due.
    pub(super) fn new(stream: Stream, traffic: Arc<Traffic>, patience: Patience) -> Self {
        Self {
            stream,
            traffic,
            patience,
            speaks: Speaks::Unknown(0),
            head: Some(timer(patience.head)),
            begun: 0,
            write: None,
            linger: None,
        }
    }

    /// Bytes have come: of a head, if no call is inside.
    fn heard(&mut self, bytes: &[u8]) {
        self.speaks = self.speaks.after(bytes);
        if self.speaks == Speaks::Http2 {
            self.head = None;
        } else if !bytes.is_empty() && self.head.is_none() && self.traffic.is_idle() {
            self.head = Some(timer(self.patience.head));
        }
    }

    /// A call has begun: its head is no longer due.
    fn look(&mut self) {
        let begun = self.traffic.begun();
        if begun != self.begun {
            self.begun = begun;
            self.head = None;
        }
    }

    /// Passes on what a write has come to, unless it has waited for too long.
    fn wrote<T>(
        &mut self,
        outcome: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.write = None;
            return outcome;
        }
        let patience = self.patience.write;
        let write = self.write.get_or_insert_with(|| timer(patience));
        write
            .as_mut()
            .poll(context)
            .map(|()| late("the client takes nothing"))
    }
}

fn timer(time: Duration) -> Pin<Box<Sleep>> {
    Box::pin(sleep_until(Instant::now() + time))
}

fn late<T>(why: &'static str) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::TimedOut, why))
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.look();
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        if outcome.is_ready() {
            self.heard(&buffer.filled()[before..]);
            return outcome;
        }
        match &mut self.head {
            Some(head) => head
                .as_mut()
                .poll(context)
                .map(|()| late("the client does not finish its request's head")),
            None => Poll::Pending,
        }
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wrote(outcome, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.wrote(outcome, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    // TLS has something to flush, and waits for the client with it.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(context);
        self.wrote(outcome, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger.is_none() {
            let outcome = Pin::new(&mut self.stream).poll_shutdown(context);
            ready!(self.wrote(outcome, context))?;
        }
        let Self { stream, linger, .. } = &mut *self;
        let linger = linger.get_or_insert_with(Linger::new);
        linger.poll(stream, context).map(Ok)
    }
}

// === impl Linger ===

impl Linger {
    fn new() -> Self {
        Self {
            until: timer(LINGER_TIME_MAX),
            bytes: 0,
        }
    }

    /// Reads until the client has closed its end, or for long enough.
    fn poll(&mut self, stream: &mut Stream, context: &mut Context<'_>) -> Poll<()> {
        let mut piece = [MaybeUninit::uninit(); LINGER_PIECE_BYTES];
        // The stream itself says `Pending` from time to time, so that other tasks have their turn.
        while self.bytes < LINGER_BYTES_MAX {
            let mut piece = ReadBuf::uninit(&mut piece);
            match Pin::new(&mut *stream).poll_read(context, &mut piece) {
                Poll::Pending => return self.until.as_mut().poll(context),
                Poll::Ready(Ok(())) if !piece.filled().is_empty() => {
                    self.bytes += piece.filled().len();
                }
                Poll::Ready(_) => break,
            }
        }
        Poll::Ready(())
    }
}
