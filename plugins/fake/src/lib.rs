//! A plugin without a model. Its scores are deterministic and sensible enough to rank by (the share of
//! the document's tokens that the query has), and it stalls, fails and panics on command, which is
//! what the gateway's tests need. It shows how little a plugin has to write.
//!
//! Options, all optional: see [`Options`].

mod options;

use backend_api::{
    Backend, Description, DeviceState, Fault, FaultCode, Layout, OpenRequest, Phases, Plugin,
    PluginCard, RaggedBatch, Row, RowStatus, Scores, Worker, export_plugin,
};
use options::{Entry, Options};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

export_plugin!(Fake);

/// The plugin.
pub struct Fake;

struct FakeBackend {
    options: Arc<Options>,
    request: OpenRequest,
    is_spoilt: Arc<AtomicBool>,
}

struct FakeWorker {
    options: Arc<Options>,
    is_spoilt: Arc<AtomicBool>,
}

// === impl Fake ===

impl Plugin for Fake {
    fn card() -> PluginCard {
        PluginCard {
            name: "fake".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            devices: vec!["cpu".to_owned()],
            dtypes: vec!["f32".to_owned()],
            ..PluginCard::default()
        }
    }

    fn open(request: &OpenRequest) -> Result<Box<dyn Backend>, Fault> {
        let options = Options::parse(&request.options)?;
        if !matches!(request.device.as_str(), "auto" | "cpu") {
            return Err(Fault::unsupported(format!(
                "device {:?}: this plugin runs on cpu",
                request.device
            )));
        }
        if !matches!(request.dtype.as_str(), "auto" | "f32") {
            return Err(Fault::unsupported(format!(
                "dtype {:?}: this plugin computes in f32",
                request.dtype
            )));
        }
        options.misbehave(Entry::Open)?;
        Ok(Box::new(FakeBackend {
            options: Arc::new(options),
            request: request.clone(),
            is_spoilt: Arc::default(),
        }))
    }
}

// === impl FakeBackend ===

impl Backend for FakeBackend {
    fn description(&self) -> Description {
        Description {
            device: "cpu".to_owned(),
            dtype: "f32".to_owned(),
            kernel: "scalar-overlap".to_owned(),
            numerics_id: format!("fake-overlap-1+{}", self.options.bias),
            n_labels: self.options.labels,
            rows_max: self.request.rows_max,
            tokens_max: self.request.tokens_max,
            row_tokens_max: self
                .options
                .row_tokens_max
                .unwrap_or(self.request.row_tokens_max),
            layout: Layout::Ragged,
            preferred_multiple: 1,
            n_workers_max: self.request.n_workers.max(16),
            cancels: true,
            bitwise: true,
            memory_bytes: self.options.memory_bytes,
            linear_mop_per_s: 0,
            attention_mop_per_s: 0,
        }
    }

    fn worker(&self) -> Result<Box<dyn Worker>, Fault> {
        self.options.misbehave(Entry::Worker)?;
        Ok(Box::new(FakeWorker {
            options: Arc::clone(&self.options),
            is_spoilt: Arc::clone(&self.is_spoilt),
        }))
    }

    fn devices(&self) -> Result<Vec<DeviceState>, Fault> {
        self.options.misbehave(Entry::Devices)?;
        Ok(self.options.tell_devices())
    }
}

impl Drop for FakeBackend {
    fn drop(&mut self) {
        // Whatever is asked for, a destructor can only panic; that is the point of asking.
        let _ = self.options.misbehave(Entry::Drop);
    }
}

// === impl FakeWorker ===

impl Worker for FakeWorker {
    fn score(&mut self, batch: &RaggedBatch<'_>, out: &mut Scores<'_>) -> Result<Phases, Fault> {
        let started = Instant::now();
        self.options.misbehave(Entry::Score)?;
        let spoil = self.options.spoil.as_deref();
        if spoil.is_some_and(|spoil| std::fs::remove_file(spoil).is_ok()) {
            self.is_spoilt.store(true, Ordering::Relaxed);
        }
        for row in 0..batch.n_rows() {
            self.options.hold_back(batch.row(row).input_ids);
            match batch.state(row) {
                RowStatus::Scored => self.score_row(row, batch.row(row), out)?,
                status => out.fail(row, status),
            }
        }
        Ok(Phases {
            compute_us: elapsed_us(started),
            ..Phases::default()
        })
    }
}

impl FakeWorker {
    fn score_row(&self, row_idx: usize, row: Row<'_>, out: &mut Scores<'_>) -> Result<(), Fault> {
        let options = &self.options;
        let has = |id: Option<u32>| id.is_some_and(|id| row.input_ids.contains(&id));
        if has(options.panic_on) {
            panic!("asked to panic on row {row_idx}");
        }
        if has(options.fault_on) {
            return Err(Fault::new(
                FaultCode::Internal,
                format!("asked to fail on row {row_idx}"),
            ));
        }
        if has(options.skip_on) {
            return Ok(());
        }
        if has(options.fail_row_on) || row.input_ids.iter().any(|&id| options.vocab_size <= id) {
            out.fail(row_idx, RowStatus::Failed);
            return Ok(());
        }
        if options.row_us > 0 {
            std::thread::sleep(Duration::from_micros(options.row_us));
        }
        let logit = if has(options.nan_on) || self.is_spoilt.load(Ordering::Relaxed) {
            f32::NAN
        } else {
            let skew_on = if has(options.skew_on) { 1.0 } else { 0.0 };
            overlap(row) + options.bias + options.skew + skew_on
        };
        let logits: Vec<f32> = (0..options.labels)
            .map(|label| logit + label as f32)
            .collect();
        out.set(row_idx, &logits);
        Ok(())
    }
}

/// The share of the document's tokens that the query has, as a logit between -4 and 4.
fn overlap(row: Row<'_>) -> f32 {
    let query_len = row
        .type_ids
        .iter()
        .position(|&segment| segment != 0)
        .unwrap_or(row.input_ids.len());
    let (query, document) = row.input_ids.split_at(query_len);
    let n_shared = document.iter().filter(|&id| query.contains(id)).count();
    8.0 * n_shared as f32 / document.len().max(1) as f32 - 4.0
}

fn elapsed_us(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX)
}
