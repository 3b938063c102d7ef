//! The gRPC listener: `crossgate.v1.Scoring`, health and reflection.

use super::Edge;
use super::answer::ACTIVATION;
use super::body::{Heft, Metered, held};
use super::call::Call;
use super::codec::Codec;
use super::grpc_health::HealthReport;
use super::keyring::{Gate, check_keys};
use super::layers::{Protocol, Watch, panic_error, watch};
use super::packed::PACKED_BYTES_MIN;
use super::post::content_length;
use super::wire::{OURS, Refusal, status, wire};
use crate::score::{Activation, Form, Priority, ScoreError, ScoreResponse, Texts, ranking};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{MethodRouter, post};
use http_body_util::BodyExt as _;
use prost::Message;
use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::Code;
use tonic::codec::CompressionEncoding::{Gzip, Zstd};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::server::Grpc;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use tower::service_fn;
use tower_http::catch_panic::CatchPanicLayer;

/// Made from `proto/` by the build script.
mod proto {
    #![allow(
        unreachable_pub,
        unused_qualifications,
        clippy::too_many_lines,
        reason = "generated"
    )]
    tonic::include_proto!("crossgate.v1");
}

use proto::scoring_server::Scoring;

/// The files in `proto/` and what they include, for reflection.
const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/crossgate_descriptor.bin"));
/// The service that scores, and its paths' beginning.
const SERVICE: &str = "crossgate.v1.Scoring";
const SCORING: &str = "/crossgate.v1.Scoring/";
const SCORE: &str = "/crossgate.v1.Scoring/Score";
const RERANK: &str = "/crossgate.v1.Scoring/Rerank";
/// What metrics tell apart.
const ROUTES: [&str; 6] = [
    SCORE,
    RERANK,
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];
/// Beyond its deadline, the longest that a call whose message has not arrived is waited for.
const READ_GRACE: Duration = Duration::from_secs(1);
/// gRPC's own header for a call's time.
const TIMEOUT: &str = "grpc-timeout";

/// What is served to gRPC's clients, over HTTP/2, and its health report.
///
/// Serve the router as it is: tonic's own server would end a call at its `grpc-timeout` as
/// cancelled, before the core says that the deadline has passed.
///
/// # Errors
/// The descriptors do not describe the service: a mistake of the build.
pub async fn grpc(edge: Edge) -> Result<(Router, HealthReport), tonic_reflection::server::Error> {
    let report = HealthReport::new(Arc::clone(&edge.catalog), SERVICE);
    let observer = Watch::new(Protocol::Grpc, ROUTES.to_vec(), Arc::clone(&edge.metrics));
    let gate = Gate {
        keys: edge.keys.clone(),
        protocol: Protocol::Grpc,
        metrics: Arc::clone(&edge.metrics),
    };
    let reflected = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let edge = Arc::new(edge);
    let router = Routes::new(HealthServer::new(report.clone()))
        .add_service(reflected().build_v1()?)
        .add_service(reflected().build_v1alpha()?)
        .into_axum_router()
        .merge(scoring(Arc::clone(&edge)))
        .layer(from_fn_with_state(edge, enter))
        .layer(from_fn_with_state(gate, check_keys))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(observer, watch));
    Ok((router, report))
}

/// The methods one by one, and not by the server that is made from `proto/`: that one unpacks a
/// message before anybody can look at it.
fn scoring(edge: Arc<Edge>) -> Router {
    let service = Arc::new(Service(edge));
    let (to_score, to_rerank) = (Arc::clone(&service), Arc::clone(&service));
    let score = method(&service.0, move |asked| {
        let service = Arc::clone(&to_score);
        async move { service.score(asked).await }
    });
    let rerank = method(&service.0, move |asked| {
        let service = Arc::clone(&to_rerank);
        async move { service.rerank(asked).await }
    });
    Router::new().route(SCORE, score).route(RERANK, rerank)
}

