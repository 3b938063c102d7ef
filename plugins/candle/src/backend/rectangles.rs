//! Batches as rectangles of rows, one after the other: on CPUs, and on GPUs by candle's operations.

#[cfg(feature = "metal")]
use super::metal;
use super::{Asked, Place, WORKERS_MAX, scorable};
use crate::block::attention::scores_bytes;
use crate::loader::Options;
use crate::model::Opened;
use crate::rows::Rows;
use backend_api::pad::{self, Rectangle};
use backend_api::{
    Backend, Description, Fault, Layout, Phases, RaggedBatch, RowStatus, Scores, Worker,
};
use candle_core::{DType, Tensor};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Cells of a rectangle on a CPU, padding included: enough that weights are read seldom, and few enough
/// that rows are looked at often and sums stay in the cache.
const CPU_CELLS_MAX: usize = 512;
/// Padding in a rectangle that is larger than a CPU's, whatever its share: a GPU computes it sooner than it is given
/// another rectangle.
const PADDING_CELLS_MAX: usize = 512;

/// A model opened on a device.
pub(super) struct Rectangles {
    opened: Arc<Opened>,
    /// Cells of a rectangle.
    cells_max: usize,
    n_threads: usize,
    description: Description,
}

/// Scores by a model that it shares; candle allocates as it goes.
struct RectanglesWorker {
    opened: Arc<Opened>,
    cells_max: usize,
    n_threads: usize,
}

// === impl Rectangles ===

impl Rectangles {
    /// A model that was opened at this place.
    pub(super) fn new(asked: &Asked<'_>, place: Place, opened: Opened) -> Self {
        let (request, sizes) = (asked.request, opened.sizes);
        let dtype = opened.dtype;
        let kernel = kernel(place, dtype, asked.options);
        let row_tokens_max = (sizes.row_tokens_max as u32).min(asked.row_tokens_max());
        let (cells_max, n_threads, n_workers_max) = match place {
            // A GPU is not faster for threads that feed it.
            #[cfg(feature = "metal")]
            Place::Metal => (metal::CELLS_MAX, 1, metal::WORKERS_MAX),
            _ => {
                let n_threads = request.n_threads.max(1) as usize;
                (CPU_CELLS_MAX, n_threads, WORKERS_MAX)
            }
        };
        let cells = cells_max.max(row_tokens_max as usize);
        let scratch = cells * sizes.cell_values * size_of::<f32>()
            + sizes.n_product_bytes
            + scores_bytes(&opened.device, sizes.n_heads, row_tokens_max as usize);
        let n_scratches = n_threads * request.n_workers.clamp(1, n_workers_max) as usize;
        let description = Description {
            device: place.name().to_owned(),
            dtype: dtype.to_owned(),
            numerics_id: asked.numerics_id(dtype, &kernel, &opened),
            kernel,
            n_labels: sizes.n_labels as u32,
            rows_max: request.rows_max,
            tokens_max: request.tokens_max,
            row_tokens_max,
            // Of a rectangle, not of the batch: its rows are of about the same length.
            layout: Layout::Padded,
            preferred_multiple: 1,
            n_workers_max,
            cancels: true,
            bitwise: false,
            memory_bytes: (sizes.n_bytes + n_scratches * scratch) as u64,
            linear_mop_per_s: 0,
            attention_mop_per_s: 0,
        };
        Self {
            opened: Arc::new(opened),
            cells_max,
            n_threads,
            description,
        }
    }
}

/// What runs: on CPUs products by gemm's kernel for this one, whose weights were widened to what it multiplies.
fn kernel(place: Place, dtype: &str, options: &Options) -> String {
    if options.reference {
        return "candle-f64-reference".to_owned();
    }
    if options.halves {
        return format!("candle-{dtype}-halves");
    }
    if place != Place::Cpu {
        return format!("candle-{}-{dtype}", place.name());
    }
    let held = match dtype {
        "f32" => return format!("candle-gemm-f32-{}", simd()),
        "int8" => "q8_0",
        "int4" => "q4",
        stored => stored,
    };
    format!("candle-gemm-f32-{}-{held}-weights", simd())
}

