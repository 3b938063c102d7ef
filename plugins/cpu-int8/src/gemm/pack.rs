//! Weights as a kernel reads them: encoded once at load, in panels of NR columns; or narrower, and
//! unpacked into such panels.
//!
//! A panel is `[k / K_STEP][NR][K_STEP]`: what one instruction multiplies lies side by side. `k` is
//! padded to K_ALIGN and the last panel to NR with zeros.

use crate::arena::Aligned;
use crate::gemm::finish::Columns;
use crate::kernel::scalar::PortableF32;
use crate::kernel::{K_MAX, Kernel};
use crate::quant::narrow::{Narrow, Panels, Storage};
use crate::quant::{Code, Sum};

/// A linear layer's weights and bias, packed for one kernel.
pub struct Packed<K: Kernel> {
    panels: Held<K::Right>,
    scales: Vec<f32>,
    corrections: Vec<K::Acc>,
    bias: Vec<f32>,
    /// Input features, rounded up to K_ALIGN.
    pub stride: usize,
    /// Output features.
    pub n_out: usize,
}

/// All panels.
enum Held<R: Code> {
    Whole(Aligned<R>),
    Narrow(R::Narrow),
}

impl<K: Kernel> Packed<K> {
    /// Packs `weights`, row-major `[n_out][n_in]` as checkpoints have them, and `bias` (`n_out`), to be held as `storage`.
    ///
    /// # Panics
    /// If the lengths disagree or `n_in` exceeds [`K_MAX`]: the loader has checked both.
    pub fn new(storage: Storage, weights: &[f32], bias: &[f32], n_in: usize) -> Self {
        let n_out = bias.len();
        assert_eq!(weights.len(), n_out * n_in);
        assert!(0 < n_in && n_in <= K_MAX);
        let stride = n_in.next_multiple_of(K::K_ALIGN);
        let panels = Panels {
            n_panels: n_out.div_ceil(K::NR),
            nr: K::NR,
            k_step: K::K_STEP,
            stride,
        };
        let mut held = match storage {
            Storage::Whole => Held::Whole(Aligned::new(panels.n_panels * panels.panel_len())),
            Storage::Narrow => Held::Narrow(Narrow::new(panels)),
        };
        let n_columns = n_out.next_multiple_of(K::NR);
        let (mut scales, mut corrections) =
            (vec![0.0; n_columns], vec![K::Acc::default(); n_columns]);
        let mut column = vec![K::Right::default(); stride];
        for (column_idx, weights) in weights.chunks_exact(n_in).enumerate() {
            scales[column_idx] = match &mut held {
                Held::Whole(whole) => {
                    let scale = K::Right::encode(PortableF32, weights, &mut column);
                    let groups = column.chunks_exact(K::K_STEP);
                    for (start, group) in panels.steps(column_idx).zip(groups) {
                        whole[start..][..K::K_STEP].copy_from_slice(group);
                    }
                    scale
                }
                Held::Narrow(narrow) => narrow.place(column_idx, weights, &mut column),
            };
            let quanta = column.iter().map(|q| q.quantum()).sum();
            corrections[column_idx] = K::Acc::correction(K::Left::ZERO_POINT, quanta);
        }
        let mut padded_bias = vec![0.0; n_columns];
        padded_bias[..n_out].copy_from_slice(bias);
        Self {
            panels: held,
            scales,
            corrections,
            bias: padded_bias,
            stride,
            n_out,
        }
    }

    /// Panels, the last of which may have columns of zeros.
    pub fn n_panels(&self) -> usize {
        self.n_out.div_ceil(K::NR)
    }

    /// Whether panels are unpacked before they are multiplied.
    #[inline(always)]
    pub fn is_narrow(&self) -> bool {
        matches!(self.panels, Held::Narrow(_))
    }

    /// One panel; unpacked into `room` where it is held narrow.
    #[inline(always)]
    pub fn panel<'a>(
        &'a self,
        lanes: K::Float,
        panel_idx: usize,
        room: &'a mut [K::Right],
    ) -> &'a [K::Right] {
        let panel_len = K::NR * self.stride;
        match &self.panels {
            Held::Whole(whole) => &whole[panel_idx * panel_len..][..panel_len],
            Held::Narrow(narrow) => {
                let room = &mut room[..panel_len];
                narrow.unpack::<K>(lanes, panel_idx, room);
                room
            }
        }
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
        let panels = match &self.panels {
            Held::Whole(whole) => whole.n_bytes(),
            Held::Narrow(narrow) => narrow.n_bytes(),
        };
        panels + self.n_out * 3 * size_of::<f32>()
    }
}
