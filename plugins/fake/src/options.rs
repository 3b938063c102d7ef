//! What the fake can be told to do.

use backend_api::{DeviceState, Fault};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The plugin's options. Token ids name the row that triggers a fault, so that a test can aim at one
/// document of one request.
#[derive(Deserialize, Debug)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Options {
    /// Logits for each row.
    pub(crate) labels: u32,
    /// Ids from here on fail their row.
    pub(crate) vocab_size: u32,
    /// The most tokens that it takes in a row; without it, what the host asks for.
    pub(crate) row_tokens_max: Option<u32>,
    /// Added to every logit: another value is another numerics id.
    pub(crate) bias: f32,
    /// Added to every logit, and no part of the numerics id: a backend that computes wrongly.
    pub(crate) skew: f32,
    /// A row with this id is off by one, and no part of the numerics id.
    pub(crate) skew_on: Option<u32>,
    /// Bytes that it says it takes.
    pub(crate) memory_bytes: u64,
    /// Devices that it makes up.
    pub(crate) devices: Vec<Device>,
    /// While this file exists, whoever asks for the devices waits.
    pub(crate) hold_devices: Option<PathBuf>,
    /// Microseconds that each row takes.
    pub(crate) row_us: u64,
    /// While this file exists, every row waits.
    pub(crate) hold: Option<PathBuf>,
    /// Only rows with this id wait for it, and whether anybody wants them or not.
    pub(crate) hold_on: Option<u32>,
    /// Where this file exists, a batch removes it and fails.
    pub(crate) fault_once: Option<PathBuf>,
    /// While this file exists, every batch fails.
    pub(crate) fault_while: Option<PathBuf>,
    /// Where this file exists, a batch removes it, and from then on the backend scores NaN.
    pub(crate) spoil: Option<PathBuf>,
    /// While this file exists, no backend opens.
    pub(crate) broken: Option<PathBuf>,
    /// Panic in this entry.
    pub(crate) panic_in: Option<Entry>,
    /// Return a fault from this entry.
    pub(crate) fault_in: Option<Entry>,
    /// Takes the whole process along when it opens: only a process of its own may see that.
    pub(crate) crash: Option<Crash>,
    /// A row with this id panics.
    pub(crate) panic_on: Option<u32>,
    /// A row with this id fails its batch.
    pub(crate) fault_on: Option<u32>,
    /// A row with this id fails alone.
    pub(crate) fail_row_on: Option<u32>,
    /// A row with this id scores NaN.
    pub(crate) nan_on: Option<u32>,
    /// A row with this id gets neither score nor status.
    pub(crate) skip_on: Option<u32>,
}

/// How a made-up device does; what is not said is not known.
#[derive(Deserialize, Clone, Debug, Default)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Device {
    name: String,
    memory_process_bytes: Option<u64>,
    memory_used_bytes: Option<u64>,
    memory_total_bytes: Option<u64>,
    utilization: Option<f64>,
    temperature_celsius: Option<f64>,
    power_watts: Option<f64>,
}

/// Ways to take a process along.
#[derive(Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Crash {
    /// Ends it.
    Abort,
    /// Ends it as if nothing was wrong.
    Exit,
    /// Never comes back.
    Hang,
    /// Takes memory until there is none, at most 16 GiB.
    Eat,
}

/// The entries of a plugin.
#[derive(Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Entry {
    Open,
    Worker,
    Score,
    Devices,
    Drop,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            labels: 1,
            vocab_size: 1 << 20,
            row_tokens_max: None,
            bias: 0.0,
            skew: 0.0,
            skew_on: None,
            memory_bytes: 0,
            devices: Vec::new(),
            hold_devices: None,
            row_us: 0,
            hold: None,
            hold_on: None,
            fault_once: None,
            fault_while: None,
            spoil: None,
            broken: None,
            panic_in: None,
            fault_in: None,
            crash: None,
            panic_on: None,
            fault_on: None,
            fail_row_on: None,
            nan_on: None,
            skip_on: None,
        }
    }
}

impl Options {
    pub(crate) fn parse(text: &str) -> Result<Self, Fault> {
        let options: Self = serde_json::from_str(text)
            .map_err(|error| Fault::bad_request(format!("options: {error}")))?;
        if options.labels == 0 {
            return Err(Fault::bad_request("options: labels must be at least 1"));
        }
        Ok(options)
    }

    /// Panics or fails if this entry was told to.
    pub(crate) fn misbehave(&self, entry: Entry) -> Result<(), Fault> {
        if entry == Entry::Open {
            self.crash();
        }
        if self.panic_in == Some(entry) {
            panic!("asked to panic in {entry:?}");
        }
        let is_broken = || self.broken.as_deref().is_some_and(|broken| broken.exists());
        let is_once = || {
            let once = self.fault_once.as_deref();
            once.is_some_and(|once| std::fs::remove_file(once).is_ok())
        };
        if entry == Entry::Score && is_once() {
            return Err(Fault::internal("asked to fail once".to_owned()));
        }
        let fault_while = self.fault_while.as_deref();
        if entry == Entry::Score && fault_while.is_some_and(|fault| fault.exists()) {
            return Err(Fault::internal("asked to fail for a while".to_owned()));
        }
        if entry == Entry::Open && is_broken() {
            return Err(Fault::internal("asked to be broken".to_owned()));
        }
        if self.fault_in == Some(entry) {
            return Err(Fault::internal(format!("asked to fail in {entry:?}")));
        }
        Ok(())
    }

    fn crash(&self) {
        match self.crash {
            None => {}
            Some(Crash::Abort) => std::process::abort(),
            Some(Crash::Exit) => std::process::exit(0),
            Some(Crash::Hang) => loop {
                std::thread::park();
            },
            Some(Crash::Eat) => {
                let eaten: Vec<_> = (0..256).map(|_| vec![1_u8; 64 << 20]).collect();
                drop(std::hint::black_box(eaten));
            }
        }
    }

    /// Has a row of these ids wait while the file that holds rows back exists.
    pub(crate) fn hold_back(&self, input_ids: &[u32]) {
        if self.hold_on.is_some_and(|id| !input_ids.contains(&id)) {
            return;
        }
        wait_for(self.hold.as_deref());
    }

    /// The devices that it makes up, in time or not.
    pub(crate) fn tell_devices(&self) -> Vec<DeviceState> {
        wait_for(self.hold_devices.as_deref());
        self.devices.iter().map(Device::state).collect()
    }
}

impl Device {
    fn state(&self) -> DeviceState {
        DeviceState {
            name: self.name.clone(),
            memory_process_bytes: self.memory_process_bytes,
            memory_used_bytes: self.memory_used_bytes,
            memory_total_bytes: self.memory_total_bytes,
            utilization: self.utilization,
            temperature_celsius: self.temperature_celsius,
            power_watts: self.power_watts,
        }
    }
}

/// Until the file is gone.
fn wait_for(hold: Option<&Path>) {
    while hold.is_some_and(Path::exists) {
        std::thread::sleep(Duration::from_millis(1));
    }
}