#[cfg(target_arch = "x86_64")]
fn simd() -> &'static str {
    if is_x86_feature_detected!("avx512f") {
        "avx512f"
    } else if is_x86_feature_detected!("fma") {
        "fma"
    } else {
        "scalar"
    }
}

#[cfg(target_arch = "aarch64")]
fn simd() -> &'static str {
    "neon"
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn simd() -> &'static str {
    "scalar"
}

#[cfg(feature = "metal")]
impl Rectangles {
    pub(super) fn opened(&self) -> &Opened {
        &self.opened
    }

    /// What it needs, all workers at work.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.description.memory_bytes
    }
}

impl Backend for Rectangles {
    fn description(&self) -> Description {
        self.description.clone()
    }

    fn worker(&self) -> Result<Box<dyn Worker>, Fault> {
        Ok(Box::new(RectanglesWorker {
            opened: Arc::clone(&self.opened),
            cells_max: self.cells_max,
            n_threads: self.n_threads,
        }))
    }
}

// === impl RectanglesWorker ===

impl Worker for RectanglesWorker {
    fn score(&mut self, batch: &RaggedBatch<'_>, out: &mut Scores<'_>) -> Result<Phases, Fault> {
        let rectangles = self.rectangles(batch, out)?;
        let n_threads = self.n_threads.min(rectangles.len());
        let work = Work {
            opened: &self.opened,
            batch,
            rectangles: Mutex::new(rectangles.into_iter()),
            out: Mutex::new(out),
        };
        #[cfg(feature = "metal")]
        if self.opened.device.is_metal() {
            return metal::in_pool(|| work.run());
        }
        if n_threads <= 1 {
            return work.run();
        }
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..n_threads).map(|_| scope.spawn(|| work.run())).collect();
            let mut phases = work.run()?;
            for other in others {
                let other = other
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                phases.prepare_us += other.prepare_us;
                phases.compute_us += other.compute_us;
                phases.collect_us += other.collect_us;
            }
            Ok(phases)
        })
    }
}

impl RectanglesWorker {
    /// The rows that can be scored, longest first, in rectangles; others get their status.
    ///
    /// # Errors
    /// [`scorable`]'s.
    fn rectangles(
        &self,
        batch: &RaggedBatch<'_>,
        out: &mut Scores<'_>,
    ) -> Result<Vec<Rectangle>, Fault> {
        let rows = scorable(&self.opened, batch, out)?;
        let lengths: Vec<_> = rows
            .iter()
            .map(|&row| batch.row(row).input_ids.len())
            .collect();
        // Each thread has something to do, if there are rows enough.
        let share = lengths.iter().sum::<usize>().div_ceil(self.n_threads);
        let mut rectangles = pad::rectangles(&lengths, self.cells_max.min(share), 1);
        if PADDING_CELLS_MAX < self.cells_max {
            rectangles = rectangles
                .into_iter()
                .flat_map(|rectangle| alike(rectangle, &lengths))
                .collect();
        }
        for rectangle in &mut rectangles {
            for row in &mut rectangle.rows {
                *row = rows[*row];
            }
        }
        Ok(rectangles)
    }
}

/// A rectangle as several, of whose cells at most a quarter is padding, or so few that they cost less than a rectangle's
/// launches.
fn alike(rectangle: Rectangle, lengths: &[usize]) -> Vec<Rectangle> {
    let mut cut: Vec<Rectangle> = Vec::new();
    let mut n_tokens = 0;
    for row in rectangle.rows {
        let len = lengths[row];
        if let Some(last) = cut.last_mut() {
            let n_cells = last.width * (last.rows.len() + 1);
            if n_cells - n_tokens - len <= PADDING_CELLS_MAX.max(n_cells / 4) {
                last.rows.push(row);
                n_tokens += len;
                continue;
            }
        }
        cut.push(Rectangle {
            rows: vec![row],
            width: len,
        });
        n_tokens = len;
    }
    cut
}

