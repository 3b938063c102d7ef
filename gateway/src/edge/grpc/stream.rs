//! Streams both ways: each message is a request of its own, let in at the door on its own, and no more are
//! read than their answers have room for.

use super::super::Edge;
use super::super::call::Call;
use super::super::codec::{Received, Shape};
use super::super::wire::{Refusal, status};
use super::method::{Answered, Asked, Methods, grpc, is_packed_wrongly, packed_wrongly};
use super::{client_timeout, deadline};
use crate::intake::Weight;
use crate::runtime::Runtime;
use crate::score::ScoreError;
use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::request::Parts;
use axum::response::Response;
use axum::routing::post;
use bytes::Bytes;
use hyper::body::Frame;
use prost::Message;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::sync::mpsc::OwnedPermit;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tonic_reflection::server::Error;
use tower::service_fn;

/// Requests of one stream that are being answered, or whose answers have not been taken yet. At the bound
/// nothing more is read: a client that does not read its answers is not read from.
const STREAM_REQUESTS_MAX: usize = 32;

/// In what order answers go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// That of their requests.
    Kept,
    /// Each as soon as it is there.
    Free,
}

/// What becomes of an answer or a refusal: a message, or the stream's end.
pub(super) type Finish<R, E> = fn(String, Answered<R>, &Call) -> Result<E, Status>;

/// An answer, and what its request weighs at the door until the answer has been taken.
type Ready<E> = (Result<E, Status>, Option<Arc<Weight>>);

/// A place for an answer on the stream, taken before the request is read.
struct Place<E> {
    permit: Option<OwnedPermit<oneshot::Receiver<Ready<E>>>>,
    ready: Option<oneshot::Receiver<Ready<E>>>,
}

/// What all requests of one stream have in common.
struct Stream {
    edge: Arc<Edge>,
    runtime: Runtime,
    call: Call,
    head: Parts,
    order: Order,
    /// The call's own deadline, where its client has named one.
    deadline: Option<Instant>,
    arriving: Arc<Arriving>,
}

/// What has arrived of a stream and has not become a request yet.
struct Arriving {
    weight: Weight,
    bytes: AtomicU64,
}

/// A stream's body on its way in.
struct Flow {
    body: Body,
    call: Call,
    arriving: Arc<Arriving>,
}

// === impl Methods ===

impl Methods {
    /// Many messages in, an answer to each. `finish` says what a refusal becomes.
    pub(super) fn each<D, R, E, F>(
        mut self,
        path: &'static str,
        order: Order,
        handler: impl Fn(Asked<D>) -> F + Clone + Send + Sync + 'static,
        finish: Finish<R, E>,
    ) -> Result<Self, Error>
    where
        D: Message + Default + 'static,
        R: Send + 'static,
        E: Message + 'static,
        F: Future<Output = Answered<R>> + Send + 'static,
    {
        let shape = self.shape(path)?;
        let (edge, runtime) = (Arc::clone(&self.edge), self.runtime.clone());
        let method = post(async move |request: Request| {
            let opened = Stream::open(edge, runtime, order, request);
            match opened {
                Ok((stream, body)) => stream.serve(shape, body, handler, finish).await,
                Err(refused) => refused.into_http(),
            }
        });
        self.open = self.open.route(path, method);
        Ok(self)
    }
}

/// A refusal ends the stream, as clients of streams without ids expect.
pub(super) fn or_end<E>(_: String, answered: Answered<E>, call: &Call) -> Result<E, Status> {
    let message = answered.map(tonic::Response::into_inner);
    message.map_err(|refusal| status(&refusal, call))
}

// === impl Stream ===

