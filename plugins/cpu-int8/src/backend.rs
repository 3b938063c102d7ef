//! The plugin's face: checks the request, picks the kernel, cuts batches into micro-batches.

use crate::arena::{MICRO_TOKENS, Scratch};
use crate::encoder;
use crate::encoder::embed;
use crate::kernel::{self, Dtype, Kernel, Visitor, peak};
use crate::model::config::ARCHITECTURES;
use crate::model::{LoadError, Model};
use backend_api::{
    Backend, Description, Fault, Layout, OpenRequest, Phases, Plugin, PluginCard, RaggedBatch,
    RowStatus, Scores, Worker,
};
use serde::Deserialize;
use std::sync::Arc;
use std::time::Instant;

/// Counts changes of this crate that change scores; part of the numerics id.
const NUMERICS_VERSION: u32 = 4;

/// Workers share nothing that is written, so any number may run; this only bounds a request.
const WORKERS_MAX: u32 = 1_024;

/// Threads that load a model, unless the request says otherwise: the chain of calibrations, half of
/// XLM-R large's work, does not become shorter with more, and each holds a layer in f32.
const LOAD_THREADS_MAX: usize = 4;
/// The most that a request may ask for.
const LOAD_THREADS_BOUND: usize = 64;

/// The plugin.
pub struct CpuInt8;

/// Options of the open request, as JSON.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    /// A kernel's name, instead of the fastest that this CPU has.
    kernel: Option<String>,
    /// Threads that load the model, instead of one for each processor it may use, up to four.
    load_threads: Option<usize>,
}

/// A model opened for one kernel.
struct CpuBackend<K: Kernel> {
    kernel: K,
    model: Arc<Model<K>>,
    description: Description,
}

/// A worker's scratch.
struct CpuWorker<K: Kernel> {
    kernel: K,
    model: Arc<Model<K>>,
    scratch: Scratch<K>,
}

// === impl CpuInt8 ===

impl Plugin for CpuInt8 {
    fn card() -> PluginCard {
        PluginCard {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            devices: vec!["cpu".to_owned()],
            dtypes: Dtype::ALL.map(|dtype| dtype.name().to_owned()).to_vec(),
            architectures: ARCHITECTURES.map(|(name, _)| name.to_owned()).to_vec(),
            ..PluginCard::default()
        }
    }

    fn open(request: &OpenRequest) -> Result<Box<dyn Backend>, Fault> {
        if !matches!(request.device.as_str(), "auto" | "cpu") {
            return Err(Fault::unsupported(format!(
                "device {:?}: this plugin runs on cpu",
                request.device
            )));
        }
        let dtype = match request.dtype.as_str() {
            "auto" => Some(Dtype::Int8),
            name => Dtype::ALL.into_iter().find(|dtype| dtype.name() == name),
        };
        let dtype = dtype.ok_or_else(|| {
            let names = Dtype::ALL.map(Dtype::name).join(", ");
            Fault::unsupported(format!(
                "dtype {:?}: this plugin computes in {names}",
                request.dtype
            ))
        })?;
        let options: Options = serde_json::from_str(&request.options).map_err(|error| {
            Fault::bad_request(format!("options {:?}: {error}", request.options))
        })?;
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
        let n_threads = load_threads(&options, request)?;
        let name = options.kernel.as_deref();
        let mut open = Open {
            request,
            dtype,
            n_threads,
        };
        kernel::visit_one(dtype, name, &mut open).unwrap_or_else(|| {
            Err(Fault::bad_request(format!(
                "options.kernel = {name:?}: for {} this CPU has {}",
                dtype.name(),
                kernel::available(dtype).join(", ")
            )))
        })
    }
}

/// Threads that load the model: as many as its workers may run on later, which do not run yet.
fn load_threads(options: &Options, request: &OpenRequest) -> Result<usize, Fault> {
    if let Some(n_threads) = options.load_threads {
        return if (1..=LOAD_THREADS_BOUND).contains(&n_threads) {
            Ok(n_threads)
        } else {
            Err(Fault::bad_request(format!(
                "options.load_threads = {n_threads}: from 1 to {LOAD_THREADS_BOUND}"
            )))
        };
    }
    let workers = request
        .n_threads
        .max(1)
        .saturating_mul(request.n_workers.max(1));
    let n_cpus = match request.cpus.len() {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n_cpus => n_cpus,
    };
    Ok(n_cpus.min(workers as usize).min(LOAD_THREADS_MAX))
}

struct Open<'a> {
    request: &'a OpenRequest,
    dtype: Dtype,
    n_threads: usize,
}

impl Visitor for Open<'_> {
    type Output = Result<Box<dyn Backend>, Fault>;

    fn visit<K: Kernel>(&mut self, kernel: K) -> Self::Output {
        Ok(Box::new(CpuBackend::open(
            kernel,
            self.dtype,
            self.request,
            self.n_threads,
        )?))
    }
}

// === impl CpuBackend ===

