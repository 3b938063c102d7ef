//! Work that is recorded once and enqueued as one, as CUDA's graphs.
//!
//! Memory that is allocated while a stream records belongs to the graph. The driver shares it among the graphs that run in
//! one stream, one after another, and keeps it until it is trimmed: then a graph takes it again when it is launched.

#![allow(unsafe_code)] // A graph is used by one thread at a time; its memory and a failed recording have no safe word.

use super::Stream;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaGraph, result, sys};
use candle_core::{Result, bail};

/// What was recorded.
pub(crate) struct Graph(CudaGraph);

// SAFETY: CUDA's graphs may be used by any thread, if by no two at once: `launch` is the only thing that is done to one, and
// its caller has the stream's turn.
unsafe impl Send for Graph {}

/// A recording that is to be ended: its stream would go on for ever.
struct Recording<'a> {
    stream: &'a Stream,
    is_ended: bool,
}

impl Stream {
    /// Records what is enqueued, which is not done now. All that it works on must outlive the graph, but for memory that it
    /// allocates and gives back itself; it may wait for nothing, and must have been done once before. In the GPU's turn, so
    /// that nobody waits for the whole GPU meanwhile.
    pub(crate) fn record(&self, enqueue: impl FnOnce() -> Result<()>) -> Result<Graph> {
        if !self.context().has_async_alloc() {
            bail!("this GPU's driver allocates no memory in a stream's order, as graphs need it");
        }
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).w()?;
        let mut recording = Recording {
            stream: self,
            is_ended: false,
        };
        enqueue()?;
        // What failed to be given back is said by the next call, which is to end the recording.
        self.context().check_err().w()?;
        recording.is_ended = true;
        let graph = self.stream.end_capture(sys::CUgraphInstantiate_flags(0));
        let Some(graph) = graph.w()? else {
            bail!("nothing was recorded");
        };
        Ok(Graph(graph))
    }

    /// Bytes of the GPU that graphs keep, other models' too.
    pub(crate) fn graph_bytes(&self) -> Result<u64> {
        self.wait().w()?;
        let mut n_bytes = 0_u64;
        let attribute = sys::CUgraphMem_attribute::CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT;
        let device = self.context().cu_device();
        // SAFETY: the device is the context's own, and this attribute is a u64.
        unsafe {
            sys::cuDeviceGetGraphMemAttribute(device, attribute, (&raw mut n_bytes).cast()).result()
        }
        .w()?;
        Ok(n_bytes)
    }

    /// Gives memory back of graphs that do not run now, other models' too.
    pub(crate) fn trim_graphs(&self) -> Result<()> {
        // SAFETY: the device is the context's own.
        unsafe { sys::cuDeviceGraphMemTrim(self.context().cu_device()).result() }.w()
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if self.is_ended {
            return;
        }
        let _ = self.stream.context().check_err();
        // SAFETY: the stream records.
        let graph = unsafe { result::stream::end_capture(self.stream.stream.cu_stream()) };
        if let Ok(graph) = graph
            && !graph.is_null()
        {
            // SAFETY: nobody else knows of it.
            let _ = unsafe { result::graph::destroy(graph) };
        }
    }
}

impl Graph {
    /// Has memory for it, as it has none yet, or none any more.
    pub(crate) fn upload(&self) -> Result<()> {
        self.0.upload().w()
    }

    /// Enqueues all of it.
    pub(crate) fn launch(&self) -> Result<()> {
        self.0.launch().w()
    }
}
