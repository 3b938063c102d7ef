//! What a plugin writes: three traits, one of whose methods is on the data path.

use crate::{Description, DeviceState, Fault, OpenRequest, PluginCard, RaggedBatch, Scores};

/// A shared library's face: says what it can do and opens models.
///
/// Both functions are called on a thread of the host's, outside the request path. A panic in any
/// method of these traits is caught inside the plugin and reaches the host as
/// [`FaultCode::Panicked`](crate::FaultCode::Panicked).
pub trait Plugin: 'static {
    /// What this plugin is and can do, before any model is opened. Must not touch a device.
    fn card() -> PluginCard;

    /// Loads a model. On failure nothing may stay allocated.
    ///
    /// # Errors
    /// `Unsupported` when the model, dtype or device is not for this plugin (the host may try
    /// another), `BadModel` when its files are wrong (the text names file and tensor), `BadRequest`
    /// when an option is (the text names it), `OutOfMemory`.
    fn open(request: &OpenRequest) -> Result<Box<dyn Backend>, Fault>;
}

/// A model opened on a device: the weights, shared by its workers.
///
/// Dropped on a host thread after all of its workers.
pub trait Backend: Send + Sync + 'static {
    /// What was opened. Constant for the backend's life.
    fn description(&self) -> Description;

    /// A new worker with scratch memory of its own. At most [`Description::n_workers_max`] exist at a
    /// time; a worker that was given up is replaced by a new one.
    ///
    /// # Errors
    /// `OutOfMemory` or `Internal`.
    fn worker(&self) -> Result<Box<dyn Worker>, Fault>;

    /// How the devices that this backend uses do at this moment, for the metrics: always the same devices, what is
    /// not known of them left out. One that has nothing to tell tells of no device, now and later.
    ///
    /// Called every second or so from a thread of its own, while workers compute. It should take milliseconds and
    /// leave the devices alone: read counters, launch nothing, wait for no stream. Whoever does not come back is not
    /// asked again, and keeps what he holds.
    ///
    /// # Errors
    /// Nothing can be told now: what was told before is not shown any more.
    fn devices(&self) -> Result<Vec<DeviceState>, Fault> {
        Ok(Vec::new())
    }
}

/// Scratch for one batch at a time. Lives on one thread at a time and may move between calls.
pub trait Worker: Send + 'static {
    /// Scores a batch: one logit row of [`Description::n_labels`] values for each of its rows.
    ///
    /// Synchronous, on the calling thread (threads of the plugin's own stay inside the CPU set given
    /// at open). `batch` and `out` are borrowed for this call only. Between micro-batches the plugin
    /// should ask [`RaggedBatch::state`] and skip rows that nobody waits for. Every row must be either
    /// set or given a status: a row left untouched counts as a fault of the plugin.
    ///
    /// # Errors
    /// A fault says that the whole batch has no scores. One bad row should fail alone instead, by
    /// [`Scores::fail`].
    fn score(&mut self, batch: &RaggedBatch<'_>, out: &mut Scores<'_>) -> Result<Phases, Fault>;
}

/// Where a call's time went, in microseconds, as values: each image has its own telemetry.
#[repr(C)]
#[derive(abi_stable::StableAbi, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phases {
    /// Gathering rows: padding, copying to the device.
    pub prepare_us: u64,
    /// The model itself.
    pub compute_us: u64,
    /// Bringing the logits back.
    pub collect_us: u64,
    /// Zero; room for phases that are not known today.
    pub reserved: [u64; 5],
}
