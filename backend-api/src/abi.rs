//! Everything that crosses the border, in one file: nothing else does.
//!
//! The structs are frozen. What may grow is [`Facts`], the two traits (new methods at the end, behind
//! `last_prefix_field`) and the root module (a prefix type). `tests/layout.rs` pins sizes and offsets.

// The derive macros and the generated vtables of abi_stable contain unsafe code.
#![allow(
    unsafe_code,
    unused_qualifications,
    missing_docs,
    clippy::undocumented_unsafe_blocks
)]
#![allow(non_local_definitions, clippy::needless_lifetimes, clippy::mem_forget)]

use crate::guard::{self, FencedBackend, FencedWorker};
use crate::{DeviceState, Fault, FaultCode, Phases, Plugin, RowControl};
use abi_stable::library::{CheckTypeLayout, LibHeader, RootModule, RootModuleResult};
use abi_stable::prefix_type::WithMetadata;
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{RBox, RResult, RSlice, RSliceMut, RString, RVec};
use abi_stable::{StableAbi, declare_root_module_statics, sabi_trait};
use std::marker::PhantomData;

/// Changes when something that crosses stops meaning what it meant.
pub const ABI_MAJOR: u32 = 1;
/// Grows with every addition.
pub const ABI_MINOR: u32 = 4;
/// The name of the symbol that tells a plugin from any other library.
pub const STAMP_SYMBOL: &str = "CROSSGATE_PLUGIN_ABI";
/// `"CROSSGTE"` read as a little-endian number.
pub const STAMP_MAGIC: u64 = u64::from_le_bytes(*b"CROSSGTE");

/// The first thing the host reads: plain numbers, so that a plugin of any age can be told what is wrong
/// with it. Frozen.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbiStamp {
    pub magic: u64,
    pub major: u32,
    /// What the plugin was built against.
    pub minor: u32,
    /// The oldest host that the plugin can work with.
    pub host_minor_min: u32,
    pub reserved: u32,
}

/// A named text. Frozen.
#[repr(C)]
#[derive(StableAbi, Clone, Debug)]
pub struct Fact {
    pub key: RString,
    pub value: RString,
}

/// A list of named texts: the part of the contract that grows.
pub type Facts = RVec<Fact>;

/// A failure: [`FaultCode`]'s number and a text. Frozen.
#[repr(C)]
#[derive(StableAbi, Clone, Debug)]
pub struct AbiFault {
    pub code: u32,
    pub text: RString,
}

/// A batch, borrowed for one call. Frozen. See [`RaggedBatch`](crate::RaggedBatch) for what the slices hold.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct AbiBatch<'a> {
    pub input_ids: RSlice<'a, u32>,
    pub type_ids: RSlice<'a, u32>,
    pub offsets: RSlice<'a, u32>,
    pub prefix_lens: RSlice<'a, u32>,
    pub controls: RSlice<'a, RowControl<'a>>,
}

/// Where the scores go, borrowed for one call. Frozen.
#[repr(C)]
#[derive(StableAbi)]
pub struct AbiScores<'a> {
    pub logits: RSliceMut<'a, f32>,
    pub statuses: RSliceMut<'a, u8>,
}

/// A backend behind the border. Methods are only ever added at the end.
#[sabi_trait]
pub trait AbiBackend: Send + Sync {
    fn description(&self) -> RResult<Facts, AbiFault>;
    #[sabi(last_prefix_field)]
    fn worker(&self) -> RResult<AbiWorkerBox, AbiFault>;
    /// Since 1.4: an older plugin tells of no device.
    fn devices(&self) -> RResult<RVec<Facts>, AbiFault> {
        RResult::ROk(RVec::new())
    }
}

/// A worker behind the border. Methods are only ever added at the end.
#[sabi_trait]
pub trait AbiWorker: Send {
    #[sabi(last_prefix_field)]
    fn score(&mut self, batch: AbiBatch<'_>, scores: AbiScores<'_>) -> RResult<Phases, AbiFault>;
}

pub type AbiBackendBox = AbiBackend_TO<'static, RBox<()>>;
pub type AbiWorkerBox = AbiWorker_TO<'static, RBox<()>>;

