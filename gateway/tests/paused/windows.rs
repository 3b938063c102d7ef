//! Documents are taken apart for as long as somebody waits for them, and in turn.
//!
//! Each window shares its request's query, so that the owners of the query tell how far the work has come.

use crate::{PATIENCE, SECOND, answer, check_expired, generation, pass, settle};
use gateway::cache::Routed;
use gateway::generation::Generation;
use gateway::runtime::{Runtime, now};
use gateway::score::{
    Activation, Answer, Form, Priority, RequestId, ScoreRequest, ScoreResponse, Texts, Times,
};
use gateway::windows::Window;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Instant;
use tower::ServiceExt as _;
use tower::util::BoxCloneSyncService;

/// In a request: enough for the work to take seconds, if nobody ends it.
const N_DOCUMENTS: usize = 64;
/// In a document, each of several windows.
const N_WORDS: usize = 8_000;

/// The stage before one that counts who comes through; one request is taken apart at a time.
struct Stage {
    window: BoxCloneSyncService<Routed, ScoreResponse, gateway::score::ScoreError>,
    generation: Arc<Generation>,
    n_through: Arc<AtomicUsize>,
    /// Of a request, if it is taken apart to its end.
    n_windows: usize,
    _still: SyncSender<()>,
}

/// A request that is taken apart, or waits for its turn.
struct Asked {
    task: crate::Asked,
    query: Arc<str>,
    n_windows: usize,
}

// === impl Stage ===

impl Stage {
    fn start(name: &'static str) -> Self {
        let handle = tokio::runtime::Handle::current();
        let (still, ends) = sync_channel::<()>(1);
        handle.spawn_blocking(move || ends.recv());
        let runtime = Runtime::new(handle, 1);
        let generation = generation([name; 2], None, &runtime);
        let tokenizer = generation.tokenizer();
        let query = tokenizer.query(Some("green plants"), &form()).unwrap();
        let windows = tokenizer.windows(&query, &document()).unwrap();
        let n_through = Arc::new(AtomicUsize::new(0));
        let through = Arc::clone(&n_through);
        let next = tower::service_fn(move |routed: Routed| -> Answer {
            through.fetch_add(1, Ordering::Relaxed);
            Box::pin(std::future::ready(Ok(scores(&routed.request))))
        });
        Self {
            window: BoxCloneSyncService::new(Window::new(next, usize::MAX, 1, runtime)),
            generation,
            n_through,
            n_windows: N_DOCUMENTS * windows.parts.len(),
            _still: still,
        }
    }

    /// A request of long documents, which waits no longer than a second.
    async fn ask(&self) -> Asked {
        let query: Arc<str> = "green plants".into();
        let document: Arc<str> = document().into();
        let row = Texts {
            query: Some(Arc::clone(&query)),
            document,
        };
        let request = ScoreRequest {
            id: RequestId::random(),
            model: None,
            rows: vec![row; N_DOCUMENTS],
            form: form(),
            deadline: now() + SECOND,
            priority: Priority::Normal,
        };
        let generation = Arc::clone(&self.generation);
        let routed = Routed {
            request,
            generation,
        };
        let task = tokio::spawn(self.window.clone().oneshot(routed));
        settle().await;
        Asked {
            task,
            query,
            n_windows: self.n_windows,
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.generation.close();
    }
}

// === impl Asked ===

impl Asked {
    /// Windows that there are by now.
    fn windows(&self) -> usize {
        // The test's own, and each document's.
        Arc::strong_count(&self.query).saturating_sub(1 + N_DOCUMENTS)
    }

    /// Until the first document has been taken apart.
    async fn until_begun(&self) {
        let end = Instant::now() + PATIENCE;
        while self.windows() == 0 {
            assert!(Instant::now() < end, "nothing is taken apart");
            tokio::task::yield_now().await;
        }
    }

    /// Until nothing is left of it, long before all of it was taken apart.
    async fn until_gone(&self) {
        let end = Instant::now() + PATIENCE;
        while Arc::strong_count(&self.query) > 1 {
            let n = self.windows();
            assert!(n < self.n_windows / 2, "{n} windows for nobody");
            assert!(Instant::now() < end, "it does not end");
            tokio::task::yield_now().await;
        }
    }
}

fn form() -> Form {
    Form {
        windows: true,
        ..Form::default()
    }
}

fn document() -> String {
    "light and water ".repeat(N_WORDS / 3)
}

fn scores(request: &ScoreRequest) -> ScoreResponse {
    ScoreResponse {
        model: "stub".into(),
        logits: vec![0.0; request.rows.len()],
        n_labels: 1,
        activation: Activation::Identity,
        n_tokens: 0,
        truncated: Vec::new(),
        windows: Vec::new(),
        query_truncated: false,
        times: Times::default(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_passes_while_documents_are_taken_apart() {
    let stage = Stage::start("late windows");
    let asked = stage.ask().await;
    asked.until_begun().await;
    pass(SECOND).await;
    asked.until_gone().await;
    check_expired(&answer(asked.task).await, SECOND);
    assert_eq!(stage.n_through.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn who_hangs_up_has_no_more_documents_taken_apart() {
    let stage = Stage::start("left windows");
    let asked = stage.ask().await;
    asked.until_begun().await;
    asked.task.abort();
    asked.until_gone().await;
    assert_eq!(stage.n_through.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn documents_of_one_request_are_taken_apart_at_a_time() {
    let stage = Stage::start("windows in turn");
    let first = stage.ask().await;
    first.until_begun().await;
    let second = stage.ask().await;
    assert_eq!(second.windows(), 0);
    second.task.abort();
    settle().await;
    // It had not begun: nothing has to be stopped.
    assert_eq!(Arc::strong_count(&second.query), 1);
    assert!(
        0 < first.windows(),
        "the first one was under way all the time"
    );
    // Whose turn is over leaves it to the next, however it ended.
    let third = stage.ask().await;
    first.task.abort();
    third.until_begun().await;
    first.until_gone().await;
    third.task.abort();
    third.until_gone().await;
}
