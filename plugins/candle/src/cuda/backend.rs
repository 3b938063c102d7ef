//! A model on one GPU or several: memory is measured by the largest batch at open, and respected afterwards.

use super::driver::n_gpus;
use super::faults::{self, describe, fault};
use super::lane::{Lane, Loaded, open_stream};
use super::names;
use super::twins::HEAD_DIM_MAX;
use crate::backend::{Asked, scorable};
use crate::nvml::{Gpu, Library};
use backend_api::{
    Backend, Description, DeviceState, Fault, FaultCode, Layout, Phases, RaggedBatch, Row,
    RowStatus, Scores, Worker,
};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Tokens that are computed together, unless one row has more: enough to fill a GPU, and few enough that rows are looked
/// at in between.
const CELLS_MAX: usize = 16_384;
/// Workers of a GPU: one prepares a batch while another's is computed. More would cut smaller batches.
const WORKERS_OF_GPU_MAX: usize = 2;
/// The oldest GPUs that the kernels run on: they multiply bf16 and copy to shared memory by themselves.
const COMPUTE_CAPABILITY_MIN: (i32, i32) = (8, 0);

static OPENING: Mutex<()> = Mutex::new(());

/// The lanes of each GPU, which workers are dealt in turn.
struct CudaBackend {
    lanes: Vec<Arc<Lane>>,
    /// The lanes' GPUs, as far as CUDA says which they are.
    gpus: Vec<Option<Gpu>>,
    next: AtomicUsize,
    description: Description,
}

/// Scores on its lane.
struct CudaWorker {
    lane: Arc<Lane>,
}

/// What a GPU can take at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) rows_max: usize,
    tokens_max: usize,
    pub(super) row_tokens_max: usize,
}

/// Opens a model on the GPUs that the request names.
pub(crate) fn open(asked: &Asked<'_>) -> Result<Box<dyn Backend>, Fault> {
    let request = asked.request;
    if asked.options.reference {
        return Err(Fault::unsupported(
            "options: reference computes in f64, on CPUs: open it with candle-cpu",
        ));
    }
    let n = n_gpus().map_err(|error| {
        Fault::unsupported(format!(
            "device {:?}: CUDA's driver says {}: see that nvidia-smi lists a GPU here (in a container: that it was \
             started with --gpus), or take device cpu",
            request.device,
            describe(error)
        ))
    })?;
    let ordinals = names::ordinals(&request.device, n)?;
    let n_workers = (request.n_workers.max(1) as usize).div_ceil(ordinals.len());
    let n_workers = n_workers.min(WORKERS_OF_GPU_MAX);
    let mut room = Room {
        rows_max: request.rows_max as usize,
        tokens_max: request.tokens_max as usize,
        row_tokens_max: asked.row_tokens_max() as usize,
    };
    // One model after the other: what each needs is measured.
    let _alone = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut loaded, mut memory_bytes) = (Vec::new(), 0);
    for &ordinal in &ordinals {
        let (one, its, n_bytes) = load(asked, ordinal, room)?;
        room = room.and(its);
        memory_bytes += n_bytes;
        loaded.push(one);
    }
    for one in &mut loaded {
        one.set_limits(room, n_workers)?;
        memory_bytes += one.record_graphs(asked.options.graphs)?;
    }
    let description = describe_all(asked, &loaded, room, memory_bytes)?;
    let gpus = loaded.iter().map(gpu).collect();
    let mut lanes = Vec::new();
    for (&ordinal, one) in ordinals.iter().zip(loaded) {
        let lane = Arc::new(Lane::new(one));
        faults::register(ordinal, Arc::downgrade(&lane));
        lanes.push(lane);
    }
    Ok(Box::new(CudaBackend {
        lanes,
        gpus,
        next: AtomicUsize::new(0),
        description,
    }))
}

/// The GPU that a model was loaded on, by what is the same for CUDA and NVML.
fn gpu(loaded: &Loaded) -> Option<Gpu> {
    let uuid = loaded.stream.context().uuid().ok()?;
    let bytes = uuid.bytes.map(|byte| byte.to_ne_bytes()[0]);
    Some(Gpu::new(names::name([loaded.ordinal()]), bytes))
}

