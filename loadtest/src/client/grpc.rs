//! gRPC: `crossgate.v1.Scoring`, over several connections taken in turn.

use std::error::Error as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, TimeoutExpired};

use super::{ANSWER_BYTES_MAX, Exchange, Reply, Status, chain};
use crate::Error;
use crate::answers::{Entry, Scores, Sorting};
use crate::plan::{GrpcCall, Target};
use crate::proto::scoring_client::ScoringClient;
use crate::proto::{RerankRequest, RerankResponse, ScoreRequest, ScoreResponse};
use crate::workload::Workload;

pub struct GrpcClient {
    /// At least one. A single HTTP/2 connection admits a limited number of calls at once and would
    /// queue the others on this side.
    channels: Vec<ScoringClient<Channel>>,
    next: AtomicUsize,
    messages: Vec<Call>,
    authorization: Option<MetadataValue<Ascii>>,
    deadline: Option<Duration>,
}

#[derive(Clone)]
enum Call {
    Score(ScoreRequest),
    Rerank(RerankRequest),
}

/// A call and the connection that it will take.
pub struct Message {
    channel: ScoringClient<Channel>,
    call: Call,
}

impl GrpcClient {
    pub(super) async fn connect(
        url: &str,
        call: GrpcCall,
        connections: usize,
        target: &Target,
        workload: &Workload,
    ) -> Result<Self, Error> {
        let endpoint = endpoint(url)?
            .connect_timeout(target.timeout)
            .tcp_nodelay(true);
        let mut channels = Vec::with_capacity(connections);
        for _ in 0..connections {
            let channel = endpoint
                .connect()
                .await
                .map_err(|error| Error::Run(format!("{url}: {}", chain(&error))))?;
            channels.push(ScoringClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX));
        }
        let authorization = target.api_key.as_deref().map(authorization).transpose()?;
        let messages = workload.requests.iter().map(|request| {
            let model = target.model.clone().unwrap_or_default();
            let (query, documents) = (request.query.clone(), request.documents.clone());
            let raw_scores = target.raw_scores;
            match call {
                GrpcCall::Score => Call::Score(ScoreRequest {
                    model,
                    query,
                    documents,
                    raw_scores,
                    ..ScoreRequest::default()
                }),
                GrpcCall::Rerank => Call::Rerank(RerankRequest {
                    model,
                    query,
                    documents,
                    top_n: None,
                    return_documents: false,
                    raw_scores,
                    ..RerankRequest::default()
                }),
            }
        });
        Ok(Self {
            channels,
            next: AtomicUsize::new(0),
            messages: messages.collect(),
            authorization,
            deadline: target.deadline,
        })
    }

    pub(super) fn prepare(&self, line: usize) -> Message {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.channels.len();
        Message {
            channel: self.channels[turn].clone(),
            call: self.messages[line].clone(),
        }
    }

    pub(super) async fn send(&self, message: Message) -> Reply {
        let Message { mut channel, call } = message;
        let answered = match call {
            Call::Score(score) => channel.score(self.request(score)).await.map(from_score),
            Call::Rerank(rerank) => channel.rerank(self.request(rerank)).await.map(from_rerank),
        };
        let done = Instant::now();
        let exchange = match answered {
            Ok(scores) => Exchange::Scores(scores),
            Err(status) => classify(&status),
        };
        Reply { done, exchange }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(value) = &self.authorization {
            request
                .metadata_mut()
                .insert("authorization", value.clone());
        }
        if let Some(deadline) = self.deadline {
            request.set_timeout(deadline);
        }
        request
    }
}

fn endpoint(url: &str) -> Result<Endpoint, Error> {
    if !url.starts_with("http://") {
        return Err(Error::Usage(format!(
            "{url}: must be http://HOST:PORT (there is no TLS here)"
        )));
    }
    Endpoint::from_shared(url.to_owned()).map_err(|error| Error::Usage(format!("{url}: {error}")))
}

fn authorization(key: &str) -> Result<MetadataValue<Ascii>, Error> {
    let mut value: MetadataValue<Ascii> = format!("Bearer {key}")
        .parse()
        .map_err(|_| Error::Usage("--api-key: has characters that no header can carry".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

fn from_score(response: Response<ScoreResponse>) -> Scores {
    let scores = response.into_inner().scores;
    let entries = (0..)
        .zip(scores)
        .map(|(index, score)| Entry { index, score })
        .collect();
    Scores {
        entries,
        sorting: Sorting::ByIndex,
    }
}

fn from_rerank(response: Response<RerankResponse>) -> Scores {
    let results = response.into_inner().results;
    let entries = results
        .iter()
        .map(|result| Entry {
            index: result.index.into(),
            score: result.relevance_score,
        })
        .collect();
    Scores {
        entries,
        sorting: Sorting::ByScore,
    }
}

fn classify(status: &tonic::Status) -> Exchange {
    // The channel keeps the deadline too, as every gRPC client does.
    let mut causes = std::iter::successors(status.source(), |&cause| cause.source());
    if causes.any(|cause| cause.is::<TimeoutExpired>()) {
        return Exchange::Status(Status::DeadlineExceeded, chain(status));
    }
    // A status that this side made of a broken connection carries its cause; a server's has none.
    if status.source().is_some() {
        return Exchange::Broken(chain(status));
    }
    let retry_after = status.metadata().contains_key("retry-after");
    let kind = match status.code() {
        Code::ResourceExhausted => Status::TooMany { retry_after },
        Code::Unavailable => Status::Unavailable,
        Code::DeadlineExceeded => Status::DeadlineExceeded,
        code => Status::Other(format!("{code:?}")),
    };
    Exchange::Status(kind, status.message().to_owned())
}
