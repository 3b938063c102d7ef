//! Sends one request and brings back what came: scores, a status, or nothing. Both protocols answer in
//! the same terms. There are no retries: every refusal is counted.

use std::time::{Duration, Instant};

use tokio::time;

use crate::Error;
use crate::answers::Scores;
use crate::plan::{Endpoint, Target};
use crate::workload::Workload;

mod grpc;
mod http;

pub use grpc::GrpcClient;
pub use http::{HttpClient, metrics_url};
pub(crate) use http::{connections, read_body};

/// Bytes of one answer at most: a thousand documents echoed at 64 KiB each.
pub(crate) const ANSWER_BYTES_MAX: usize = 64 << 20;

pub enum Client {
    Http(HttpClient),
    Grpc(GrpcClient),
}

/// A request that is ready to go, made before its clock starts.
pub enum Prepared {
    Http(Box<reqwest::Request>),
    Grpc(Box<grpc::Message>),
}

/// What came back, and when its last byte did: parsing is not in the latency.
pub struct Reply {
    pub done: Instant,
    pub exchange: Exchange,
}

pub enum Exchange {
    Scores(Scores),
    /// An answer without scores, with what it said.
    Status(Status, String),
    /// A success status whose content is not the dialect's.
    Unreadable(String),
    /// The client gave up waiting.
    TimedOut,
    /// The connection failed: no answer.
    Broken(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// 429, RESOURCE_EXHAUSTED.
    TooMany { retry_after: bool },
    /// 503, UNAVAILABLE.
    Unavailable,
    /// 504, DEADLINE_EXCEEDED.
    DeadlineExceeded,
    /// By its number or gRPC name.
    Other(String),
}

impl Client {
    /// Renders every request of the workload. gRPC's connections are opened here; HTTP's with the first
    /// requests, after one that only shows that somebody is there.
    pub async fn connect(target: &Target, workload: &Workload) -> Result<Self, Error> {
        Ok(match &target.endpoint {
            Endpoint::Http { url, dialect } => {
                let client = HttpClient::new(url, *dialect, target, workload)?;
                client.reach(target.timeout).await?;
                Self::Http(client)
            }
            Endpoint::Grpc {
                url,
                call,
                connections,
            } => Self::Grpc(GrpcClient::connect(url, *call, *connections, target, workload).await?),
        })
    }

    /// `line` is an index into the workload's requests.
    pub fn prepare(&self, line: usize) -> Prepared {
        match self {
            Self::Http(client) => Prepared::Http(Box::new(client.prepare(line))),
            Self::Grpc(client) => Prepared::Grpc(Box::new(client.prepare(line))),
        }
    }

    pub async fn send(&self, prepared: Prepared, timeout: Duration) -> Reply {
        let sending = async {
            match (self, prepared) {
                (Self::Http(client), Prepared::Http(request)) => client.send(*request).await,
                (Self::Grpc(client), Prepared::Grpc(message)) => client.send(*message).await,
                _ => Reply::now(Exchange::Broken(
                    "a request prepared by another client".into(),
                )),
            }
        };
        match time::timeout(timeout, sending).await {
            Ok(reply) => reply,
            Err(_) => Reply::now(Exchange::TimedOut),
        }
    }
}

impl Reply {
    fn now(exchange: Exchange) -> Self {
        Self {
            done: Instant::now(),
            exchange,
        }
    }
}

/// An error with what caused it: reqwest's and tonic's own texts stop before the reason.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
