//! A batch on its way through: rows of similar lengths are laid into rectangles, which the graph computes one after the other.

use crate::config::Config;
use crate::graph::Graph;
use crate::graph::outlets::Feed;
use crate::native::run::{Inputs, Tensor, Values};
use backend_api::{Fault, Phases, RaggedBatch, Row, RowStatus, Scores, Worker};
use half::f16;
use ort::memory::MemoryInfo;
use std::cmp::Reverse;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What all workers of a backend share.
#[derive(Debug)]
pub struct Shared {
    /// The sessions, by rising width. What they read and say is the same.
    pub graphs: Vec<Graph>,
    /// The model's numbers.
    pub config: Config,
    /// How rectangles are cut.
    pub cut: Cut,
}

/// How a batch is cut into rectangles, where the graph does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The most cells of a rectangle of several rows, padding included.
    pub cells_max: usize,
    /// Widths are multiples of this…
    pub width_multiple: usize,
    /// …and no larger: the longest row that was agreed.
    pub width_max: usize,
}

/// Lines of cells: as many as there are rows, or as the graph computes only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    lines: usize,
    width: usize,
}

/// A worker's memory: one rectangle.
pub(crate) struct OrtWorker {
    shared: Arc<Shared>,
    memory: MemoryInfo<'static>,
    // The rows of the batch, longest first, and those of the rectangle.
    order: Vec<usize>,
    rows: Vec<usize>,
    // One for each of the graph's inputs.
    inputs: Vec<Integers>,
    logits: Logits,
    // Of one row, where logits come in halves.
    row_logits: Vec<f32>,
}

/// An input's cells, as wide as the graph takes them.
enum Integers {
    Long(Vec<i64>),
    Short(Vec<i32>),
}

/// The output, as the graph gives it.
enum Logits {
    Whole(Vec<f32>),
    Half(Vec<f16>),
}

// === impl Shared ===

impl Shared {
    /// The session for a row of this length, and the rectangle's most rows and width.
    fn graph(&self, row_tokens: usize) -> Option<(&Graph, Shape)> {
        let graph = self.graphs.iter().find(|graph| graph.takes(row_tokens))?;
        let Cut {
            cells_max,
            width_multiple,
            width_max,
        } = self.cut;
        // A multiple may be more than the model has positions for.
        let width = row_tokens
            .next_multiple_of(width_multiple)
            .min(width_max.max(row_tokens));
        let width = graph.width_fixed.unwrap_or(width);
        let lines = graph.rows_fixed.unwrap_or((cells_max / width).max(1));
        Some((graph, Shape { lines, width }))
    }

    /// Cells of the largest rectangle.
    #[must_use]
    pub fn cells(&self) -> usize {
        let cells = self.graphs.iter().map(|graph| {
            let width = graph.width_fixed.unwrap_or(self.cut.width_max);
            graph
                .rows_fixed
                .map_or(self.cut.cells_max.max(width), |rows| rows * width)
        });
        cells.max().unwrap_or(0)
    }

    /// Whether the model has these tokens. The runtime fails a whole rectangle over one that it has not.
    fn is_known(&self, row: Row<'_>) -> bool {
        let reads_types = self.graphs.iter().any(|graph| graph.reads(Feed::Types));
        let types = self.config.types.filter(|_| reads_types);
        row.input_ids.iter().all(|&id| id < self.config.vocab)
            && types.is_none_or(|types| row.type_ids.iter().all(|&kind| kind < types))
    }
}

// === impl OrtWorker ===

