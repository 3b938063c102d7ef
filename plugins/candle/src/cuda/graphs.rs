//! Small batches as CUDA graphs. A GPU computes them faster than a processor enqueues their launches, of which there are
//! eight a layer; a graph is enqueued as one. It is of one shape and of one worker's pinned buffers, so there is one for each
//! of a few shapes, and rows that nobody asked for fill a batch up to the next shape.
//!
//! Whether a graph pays depends on the GPU, the model and the processor. It is measured at open, from the smallest shape on,
//! until it does not.

use super::driver::{Buffers, Graph};
use super::faults::fault;
use super::lane::Loaded;
use super::packed::Shape;
use backend_api::{Fault, FaultCode, Row};
use candle_core::{Result as Computed, bail};
use std::time::{Duration, Instant};

/// Tokens of the smallest shape, and of the largest that is tried: beyond it a GPU is busy.
const CELLS_MIN: usize = 64;
const CELLS_MAX: usize = 4_096;
/// Tokens of a row on average, at least: batches of shorter ones take a larger graph or none.
const ROW_CELLS: usize = 32;
/// How often each way is timed, after it was done once.
const ROUNDS: usize = 5;
/// What share of the launches' time a graph may take.
const TIME_MAX: f64 = 0.95;
/// After so many shapes in a row for which it does not pay, no larger one is tried.
const MISSES_MAX: usize = 2;
/// Between two batches that are timed, for others' batches.
const PAUSE: Duration = Duration::from_micros(100);

/// What a worker computes a batch with. Graphs are dropped before the buffers that they copy from and to.
pub(super) struct Desk {
    /// From the smallest on.
    graphs: Vec<(Shape, Graph)>,
    pub(super) buffers: Buffers,
}

/// Shapes that graphs are tried for, from the smallest on: each holds a half or a third more tokens than the one before, and
/// a row beside them that takes up what is left.
fn shapes(rows_max: usize, cells_max: usize, row_tokens_max: usize) -> Vec<Shape> {
    let powers = std::iter::successors(Some(CELLS_MIN), |n_cells| Some(2 * n_cells));
    let sizes = powers.flat_map(|n_cells| [n_cells, n_cells / 2 * 3]);
    sizes
        .take_while(|&n_cells| n_cells <= CELLS_MAX)
        .map(|n_cells| (n_cells / ROW_CELLS + 1, n_cells))
        // Rows that nobody asked for have a token at least.
        .map(|(n_rows, n_cells)| (n_rows, n_cells + n_rows))
        .filter(|&(n_rows, n_cells)| n_rows <= rows_max && n_cells <= cells_max)
        .filter(|&(n_rows, n_cells)| n_cells <= n_rows * row_tokens_max)
        .map(|(n_rows, n_cells)| Shape::any(n_rows, n_cells, row_tokens_max))
        .collect()
}

