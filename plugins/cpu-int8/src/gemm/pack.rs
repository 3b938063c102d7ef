//! Weights as a kernel reads them: encoded once at load, in panels of NR columns.
//!
//! A panel is `[k / K_STEP][NR][K_STEP]`: what one instruction multiplies lies side by side. `k` is
//! padded to K_ALIGN and the last panel to NR with zeros.

use crate::arena::Aligned;
use crate::gemm::finish::Columns;
use crate::kernel::scalar::PortableF32;
use crate::kernel::{K_MAX, Kernel};
use crate::quant::{Code, Sum};

/// A linear layer's weights and bias, packed for one kernel.
pub struct Packed<K: Kernel> {
    panels: Aligned<K::Right>,
    scales: Vec<f32>,
    corrections: Vec<K::Acc>,
    bias: Vec<f32>,
    /// Input features, rounded up to K_ALIGN.
    pub stride: usize,
    /// Output features.
    pub n_out: usize,
}

impl<K: Kernel> Packed<K> {
    /// Packs `weights`, row-major `[n_out][n_in]` as checkpoints have them, and `bias` (`n_out`).
    ///
    /// # Panics
    /// If the lengths disagree or `n_in` exceeds [`K_MAX`]: the loader has checked both.
    pub fn new(weights: &[f32], bias: &[f32], n_in: usize) -> Self {
        let n_out = bias.len();
        assert_eq!(weights.len(), n_out * n_in);
        assert!(0 < n_in && n_in <= K_MAX);
        let stride = n_in.next_multiple_of(K::K_ALIGN);
        let mut packed = Self {
            panels: Aligned::new(n_out.next_multiple_of(K::NR) * stride),
            scales: vec![0.0; n_out.next_multiple_of(K::NR)],
            corrections: vec![K::Acc::default(); n_out.next_multiple_of(K::NR)],
            bias: vec![0.0; n_out.next_multiple_of(K::NR)],
            stride,
            n_out,
        };
        packed.bias[..n_out].copy_from_slice(bias);
        let mut column = vec![K::Right::default(); stride];
        for (column_idx, weights) in weights.chunks_exact(n_in).enumerate() {
            packed.scales[column_idx] = K::Right::encode(PortableF32, weights, &mut column);
            let quanta = column.iter().map(|q| q.quantum()).sum();
            packed.corrections[column_idx] = K::Acc::correction(K::Left::ZERO_POINT, quanta);
            packed.place(column_idx, &column);
        }
        packed
    }

    fn place(&mut self, column_idx: usize, column: &[K::Right]) {
        let (panel_idx, lane) = (column_idx / K::NR, column_idx % K::NR);
        let panel_len = K::NR * self.stride;
        let panel = &mut self.panels[panel_idx * panel_len..][..panel_len];
        for (step, group) in panel
            .chunks_exact_mut(K::NR * K::K_STEP)
            .zip(column.chunks_exact(K::K_STEP))
        {
            step[lane * K::K_STEP..][..K::K_STEP].copy_from_slice(group);
        }
    }

    /// Panels, the last of which may have columns of zeros.
    pub fn n_panels(&self) -> usize {
        self.n_out.div_ceil(K::NR)
    }

    /// One panel.
    #[inline(always)]
    pub fn panel(&self, panel_idx: usize) -> &[K::Right] {
        let panel_len = K::NR * self.stride;
        &self.panels[panel_idx * panel_len..][..panel_len]
    }

    /// The constants of one panel's columns.
    #[inline(always)]
    pub fn columns(&self, panel_idx: usize) -> Columns<'_, K> {
        let range = panel_idx * K::NR..(panel_idx + 1) * K::NR;
        Columns {
            scales: &self.scales[range.clone()],
            corrections: &self.corrections[range.clone()],
            bias: &self.bias[range],
        }
    }

    /// Bytes on the heap.
    pub fn n_bytes(&self) -> usize {
        self.panels.n_bytes() + self.n_out * 3 * size_of::<f32>()
    }
}