/// The root module: what the library's header leads to. Fields are only ever added at the end.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = PluginModuleRef)))]
pub struct PluginModule {
    pub card: extern "C" fn() -> RResult<Facts, AbiFault>,
    #[sabi(last_prefix_field)]
    pub open: extern "C" fn(RSlice<'_, Fact>) -> RResult<AbiBackendBox, AbiFault>,
}

impl RootModule for PluginModuleRef {
    declare_root_module_statics! {PluginModuleRef}
    const BASE_NAME: &'static str = "crossgate_plugin";
    const NAME: &'static str = "crossgate plugin";
    // The interface's version, not the crate's: a plugin's own releases do not concern the host.
    const VERSION_STRINGS: VersionStrings = VersionStrings::new("1.0.0");
}

// `VersionStrings` takes a literal; it must say ABI_MAJOR.
const _: () = assert!(ABI_MAJOR == 1);

// === impl AbiStamp, Fact, AbiFault ===

impl AbiStamp {
    /// What a plugin built with this crate carries.
    pub const CURRENT: Self = Self {
        magic: STAMP_MAGIC,
        major: ABI_MAJOR,
        minor: ABI_MINOR,
        // Nothing has been added since 1.0, so any host of this major will do.
        host_minor_min: 0,
        reserved: 0,
    };
}

impl Fact {
    pub fn new(key: &str, value: impl Into<RString>) -> Self {
        Self {
            key: key.into(),
            value: value.into(),
        }
    }
}

impl From<Fault> for AbiFault {
    fn from(fault: Fault) -> Self {
        Self {
            code: fault.code as u32,
            text: fault.text.into(),
        }
    }
}

impl From<AbiFault> for Fault {
    fn from(fault: AbiFault) -> Self {
        Self::new(FaultCode::from_number(fault.code), fault.text)
    }
}

// === the plugin's side: each entry is fenced ===

/// Makes `P`'s root module and hands it over erased. `export_plugin!` calls it.
pub fn construct<P: Plugin>() -> RootModuleResult {
    abi_stable::library::__call_root_module_loader(root_module::<P>)
}

/// `P`'s root module.
pub fn root_module<P: Plugin>() -> PluginModuleRef {
    PluginModuleRef(Exported::<P>::MODULE.static_as_prefix())
}

/// A library header. `export_plugin!` puts it under the name that the host looks for.
///
/// `constructor` must be [`construct`] for some plugin.
pub const fn header(constructor: extern "C" fn() -> RootModuleResult) -> LibHeader {
    // SAFETY: `export_plugin!`, the only caller, hands over `construct`, which goes through
    // `root_module`, whose type is the one named here.
    unsafe { LibHeader::from_constructor::<PluginModuleRef>(constructor, CheckTypeLayout::Yes) }
}

struct Exported<P>(PhantomData<P>);

impl<P: Plugin> Exported<P> {
    const MODULE: &'static WithMetadata<PluginModule> = &WithMetadata::new(PluginModule {
        card: Self::card,
        open: Self::open,
    });

    extern "C" fn card() -> RResult<Facts, AbiFault> {
        crossing(guard::fence(|| Ok(P::card().to_facts())))
    }

    extern "C" fn open(request: RSlice<'_, Fact>) -> RResult<AbiBackendBox, AbiFault> {
        crossing(guard::fence(|| {
            let request = crate::OpenRequest::from_facts(request.as_slice())?;
            let backend = FencedBackend::new(P::open(&request)?, &request)?;
            Ok(AbiBackend_TO::from_value(backend, sabi_trait::TD_Opaque))
        }))
    }
}

impl AbiBackend for FencedBackend {
    fn description(&self) -> RResult<Facts, AbiFault> {
        crossing(self.describe().map(|description| description.to_facts()))
    }

    fn worker(&self) -> RResult<AbiWorkerBox, AbiFault> {
        crossing(
            self.make_worker()
                .map(|worker| AbiWorker_TO::from_value(worker, sabi_trait::TD_Opaque)),
        )
    }

    fn devices(&self) -> RResult<RVec<Facts>, AbiFault> {
        let crossed =
            |devices: Vec<DeviceState>| devices.iter().map(DeviceState::to_facts).collect();
        crossing(self.device_states().map(crossed))
    }
}

impl AbiWorker for FencedWorker {
    fn score(&mut self, batch: AbiBatch<'_>, scores: AbiScores<'_>) -> RResult<Phases, AbiFault> {
        crossing(self.run(batch, scores))
    }
}

fn crossing<T>(result: Result<T, Fault>) -> RResult<T, AbiFault> {
    result.map_err(AbiFault::from).into()
}
