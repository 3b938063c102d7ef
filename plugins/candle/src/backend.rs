//! The plugins' face: checks the request, opens the model, cuts batches into rectangles.

use crate::block::attention::scores_bytes;
use crate::family::FAMILIES;
use crate::loader::Options;
use crate::model::Opened;
use crate::numbers::Dtype;
use crate::rows::Rows;
use backend_api::pad::{self, Rectangle};
use backend_api::{
    Backend, Description, Fault, Layout, OpenRequest, Phases, PluginCard, RaggedBatch, RowStatus,
    Scores, Worker,
};
use candle_core::{DType, Device, Tensor};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Counts changes of this crate that change scores; part of the numerics id.
const NUMERICS_VERSION: u32 = 1;
/// Workers share nothing that is written, so any number may run; this only bounds a request.
const WORKERS_MAX: u32 = 1_024;
/// Below what plugins have that say nothing: an engine made for a device and a model is the better choice.
const PREFERENCE: u32 = 50;
/// Cells of a rectangle on a CPU, padding included: enough that weights are read seldom, and few enough
/// that rows are looked at often and sums stay in the cache.
const CPU_CELLS_MAX: usize = 512;

/// Where a plugin computes: what its library was built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The host's processors.
    Cpu,
}

/// A model opened on a device.
struct CandleBackend {
    opened: Arc<Opened>,
    n_threads: usize,
    description: Description,
}

/// Scores by a model that it shares; candle allocates as it goes.
struct CandleWorker {
    opened: Arc<Opened>,
    n_threads: usize,
}

/// What a plugin of this name and version, built for this place, can do.
pub fn card(name: &str, version: &str, place: Place) -> PluginCard {
    PluginCard {
        name: name.to_owned(),
        version: version.to_owned(),
        devices: vec![place.name().to_owned()],
        dtypes: Dtype::ALL.map(|dtype| dtype.name().to_owned()).to_vec(),
        architectures: FAMILIES
            .map(|family| family.architecture.to_owned())
            .to_vec(),
        formats: ["safetensors", "gguf"].map(str::to_owned).to_vec(),
        preference: PREFERENCE,
        ..PluginCard::default()
    }
}

/// Loads a model.
///
/// # Errors
/// `Unsupported` for another device, dtype or architecture, `BadModel` for files that are missing or wrong,
/// `BadRequest` for options: the text names what was found and what is possible.
pub fn open(name: &str, request: &OpenRequest, place: Place) -> Result<Box<dyn Backend>, Fault> {
    let device = place.device(&request.device)?;
    let dtype = Dtype::named(&request.dtype)?;
    let options: Options = serde_json::from_str(&request.options)
        .map_err(|error| Fault::bad_request(format!("options {:?}: {error}", request.options)))?;
    let options = options.or_answers(request.yes_token, request.no_token);
    for (name, value) in [
        ("rows_max", request.rows_max),
        ("tokens_max", request.tokens_max),
        ("row_tokens_max", request.row_tokens_max),
    ] {
        if value == 0 {
            return Err(Fault::bad_request(format!(
                "{name} = 0: at least 1 is needed"
            )));
        }
    }
    let compute = match options.reference {
        true => DType::F64,
        false => DType::F32,
    };
    let row_tokens_max = request.row_tokens_max.min(request.tokens_max) as usize;
    let dir = &request.model_dir;
    let opened = Opened::load(dir, dtype, compute, device, &options, row_tokens_max)?;
    Ok(Box::new(CandleBackend::new(
        name, request, place, &options, opened,
    )))
}

// === impl Place ===

impl Place {
    fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
        }
    }

    fn device(self, asked: &str) -> Result<Device, Fault> {
        match self {
            Self::Cpu if matches!(asked, "auto" | "cpu") => Ok(Device::Cpu),
            place => Err(Fault::unsupported(format!(
                "device {asked:?}: this plugin runs on {}",
                place.name()
            ))),
        }
    }
}

// === impl CandleBackend ===

