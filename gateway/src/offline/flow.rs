//! Lines on their way through the model: read ahead, scored side by side, and given out in order.

use super::engine::{Engine, Row};
use crate::app::StartError;
use crate::config::Config;
use crate::score::{Texts, text_bytes};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Rows of a group, which are asked for together: enough that a request's own cost is nothing beside them.
const GROUP_ROWS: usize = 64;
/// A group of long texts is smaller. One text may be larger: intake has its bound.
const GROUP_BYTES: usize = 256 << 10;
/// Groups that are read ahead of those that are being scored.
const GROUPS_AHEAD: usize = 4;
/// Rows in flight for each worker: the batch that it computes, and a few that wait.
const WORKER_ROWS: usize = 256;
/// Batches of the largest size that are in flight at least, for devices that take large ones.
const BATCHES_MIN: usize = 4;
/// Texts in flight.
const WINDOW_BYTES: usize = 16 << 20;

/// What is asked for together. An item's rows may go on in the next group.
pub(super) struct Group<T> {
    rows: Vec<Texts>,
    /// Items that end here, each behind so many rows.
    ends: Vec<(usize, T)>,
}

/// An item, with its rows' outcomes.
pub(super) struct Done<T> {
    pub(super) item: T,
    pub(super) rows: Vec<Row>,
}

/// Makes groups of items, on the thread that reads.
pub(super) struct Grouper<T> {
    group: Group<T>,
    bytes: usize,
    rows_max: usize,
    groups: mpsc::Sender<Result<Group<T>, StartError>>,
}

/// Whoever reads has ended: nobody wants more.
pub(super) struct Unwanted;

/// Groups in flight, in order.
pub(super) struct Flow<T> {
    engine: Arc<Engine>,
    groups: mpsc::Receiver<Result<Group<T>, StartError>>,
    window: VecDeque<Flying<T>>,
    rows_max: usize,
    rows: usize,
    bytes: usize,
    /// Of an item that has not ended yet.
    pending: Vec<Row>,
    /// The input ended so, or without a fault.
    end: Option<Result<(), StartError>>,
}

struct Flying<T> {
    answer: oneshot::Receiver<Result<Vec<Row>, StartError>>,
    ends: Vec<(usize, T)>,
    rows: usize,
    bytes: usize,
}

/// A way from the thread that reads to whoever waits for scores.
pub(super) fn flow<T: Send + 'static>(
    engine: &Arc<Engine>,
    config: &Config,
) -> (Grouper<T>, Flow<T>) {
    let (tell, groups) = mpsc::channel(GROUPS_AHEAD);
    let queue_rows = config.queue().rows_max;
    let rows_max = (engine.n_workers() * WORKER_ROWS).max(BATCHES_MIN * config.batch().rows_max);
    let grouper = Grouper {
        group: Group::default(),
        bytes: 0,
        rows_max: GROUP_ROWS.min(config.intake().documents_max),
        groups: tell,
    };
    let flow = Flow {
        engine: Arc::clone(engine),
        groups,
        window: VecDeque::new(),
        // The other half is for windows of long documents.
        rows_max: rows_max.min(queue_rows / 2).max(1),
        rows: 0,
        bytes: 0,
        pending: Vec::new(),
        end: None,
    };
    (grouper, flow)
}

// === impl Group ===

impl<T> Default for Group<T> {
    fn default() -> Self {
        Self {
            rows: Vec::new(),
            ends: Vec::new(),
        }
    }
}

// === impl Grouper ===

impl<T> Grouper<T> {
    /// An item with its rows. Blocks while enough is in flight.
    ///
    /// # Errors
    /// Nobody waits any more.
    pub(super) fn push(&mut self, item: T, rows: Vec<Texts>) -> Result<(), Unwanted> {
        // A text without a query takes another form: it goes with its like.
        let is_alone = |row: &Texts| row.query.is_none();
        let before = self.group.rows.last().map(is_alone);
        if before.is_some_and(|before| rows.first().map(is_alone).is_some_and(|now| now != before))
        {
            self.send()?;
        }
        for row in rows {
            if self.is_full() {
                self.send()?;
            }
            self.bytes += row.document.len();
            self.group.rows.push(row);
        }
        self.group.ends.push((self.group.rows.len(), item));
        // Items without rows (faults that are passed over) are many sometimes.
        match self.is_full() || self.rows_max <= self.group.ends.len() {
            true => self.send(),
            false => Ok(()),
        }
    }

