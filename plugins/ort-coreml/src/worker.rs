//! A batch on its way through: rows of similar lengths are laid into rectangles, which the graph computes one after the other.

use crate::config::Config;
use crate::graph::{Feed, Graph};
use crate::native::run::{Tensor, Values};
use backend_api::pad::{self, Rectangle};
use backend_api::{Fault, Phases, RaggedBatch, Row, RowStatus, Scores, Worker};
use half::f16;
use ort::memory::MemoryInfo;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What all workers of a backend share.
#[derive(Debug)]
pub struct Shared {
    /// The session.
    pub graph: Graph,
    /// The model's numbers.
    pub config: Config,
    /// How rectangles are cut.
    pub cut: Cut,
}

/// How a batch is cut into rectangles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The most cells of a rectangle of several rows, padding included.
    pub cells_max: usize,
    /// Widths are multiples of this…
    pub width_multiple: usize,
    /// …and no larger: the longest row that was agreed.
    pub width_max: usize,
    /// Rows of every rectangle, made up of padding where there are fewer.
    pub rows_fixed: Option<usize>,
}

/// A worker's memory: one rectangle.
pub(crate) struct OrtWorker {
    shared: Arc<Shared>,
    memory: MemoryInfo<'static>,
    // One for each of the graph's inputs.
    inputs: Vec<Integers>,
    logits: Logits,
    // Of one row, where logits come in halves.
    row_logits: Vec<f32>,
    lengths: Vec<usize>,
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

// === impl Cut ===

impl Cut {
    /// Cells of the largest rectangle.
    #[must_use]
    pub fn cells(&self) -> usize {
        self.rows_fixed
            .map_or(self.cells_max.max(self.width_max), |rows| {
                rows * self.width_max
            })
    }

    /// Rows of the tallest rectangle.
    fn rows_max(&self) -> usize {
        self.rows_fixed.unwrap_or(self.cells_max)
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
        let (cells, output) = (shared.cut.cells(), &shared.graph.output);
        let inputs = shared
            .graph
            .inputs
            .iter()
            .map(|input| Integers::with_capacity(cells, input.is_short));
        let n_logits = shared.cut.rows_max() * output.n_labels;
        Ok(Self {
            memory,
            inputs: inputs.collect(),
            logits: if output.is_half {
                Logits::Half(Vec::with_capacity(n_logits))
            } else {
                Logits::Whole(Vec::with_capacity(n_logits))
            },
            row_logits: Vec::with_capacity(output.n_labels),
            lengths: Vec::new(),
            shared,
        })
    }

    /// Scores some rows of the batch, which are padded to `width`.
    fn score_rows(
        &mut self,
        batch: &RaggedBatch<'_>,
        rows: &[usize],
        width: usize,
        out: &mut Scores<'_>,
        phases: &mut Phases,
    ) -> Result<(), Fault> {
        let started = Instant::now();
        self.fill(batch, rows, width);
        let filled = Instant::now();
        self.compute(self.shared.cut.rows_fixed.unwrap_or(rows.len()), width)?;
        let computed = Instant::now();
        let n_labels = self.shared.graph.output.n_labels;
        for (line, &row) in rows.iter().enumerate() {
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
        phases.prepare_us += micros(filled - started);
        phases.compute_us += micros(computed - filled);
        phases.collect_us += micros(computed.elapsed());
        Ok(())
    }

    /// Lays the rows into the inputs, one a line; lines and cells without a token are padding.
    fn fill(&mut self, batch: &RaggedBatch<'_>, rows: &[usize], width: usize) {
        let Shared { graph, config, cut } = &*self.shared;
        let n_lines = cut.rows_fixed.unwrap_or(rows.len());
        for (input, cells) in graph.inputs.iter().zip(&mut self.inputs) {
            let padding = match input.feed {
                Feed::Ids => config.pad_id,
                Feed::Positions if config.behind_padding => config.pad_id,
                Feed::Mask | Feed::Types | Feed::Positions => 0,
            };
            cells.reset(n_lines * width, padding);
            for (line, &row) in rows.iter().enumerate() {
                let (start, row) = (line * width, batch.row(row));
                match input.feed {
                    Feed::Ids => cells.write(start, row.input_ids.iter().copied()),
                    Feed::Mask => cells.write(start, row.input_ids.iter().map(|_| 1)),
                    Feed::Types => cells.write(start, row.type_ids.iter().copied()),
                    Feed::Positions => cells.write(start, positions(config, row)),
                }
            }
            // A line without any token has a softmax over nothing; what it gives nobody reads, but NaN is slow on some processors.
            if input.feed == Feed::Mask {
                (rows.len()..n_lines)
                    .for_each(|line| cells.write(line * width, std::iter::once(1)));
            }
        }
    }

    /// Runs the graph over what was laid in.
    fn compute(&mut self, n_lines: usize, width: usize) -> Result<(), Fault> {
        let graph = &self.shared.graph;
        let failed = |error: ort::Error| Fault::internal(format!("ONNX Runtime: {error}"));
        let shape = [n_lines as i64, width as i64];
        let names = graph.inputs.iter().map(|input| input.name.as_c_str());
        let tensors = self
            .inputs
            .iter_mut()
            .map(|cells| Tensor::new(&self.memory, cells.values(), &shape));
        let inputs = names.zip(tensors).map(|(name, tensor)| Ok((name, tensor?)));
        let inputs = inputs.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        let n_labels = graph.output.n_labels;
        let values = self.logits.values(n_lines * n_labels);
        let shape = [n_lines as i64, n_labels as i64];
        let n_dimensions = if graph.output.has_labels { 2 } else { 1 };
        let logits = Tensor::new(&self.memory, values, &shape[..n_dimensions]);
        graph.run(&inputs, &mut logits.map_err(failed)?)
    }
}

impl Worker for OrtWorker {
    fn score(&mut self, batch: &RaggedBatch<'_>, out: &mut Scores<'_>) -> Result<Phases, Fault> {
        let mut phases = Phases::default();
        self.lengths.clear();
        self.lengths
            .extend((0..batch.n_rows()).map(|row| batch.row(row).input_ids.len()));
        let shared = Arc::clone(&self.shared);
        let Cut {
            cells_max,
            width_multiple,
            width_max,
            rows_fixed,
        } = shared.cut;
        for Rectangle { mut rows, .. } in pad::rectangles(&self.lengths, cells_max, width_multiple)
        {
            // Looked at between rectangles: who does not wait any more is left out, and may have been the longest.
            rows.retain(|&row| match batch.state(row) {
                RowStatus::Scored if is_known(&shared, batch.row(row)) => true,
                RowStatus::Scored => {
                    out.fail(row, RowStatus::Failed);
                    false
                }
                nobody_waits => {
                    out.fail(row, nobody_waits);
                    false
                }
            });
            for rows in rows.chunks(rows_fixed.unwrap_or(usize::MAX)) {
                let longest = self.lengths[rows[0]];
                let width = shared
                    .graph
                    .width_fixed
                    .unwrap_or(longest.next_multiple_of(width_multiple));
                self.score_rows(batch, rows, width.min(width_max), out, &mut phases)?;
            }
        }
        Ok(phases)
    }
}

/// Whether the model has these tokens. The runtime fails a whole rectangle over one that it has not.
fn is_known(shared: &Shared, row: Row<'_>) -> bool {
    let Shared { graph, config, .. } = shared;
    let types = config.types.filter(|_| graph.reads(Feed::Types));
    row.input_ids.iter().all(|&id| id < config.vocab)
        && types.is_none_or(|types| row.type_ids.iter().all(|&kind| kind < types))
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