impl<K: Kernel> CpuBackend<K> {
    fn open(
        kernel: K,
        dtype: Dtype,
        request: &OpenRequest,
        n_threads: usize,
    ) -> Result<Self, Fault> {
        let model = Model::load(kernel, dtype.storage(), &request.model_dir, n_threads)
            .map_err(|error| load_fault(&error))?;
        let row_tokens_max = (request.row_tokens_max as usize).min(model.shape.row_tokens_max);
        let n_labels = u32::try_from(model.shape.n_labels)
            .map_err(|error| Fault::bad_model(error.to_string()))?;
        let mut description = Description {
            device: "cpu".to_owned(),
            dtype: dtype.name().to_owned(),
            kernel: K::NAME.to_owned(),
            numerics_id: format!(
                "cpu-int8-{NUMERICS_VERSION}/{}/{}/{:016x}",
                dtype.name(),
                K::NAME,
                model.fingerprint
            ),
            n_labels,
            rows_max: request.rows_max,
            tokens_max: request.tokens_max,
            row_tokens_max: row_tokens_max.min(request.tokens_max as usize) as u32,
            layout: Layout::Ragged,
            preferred_multiple: 1,
            n_workers_max: WORKERS_MAX,
            cancels: true,
            bitwise: true,
            memory_bytes: 0,
            linear_mop_per_s: mop_per_s(kernel),
            attention_mop_per_s: mop_per_s(kernel.attend()),
        };
        let scratch = scratch(&model, &description).n_bytes();
        description.memory_bytes =
            (model.n_bytes() + request.n_workers.max(1) as usize * scratch) as u64;
        Ok(Self {
            kernel,
            model: Arc::new(model),
            description,
        })
    }
}

impl<K: Kernel> Backend for CpuBackend<K> {
    fn description(&self) -> Description {
        self.description.clone()
    }

    fn worker(&self) -> Result<Box<dyn Worker>, Fault> {
        Ok(Box::new(CpuWorker {
            kernel: self.kernel,
            model: Arc::clone(&self.model),
            scratch: scratch(&self.model, &self.description),
        }))
    }
}

/// A worker's scratch. A row longer than a micro-batch is one of its own; a smaller agreement needs less.
fn scratch<K: Kernel>(model: &Model<K>, description: &Description) -> Scratch<K> {
    let row_tokens_max = description.row_tokens_max as usize;
    let tokens_max = MICRO_TOKENS
        .max(row_tokens_max)
        .min(description.tokens_max as usize);
    Scratch::new(&model.shape, tokens_max, row_tokens_max)
}

fn mop_per_s<K: Kernel>(kernel: K) -> u64 {
    let found = peak::operations_per_s(kernel);
    kernel.rest();
    (found / 1e6) as u64
}

fn load_fault(error: &LoadError) -> Fault {
    match error {
        LoadError::Unsupported(text) => Fault::unsupported(text.as_str()),
        LoadError::Bad(text) => Fault::bad_model(text.as_str()),
    }
}

// === impl CpuWorker ===

impl<K: Kernel> Worker for CpuWorker<K> {
    fn score(&mut self, batch: &RaggedBatch<'_>, out: &mut Scores<'_>) -> Result<Phases, Fault> {
        let mut phases = Phases::default();
        let mut next = 0;
        while next < batch.n_rows() {
            let started = Instant::now();
            next = self.gather(batch, next, out);
            let gathered = Instant::now();
            if self.scratch.rows.is_empty() {
                continue;
            }
            encoder::forward(self.kernel, &self.model, &mut self.scratch);
            let computed = Instant::now();
            let n_labels = self.model.shape.n_labels;
            for (&row, logits) in self
                .scratch
                .rows
                .iter()
                .zip(self.scratch.logits.chunks_exact(n_labels))
            {
                out.set(row, logits);
            }
            phases.prepare_us += (gathered - started).as_micros() as u64;
            phases.compute_us += (computed - gathered).as_micros() as u64;
            phases.collect_us += computed.elapsed().as_micros() as u64;
        }
        self.kernel.rest();
        Ok(phases)
    }
}

impl<K: Kernel> CpuWorker<K> {
    /// Embeds rows from `next` on into the scratch until the micro-batch is full; returns the first
    /// row that is not in it. Rows that nobody waits for, or that cannot be scored, get their
    /// status instead.
    fn gather(&mut self, batch: &RaggedBatch<'_>, mut next: usize, out: &mut Scores<'_>) -> usize {
        let scratch = &mut self.scratch;
        scratch.rows.clear();
        scratch.offsets.clear();
        let mut n_tokens = 0;
        while next < batch.n_rows() {
            let row = batch.row(next);
            let row_tokens = row.input_ids.len();
            if !scratch.rows.is_empty() && MICRO_TOKENS < n_tokens + row_tokens {
                break;
            }
            match batch.state(next) {
                RowStatus::Scored
                    if embed::is_known(&self.model.embeddings, row.input_ids, row.type_ids) =>
                {
                    embed::push_row(
                        self.kernel,
                        &self.model.embeddings,
                        scratch,
                        next,
                        row.input_ids,
                        row.type_ids,
                    );
                    n_tokens += row_tokens;
                }
                RowStatus::Scored => out.fail(next, RowStatus::Failed),
                nobody_waits => out.fail(next, nobody_waits),
            }
            next += 1;
        }
        if !scratch.rows.is_empty() {
            let model = &self.model;
            let smoothing = model
                .layers
                .first()
                .map_or(&[][..], |first| &first.smooth_input);
            embed::finish_rows(
                self.kernel,
                &model.embeddings,
                &model.shape,
                smoothing,
                scratch,
            );
        }
        next
    }
}
