//! AVX2 on x86-64: i8 by `vpmaddwd` on operands widened to i16, and f32 by FMA.
//!
//! 6 × 16 tile: 12 accumulators, 2 registers of weights, 1 broadcast, 1 product = all 16 registers.

#![allow(unsafe_code)] // Intrinsics need a function compiled for AVX2; the token proves the CPU has it.

use crate::kernel::{Kernel, Op};
use std::arch::x86_64::{
    __m256, __m256i, _mm256_add_epi32, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256,
    _mm256_storeu_ps, _mm256_storeu_si256,
};

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
    const FMA: bool = true;
    type Left = i16;
    type Right = i16;
    type Acc = i32;
    type LeftVec = __m256i;
    type RightVec = [__m256i; 2];
    type AccVec = [__m256i; 2];
    type Float = Avx2F32;

    fn float(self) -> Avx2F32 {
        self.0
    }
    #[inline(always)]
    fn vectorize<O: Op>(self, op: O) -> O::Output {
        self.0.vectorize(op)
    }
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
    /// The token, if this CPU has AVX2 and FMA.
    pub fn detect() -> Option<Self> {
        let has = std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("fma");
        has.then_some(Self(()))
    }
}

#[target_feature(enable = "avx2,fma")]
fn with_avx2<O: Op>(op: O) -> O::Output {
    op.run()
}

impl Kernel for Avx2F32 {
    const NAME: &'static str = "x86_64-f32-avx2-fma";
    const MR: usize = 6;
    const NR: usize = 16;
    const K_STEP: usize = 1;
    const FMA: bool = true;
    type Left = f32;
    type Right = f32;
    type Acc = f32;
    type LeftVec = __m256;
    type RightVec = [__m256; 2];
    type AccVec = [__m256; 2];
    type Float = Self;

    fn float(self) -> Self {
        self
    }
    #[inline(always)]
    fn vectorize<O: Op>(self, op: O) -> O::Output {
        // SAFETY: the token proves AVX2 and FMA.
        unsafe { with_avx2(op) }
    }
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
