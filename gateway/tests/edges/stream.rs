//! Many requests on one stream.

use crate::fixture::{BODY_BYTES_MAX, Fixture, USUAL};
use crate::grpc::connect;
use crate::grpc::proto::score_stream_response::Outcome;
use crate::grpc::proto::scoring_client::ScoringClient;
use crate::grpc::proto::{ScoreRequest, ScoreStreamRequest, ScoreStreamResponse};
use gateway::edge::Core;
use gateway::score::{Activation, ScoreError, ScoreRequest as Question, ScoreResponse, Times};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Streaming};
use tower::util::BoxCloneSyncService;

/// As the protocol says.
const REQUESTS_MAX: usize = 32;
/// Answers that a core may give: nearly twice what a client's buffers, of two mebibytes and more, take of long ones.
const TURNS: usize = 1_000;
/// No step takes this long unless something is broken.
const LONG: Duration = Duration::from_secs(30);

fn asked(id: &str, query: &str, documents: &[&str]) -> ScoreStreamRequest {
    ScoreStreamRequest {
        id: id.to_owned(),
        score: Some(ScoreRequest {
            query: query.to_owned(),
            documents: documents.iter().map(|&text| text.to_owned()).collect(),
            ..ScoreRequest::default()
        }),
        timeout_ms: 0,
    }
}

async fn open(
    fixture: &Fixture,
    requests: impl tokio_stream::Stream<Item = ScoreStreamRequest> + Send + 'static,
) -> Streaming<ScoreStreamResponse> {
    let (channel, _) = connect(fixture).await;
    let opened = ScoringClient::new(channel).score_stream(requests).await;
    opened.expect("a stream").into_inner()
}

async fn all(mut answers: Streaming<ScoreStreamResponse>) -> Vec<ScoreStreamResponse> {
    let mut found = Vec::new();
    while let Some(answer) = answers.message().await.expect("no end of the stream") {
        found.push(answer);
    }
    found.sort_by(|a, b| a.id.cmp(&b.id));
    found
}

/// A core that answers as often as it is told to, counts who waits and who went away.
struct Held {
    core: Core,
    turns: Arc<Semaphore>,
    inside: watch::Receiver<usize>,
    asked: Arc<AtomicUsize>,
}

