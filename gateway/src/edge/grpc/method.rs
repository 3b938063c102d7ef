//! How methods are served: one message for one, many for one. Handlers see what is asked and say what is
//! answered or refused; what either becomes on the wire is told here.

use super::super::Edge;
use super::super::body::{Heft, Metered, held};
use super::super::call::Call;
use super::super::codec::{Codec, Received, Shape, Shapes};
use super::super::packed::PACKED_BYTES_MIN;
use super::super::post::content_length;
use super::super::wire::{Refusal, status};
use super::super::words::Words;
use super::deadline;
use crate::runtime::Runtime;
use crate::score::ScoreError;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{MethodRouter, post};
use http_body_util::BodyExt as _;
use prost::Message;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::codec::CompressionEncoding::{Gzip, Zstd};
use tonic::server::Grpc;
use tonic::{Code, Streaming};
use tonic_reflection::server::Error;
use tower::service_fn;

/// Beyond its deadline, the longest that a call whose message has not arrived is waited for.
const READ_GRACE: Duration = Duration::from_secs(1);

/// How tonic begins what it says of a message that it cannot unpack.
const UNPACKING: &str = "Error decompressing";

/// What a handler is asked.
pub(super) struct Asked<D> {
    pub(super) edge: Arc<Edge>,
    pub(super) runtime: Runtime,
    pub(super) call: Call,
    /// When the answer is of no use any more.
    pub(super) deadline: Instant,
    pub(super) message: D,
}

/// What a handler says.
pub(super) type Answered<E> = Result<tonic::Response<E>, Refusal>;

/// The methods one by one, and not by a server that is made from `proto/`: such a one unpacks a message
/// before anybody can look at it.
pub(super) struct Methods {
    pub(super) edge: Arc<Edge>,
    pub(super) runtime: Runtime,
    shapes: Shapes,
    /// Those that are let in at the door, and those that cost nothing or come in bit by bit.
    at_door: Router,
    pub(super) open: Router,
    pub(super) routes: Vec<&'static str>,
}

// === impl Asked ===

impl<D> Asked<D> {
    /// The same about something else.
    pub(super) fn with<T>(self, message: T) -> Asked<T> {
        Asked {
            edge: self.edge,
            runtime: self.runtime,
            call: self.call,
            deadline: self.deadline,
            message,
        }
    }
}

// === impl Methods ===

impl Methods {
    pub(super) fn new(edge: Arc<Edge>, shapes: Shapes, runtime: Runtime) -> Self {
        Self {
            edge,
            runtime,
            shapes,
            at_door: Router::new(),
            open: Router::new(),
            routes: Vec::new(),
        }
    }

    /// One message in, one out, behind the door: it asks for scores, or for something as dear.
    pub(super) fn ask<D, E, F>(
        mut self,
        path: &'static str,
        handler: impl Fn(Asked<D>) -> F + Clone + Send + Sync + 'static,
    ) -> Result<Self, Error>
    where
        D: Message + Default + 'static,
        E: Message + 'static,
        F: Future<Output = Answered<E>> + Send + 'static,
    {
        let method = self.one(path, handler)?;
        self.at_door = self.at_door.route(path, method);
        Ok(self)
    }

    /// One message in, one out, without waiting for anybody.
    pub(super) fn tell<D, E, F>(
        mut self,
        path: &'static str,
        handler: impl Fn(Asked<D>) -> F + Clone + Send + Sync + 'static,
    ) -> Result<Self, Error>
    where
        D: Message + Default + 'static,
        E: Message + 'static,
        F: Future<Output = Answered<E>> + Send + 'static,
    {
        let method = self.one(path, handler)?;
        self.open = self.open.route(path, method);
        Ok(self)
    }