/// What an error of candle's means.
fn fault(what: &str, error: &candle_core::Error) -> Fault {
    #[cfg(feature = "metal")]
    return metal::fault(what, error);
    #[cfg(not(feature = "metal"))]
    Fault::internal(format!("{what}: {error}"))
}

/// A batch's rectangles, taken one after the other by the threads that compute them.
struct Work<'a, 'b, 'c> {
    opened: &'a Opened,
    batch: &'a RaggedBatch<'b>,
    rectangles: Mutex<std::vec::IntoIter<Rectangle>>,
    out: Mutex<&'a mut Scores<'c>>,
}

impl Work<'_, '_, '_> {
    fn run(&self) -> Result<Phases, Fault> {
        let mut phases = Phases::default();
        while let Some(mut rectangle) = self.next() {
            let started = Instant::now();
            self.drop_unwanted(&mut rectangle);
            if rectangle.rows.is_empty() {
                continue;
            }
            let tokens: Vec<_> = rectangle
                .rows
                .iter()
                .map(|&row| self.batch.row(row))
                .collect();
            let failed = |error: candle_core::Error| {
                let (n, width) = (rectangle.rows.len(), rectangle.width);
                fault(&format!("{n} rows of {width} tokens"), &error)
            };
            let (model, device) = (&*self.opened.model, &self.opened.device);
            let rows = Rows::rectangle(&tokens, model, device).map_err(failed)?;
            let gathered = Instant::now();
            let logits = self.logits(&rows).map_err(failed)?;
            let computed = Instant::now();
            let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
            for (&row, logits) in rectangle.rows.iter().zip(&logits) {
                out.set(row, logits);
            }
            phases.prepare_us += (gathered - started).as_micros() as u64;
            phases.compute_us += (computed - gathered).as_micros() as u64;
            phases.collect_us += computed.elapsed().as_micros() as u64;
        }
        Ok(phases)
    }

    fn next(&self) -> Option<Rectangle> {
        let mut rectangles = self
            .rectangles
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        rectangles.next()
    }

    /// Looks at the rows once more: another rectangle may have taken long.
    fn drop_unwanted(&self, rectangle: &mut Rectangle) {
        let mut width = 0;
        rectangle.rows.retain(|&row| match self.batch.state(row) {
            RowStatus::Scored => {
                width = width.max(self.batch.row(row).input_ids.len());
                true
            }
            nobody_waits => {
                let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
                out.fail(row, nobody_waits);
                false
            }
        });
        rectangle.width = width;
    }

    fn logits(&self, rows: &Rows) -> candle_core::Result<Vec<Vec<f32>>> {
        let logits: Tensor = self.opened.model.forward(rows)?;
        logits.to_dtype(DType::F32)?.to_vec2()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(lengths: &[usize], expected: &[&[usize]]) {
        let rectangle = Rectangle {
            rows: (0..lengths.len()).collect(),
            width: lengths[0],
        };
        let cut = alike(rectangle, lengths);
        let widths: Vec<_> = cut.iter().map(|cut| cut.width).collect();
        let rows: Vec<_> = cut.into_iter().map(|cut| cut.rows).collect();
        assert_eq!(rows, expected);
        let longest: Vec<_> = expected.iter().map(|rows| lengths[rows[0]]).collect();
        assert_eq!(widths, longest);
    }

    #[test]
    fn rows_of_like_lengths_stay_together() {
        check(&[512, 500, 400, 380], &[&[0, 1, 2, 3]]);
    }

    #[test]
    fn short_rows_are_not_padded_to_long_ones() {
        check(&[2_048, 1_900, 512, 500], &[&[0, 1], &[2, 3]]);
    }

    #[test]
    fn few_cells_are_not_worth_a_rectangle() {
        check(&[128, 20, 20, 20], &[&[0, 1, 2, 3]]);
    }
}
