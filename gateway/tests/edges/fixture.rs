//! A core whose answers follow from the request, and one `check` for lines of data.

#[path = "catalog.rs"]
mod catalog;

use crate::counts::FakeMetrics;
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request};
use catalog::FakeCatalog;
use gateway::control::{Control, SwapError, SwapOrder, SwapStep};
use gateway::edge::{Core, Edge, Origins, Settings};
use gateway::intake::{Bounds, Door};
use gateway::load::CacheState;
use gateway::score::{Activation, Priority, ScoreError, ScoreRequest, ScoreResponse, Times};
use http_body_util::BodyExt as _;
use serde_json::Value;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};
use tokio::sync::Barrier;
use tokio::sync::mpsc;
use tower::ServiceExt as _;
use tower::util::BoxCloneSyncService;

/// What a body is, to a client that says so.
pub(crate) const JSON: &[&str] = &["content-type: application/json"];
/// Longest body in these tests.
pub(crate) const BODY_BYTES_MAX: usize = 4_096;
/// Longest request in these tests.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// The edge on a core of our own, and what can be seen of it.
pub(crate) struct Fixture {
    pub(crate) edge: Edge,
    pub(crate) catalog: Arc<FakeCatalog>,
    pub(crate) metrics: Arc<FakeMetrics>,
}

/// An answer as it came.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

// === impl Fixture ===

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with_room_for(64)
    }

    /// With an intake that lets so many requests in at once.
    pub(crate) fn with_room_for(requests_max: usize) -> Self {
        Self::within(Bounds {
            body_bytes_max: BODY_BYTES_MAX,
            bytes_max: 1 << 20,
            requests_max,
            documents_max: 1_000,
            document_bytes_max: BODY_BYTES_MAX,
            query_bytes_max: BODY_BYTES_MAX,
            priority_max: Priority::High,
        })
    }

    pub(crate) fn within(bounds: Bounds) -> Self {
        hear_everything();
        let catalog = Arc::new(FakeCatalog {
            is_ready: AtomicBool::new(true),
        });
        let metrics = Arc::new(FakeMetrics::default());
        let edge = Edge {
            core: core(),
            catalog: Arc::<FakeCatalog>::clone(&catalog),
            control: Arc::new(FakeControl::default()),
            door: Door::new(bounds),
            metrics: Arc::<FakeMetrics>::clone(&metrics),
            settings: Settings {
                body_bytes_max: bounds.body_bytes_max,
                request_timeout: TIMEOUT,
                version: "0.0.0-test",
                documents_max: bounds.documents_max,
                requests_max: bounds.requests_max,
                queue_tokens_max: 1 << 20,
                batch_tokens_max: 16_384,
                tokenizer_workers: 2,
                client_header: None,
                voyage: false,
                cors_origins: Origins::Any,
            },
            keys: None,
            shared: None,
        };
        Self {
            edge,
            catalog,
            metrics,
        }
    }

    pub(crate) fn http(&self) -> Router {
        gateway::edge::http(self.edge.clone())
    }
}

/// The bounds that a server has by default.
pub(crate) const USUAL: Bounds = Bounds {
    body_bytes_max: 32 << 20,
    bytes_max: 256 << 20,
    requests_max: 256,
    documents_max: 1_000,
    document_bytes_max: 1 << 20,
    query_bytes_max: 64 << 10,
    priority_max: Priority::High,
};

/// A core that answers when so many requests are inside at once.
pub(crate) fn core_for(n: usize) -> Core {
    let all = Arc::new(Barrier::new(n));
    BoxCloneSyncService::new(tower::service_fn(move |request: ScoreRequest| {
        let all = Arc::clone(&all);
        async move {
            all.wait().await;
            answer(&request)
        }
    }))
}

/// Scores a document that is a number as that logit, another as its length; one token a row.
/// The query may name an error to be had.
fn core() -> Core {
    BoxCloneSyncService::new(tower::service_fn(|request: ScoreRequest| async move {
        answer(&request)
    }))
}

