//! Weights as a kernel reads them: encoded once at load, in panels of NR columns; or narrower, and
//! unpacked into such panels.
//!
//! A panel is `[k / K_STEP][NR][K_STEP]`: what one instruction multiplies lies side by side. `k` is
//! padded to K_ALIGN and the last panel to NR with zeros.

use crate::arena::Aligned;
use crate::gemm::finish::Columns;
use crate::kernel::lanes::Lanes;
use crate::kernel::{Inside, K_MAX, Kernel, Op};
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
    pub fn new(kernel: K, storage: Storage, weights: &[f32], bias: &[f32], n_in: usize) -> Self {
        let mut packed = Self::empty(storage, bias.len(), n_in);
        packed.fill(kernel, weights, &[], bias);
        packed
    }

    /// Room for `n_out` outputs of `n_in` inputs, all zeros.
    ///
    /// # Panics
    /// If `n_in` exceeds [`K_MAX`].
    pub fn empty(storage: Storage, n_out: usize, n_in: usize) -> Self {
        assert!(0 < n_in && n_in <= K_MAX);
        let stride = n_in.next_multiple_of(K::K_ALIGN);
        let n_columns = n_out.next_multiple_of(K::NR);
        let panels = match storage {
            Storage::Whole => Held::Whole(Aligned::new(n_columns * stride)),
            Storage::Narrow => Held::Narrow(Narrow::new(Panels {
                n_panels: n_out.div_ceil(K::NR),
                nr: K::NR,
                k_step: K::K_STEP,
                stride,
            })),
        };
        Self {
            panels,
            scales: vec![0.0; n_columns],
            corrections: vec![K::Acc::default(); n_columns],
            bias: vec![0.0; n_columns],
            stride,
            n_out,
        }
    }

    /// Replaces everything by `weights`, each row multiplied by `factors` (none: as it is), and
    /// `bias`.
    ///
    /// # Panics
    /// If the lengths are not those of the room.
    pub fn fill(&mut self, kernel: K, weights: &[f32], factors: &[f32], bias: &[f32]) {
        self.bias[..self.n_out].copy_from_slice(bias);
        kernel.float().vectorize(Fill {
            packed: self,
            weights,
            factors,
        });
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

/// Work of [`Packed::fill`].
struct Fill<'a, K: Kernel> {
    packed: &'a mut Packed<K>,
    weights: &'a [f32],
    factors: &'a [f32],
}

impl<F: Kernel + Lanes, K: Kernel<Float = F>> Op<F> for Fill<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run(self, inside: &Inside<F>) {
        let (lanes, packed) = (inside.kernel(), self.packed);
        let (stride, n_in) = (packed.stride, self.weights.len() / packed.n_out.max(1));
        assert_eq!(self.weights.len(), packed.n_out * n_in);
        assert_eq!(stride, n_in.next_multiple_of(K::K_ALIGN));
        assert!(self.factors.is_empty() || self.factors.len() == n_in);
        let mut scaled = vec![0.0; self.factors.len()];
        // One panel's columns, encoded; columns that the last panel lacks stay zeros.
        let mut columns = vec![K::Right::default(); K::NR * stride];
        for (panel_idx, weights) in self.weights.chunks(K::NR * n_in).enumerate() {
            let first = panel_idx * K::NR;
            let n_columns = weights.len() / n_in;
            columns[n_columns * stride..].fill(K::Right::default());
            for ((column, weights), column_idx) in columns
                .chunks_exact_mut(stride)
                .zip(weights.chunks_exact(n_in))
                .zip(first..)
            {
                let weights = times(weights, self.factors, &mut scaled);
                packed.scales[column_idx] = match &mut packed.panels {
                    Held::Whole(_) => K::Right::encode(lanes, weights, column),
                    Held::Narrow(narrow) => narrow.place(column_idx, weights, column),
                };
                if K::Left::ZERO_POINT != 0 {
                    let quanta = column.iter().map(|q| q.quantum()).sum();
                    packed.corrections[column_idx] =
                        K::Acc::correction(K::Left::ZERO_POINT, quanta);
                }
            }
            if let Held::Whole(whole) = &mut packed.panels {
                interleave::<K>(
                    &columns,
                    stride,
                    &mut whole[first * stride..][..K::NR * stride],
                );
            }
        }
    }
}

#[inline(always)]
fn times<'a>(weights: &'a [f32], factors: &[f32], scaled: &'a mut [f32]) -> &'a [f32] {
    if factors.is_empty() {
        return weights;
    }
    for ((scaled, weight), factor) in scaled.iter_mut().zip(weights).zip(factors) {
        *scaled = weight * factor;
    }
    scaled
}

/// Steps of a panel that are written together: 2 KiB in f32, where a column's elements lie 128 B
/// apart, stay in L1 while all columns pass.
const BLOCK_STEPS: usize = 16;

/// `[NR][stride]` to `[stride / K_STEP][NR][K_STEP]`.
#[inline(always)]
fn interleave<K: Kernel>(columns: &[K::Right], stride: usize, panel: &mut [K::Right]) {
    let step_len = K::NR * K::K_STEP;
    for (block_idx, block) in panel.chunks_mut(BLOCK_STEPS * step_len).enumerate() {
        for (lane, column) in columns.chunks_exact(stride).enumerate() {
            let groups = column[block_idx * BLOCK_STEPS * K::K_STEP..].chunks_exact(K::K_STEP);
            for (step, group) in block.chunks_exact_mut(step_len).zip(groups) {
                step[lane * K::K_STEP..][..K::K_STEP].copy_from_slice(group);
            }
        }
    }
}
