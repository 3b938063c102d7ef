//! What is asked as data: cards, requests and descriptions, once, and how devices do, now and then.
//!
//! They cross as lists of named texts ([`Facts`]), because those can grow for ever:
//! a name that is not known is passed over, one that is missing keeps its default.

use crate::abi::{Fact, Facts};
use crate::{Fault, FaultCode, Limits};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Devices that one backend may tell of.
pub const DEVICES_MAX: usize = 64;
/// Bytes of a device's name.
pub const DEVICE_NAME_BYTES_MAX: usize = 64;

/// Declares a struct whose fields cross as facts named like them.
macro_rules! facts {
    ($(#[$about:meta])* pub struct $name:ident { $($(#[$doc:meta])* $field:ident: $type:ty = $default:expr,)* }) => {
        $(#[$about])*
        pub struct $name { $($(#[$doc])* pub $field: $type,)* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl $name {
            pub(crate) fn to_facts(&self) -> Facts {
                vec![$(Fact::new(stringify!($field), self.$field.write()),)*].into()
            }

            pub(crate) fn from_facts(facts: &[Fact]) -> Result<Self, Fault> {
                let mut value = Self::default();
                for fact in facts {
                    match fact.key.as_str() {
                        $(stringify!($field) => value.$field = read(fact)?,)*
                        // A newer other side may say more than is understood here.
                        _ => {}
                    }
                }
                Ok(value)
            }
        }
    };
}

facts! {
    /// What a plugin is and can do, before a model is opened.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct PluginCard {
        /// The plugin's name, as users write it: `cpu-int8`.
        name: String = String::new(),
        /// The plugin's own version.
        version: String = String::new(),
        /// Devices it can run on, best first: `cpu`, `cuda`, `metal`.
        devices: Vec<String> = Vec::new(),
        /// Data types it can compute in, best first: `int8`, `f32`.
        dtypes: Vec<String> = Vec::new(),
        /// Architectures it can load, by the names in `config.json`; empty for any.
        architectures: Vec<String> = Vec::new(),
        /// How the weights that it reads are written: `safetensors`, `onnx`, `gguf`.
        formats: Vec<String> = vec!["safetensors".to_owned()],
        /// Of several plugins that serve a model on the same kind of device, a host that was given no name
        /// asks the one with the largest number first.
        preference: u32 = 100,
        /// Where a model comes in several files of which one is opened: those that this plugin would take on this
        /// machine, as `dtype:path` with the path below the model's folder, best first. `auto` is the first one's data
        /// type. A file that the option `file` names is taken in their place. Empty: all weights in its formats are
        /// read.
        files: Vec<String> = Vec::new(),
    }
}

facts! {
    /// What the host asks a plugin to open.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct OpenRequest {
        /// A folder with the model's files.
        model_dir: PathBuf = PathBuf::new(),
        /// `cpu`, `cuda:0`, …; `auto` leaves it to the plugin.
        device: String = "auto".to_owned(),
        /// One of the card's dtypes; `auto` leaves it to the plugin.
        dtype: String = "auto".to_owned(),
        /// The processors that the plugin may use; empty for no restriction.
        cpus: Vec<u32> = Vec::new(),
        /// Threads that one worker may run on, its caller's included.
        n_threads: u32 = 1,
        /// Workers that the host intends to ask for.
        n_workers: u32 = 1,
        /// The most rows the host will put in a batch.
        rows_max: u32 = 1_024,
        /// The most tokens the host will put in a batch.
        tokens_max: u32 = 16_384,
        /// The most tokens the host will put in a row.
        row_tokens_max: u32 = 512,
        /// A JSON object of the plugin's own options.
        options: String = "{}".to_owned(),
        /// Of a model that generates: the id of the token whose logit, in the place after a row's last token, says
        /// that the document is relevant. `None` where the model has a classifier.
        yes_token: Option<u32> = None,
        /// The id of the token that says that it is not: the score is the difference of both logits. `None` for the
        /// first one's logit alone.
        no_token: Option<u32> = None,
        /// The folder in which users put the plugin, and what it needs beside it: the library that runs may be a copy.
        /// Empty where the host does not know.
        plugin_dir: PathBuf = PathBuf::new(),
    }
}

facts! {
    /// What was opened: constant for the backend's life.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Description {
        /// The device in use: `cpu`, `cuda:0`.
        device: String = String::new(),
        /// The data type of the arithmetic: `int8`, `f32`.
        dtype: String = String::new(),
        /// The kernel in use, named for the instruction that it runs.
        kernel: String = String::new(),
        /// Equal ids promise equal scores for equal rows; it is part of every cache key.
        numerics_id: String = String::new(),
        /// Logits for each row.
        n_labels: u32 = 1,
        /// The most rows in a batch.
        rows_max: u32 = 1_024,
        /// The most tokens in a batch.
        tokens_max: u32 = 16_384,
        /// The most tokens in a row.
        row_tokens_max: u32 = 512,
        /// Whether rows of different lengths cost what they are or are padded to the longest.
        layout: Layout = Layout::Ragged,
        /// Row lengths that are multiples of this run best; 1 for no preference.
        preferred_multiple: u32 = 1,
        /// Workers that may be called at the same time.
        n_workers_max: u32 = 1,
        /// Whether rows that nobody waits for are skipped between micro-batches.
        cancels: bool = false,
        /// Whether a row's score is bit for bit independent of the rows beside it.
        bitwise: bool = false,
        /// Bytes that weights and scratch take, estimated.
        memory_bytes: u64 = 0,
        /// What one worker's multipliers can do at most in linear layers, in millions of operations a second
        /// (a multiplication and an addition are two), measured at open: the roofline. 0: not known.
        linear_mop_per_s: u64 = 0,
        /// The same in attention's products, which may be of another data type.
        attention_mop_per_s: u64 = 0,
    }
}

facts! {
    /// How a device does at one moment. What is not known is `None` and never 0: it is shown to nobody.
    #[derive(Clone, Debug, PartialEq)]
    pub struct DeviceState {
        /// What the device is called, as a description names it: `cuda:0`. Printable ASCII, at most
        /// [`DEVICE_NAME_BYTES_MAX`] bytes, and no other device's of the backend.
        name: String = String::new(),
        /// Bytes of its memory that this process holds, for this backend and all others.
        memory_process_bytes: Option<u64> = None,
        /// Bytes of its memory that are in use, whoever holds them.
        memory_used_bytes: Option<u64> = None,
        /// Bytes of memory that it has.
        memory_total_bytes: Option<u64> = None,
        /// The share of its last sample period, by its own clock, in which it computed: between 0 and 1.
        utilization: Option<f64> = None,
        /// Degrees Celsius.
        temperature_celsius: Option<f64> = None,
        /// Watts that it takes.
        power_watts: Option<f64> = None,
    }
}

/// How a backend treats rows of different lengths. One that is not known reads as `Padded`.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A row costs what it is.
    Ragged,
    /// All rows of a batch cost as much as the longest.
    Padded,
}

