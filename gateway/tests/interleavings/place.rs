//! A line, its workers and a board, and whoever asks, as the stages compose them.

use gateway::cache::{Answered, Asker, Board, Claim, Gate, Levels, Miss, Store};
use gateway::generation::hold::HoldBounds;
use gateway::generation::line::{Line, Permit};
use gateway::generation::plan::Ask;
use gateway::generation::queue::{BatchBounds, QueueBounds, WorkerId};
use gateway::generation::work::{RowFault, Scored, Sink, Work};
use gateway::model::{Cut, TokenRows};
use gateway::runtime::now;
use gateway::score::{Priority, ScoreError};
use shuttle::thread::{self, JoinHandle};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

/// The document that everybody asks for, and its only token.
pub(crate) const DOCUMENT: u32 = 7;
/// Nobody's time passes.
const PATIENCE: Duration = Duration::from_secs(3_600);
/// As in `cache.rs`.
const TRIES_MAX: usize = 3;

/// Whether scores are kept.
#[derive(Clone, Copy)]
pub(crate) enum Kept {
    Yes,
    No,
}

/// Whether who asks waits for its answer.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Stays {
    Yes,
    No,
}

/// A generation: what it scores is its tag and the token.
pub(crate) struct Place {
    asked: Arc<Asked>,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

struct Asked {
    line: Arc<Line>,
    levels: Levels,
    tag: f32,
    watch: Arc<Watch>,
}

/// What is computed. Its own locks are no points at which threads change.
#[derive(Default)]
struct Watch {
    computing: Mutex<Vec<(u32, Arc<Work>, usize)>>,
    n_computed: AtomicUsize,
}

struct Nobody;

impl Sink for Nobody {
    fn landed(&self, _: usize, _: Result<Scored<'_>, RowFault>) {}
}

// === impl Place ===

impl Place {
    pub(crate) fn new(kept: Kept, n_workers: usize) -> Self {
        let levels = Levels {
            store: matches!(kept, Kept::Yes).then(|| Store::new(1 << 20, PATIENCE)),
            board: Some(Arc::<Board>::default()),
            shared: None,
        };
        Self::of(levels, n_workers, 100.0)
    }

    /// Two that would take each other's flights if they could: keys and board are the same.
    pub(crate) fn two_generations() -> (Self, Self) {
        let levels = Levels {
            store: None,
            board: Some(Arc::<Board>::default()),
            shared: None,
        };
        (
            Self::of(levels.clone(), 1, 100.0),
            Self::of(levels, 1, 200.0),
        )
    }

    fn of(levels: Levels, n_workers: usize, tag: f32) -> Self {
        let asked = Arc::new(Asked {
            line: line(n_workers),
            levels,
            tag,
            watch: Arc::default(),
        });
        let workers = (0..n_workers as WorkerId).map(|id| {
            let asked = Arc::clone(&asked);
            thread::spawn(move || serve(&asked.line, id, asked.tag, &asked.watch))
        });
        Self {
            workers: Mutex::new(workers.collect()),
            asked,
        }
    }

    /// Of the document that everybody asks for.
    pub(crate) fn score(&self) -> f32 {
        self.asked.tag + DOCUMENT as f32
    }

    pub(crate) fn n_computed(&self) -> usize {
        self.asked.watch.n_computed.load(Ordering::Relaxed)
    }

    pub(crate) fn ask_later(
        &self,
        stays: Stays,
        priority: Priority,
    ) -> JoinHandle<Result<Vec<f32>, ScoreError>> {
        self.ask_for_later(DOCUMENT, stays, priority)
    }

    pub(crate) fn ask_for_later(
        &self,
        document: u32,
        stays: Stays,
        priority: Priority,
    ) -> JoinHandle<Result<Vec<f32>, ScoreError>> {
        let asked = Arc::clone(&self.asked);
        thread::spawn(move || asked.ask(document, stays, priority))
    }

    /// Closes it, and looks whether anything is left.
    pub(crate) fn end(&self) {
        self.asked.line.close();
        for worker in std::mem::take(&mut *self.workers.lock().unwrap()) {
            worker.join().unwrap();
        }
        check_nothing_left(&self.asked.line);
        let board = self.asked.levels.board.as_ref().unwrap();
        assert_eq!(board.n_flights(), 0, "flights are left");
    }
}

// === impl Asked ===

impl Asked {
    /// Until nothing is left of it.
    fn ask(
        self: &Arc<Self>,
        document: u32,
        stays: Stays,
        priority: Priority,
    ) -> Result<Vec<f32>, ScoreError> {
        let mut drivers = Vec::new();
        let outcome = self.answer(document, stays, priority, &mut drivers);
        for driver in drivers {
            driver.join().unwrap();
        }
        outcome
    }

