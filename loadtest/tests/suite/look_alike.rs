//! A server that answers like a reranker, with scores that need no model, and misbehaves on command.
//! It lives on the test's own runtime and ends with it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use axum::Router;
use axum::extract::{Json, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Status};

use loadtest::proto::scoring_server::{Scoring, ScoringServer};
use loadtest::proto::{RerankRequest, RerankResponse, RerankResult, ScoreRequest, ScoreResponse};

/// What the server does with one request.
#[derive(Clone, Copy)]
pub(crate) enum Act {
    Score,
    /// The first document's score is off by this much.
    ScoreOff(f32),
    OneShort,
    IndexTwice,
    Unsorted,
    Null,
    NotJson,
    /// An HTTP status, or the gRPC code that stands for it.
    Refuse {
        status: u16,
        retry_after: bool,
    },
    /// Blocks the whole runtime, the client's side included, and then scores.
    StallRuntime(Duration),
}

/// The first request stops the runtime for `time`; all of them are scored.
pub(crate) fn stall_first(number: u64, time: Duration) -> Act {
    if number == 0 {
        Act::StallRuntime(time)
    } else {
        Act::Score
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Script {
    /// By the request's number, from 0 in order of arrival.
    pub(crate) act: fn(u64) -> Act,
    /// No answer leaves before this many requests have come.
    pub(crate) hold_until: u64,
    /// Of each request, so many rows come from a cache, from its second level and from an equal pair in
    /// flight. `None`: no cache.
    pub(crate) cache: Option<[u64; 3]>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            act: |_| Act::Score,
            hold_until: 0,
            cache: None,
        }
    }
}

pub(crate) struct LookAlike {
    pub(crate) http_url: String,
    pub(crate) grpc_url: String,
    pub(crate) state: Arc<Seen>,
}

/// What the server has seen.
pub(crate) struct Seen {
    script: Script,
    pub(crate) requests: watch::Sender<u64>,
    rows: AtomicU64,
    /// Hits, hits of the second level, coalesced rows, misses.
    cache: [AtomicU64; 4],
    pub(crate) bearers: AtomicU64,
    /// Requests whose client told a deadline of `DEADLINE`.
    pub(crate) deadlines: AtomicU64,
    /// Requests that were dropped before they were answered.
    pub(crate) abandoned: watch::Sender<u64>,
}

/// The deadline that the look-alike looks for, in both protocols' own words.
pub(crate) const DEADLINE: Duration = Duration::from_millis(100);

/// Counts a request that is dropped before it is answered.
struct Waiting<'a> {
    seen: &'a Seen,
    answered: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.seen.abandoned.send_modify(|abandoned| *abandoned += 1);
        }
    }
}

/// The logit of a document, the same in every dialect.
pub(crate) fn logit(query: &str, document: &str) -> f32 {
    document.len() as f32 / 8.0 - query.len() as f32 / 4.0
}

impl LookAlike {
    pub(crate) async fn start(script: Script) -> Self {
        let state = Arc::new(Seen {
            script,
            requests: watch::Sender::new(0),
            rows: AtomicU64::new(0),
            cache: Default::default(),
            bearers: AtomicU64::new(0),
            deadlines: AtomicU64::new(0),
            abandoned: watch::Sender::new(0),
        });
        let router = Router::new()
            .route("/v1/rerank", post(rerank))
            .route("/rerank", post(tei))
            .route("/v1/score", post(score))
            .route("/metrics", get(metrics))
            .with_state(Arc::clone(&state));
        let (http, http_url) = listen().await;
        tokio::spawn(async move { axum::serve(http, router).await });
        let (grpc, grpc_url) = listen().await;
        let service = ScoringServer::from_arc(Arc::clone(&state));
        let serving = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(grpc));
        tokio::spawn(serving);
        Self {
            http_url,
            grpc_url,
            state,
        }
    }
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))
        .await
        .expect("a free port");
    let address = listener.local_addr().expect("a bound address");
    (listener, format!("http://{address}"))
}

impl Seen {
    /// Counts the request, waits for the gate, and says what to do.
    async fn next(&self, rows: usize) -> Act {
        let mut number = 0;
        self.requests.send_modify(|requests| {
            number = *requests;
            *requests += 1;
        });
        let mut gate = self.requests.subscribe();
        let mut waiting = Waiting {
            seen: self,
            answered: false,
        };
        let opened = gate
            .wait_for(|requests| *requests >= self.script.hold_until)
            .await;
        opened.expect("the sender lives as long as the server");
        waiting.answered = true;
        let [hits, distributed, coalesced] = self.script.cache.unwrap_or_default();
        let misses = rows as u64 - hits - distributed - coalesced;
        for (counter, count) in self
            .cache
            .iter()
            .zip([hits, distributed, coalesced, misses])
        {
            counter.fetch_add(count, Ordering::Relaxed);
        }
        self.rows.fetch_add(misses, Ordering::Relaxed);
        let act = (self.script.act)(number);
        if let Act::StallRuntime(time) = act {
            thread::sleep(time);
        }
        act
    }
}

/// Results as (index, score), in falling order or by index, spoiled as the act says.
fn results(act: Act, query: &str, documents: &[String], sorted: bool) -> Vec<(usize, f32)> {
    let mut results: Vec<(usize, f32)> = documents
        .iter()
        .enumerate()
        .map(|(index, document)| (index, logit(query, document)))
        .collect();
    if let Act::ScoreOff(by) = act {
        results[0].1 += by;
    }
    if sorted {
        results.sort_by(|a, b| b.1.total_cmp(&a.1));
    }
    match act {
        Act::OneShort => drop(results.pop()),
        Act::IndexTwice => results[0].0 = results[1].0,
        Act::Unsorted => results.reverse(),
        Act::Null => results[0].1 = f32::NAN,
        _ => {}
    }
    results
}

