//! What calls CUDA where candle and cudarc have no safe word for it: memory that is not filled yet, launches, one
//! product, pinned buffers, and a context's end.
//!
//! All work of a GPU goes through one stream, in the order in which it is given, memory's too. So nothing here tracks
//! events between streams, and a batch's memory is free for the next one as soon as it is enqueued.

#![allow(unsafe_code)] // CUDA's interface is C.

mod buffers;
mod graph;

use candle_core::cuda_backend::cudarc::cublas::{result as cublas, sys as blas};
use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DeviceSlice,
    DriverError, result, sys,
};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::{CudaStorageSlice, DeviceId, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Result, Shape, Storage, Tensor, bail};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, RwLock};

pub(super) use buffers::Buffers;
pub(super) use graph::Graph;

/// What build.rs made of each file in kernels/.
mod images {
    include!(concat!(env!("OUT_DIR"), "/images.rs"));
}

/// Which image each kernel is in: PTX is text.
static ENTRIES: LazyLock<HashMap<&'static str, usize>> = LazyLock::new(|| {
    let images = images::IMAGES.iter().enumerate();
    let entries = images.flat_map(|(at, [_, ptx])| {
        let text = std::str::from_utf8(ptx).unwrap_or_default();
        let behind = text.split(".entry ").skip(1);
        behind.filter_map(move |text| Some((text.split('(').next()?.trim(), at)))
    });
    entries.collect()
});

/// The kernels of each device that is open: steps know their tensors' device and nothing else.
static KERNELS: RwLock<Vec<(DeviceId, Arc<Kernels>)>> = RwLock::new(Vec::new());

/// Our kernels on one device.
struct Kernels {
    modules: Vec<Arc<CudaModule>>,
    functions: RwLock<HashMap<(&'static str, DType), CudaFunction>>,
}

/// What is left of GPUs that were lost. cudarc panics where cuBLAS and cuRAND do not let go of a handle, which on a dead
/// context they do not; so these are never dropped. They hold neither memory nor the context.
static ABANDONED: Mutex<Vec<CudaDevice>> = Mutex::new(Vec::new());

/// A stream on a GPU, with our kernels loaded there.
pub(super) struct Stream {
    pub(super) device: CudaDevice,
    /// What cuBLAS works in; there until the stream is dropped.
    workspace: Option<CudaSlice<u8>>,
    stream: Arc<CudaStream>,
}

/// Gives cuBLAS memory to work in: it would allocate some for each product in a graph, and might choose other kernels there
/// than those that were loaded before.
fn workspace(device: &CudaDevice) -> Result<CudaSlice<u8>> {
    let stream = device.cuda_stream();
    let (major, _) = stream.context().compute_capability().w()?;
    // What NVIDIA recommends.
    let n_bytes = if 9 <= major { 32 << 20 } else { 4 << 20 };
    // SAFETY: nobody but cuBLAS reads it, and what it has written.
    let workspace = unsafe { device.alloc::<u8>(n_bytes)? };
    let handle = device.cublas_handle();
    let (start, guard) = workspace.device_ptr(&stream);
    // SAFETY: the handle is the device's, whose `Stream` keeps the workspace as long.
    unsafe { blas::cublasSetWorkspace_v2(*handle.handle(), start as *mut _, n_bytes).result() }
        .w()?;
    drop(guard);
    Ok(workspace)
}

/// How many GPUs there are.
pub(super) fn n_gpus() -> std::result::Result<usize, DriverError> {
    Ok(CudaContext::device_count()?.max(0) as usize)
}

/// Whether a GPU has a context that is dead: somebody in this process holds it, and as long as they do there is no new one.
pub(super) fn is_dead(ordinal: usize) -> std::result::Result<bool, DriverError> {
    let device = result::device::get(ordinal as i32)?;
    let (mut flags, mut is_active) = (0, 0);
    // SAFETY: `device` is one that the driver has just named, and both numbers are this function's own.
    unsafe {
        sys::cuDevicePrimaryCtxGetState(device, &raw mut flags, &raw mut is_active).result()?;
    }
    if is_active == 0 {
        return Ok(false);
    }
    // Others may have a new one by now, which answers.
    // SAFETY: the context is held from here to below, and current meanwhile.
    unsafe {
        let context = result::primary_ctx::retain(device)?;
        let answer = result::ctx::set_current(context).and_then(|()| result::mem_get_info());
        let _ = result::ctx::set_current(std::ptr::null_mut());
        result::primary_ctx::release(device)?;
        Ok(answer.is_err())
    }
}

// === impl Stream ===

impl Stream {
    /// A new stream on this GPU.
    pub(super) fn open(ordinal: usize) -> Result<Self> {
        let device = CudaDevice::new_with_stream(ordinal)?;
        // SAFETY: there is no other stream that this device's tensors are used on.
        unsafe { device.disable_event_tracking() };
        let stream = device.cuda_stream();
        let workspace = workspace(&device)?;
        let stream = Self {
            device,
            workspace: Some(workspace),
            stream,
        };
        stream.keep_memory()?;
        let kernels = Kernels {
            modules: images::IMAGES
                .iter()
                .map(|images| stream.load(images))
                .collect::<Result<_>>()?,
            functions: RwLock::default(),
        };
        let mut all = KERNELS.write().unwrap_or_else(PoisonError::into_inner);
        all.push((stream.device.id(), Arc::new(kernels)));
        drop(all);
        Ok(stream)
    }