    /// `Cache::answer`.
    fn answer(
        self: &Arc<Self>,
        document: u32,
        stays: Stays,
        priority: Priority,
        drivers: &mut Vec<JoinHandle<()>>,
    ) -> Result<Vec<f32>, ScoreError> {
        let miss = Miss {
            index: 0,
            key: document.into(),
        };
        let mut held = None;
        for _ in 0..TRIES_MAX {
            let kept = self
                .levels
                .store
                .as_ref()
                .and_then(|store| store.get(miss.key));
            if let Some(pair) = kept {
                return Ok(pair.logits.to_vec());
            }
            let (asker, outcome) = Asker::new(vec![None]);
            let board = self.levels.board.as_ref().unwrap();
            let mut permit = None;
            if !board.new_ones(&self.line, &[miss]).is_empty() {
                permit = Some(admit(&self.line, 1, priority)?);
            }
            let gate = Gate {
                levels: &self.levels,
                line: &self.line,
            };
            let claim = Claim {
                deadline: now() + PATIENCE,
                priority,
            };
            let mut hold = gate.claim(&[miss], &asker, claim, now());
            if let Some((fleet, _)) = hold.own.take() {
                let permit = match permit.take() {
                    Some(permit) => permit,
                    None => admit(&self.line, 1, priority)
                        .inspect_err(|error| fleet.work().fail(error))?,
                };
                drivers.push(thread::spawn(move || drive(permit, fleet.work(), document)));
            }
            drop((permit, held.replace(hold)));
            if stays == Stays::No {
                break;
            }
            match shuttle::future::block_on(outcome).expect("the asker lives in the hold") {
                Ok(Answered { pairs, .. }) => {
                    let scores = pairs.iter().map(|pair| pair.logits[0]).collect();
                    return Ok(scores);
                }
                Err(failed) if !failed.is_own && failed.error == ScoreError::Cancelled => {}
                Err(failed) => return Err(failed.error),
            }
        }
        Err(ScoreError::Cancelled)
    }
}

/// `Cache::drive`: ends with the flights or with the last who waits.
fn drive(permit: Permit, work: &Arc<Work>, document: u32) {
    if work.is_over() {
        return;
    }
    let mut rows = TokenRows::none();
    rows.input_ids.push(document);
    rows.type_ids.push(0);
    rows.end_row(Cut::default());
    let ticket = permit.push(Arc::clone(work), rows, now());
    shuttle::future::block_on(ticket.over());
}

/// A worker's thread, by `Worker::run`.
fn serve(line: &Line, id: WorkerId, tag: f32, watch: &Watch) {
    let mut batch = Vec::new();
    while let Some(cut) = line.next(id, &mut batch) {
        for (work, row) in &batch {
            watch.begin(work, *row as usize);
        }
        thread::yield_now();
        for (work, row) in &batch {
            let row = *row as usize;
            watch.end(work, row);
            let (ids, _) = work.rows().row(row);
            work.finish_row(row, &[tag + ids[0] as f32], Duration::ZERO);
        }
        line.returned(&cut, true, now);
        batch.clear();
    }
    line.count_worker(-1);
}

pub(crate) fn work(line: &Line, id: WorkerId, tag: f32) {
    serve(line, id, tag, &Watch::default());
}

pub(crate) fn work_later(line: &Arc<Line>, id: WorkerId, tag: f32) -> JoinHandle<()> {
    let line = Arc::clone(line);
    thread::spawn(move || work(&line, id, tag))
}

// === impl Watch ===

impl Watch {
    fn begin(&self, work: &Arc<Work>, row: usize) {
        let token = work.rows().row(row).0[0];
        let mut computing = self.computing.lock().unwrap();
        let is_same =
            |(its, other, row): &(u32, Arc<Work>, usize)| *its == token && other.is_wanted(*row);
        let is_twice = computing.iter().any(is_same);
        assert!(!is_twice, "a pair is computed twice at a time");
        computing.push((token, Arc::clone(work), row));
    }

    fn end(&self, work: &Arc<Work>, row: usize) {
        self.n_computed.fetch_add(1, Ordering::Relaxed);
        let mut computing = self.computing.lock().unwrap();
        computing.retain(|(_, its, other)| !Arc::ptr_eq(its, work) || *other != row);
    }
}

/// Before so many workers.
pub(crate) fn line(n_workers: usize) -> Arc<Line> {
    let queue = QueueBounds {
        rows_max: 100,
        tokens_max: 1_000,
        requests_max: 100,
        bytes_max: 100_000,
        wait_max: None,
    };
    let batch = BatchBounds {
        rows_max: 1,
        tokens_max: 10,
        time_max: PATIENCE,
        // Shuttle's clock does not wake who waits for a time.
        hold: HoldBounds::NEVER,
    };
    let line = Line::new(queue, batch, 0);
    line.count_worker(n_workers as isize);
    Arc::new(line)
}

pub(crate) fn admit(
    line: &Arc<Line>,
    rows: usize,
    priority: Priority,
) -> Result<Permit, ScoreError> {
    let ask = Ask {
        rows,
        row_bytes: rows,
        text_bytes: rows,
        tokens_max: rows,
        deadline: now() + PATIENCE,
        priority,
    };
    line.admit(&ask, now())
}

pub(crate) fn work_of(n_rows: usize) -> Arc<Work> {
    let now = now();
    Work::new(
        n_rows,
        Priority::Normal,
        now + PATIENCE,
        now,
        Weak::<Nobody>::new(),
    )
}

/// Different ones.
pub(crate) fn rows(n_rows: usize) -> TokenRows {
    TokenRows {
        input_ids: (0..n_rows as u32).collect(),
        type_ids: vec![0; n_rows],
        ends: (1..=n_rows as u32).collect(),
        ..TokenRows::none()
    }
}

#[track_caller]
pub(crate) fn check_nothing_left(line: &Line) {
    let load = line.load();
    let left = [load.queue_rows, load.queue_bytes, load.requests_in_flight];
    assert_eq!(left, [0; 3], "rows, bytes and requests are left");
    assert_eq!([load.workers, load.workers_busy], [0; 2]);
}