impl Stream {
    fn open(
        edge: Arc<Edge>,
        runtime: Runtime,
        order: Order,
        request: Request,
    ) -> Result<(Arc<Self>, Body), Status> {
        let (head, body) = request.into_parts();
        let call = Call::of(&head.extensions);
        let weight = edge.door.stream();
        let weight = weight.map_err(|error| status(&error.into(), &call))?;
        let arriving = Arc::new(Arriving {
            weight,
            bytes: AtomicU64::new(0),
        });
        let body = Body::new(Flow {
            body,
            call: call.clone(),
            arriving: Arc::clone(&arriving),
        });
        let named = client_timeout(&head.headers);
        let stream = Self {
            deadline: named.map(|timeout| call.deadline(timeout, None)),
            edge,
            runtime,
            call,
            head,
            order,
            arriving,
        };
        Ok((Arc::new(stream), body))
    }

    async fn serve<D, R, E, F>(
        self: Arc<Self>,
        shape: Shape,
        body: Body,
        handler: impl Fn(Asked<D>) -> F + Clone + Send + Sync + 'static,
        finish: Finish<R, E>,
    ) -> Response
    where
        D: Message + Default + 'static,
        R: Send + 'static,
        E: Message + 'static,
        F: Future<Output = Answered<R>> + Send + 'static,
    {
        // Each message is weighed when it has come.
        let mut grpc = grpc::<E, D>(&self.edge, shape, None);
        let request = Request::from_parts(self.head.clone(), body);
        let answer = move |request: tonic::Request<Streaming<Received<D>>>| {
            let (stream, handler) = (Arc::clone(&self), handler.clone());
            async move {
                let (answers, ready) = mpsc::channel(STREAM_REQUESTS_MAX);
                let (runtime, call) = (stream.runtime.clone(), stream.call.clone());
                runtime.task(stream.read(request.into_inner(), answers, handler, finish));
                // Who computes an answer and fails to give one has panicked.
                let answers = ReceiverStream::new(ready).then(move |ready| {
                    let call = call.clone();
                    async move {
                        let (answer, _weight) = ready.await.unwrap_or_else(|_| {
                            let why = "a request on a stream was not answered".to_owned();
                            let ours = ScoreError::Internal { why };
                            (Err(status(&ours.into(), &call)), None)
                        });
                        answer
                    }
                });
                Ok(tonic::Response::new(answers))
            }
        };
        let answered = grpc.streaming(service_fn(answer), request).await;
        answered.map(Body::new)
    }

    /// Reads requests for as long as somebody takes their answers.
    async fn read<D, R, E, F>(
        self: Arc<Self>,
        mut coming: Streaming<Received<D>>,
        answers: mpsc::Sender<oneshot::Receiver<Ready<E>>>,
        handler: impl Fn(Asked<D>) -> F + Clone + Send + Sync + 'static,
        finish: Finish<R, E>,
    ) where
        D: Message + Default + 'static,
        R: Send + 'static,
        E: Message + 'static,
        F: Future<Output = Answered<R>> + Send + 'static,
    {
        let end = answers.clone();
        let gone = answers.clone();
        let reading = async {
            for n in 1.. {
                let Ok(permit) = answers.clone().reserve_owned().await else {
                    return;
                };
                let received = match coming.message().await {
                    Ok(Some(received)) => received,
                    Ok(None) => return,
                    Err(broken) => return Place::told(permit, Err(self.broken(broken))),
                };
                self.arriving.taken();
                let (tell, ready) = oneshot::channel();
                let place = Place::new(permit, ready, self.order);
                let (stream, handler) = (Arc::clone(&self), handler.clone());
                let gone = answers.clone();
                self.runtime.task(async move {
                    let answering = stream.answer(n, received, handler, finish);
                    tokio::select! {
                        () = gone.closed() => {}
                        ready = answering => drop(tell.send(ready)),
                    }
                    drop(place);
                });
            }
        };
        tokio::select! {
            () = gone.closed() => {}
            outcome = within(self.deadline, reading) => {
                if outcome.is_none() && let Ok(permit) = end.reserve_owned().await {
                    let after = self.call.elapsed();
                    let late = ScoreError::DeadlinePassed { after };
                    Place::told(permit, Err(status(&late.into(), &self.call)));
                }
            }
        }
    }

