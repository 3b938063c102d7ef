//! One GPU with its copy of the model: rows go in, logits come out. Workers share it; one enqueues a batch while
//! another waits for its own.

use super::backend::Room;
use super::driver::{Buffers, Graph, Stream};
use super::faults::{self, fault};
use super::graphs::Desk;
use super::packed::{self, Shape, Words};
use super::steps;
use crate::model::Opened;
use backend_api::{Fault, FaultCode, Row};
use candle_core::Result as Computed;
use candle_core::cuda_backend::WrapErr;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Instant;

/// Bytes of a GPU that are left to others, and the share of a small one.
const FREE_BYTES_MIN: usize = 256 << 20;
const FREE_SHARE_MIN: usize = 32;

/// A GPU and what was loaded on it, until it is lost.
pub(super) struct Lane {
    pub(super) ordinal: usize,
    loaded: RwLock<Option<Loaded>>,
}

/// What is on a GPU. Fields are dropped in this order.
pub(super) struct Loaded {
    pub(super) opened: Opened,
    /// Of workers that have no batch under way.
    desks: Mutex<Vec<Desk>>,
    /// One batch at a time is enqueued on a GPU: its kernels follow each other, and its memory is the next one's.
    turn: Arc<Mutex<()>>,
    pub(super) stream: Stream,
    ordinal: usize,
    /// Rows and tokens of the largest batch that goes up at once, and tokens of the longest row.
    pub(super) rows_max: usize,
    pub(super) cells_max: usize,
    pub(super) row_tokens_max: usize,
}

/// A batch's logits, rows × labels, and when it was enqueued.
pub(super) struct Logits {
    pub(super) values: Vec<f32>,
    pub(super) enqueued: Instant,
}

/// Bytes of a GPU.
pub(super) struct Memory {
    pub(super) free: usize,
    pub(super) total: usize,
    /// What is left to others.
    pub(super) needed: usize,
}

// === impl Lane ===

impl Lane {
    pub(super) fn new(loaded: Loaded) -> Self {
        Self {
            ordinal: loaded.ordinal,
            loaded: RwLock::new(Some(loaded)),
        }
    }

    /// What is on the GPU, unless it was lost.
    pub(super) fn loaded(&self) -> RwLockReadGuard<'_, Option<Loaded>> {
        self.loaded.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of the GPU that this process's memory pool has; `None` where that cannot be said at once.
    pub(super) fn bytes_pooled(&self) -> Option<u64> {
        // Not waited for: a GPU that was lost is to be let go, and may take its time.
        let loaded = self.loaded.try_read().ok()?;
        loaded.as_ref()?.stream.bytes_pooled().ok()?
    }

    /// Drops what is on a GPU that was lost.
    pub(super) fn let_go(&self) {
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = loaded.take() {
            loaded.close();
        }
    }

    /// Lets go of a GPU that was lost in somebody else's hands.
    pub(super) fn look_after(&self) {
        let looked = match self.loaded.try_read() {
            Ok(loaded) => loaded.as_ref().map(|loaded| {
                let found = loaded.stream.look();
                found.map_err(|error| fault(self.ordinal, None, "a look at it", &error))
            }),
            // Somebody is letting go.
            Err(_) => return,
        };
        if matches!(looked, Some(Err(fault)) if fault.code == FaultCode::DeviceLost) {
            self.let_go();
        }
    }

    /// Why there is nothing any more.
    pub(super) fn lost(&self) -> Fault {
        Fault::new(
            FaultCode::DeviceLost,
            format!("GPU {}: it was lost with all that was on it", self.ordinal),
        )
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let loaded = self.loaded.get_mut();
        if let Some(loaded) = loaded.unwrap_or_else(PoisonError::into_inner).take() {
            loaded.close();
        }
    }
}

// === impl Loaded ===

impl Loaded {
    pub(super) fn new(stream: Stream, ordinal: usize, opened: Opened) -> Self {
        Self {
            opened,
            desks: Mutex::default(),
            turn: turn(ordinal),
            stream,
            ordinal,
            rows_max: 0,
            cells_max: 0,
            row_tokens_max: 0,
        }
    }

    /// Gives all of it back, in the GPU's turn: cuBLAS may wait for the whole GPU, which would spoil a graph that another
    /// model records.
    fn close(self) {
        let Self {
            opened,
            desks,
            stream,
            turn,
            ..
        } = self;
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        drop((opened, desks));
        // Other processes and other models may have what this one kept. A GPU that is lost has nothing to give back.
        let _ = stream.trim().and_then(|()| stream.trim_graphs());
        drop(stream);
    }

    /// The GPU's number.
    pub(super) fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// Sets the largest batch, and makes pinned buffers of its size for so many workers.
    pub(super) fn set_limits(&mut self, room: Room, n_workers: usize) -> Result<(), Fault> {
        (self.rows_max, self.cells_max) = (room.rows_max, room.cells_max());
        self.row_tokens_max = room.row_tokens_max;
        let made = (0..n_workers).map(|_| self.new_desk());
        let made = made.collect::<Result<Vec<_>, _>>()?;
        *self.desks() = made;
        Ok(())
    }

