//! Batches as rectangles of rows, one after the other: on CPUs, and on GPUs by candle's operations.

use super::{Asked, Place, WORKERS_MAX, scorable};
use crate::block::attention::scores_bytes;
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
/// On a GPU, which has as many products at once and pays for each launch.
#[cfg(any(feature = "cuda", feature = "metal"))]
const DEVICE_CELLS_MAX: usize = 4_096;

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
        let kernel = kernel(place, dtype, asked.options.reference);
        let row_tokens_max = (sizes.row_tokens_max as u32).min(asked.row_tokens_max());
        let (cells_max, n_threads) = match place {
            Place::Cpu => (CPU_CELLS_MAX, request.n_threads.max(1) as usize),
            // A GPU is not faster for threads that feed it.
            #[cfg(any(feature = "cuda", feature = "metal"))]
            _ => (DEVICE_CELLS_MAX, 1),
        };
        let cells = cells_max.max(row_tokens_max as usize);
        let scratch = cells * sizes.cell_values * size_of::<f32>()
            + sizes.n_product_bytes
            + scores_bytes(sizes.n_heads, row_tokens_max as usize);
        let n_scratches = n_threads * request.n_workers.max(1) as usize;
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
            n_workers_max: WORKERS_MAX,
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
fn kernel(place: Place, dtype: &str, reference: bool) -> String {
    if reference {
        return "candle-f64-reference".to_owned();
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
        let rectangles = self.rectangles(batch, out);
        let n_threads = self.n_threads.min(rectangles.len());
        let work = Work {
            opened: &self.opened,
            batch,
            rectangles: Mutex::new(rectangles.into_iter()),
            out: Mutex::new(out),
        };
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
    fn rectangles(&self, batch: &RaggedBatch<'_>, out: &mut Scores<'_>) -> Vec<Rectangle> {
        let rows = scorable(&self.opened, batch, out);
        let lengths: Vec<_> = rows
            .iter()
            .map(|&row| batch.row(row).input_ids.len())
            .collect();
        // Each thread has something to do, if there are rows enough.
        let share = lengths.iter().sum::<usize>().div_ceil(self.n_threads);
        let mut rectangles = pad::rectangles(&lengths, self.cells_max.min(share), 1);
        for rectangle in &mut rectangles {
            for row in &mut rectangle.rows {
                *row = rows[*row];
            }
        }
        rectangles
    }
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
                Fault::internal(format!("{n} rows of {width} tokens: {error}"))
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
