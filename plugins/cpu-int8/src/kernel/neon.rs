//! `sdot` on aarch64: i8 · i8 in quads, sums in i32, exact.
//!
//! 6 × 16 tile: 24 accumulators, 4 registers of weights, 1 broadcast of the 32 registers. The
//! machine this was written on is an x86-64: this file is compiled there but runs only in
//! `tests/exact.rs` on aarch64.

#![allow(unsafe_code)] // `sdot` has no stable intrinsic, so it is written as assembly.

use crate::kernel::scalar::PortableF32;
use crate::kernel::tile::{Dot, Tile, by_dots};
use crate::kernel::{Inside, Kernel, Op};
use std::arch::aarch64::{
    int8x16_t, int32x4_t, vdupq_n_s32, vld1q_s8, vreinterpretq_s8_s32, vst1q_s32,
};
use std::arch::asm;

/// Number of 128-bit registers that NR columns fill.
const V: usize = 4;

/// i8 by the dot-product extension.
#[derive(Clone, Copy)]
pub struct NeonDot(());

impl NeonDot {
    /// The token, if this CPU has the dot-product extension (ARMv8.2 `dotprod`).
    pub fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("dotprod").then_some(Self(()))
    }
}

#[target_feature(enable = "neon,dotprod")]
fn with_dotprod<K: Kernel, O: Op<K>>(inside: &Inside<K>, op: O) -> O::Output {
    op.run(inside)
}

impl Kernel for NeonDot {
    const NAME: &'static str = "aarch64-i8-neon-sdot";
    const MR: usize = 6;
    const NR: usize = 4 * V;
    const K_STEP: usize = 4;
    const FMA: bool = true;
    type Left = i8;
    type Right = i8;
    type Acc = i32;
    type Float = PortableF32;
    type Element = f32;
    type Attend = PortableF32;

    fn float(self) -> PortableF32 {
        PortableF32
    }
    fn attend(self) -> PortableF32 {
        self.float()
    }
    #[inline(always)]
    fn vectorize<O: Op<Self>>(self, op: O) -> O::Output {
        // SAFETY: the token proves every feature that `with_dotprod` enables.
        unsafe { with_dotprod(&Inside::new(self), op) }
    }
    #[inline(always)]
    unsafe fn multiply(self, tile: Tile<'_, Self>) {
        // SAFETY: the caller's.
        unsafe { by_dots(self, tile) }
    }
}

impl Dot for NeonDot {
    type LeftVec = int8x16_t;
    type RightVec = [int8x16_t; V];
    type AccVec = [int32x4_t; V];

    #[inline(always)]
    fn zero(self) -> [int32x4_t; V] {
        // SAFETY: NEON is part of every aarch64.
        [unsafe { vdupq_n_s32(0) }; V]
    }
    #[inline(always)]
    unsafe fn splat(self, left: *const i8) -> int8x16_t {
        // SAFETY: the caller gives 4 readable i8 = one unaligned i32; NEON is part of every
        // aarch64.
        unsafe { vreinterpretq_s8_s32(vdupq_n_s32(left.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn load(self, right: *const i8) -> [int8x16_t; V] {
        // SAFETY: the caller gives 16 · 4 readable i8 = four registers.
        std::array::from_fn(|v| unsafe { vld1q_s8(right.add(16 * v)) })
    }
    #[inline(always)]
    fn dot(self, sum: [int32x4_t; V], left: int8x16_t, right: [int8x16_t; V]) -> [int32x4_t; V] {
        std::array::from_fn(|v| {
            let mut sum = sum[v];
            // SAFETY: the token proves `dotprod`; the instruction touches no memory and no flags.
            unsafe {
                asm!(
                    // This method is inlined into `with_dotprod`, but is also assembled by itself.
                    ".arch_extension dotprod",
                    "sdot {sum:v}.4s, {left:v}.16b, {right:v}.16b",
                    sum = inout(vreg) sum,
                    left = in(vreg) left,
                    right = in(vreg) right[v],
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
            sum
        })
    }
    #[inline(always)]
    unsafe fn store(self, sum: [int32x4_t; V], out: *mut i32) {
        for (v, sum) in sum.into_iter().enumerate() {
            // SAFETY: the caller gives 16 writable i32 = four registers.
            unsafe { vst1q_s32(out.add(4 * v), sum) };
        }
    }
}
