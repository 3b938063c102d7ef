//! `smmla` on aarch64 (i8mm: Neoverse V1 and later, Apple M2 and later): i8 · i8 in blocks, sums in
//! i32, exact.
//!
//! One instruction multiplies two rows × 8 activations by 8 weights × two columns into 2 × 2 sums: twice
//! the products of an `sdot`. A panel `[k / 8][NR][8]` is two columns to a register as it lies; of the
//! activations, half a register comes from either row of a pair. An instruction takes pairs, not a row
//! repeated, so the kernel has a loop of its own, as AMX has.
//!
//! 6 × 16 tile: 3 × 8 accumulators, 3 pairs of activations, and weights one register at a time, of the 32
//! registers; 14 loads to 24 instructions.

#![allow(unsafe_code)] // `smmla` has no stable intrinsic; loads are unchecked.

use crate::kernel::neon::NeonF32;
use crate::kernel::tile::Tile;
use crate::kernel::{Inside, Kernel, Op};
use std::arch::aarch64::{
    int8x16_t, int32x4_t, vcombine_s8, vdupq_n_s32, vld1_s8, vld1q_s8, vreinterpretq_s32_s64,
    vreinterpretq_s64_s32, vst1q_s32, vtrn1q_s64, vtrn2q_s64,
};
use std::arch::asm;

/// Columns of the tile.
const NR: usize = 16;
/// Activations of a row that one instruction takes.
const STEP: usize = 8;
/// Registers that the columns of one step fill, two columns each.
const V: usize = NR / 2;

/// i8 by the matrix-multiplication extension.
#[derive(Clone, Copy)]
pub struct NeonMatrix(());

impl NeonMatrix {
    /// The token, if this CPU has the int8 matrix-multiplication extension (ARMv8.6 `i8mm`).
    pub fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("i8mm").then_some(Self(()))
    }
}

#[target_feature(enable = "neon,i8mm")]
fn with_i8mm<K: Kernel, O: Op<K>>(inside: &Inside<K>, op: O) -> O::Output {
    op.run(inside)
}

impl Kernel for NeonMatrix {
    const NAME: &'static str = "aarch64-i8-neon-smmla";
    const MR: usize = 6;
    const NR: usize = NR;
    const K_STEP: usize = STEP;
    const ROW_GROUP: usize = 2;
    type Left = i8;
    type Right = i8;
    type Acc = i32;
    type Float = NeonF32;
    type Element = f32;
    type Attend = NeonF32;

    fn float(self) -> NeonF32 {
        NeonF32
    }
    fn attend(self) -> NeonF32 {
        NeonF32
    }
    #[inline(always)]
    fn vectorize<O: Op<Self>>(self, op: O) -> O::Output {
        // SAFETY: the token proves every feature that `with_i8mm` enables.
        unsafe { with_i8mm(&Inside::new(self), op) }
    }
    #[inline(always)]
    unsafe fn multiply(self, tile: Tile<'_, Self>) {
        match tile.n_rows {
            // SAFETY: the caller's; `Tile::compute` has checked whole pairs of rows.
            1 | 2 => unsafe { self.pairs::<1>(tile) },
            // SAFETY: as above.
            3 | 4 => unsafe { self.pairs::<2>(tile) },
            // SAFETY: as above.
            _ => unsafe { self.pairs::<3>(tile) },
        }
    }
}

/// The body for each number below a bound, written out, so that sums are registers (see
/// [`super::tile`]).
macro_rules! each {
    ($i:ident in $($index:literal)*, below $n:expr, $body:block) => {
        $(if $index < $n {
            let $i = $index;
            $body
        })*
    };
}

impl NeonMatrix {
    /// A tile of P pairs of rows.
    ///
    /// # Safety
    /// As [`Kernel::multiply`], with 2 P rows of `left` and `out`.
    #[inline(always)]
    unsafe fn pairs<const P: usize>(self, tile: Tile<'_, Self>) {
        let (left, right) = (tile.left.as_ptr(), tile.right.as_ptr());
        // SAFETY: NEON is part of every aarch64.
        let mut sums = [[unsafe { vdupq_n_s32(0) }; V]; P];
        for step in 0..tile.right.len() / (NR * STEP) {
            // SAFETY: the caller promises 2 P rows of as many steps as the panel has.
            let lefts: [int8x16_t; P] = std::array::from_fn(|pair| unsafe {
                let upper = left.add(2 * pair * tile.stride + step * STEP);
                vcombine_s8(vld1_s8(upper), vld1_s8(upper.add(tile.stride)))
            });
            each!(v in 0 1 2 3 4 5 6 7, below V, {
                // SAFETY: a step of the panel is 16 · 8 i8 = eight registers.
                let right = unsafe { vld1q_s8(right.add((step * V + v) * 16)) };
                each!(pair in 0 1 2, below P, {
                    sums[pair][v] = self.smmla(sums[pair][v], lefts[pair], right);
                });
            });
        }
        each!(pair in 0 1 2, below P, {
            // SAFETY: the caller promises room for NR sums in each of 2 P rows.
            unsafe {
                store(
                    sums[pair],
                    tile.out.as_mut_ptr().add(2 * pair * tile.out_stride),
                    tile.out_stride,
                )
            };
        });
    }

    /// `sum[r][c] + Σ_s left[r][s] · right[c][s]`, r and c in 0..2, s in 0..8.
    #[inline(always)]
    fn smmla(self, mut sum: int32x4_t, left: int8x16_t, right: int8x16_t) -> int32x4_t {
        // SAFETY: the token proves `i8mm`; the instruction touches no memory and no flags.
        unsafe {
            asm!(
                // This method is inlined into `with_i8mm`, but is also assembled by itself.
                ".arch_extension i8mm",
                "smmla {sum:v}.4s, {left:v}.16b, {right:v}.16b",
                sum = inout(vreg) sum,
                left = in(vreg) left,
                right = in(vreg) right,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sum
    }
}

/// Stores a pair of rows: the blocks `[r][c]` of two registers become four columns of either row.
///
/// # Safety
/// NR writable i32 at `out` and at `out + stride`.
#[inline(always)]
unsafe fn store(sums: [int32x4_t; V], out: *mut i32, stride: usize) {
    for v in 0..V / 2 {
        // SAFETY: the caller's: 4 v + 4 ≤ NR.
        unsafe {
            let left = vreinterpretq_s64_s32(sums[2 * v]);
            let right = vreinterpretq_s64_s32(sums[2 * v + 1]);
            let (upper, lower) = (vtrn1q_s64(left, right), vtrn2q_s64(left, right));
            vst1q_s32(out.add(4 * v), vreinterpretq_s32_s64(upper));
            vst1q_s32(out.add(stride + 4 * v), vreinterpretq_s32_s64(lower));
        }
    }
}