/// One message in, one out.
fn method<D, E, A>(
    edge: &Edge,
    mut answer: impl FnMut(tonic::Request<D>) -> A + Clone + Send + Sync + 'static,
) -> MethodRouter
where
    D: Message + Default + 'static,
    E: Message + 'static,
    A: Future<Output = Result<tonic::Response<E>, tonic::Status>> + Send + 'static,
{
    let (bounds, bytes_max) = (*edge.door.bounds(), edge.settings.body_bytes_max);
    post(async move |request: Request| {
        let heft = request.extensions().get::<Heft>().cloned();
        let codec = Codec::<E, D>::new(bounds).weighed(heft);
        let mut grpc = Grpc::new(codec)
            .max_decoding_message_size(bytes_max)
            .accept_compressed(Gzip)
            .accept_compressed(Zstd)
            .send_compressed(Gzip)
            .send_compressed(Zstd);
        let answer = service_fn(move |asked| {
            let answered = answer(asked);
            async move { answered.await.map(packed_if_large) }
        });
        let answered = grpc.unary(answer, request).await;
        answered.map(Body::new)
    })
}

/// Many clients accept packed answers without a thought; a small one is not worth it.
fn packed_if_large<E: Message>(mut answer: tonic::Response<E>) -> tonic::Response<E> {
    if (answer.get_ref().encoded_len() as u64) < PACKED_BYTES_MIN {
        answer.disable_compression();
    }
    answer
}

struct Service(Arc<Edge>);

/// Before the message is read: a pass for those who ask for scores.
async fn enter(State(edge): State<Arc<Edge>>, request: Request, next: Next) -> Response {
    if !request.uri().path().starts_with(SCORING) {
        return next.run(request).await;
    }
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
    match tonic::Status::from_header_map(response.headers()) {
        // So says tonic of a message that is too long; everyone else has another word for it.
        Some(found) if found.code() == Code::OutOfRange || is_too_long_unpacked(&found) => {
            status(&Refusal::BodyTooLarge { bytes_max }, &call).into_http()
        }
        _ => held(response, weight),
    }
}

/// So says tonic of a message that is too long once it is unpacked; its code is that of others, too.
fn is_too_long_unpacked(status: &tonic::Status) -> bool {
    status.code() == Code::ResourceExhausted && status.message().starts_with("Error decompressing")
}

fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let code = wire(&panic_error(&*panic).into()).grpc;
    tonic::Status::new(code, OURS).into_http()
}

// === impl Service ===

impl Service {
    async fn ask(
        &self,
        call: &Call,
        metadata: &MetadataMap,
        model: String,
        query: String,
        documents: Vec<String>,
        priority: i32,
    ) -> Result<ScoreResponse, tonic::Status> {
        let priority = priority_of(priority).map_err(|error| status(&error.into(), call))?;
        if documents.is_empty() {
            let why = "is empty; send at least one document";
            return Err(status(
                &Refusal::Empty {
                    param: "documents",
                    why,
                },
                call,
            ));
        }
        let deadline = deadline(&self.0, call, metadata.as_ref());
        let rows = Texts::of_query(query, documents);
        let request = call.question(Some(model), rows, Form::default(), deadline, priority);
        self.0
            .score(request)
            .await
            .map_err(|error| status(&error.into(), call))
    }
}

#[tonic::async_trait]
impl Scoring for Service {
    async fn score(
        &self,
        request: tonic::Request<proto::ScoreRequest>,
    ) -> Result<tonic::Response<proto::ScoreResponse>, tonic::Status> {
        let (metadata, extensions, asked) = request.into_parts();
        let call = Call::of(&extensions);
        let response = self
            .ask(
                &call,
                &metadata,
                asked.model,
                asked.query,
                asked.documents,
                asked.priority,
            )
            .await?;
        Ok(with_activation(
            &response,
            asked.raw_scores,
            proto::ScoreResponse {
                model: response.model.to_string(),
                scores: response.scores(asked.raw_scores),
                usage: Some(usage(&response)),
                truncated: response.truncated.clone(),
                query_truncated: response.query_truncated,
            },
        ))
    }