// === impl OpenRequest, Description ===

impl OpenRequest {
    /// The batch limits the host promises to keep to.
    pub fn limits(&self) -> Limits {
        limits(self.rows_max, self.tokens_max, self.row_tokens_max)
    }
}

impl Description {
    /// The batch limits of this backend.
    pub fn limits(&self) -> Limits {
        limits(self.rows_max, self.tokens_max, self.row_tokens_max)
    }

    /// A description that the host can work with.
    ///
    /// # Errors
    /// Names the field and its value.
    pub fn check(self) -> Result<Self, Fault> {
        let bounds = [
            ("n_labels", self.n_labels, 65_536),
            ("rows_max", self.rows_max, u32::MAX),
            ("tokens_max", self.tokens_max, u32::MAX),
            ("row_tokens_max", self.row_tokens_max, self.tokens_max),
            ("n_workers_max", self.n_workers_max, u32::MAX),
        ];
        for (name, value, max) in bounds {
            if !(1..=max).contains(&value) {
                return Err(Fault::internal(format!(
                    "the backend describes {name} = {value}, not within 1..={max}"
                )));
            }
        }
        if self.numerics_id.is_empty() {
            return Err(Fault::internal("the backend describes no numerics_id"));
        }
        Ok(self)
    }
}

impl DeviceState {
    /// The states of a backend's devices, if they make sense: both sides of the border look.
    ///
    /// # Errors
    /// Names the device, what is wrong with it, and the bound.
    pub fn check(devices: Vec<Self>) -> Result<Vec<Self>, Fault> {
        check_n_devices(devices.len())?;
        let mut names = BTreeSet::new();
        for device in &devices {
            device.check_name()?;
            device.check_values()?;
            if !names.insert(&device.name) {
                return Err(device.wrong("is told of twice"));
            }
        }
        Ok(devices)
    }