    /// The logits of these rows, which are no more than fit.
    ///
    /// # Errors
    /// `OutOfMemory` if they do not fit after all: fewer may. `DeviceLost` if the GPU is gone.
    pub(super) fn score(&self, rows: &[Row<'_>]) -> Result<Logits, Fault> {
        let kept = self.desks().pop();
        let mut desk = kept.map_or_else(|| self.new_desk(), Ok)?;
        let outcome = self.compute(rows, &mut desk);
        if outcome.is_err() {
            // Copies may be under way; and memory is looked for once more where fewer rows come next.
            let _ = self.stream.trim();
        }
        self.desks().push(desk);
        let what = || {
            let n_tokens: usize = rows.iter().map(|row| row.input_ids.len()).sum();
            format!("{} rows of {n_tokens} tokens", rows.len())
        };
        outcome.map_err(|error| fault(self.ordinal, Some(&self.stream), &what(), &error))
    }

    /// Computes these batches, one after the other and while nothing else computes on this GPU; returns the bytes that
    /// the largest of them takes beside the weights.
    pub(super) fn try_out(&self, batches: &[Vec<Row<'_>>]) -> Result<u64, Fault> {
        let Desk { mut buffers, .. } = self.new_desk()?;
        let _turn = self.turn();
        let mut try_all = || {
            let before = self.stream.begin_peak()?;
            for rows in batches {
                let words = self.prepare(rows, Shape::of(rows), &mut buffers)?;
                self.enqueue(words, &mut buffers, None)?;
                buffers.wait()?;
            }
            Ok(self.stream.peak()?.saturating_sub(before))
        };
        let outcome = try_all();
        if outcome.is_err() {
            let _ = self.stream.trim();
        }
        outcome.map_err(|error| {
            let what = "the largest batch";
            fault(self.ordinal, Some(&self.stream), what, &error)
        })
    }

    fn compute(&self, rows: &[Row<'_>], desk: &mut Desk) -> Computed<Logits> {
        let n_logits = rows.len() * self.opened.sizes.n_labels;
        let shape = Shape::of(rows);
        let (graph, buffers) = desk.parts(shape);
        let by_graph = graph.map(|(filled, graph)| {
            let words = self.prepare(rows, *filled, buffers)?;
            let _turn = self.turn();
            self.enqueue(words, buffers, Some(graph))
        });
        match by_graph {
            Some(Ok(())) => {}
            // Others may have its memory, since a model was closed that had graphs, too.
            Some(Err(error)) if !faults::is_out_of_memory(&error) => return Err(error),
            Some(Err(_)) | None => {
                let words = self.prepare(rows, shape, buffers)?;
                let _turn = self.turn();
                self.enqueue(words, buffers, None)?;
            }
        }
        let enqueued = Instant::now();
        let values = buffers.wait()?[..n_logits].to_vec();
        Ok(Logits { values, enqueued })
    }

    /// Writes rows down as a batch of this shape, where they go up from.
    pub(super) fn prepare(
        &self,
        rows: &[Row<'_>],
        shape: Shape,
        buffers: &mut Buffers,
    ) -> Computed<Words> {
        let words = Words::new(rows, shape, &*self.opened.model)?;
        buffers.fill(&words.parts())?;
        Ok(words)
    }

    /// Enqueues what was prepared, in the GPU's turn: by the graph of its shape, or launch by launch.
    pub(super) fn enqueue(
        &self,
        words: Words,
        buffers: &mut Buffers,
        graph: Option<&Graph>,
    ) -> Computed<()> {
        match graph {
            Some(graph) => graph.launch()?,
            None => {
                let (up, down) = buffers.ends()?;
                self.launch(words, up, down)?;
            }
        }
        buffers.mark(&self.stream)
    }

    /// Enqueues all that is done with words that go up from here, until logits come down there.
    pub(super) fn launch(&self, words: Words, up: &[u32], down: &mut [f32]) -> Computed<()> {
        let rows = words.rows(&self.stream.send(up)?)?;
        let logits = self.opened.model.forward(&rows)?;
        self.stream.fetch(&steps::to_f32(&logits)?, down)
    }

    fn new_desk(&self) -> Result<Desk, Fault> {
        let n_words = packed::words_max(self.rows_max, self.cells_max);
        let n_logits = self.rows_max * self.opened.sizes.n_labels;
        let made = self.stream.buffers(n_words, n_logits).map(Desk::new);
        made.map_err(|error| fault(self.ordinal, Some(&self.stream), "pinned buffers", &error))
    }

    pub(super) fn desks(&self) -> MutexGuard<'_, Vec<Desk>> {
        self.desks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The GPU's memory, as all that use it leave it.
    pub(super) fn memory(&self) -> Computed<Memory> {
        let (free, total) = self.stream.context().mem_get_info().w()?;
        Ok(Memory {
            free,
            total,
            needed: FREE_BYTES_MIN.min(total / FREE_SHARE_MIN),
        })
    }
}

// === impl Memory ===

impl Memory {
    /// Whether less is free than others need.
    pub(super) fn is_short(&self) -> bool {
        self.free < self.needed
    }
}

/// The turn of a GPU, of all models on it.
fn turn(ordinal: usize) -> Arc<Mutex<()>> {
    static TURNS: Mutex<BTreeMap<usize, Arc<Mutex<()>>>> = Mutex::new(BTreeMap::new());
    let mut turns = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(turns.entry(ordinal).or_default())
}

/// A stream on a GPU, which may have been lost before.
pub(super) fn open_stream(ordinal: usize) -> Result<Stream, Fault> {
    faults::revive(ordinal)?;
    Stream::open(ordinal).map_err(|error| fault(ordinal, None, "opening it", &error))
}
