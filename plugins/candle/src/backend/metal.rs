//! Apple GPUs: rectangles of rows, by candle's operations.
//!
//! candle puts what all threads ask of a GPU into one queue, in order. Its memory is the system's, of which a GPU may
//! use so much at a time as it recommends; beyond that everything becomes slow, so a model that needs more is refused.

use super::rectangles::Rectangles;
use super::{Asked, Place};
use crate::model::Opened;
use crate::rows::Rows;
use backend_api::{Backend, Fault, FaultCode, Row};
use candle_core::{DType, Device, Error};
use objc2::{available, rc};
use objc2_metal::MTLCopyAllDevices;

/// Cells of a rectangle, padding included: enough for every core of a GPU, and no more, because a product's time grows
/// with them and rows are looked at in between.
pub(super) const CELLS_MAX: usize = 4_096;
/// A second worker writes down what is to be computed while the first one's is computed.
pub(super) const WORKERS_MAX: u32 = 2;

/// Opens a model on the first GPU.
pub(super) fn open(asked: &Asked<'_>) -> Result<Box<dyn Backend>, Fault> {
    in_pool(|| {
        if asked.options.reference {
            return Err(Fault::unsupported(
                "options: reference computes in f64, on CPUs: open it with candle-cpu",
            ));
        }
        let device = first_gpu()?;
        let before = metal(&device)?.current_allocated_size();
        let opened = asked.load(&device)?;
        let backend = Rectangles::new(asked, Place::Metal, opened);
        fits(before, &backend, &device)?;
        try_largest(backend.opened(), asked.row_tokens_max() as usize)?;
        Ok(Box::new(backend) as Box<dyn Backend>)
    })
}

/// Calls with a pool of its own for what Apple's libraries leave behind: a host's threads have none, and it would stay
/// until they end.
pub(super) fn in_pool<T>(call: impl FnOnce() -> T) -> T {
    rc::autoreleasepool(|_| call())
}

/// What an error of candle's means.
pub(super) fn fault(what: &str, error: &Error) -> Fault {
    let text = error.to_string();
    // It has no codes: these are Metal's own words, and candle's for a buffer that it did not get.
    let code = if text.contains("OutOfMemory") || text.contains("metal resource: Buffer") {
        FaultCode::OutOfMemory
    } else if text.contains("kIOGPUCommandBufferCallbackError") {
        FaultCode::DeviceLost
    } else {
        FaultCode::Internal
    };
    Fault::new(code, format!("{what}: {text}"))
}

/// The GPU; candle ends with a panic where there is none, or where the system lacks what it uses.
fn first_gpu() -> Result<Device, Fault> {
    if !available!(macos = 15.0) {
        return Err(Fault::unsupported(
            "device \"metal\": this plugin needs macOS 15, whose sets of resident memory candle uses; take device cpu, or \
             ort-coreml",
        ));
    }
    if MTLCopyAllDevices().is_empty() {
        return Err(Fault::unsupported(
            "device \"metal\": Metal knows no GPU here (in a virtual machine it may have none): take device cpu",
        ));
    }
    Device::new_metal(0).map_err(|error| fault("device \"metal\"", &error))
}

/// Computes a rectangle of the longest rows and one row of one token: kernels are compiled when they are first called, what
/// the GPU has not (bf16 on an old one) is found here, and so is memory that does not suffice.
fn try_largest(opened: &Opened, row_tokens_max: usize) -> Result<(), Fault> {
    let (longest, device) = (
        opened.sizes.row_tokens_max.min(row_tokens_max),
        &opened.device,
    );
    let ids = vec![0; longest];
    for (n_rows, len) in [((CELLS_MAX / longest).max(1), longest), (1, 1)] {
        let row = Row {
            input_ids: &ids[..len],
            type_ids: &ids[..len],
        };
        let rows = Rows::rectangle(&vec![row; n_rows], &*opened.model, device);
        let logits = rows.and_then(|rows| {
            opened
                .model
                .forward(&rows)?
                .to_dtype(DType::F32)?
                .to_vec2::<f32>()
        });
        logits.map_err(|error| {
            let found = fault(&format!("{n_rows} rows of {len} tokens"), &error);
            match found.code {
                FaultCode::Internal => Fault::unsupported(format!(
                    "dtype {}: this GPU does not compute it ({}); take f16 or f32, or device cpu",
                    opened.dtype, found.text
                )),
                _ => found,
            }
        })?;
    }
    Ok(())
}

/// The model and what its workers need fit beside what this process has on the GPU already.
fn fits(taken: usize, backend: &Rectangles, device: &Device) -> Result<(), Fault> {
    let recommended = metal(device)?.recommended_max_working_set_size() as u64;
    let (taken, needed) = (taken as u64, backend.memory_bytes());
    if taken + needed <= recommended {
        return Ok(());
    }
    Err(Fault::new(
        FaultCode::OutOfMemory,
        format!(
            "the model needs {} MiB, other models of this process have {}, and a GPU that uses more than {} of this \
             machine's memory is slow: take f16, shorter rows, a smaller model or device cpu",
            needed >> 20,
            taken >> 20,
            recommended >> 20
        ),
    ))
}

fn metal(device: &Device) -> Result<&candle_core::MetalDevice, Fault> {
    device
        .as_metal_device()
        .map_err(|error| fault("device \"metal\"", &error))
}
