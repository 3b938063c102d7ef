//! The real stages and threads under tokio's stopped clock, before a backend that computes when it is let.
//!
//! A stopped clock jumps to its next timer when all tasks wait, over whatever threads do meanwhile. So a task
//! that blocks keeps it where it is, and a test turns it on.

#[path = "paused/gate.rs"]
mod gate;
#[path = "paused/windows.rs"]
mod windows;

use backend_api::{OpenRequest, PluginLibrary};
use gate::{Gate, Gated};
use gateway::admit::Admit;
use gateway::cache::{Board, Cache, Levels, Store};
use gateway::generation::hold::HoldBounds;
use gateway::generation::queue::{BatchBounds, QueueBounds};
use gateway::generation::{Facts, Generation, Slots, Start, WorkerBounds};
use gateway::intake::{Bounds, Intake};
use gateway::load::Load;
use gateway::model::{Folder, ModelInfo, Tokenizer, Wanted};
use gateway::runtime::{Runtime, now};
use gateway::score::{Form, Priority, RequestId, ScoreError, ScoreRequest, ScoreResponse, Texts};
use gateway::telemetry::Metrics;
use gateway::tokenize::{Pool, Tokenize};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tower::ServiceExt as _;

const SECOND: Duration = Duration::from_secs(1);
/// No step takes this long unless something is broken.
const PATIENCE: Duration = Duration::from_secs(30);

/// The stages before one worker, and the clock that stands still.
struct Server {
    intake: Intake<Cache>,
    slots: Arc<Slots>,
    generation: Arc<Generation>,
    levels: Levels,
    gate: Arc<Gate>,
    _still: SyncSender<()>,
}

type Asked = JoinHandle<Result<ScoreResponse, ScoreError>>;

// === impl Server ===

impl Server {
    /// Takes no more requests, and ends when what there is has been answered, or then.
    fn drain_within(&self, timeout: Duration) -> JoinHandle<()> {
        self.slots.drain();
        self.generation.close();
        let (slots, deadline) = (Arc::clone(&self.slots), now() + timeout);
        tokio::task::spawn_blocking(move || slots.shut_down(deadline))
    }

    /// With what has equal pairs computed once, and keeps them if it `keeps`.
    fn start(name: &'static str, wait_max: Option<Duration>, keeps: bool) -> Self {
        let handle = tokio::runtime::Handle::current();
        let (still, ends) = sync_channel::<()>(1);
        handle.spawn_blocking(move || ends.recv());
        let runtime = Runtime::new(handle, 1);
        let gate = Gate::of(name);
        let generation = generation([name; 2], wait_max, &runtime);
        gate.shut();
        let slots = Arc::new(Slots::new([Arc::from(name)]));
        slots.publish(Arc::clone(&generation));
        let levels = Levels {
            store: keeps.then(|| Store::new(1 << 20, PATIENCE)),
            board: Some(Arc::<Board>::default()),
            shared: None,
        };
        let pool = Arc::new(Pool::start(&runtime, 1, 8).unwrap());
        let way = |levels| {
            let tokenize = Tokenize::new(Arc::clone(&pool));
            Cache::new(levels, Admit::default(), tokenize, runtime.clone())
        };
        let (cache, afresh) = (way(levels.clone()), way(Levels::default()));
        let bounds = Bounds {
            body_bytes_max: 1 << 20,
            bytes_max: 1 << 20,
            requests_max: 10,
            documents_max: 10,
            document_bytes_max: 1_000,
            query_bytes_max: 1_000,
            priority_max: Priority::High,
        };
        Self {
            intake: Intake::new(Arc::clone(&slots), bounds, cache, afresh, runtime),
            slots,
            generation,
            levels,
            gate,
            _still: still,
        }
    }

    /// Asks, and has gone as far as it comes without a thread.
    async fn ask(&self, documents: &[&str], within: Duration) -> Asked {
        let request = ScoreRequest {
            id: RequestId::random(),
            model: None,
            rows: Texts::of_query("green plants", documents.iter().copied()),
            form: Form::default(),
            deadline: now() + within,
            priority: Priority::Normal,
        };
        let asked = tokio::spawn(self.intake.clone().oneshot(request));
        settle().await;
        asked
    }

    fn load(&self) -> Load {
        self.generation.line().load()
    }

    /// Until so many rows wait.
    async fn until_queued(&self, rows: usize) {
        let end = Instant::now() + PATIENCE;
        while self.load().queue_rows != rows {
            assert!(Instant::now() < end, "{:?}", self.load());
            tokio::task::yield_now().await;
        }
    }

    /// Until the worker has come to the gate with so many batches.
    async fn until_entered(&self, batches: usize) {
        let gate = Arc::clone(&self.gate);
        let entered = tokio::task::spawn_blocking(move || gate.wait_entered(batches, PATIENCE));
        assert!(entered.await.unwrap(), "the worker did not come");
    }

    fn n_flights(&self) -> usize {
        self.levels.state().flights
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.gate.open();
        self.generation.close();
    }
}