struct Inside(watch::Sender<usize>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

fn held() -> Held {
    let turns = Arc::new(Semaphore::new(0));
    let (count, inside) = watch::channel(0);
    let asked = Arc::new(AtomicUsize::new(0));
    let (gate, counter) = (Arc::clone(&turns), Arc::clone(&asked));
    let core = BoxCloneSyncService::new(tower::service_fn(move |question: Question| {
        let (gate, count) = (Arc::clone(&gate), count.clone());
        counter.fetch_add(1, Ordering::SeqCst);
        async move {
            count.send_modify(|n| *n += 1);
            let _inside = Inside(count);
            let turn = gate.acquire().await.map_err(|_| ScoreError::Cancelled)?;
            turn.forget();
            Ok(ScoreResponse {
                model: "default".into(),
                logits: vec![1.0; question.rows.len()],
                n_labels: 1,
                activation: Activation::Identity,
                n_tokens: 1,
                windows: Vec::new(),
                truncated: Vec::new(),
                query_truncated: false,
                times: Times::default(),
            })
        }
    }));
    Held {
        core,
        turns,
        inside,
        asked,
    }
}

impl Held {
    /// Until so many requests are being answered.
    async fn until(&mut self, n: usize) {
        let waiting = self.inside.wait_for(|&inside| inside == n);
        let found = tokio::time::timeout(LONG, waiting).await;
        assert!(found.is_ok(), "{n} requests inside");
    }
}

#[tokio::test]
async fn each_request_has_its_answer_and_its_own_failure() {
    let fixture = Fixture::new();
    let requests = [
        asked("a", "q", &["2"]),
        asked("b", "overloaded", &["2"]),
        asked("c", "invalid", &["2"]),
        asked("d", "q", &[""; 1_001]),
        ScoreStreamRequest {
            id: "e".to_owned(),
            ..ScoreStreamRequest::default()
        },
        asked("f", "q", &["5", "7"]),
    ];
    let answers = open(&fixture, tokio_stream::iter(requests)).await;
    let found = all(answers).await;
    let told = |index: usize| match &found[index].outcome {
        Some(Outcome::Failure(failure)) => {
            (failure.code, failure.message.clone(), failure.retry_after_s)
        }
        other => panic!("{other:?}"),
    };
    let scores = |index: usize| match &found[index].outcome {
        Some(Outcome::Score(scored)) => scored.scores.clone(),
        other => panic!("{other:?}"),
    };
    let ids: Vec<_> = found.iter().map(|answer| answer.id.as_str()).collect();
    assert_eq!(ids, ["a", "b", "c", "d", "e", "f"]);
    assert_eq!(scores(0), [2.0]);
    assert_eq!(scores(5), [5.0, 7.0]);
    let (code, message, seconds) = told(1);
    assert_eq!(code, Code::ResourceExhausted as u32);
    assert!(seconds >= 3 && message.contains("the reason"), "{message}");
    let invalid = Code::InvalidArgument as u32;
    assert_eq!(told(2), (invalid, "documents[2]: the reason".to_owned(), 0));
    let (code, message, _) = told(3);
    assert!(
        code == invalid && message.starts_with("documents: 1001 documents"),
        "{message}"
    );
    let (code, message, _) = told(4);
    assert!(
        code == invalid && message.starts_with("score: is missing"),
        "{message}"
    );
    // Everybody has gone again.
    assert!(fixture.edge.door.is_idle());
}

#[tokio::test]
async fn answers_come_as_they_are_ready() {
    let mut held = held();
    let mut fixture = Fixture::new();
    let slow = held.core.clone();
    let fast = fixture.edge.core.clone();
    fixture.edge.core = BoxCloneSyncService::new(tower::service_fn(move |question: Question| {
        use tower::ServiceExt as _;
        let core = match question.query() {
            "slow" => slow.clone(),
            _ => fast.clone(),
        };
        core.oneshot(question)
    }));
    let (send, requests) = mpsc::channel(4);
    let mut answers = open(&fixture, ReceiverStream::new(requests)).await;
    send.send(asked("slow", "slow", &["1"]))
        .await
        .expect("a reader");
    held.until(1).await;
    send.send(asked("fast", "q", &["1"]))
        .await
        .expect("a reader");
    let first = answers
        .message()
        .await
        .expect("an answer")
        .expect("an answer");
    assert_eq!(first.id, "fast");
    held.turns.add_permits(1);
    let second = answers
        .message()
        .await
        .expect("an answer")
        .expect("an answer");
    assert_eq!(second.id, "slow");
    drop(send);
    assert!(answers.message().await.expect("the end").is_none());
}

/// Counts what is taken of a stream of requests without end.
fn endless(
    taken: &Arc<AtomicUsize>,
) -> impl tokio_stream::Stream<Item = ScoreStreamRequest> + use<> {
    let taken = Arc::clone(taken);
    tokio_stream::iter(0..).map(move |n: usize| {
        taken.fetch_add(1, Ordering::SeqCst);
        // Long answers, so that few fit into the buffers of a connection.
        asked(&n.to_string(), "q", &["x"; 1_000])
    })
}

#[tokio::test]
async fn no_more_is_read_than_is_answered() {
    let mut held = held();
    let mut fixture = Fixture::within(USUAL);
    fixture.edge.core = held.core.clone();
    let taken = Arc::new(AtomicUsize::new(0));
    let answers = open(&fixture, endless(&taken)).await;
    held.until(REQUESTS_MAX).await;
    // All of them are answered, and none of the answers is read: beside what the connection's buffers take
    // nothing has a place.
    held.turns.add_permits(TURNS);
    let settled = settled(&held.asked).await;
    assert!(
        settled < TURNS,
        "{settled} requests were read for a client that reads nothing"
    );
    held.until(0).await;
    // They go on where they are read.
    let answers = answers.take(TURNS);
    tokio::pin!(answers);
    for n in 0..TURNS {
        let answer = tokio::time::timeout(LONG, answers.next()).await;
        let answer = answer.expect("in time").expect("no end");
        assert!(answer.is_ok(), "{n}: {answer:?}");
    }
}

/// When it no longer grows.
async fn settled(count: &AtomicUsize) -> usize {
    let mut before = usize::MAX;
    loop {
        let now = count.load(Ordering::SeqCst);
        if now == before {
            return now;
        }
        before = now;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

#[tokio::test]
async fn at_most_so_many_are_inside() {
    let mut held = held();
    let mut fixture = Fixture::within(USUAL);
    fixture.edge.core = held.core.clone();
    let taken = Arc::new(AtomicUsize::new(0));
    let mut answers = open(&fixture, endless(&taken)).await;
    held.until(REQUESTS_MAX).await;
    assert_eq!(fixture.edge.door.inside(), REQUESTS_MAX);
    assert_eq!(settled(&held.asked).await, REQUESTS_MAX);
    let sent = settled(&taken).await;
    assert!(
        sent < TURNS,
        "{sent} requests taken of a client that is not read from"
    );
    // One answered and read is one more asked.
    held.turns.add_permits(1);
    answers
        .message()
        .await
        .expect("an answer")
        .expect("an answer");
    tokio::time::timeout(LONG, async {
        while held.asked.load(Ordering::SeqCst) == REQUESTS_MAX {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("one more is read");
}

#[tokio::test]
async fn who_goes_away_takes_everything_back() {
    let mut held = held();
    let mut fixture = Fixture::new();
    fixture.edge.core = held.core.clone();
    let (send, requests) = mpsc::channel(8);
    let answers = open(&fixture, ReceiverStream::new(requests)).await;
    for n in 0..5 {
        let one = asked(&n.to_string(), "q", &["1"]);
        send.send(one).await.expect("a reader");
    }
    held.until(5).await;
    // Its client lets go of a stream when it has neither end of it.
    drop((answers, send));
    held.until(0).await;
    tokio::time::timeout(LONG, async {
        while !fixture.edge.door.is_idle() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("an empty house");
}

#[tokio::test]
async fn deadlines_of_a_request_and_of_a_call() {
    let fixture = Fixture::new();
    let mut short = asked("short", "deadline", &["a"]);
    short.timeout_ms = 9_000;
    let requests = tokio_stream::iter([asked("long", "deadline", &["a"]), short.clone()]);
    let found = all(open(&fixture, requests).await).await;
    let left = |answer: &ScoreStreamResponse| match &answer.outcome {
        Some(Outcome::Score(scored)) => scored.usage.expect("tokens").total_tokens,
        other => panic!("{other:?}"),
    };
    assert!((20_000..=30_000).contains(&left(&found[0])), "{found:?}");
    assert!((1..=9_000).contains(&left(&found[1])), "{found:?}");

    // A call's own ends it, whatever its client does.
    let (channel, _) = connect(&fixture).await;
    let (send, requests) = mpsc::channel::<ScoreStreamRequest>(4);
    let mut request = Request::new(ReceiverStream::new(requests));
    let metadata = request.metadata_mut();
    metadata.insert("grpc-timeout", "300m".parse().expect("ASCII"));
    let opened = ScoringClient::new(channel).score_stream(request).await;
    let mut answers = opened.expect("a stream").into_inner();
    send.send(asked("one", "deadline", &["a"]))
        .await
        .expect("a reader");
    let first = answers
        .message()
        .await
        .expect("an answer")
        .expect("an answer");
    assert!((1..=300).contains(&left(&first)), "{first:?}");
    let end = answers.message().await.expect_err("the deadline");
    assert_eq!(end.code(), Code::DeadlineExceeded, "{end}");
}

#[tokio::test]
async fn a_stream_has_the_bounds_of_its_requests() {
    // One that is longer than any ends the stream: what it is called is not known.
    let fixture = Fixture::new();
    let long = "x".repeat(BODY_BYTES_MAX + 1);
    let requests = tokio_stream::iter([asked("a", "q", &[long.as_str()])]);
    let end = open(&fixture, requests)
        .await
        .message()
        .await
        .expect_err("too long");
    assert_eq!(end.code(), Code::InvalidArgument);
    assert!(end.message().contains("body_bytes_max = 4096"), "{end}");
    // Many that are not may be longer together.
    let text = "x".repeat(BODY_BYTES_MAX / 2);
    let requests: Vec<_> = (0..20)
        .map(|n| asked(&n.to_string(), "q", &[text.as_str()]))
        .collect();
    let found = all(open(&fixture, tokio_stream::iter(requests)).await).await;
    let is_scored =
        |answer: &ScoreStreamResponse| matches!(answer.outcome, Some(Outcome::Score(_)));
    assert!(
        found.len() == 20 && found.iter().all(is_scored),
        "{found:?}"
    );
    // Each needs a pass, and the stream does not.
    let fixture = Fixture::with_room_for(0);
    let requests = tokio_stream::iter([asked("a", "q", &["1"])]);
    let found = all(open(&fixture, requests).await).await;
    let Some(Outcome::Failure(failure)) = &found[0].outcome else {
        panic!("{found:?}");
    };
    assert_eq!(failure.code, Code::ResourceExhausted as u32);
    // A closed door lets no stream in.
    fixture.edge.door.close();
    let (channel, _) = connect(&fixture).await;
    let requests = tokio_stream::iter([asked("a", "q", &["1"])]);
    let refused = ScoringClient::new(channel).score_stream(requests).await;
    assert_eq!(refused.expect_err("closed").code(), Code::Unavailable);
}

#[tokio::test]
async fn a_panic_ends_the_stream_and_not_the_server() {
    let fixture = Fixture::new();
    let requests = tokio_stream::iter([asked("a", "panic", &["1"])]);
    let end = open(&fixture, requests)
        .await
        .message()
        .await
        .expect_err("a panic");
    assert_eq!(end.code(), Code::Internal);
    assert!(end.message().contains("a mistake in the server"), "{end}");
    assert!(fixture.edge.door.is_idle());
}
