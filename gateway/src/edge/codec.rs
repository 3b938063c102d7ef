//! gRPC's messages: counted before they are unpacked, and unpacked beside other tasks.

mod shape;

pub(super) use shape::{Shape, Shapes};

use super::body::Heft;
use super::wire::Refusal;
use crate::intake::Bounds;
use crate::runtime::aside;
use bytes::Buf;
use prost::Message;
use std::marker::PhantomData;
use tonic::Status;
use tonic::codec::{DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Prost's format. `E` goes out, `D` comes in.
pub(super) struct Codec<E, D> {
    bounds: Bounds,
    heft: Option<Heft>,
    shape: Shape,
    messages: PhantomData<fn(D) -> E>,
}

/// A message as it came. What is wrong with it is for its reader to tell: on a stream it is no reason to
/// read no further.
pub(super) struct Received<D> {
    /// Unpacked, or why it is not.
    pub(super) message: Result<D, Refusal>,
    /// The client's name for it, where messages of its kind have one: known of one that is too large, too.
    pub(super) id: String,
    /// What it had on the way.
    pub(super) bytes: usize,
}

/// Writes messages.
pub(super) struct Out<E>(PhantomData<fn(E)>);

/// Reads messages.
pub(super) struct In<D> {
    bounds: Bounds,
    heft: Option<Heft>,
    shape: Shape,
    message: PhantomData<fn() -> D>,
}

// === impl Codec ===

impl<E, D> Codec<E, D> {
    /// Messages of this shape within these bounds.
    pub(super) fn new(bounds: Bounds, shape: Shape) -> Self {
        Self {
            bounds,
            heft: None,
            shape,
            messages: PhantomData,
        }
    }

    /// Counts messages by what they are unpacked.
    pub(super) fn weighed(self, heft: Option<Heft>) -> Self {
        Self { heft, ..self }
    }
}

impl<E, D> tonic::codec::Codec for Codec<E, D>
where
    E: Message + 'static,
    D: Message + Default + 'static,
{
    type Encode = E;
    type Decode = Received<D>;
    type Encoder = Out<E>;
    type Decoder = In<D>;

    fn encoder(&mut self) -> Out<E> {
        Out(PhantomData)
    }

    fn decoder(&mut self) -> In<D> {
        In {
            bounds: self.bounds,
            heft: self.heft.clone(),
            shape: self.shape.clone(),
            message: PhantomData,
        }
    }
}

impl<E: Message> Encoder for Out<E> {
    type Item = E;
    type Error = Status;

    fn encode(&mut self, message: E, output: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let written = aside(message.encoded_len(), || message.encode(output));
        written.map_err(|error| Status::internal(error.to_string()))
    }
}

impl<D: Message + Default> Decoder for In<D> {
    type Item = Received<D>;
    type Error = Status;

    fn decode(&mut self, input: &mut DecodeBuf<'_>) -> Result<Option<Received<D>>, Status> {
        let bytes = input.remaining();
        // Packed, it has weighed less so far.
        let heft = self.heft.as_ref();
        let has_room = heft.map_or(Ok(()), |heft| heft.grow_to(bytes as u64));
        aside(bytes, || {
            let id = self.shape.id(input.chunk());
            // A string of nothing is two bytes here and twenty-four in memory.
            let fits = has_room.and_then(|()| self.shape.check(&self.bounds, input.chunk()));
            let message = match fits {
                Ok(()) => D::decode(&mut *input).map_err(|error| Refusal::BadMessage {
                    why: error.to_string(),
                }),
                Err(error) => Err(error.into()),
            };
            // What was not read is of this message all the same.
            input.advance(input.remaining());
            Ok(Some(Received { message, id, bytes }))
        })
    }
}
