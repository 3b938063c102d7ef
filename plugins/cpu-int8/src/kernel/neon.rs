//! NEON on aarch64: `sdot` (i8 · i8 in quads, sums in i32, exact), and `fmla` for f32, which is also
//! what all passes between the products are computed with.
//!
//! Both tiles are 6 × 16: 24 accumulators, 4 registers of weights, 1 broadcast of the 32 registers.
//! Written on an x86-64: `make test-neon` runs it in qemu, which says what is right but not what is
//! fast.

#![allow(unsafe_code)] // Unchecked loads; and `sdot` has no stable intrinsic.

use crate::kernel::lanes::Lanes;
use crate::kernel::tile::{Dot, Tile, by_dots};
use crate::kernel::{Inside, Kernel, Op};
use crate::quant::Bf16;
use crate::quant::f16::F16;
use std::arch::aarch64::{
    float32x4_t, int8x8_t, int8x16_t, int16x8_t, int32x4_t, uint32x4_t, vaddq_f32, vaddq_s32,
    vaddq_u32, vaddvq_f32, vandq_u32, vbslq_f32, vcgtq_f32, vcltq_f32, vcombine_s16,
    vcvtnq_s32_f32, vcvtq_f32_s32, vdivq_f32, vdup_n_s8, vdupq_n_f32, vdupq_n_s32, vdupq_n_u32,
    veor_s8, vfmaq_f32, vld1_u16, vld1q_f32, vld1q_s8, vld1q_s32, vld1q_u32, vmaxq_u32, vmaxvq_f32,
    vmaxvq_u32, vmulq_f32, vqmovn_s16, vqmovn_s32, vreinterpretq_f32_s32, vreinterpretq_f32_u32,
    vreinterpretq_s8_s32, vreinterpretq_s32_f32, vreinterpretq_u32_f32, vrndnq_f32, vshll_n_u16,
    vshlq_n_s32, vshrn_n_u32, vst1_s8, vst1_u16, vst1q_f32, vst1q_s16, vst1q_s32, vsubq_f32,
    vsubq_s32, vtstq_u32,
};
use std::arch::asm;
use std::array::from_fn;

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
        from_fn(|v| unsafe { vld1q_s8(right.add(16 * v)) })
    }
    #[inline(always)]
    fn dot(self, sum: [int32x4_t; V], left: int8x16_t, right: [int8x16_t; V]) -> [int32x4_t; V] {
        from_fn(|v| {
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

/// f32 by `fmla`, on every aarch64.
#[derive(Clone, Copy)]
pub struct NeonF32;

impl Kernel for NeonF32 {
    const NAME: &'static str = "aarch64-f32-neon-fmla";
    const MR: usize = 6;
    const NR: usize = 4 * V;
    const K_STEP: usize = 1;
    type Left = f32;
    type Right = f32;
    type Acc = f32;
    type Float = Self;
    type Element = f32;
    type Attend = Self;

    fn float(self) -> Self {
        self
    }
    fn attend(self) -> Self {
        self
    }
    #[inline(always)]
    fn vectorize<O: Op<Self>>(self, op: O) -> O::Output {
        // SAFETY: this is `vectorize`; NEON is part of every aarch64.
        op.run(&unsafe { Inside::new(self) })
    }
    #[inline(always)]
    unsafe fn multiply(self, tile: Tile<'_, Self>) {
        // SAFETY: the caller's.
        unsafe { by_dots(self, tile) }
    }
}

impl Dot for NeonF32 {
    type LeftVec = float32x4_t;
    type RightVec = [float32x4_t; V];
    type AccVec = [float32x4_t; V];

    #[inline(always)]
    fn zero(self) -> [float32x4_t; V] {
        // SAFETY: NEON is part of every aarch64.
        [unsafe { vdupq_n_f32(0.0) }; V]
    }
    #[inline(always)]
    unsafe fn splat(self, left: *const f32) -> float32x4_t {
        // SAFETY: the caller gives one readable f32; NEON is part of every aarch64.
        unsafe { vdupq_n_f32(*left) }
    }
    #[inline(always)]
    unsafe fn load(self, right: *const f32) -> [float32x4_t; V] {
        // SAFETY: the caller gives 16 readable f32 = four registers.
        from_fn(|v| unsafe { vld1q_f32(right.add(4 * v)) })
    }
    #[inline(always)]
    fn dot(
        self,
        sum: [float32x4_t; V],
        left: float32x4_t,
        right: [float32x4_t; V],
    ) -> [float32x4_t; V] {
        // SAFETY: NEON is part of every aarch64.
        from_fn(|v| unsafe { vfmaq_f32(sum[v], left, right[v]) })
    }
    #[inline(always)]
    unsafe fn store(self, sum: [float32x4_t; V], out: *mut f32) {
        for (v, sum) in sum.into_iter().enumerate() {
            // SAFETY: the caller gives 16 writable f32 = four registers.
            unsafe { vst1q_f32(out.add(4 * v), sum) };
        }
    }
}

/// Two registers: one alone has too little work between a load and its use.
type F = [float32x4_t; 2];

/// Lane by lane by the intrinsic `$of`.
macro_rules! lanewise {
    ($of:ident, $($v:expr),+) => {
        // SAFETY: NEON is part of every aarch64; the instruction touches no memory.
        from_fn(|half| unsafe { $of($($v[half]),+) })
    };
}

// SAFETY of all intrinsics below: NEON is part of every aarch64; memory is checked to be there.
impl Lanes for NeonF32 {
    const N: usize = 8;
    type F = F;
    type U = [uint32x4_t; 2];

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        // SAFETY: see above.
        [unsafe { vdupq_n_f32(x) }; 2]
    }
    #[inline(always)]
    fn load(self, x: &[f32]) -> F {
        assert!(Self::N <= x.len());
        // SAFETY: see above.
        from_fn(|half| unsafe { vld1q_f32(x.as_ptr().add(4 * half)) })
    }
    #[inline(always)]
    fn load_bf16(self, x: &[Bf16]) -> F {
        assert!(Self::N <= x.len());
        // SAFETY: see above; Bf16 is a transparent u16.
        from_fn(|half| unsafe {
            let bits = vld1_u16(x.as_ptr().cast::<u16>().add(4 * half));
            vreinterpretq_f32_u32(vshll_n_u16::<16>(bits))
        })
    }
    #[inline(always)]
    fn load_f16(self, x: &[F16]) -> F {
        assert!(Self::N <= x.len());
        // SAFETY: see above; F16 is a transparent u16. `fcvtl`, which every aarch64 has, has no stable
        // intrinsic; it touches no memory and no flags.
        from_fn(|half| unsafe {
            let halves = vld1_u16(x.as_ptr().cast::<u16>().add(4 * half));
            let wide: float32x4_t;
            asm!(
                "fcvtl {wide:v}.4s, {halves:v}.4h",
                wide = lateout(vreg) wide,
                halves = in(vreg) halves,
                options(pure, nomem, nostack, preserves_flags),
            );
            wide
        })
    }
    #[inline(always)]
    fn load_i32(self, x: &[i32], minus: Option<&[i32]>) -> F {
        assert!(Self::N <= x.len() && minus.is_none_or(|minus| Self::N <= minus.len()));
        // SAFETY: see above.
        from_fn(|half| unsafe {
            let mut x = vld1q_s32(x.as_ptr().add(4 * half));
            if let Some(minus) = minus {
                x = vsubq_s32(x, vld1q_s32(minus.as_ptr().add(4 * half)));
            }
            vcvtq_f32_s32(x)
        })
    }
    #[inline(always)]
    fn store(self, v: F, out: &mut [f32]) {
        assert!(Self::N <= out.len());
        for (half, v) in v.into_iter().enumerate() {
            // SAFETY: see above.
            unsafe { vst1q_f32(out.as_mut_ptr().add(4 * half), v) };
        }
    }
    #[inline(always)]
    fn store_bf16(self, v: F, out: &mut [Bf16]) {
        assert!(Self::N <= out.len());
        for (half, v) in v.into_iter().enumerate() {
            // SAFETY: see above; Bf16 is a transparent u16. Rounds as `Bf16::of` does.
            unsafe {
                let rounded = vaddq_u32(vreinterpretq_u32_f32(v), vdupq_n_u32(0x8000));
                let out = out.as_mut_ptr().cast::<u16>().add(4 * half);
                vst1_u16(out, vshrn_n_u32::<16>(rounded));
            }
        }
    }
    #[inline(always)]
    fn store_i8(self, v: F, out: &mut [i8]) {
        assert!(Self::N <= out.len());
        // SAFETY: see above.
        unsafe { vst1_s8(out.as_mut_ptr(), bytes(v)) }
    }
    #[inline(always)]
    fn store_u8(self, v: F, out: &mut [u8]) {
        assert!(Self::N <= out.len());
        // SAFETY: see above. Adding 128 to a byte is turning its highest bit over.
        unsafe {
            vst1_s8(
                out.as_mut_ptr().cast(),
                veor_s8(bytes(v), vdup_n_s8(i8::MIN)),
            )
        }
    }
    #[inline(always)]
    fn store_i16(self, v: F, out: &mut [i16]) {
        assert!(Self::N <= out.len());
        // SAFETY: see above.
        unsafe { vst1q_s16(out.as_mut_ptr(), words(v)) }
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        lanewise!(vaddq_f32, a, b)
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        lanewise!(vsubq_f32, a, b)
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        lanewise!(vmulq_f32, a, b)
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        lanewise!(vfmaq_f32, c, a, b)
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        // Not `fmax`, which gives NaN where either is: here a comparison with one is false, so b.
        let greater: Self::U = lanewise!(vcgtq_f32, a, b);
        lanewise!(vbslq_f32, greater, a, b)
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        let less: Self::U = lanewise!(vcltq_f32, a, b);
        lanewise!(vbslq_f32, less, a, b)
    }
    #[inline(always)]
    fn recip(self, x: F) -> F {
        let one = Lanes::splat(self, 1.0);
        lanewise!(vdivq_f32, one, x)
    }
    #[inline(always)]
    fn round(self, x: F) -> F {
        lanewise!(vrndnq_f32, x)
    }
    #[inline(always)]
    fn scale(self, x: F, n: F) -> F {
        // SAFETY: see above. n more in the exponent.
        from_fn(|half| unsafe {
            let exponent = vshlq_n_s32::<23>(vcvtnq_s32_f32(n[half]));
            vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x[half]), exponent))
        })
    }
    #[inline(always)]
    fn blend(self, bits: u32, a: F, b: F) -> F {
        const LANES: [[u32; 4]; 2] = [[1, 2, 4, 8], [16, 32, 64, 128]];
        // SAFETY: see above.
        let chosen: Self::U = from_fn(|half| unsafe {
            vtstq_u32(vld1q_u32(LANES[half].as_ptr()), vdupq_n_u32(bits))
        });
        lanewise!(vbslq_f32, chosen, b, a)
    }
    #[inline(always)]
    fn no_magnitude(self) -> Self::U {
        // SAFETY: see above.
        [unsafe { vdupq_n_u32(0) }; 2]
    }
    #[inline(always)]
    fn magnitude(self, most: Self::U, x: F) -> Self::U {
        // SAFETY: see above.
        from_fn(|half| unsafe {
            let magnitude = vandq_u32(vreinterpretq_u32_f32(x[half]), vdupq_n_u32(0x7FFF_FFFF));
            vmaxq_u32(most[half], magnitude)
        })
    }
    #[inline(always)]
    fn greatest(self, most: Self::U) -> f32 {
        // SAFETY: see above.
        f32::from_bits(unsafe { vmaxvq_u32(vmaxq_u32(most[0], most[1])) })
    }
    #[inline(always)]
    fn sum(self, v: F) -> f32 {
        // SAFETY: see above.
        unsafe { vaddvq_f32(vaddq_f32(v[0], v[1])) }
    }
    #[inline(always)]
    fn most(self, v: F) -> f32 {
        // SAFETY: see above.
        unsafe { vmaxvq_f32(v[0]).max(vmaxvq_f32(v[1])) }
    }
}

/// Eight whole numbers as i16, rounded half to even.
#[inline(always)]
fn words(v: F) -> int16x8_t {
    // SAFETY: NEON is part of every aarch64.
    let [low, high] = v.map(|v| unsafe { vqmovn_s32(vcvtnq_s32_f32(v)) });
    // SAFETY: as above.
    unsafe { vcombine_s16(low, high) }
}

/// The same as i8.
#[inline(always)]
fn bytes(v: F) -> int8x8_t {
    // SAFETY: NEON is part of every aarch64.
    unsafe { vqmovn_s16(words(v)) }
}