/// A generation of the model `name`, before the gate `gate`.
fn generation(
    [name, gate]: [&'static str; 2],
    wait_max: Option<Duration>,
    runtime: &Runtime,
) -> Arc<Generation> {
    let library = PluginLibrary::in_process::<Gated>().unwrap();
    let request = OpenRequest {
        options: gate.to_owned(),
        ..OpenRequest::default()
    };
    let backend = library.open(&request).unwrap();
    let info = ModelInfo::read(&Folder {
        path: Path::new(env!("CARGO_MANIFEST_DIR")).join("starter"),
        name: name.to_owned(),
        revision: None,
        wanted: Wanted::default(),
        warnings: Vec::new(),
    });
    let info = info.unwrap();
    let start = Start {
        tokenizer: Tokenizer::open(&info.tokenizer_path, 64, 2, None).unwrap(),
        facts: Facts {
            name: name.into(),
            source: name.to_owned(),
            number: 1,
            activation: info.activation,
            plugin: ("gated".to_owned(), "1".to_owned()),
            image: String::new(),
            chosen: String::new(),
            request: request.clone(),
            description: backend.description().clone(),
            info,
        },
        backend,
        reopen: Box::new(move || library.open(&request)),
        n_workers: 1,
        worker: WorkerBounds {
            timeout: Duration::from_secs(3_600),
            retries_max: 0,
        },
        queue: QueueBounds {
            rows_max: 100,
            tokens_max: 10_000,
            requests_max: 10,
            bytes_max: 1 << 20,
            wait_max,
        },
        batch: BatchBounds {
            rows_max: 10,
            tokens_max: 1_000,
            time_max: SECOND,
            hold: HoldBounds::NEVER,
        },
        metrics: Metrics::new().unwrap().for_model(name),
    };
    Generation::start(start, runtime).unwrap()
}

/// All tasks run as far as they come.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

async fn pass(time: Duration) {
    tokio::time::advance(time).await;
    settle().await;
}

/// The answer, which is there or comes from a thread.
async fn answer(asked: Asked) -> Result<ScoreResponse, ScoreError> {
    asked.await.unwrap()
}

#[track_caller]
fn check_scores(answer: Result<ScoreResponse, ScoreError>, n_documents: usize) {
    let logits = answer.unwrap().logits;
    assert_eq!(logits.len(), n_documents);
    assert!(
        logits.iter().all(|&logit| logit == gate::LOGIT),
        "{logits:?}"
    );
}

#[track_caller]
fn check_expired(answer: &Result<ScoreResponse, ScoreError>, after: Duration) {
    assert_eq!(
        *answer.as_ref().unwrap_err(),
        ScoreError::DeadlinePassed { after }
    );
}

#[tokio::test(start_paused = true)]
async fn a_deadline_passes_in_the_queue() {
    let server = Server::start("in the queue", None, false);
    let first = server.ask(&["red"], 9 * SECOND).await;
    server.until_entered(1).await;
    let late = server.ask(&["green", "blue"], SECOND).await;
    server.until_queued(2).await;
    pass(SECOND - Duration::from_millis(2)).await;
    assert!(!late.is_finished());
    pass(Duration::from_millis(2)).await;
    assert!(
        late.is_finished(),
        "the clock stands: it is answered now or never"
    );
    check_expired(&answer(late).await, SECOND);
    // Nothing of it is left, and nothing of it computed.
    assert_eq!((server.load().queue_rows, server.n_flights()), (0, 1));
    server.gate.open();
    check_scores(answer(first).await, 1);
    assert_eq!(server.gate.seen(), [true]);
    let totals = server.generation.line().totals();
    assert_eq!(
        (totals.rows, totals.dropped.expired, totals.late),
        (1, 2, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_deadline_passes_while_it_is_computed_and_the_backend_is_told() {
    let server = Server::start("computed", None, true);
    let late = server.ask(&["green", "blue"], SECOND).await;
    server.until_entered(1).await;
    pass(SECOND).await;
    assert!(late.is_finished());
    check_expired(&answer(late).await, SECOND);
    server.gate.let_pass(1);
    // The next one is taken when that has come back.
    let next = server.ask(&["green"], SECOND).await;
    server.until_entered(2).await;
    assert_eq!(server.gate.seen(), [false, false]);
    let totals = server.generation.line().totals();
    assert_eq!((totals.rows, totals.skipped), (0, 2));
    server.gate.open();
    check_scores(answer(next).await, 1);
    assert_eq!(
        server.levels.state().entries,
        1,
        "what expired was not kept"
    );
}

#[tokio::test(start_paused = true)]
async fn who_joins_extends_a_flight() {
    let server = Server::start("extended", None, false);
    let other = server.ask(&["red"], 9 * SECOND).await;
    server.until_entered(1).await;
    let first = server.ask(&["green", "blue"], SECOND).await;
    let second = server.ask(&["blue"], 3 * SECOND).await;
    server.until_queued(2).await;
    assert_eq!(server.n_flights(), 3);
    pass(SECOND).await;
    assert!(first.is_finished());
    check_expired(&answer(first).await, SECOND);
    // The row that two waited for is in the queue as before.
    assert_eq!((server.load().queue_rows, server.n_flights()), (1, 2));
    pass(SECOND).await;
    assert!(!second.is_finished());
    server.gate.open();
    check_scores(answer(other).await, 1);
    check_scores(answer(second).await, 1);
    let totals = server.generation.line().totals();
    assert_eq!(
        (totals.rows, totals.dropped.expired, server.n_flights()),
        (2, 0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn the_beginner_hangs_up_and_who_joined_has_scores() {
    let server = Server::start("handed over", None, true);
    let first = server.ask(&["green", "blue"], SECOND).await;
    let second = server.ask(&["blue", "green"], SECOND).await;
    server.until_entered(1).await;
    first.abort();
    settle().await;
    server.gate.open();
    check_scores(answer(second).await, 2);
    assert_eq!(server.gate.seen(), [true, true]);
    // It is kept for whoever comes next.
    let third = server.ask(&["green"], SECOND).await;
    check_scores(answer(third).await, 1);
    assert_eq!(server.generation.line().totals().rows, 2);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_longer_than_allowed() {
    let server = Server::start("waited", Some(SECOND), false);
    let first = server.ask(&["red"], 9 * SECOND).await;
    server.until_entered(1).await;
    let waits = server.ask(&["green"], 9 * SECOND).await;
    server.until_queued(1).await;
    pass(SECOND).await;
    server.gate.open();
    check_scores(answer(first).await, 1);
    let told = answer(waits).await.unwrap_err();
    assert!(
        matches!(&told, ScoreError::Unavailable { why, .. } if why.contains("queue.wait_max")),
        "{told:?}"
    );
    let later = server.ask(&["blue"], 9 * SECOND).await;
    check_scores(answer(later).await, 1);
    assert_eq!(server.gate.seen().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn draining_answers_what_was_admitted() {
    let server = Server::start("drained", None, false);
    let computed = server.ask(&["red"], 9 * SECOND).await;
    server.until_entered(1).await;
    let queued = server.ask(&["green"], 9 * SECOND).await;
    server.until_queued(1).await;
    let drained = server.drain_within(9 * SECOND);
    let refused = answer(server.ask(&["blue"], SECOND).await).await;
    assert!(
        matches!(refused, Err(ScoreError::Unavailable { .. })),
        "{refused:?}"
    );
    server.gate.open();
    check_scores(answer(computed).await, 1);
    check_scores(answer(queued).await, 1);
    drained.await.unwrap();
    assert_eq!(server.load().workers, 0);
}

#[tokio::test(start_paused = true)]
async fn draining_ends_at_its_deadline() {
    let server = Server::start("cut short", None, false);
    let computed = server.ask(&["red"], 9 * SECOND).await;
    server.until_entered(1).await;
    let queued = server.ask(&["green"], 9 * SECOND).await;
    server.until_queued(1).await;
    let drained = server.drain_within(2 * SECOND);
    pass(SECOND).await;
    assert!(!drained.is_finished() && !queued.is_finished());
    pass(SECOND).await;
    drained.await.unwrap();
    // What a worker has already is told as well: nobody is there to take its scores any more.
    for waits in [queued, computed] {
        let told = answer(waits).await.unwrap_err();
        assert!(matches!(told, ScoreError::Unavailable { .. }), "{told:?}");
    }
    server.gate.open();
}

#[tokio::test(start_paused = true)]
async fn a_request_is_scored_by_the_generation_that_it_came_to() {
    let server = Server::start("swapped", None, false);
    let before = server.ask(&["red", "green"], 9 * SECOND).await;
    server.until_entered(1).await;
    let runtime = Runtime::new(tokio::runtime::Handle::current(), 1);
    let (new, new_gate) = (
        generation(["swapped", "swapped in"], None, &runtime),
        Gate::of("swapped in"),
    );
    new_gate.shut();
    server.slots.publish(Arc::clone(&new));
    server.generation.close();
    // Equal pairs are under way in the old one, and not waited for.
    let after = server.ask(&["red", "green"], 9 * SECOND).await;
    new_gate.open();
    check_scores(answer(after).await, 2);
    assert!(!before.is_finished());
    server.gate.open();
    check_scores(answer(before).await, 2);
    for (generation, gate) in [(&server.generation, &server.gate), (&new, &new_gate)] {
        assert_eq!(gate.seen(), [true, true]);
        assert_eq!(generation.line().totals().rows, 2);
    }
    // Its worker has nothing left to do.
    let old = Arc::clone(&server.generation);
    let deadline = now() + SECOND;
    tokio::task::spawn_blocking(move || old.join(deadline))
        .await
        .unwrap();
    assert_eq!(server.load().workers, 0);
    new.close();
}