/// The model on one GPU, what it takes at once there, and the bytes that both need.
fn load(asked: &Asked<'_>, ordinal: usize, room: Room) -> Result<(Loaded, Room, u64), Fault> {
    let stream = open_stream(ordinal)?;
    let failed = |what: &'static str| move |error| fault(ordinal, None, what, &error);
    let capability = stream.capability().map_err(failed("its capability"))?;
    if capability < COMPUTE_CAPABILITY_MIN {
        let (major, minor) = capability;
        return Err(Fault::unsupported(format!(
            "GPU {ordinal}: its compute capability is {major}.{minor}; this plugin runs from 8.0 (Ampere) on"
        )));
    }
    let opened = asked.load(&stream.as_device());
    let opened = opened.map_err(|found| faults::while_loading(ordinal, &stream, found))?;
    if HEAD_DIM_MAX < opened.sizes.head_dim {
        return Err(Fault::unsupported(format!(
            "config.json: heads of {} values; on cuda this plugin computes up to {HEAD_DIM_MAX}",
            opened.sizes.head_dim
        )));
    }
    let mut loaded = Loaded::new(stream, ordinal, opened);
    let (room, n_bytes) = fit(&mut loaded, room)?;
    let kept = loaded.opened.sizes.n_bytes + loaded.stream.workspace_bytes();
    let n_bytes = n_bytes + kept as u64;
    Ok((loaded, room, n_bytes))
}

/// What fits of a room, and the bytes that it needs: the largest batch is tried, and half of it where that does not fit.
fn fit(loaded: &mut Loaded, mut room: Room) -> Result<(Room, u64), Fault> {
    let of_model = loaded.opened.sizes.row_tokens_max;
    room.row_tokens_max = room.row_tokens_max.min(of_model);
    loop {
        let outcome = loaded
            .set_limits(room, 0)
            .and_then(|()| try_largest(loaded, room));
        match (outcome, room.halved()) {
            (Ok(n_bytes), _) => return Ok((room, n_bytes)),
            // What was kept for the larger one was given back.
            (Err(fault), Some(half)) if fault.code == FaultCode::OutOfMemory => room = half,
            (Err(fault), _) => return Err(fault),
        }
    }
}

/// Computes the largest batches: of the longest rows, and of the most. Returns the bytes that they need.
fn try_largest(loaded: &Loaded, room: Room) -> Result<u64, Fault> {
    let (cells, rows) = (room.cells_max(), room.rows_max);
    let longest = room.row_tokens_max;
    let n_long = (cells / longest).clamp(1, rows);
    let n_short = rows.min(cells);
    let ids = vec![0; longest.max(cells / n_short)];
    let shapes = [(n_long, longest), (n_short, (cells / n_short).min(longest))];
    let batches = shapes.map(|(n_rows, len)| {
        let row = Row {
            input_ids: &ids[..len],
            type_ids: &ids[..len],
        };
        vec![row; n_rows]
    });
    let n_bytes = loaded.try_out(&batches)?;
    let failed = |error| fault(loaded.ordinal(), None, "its memory", &error);
    let memory = loaded.memory().map_err(failed)?;
    if memory.is_short() {
        return Err(Fault::new(
            FaultCode::OutOfMemory,
            format!(
                "GPU {}: a batch of {cells} tokens leaves {} MiB free of {}, and {} are left to others: take shorter \
                 rows, f16, a smaller model or a GPU of its own",
                loaded.ordinal(),
                memory.free >> 20,
                memory.total >> 20,
                memory.needed >> 20
            ),
        ));
    }
    Ok(n_bytes)
}

