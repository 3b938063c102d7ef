//! AVX2 on x86-64: i8 by `vpmaddwd` on operands widened to i16, and f32 by FMA.
//!
//! 6 × 16 tile: 12 accumulators, 2 registers of weights, 1 broadcast, 1 product = all 16 registers.

#![allow(unsafe_code)] // Intrinsics need a function compiled for AVX2; the token proves the CPU has it.

use crate::kernel::lanes::Lanes;
use crate::kernel::tile::{Dot, Tile, by_dots};
use crate::kernel::{Inside, Kernel, Op};
use crate::quant::f16::F16;
use crate::quant::{Bf16, Plain};
#[allow(clippy::wildcard_imports)] // Intrinsics say by name where they come from.
use std::arch::x86_64::*;

/// Exact i8 products: |a · b + a' · b'| ≤ 2 · 127² fits `vpmaddwd`'s i32 with room for any K.
#[derive(Clone, Copy)]
pub struct Avx2Int8(Avx2F32);

impl Avx2Int8 {
    /// The token, if this CPU has AVX2 and FMA.
    pub fn detect() -> Option<Self> {
        Avx2F32::detect().map(Self)
    }
}

impl Kernel for Avx2Int8 {
    const NAME: &'static str = "x86_64-i8-avx2-vpmaddwd";
    const MR: usize = 6;
    const NR: usize = 16;
    const K_STEP: usize = 2;
    type Left = i16;
    type Right = i16;
    type Acc = i32;
    type Float = Avx2F32;
    type Element = f32;
    type Attend = Avx2F32;

    fn float(self) -> Avx2F32 {
        self.0
    }
    fn attend(self) -> Avx2F32 {
        self.float()
    }
    #[inline(always)]
    fn vectorize<O: Op<Self>>(self, op: O) -> O::Output {
        // SAFETY: the token proves every feature that `with_avx2` enables; this is `vectorize`.
        unsafe { with_avx2(&Inside::new(self), op) }
    }
    #[inline(always)]
    unsafe fn multiply(self, tile: Tile<'_, Self>) {
        // SAFETY: the caller's.
        unsafe { by_dots(self, tile) }
    }
}

impl Dot for Avx2Int8 {
    type LeftVec = __m256i;
    type RightVec = [__m256i; 2];
    type AccVec = [__m256i; 2];