fn answer(request: &ScoreRequest) -> Result<ScoreResponse, ScoreError> {
    if let Some(error) = named_error(request.query()) {
        return Err(error);
    }
    assert!(request.query() != "panic", "as the query asks");
    let (n_labels, activation) = match request.model.as_deref() {
        None | Some("default") => (1, Activation::Identity),
        Some("sigmoid") => (1, Activation::Sigmoid),
        Some("classes") => (2, Activation::Softmax),
        Some(name) => {
            let known = vec!["default".to_owned(), "sigmoid".to_owned()];
            return Err(ScoreError::UnknownModel {
                name: name.to_owned(),
                known,
            });
        }
    };
    let logit = |document: &str| document.parse().unwrap_or(document.len() as f32);
    let logits = request.rows.iter().flat_map(|row| {
        let first = match request.query() {
            "nan" => f32::NAN,
            _ => logit(&row.document),
        };
        [first, 0.0].into_iter().take(n_labels)
    });
    let urgency = match request.priority {
        Priority::Low => 1,
        Priority::Normal => 2,
        Priority::High => 3,
    };
    // So that a test can see what the core is asked.
    let n_tokens = match request.query() {
        "deadline" => (request.deadline - Instant::now()).as_millis() as u64,
        "priority" => urgency,
        _ => request.rows.len() as u64,
    };
    Ok(ScoreResponse {
        model: match request.query() {
            "form" => format!("{:?}", request.form).into(),
            _ => request.model.as_deref().unwrap_or("default").into(),
        },
        logits: logits.collect(),
        n_labels,
        activation,
        n_tokens,
        truncated: match request.query() {
            "long" | "long document" => vec![1],
            _ => Vec::new(),
        },
        windows: match request.query() {
            "windows" => vec![(0, 3)],
            _ => Vec::new(),
        },
        query_truncated: request.query() == "long",
        times: Times {
            tokenize: Duration::from_micros(1_500),
            queue: Duration::from_millis(2),
            inference: Duration::from_millis(30),
        },
    })
}

/// Every error there is, by its name.
pub(crate) fn named_error(name: &str) -> Option<ScoreError> {
    let why = "the reason".to_owned();
    let retry_after = Duration::from_millis(2_300);
    Some(match name {
        "short rows" => ScoreError::invalid("row_tokens_max", "there is no room"),
        "invalid" => ScoreError::invalid("documents[2]", why),
        "invalid query" => ScoreError::invalid("queries[1]", why),
        "too_large" => ScoreError::TooLarge {
            param: "documents".to_owned(),
            why,
        },
        "unknown_model" => ScoreError::UnknownModel {
            name: "x".to_owned(),
            known: vec!["default".to_owned()],
        },
        "overloaded" => ScoreError::Overloaded { why, retry_after },
        "unavailable" => ScoreError::Unavailable { why, retry_after },
        "deadline_passed" => ScoreError::DeadlinePassed {
            after: Duration::from_millis(250),
        },
        "backend" => ScoreError::Backend { why },
        "cancelled" => ScoreError::Cancelled,
        "internal" => ScoreError::Internal { why },
        _ => return None,
    })
}

/// Has a logger for all threads that wants every line and keeps none. Whether anybody wants a line is
/// decided when it is reached first; a thread that reaches it without a logger, while another one starts its
/// own, would decide for both that nobody does.
fn hear_everything() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let log = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_writer(std::io::sink)
            .finish();
        tracing::subscriber::set_global_default(log).expect("nobody else has set one");
    });
}

/// Keeps so many pairs.
struct FakeControl(AtomicU64);

impl Default for FakeControl {
    fn default() -> Self {
        Self(AtomicU64::new(3))
    }
}

impl Control for FakeControl {
    fn swap(&self, order: SwapOrder) -> Result<mpsc::Receiver<SwapStep>, SwapError> {
        Err(SwapError::NotNow(format!(
            "{} is not swapped here",
            order.model
        )))
    }

    fn rollback(&self, model: &str) -> Result<mpsc::Receiver<SwapStep>, SwapError> {
        self.swap(SwapOrder::of(model))
    }

    fn load(&self, order: SwapOrder) -> Result<mpsc::Receiver<SwapStep>, SwapError> {
        self.swap(order)
    }