fn describe_all(
    asked: &Asked<'_>,
    loaded: &[Loaded],
    room: Room,
    memory_bytes: u64,
) -> Result<Description, Fault> {
    let Some(first) = loaded.first() else {
        return Err(Fault::internal("no GPU was opened"));
    };
    let (dtype, sizes) = (first.opened.dtype, first.opened.sizes);
    let capability = first.stream.capability();
    let (major, minor) =
        capability.map_err(|error| fault(first.ordinal(), None, "its capability", &error))?;
    // What f32 is multiplied by in attention is an ordinary multiplier; halves have tensor cores.
    let instruction = if dtype == "f32" { "fma" } else { "mma" };
    let kernel = format!("cuda-sm{major}{minor}-{instruction}-{dtype}");
    Ok(Description {
        device: names::name(loaded.iter().map(Loaded::ordinal)),
        dtype: dtype.to_owned(),
        numerics_id: asked.numerics_id(dtype, &kernel, &first.opened),
        kernel,
        n_labels: sizes.n_labels as u32,
        rows_max: room.rows_max as u32,
        tokens_max: room.tokens_max as u32,
        row_tokens_max: room.row_tokens_max as u32,
        layout: Layout::Ragged,
        preferred_multiple: 1,
        n_workers_max: (WORKERS_OF_GPU_MAX * loaded.len()) as u32,
        cancels: true,
        // cuBLAS adds up in an order that it chooses by the batch's size.
        bitwise: false,
        memory_bytes,
        linear_mop_per_s: 0,
        attention_mop_per_s: 0,
    })
}

// === impl Room ===

impl Room {
    /// Tokens that are computed together.
    pub(super) fn cells_max(&self) -> usize {
        self.tokens_max.min(CELLS_MAX.max(self.row_tokens_max))
    }

    fn and(self, other: Self) -> Self {
        Self {
            rows_max: self.rows_max.min(other.rows_max),
            tokens_max: self.tokens_max.min(other.tokens_max),
            row_tokens_max: self.row_tokens_max.min(other.row_tokens_max),
        }
    }

    /// With half of the tokens at once, if any are left.
    fn halved(self) -> Option<Self> {
        let tokens_max = self.cells_max() / 2;
        (0 < tokens_max).then(|| Self {
            rows_max: self.rows_max.min(tokens_max),
            tokens_max,
            row_tokens_max: self.row_tokens_max.min(tokens_max),
        })
    }
}

// === impl CudaBackend ===

impl Backend for CudaBackend {
    fn description(&self) -> Description {
        self.description.clone()
    }

    fn worker(&self) -> Result<Box<dyn Worker>, Fault> {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        let lane = Arc::clone(&self.lanes[next % self.lanes.len()]);
        let is_lost = lane.loaded().is_none();
        match is_lost {
            true => Err(lane.lost()),
            false => Ok(Box::new(CudaWorker { lane })),
        }
    }

    fn devices(&self) -> Result<Vec<DeviceState>, Fault> {
        let nvml = Library::of_driver();
        let state = |(lane, gpu): (&Arc<Lane>, &Option<Gpu>)| {
            // A model that nobody asks holds a dead context, too, and there is no new one until it lets go.
            lane.look_after();
            let gpu = gpu.as_ref()?;
            let mut state = nvml.map_or_else(|| gpu.unknown(), |nvml| nvml.state(gpu));
            // In a container the driver does not tell of this process: the pool is most of what it holds.
            let held = state.memory_process_bytes.or_else(|| lane.bytes_pooled());
            state.memory_process_bytes =
                held.filter(|&held| state.memory_total_bytes.is_none_or(|total| held <= total));
            Some(state)
        };
        Ok(self
            .lanes
            .iter()
            .zip(&self.gpus)
            .filter_map(state)
            .collect())
    }
}

// === impl CudaWorker ===

impl Worker for CudaWorker {
    fn score(&mut self, batch: &RaggedBatch<'_>, out: &mut Scores<'_>) -> Result<Phases, Fault> {
        let outcome = match &*self.lane.loaded() {
            Some(loaded) => score(loaded, batch, out),
            None => Err(self.lane.lost()),
        };
        if matches!(&outcome, Err(fault) if fault.code == FaultCode::DeviceLost) {
            self.lane.let_go();
        }
        outcome
    }
}