/// Calls with rows of equal lengths that make a shape.
fn with_rows<T>(shape: Shape, call: impl FnOnce(&[Row<'_>]) -> Computed<T>) -> Computed<T> {
    let Some(lens) = shape.beside(Shape::of(&[])) else {
        bail!("no rows make {shape:?}");
    };
    let ids = vec![0; lens.iter().copied().max().unwrap_or(0)];
    let rows = lens.iter().map(|&len| Row {
        input_ids: &ids[..len],
        type_ids: &ids[..len],
    });
    call(&rows.collect::<Vec<_>>())
}

// === impl Desk ===

impl Desk {
    pub(super) fn new(buffers: Buffers) -> Self {
        Self {
            graphs: Vec::new(),
            buffers,
        }
    }

    /// The smallest graph that holds rows of this shape, and the buffers.
    pub(super) fn parts(&mut self, shape: Shape) -> (Option<&(Shape, Graph)>, &mut Buffers) {
        let mut graphs = self.graphs.iter();
        let graph = graphs.find(|(of_graph, _)| of_graph.holds(shape));
        (graph, &mut self.buffers)
    }
}

// === impl Loaded ===

impl Loaded {
    /// Records graphs for each worker's buffers: of all shapes, of none, or, where nothing is asked, of those that they pay
    /// for. Returns the bytes that they keep.
    ///
    /// # Errors
    /// `DeviceLost`; and, where they are asked for, what stood in their way. Else a GPU does without.
    pub(super) fn record_graphs(&self, asked: Option<bool>) -> Result<u64, Fault> {
        if asked == Some(false) {
            return Ok(0);
        }
        let mut desks = self.desks();
        let mut record = || {
            let before = self.stream.graph_bytes()?;
            self.record_all(&mut desks, asked == Some(true))?;
            Ok(self.stream.graph_bytes()?.saturating_sub(before))
        };
        record().or_else(|error| {
            let fault = fault(self.ordinal(), Some(&self.stream), "CUDA graphs", &error);
            desks.iter_mut().for_each(|desk| desk.graphs.clear());
            match asked {
                None if fault.code != FaultCode::DeviceLost => {
                    // What they had is kept no longer; that it cannot be given back is not worse than that they are not there.
                    let _ = self.stream.trim_graphs();
                    Ok(0)
                }
                _ => Err(fault),
            }
        })
    }

    fn record_all(&self, desks: &mut [Desk], are_asked: bool) -> Computed<()> {
        let [first, others @ ..] = desks else {
            return Ok(());
        };
        let row_tokens_max = self.row_tokens_max;
        let mut before = Shape::any(1, row_tokens_max.min(CELLS_MIN / 2), row_tokens_max);
        let mut n_missed = 0;
        for shape in shapes(self.rows_max, self.cells_max, row_tokens_max) {
            let graph = self.record(&mut first.buffers, shape)?;
            // What pays for one worker does so for all.
            let is_kept = are_asked
                || (self.pays(&mut first.buffers, (shape, &graph), before)?
                    && !self.memory()?.is_short());
            before = shape;
            if is_kept {
                n_missed = 0;
                first.graphs.push((shape, graph));
                for desk in &mut *others {
                    let graph = self.record(&mut desk.buffers, shape)?;
                    desk.graphs.push((shape, graph));
                }
                continue;
            }
            n_missed += 1;
            if n_missed == MISSES_MAX {
                break;
            }
        }
        if 0 < n_missed {
            // Of those that were not kept, too.
            self.stream.trim_graphs()?;
            let mut kept = desks.iter().flat_map(|desk| &desk.graphs);
            kept.try_for_each(|(_, graph)| graph.upload())?;
        }
        Ok(())
    }

    fn record(&self, buffers: &mut Buffers, shape: Shape) -> Computed<Graph> {
        with_rows(shape, |rows| {
            // A kernel's first launch loads it, which may wait for the GPU.
            self.time(rows, shape, buffers, None)?;
            let words = self.prepare(rows, shape, buffers)?;
            let (up, down) = buffers.ends()?;
            let _turn = self.turn();
            let graph = self.stream.record(|| self.launch(words, up, down))?;
            graph.upload()?;
            Ok(graph)
        })
    }

    /// Whether a graph takes less time than launches do of rows that fill the shape before it.
    fn pays(
        &self,
        buffers: &mut Buffers,
        (shape, graph): (Shape, &Graph),
        before: Shape,
    ) -> Computed<bool> {
        with_rows(before, |rows| {
            let mut time = |shape, graph| self.time(rows, shape, buffers, graph);
            let (mut with, mut without) = (Duration::MAX, Duration::MAX);
            for round in 0..=ROUNDS {
                let times = [time(shape, Some(graph))?, time(Shape::of(rows), None)?];
                // The least: others may compute on the GPU meanwhile.
                if 0 < round {
                    (with, without) = (with.min(times[0]), without.min(times[1]));
                }
            }
            Ok(with.as_secs_f64() <= TIME_MAX * without.as_secs_f64())
        })
    }

    /// Computes a batch in its turn.
    fn time(
        &self,
        rows: &[Row<'_>],
        shape: Shape,
        buffers: &mut Buffers,
        graph: Option<&Graph>,
    ) -> Computed<Duration> {
        // Without a pause the next turn would mostly be this thread's again, and other models' batches wait.
        std::thread::sleep(PAUSE);
        let words = self.prepare(rows, shape, buffers)?;
        let _turn = self.turn();
        let started = Instant::now();
        self.enqueue(words, buffers, graph)?;
        buffers.wait()?;
        Ok(started.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_what_fits() {
        let sizes = |rows_max, cells_max, row_tokens_max| {
            let shapes = shapes(rows_max, cells_max, row_tokens_max);
            let sizes = shapes.iter().map(|shape| (shape.n_rows, shape.n_cells));
            sizes.collect::<Vec<_>>()
        };
        let small = [(3, 67), (4, 100), (5, 133), (7, 199)];
        assert_eq!(sizes(1_024, 264, 512), small);
        assert_eq!(sizes(8, 16_384, 512), small);
        assert_eq!(sizes(1_024, 16_384, 512).last(), Some(&(129, 4_225)));
        assert!(sizes(1_024, 66, 512).is_empty());
        // Rows of so few tokens do not make a shape.
        assert!(sizes(1_024, 16_384, 22).is_empty());
    }

    /// Every batch of rows that are not much shorter than usual has its shape, up to the last token.
    #[test]
    fn a_batch_finds_the_next_shape() {
        let shapes = shapes(1_024, 16_384, 512);
        for (n_rows, n_cells) in [(1, 2), (1, 64), (2, 64), (2, 300), (8, 1_024), (32, 4_096)] {
            let batch = Shape::any(n_rows, n_cells, n_cells.min(512));
            let found = shapes.iter().find(|shape| shape.holds(batch));
            let found = found.unwrap_or_else(|| panic!("{n_rows} rows, {n_cells} tokens"));
            let at_most = 3 * n_cells.max(CELLS_MIN) / 2 + found.n_rows;
            assert!(found.n_cells <= at_most, "{found:?}");
        }
    }
}