    /// One file's kernels: as code, if it is for this GPU, or else by the driver's compiler.
    fn load(&self, [code, ptx]: &[&[u8]; 2]) -> Result<Arc<CudaModule>> {
        // Copied, because the driver wants them aligned.
        let load = |image: &[u8]| {
            let image = Ptx::from_binary(image.to_vec());
            self.context().load_module(image)
        };
        load(code).or_else(|_| load(ptx)).w()
    }

    pub(super) fn context(&self) -> &Arc<CudaContext> {
        self.stream.context()
    }

    /// The same for candle.
    pub(super) fn as_device(&self) -> candle_core::Device {
        candle_core::Device::Cuda(self.device.clone())
    }

    /// The GPU's compute capability.
    pub(super) fn capability(&self) -> Result<(i32, i32)> {
        self.context().compute_capability().w()
    }

    /// Has the driver's pool keep what was given back: what the largest batch needed is there for the next one.
    fn keep_memory(&self) -> Result<()> {
        let Some(pool) = self.pool()? else {
            return Ok(());
        };
        let mut most = u64::MAX;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        // SAFETY: the pool is the device's own, and this attribute is a u64.
        unsafe { result::mem_pool::set_attribute(pool, attribute, (&raw mut most).cast()) }.w()
    }

    /// The driver's memory pool, if it has one.
    fn pool(&self) -> Result<Option<sys::CUmemoryPool>> {
        if !self.context().has_async_alloc() {
            return Ok(None);
        }
        self.context().bind_to_thread().w()?;
        // SAFETY: the device is the context's own.
        let pool = unsafe { result::device::get_default_mem_pool(self.context().cu_device()) };
        pool.map(Some).w()
    }

    /// Waits for all that was enqueued on the GPU, by other models too, and begins to look for the most memory that is in
    /// use; returns what is now, in bytes.
    pub(super) fn begin_peak(&self) -> Result<u64> {
        self.context().synchronize().w()?;
        if let Some(pool) = self.pool()? {
            let mut from_here = 0_u64;
            let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
            // SAFETY: the pool is the device's own, and this attribute is a u64 that 0 sets back.
            unsafe {
                result::mem_pool::set_attribute(pool, attribute, (&raw mut from_here).cast())
            }
            .w()?;
        }
        self.bytes(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)
    }

    /// The most that was in use since.
    pub(super) fn peak(&self) -> Result<u64> {
        self.bytes(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)
    }

    /// What the pool says when all that was enqueued is done; of a GPU without one, all that is in use there.
    fn bytes(&self, attribute: sys::CUmemPool_attribute) -> Result<u64> {
        self.wait().w()?;
        if let Some(n_bytes) = self.pooled(attribute)? {
            return Ok(n_bytes);
        }
        let (free, total) = self.context().mem_get_info().w()?;
        Ok((total - free) as u64)
    }

    /// Bytes that this process's pool has of the GPU, if it has one. Waits for nothing that was enqueued.
    pub(super) fn bytes_pooled(&self) -> Result<Option<u64>> {
        self.pooled(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)
    }