    #[inline(always)]
    fn zero(self) -> [__m256i; 2] {
        // SAFETY: the token proves AVX2.
        [unsafe { _mm256_setzero_si256() }; 2]
    }
    #[inline(always)]
    unsafe fn splat(self, left: *const i16) -> __m256i {
        // SAFETY: the caller gives 2 readable i16 = one unaligned i32; the token proves AVX2.
        unsafe { _mm256_set1_epi32(left.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn load(self, right: *const i16) -> [__m256i; 2] {
        // SAFETY: the caller gives 16 · 2 readable i16 = two registers; the token proves AVX2.
        unsafe {
            [
                _mm256_loadu_si256(right.cast()),
                _mm256_loadu_si256(right.add(16).cast()),
            ]
        }
    }
    #[inline(always)]
    fn dot(self, sum: [__m256i; 2], left: __m256i, right: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: the token proves AVX2.
        unsafe {
            [
                _mm256_add_epi32(sum[0], _mm256_madd_epi16(left, right[0])),
                _mm256_add_epi32(sum[1], _mm256_madd_epi16(left, right[1])),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store(self, sum: [__m256i; 2], out: *mut i32) {
        // SAFETY: the caller gives 16 writable i32 = two registers; the token proves AVX2.
        unsafe {
            _mm256_storeu_si256(out.cast(), sum[0]);
            _mm256_storeu_si256(out.add(8).cast(), sum[1]);
        }
    }
}

/// f32 with fused multiply-add.
#[derive(Clone, Copy)]
pub struct Avx2F32(());

impl Avx2F32 {
    /// The token, if this CPU has AVX2, FMA and F16C; none has the first two without the third.
    pub fn detect() -> Option<Self> {
        let has = std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("fma")
            && std::arch::is_x86_feature_detected!("f16c");
        has.then_some(Self(()))
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn with_avx2<K: Kernel, O: Op<K>>(inside: &Inside<K>, op: O) -> O::Output {
    op.run(inside)
}

impl Kernel for Avx2F32 {
    const NAME: &'static str = "x86_64-f32-avx2-fma";
    const MR: usize = 6;
    const NR: usize = 16;
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
        self.float()
    }
    #[inline(always)]
    fn vectorize<O: Op<Self>>(self, op: O) -> O::Output {
        // SAFETY: the token proves every feature that `with_avx2` enables; this is `vectorize`.
        unsafe { with_avx2(&Inside::new(self), op) }
    }
    #[inline(always)]
    unsafe fn multiply(self, tile: Tile<'_, Self>) {
        // SAFETY: the caller's.
        unsafe { by_dots(self, tile) }
    }
}

impl Dot for Avx2F32 {
    type LeftVec = __m256;
    type RightVec = [__m256; 2];
    type AccVec = [__m256; 2];

    #[inline(always)]
    fn zero(self) -> [__m256; 2] {
        // SAFETY: the token proves AVX2.
        [unsafe { _mm256_setzero_ps() }; 2]
    }
    #[inline(always)]
    unsafe fn splat(self, left: *const f32) -> __m256 {
        // SAFETY: the caller gives one readable f32; the token proves AVX2.
        unsafe { _mm256_set1_ps(*left) }
    }
    #[inline(always)]
    unsafe fn load(self, right: *const f32) -> [__m256; 2] {
        // SAFETY: the caller gives 16 readable f32 = two registers; the token proves AVX2.
        unsafe { [_mm256_loadu_ps(right), _mm256_loadu_ps(right.add(8))] }
    }
    #[inline(always)]
    fn dot(self, sum: [__m256; 2], left: __m256, right: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: the token proves FMA.
        unsafe {
            [
                _mm256_fmadd_ps(left, right[0], sum[0]),
                _mm256_fmadd_ps(left, right[1], sum[1]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store(self, sum: [__m256; 2], out: *mut f32) {
        // SAFETY: the caller gives 16 writable f32 = two registers; the token proves AVX2.
        unsafe {
            _mm256_storeu_ps(out, sum[0]);
            _mm256_storeu_ps(out.add(8), sum[1]);
        }
    }
}

// SAFETY of all intrinsics below: the token proves AVX2, FMA and F16C; memory is checked to be there.
impl Lanes for Avx2F32 {
    const N: usize = 8;
    type F = __m256;
    type U = __m256i;

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, x: &[f32]) -> __m256 {
        assert!(Self::N <= x.len());
        // SAFETY: see above.
        unsafe { _mm256_loadu_ps(x.as_ptr()) }
    }
    #[inline(always)]
    fn load_bf16(self, x: &[Bf16]) -> __m256 {
        assert!(Self::N <= x.len());
        // SAFETY: see above; Bf16 is a transparent u16.
        unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    fn load_f16(self, x: &[F16]) -> __m256 {
        assert!(Self::N <= x.len());
        // SAFETY: see above; F16 is a transparent u16.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast())) }
    }
    #[inline(always)]
    fn unpack_i8(self, k_step: usize, groups: &[u8], pairs: &[u8], out: &mut [i8]) {
        assert!(k_step == 4 && groups.len() == 16 && out.len() == 2 * pairs.len());
        // SAFETY: see above; chunks are as long as what is loaded and stored.
        unsafe {
            let (low, high) = (self.terms(groups), self.terms(&groups[8..]));
            // To all four bytes of a column: no product exceeds one.
            let low_minus = _mm256_mullo_epi32(low.1, _mm256_set1_epi32(0x0101_0101));
            let high_minus = _mm256_mullo_epi32(high.1, _mm256_set1_epi32(0x0101_0101));
            let nibble = _mm256_set1_epi8(15);
            for (pairs, out) in pairs.chunks_exact(32).zip(out.chunks_exact_mut(64)) {
                let pairs = _mm256_loadu_si256(pairs.as_ptr().cast());
                let codes = _mm256_and_si256(pairs, nibble);
                let quanta = _mm256_sub_epi8(_mm256_mullo_epi16(codes, low.0), low_minus);
                _mm256_storeu_si256(out.as_mut_ptr().cast(), quanta);
                let codes = _mm256_and_si256(_mm256_srli_epi16::<4>(pairs), nibble);
                let quanta = _mm256_sub_epi8(_mm256_mullo_epi16(codes, high.0), high_minus);
                _mm256_storeu_si256(out.as_mut_ptr().add(32).cast(), quanta);
            }
        }
    }
    #[inline(always)]
    fn unpack_i16(self, k_step: usize, groups: &[u8], pairs: &[u8], out: &mut [i16]) {
        assert!(k_step == 2 && groups.len() == 16 && out.len() == 2 * pairs.len());
        // SAFETY: see above; chunks are as long as what is loaded and stored.
        unsafe {
            let (low, high) = (self.terms(groups), self.terms(&groups[8..]));
            let low_minus = _mm256_mullo_epi32(low.1, _mm256_set1_epi32(0x0001_0001));
            let high_minus = _mm256_mullo_epi32(high.1, _mm256_set1_epi32(0x0001_0001));
            for (pairs, out) in pairs.chunks_exact(16).zip(out.chunks_exact_mut(32)) {
                let pairs = _mm256_cvtepu8_epi16(_mm_loadu_si128(pairs.as_ptr().cast()));
                let codes = _mm256_and_si256(pairs, _mm256_set1_epi16(15));
                let quanta = _mm256_sub_epi16(_mm256_mullo_epi16(codes, low.0), low_minus);
                _mm256_storeu_si256(out.as_mut_ptr().cast(), quanta);
                let codes = _mm256_srli_epi16::<4>(pairs);
                let quanta = _mm256_sub_epi16(_mm256_mullo_epi16(codes, high.0), high_minus);
                _mm256_storeu_si256(out.as_mut_ptr().add(16).cast(), quanta);
            }
        }
    }
    #[inline(always)]
    fn load_i32(self, x: &[i32], minus: Option<&[i32]>) -> __m256 {
        assert!(Self::N <= x.len() && minus.is_none_or(|minus| Self::N <= minus.len()));
        // SAFETY: see above.
        unsafe {
            let mut x = _mm256_loadu_si256(x.as_ptr().cast());
            if let Some(minus) = minus {
                x = _mm256_sub_epi32(x, _mm256_loadu_si256(minus.as_ptr().cast()));
            }
            _mm256_cvtepi32_ps(x)
        }
    }
    #[inline(always)]
    fn store(self, v: __m256, out: &mut [f32]) {
        assert!(Self::N <= out.len());
        // SAFETY: see above.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn store_bf16(self, v: __m256, out: &mut [Bf16]) {
        let mut lanes = [0.0; Self::N];
        Lanes::store(self, v, &mut lanes);
        for (out, v) in out[..Self::N].iter_mut().zip(lanes) {
            *out = Bf16::of(v);
        }
    }
    #[inline(always)]
    fn store_i8(self, v: __m256, out: &mut [i8]) {
        assert!(Self::N <= out.len());
        // SAFETY: see above.
        unsafe {
            let words = self.words(v);
            _mm_storel_epi64(out.as_mut_ptr().cast(), _mm_packs_epi16(words, words));
        }
    }
    #[inline(always)]
    fn store_u8(self, v: __m256, out: &mut [u8]) {
        assert!(Self::N <= out.len());
        // SAFETY: see above. Adding 128 to a byte is turning its highest bit over.
        unsafe {
            let words = self.words(v);
            let bytes = _mm_xor_si128(_mm_packs_epi16(words, words), _mm_set1_epi8(i8::MIN));
            _mm_storel_epi64(out.as_mut_ptr().cast(), bytes);
        }
    }
    #[inline(always)]
    fn store_i16(self, v: __m256, out: &mut [i16]) {
        assert!(Self::N <= out.len());
        // SAFETY: see above.
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), self.words(v)) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    fn recip(self, x: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_div_ps(_mm256_set1_ps(1.0), x) }
    }
    #[inline(always)]
    fn round(self, x: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
    }
    #[inline(always)]
    fn scale(self, x: __m256, n: __m256) -> __m256 {
        // SAFETY: see above. n more in the exponent.
        unsafe {
            let exponent = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(n));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), exponent))
        }
    }
    #[inline(always)]
    fn blend(self, bits: u32, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above. The highest bit of a lane chooses.
        unsafe {
            let highest = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
            let bits = _mm256_sllv_epi32(_mm256_set1_epi32(bits.cast_signed()), highest);
            _mm256_blendv_ps(a, b, _mm256_castsi256_ps(bits))
        }
    }
    #[inline(always)]
    fn near(self, x: &[f32], at: &[u32]) -> __m256 {
        assert!(Self::N <= x.len() && Self::N <= at.len());
        // SAFETY: see above.
        unsafe {
            let places = _mm256_loadu_si256(at.as_ptr().cast());
            let first = _mm256_set1_epi32(at[0].cast_signed());
            _mm256_permutevar8x32_ps(_mm256_loadu_ps(x.as_ptr()), _mm256_sub_epi32(places, first))
        }
    }
    #[inline(always)]
    fn no_magnitude(self) -> __m256i {
        // SAFETY: see above.
        unsafe { _mm256_setzero_si256() }
    }
    #[inline(always)]
    fn magnitude(self, most: __m256i, x: __m256) -> __m256i {
        // SAFETY: see above.
        unsafe {
            let magnitude = _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(i32::MAX));
            _mm256_max_epu32(most, magnitude)
        }
    }
    #[inline(always)]
    fn greatest(self, most: __m256i) -> f32 {
        // SAFETY: see above; a register has 8 lanes of u32.
        let lanes = unsafe { std::mem::transmute::<__m256i, [u32; Self::N]>(most) };
        f32::from_bits(lanes.into_iter().fold(0, u32::max))
    }
    #[inline(always)]
    fn sum(self, v: __m256) -> f32 {
        // SAFETY: see above.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    fn most(self, v: __m256) -> f32 {
        // SAFETY: see above.
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }
}

impl Avx2F32 {
    /// Of 8 columns, an i32 each: `times`, as both words, and `times · offset` (see
    /// [`Group`](crate::quant::int4::Group)).
    #[inline(always)]
    fn terms(self, groups: &[u8]) -> (__m256i, __m256i) {
        assert!(8 <= groups.len());
        // SAFETY: the token proves AVX2; 8 bytes are there.
        unsafe {
            let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(groups.as_ptr().cast()));
            let times = _mm256_and_si256(bytes, _mm256_set1_epi32(15));
            let times = _mm256_add_epi32(times, _mm256_set1_epi32(1));
            let minus = _mm256_mullo_epi16(times, _mm256_srli_epi32::<4>(bytes));
            (
                _mm256_or_si256(times, _mm256_slli_epi32::<16>(times)),
                minus,
            )
        }
    }

    /// Eight whole numbers as i16.
    #[inline(always)]
    fn words(self, v: __m256) -> __m128i {
        // SAFETY: the token proves AVX2.
        unsafe {
            let whole = _mm256_cvtps_epi32(v);
            let (low, high) = (
                _mm256_castsi256_si128(whole),
                _mm256_extracti128_si256::<1>(whole),
            );
            _mm_packs_epi32(low, high)
        }
    }
}
