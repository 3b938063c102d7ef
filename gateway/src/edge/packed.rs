//! Packed bodies: requests' by `Content-Encoding`, answers' by `Accept-Encoding`.
//!
//! Whoever reads a request counts what comes out of here, so that what is packed small and is large is refused
//! at the same bound as what comes as it is, with no more of it unpacked than that.

use super::wire::Refusal;
use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
use async_compression::zstd::DParameter;
use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, Response};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::task::coop::poll_proceed;
use tokio_stream::StreamExt as _;
use tokio_util::io::{ReaderStream, StreamReader};
use tower_http::CompressionLevel;
use tower_http::compression::{CompressionLayer, Predicate};

/// What requests may come in, for `Accept-Encoding`.
pub(super) const TAKEN: &str = "gzip, zstd, identity";
/// An answer of fewer bytes is sent as it is: it fits in a packet either way.
pub(super) const PACKED_BYTES_MIN: u64 = 1_024;
/// The memory that a body's zstd frame may ask for is at most 2^23 bytes, as RFC 9659 has it.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
/// Unpacked at once.
const PIECE_BYTES: usize = 16 << 10;

/// How a request's body is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// Which answers are worth packing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Worth;

/// Packs answers for those who accept it. Quickly: a client is waiting, and JSON packs well at any level.
pub(super) fn packing() -> CompressionLayer<Worth> {
    CompressionLayer::new()
        .quality(CompressionLevel::Fastest)
        .compress_when(Worth)
}

/// A client may refuse answers as they are (`identity;q=0`). It gets them all the same where nothing else is left:
/// work that is done is not thrown away for that, and errors are small.
pub(super) async fn accept_plain(mut request: Request) -> Request {
    let headers = request.headers_mut();
    let said: Vec<_> = headers
        .get_all(ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    let refuses = |item: &&str| {
        let (name, weight) = item.split_once(';').unwrap_or((item, ""));
        let weight = weight.trim().strip_prefix("q=").map(str::trim);
        matches!(name.trim(), "identity" | "*")
            && weight.is_some_and(|weight| weight.parse::<f32>() == Ok(0.0))
    };
    if said.iter().any(refuses) {
        let left = said.into_iter().filter(|item| !refuses(item));
        let left = HeaderValue::from_str(&left.collect::<Vec<_>>().join(", "));
        headers.remove(ACCEPT_ENCODING);
        headers.extend(left.map(|left| (ACCEPT_ENCODING, left)));
    }
    request
}

// === impl Packing ===

impl Packing {
    /// By its header.
    ///
    /// # Errors
    /// `Encoding` when it is packed in another way, or twice.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let values = headers.get_all(CONTENT_ENCODING).iter();
        let found: Vec<_> = values
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        let found = found.join(", ");
        let mut packings = found
            .split(',')
            .map(|name| name.trim().to_ascii_lowercase())
            .filter(|name| !matches!(name.as_str(), "" | "identity"));
        match (packings.next().as_deref(), packings.next()) {
            (None, _) => Ok(Self::Plain),
            (Some("gzip" | "x-gzip"), None) => Ok(Self::Gzip),
            (Some("zstd"), None) => Ok(Self::Zstd),
            _ => Err(Refusal::Encoding { found }),
        }
    }

    /// The body as it was before it was packed. What makes no sense breaks off.
    pub(super) fn unpack(self, body: Body) -> Body {
        let packed = |body: Body| {
            let pieces = body.into_data_stream();
            StreamReader::new(pieces.map(|piece| piece.map_err(io::Error::other)))
        };
        match self {
            Self::Plain => body,
            Self::Gzip => {
                let mut unpacked = GzipDecoder::new(packed(body));
                // A file that was appended to is a gzip file, too.
                unpacked.multiple_members(true);
                in_pieces(unpacked)
            }
            Self::Zstd => {
                let bounds = [DParameter::window_log_max(ZSTD_WINDOW_LOG_MAX)];
                let mut unpacked = ZstdDecoder::with_params(packed(body), &bounds);
                // Frames follow each other as members do.
                unpacked.multiple_members(true);
                in_pieces(unpacked)
            }
        }
    }
}

fn in_pieces(unpacked: impl AsyncRead + Send + 'static) -> Body {
    let paced = Paced(Box::pin(unpacked));
    Body::from_stream(ReaderStream::with_capacity(paced, PIECE_BYTES))
}

/// Lets other tasks have their turn: a few packets may take a hundred milliseconds to unpack, without a wait.
struct Paced<R>(Pin<Box<R>>);

impl<R: AsyncRead> AsyncRead for Paced<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let turn = ready!(poll_proceed(context));
        let outcome = self.0.as_mut().poll_read(context, buffer);
        if outcome.is_ready() {
            turn.made_progress();
        }
        outcome
    }
}

// === impl Worth ===

impl Predicate for Worth {
    /// Not what is small, nor what is sent piece by piece: a packer would hold the pieces back.
    fn should_compress<B: HttpBody>(&self, response: &Response<B>) -> bool {
        let is_image = response
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"image/png"));
        let bytes = response.body().size_hint().exact();
        !is_image && bytes.is_some_and(|bytes| PACKED_BYTES_MIN <= bytes)
    }
}