    async fn answer<D, R, E, F>(
        self: Arc<Self>,
        n: u64,
        received: Received<D>,
        handler: impl Fn(Asked<D>) -> F,
        finish: Finish<R, E>,
    ) -> Ready<E>
    where
        F: Future<Output = Answered<R>>,
    {
        let call = self.call.part(n);
        let head = (&self.head.headers, &self.head.extensions);
        let bytes = received.bytes as u64;
        let let_in = async {
            let pass = self.edge.enter(head, Some(bytes)).await?;
            pass.weight().grow_to(bytes)?;
            Ok::<_, ScoreError>(pass)
        };
        let pass = match let_in.await {
            Ok(pass) => pass,
            Err(error) => return (finish(received.id, Err(error.into()), &call), None),
        };
        let weight = Arc::clone(pass.weight());
        let answered = match received.message {
            Ok(message) => {
                let server = deadline(&self.edge, &call, &axum::http::HeaderMap::new());
                let asked = Asked {
                    edge: Arc::clone(&self.edge),
                    runtime: self.runtime.clone(),
                    call: call.clone(),
                    deadline: self.deadline.map_or(server, |own| own.min(server)),
                    message,
                };
                handler(asked).await
            }
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = &answered {
            let (id, why) = (call.id(), refusal.reason());
            tracing::debug!(%id, why, "a request on a stream is refused");
        }
        // The pass goes now, the weight with the answer.
        (finish(received.id, answered, &call), Some(weight))
    }

    /// So says tonic of a message that is too long; everyone else has another word for it.
    fn broken(&self, broken: Status) -> Status {
        if is_packed_wrongly(&broken) {
            return status(&packed_wrongly(), &self.call);
        }
        if broken.code() != Code::OutOfRange {
            return broken;
        }
        let bytes_max = self.edge.settings.body_bytes_max;
        status(&Refusal::BodyTooLarge { bytes_max }, &self.call)
    }
}

/// `None` when the deadline passes first.
async fn within(deadline: Option<Instant>, reading: impl Future<Output = ()>) -> Option<()> {
    match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline.into(), reading).await.ok(),
        None => {
            reading.await;
            Some(())
        }
    }
}

// === impl Place ===

impl<E> Place<E> {
    /// In the requests' order the place is taken now; else when it is dropped, which a panic does, too.
    fn new(
        permit: OwnedPermit<oneshot::Receiver<Ready<E>>>,
        ready: oneshot::Receiver<Ready<E>>,
        order: Order,
    ) -> Self {
        let place = Self {
            permit: Some(permit),
            ready: Some(ready),
        };
        match order {
            Order::Free => place,
            Order::Kept => {
                drop(place);
                Self {
                    permit: None,
                    ready: None,
                }
            }
        }
    }

    /// Something that is known already.
    fn told(permit: OwnedPermit<oneshot::Receiver<Ready<E>>>, what: Result<E, Status>) {
        let (tell, ready) = oneshot::channel();
        _ = tell.send((what, None));
        drop(Self::new(permit, ready, Order::Kept));
    }
}

impl<E> Drop for Place<E> {
    fn drop(&mut self) {
        if let (Some(permit), Some(ready)) = (self.permit.take(), self.ready.take()) {
            permit.send(ready);
        }
    }
}

// === impl Arriving ===

impl Arriving {
    /// A message is complete and weighs as a request from here on. What has arrived of the next one, a frame
    /// at most, is not counted.
    fn taken(&self) {
        self.bytes.store(0, Ordering::Relaxed);
        self.weight.clear();
    }
}

// === impl Flow ===

impl HttpBody for Flow {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(frame)) => frame,
        };
        let counted = match frame {
            Ok(frame) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
                let all = self.arriving.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
                let grown = self.arriving.weight.grow_to(all);
                grown.map(|()| frame).map_err(Refusal::from)
            }
            Err(error) => Err(Refusal::BodyBroken {
                why: error.to_string(),
            }),
        };
        Poll::Ready(Some(
            counted.map_err(|refusal| status(&refusal, &self.call)),
        ))
    }
}
