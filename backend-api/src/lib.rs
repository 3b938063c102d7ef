#![doc = include_str!("../README.md")]
#![warn(missing_docs)]

// In the order a call takes: what a plugin writes, what is asked of it, what it is given, what comes
// back when it fails, and how all of that crosses.
pub mod plugin;

pub mod batch;
pub mod describe;
pub mod error;

pub mod abi;
pub mod guard;
pub mod host;

pub mod conformance;
pub mod pad;

pub use batch::{Limits, RaggedBatch, Row, RowControl, RowStatus, Scores};
pub use describe::{Description, DeviceState, Layout, OpenRequest, PluginCard};
pub use error::{Fault, FaultCode};
pub use host::{LoadError, OpenBackend, OpenWorker, PluginLibrary};
pub use plugin::{Backend, Phases, Plugin, Worker};

/// What `export_plugin!` expands to needs these names; nothing else should.
#[doc(hidden)]
pub mod __private {
    pub use crate::abi::{AbiStamp, header};
    pub use abi_stable::library::{LibHeader, RootModuleResult};
}