impl OrtWorker {
    pub(crate) fn new(shared: Arc<Shared>) -> Result<Self, Fault> {
        use ort::memory::{AllocationDevice, AllocatorType, MemoryType};
        let memory = MemoryInfo::new(
            AllocationDevice::CPU,
            0,
            AllocatorType::Device,
            MemoryType::Default,
        );
        let memory = memory.map_err(|error| Fault::internal(error.to_string()))?;
        let first = shared
            .graphs
            .first()
            .ok_or_else(|| Fault::internal("no graph was opened"))?;
        let cells = shared.cells();
        let inputs = first
            .inputs
            .iter()
            .map(|input| Integers::with_capacity(cells, input.is_short));
        Ok(Self {
            memory,
            order: Vec::new(),
            rows: Vec::new(),
            inputs: inputs.collect(),
            logits: if first.output.is_half {
                Logits::Half(Vec::new())
            } else {
                Logits::Whole(Vec::new())
            },
            row_logits: Vec::with_capacity(first.output.n_labels),
            shared,
        })
    }

    /// Lays the rows into the inputs, one a line; lines and cells without a token are padding.
    fn fill(&mut self, batch: &RaggedBatch<'_>, graph: &Graph, shape: Shape) {
        let (rows, config) = (&self.rows, &self.shared.config);
        for (input, cells) in graph.inputs.iter().zip(&mut self.inputs) {
            let padding = match input.feed {
                Feed::Ids => config.pad_id,
                Feed::Positions if config.behind_padding => config.pad_id,
                Feed::Mask | Feed::Types | Feed::Positions => 0,
            };
            cells.reset(shape.lines * shape.width, padding);
            for (line, &row) in rows.iter().enumerate() {
                let (start, row) = (line * shape.width, batch.row(row));
                match input.feed {
                    Feed::Ids => cells.write(start, row.input_ids.iter().copied()),
                    Feed::Mask => cells.write(start, row.input_ids.iter().map(|_| 1)),
                    Feed::Types => cells.write(start, row.type_ids.iter().copied()),
                    Feed::Positions => cells.write(start, positions(config, row)),
                }
            }
            // Nobody reads what a line without a row gives; but a softmax over nothing is NaN, which quantised rows beside it share.
            if input.feed == Feed::Mask {
                let empty = rows.len()..shape.lines;
                empty.for_each(|line| cells.write(line * shape.width, std::iter::once(1)));
            }
        }
    }

    /// Runs the graph over what was laid in.
    fn compute(&mut self, graph: &Graph, shape: Shape) -> Result<(), Fault> {
        let failed = |error: ort::Error| Fault::internal(format!("ONNX Runtime: {error}"));
        let dimensions = [shape.lines as i64, shape.width as i64];
        let mut inputs = Inputs::default();
        for (input, cells) in graph.inputs.iter().zip(&mut self.inputs) {
            let tensor = Tensor::new(&self.memory, cells.values(), &dimensions).map_err(failed)?;
            inputs.push(&input.name, tensor).map_err(failed)?;
        }
        let output = &graph.output;
        let dimensions = [shape.lines as i64, output.n_labels as i64];
        let dimensions = if output.has_labels {
            &dimensions[..]
        } else {
            &dimensions[..1]
        };
        let values = self.logits.values(shape.lines * output.n_labels);
        let mut logits = Tensor::new(&self.memory, values, dimensions).map_err(failed)?;
        graph.run(&inputs, &mut logits)
    }

    /// Hands out the logits of the rectangle's rows.
    fn collect(&mut self, n_labels: usize, out: &mut Scores<'_>) {
        for (line, &row) in self.rows.iter().enumerate() {
            let range = line * n_labels..(line + 1) * n_labels;
            match &self.logits {
                Logits::Whole(logits) => out.set(row, &logits[range]),
                Logits::Half(logits) => {
                    self.row_logits.clear();
                    self.row_logits
                        .extend(logits[range].iter().map(|logit| logit.to_f32()));
                    out.set(row, &self.row_logits);
                }
            }
        }
    }
}

