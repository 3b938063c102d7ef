//! What CUDA's errors mean for those who call: a batch that is too large, a GPU that is gone, or a mistake.
//!
//! Some errors end a context: every later call fails with the same one. A new one is made when nobody in this process holds
//! it any more; so every lane is registered here, and lets go when one of them says that its GPU is lost. Others who hold
//! it, as another version of this library does during a swap, find out by themselves.

use super::driver::{Stream, is_dead};
use super::lane::Lane;
use backend_api::{Fault, FaultCode};
use candle_core::Error;
use candle_core::cuda_backend::CudaError;
use candle_core::cuda_backend::cudarc::cublas::sys::cublasStatus_t;
use candle_core::cuda_backend::cudarc::driver::DriverError;
use candle_core::cuda_backend::cudarc::driver::sys::CUresult;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};

/// What became of each GPU that was opened, by its number.
static GPUS: Mutex<BTreeMap<usize, Gpu>> = Mutex::new(BTreeMap::new());

#[derive(Default)]
struct Gpu {
    /// CUDA's error, if its context is dead.
    dead: Option<String>,
    lanes: Vec<Weak<Lane>>,
}

/// Adds a lane, which lets go of its GPU if that is lost.
pub(super) fn register(ordinal: usize, lane: Weak<Lane>) {
    let mut gpus = gpus();
    let gpu = gpus.entry(ordinal).or_default();
    gpu.lanes.retain(|lane| 0 < lane.strong_count());
    gpu.lanes.push(lane);
}

/// Makes a GPU that was lost usable again, as far as one process can.
///
/// # Errors
/// `DeviceLost` if it stays lost.
pub(super) fn revive(ordinal: usize) -> Result<(), Fault> {
    let (why, lanes) = {
        let mut gpus = gpus();
        let gpu = gpus.entry(ordinal).or_default();
        let Some(why) = gpu.dead.clone() else {
            return Ok(());
        };
        (why, std::mem::take(&mut gpu.lanes))
    };
    // Without the lock: whoever still computes there finds out, and asks for it.
    for lane in lanes.iter().filter_map(Weak::upgrade) {
        lane.let_go();
    }
    let lost = |what: &str| {
        let text = format!(
            "GPU {ordinal}: lost by {why}, and {what}: start this process again if it stays so; if that does not help, \
             see what nvidia-smi says of the GPU"
        );
        Fault::new(FaultCode::DeviceLost, text)
    };
    match is_dead(ordinal) {
        Ok(false) => {}
        Ok(true) => return Err(lost("others in this process hold its dead context")),
        Err(error) => return Err(lost(&describe(error))),
    }
    gpus().entry(ordinal).or_default().dead = None;
    Ok(())
}

/// The fault that an error means. `what` says who asked for what.
pub(super) fn fault(ordinal: usize, stream: Option<&Stream>, what: &str, error: &Error) -> Fault {
    // An error that says nothing may be a product's that failed because the context is dead: CUDA is asked.
    let code = match (code(error), stream) {
        (Some(code), _) => Some(code),
        (None, _) if is_for_want_of_memory(error) => Some(CUresult::CUDA_ERROR_OUT_OF_MEMORY),
        (None, Some(stream)) => stream.wait().err().map(|DriverError(code)| code),
        (None, None) => None,
    };
    match code {
        Some(CUresult::CUDA_ERROR_OUT_OF_MEMORY) => Fault::new(
            FaultCode::OutOfMemory,
            format!("GPU {ordinal}: {what}: its memory is used up: {error}"),
        ),
        Some(code) if is_deadly(code) => {
            let why = describe(DriverError(code));
            gpus().entry(ordinal).or_default().dead = Some(why.clone());
            Fault::new(
                FaultCode::DeviceLost,
                format!(
                    "GPU {ordinal}: {what}: {why}: its context is dead, and all that this process has on it, other \
                     models too; what is opened next is on a new one"
                ),
            )
        }
        Some(code) => Fault::internal(format!(
            "GPU {ordinal}: {what}: {}",
            describe(DriverError(code))
        )),
        None => Fault::internal(format!("GPU {ordinal}: {what}: {error}")),
    }
}

/// Whether an error says that memory is used up.
pub(super) fn is_out_of_memory(error: &Error) -> bool {
    code(error) == Some(CUresult::CUDA_ERROR_OUT_OF_MEMORY) || is_for_want_of_memory(error)
}

/// What an error means that comes while a model is loaded: want of memory, or a mistake. Whether the GPU is lost is asked
/// behind it.
pub(crate) fn code_while_loading(error: &Error) -> FaultCode {
    match is_out_of_memory(error) {
        true => FaultCode::OutOfMemory,
        false => FaultCode::Internal,
    }
}

/// The fault of a model that did not load, or that of a GPU that was lost meanwhile.
pub(super) fn while_loading(ordinal: usize, stream: &Stream, found: Fault) -> Fault {
    match stream.wait() {
        Err(error) if is_deadly(error.0) => {
            let error = CudaError::Cuda(error).into();
            fault(ordinal, None, "loading", &error)
        }
        _ if found.code == FaultCode::OutOfMemory => Fault::new(
            found.code,
            format!("GPU {ordinal}: the model does not fit: {}", found.text),
        ),
        _ => found,
    }
}

/// CUDA's own name of an error and what it says of it.
pub(super) fn describe(error: DriverError) -> String {
    let text = |text: Result<&std::ffi::CStr, DriverError>| {
        text.map_or_else(
            |_| format!("error {}", error.0 as u32),
            |text| text.to_string_lossy().into_owned(),
        )
    };
    format!(
        "{} ({})",
        text(error.error_name()),
        text(error.error_string())
    )
}

fn gpus() -> MutexGuard<'static, BTreeMap<usize, Gpu>> {
    GPUS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// CUDA's error, inside candle's.
fn code(error: &Error) -> Option<CUresult> {
    match cuda(error)? {
        CudaError::Cuda(DriverError(code)) => Some(*code),
        CudaError::Load { cuda, .. } => Some(cuda.0),
        _ => None,
    }
}

fn is_for_want_of_memory(error: &Error) -> bool {
    let failed = cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED;
    matches!(cuda(error), Some(CudaError::Cublas(error)) if error.0 == failed)
}

fn cuda(error: &Error) -> Option<&CudaError> {
    match error {
        Error::Cuda(inner) => inner.downcast_ref(),
        Error::Context { inner, .. } | Error::WithBacktrace { inner, .. } => cuda(inner),
        _ => None,
    }
}

/// Hardware that failed but was contained, and a leak of tensor memory: drivers have them whose numbers have no names here.
const DEADLY_OF_NEWER_DRIVERS: [u32; 2] = [226, 721];

/// Errors after which every call on the context fails with the same one, or the GPU itself is gone.
fn is_deadly(code: CUresult) -> bool {
    let is_newer = DEADLY_OF_NEWER_DRIVERS.contains(&(code as u32));
    is_newer
        || matches!(
            code,
            CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
                | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
                | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
                | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
                | CUresult::CUDA_ERROR_INVALID_PC
                | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
                | CUresult::CUDA_ERROR_ASSERT
                | CUresult::CUDA_ERROR_LAUNCH_FAILED
                | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
                | CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
                | CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE
                | CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED
                | CUresult::CUDA_ERROR_INVALID_CONTEXT
                | CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE
                | CUresult::CUDA_ERROR_EXTERNAL_DEVICE
                | CUresult::CUDA_ERROR_DEINITIALIZED
                | CUresult::CUDA_ERROR_MPS_CLIENT_TERMINATED
                | CUresult::CUDA_ERROR_UNKNOWN
        )
}