    fn pooled(&self, attribute: sys::CUmemPool_attribute) -> Result<Option<u64>> {
        let Some(pool) = self.pool()? else {
            return Ok(None);
        };
        let mut n_bytes = 0_u64;
        // SAFETY: the pool is the device's own, and these attributes are u64.
        unsafe { result::mem_pool::get_attribute(pool, attribute, (&raw mut n_bytes).cast()) }
            .w()?;
        Ok(Some(n_bytes))
    }

    /// Gives the pool's memory that nothing uses back to the GPU, when all that was enqueued is done.
    pub(super) fn trim(&self) -> Result<()> {
        self.stream.synchronize().w()?;
        match self.pool()? {
            // SAFETY: the pool is the device's own.
            Some(pool) => unsafe { result::mem_pool::trim_to(pool, 0) }.w(),
            None => Ok(()),
        }
    }

    /// Bytes that products work in.
    pub(super) fn workspace_bytes(&self) -> usize {
        self.workspace.as_ref().map_or(0, DeviceSlice::len)
    }

    /// What has become of the context: an error that ended it. Waits for nothing.
    pub(super) fn look(&self) -> Result<()> {
        self.context().bind_to_thread().w()?;
        // SAFETY: the stream is this one's own.
        match unsafe { sys::cuStreamQuery(self.stream.cu_stream()) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(()),
            outcome => outcome.result().w(),
        }
    }

    /// Waits for all that was enqueued.
    pub(super) fn wait(&self) -> std::result::Result<(), DriverError> {
        self.stream.synchronize()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let id = self.device.id();
        drop(self.workspace.take());
        let mut all = KERNELS.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(other, _)| *other != id);
        drop(all);
        if self.wait().is_ok() {
            return;
        }
        let mut abandoned = ABANDONED.lock().unwrap_or_else(PoisonError::into_inner);
        abandoned.push(self.device.clone());
        // SAFETY: this stream's context was made with it and holds the GPU's once. It is abandoned, so it will not let go
        // of it; nothing else of this stream is left by now that would call CUDA.
        let _ = unsafe { result::primary_ctx::release(self.context().cu_device()) };
    }
}

// === impl Kernels ===

impl Kernels {
    fn of(device: &CudaDevice) -> Result<Arc<Self>> {
        let all = KERNELS.read().unwrap_or_else(PoisonError::into_inner);
        let id = device.id();
        match all.iter().find(|(other, _)| *other == id) {
            Some((_, kernels)) => Ok(Arc::clone(kernels)),
            None => bail!("a tensor on a GPU that is not open"),
        }
    }

    fn function(&self, name: &'static str, dtype: DType) -> Result<CudaFunction> {
        let known = self
            .functions
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = known.get(&(name, dtype)) {
            return Ok(function.clone());
        }
        drop(known);
        let symbol = format!("{name}_{}", dtype.as_str());
        let module = ENTRIES
            .get(symbol.as_str())
            .and_then(|&at| self.modules.get(at));
        let Some(module) = module else {
            bail!("no kernel {symbol}");
        };
        let function = module.load_function(&symbol).w()?;
        let mut known = self
            .functions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        known.insert((name, dtype), function.clone());
        Ok(function)
    }
}

/// Enqueues a kernel of this name and type with its one argument: `grid` blocks of `threads`.
pub(super) fn launch<T: Copy>(
    device: &CudaDevice,
    name: &'static str,
    dtype: DType,
    (grid, threads): (usize, u32),
    argument: &T,
) -> Result<()> {
    let function = Kernels::of(device)?.function(name, dtype)?;
    let Ok(grid) = u32::try_from(grid) else {
        bail!("{name}: {grid} blocks");
    };
    let stream = device.cuda_stream();
    stream.context().bind_to_thread().w()?;
    let mut arguments = [std::ptr::from_ref(argument).cast_mut().cast()];
    // SAFETY: the argument is the twin of the kernel's only one, and outlives the call, which copies it. Addresses in
    // it are of tensors that `steps` and `attention` hold and whose sizes they checked; memory is freed in this
    // stream's order, so behind the kernel.
    unsafe {
        result::launch_kernel(
            function.cu_function(),
            (grid, 1, 1),
            (threads, 1, 1),
            0,
            stream.cu_stream(),
            &mut arguments,
        )
    }
    .w()
}