    /// Many messages in, each a row, and one out when the last has come. All of them together are one
    /// request, with the bounds of one, which are told in the `words` of its dialect.
    pub(super) fn gather<D, E, F>(
        mut self,
        path: &'static str,
        words: &'static Words,
        handler: impl Fn(Asked<Vec<D>>) -> F + Clone + Send + Sync + 'static,
    ) -> Result<Self, Error>
    where
        D: Message + Default + 'static,
        E: Message + 'static,
        F: Future<Output = Answered<E>> + Send + 'static,
    {
        let (edge, shape) = (Arc::clone(&self.edge), self.shape(path)?);
        let runtime = self.runtime.clone();
        let method = post(async move |request: Request| {
            let house = (Arc::clone(&edge), runtime);
            let answer = move |request: tonic::Request<Streaming<Received<D>>>| {
                let (house, handler) = (house.clone(), handler.clone());
                async move {
                    let (metadata, extensions, mut coming) = request.into_parts();
                    let call = Call::of(&extensions);
                    let mut messages = Vec::new();
                    while let Some(received) = coming.message().await? {
                        let fits = house.0.door.bounds().check_count(messages.len() + 1);
                        let fits = fits.map_err(|error| words.say(error));
                        let fits = fits.map_err(Refusal::from).and(received.message);
                        messages.push(fits.map_err(|refusal| status(&refusal, &call))?);
                    }
                    let asked = asked(house, &call, metadata.as_ref(), messages);
                    let answered = handler(asked).await.map(packed_if_large);
                    answered.map_err(|refusal| status(&refusal, &call))
                }
            };
            let heft = request.extensions().get::<Heft>().cloned();
            let call = Call::of(request.extensions());
            let mut grpc = grpc::<E, D>(&edge, shape, heft);
            let answered = grpc.client_streaming(service_fn(answer), request).await;
            in_our_words(answered.map(Body::new), &edge, &call)
        });
        self.at_door = self.at_door.route(path, method);
        Ok(self)
    }

    /// All of them, and their paths.
    pub(super) fn into_router(self) -> (Router, Vec<&'static str>) {
        let entered = self
            .at_door
            .route_layer(from_fn_with_state(self.edge, enter));
        (entered.merge(self.open), self.routes)
    }

    fn one<D, E, F>(
        &mut self,
        path: &'static str,
        handler: impl Fn(Asked<D>) -> F + Clone + Send + Sync + 'static,
    ) -> Result<MethodRouter, Error>
    where
        D: Message + Default + 'static,
        E: Message + 'static,
        F: Future<Output = Answered<E>> + Send + 'static,
    {
        let (edge, shape) = (Arc::clone(&self.edge), self.shape(path)?);
        let runtime = self.runtime.clone();
        Ok(post(async move |request: Request| {
            let house = (Arc::clone(&edge), runtime);
            let answer = move |request: tonic::Request<Received<D>>| {
                let (house, handler) = (house.clone(), handler.clone());
                async move {
                    let (metadata, extensions, received) = request.into_parts();
                    let call = Call::of(&extensions);
                    let answered = match received.message {
                        Ok(message) => {
                            handler(asked(house, &call, metadata.as_ref(), message)).await
                        }
                        Err(refusal) => Err(refusal),
                    };
                    let answered = answered.map(packed_if_large);
                    answered.map_err(|refusal| status(&refusal, &call))
                }
            };
            let heft = request.extensions().get::<Heft>().cloned();
            let call = Call::of(request.extensions());
            let mut grpc = grpc::<E, D>(&edge, shape, heft);
            let answered = grpc.unary(service_fn(answer), request).await;
            in_our_words(answered.map(Body::new), &edge, &call)
        }))
    }

    /// What the method takes. Its path is counted in metrics from here on.
    pub(super) fn shape(&mut self, path: &'static str) -> Result<Shape, Error> {
        self.routes.push(path);
        let shape = self.shapes.of(path);
        shape.map_err(Error::InvalidFileDescriptorSet)
    }
}