    fn unload(&self, model: &str) -> Result<mpsc::Receiver<SwapStep>, SwapError> {
        self.swap(SwapOrder::of(model))
    }

    fn cache(&self) -> CacheState {
        CacheState {
            is_enabled: true,
            entries: self.0.load(Ordering::Relaxed),
            ..CacheState::default()
        }
    }

    fn clear_cache(&self) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        self.0.store(0, Ordering::Relaxed);
        Box::pin(std::future::ready(Ok(())))
    }
}

// === impl Reply ===

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text)
            .unwrap_or_else(|error| panic!("{error} in {:?}", self.text))
    }

    /// A header's text, empty if it is not there.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().expect("ASCII"))
    }
}

/// `line` is a method and a path; headers are `name: value`.
pub(crate) async fn send(
    router: Router,
    line: &str,
    headers: &[&str],
    body: impl Into<Body>,
) -> Reply {
    let (method, path) = line.split_once(' ').expect("a method and a path");
    let mut request = Request::builder().method(method).uri(path);
    for header in headers {
        let (name, value) = header.split_once(": ").expect("a name and a value");
        request = request.header(name, value);
    }
    let request = request.body(body.into()).expect("a request");
    let response = router.oneshot(request).await.expect("routers do not fail");
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.expect("a body in memory").to_bytes();
    let text = String::from_utf8(bytes.to_vec()).expect("UTF-8");
    Reply {
        status: parts.status.as_u16(),
        headers: parts.headers,
        text,
    }
}

/// Whether `wanted` is in `found`: objects by their keys, lists whole, texts that begin with `~` as
/// a part of the text found.
pub(crate) fn holds(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, wanted)| found.get(key).is_some_and(|found| holds(found, wanted))),
        (Value::Array(found), Value::Array(wanted)) => {
            found.len() == wanted.len()
                && found
                    .iter()
                    .zip(wanted)
                    .all(|(found, wanted)| holds(found, wanted))
        }
        (Value::String(found), Value::String(wanted)) if wanted.starts_with('~') => {
            found.contains(&wanted[1..])
        }
        // 5 and 5.0 are the same number in JSON.
        (Value::Number(found), Value::Number(wanted)) => found.as_f64() == wanted.as_f64(),
        _ => found == wanted,
    }
}

/// One line of data: a request with a JSON body, and what of the answer matters.
#[track_caller]
pub(crate) fn check(line: &str, body: &str, status: u16, wanted: &str) {
    check_in(
        &Fixture::new(),
        line,
        &["content-type: application/json"],
        body,
        status,
        wanted,
    );
}

/// Lines of data in pairs: a body, then a status and what of the answer matters.
#[track_caller]
pub(crate) fn check_all(line: &str, cases: &str) {
    let lines: Vec<&str> = cases.lines().filter(|line| !line.is_empty()).collect();
    for pair in lines.chunks(2) {
        let (status, wanted) = pair[1]
            .trim_start()
            .split_once(' ')
            .expect("a status and JSON");
        check(line, pair[0], status.parse().expect("a status"), wanted);
    }
}

/// The same on an edge of the test's own.
#[track_caller]
pub(crate) fn check_in(
    fixture: &Fixture,
    line: &str,
    headers: &[&str],
    body: &str,
    status: u16,
    wanted: &str,
) {
    let reply = block_on(send(fixture.http(), line, headers, body.to_owned()));
    assert_eq!(reply.status, status, "{line} {body}: {}", reply.text);
    let wanted: Value = serde_json::from_str(wanted).expect("the line's own JSON");
    assert!(
        holds(&reply.json(), &wanted),
        "{line} {body}:\nfound  {}\nwanted {wanted}",
        reply.text
    );
    assert!(
        !reply.header("x-request-id").is_empty(),
        "{line}: every answer has an id"
    );
    if status >= 400 {
        assert_eq!(
            reply.header("content-type"),
            "application/json",
            "{line}: every error is JSON"
        );
    }
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future)
}

/// One request to a new edge.
#[track_caller]
pub(crate) fn ask(line: &str, headers: &[&str], body: &str) -> Reply {
    block_on(send(Fixture::new().http(), line, headers, body.to_owned()))
}