    async fn rerank(
        &self,
        request: tonic::Request<proto::RerankRequest>,
    ) -> Result<tonic::Response<proto::RerankResponse>, tonic::Status> {
        let (metadata, extensions, asked) = request.into_parts();
        let call = Call::of(&extensions);
        if asked.top_n == Some(0) {
            let error = ScoreError::invalid(
                "top_n",
                "is 0; send 1 or more, or leave it out for all documents",
            );
            return Err(status(&error.into(), &call));
        }
        let n_results = asked.top_n.map_or(usize::MAX, |n| n as usize);
        let mut texts = asked.return_documents.then(|| asked.documents.clone());
        let response = self
            .ask(
                &call,
                &metadata,
                asked.model,
                asked.query,
                asked.documents,
                asked.priority,
            )
            .await?;
        let scores = response.scores(asked.raw_scores);
        let order = ranking(&scores).into_iter().take(n_results);
        let results = order.map(|idx| proto::RerankResult {
            index: idx as u32,
            relevance_score: scores[idx],
            document: texts.as_mut().map(|texts| std::mem::take(&mut texts[idx])),
        });
        Ok(with_activation(
            &response,
            asked.raw_scores,
            proto::RerankResponse {
                model: response.model.to_string(),
                results: results.collect(),
                usage: Some(usage(&response)),
                truncated: response.truncated.clone(),
                query_truncated: response.query_truncated,
            },
        ))
    }
}

/// By its number in `proto/`.
fn priority_of(number: i32) -> Result<Priority, ScoreError> {
    match proto::Priority::try_from(number) {
        Ok(proto::Priority::Low) => Ok(Priority::Low),
        Ok(proto::Priority::Unspecified | proto::Priority::Normal) => Ok(Priority::Normal),
        Ok(proto::Priority::High) => Ok(Priority::High),
        Err(_) => Err(ScoreError::invalid(
            "priority",
            format!("has no value {number}; send 1 (low), 2 (normal), 3 (high), or leave it out"),
        )),
    }
}

fn usage(response: &ScoreResponse) -> proto::Usage {
    proto::Usage {
        prompt_tokens: response.n_tokens,
        total_tokens: response.n_tokens,
    }
}

/// Says, as over HTTP, how logits became scores.
fn with_activation<T>(response: &ScoreResponse, raw: bool, message: T) -> tonic::Response<T> {
    let activation = if raw {
        Activation::Identity
    } else {
        response.activation
    };
    let mut answer = tonic::Response::new(message);
    answer
        .metadata_mut()
        .insert(ACTIVATION, MetadataValue::from_static(activation.name()));
    answer
}

fn deadline(edge: &Edge, call: &Call, headers: &HeaderMap) -> Instant {
    let client = headers
        .get(TIMEOUT)
        .and_then(|value| value.to_str().ok())
        .and_then(timeout);
    call.deadline(edge.settings.request_timeout, client)
}

/// `grpc-timeout`: at most eight digits and a unit. What is not one is no timeout.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(n * 3_600)),
        "M" => Some(Duration::from_secs(n * 60)),
        "S" => Some(Duration::from_secs(n)),
        "m" => Some(Duration::from_millis(n)),
        "u" => Some(Duration::from_micros(n)),
        "n" => Some(Duration::from_nanos(n)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts() {
        assert_eq!(timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(timeout("1H"), Some(Duration::from_secs(3_600)));
        assert_eq!(
            timeout("99999999u"),
            Some(Duration::from_micros(99_999_999))
        );
        for bad in ["", "5", "m", "-1m", "123456789m", "5s", "5é", "+5S"] {
            assert_eq!(timeout(bad), None, "{bad:?}");
        }
    }
}