fn asked<D>(
    (edge, runtime): (Arc<Edge>, Runtime),
    call: &Call,
    headers: &HeaderMap,
    message: D,
) -> Asked<D> {
    let deadline = deadline(&edge, call, headers);
    Asked {
        edge,
        runtime,
        call: call.clone(),
        deadline,
        message,
    }
}

/// The protocol for messages of this shape, packed or not; `heft` grows with what is unpacked.
///
/// The zstd library refuses a window of more than 2^27 bytes. Of that a message touches no more than it is unpacked, which
/// `body_bytes_max` bounds, and gives it back before the next one on its thread is unpacked.
pub(super) fn grpc<E, D>(edge: &Edge, shape: Shape, heft: Option<Heft>) -> Grpc<Codec<E, D>>
where
    D: Message + Default + 'static,
    E: Message + 'static,
{
    let codec = Codec::new(*edge.door.bounds(), shape).weighed(heft);
    Grpc::new(codec)
        .max_decoding_message_size(edge.settings.body_bytes_max)
        .accept_compressed(Gzip)
        .accept_compressed(Zstd)
        .send_compressed(Gzip)
        .send_compressed(Zstd)
}

/// Many clients accept packed answers without a thought; a small one is not worth it.
fn packed_if_large<E: Message>(mut answer: tonic::Response<E>) -> tonic::Response<E> {
    if (answer.get_ref().encoded_len() as u64) < PACKED_BYTES_MIN {
        answer.disable_compression();
    }
    answer
}

/// Before the message is read: a pass.
async fn enter(State(edge): State<Arc<Edge>>, request: Request, next: Next) -> Response {
    let call = Call::of(request.extensions());
    let announced = content_length(request.headers());
    let head = (request.headers(), request.extensions());
    let pass = match edge.enter(head, announced).await {
        Ok(pass) => pass,
        Err(error) => return status(&error.into(), &call).into_http(),
    };
    let bytes_max = edge.settings.body_bytes_max;
    let weight = Arc::clone(pass.weight());
    let (mut head, body) = request.into_parts();
    let body = Metered::new(body, Arc::clone(&weight), bytes_max);
    head.extensions.insert(body.heft());
    let of_body = call.clone();
    let body = Body::new(body.map_err(move |refusal| status(&refusal, &of_body)));
    let request = Request::from_parts(head, body);
    // The core keeps the deadline; a message that never arrives does not reach it.
    let deadline = deadline(&edge, &call, request.headers()) + READ_GRACE;
    let Ok(response) = tokio::time::timeout_at(deadline.into(), next.run(request)).await else {
        let error = ScoreError::DeadlinePassed {
            after: call.elapsed(),
        };
        return status(&error.into(), &call).into_http();
    };
    held(response, weight)
}

/// What tonic refuses by itself, as everything else is refused.
fn in_our_words(response: Response, edge: &Edge, call: &Call) -> Response {
    let bytes_max = edge.settings.body_bytes_max;
    match tonic::Status::from_header_map(response.headers()) {
        // So says tonic of a message that is too long; everyone else has another word for it.
        Some(found) if found.code() == Code::OutOfRange || is_too_long_unpacked(&found) => {
            status(&Refusal::BodyTooLarge { bytes_max }, call).into_http()
        }
        Some(found) if is_packed_wrongly(&found) => status(&packed_wrongly(), call).into_http(),
        _ => response,
    }
}

/// So says tonic of a message that is too long once it is unpacked; its code is that of others, too.
fn is_too_long_unpacked(status: &tonic::Status) -> bool {
    status.code() == Code::ResourceExhausted && status.message().starts_with(UNPACKING)
}

/// So says tonic of a message that does not unpack, and takes it for the server's mistake.
pub(super) fn is_packed_wrongly(status: &tonic::Status) -> bool {
    status.code() == Code::Internal && status.message().starts_with(UNPACKING)
}

/// What is told of it.
pub(super) fn packed_wrongly() -> Refusal {
    let why = "it cannot be unpacked as its grpc-encoding says".to_owned();
    Refusal::BadMessage { why }
}
