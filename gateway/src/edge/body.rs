//! Bodies by weight: what arrives is counted at the door as it comes, and what is sent counts until
//! it has gone out.

use super::wire::Refusal;
use crate::intake::Weight;
use crate::score::ScoreError;
use axum::body::{Body, HttpBody};
use axum::response::Response;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

/// A request's body on its way in. Every protocol reads through one of these.
pub(super) struct Metered {
    body: Body,
    weight: Arc<Weight>,
    bytes: u64,
    bytes_max: usize,
    /// Of a message that is unpacked behind this body.
    unpacked: Arc<AtomicU64>,
}

/// Counts a message that whoever reads the body unpacks, as gRPC's are.
#[derive(Clone)]
pub(super) struct Heft {
    weight: Arc<Weight>,
    unpacked: Arc<AtomicU64>,
}

/// An answer's body on its way out.
struct Held {
    body: Body,
    weight: Arc<Weight>,
}

/// Bytes that have not been written to the socket yet: whoever writes them drops them.
struct Unsent {
    bytes: Bytes,
    _weight: Arc<Weight>,
}

/// Keeps a request's weight at the door until its answer has been sent.
pub(super) fn held(response: Response, weight: Arc<Weight>) -> Response {
    response.map(|body| Body::new(Held { body, weight }))
}

// === impl Metered ===

impl Metered {
    /// A body of at most `bytes_max` bytes.
    pub(super) fn new(body: Body, weight: Arc<Weight>, bytes_max: usize) -> Self {
        Self {
            body,
            weight,
            bytes: 0,
            bytes_max,
            unpacked: Arc::default(),
        }
    }

    /// For whoever unpacks it.
    pub(super) fn heft(&self) -> Heft {
        Heft {
            weight: Arc::clone(&self.weight),
            unpacked: Arc::clone(&self.unpacked),
        }
    }

    /// The whole of it.
    pub(super) async fn whole(&mut self) -> Result<Bytes, Refusal> {
        let whole = BodyExt::collect(self).await?;
        Ok(whole.to_bytes())
    }

    /// What a refused body has not brought yet, which weighs nothing: it is not kept.
    pub(super) fn rest(&mut self) -> Body {
        std::mem::take(&mut self.body)
    }

    fn count(&mut self, frame: &Frame<Bytes>) -> Result<(), Refusal> {
        let Some(data) = frame.data_ref() else {
            return Ok(());
        };
        self.bytes += data.len() as u64;
        if self.bytes_max as u64 >= self.bytes {
            Ok(self.weight.grow_to(self.bytes)?)
        } else {
            let bytes_max = self.bytes_max;
            Err(Refusal::BodyTooLarge { bytes_max })
        }
    }
}

impl HttpBody for Metered {
    type Data = Bytes;
    type Error = Refusal;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Refusal>>> {
        let frame = match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(frame)) => frame,
        };
        let counted = match frame {
            Ok(frame) => self.count(&frame).map(|()| frame),
            Err(error) => Err(Refusal::BodyBroken {
                why: error.to_string(),
            }),
        };
        Poll::Ready(Some(counted))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        // Read to its end or not: no more of it will be kept.
        let unpacked = self.unpacked.load(Ordering::Relaxed);
        self.weight.settle(self.bytes.max(unpacked));
    }
}

// === impl Heft ===

impl Heft {
    /// A message has so many bytes.
    ///
    /// # Errors
    /// `Overloaded` when there is no room for them.
    pub(super) fn grow_to(&self, bytes: u64) -> Result<(), ScoreError> {
        self.weight.grow_to(bytes)?;
        self.unpacked.fetch_max(bytes, Ordering::Relaxed);
        Ok(())
    }
}

// === impl Held ===

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let weight = Arc::clone(&self.weight);
        let frame = Pin::new(&mut self.body).poll_frame(context);
        // The body itself ends as soon as the server has queued its bytes, long before a slow client
        // has taken them.
        frame.map_ok(|frame| {
            frame.map_data(|bytes| {
                let _weight = weight;
                Bytes::from_owner(Unsent { bytes, _weight })
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl AsRef<[u8]> for Unsent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}