/// Scores a batch, in parts of what goes up at once.
fn score(loaded: &Loaded, batch: &RaggedBatch<'_>, out: &mut Scores<'_>) -> Result<Phases, Fault> {
    let rows = scorable(&loaded.opened, batch, out)?;
    let lens = rows.iter().map(|&row| batch.row(row).input_ids.len());
    let mut phases = Phases::default();
    let mut left = rows.as_slice();
    for n_rows in parts(lens, loaded.rows_max, loaded.cells_max) {
        let (part, others) = left.split_at(n_rows);
        left = others;
        score_part(loaded, batch, part, out, &mut phases)?;
    }
    Ok(phases)
}

/// How many rows of these lengths go up at once, one part after the other.
fn parts(lens: impl Iterator<Item = usize>, rows_max: usize, cells_max: usize) -> Vec<usize> {
    let mut parts = Vec::new();
    let (mut n_rows, mut n_cells) = (0, 0);
    for len in lens {
        if 0 < n_rows && (n_rows == rows_max || cells_max < n_cells + len) {
            parts.push(n_rows);
            (n_rows, n_cells) = (0, 0);
        }
        n_rows += 1;
        n_cells += len;
    }
    if 0 < n_rows {
        parts.push(n_rows);
    }
    parts
}

/// Scores rows at once, or, where memory does not suffice after all, half of them after the other.
fn score_part(
    loaded: &Loaded,
    batch: &RaggedBatch<'_>,
    rows: &[usize],
    out: &mut Scores<'_>,
    phases: &mut Phases,
) -> Result<(), Fault> {
    let started = Instant::now();
    // Another part may have taken long.
    let mut wanted = Vec::with_capacity(rows.len());
    for &row in rows {
        match batch.state(row) {
            RowStatus::Scored => wanted.push(row),
            nobody_waits => out.fail(row, nobody_waits),
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let tokens: Vec<_> = wanted.iter().map(|&row| batch.row(row)).collect();
    let logits = match loaded.score(&tokens) {
        Err(fault) if fault.code == FaultCode::OutOfMemory && 1 < wanted.len() => {
            let (first, second) = wanted.split_at(wanted.len() / 2);
            score_part(loaded, batch, first, out, phases)?;
            return score_part(loaded, batch, second, out, phases);
        }
        outcome => outcome?,
    };
    let computed = Instant::now();
    let n_labels = loaded.opened.sizes.n_labels;
    for (&row, logits) in wanted.iter().zip(logits.values.chunks_exact(n_labels)) {
        out.set(row, logits);
    }
    phases.prepare_us += (logits.enqueued - started).as_micros() as u64;
    phases.compute_us += (computed - logits.enqueued).as_micros() as u64;
    phases.collect_us += computed.elapsed().as_micros() as u64;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_hold_what_goes_up_at_once() {
        let check = |lens: &[usize], expected: &[usize]| {
            assert_eq!(parts(lens.iter().copied(), 3, 10), expected, "{lens:?}");
        };
        check(&[], &[]);
        check(&[4, 6], &[2]);
        check(&[4, 7], &[1, 1]);
        check(&[1, 1, 1, 1], &[3, 1]);
        check(&[10, 10, 1], &[1, 1, 1]);
    }

    #[test]
    fn a_room_halves_until_nothing_is_left() {
        let room = Room {
            rows_max: 1_024,
            tokens_max: 65_536,
            row_tokens_max: 512,
        };
        assert_eq!(room.cells_max(), CELLS_MAX);
        let half = room.halved().unwrap();
        assert_eq!((half.tokens_max, half.cells_max()), (8_192, 8_192));
        assert_eq!((half.rows_max, half.row_tokens_max), (1_024, 512));
        let mut last = half;
        while let Some(next) = last.halved() {
            assert!(next.tokens_max < last.tokens_max);
            last = next;
        }
        assert_eq!(
            (last.rows_max, last.tokens_max, last.row_tokens_max),
            (1, 1, 1)
        );
    }
}
