//! f32 by 512-bit FMA, and 16 lanes of it.
//!
//! 12 × 32 tile: 24 accumulators, 2 registers of weights, the broadcast as a memory operand.

#![allow(unsafe_code)] // Intrinsics need a function compiled for AVX-512; the token proves the CPU has it.

use crate::kernel::avx2::Avx2F32;
use crate::kernel::lanes::Lanes;
use crate::kernel::tile::{Dot, Tile, by_dots};
use crate::kernel::{Inside, Kernel, Op};
use crate::quant::Bf16;
use crate::quant::f16::F16;
#[allow(clippy::wildcard_imports)] // Intrinsics say by name where they come from.
use std::arch::x86_64::*;

/// f32 with fused multiply-add.
#[derive(Clone, Copy)]
pub struct Avx512F32(());

impl Avx512F32 {
    /// The token, if this CPU has AVX-512 F, BW, DQ and VL (and AVX2 and FMA).
    pub fn detect() -> Option<Self> {
        let has = std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512bw")
            && std::arch::is_x86_feature_detected!("avx512dq")
            && std::arch::is_x86_feature_detected!("avx512vl");
        Avx2F32::detect().filter(|_| has).map(|_| Self(()))
    }
}

#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn with_avx512<K: Kernel, O: Op<K>>(inside: &Inside<K>, op: O) -> O::Output {
    op.run(inside)
}

impl Kernel for Avx512F32 {
    const NAME: &'static str = "x86_64-f32-avx512-fma";
    const MR: usize = 12;
    const NR: usize = 32;
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
        // SAFETY: the token proves every feature that `with_avx512` enables; this is `vectorize`.
        unsafe { with_avx512(&Inside::new(self), op) }
    }
    #[inline(always)]
    unsafe fn multiply(self, tile: Tile<'_, Self>) {
        // SAFETY: the caller's.
        unsafe { by_dots(self, tile) }
    }
}

impl Dot for Avx512F32 {
    type LeftVec = __m512;
    type RightVec = [__m512; 2];
    type AccVec = [__m512; 2];