// === HTTP ===

async fn rerank(
    State(state): State<Arc<Seen>>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    if headers
        .get("authorization")
        .is_some_and(|value| value == "Bearer secret")
    {
        state.bearers.fetch_add(1, Ordering::Relaxed);
    }
    if headers
        .get("x-request-timeout-ms")
        .is_some_and(|value| value == "100")
    {
        state.deadlines.fetch_add(1, Ordering::Relaxed);
    }
    answer(&state, &body, "query", "documents", true, |results| {
        let results: Vec<Value> = results
            .iter()
            .map(|(index, score)| json!({"index": index, "relevance_score": score}))
            .collect();
        json!({"results": results, "more": 1})
    })
    .await
}

async fn tei(State(state): State<Arc<Seen>>, Json(body): Json<Value>) -> Response {
    answer(&state, &body, "query", "texts", true, |results| {
        results
            .iter()
            .map(|(index, score)| json!({"index": index, "score": score}))
            .collect()
    })
    .await
}

async fn score(State(state): State<Arc<Seen>>, Json(body): Json<Value>) -> Response {
    answer(&state, &body, "text_1", "text_2", false, |results| {
        let data: Vec<Value> = results
            .iter()
            .map(|(index, score)| json!({"index": index, "score": score}))
            .collect();
        json!({"object": "list", "data": data})
    })
    .await
}

async fn answer(
    state: &Seen,
    body: &Value,
    query: &str,
    documents: &str,
    sorted: bool,
    render: fn(&[(usize, f32)]) -> Value,
) -> Response {
    let query = body[query].as_str().expect("a query");
    let documents: Vec<String> =
        serde_json::from_value(body[documents].clone()).expect("documents");
    match state.next(documents.len()).await {
        Act::Refuse {
            status,
            retry_after,
        } => {
            let mut response = (
                StatusCode::from_u16(status).expect("a status"),
                "told to refuse",
            )
                .into_response();
            if retry_after {
                response
                    .headers_mut()
                    .insert("retry-after", "1".parse().expect("a header"));
            }
            response
        }
        Act::NotJson => "<html>".into_response(),
        act => Json(render(&results(act, query, &documents, sorted))).into_response(),
    }
}

async fn metrics(State(state): State<Arc<Seen>>) -> String {
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let mut page = format!(
        "# TYPE crossgate_rows_total counter\ncrossgate_rows_total {}\n",
        count(&state.rows)
    );
    if state.script.cache.is_some() {
        let outcomes = ["hit", "hit_distributed", "coalesced", "miss"];
        for (outcome, counter) in outcomes.iter().zip(&state.cache) {
            let rows = count(counter);
            page += &format!(
                "crossgate_cache_rows_total{{model=\"m\",outcome=\"{outcome}\"}} {rows}\n"
            );
        }
    }
    page
}

// === gRPC ===

#[tonic::async_trait]
impl Scoring for Seen {
    async fn score(
        &self,
        request: tonic::Request<ScoreRequest>,
    ) -> Result<tonic::Response<ScoreResponse>, Status> {
        let ScoreRequest {
            model,
            query,
            documents,
            ..
        } = request.into_inner();
        let act = self.next(documents.len()).await;
        refuse(act)?;
        let scores = results(act, &query, &documents, false)
            .iter()
            .map(|(_, score)| *score)
            .collect();
        Ok(tonic::Response::new(ScoreResponse {
            model,
            scores,
            ..ScoreResponse::default()
        }))
    }

    async fn rerank(
        &self,
        request: tonic::Request<RerankRequest>,
    ) -> Result<tonic::Response<RerankResponse>, Status> {
        if request
            .metadata()
            .get("authorization")
            .is_some_and(|value| value == "Bearer secret")
        {
            self.bearers.fetch_add(1, Ordering::Relaxed);
        }
        // Written by tonic in the finest unit that eight digits hold.
        if request
            .metadata()
            .get("grpc-timeout")
            .is_some_and(|value| value == "100000u")
        {
            self.deadlines.fetch_add(1, Ordering::Relaxed);
        }
        let RerankRequest {
            model,
            query,
            documents,
            ..
        } = request.into_inner();
        let act = self.next(documents.len()).await;
        refuse(act)?;
        let results = results(act, &query, &documents, true)
            .iter()
            .map(|&(index, relevance_score)| RerankResult {
                index: index as u32,
                relevance_score,
                document: None,
            })
            .collect();
        Ok(tonic::Response::new(RerankResponse {
            model,
            results,
            ..RerankResponse::default()
        }))
    }
}

fn refuse(act: Act) -> Result<(), Status> {
    let Act::Refuse {
        status,
        retry_after,
    } = act
    else {
        return Ok(());
    };
    let code = match status {
        429 => Code::ResourceExhausted,
        503 => Code::Unavailable,
        504 => Code::DeadlineExceeded,
        _ => Code::Internal,
    };
    let mut refusal = Status::new(code, "told to refuse");
    if retry_after {
        refusal
            .metadata_mut()
            .insert("retry-after", "1".parse().expect("a header"));
    }
    Err(refusal)
}