/// A contiguous tensor whose values are whatever the memory held: for a kernel that writes all of them.
pub(super) fn unfilled(
    device: &CudaDevice,
    dtype: DType,
    shape: impl Into<Shape>,
) -> Result<Tensor> {
    let shape = shape.into();
    let n = shape.elem_count();
    // SAFETY: nothing reads them before the kernel that is launched next in the same stream.
    let slice = unsafe {
        match dtype {
            DType::F32 => CudaStorageSlice::F32(device.alloc(n)?),
            DType::F16 => CudaStorageSlice::F16(device.alloc(n)?),
            DType::BF16 => CudaStorageSlice::BF16(device.alloc(n)?),
            other => bail!("a step in {other:?}"),
        }
    };
    Ok(tensor(device, slice, shape))
}

fn tensor(device: &CudaDevice, slice: CudaStorageSlice, shape: Shape) -> Tensor {
    let storage = CudaStorage {
        slice,
        device: device.clone(),
    };
    Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
}

/// Where a contiguous tensor's values begin on its device.
pub(super) fn address(x: &Tensor) -> Result<u64> {
    let (storage, layout) = x.storage_and_layout();
    let (Storage::Cuda(storage), Some((start, _))) = (&*storage, layout.contiguous_offsets())
    else {
        bail!("a step on a tensor that does not lie together on a GPU");
    };
    let stream = storage.device.cuda_stream();
    let base = match &storage.slice {
        CudaStorageSlice::U32(values) => values.device_ptr(&stream).0,
        CudaStorageSlice::F32(values) => values.device_ptr(&stream).0,
        CudaStorageSlice::F16(values) => values.device_ptr(&stream).0,
        CudaStorageSlice::BF16(values) => values.device_ptr(&stream).0,
        _ => bail!("a step on {:?}", x.dtype()),
    };
    Ok(base + (start * x.dtype().size_in_bytes()) as u64)
}

/// A product of each head: of cells (cells, values) whose heads begin at value `x_first` and are `dim` apart, with
/// `n_rows` columns from `first` on of a table (heads, dim, rows). The result is (heads, cells, n_rows).
pub(super) fn product_by_head(
    x: &Tensor,
    x_first: usize,
    table: &Tensor,
    (first, n_rows): (usize, usize),
) -> Result<Tensor> {
    let (n_heads, dim, table_rows) = table.dims3()?;
    let (n_cells, stride) = x.dims2()?;
    let dtype = x.dtype();
    if table.dtype() != dtype || stride < x_first + n_heads * dim || table_rows < first + n_rows {
        bail!(
            "a product of heads: {:?} {dtype:?} from {x_first} with {:?} {:?} from {first} to {}",
            x.dims(),
            table.dims(),
            table.dtype(),
            first + n_rows
        );
    }
    let kind = match dtype {
        DType::F32 => blas::cudaDataType_t::CUDA_R_32F,
        DType::F16 => blas::cudaDataType_t::CUDA_R_16F,
        DType::BF16 => blas::cudaDataType_t::CUDA_R_16BF,
        other => bail!("a product of heads in {other:?}"),
    };
    let candle_core::Device::Cuda(device) = x.device() else {
        bail!("a product of heads elsewhere");
    };
    let out = unfilled(device, dtype, (n_heads, n_cells, n_rows))?;
    let (a, b, c) = (address(table)?, address(x)?, address(&out)?);
    let a = a + (first * dtype.size_in_bytes()) as u64;
    let b = b + (x_first * dtype.size_in_bytes()) as u64;
    let (one, zero) = (1.0_f32, 0.0_f32);
    let handle = device.cublas_handle();
    // SAFETY: cuBLAS reads columns where we have rows, so the table is its first matrix. All that it reads lies within
    // `table` and `x` by the check above, all that it writes within `out`; it runs in the stream that frees them.
    unsafe {
        cublas::gemm_strided_batched_ex(
            *handle.handle(),
            blas::cublasOperation_t::CUBLAS_OP_N,
            blas::cublasOperation_t::CUBLAS_OP_N,
            n_rows as i32,
            n_cells as i32,
            dim as i32,
            (&raw const one).cast(),
            a as *const _,
            kind,
            table_rows as i32,
            (dim * table_rows) as i64,
            b as *const _,
            kind,
            stride as i32,
            dim as i64,
            (&raw const zero).cast(),
            c as *mut _,
            kind,
            n_rows as i32,
            (n_cells * n_rows) as i64,
            n_heads as i32,
            blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    }
    .w()?;
    Ok(out)
}