impl CandleBackend {
    fn new(
        name: &str,
        request: &OpenRequest,
        place: Place,
        options: &Options,
        opened: Opened,
    ) -> Self {
        let sizes = opened.sizes;
        let dtype = opened.dtype;
        let kernel = kernel(dtype, options.reference);
        let row_tokens_max = (sizes.row_tokens_max as u32)
            .min(request.row_tokens_max)
            .min(request.tokens_max);
        let n_threads = request.n_threads.max(1) as usize;
        let cells = CPU_CELLS_MAX.max(row_tokens_max as usize);
        let scratch = cells * sizes.cell_values * size_of::<f32>()
            + sizes.n_product_bytes
            + scores_bytes(sizes.n_heads, row_tokens_max as usize);
        let n_scratches = n_threads * request.n_workers.max(1) as usize;
        let description = Description {
            device: place.name().to_owned(),
            dtype: dtype.to_owned(),
            numerics_id: format!(
                "{name}-{NUMERICS_VERSION}/{dtype}/{kernel}{}/{:016x}",
                tokens(options),
                opened.fingerprint
            ),
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
            n_threads,
            description,
        }
    }
}

/// What runs: products by gemm's kernel for this CPU, whose weights were widened to what it multiplies.
fn kernel(dtype: &str, reference: bool) -> String {
    if reference {
        return "candle-f64-reference".to_owned();
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

/// Which tokens were compared, if the request says.
fn tokens(options: &Options) -> String {
    match (&options.yes_token, &options.no_token) {
        (Some(yes), Some(no)) => format!("/yes-{yes}-no-{no}"),
        (Some(yes), None) => format!("/yes-{yes}"),
        (None, _) => String::new(),
    }
}

impl Backend for CandleBackend {
    fn description(&self) -> Description {
        self.description.clone()
    }

    fn worker(&self) -> Result<Box<dyn Worker>, Fault> {
        Ok(Box::new(CandleWorker {
            opened: Arc::clone(&self.opened),
            n_threads: self.n_threads,
        }))
    }
}

// === impl CandleWorker ===

impl Worker for CandleWorker {
    fn score(&mut self, batch: &RaggedBatch<'_>, out: &mut Scores<'_>) -> Result<Phases, Fault> {
        let rectangles = self.rectangles(batch, out)?;
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

impl CandleWorker {
    /// The rows that can be scored, longest first, in rectangles; others get their status.
    ///
    /// # Errors
    /// `BadModel` if none can, for a reason that a status has no word for.
    fn rectangles(
        &self,
        batch: &RaggedBatch<'_>,
        out: &mut Scores<'_>,
    ) -> Result<Vec<Rectangle>, Fault> {
        let sizes = &self.opened.sizes;
        let (mut rows, mut why_not) = (Vec::new(), None);
        for row in 0..batch.n_rows() {
            let tokens = batch.row(row);
            let known = tokens
                .input_ids
                .iter()
                .all(|&id| (id as usize) < sizes.vocab)
                && (sizes.types <= 1
                    || tokens
                        .type_ids
                        .iter()
                        .all(|&kind| (kind as usize) < sizes.types));
            match batch.state(row) {
                RowStatus::Scored if known => match self.opened.model.why_not(tokens.input_ids) {
                    None => rows.push(row),
                    Some(why) => {
                        out.fail(row, RowStatus::Failed);
                        why_not = Some(why);
                    }
                },
                RowStatus::Scored => out.fail(row, RowStatus::Failed),
                nobody_waits => out.fail(row, nobody_waits),
            }
        }
        if rows.is_empty()
            && let Some(why) = why_not
        {
            return Err(Fault::bad_model(why));
        }
        let lengths: Vec<_> = rows
            .iter()
            .map(|&row| batch.row(row).input_ids.len())
            .collect();
        // Each thread has something to do, if there are rows enough.
        let share = lengths.iter().sum::<usize>().div_ceil(self.n_threads);
        let mut rectangles = pad::rectangles(&lengths, CPU_CELLS_MAX.min(share), 1);
        for rectangle in &mut rectangles {
            for row in &mut rectangle.rows {
                *row = rows[*row];
            }
        }
        Ok(rectangles)
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
            let rows = Rows::new(self.batch, &rectangle, self.opened.sizes.pad_id);
            let gathered = Instant::now();
            let logits = self.logits(&rows).map_err(|error| {
                Fault::internal(format!(
                    "{} rows of {} tokens: {error}",
                    rows.n(),
                    rows.width
                ))
            })?;
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