    #[inline(always)]
    fn zero(self) -> [__m512; 2] {
        // SAFETY: the token proves AVX-512 F.
        [unsafe { _mm512_setzero_ps() }; 2]
    }
    #[inline(always)]
    unsafe fn splat(self, left: *const f32) -> __m512 {
        // SAFETY: the caller gives one readable f32; the token proves AVX-512 F.
        unsafe { _mm512_set1_ps(*left) }
    }
    #[inline(always)]
    unsafe fn load(self, right: *const f32) -> [__m512; 2] {
        // SAFETY: the caller gives 32 readable f32 = two registers; the token proves AVX-512 F.
        unsafe { [_mm512_loadu_ps(right), _mm512_loadu_ps(right.add(16))] }
    }
    #[inline(always)]
    fn dot(self, sum: [__m512; 2], left: __m512, right: [__m512; 2]) -> [__m512; 2] {
        // SAFETY: the token proves AVX-512 F.
        unsafe {
            [
                _mm512_fmadd_ps(left, right[0], sum[0]),
                _mm512_fmadd_ps(left, right[1], sum[1]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store(self, sum: [__m512; 2], out: *mut f32) {
        // SAFETY: the caller gives 32 writable f32 = two registers; the token proves AVX-512 F.
        unsafe {
            _mm512_storeu_ps(out, sum[0]);
            _mm512_storeu_ps(out.add(16), sum[1]);
        }
    }
}

/// bf16 in pairs by `vdpbf16ps`, sums in f32. The tile is the f32 kernel's.
#[derive(Clone, Copy)]
pub struct Avx512Bf16(Avx512F32);

impl Avx512Bf16 {
    /// The token, if this CPU has AVX-512 BF16.
    pub fn detect() -> Option<Self> {
        Avx512F32::detect()
            .filter(|_| std::arch::is_x86_feature_detected!("avx512bf16"))
            .map(Self)
    }
}

#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn with_bf16<K: Kernel, O: Op<K>>(inside: &Inside<K>, op: O) -> O::Output {
    op.run(inside)
}

impl Kernel for Avx512Bf16 {
    const NAME: &'static str = "x86_64-bf16-avx512-vdpbf16ps";
    const MR: usize = 12;
    const NR: usize = 32;
    const K_STEP: usize = 2;
    type Left = Bf16;
    type Right = Bf16;
    type Acc = f32;
    type Float = Avx512F32;
    type Element = f32;
    type Attend = Avx512F32;

    fn float(self) -> Avx512F32 {
        self.0
    }
    fn attend(self) -> Avx512F32 {
        self.0
    }
    #[inline(always)]
    fn vectorize<O: Op<Self>>(self, op: O) -> O::Output {
        // SAFETY: the token proves every feature that `with_bf16` enables; this is `vectorize`.
        unsafe { with_bf16(&Inside::new(self), op) }
    }
    #[inline(always)]
    unsafe fn multiply(self, tile: Tile<'_, Self>) {
        // SAFETY: the caller's.
        unsafe { by_dots(self, tile) }
    }
}

impl Dot for Avx512Bf16 {
    type LeftVec = __m512i;
    type RightVec = [__m512i; 2];
    type AccVec = [__m512; 2];

    #[inline(always)]
    fn zero(self) -> [__m512; 2] {
        Dot::zero(self.0)
    }
    #[inline(always)]
    unsafe fn splat(self, left: *const Bf16) -> __m512i {
        // SAFETY: the caller gives 2 readable bf16 = one unaligned i32; the token proves AVX-512 F.
        unsafe { _mm512_set1_epi32(left.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn load(self, right: *const Bf16) -> [__m512i; 2] {
        // SAFETY: the caller gives 32 · 2 readable bf16 = two registers; the token proves AVX-512 F.
        unsafe {
            [
                _mm512_loadu_si512(right.cast()),
                _mm512_loadu_si512(right.add(32).cast()),
            ]
        }
    }
    #[inline(always)]
    fn dot(self, sum: [__m512; 2], left: __m512i, right: [__m512i; 2]) -> [__m512; 2] {
        // SAFETY: the token proves AVX-512 BF16; the types have the same bits.
        unsafe {
            let left = std::mem::transmute::<__m512i, __m512bh>(left);
            let right = right.map(|right| std::mem::transmute::<__m512i, __m512bh>(right));
            [
                _mm512_dpbf16_ps(sum[0], left, right[0]),
                _mm512_dpbf16_ps(sum[1], left, right[1]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store(self, sum: [__m512; 2], out: *mut f32) {
        // SAFETY: the caller's.
        unsafe { Dot::store(self.0, sum, out) }
    }
}

// SAFETY of all intrinsics below: the token proves AVX-512 F and BW; memory is checked to be there.
impl Lanes for Avx512F32 {
    const N: usize = 16;
    type F = __m512;
    type U = __m512i;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, x: &[f32]) -> __m512 {
        assert!(Self::N <= x.len());
        // SAFETY: see above.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }
    #[inline(always)]
    fn load_bf16(self, x: &[Bf16]) -> __m512 {
        assert!(Self::N <= x.len());
        // SAFETY: see above; Bf16 is a transparent u16.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    fn load_f16(self, x: &[F16]) -> __m512 {
        assert!(Self::N <= x.len());
        // SAFETY: see above; F16 is a transparent u16.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())) }
    }
    #[inline(always)]
    fn unpack_i8(self, k_step: usize, groups: &[u8], pairs: &[u8], out: &mut [i8]) {
        assert!(k_step == 4 && groups.len() == 32 && out.len() == 2 * pairs.len());
        // SAFETY: see above; chunks are as long as what is loaded and stored.
        unsafe {
            let (low, high) = (self.terms(groups), self.terms(&groups[16..]));
            // To all four bytes of a column: no product exceeds one.
            let low_minus = _mm512_mullo_epi32(low.1, _mm512_set1_epi32(0x0101_0101));
            let high_minus = _mm512_mullo_epi32(high.1, _mm512_set1_epi32(0x0101_0101));
            let nibble = _mm512_set1_epi8(15);
            for (pairs, out) in pairs.chunks_exact(64).zip(out.chunks_exact_mut(128)) {
                let pairs = _mm512_loadu_si512(pairs.as_ptr().cast());
                let codes = _mm512_and_si512(pairs, nibble);
                let quanta = _mm512_sub_epi8(_mm512_mullo_epi16(codes, low.0), low_minus);
                _mm512_storeu_si512(out.as_mut_ptr().cast(), quanta);
                let codes = _mm512_and_si512(_mm512_srli_epi16::<4>(pairs), nibble);
                let quanta = _mm512_sub_epi8(_mm512_mullo_epi16(codes, high.0), high_minus);
                _mm512_storeu_si512(out.as_mut_ptr().add(64).cast(), quanta);
            }
        }
    }
    #[inline(always)]
    fn load_i32(self, x: &[i32], minus: Option<&[i32]>) -> __m512 {
        assert!(Self::N <= x.len() && minus.is_none_or(|minus| Self::N <= minus.len()));
        // SAFETY: see above.
        unsafe {
            let mut x = _mm512_loadu_si512(x.as_ptr().cast());
            if let Some(minus) = minus {
                x = _mm512_sub_epi32(x, _mm512_loadu_si512(minus.as_ptr().cast()));
            }
            _mm512_cvtepi32_ps(x)
        }
    }
    #[inline(always)]
    fn store(self, v: __m512, out: &mut [f32]) {
        assert!(Self::N <= out.len());
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn store_bf16(self, v: __m512, out: &mut [Bf16]) {
        assert!(Self::N <= out.len());
        // SAFETY: see above; Bf16 is a transparent u16.
        unsafe {
            // As `Bf16::of`.
            let rounded = _mm512_add_epi32(_mm512_castps_si512(v), _mm512_set1_epi32(0x8000));
            let halves = _mm512_srli_epi32::<16>(rounded);
            _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(halves));
        }
    }
    #[inline(always)]
    fn store_i8(self, v: __m512, out: &mut [i8]) {
        assert!(Self::N <= out.len());
        // SAFETY: see above.
        unsafe {
            let bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v));
            _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
        }
    }
    #[inline(always)]
    fn store_u8(self, v: __m512, out: &mut [u8]) {
        assert!(Self::N <= out.len());
        // SAFETY: see above. Adding 128 to a byte is turning its highest bit over.
        unsafe {
            let bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v));
            let bytes = _mm_xor_si128(bytes, _mm_set1_epi8(i8::MIN));
            _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
        }
    }
    #[inline(always)]
    fn store_i16(self, v: __m512, out: &mut [i16]) {
        assert!(Self::N <= out.len());
        // SAFETY: see above.
        unsafe {
            let words = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(v));
            _mm256_storeu_si256(out.as_mut_ptr().cast(), words);
        }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn recip(self, x: __m512) -> __m512 {
        // SAFETY: see above. A division takes 16 cycles; 14 bits and one step of Newton's, 4.
        unsafe {
            let near = _mm512_rcp14_ps(x);
            let rest = _mm512_fnmadd_ps(x, near, _mm512_set1_ps(1.0));
            _mm512_fmadd_ps(near, rest, near)
        }
    }
    #[inline(always)]
    fn round(self, x: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
    }
    #[inline(always)]
    fn scale(self, x: __m512, n: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_scalef_ps(x, n) }
    }
    #[inline(always)]
    fn blend(self, bits: u32, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_mask_blend_ps(bits as u16, a, b) }
    }
    #[inline(always)]
    fn near(self, x: &[f32], at: &[u32]) -> __m512 {
        assert!(Self::N <= x.len() && Self::N <= at.len());
        // SAFETY: see above.
        unsafe {
            let places = _mm512_loadu_si512(at.as_ptr().cast());
            let first = _mm512_set1_epi32(at[0].cast_signed());
            _mm512_permutexvar_ps(_mm512_sub_epi32(places, first), _mm512_loadu_ps(x.as_ptr()))
        }
    }
    #[inline(always)]
    fn no_magnitude(self) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    fn magnitude(self, most: __m512i, x: __m512) -> __m512i {
        // SAFETY: see above.
        unsafe {
            let magnitude = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(i32::MAX));
            _mm512_max_epu32(most, magnitude)
        }
    }
    #[inline(always)]
    fn greatest(self, most: __m512i) -> f32 {
        // SAFETY: see above.
        f32::from_bits(unsafe { _mm512_reduce_max_epu32(most) })
    }
    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        // SAFETY: see above.
        unsafe { _mm512_reduce_add_ps(v) }
    }
    #[inline(always)]
    fn most(self, v: __m512) -> f32 {
        // SAFETY: see above.
        unsafe { _mm512_reduce_max_ps(v) }
    }
}

impl Avx512F32 {
    /// Of 16 columns, an i32 each: `times`, as both words, and `times · offset` (see
    /// [`Group`](crate::quant::int4::Group)).
    #[inline(always)]
    fn terms(self, groups: &[u8]) -> (__m512i, __m512i) {
        assert!(16 <= groups.len());
        // SAFETY: the token proves AVX-512 F and BW; 16 bytes are there.
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(groups.as_ptr().cast()));
            let times = _mm512_and_si512(bytes, _mm512_set1_epi32(15));
            let times = _mm512_add_epi32(times, _mm512_set1_epi32(1));
            let minus = _mm512_mullo_epi16(times, _mm512_srli_epi32::<4>(bytes));
            (
                _mm512_or_si512(times, _mm512_slli_epi32::<16>(times)),
                minus,
            )
        }
    }
}