    /// Nothing more comes, because of a fault of the input where there is one.
    pub(super) fn end(mut self, outcome: Result<(), StartError>) {
        if self.send().is_ok()
            && let Err(error) = outcome
        {
            // Nobody minds a fault of what nobody wants.
            _ = self.groups.blocking_send(Err(error));
        }
    }

    fn is_full(&self) -> bool {
        self.rows_max <= self.group.rows.len() || GROUP_BYTES <= self.bytes
    }

    fn send(&mut self) -> Result<(), Unwanted> {
        let group = std::mem::take(&mut self.group);
        self.bytes = 0;
        if group.rows.is_empty() && group.ends.is_empty() {
            return Ok(());
        }
        self.groups.blocking_send(Ok(group)).map_err(|_| Unwanted)
    }
}

// === impl Flow ===

impl<T> Flow<T> {
    /// The next items that are done, in the input's order; `None` at its end. May be dropped and called
    /// again.
    ///
    /// # Errors
    /// The input's, when everything before it has been given out, or the engine's.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Done<T>>>, StartError> {
        loop {
            let has_room = self.end.is_none() && self.has_room();
            let is_idle = self.window.is_empty();
            if is_idle && let Some(end) = self.end.take() {
                self.end = Some(Ok(()));
                return end.map(|()| None);
            }
            tokio::select! {
                biased;
                Some(answer) = front(&mut self.window), if !is_idle => {
                    return self.land(answer).map(Some);
                }
                group = self.groups.recv(), if has_room => match group {
                    Some(Ok(group)) => self.start(group),
                    Some(Err(error)) => self.end = Some(Err(error)),
                    None => self.end = Some(Ok(())),
                },
            }
        }
    }

    fn has_room(&self) -> bool {
        self.window.is_empty() || (self.rows < self.rows_max && self.bytes < WINDOW_BYTES)
    }

    fn start(&mut self, group: Group<T>) {
        let Group { rows, ends } = group;
        let (n_rows, bytes) = (rows.len(), text_bytes(&rows));
        let (tell, answer) = oneshot::channel();
        let engine = Arc::clone(&self.engine);
        self.engine.runtime().task(async move {
            // Nobody waits where the program is about to end.
            _ = tell.send(engine.score(rows).await);
        });
        self.rows += n_rows;
        self.bytes += bytes;
        self.window.push_back(Flying {
            answer,
            ends,
            rows: n_rows,
            bytes,
        });
    }

    fn land(&mut self, answer: Result<Vec<Row>, StartError>) -> Result<Vec<Done<T>>, StartError> {
        let mut rows = answer?.into_iter();
        let Some(landed) = self.window.pop_front() else {
            return Ok(Vec::new());
        };
        self.rows -= landed.rows;
        self.bytes -= landed.bytes;
        let (mut done, mut start) = (Vec::with_capacity(landed.ends.len()), 0);
        for (end, item) in landed.ends {
            self.pending.extend(rows.by_ref().take(end - start));
            start = end;
            let rows = std::mem::take(&mut self.pending);
            done.push(Done { item, rows });
        }
        self.pending.extend(rows);
        Ok(done)
    }
}

/// The answer that comes next; `None` where there is none.
async fn front<T>(window: &mut VecDeque<Flying<T>>) -> Option<Result<Vec<Row>, StartError>> {
    let answer = &mut window.front_mut()?.answer;
    let died = |_| Err(StartError::Other("a task of the program died".to_owned()));
    Some(answer.await.unwrap_or_else(died))
}