impl Worker for OrtWorker {
    /// Takes rows from the longest on, as many as make a rectangle, until none is left. Not by `pad::rectangles`: whether anybody
    /// still waits for a row is looked at when its rectangle's turn comes, and others take its place.
    fn score(&mut self, batch: &RaggedBatch<'_>, out: &mut Scores<'_>) -> Result<Phases, Fault> {
        let (mut phases, shared) = (Phases::default(), Arc::clone(&self.shared));
        let row_tokens = |row: usize| batch.row(row).input_ids.len();
        self.order.clear();
        self.order.extend(0..batch.n_rows());
        // Equal lengths by number: the same batch is always cut the same way.
        self.order
            .sort_unstable_by_key(|&row| (Reverse(row_tokens(row)), row));
        let mut next = 0;
        while next < self.order.len() {
            let started = Instant::now();
            self.rows.clear();
            let mut found = None;
            while next < self.order.len() {
                let row = self.order[next];
                if found.is_some_and(|(_, most): (&Graph, Shape)| most.lines <= self.rows.len()) {
                    break;
                }
                next += 1;
                match batch.state(row) {
                    RowStatus::Scored if shared.is_known(batch.row(row)) => {
                        found = found.or_else(|| shared.graph(row_tokens(row)));
                        self.rows.push(row);
                    }
                    RowStatus::Scored => out.fail(row, RowStatus::Failed),
                    nobody_waits => out.fail(row, nobody_waits),
                }
            }
            let Some((graph, most)) = found else {
                // Nobody waits for any that was left; or a row is longer than was agreed, which the check of batches keeps out.
                self.rows
                    .iter()
                    .for_each(|&row| out.fail(row, RowStatus::Failed));
                continue;
            };
            let lines = graph.rows_fixed.unwrap_or(self.rows.len());
            let shape = Shape { lines, ..most };
            self.fill(batch, graph, shape);
            let filled = Instant::now();
            self.compute(graph, shape)?;
            let computed = Instant::now();
            self.collect(graph.output.n_labels, out);
            phases.prepare_us += micros(filled - started);
            phases.compute_us += micros(computed - filled);
            phases.collect_us += micros(computed.elapsed());
        }
        Ok(phases)
    }
}

/// Positions as transformers counts them: from 0, or in some families from behind the padding token's id, which padding keeps.
fn positions<'a>(config: &Config, row: Row<'a>) -> impl Iterator<Item = u32> + 'a {
    let (pad_id, behind_padding) = (config.pad_id, config.behind_padding);
    let mut next = if behind_padding { pad_id + 1 } else { 0 };
    row.input_ids.iter().map(move |&id| {
        if behind_padding && id == pad_id {
            return pad_id;
        }
        next += 1;
        next - 1
    })
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

// === impl Integers ===

impl Integers {
    fn with_capacity(cells: usize, is_short: bool) -> Self {
        if is_short {
            Self::Short(Vec::with_capacity(cells))
        } else {
            Self::Long(Vec::with_capacity(cells))
        }
    }

    /// Makes it `n` cells of one value.
    fn reset(&mut self, n: usize, value: u32) {
        match self {
            Self::Long(cells) => {
                cells.clear();
                cells.resize(n, i64::from(value));
            }
            Self::Short(cells) => {
                cells.clear();
                cells.resize(n, value as i32);
            }
        }
    }

    /// Writes values from `start` on. They are below the vocabulary's size, which 31 bits hold.
    fn write(&mut self, start: usize, values: impl Iterator<Item = u32>) {
        match self {
            Self::Long(cells) => {
                cells[start..]
                    .iter_mut()
                    .zip(values)
                    .for_each(|(cell, value)| *cell = i64::from(value));
            }
            Self::Short(cells) => {
                cells[start..]
                    .iter_mut()
                    .zip(values)
                    .for_each(|(cell, value)| *cell = value as i32);
            }
        }
    }

    fn values(&mut self) -> Values<'_> {
        match self {
            Self::Long(cells) => Values::I64(cells),
            Self::Short(cells) => Values::I32(cells),
        }
    }
}

// === impl Logits ===

impl Logits {
    /// Room for `n` logits.
    fn values(&mut self, n: usize) -> Values<'_> {
        match self {
            Self::Whole(logits) => {
                logits.resize(n, 0.0);
                Values::F32(logits)
            }
            Self::Half(logits) => {
                logits.resize(n, f16::ZERO);
                Values::F16(logits)
            }
        }
    }
}
