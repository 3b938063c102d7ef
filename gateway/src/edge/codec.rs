//! gRPC's messages: counted before they are unpacked, and unpacked beside other tasks.

use super::body::Heft;
use super::wire::{Refusal, wire};
use crate::intake::Bounds;
use crate::runtime::aside;
use bytes::Buf;
use prost::Message;
use prost::encoding::{DecodeContext, decode_key, skip_field};
use std::marker::PhantomData;
use tonic::Status;
use tonic::codec::{DecodeBuf, Decoder, EncodeBuf, Encoder};

/// The number of `documents` in every message that asks for scores.
const DOCUMENTS: u32 = 3;

/// Prost's format. `E` goes out, `D` comes in.
pub(super) struct Codec<E, D> {
    bounds: Bounds,
    heft: Option<Heft>,
    messages: PhantomData<fn(D) -> E>,
}

/// Writes messages.
pub(super) struct Out<E>(PhantomData<fn(E)>);

/// Reads messages.
pub(super) struct In<D> {
    bounds: Bounds,
    heft: Option<Heft>,
    message: PhantomData<fn() -> D>,
}

// === impl Codec ===

impl<E, D> Codec<E, D> {
    /// Messages within these bounds.
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            heft: None,
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
    type Decode = D;
    type Encoder = Out<E>;
    type Decoder = In<D>;

    fn encoder(&mut self) -> Out<E> {
        Out(PhantomData)
    }

    fn decoder(&mut self) -> In<D> {
        In {
            bounds: self.bounds,
            heft: self.heft.clone(),
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
    type Item = D;
    type Error = Status;

    fn decode(&mut self, input: &mut DecodeBuf<'_>) -> Result<Option<D>, Status> {
        if let Some(heft) = &self.heft {
            heft.grow_to(input.remaining() as u64)
                .map_err(|error| refused(&error.into()))?;
        }
        aside(input.remaining(), || {
            // A string of nothing is two bytes here and twenty-four in memory.
            let n_documents = count(DOCUMENTS, input.chunk());
            self.bounds
                .check_count(n_documents)
                .map_err(|error| refused(&error.into()))?;
            let message = D::decode(input);
            message.map(Some).map_err(|error| {
                let why = error.to_string();
                refused(&Refusal::BadMessage { why })
            })
        })
    }
}

fn refused(refusal: &Refusal) -> Status {
    Status::new(wire(refusal).grpc, refusal.reason())
}

/// How often a field stands in a message. Stops where the message makes no sense: to say so is for
/// its reader.
fn count(field: u32, mut message: &[u8]) -> usize {
    let mut n = 0;
    while message.has_remaining() {
        let Ok((tag, wire_type)) = decode_key(&mut message) else {
            break;
        };
        n += usize::from(tag == field);
        if skip_field(wire_type, tag, &mut message, DecodeContext::default()).is_err() {
            break;
        }
    }
    n
}
