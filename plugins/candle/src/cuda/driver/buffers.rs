//! Pinned memory that batches go up from and come down to.

#![allow(unsafe_code)] // Memory is allocated before it is filled.

use super::{Stream, tensor};
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaSlice, PinnedHostSlice, sys};
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::{Result, Storage, Tensor, bail};

/// Pinned memory of one batch at a time, and the event behind its last copy.
pub(crate) struct Buffers {
    up: PinnedHostSlice<u32>,
    down: PinnedHostSlice<f32>,
    done: CudaEvent,
    n_words: usize,
}

// === impl Stream ===

impl Stream {
    /// Pinned buffers for so many words up and logits down.
    pub(crate) fn buffers(&self, n_words: usize, n_logits: usize) -> Result<Buffers> {
        let context = self.context();
        // SAFETY: the words are written before they go up, and the logits come down before they are read.
        let (up, down) = unsafe {
            (
                context.alloc_pinned(n_words.max(1)).w()?,
                context.alloc_pinned_with_flags(n_logits.max(1), 0).w()?,
            )
        };
        let done = context
            .new_event(Some(sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC))
            .w()?;
        Ok(Buffers {
            up,
            down,
            done,
            n_words: 0,
        })
    }

    /// Enqueues the copy of pinned words to the GPU, as one tensor.
    pub(crate) fn send(&self, words: &[u32]) -> Result<Tensor> {
        // SAFETY: the copy below writes all of it.
        let mut sent: CudaSlice<u32> = unsafe { self.device.alloc(words.len())? };
        self.stream.memcpy_htod(words, &mut sent).w()?;
        let slice = CudaStorageSlice::U32(sent);
        Ok(tensor(&self.device, slice, words.len().into()))
    }

    /// Enqueues the copy of f32 logits to pinned memory.
    pub(crate) fn fetch(&self, logits: &Tensor, down: &mut [f32]) -> Result<()> {
        let n_logits = logits.elem_count();
        let (storage, layout) = logits.storage_and_layout();
        let (Storage::Cuda(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets())
        else {
            bail!("logits that do not lie together on a GPU");
        };
        let CudaStorageSlice::F32(values) = &storage.slice else {
            bail!("logits in {:?}", logits.dtype());
        };
        let capacity = down.len();
        let Some(down) = down.get_mut(..n_logits) else {
            bail!("{n_logits} logits for a buffer of {capacity}");
        };
        let values = values.slice(start..end);
        self.stream.memcpy_dtoh(&values, down).w()
    }
}

// === impl Buffers ===

impl Buffers {
    /// Takes the words that go up next, in parts one behind another.
    pub(crate) fn fill(&mut self, parts: &[&[u32]]) -> Result<()> {
        let n_words = parts.iter().map(|part| part.len()).sum();
        let capacity = self.up.len();
        let Some(mut left) = self.up.as_mut_slice().w()?.get_mut(..n_words) else {
            bail!("{n_words} words for a buffer of {capacity}");
        };
        for part in parts {
            let (here, behind) = left.split_at_mut(part.len());
            here.copy_from_slice(part);
            left = behind;
        }
        self.n_words = n_words;
        Ok(())
    }

    /// The words that go up, and where logits come down.
    pub(crate) fn ends(&mut self) -> Result<(&[u32], &mut [f32])> {
        let up = self.up.as_slice().w()?;
        Ok((&up[..self.n_words], self.down.as_mut_slice().w()?))
    }

    /// Marks that the copies of this batch are enqueued.
    pub(crate) fn mark(&self, stream: &Stream) -> Result<()> {
        self.done.record(&stream.stream).w()
    }

    /// Waits for the copies of this batch, and for no other.
    pub(crate) fn wait(&self) -> Result<&[f32]> {
        self.done.synchronize().w()?;
        self.down.as_slice().w()
    }
}