    pub(crate) fn from_crossing(devices: &[Facts]) -> Result<Vec<Self>, Fault> {
        // Before anything of it is read.
        check_n_devices(devices.len())?;
        let read = devices.iter().map(|facts| Self::from_facts(facts));
        Self::check(read.collect::<Result<_, _>>()?)
    }

    fn check_name(&self) -> Result<(), Fault> {
        let is_plain = self.name.bytes().all(|byte| byte.is_ascii_graphic());
        if is_plain && (1..=DEVICE_NAME_BYTES_MAX).contains(&self.name.len()) {
            return Ok(());
        }
        let shown: String = self.name.chars().take(DEVICE_NAME_BYTES_MAX).collect();
        Err(Fault::internal(format!(
            "the backend calls a device {shown:?}, not 1 to {DEVICE_NAME_BYTES_MAX} bytes of printable ASCII"
        )))
    }

    fn check_values(&self) -> Result<(), Fault> {
        if let Some(total) = self.memory_total_bytes {
            let parts = [
                ("memory_process_bytes", self.memory_process_bytes),
                ("memory_used_bytes", self.memory_used_bytes),
            ];
            for (what, bytes) in parts {
                if let Some(bytes) = bytes.filter(|bytes| total < *bytes) {
                    return Err(self.wrong(&format!(
                        "has {what} = {bytes}, more than memory_total_bytes = {total}"
                    )));
                }
            }
        }
        let figures = [
            ("utilization", self.utilization, 0.0..=1.0),
            (
                "temperature_celsius",
                self.temperature_celsius,
                -273.15..=1e3,
            ),
            ("power_watts", self.power_watts, 0.0..=1e5),
        ];
        for (what, value, bounds) in figures {
            if let Some(value) = value.filter(|value| !bounds.contains(value)) {
                return Err(self.wrong(&format!("has {what} = {value}, not within {bounds:?}")));
            }
        }
        Ok(())
    }

    fn wrong(&self, what: &str) -> Fault {
        Fault::internal(format!("the backend's device {} {what}", self.name))
    }
}

fn check_n_devices(n_devices: usize) -> Result<(), Fault> {
    if DEVICES_MAX < n_devices {
        return Err(Fault::internal(format!(
            "the backend tells of {n_devices} devices, at most {DEVICES_MAX} may be"
        )));
    }
    Ok(())
}

fn limits(rows_max: u32, tokens_max: u32, row_tokens_max: u32) -> Limits {
    Limits {
        rows_max: rows_max as usize,
        tokens_max: tokens_max as usize,
        row_tokens_max: row_tokens_max as usize,
    }
}

/// A value that crosses as text.
trait FactValue: Sized {
    fn write(&self) -> String;
    fn read(text: &str) -> Option<Self>;
}

fn read<T: FactValue>(fact: &Fact) -> Result<T, Fault> {
    T::read(fact.value.as_str()).ok_or_else(|| {
        Fault::new(
            FaultCode::Internal,
            format!("{} = {:?} cannot be read", fact.key, fact.value.as_str()),
        )
    })
}

macro_rules! plain_fact {
    ($($type:ty),*) => {$(
        impl FactValue for $type {
            fn write(&self) -> String {
                self.to_string()
            }
            fn read(text: &str) -> Option<Self> {
                text.parse().ok()
            }
        }
    )*};
}
plain_fact!(String, u32, u64, f64, bool);

impl FactValue for PathBuf {
    fn write(&self) -> String {
        self.to_string_lossy().into_owned()
    }
    fn read(text: &str) -> Option<Self> {
        Some(text.into())
    }
}

impl<T: FactValue> FactValue for Option<T> {
    fn write(&self) -> String {
        self.as_ref().map(T::write).unwrap_or_default()
    }
    fn read(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(None);
        }
        T::read(text).map(Some)
    }
}

// Names and numbers hold no comma.
impl<T: FactValue> FactValue for Vec<T> {
    fn write(&self) -> String {
        self.iter().map(T::write).collect::<Vec<_>>().join(",")
    }
    fn read(text: &str) -> Option<Self> {
        text.split(',')
            .filter(|part| !part.is_empty())
            .map(T::read)
            .collect()
    }
}

impl FactValue for Layout {
    fn write(&self) -> String {
        match self {
            Self::Ragged => "ragged".to_owned(),
            Self::Padded => "padded".to_owned(),
        }
    }
    fn read(text: &str) -> Option<Self> {
        // Whatever else a newer plugin says, padding is the safe reading.
        Some(if text == "ragged" {
            Self::Ragged
        } else {
            Self::Padded
        })
    }
}
