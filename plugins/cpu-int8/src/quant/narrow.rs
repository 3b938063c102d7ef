//! Weights that are held narrower than they are multiplied: 4-bit for the i8 kernels, half precision
//! for the f32 ones.
//!
//! Kernels know nothing of it. A panel is unpacked into a worker's scratch, in the kernel's own
//! elements, and stays in cache while all rows of a micro-batch pass under it; so memory is read at
//! the narrow width, and unpacking is paid once for up to 256 rows.

use super::Code;
use crate::kernel::Kernel;

/// How the packed weights of a model's layers are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// As the kernel multiplies them.
    Whole,
    /// As the element's [`Code::Narrow`].
    Narrow,
}

/// What a panel is cut into: `n_panels` of `[k / K_STEP][NR][K_STEP]`, `k` being `stride`.
#[derive(Clone, Copy)]
pub struct Panels {
    /// Panels.
    pub n_panels: usize,
    /// Columns of a panel, an even number.
    pub nr: usize,
    /// Neighbours along k that lie side by side.
    pub k_step: usize,
    /// Elements of a column, padded to the kernel's K_ALIGN.
    pub stride: usize,
}

impl Panels {
    /// Elements of a panel.
    pub fn panel_len(&self) -> usize {
        self.nr * self.stride
    }

    /// Where a column's elements lie among all panels': the starts of runs of K_STEP, along k.
    pub fn steps(&self, column_idx: usize) -> impl Iterator<Item = usize> + use<> {
        let (panel_idx, lane) = (column_idx / self.nr, column_idx % self.nr);
        let first = panel_idx * self.panel_len() + lane * self.k_step;
        let step_len = self.nr * self.k_step;
        (0..self.stride / self.k_step).map(move |step| first + step * step_len)
    }
}

/// All panels of a linear layer, narrow.
pub trait Narrow<R>: Send + Sync + Sized {
    /// Room for panels of this kind.
    fn new(panels: Panels) -> Self;

    /// Keeps a column, and writes into `column` what [`unpack`](Self::unpack) will make of it, zeros
    /// behind the last of `weights`. Returns the column's scale.
    fn place(&mut self, column_idx: usize, weights: &[f32], column: &mut [R]) -> f32;

    /// Writes one panel in the kernel's elements. `#[inline(always)]`, for a call within
    /// [`Kernel::vectorize`].
    fn unpack<K: Kernel<Right = R>>(&self, lanes: K::Float, panel_idx: usize, panel: &mut [R]);

    /// Bytes on the heap.
    fn n_bytes(&self) -> usize;
}

/// The narrow storage of an element that has none: no dtype asks for it.
pub enum Never {}

impl<R: Code> Narrow<R> for Never {
    fn new(_: Panels) -> Self {
        unreachable!("no dtype holds these elements narrow")
    }
    fn place(&mut self, _: usize, _: &[f32], _: &mut [R]) -> f32 {
        match *self {}
    }
    #[inline(always)]
    fn unpack<K: Kernel<Right = R>>(&self, _: K::Float, _: usize, _: &mut [R]) {
        match *self {}
    }
    fn n_bytes(&self) -> usize {
        match *self {}
    }
}
