//! How NVIDIA's GPUs do, by NVML, a library of their driver: it is looked for when it is first needed, and where it is
//! missing, or does not know a value, that is not told.
//!
//! NVML numbers GPUs in another order than CUDA, whose order CUDA_VISIBLE_DEVICES changes. So a GPU is known by its UUID.

use backend_api::DeviceState;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::{Device, Nvml};
use std::path::Path;
use std::sync::OnceLock;

/// NVML, loaded. Never let go of: its threads, if it has any, are its own affair.
pub struct Library(Nvml);

/// A GPU, as CUDA and as NVML know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    name: String,
    /// A whole one's, and a part's where the GPU is parted (MIG).
    uuids: [String; 2],
}

static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();

// === impl Library ===

impl Library {
    /// The driver's, loaded by the first who asks; `None` where there is none.
    pub fn of_driver() -> Option<&'static Self> {
        let load = || Nvml::init().ok().map(Self);
        LIBRARY.get_or_init(load).as_ref()
    }

    /// The one in this file.
    ///
    /// # Errors
    /// That it is no library, or does not start.
    pub fn load(path: &Path) -> Result<Self, String> {
        let loaded = Nvml::builder().lib_path(path.as_os_str()).init();
        loaded
            .map(Self)
            .map_err(|error| format!("{}: {error}", path.display()))
    }

    /// How a GPU does: its name alone if NVML does not know it.
    pub fn state(&self, gpu: &Gpu) -> DeviceState {
        let device = gpu
            .uuids
            .iter()
            .find_map(|uuid| self.0.device_by_uuid(uuid.as_str()).ok());
        let mut state = gpu.unknown();
        let Some(device) = device else {
            return state;
        };
        if let Ok(memory) = device.memory_info() {
            state.memory_used_bytes = Some(memory.used);
            state.memory_total_bytes = Some(memory.total);
            // Read a moment apart from the others: it may not be more than there is.
            state.memory_process_bytes = of_process(&device).map(|bytes| bytes.min(memory.total));
        }
        let utilization = device.utilization_rates().ok();
        state.utilization = utilization.map(|rates| f64::from(rates.gpu.min(100)) / 100.0);
        let temperature = device.temperature(TemperatureSensor::Gpu).ok();
        state.temperature_celsius = temperature.map(f64::from);
        state.power_watts = device.power_usage().ok().map(|mw| f64::from(mw) / 1e3);
        state
    }
}

/// Bytes of a GPU's memory that this process holds. In a container that sees its own processes only, the driver tells of
/// none.
fn of_process(device: &Device<'_>) -> Option<u64> {
    let processes = device.running_compute_processes().ok()?;
    let own = processes
        .iter()
        .find(|process| process.pid == std::process::id())?;
    match own.used_gpu_memory {
        UsedGpuMemory::Used(bytes) => Some(bytes),
        UsedGpuMemory::Unavailable => None,
    }
}

// === impl Gpu ===

impl Gpu {
    /// The GPU that a description names so, and whose UUID CUDA says is this.
    pub fn new(name: String, uuid: [u8; 16]) -> Self {
        let digits: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
        let groups = [0..8, 8..12, 12..16, 16..20, 20..32].map(|group| &digits[group]);
        let uuids = ["GPU", "MIG"].map(|kind| format!("{kind}-{}", groups.join("-")));
        Self { name, uuids }
    }

    /// How it does where there is no NVML: nothing is known.
    pub fn unknown(&self) -> DeviceState {
        DeviceState {
            name: self.name.clone(),
            ..DeviceState::default()
        }
    }
}
