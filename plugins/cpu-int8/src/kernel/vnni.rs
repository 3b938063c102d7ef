//! `vpdpbusd` on x86-64: 512-bit (AVX-512 VNNI) and 256-bit (AVX-VNNI).
//!
//! The instruction multiplies u8 by i8, so activations are stored as a + 128 and the finished sum
//! is 128 · Σ weights too large; the packed weights carry that constant for each column. It does
//! not saturate in between, so both kernels are exact.
//!
//! Packing and correction are also tested by [`super::scalar::EmulatedDpbusd`], on machines that
//! have neither instruction.

#![allow(unsafe_code)] // Intrinsics need a function compiled for VNNI; the token proves the CPU has it.

use crate::kernel::avx2::Avx2F32;
use crate::kernel::avx512::Avx512F32;
use crate::kernel::tile::{Dot, Tile, by_dots};
use crate::kernel::{Inside, Kernel, Op};
use std::arch::x86_64::{
    __m256i, __m512i, _mm256_dpbusd_avx_epi32, _mm256_loadu_si256, _mm256_set1_epi32,
    _mm256_setzero_si256, _mm256_storeu_si256, _mm512_dpbusd_epi32, _mm512_loadu_si512,
    _mm512_set1_epi32, _mm512_setzero_si512, _mm512_storeu_si512,
};

/// 12 × 32 tile: 24 accumulators, 2 registers of weights, the broadcast as a memory operand.
#[derive(Clone, Copy)]
pub struct Avx512Vnni(Avx512F32);

impl Avx512Vnni {
    /// The token, if this CPU has AVX-512 VNNI (and what the f32 parts need).
    pub fn detect() -> Option<Self> {
        Avx512F32::detect()
            .filter(|_| std::arch::is_x86_feature_detected!("avx512vnni"))
            .map(Self)
    }
}

#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn with_avx512<K: Kernel, O: Op<K>>(inside: &Inside<K>, op: O) -> O::Output {
    op.run(inside)
}

impl Kernel for Avx512Vnni {
    const NAME: &'static str = "x86_64-i8-avx512vnni-vpdpbusd";
    const MR: usize = 12;
    const NR: usize = 32;
    const K_STEP: usize = 4;
    type Left = u8;
    type Right = i8;
    type Acc = i32;
    type Float = Avx512F32;
    type Element = f32;
    type Attend = Avx512F32;

    fn float(self) -> Avx512F32 {
        self.0
    }
    fn attend(self) -> Avx512F32 {
        self.float()
    }
    #[inline(always)]
    fn vectorize<O: Op<Self>>(self, op: O) -> O::Output {
        // SAFETY: the token proves every feature that `with_avx512` enables.
        unsafe { with_avx512(&Inside::new(self), op) }
    }
    #[inline(always)]
    unsafe fn multiply(self, tile: Tile<'_, Self>) {
        // SAFETY: the caller's.
        unsafe { by_dots(self, tile) }
    }
}

impl Dot for Avx512Vnni {
    type LeftVec = __m512i;
    type RightVec = [__m512i; 2];
    type AccVec = [__m512i; 2];

    #[inline(always)]
    fn zero(self) -> [__m512i; 2] {
        // SAFETY: the token proves AVX-512 F.
        [unsafe { _mm512_setzero_si512() }; 2]
    }
    #[inline(always)]
    unsafe fn splat(self, left: *const u8) -> __m512i {
        // SAFETY: the caller gives 4 readable u8 = one unaligned i32; the token proves AVX-512 F.
        unsafe { _mm512_set1_epi32(left.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn load(self, right: *const i8) -> [__m512i; 2] {
        // SAFETY: the caller gives 32 · 4 readable i8 = two registers; the token proves AVX-512 F.
        unsafe {
            [
                _mm512_loadu_si512(right.cast()),
                _mm512_loadu_si512(right.add(64).cast()),
            ]
        }
    }
    #[inline(always)]
    fn dot(self, sum: [__m512i; 2], left: __m512i, right: [__m512i; 2]) -> [__m512i; 2] {
        // SAFETY: the token proves AVX-512 VNNI.
        unsafe {
            [
                _mm512_dpbusd_epi32(sum[0], left, right[0]),
                _mm512_dpbusd_epi32(sum[1], left, right[1]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store(self, sum: [__m512i; 2], out: *mut i32) {
        // SAFETY: the caller gives 32 writable i32 = two registers; the token proves AVX-512 F.
        unsafe {
            _mm512_storeu_si512(out.cast(), sum[0]);
            _mm512_storeu_si512(out.add(16).cast(), sum[1]);
        }
    }
}

/// 6 × 16 tile: 12 accumulators, 2 registers of weights, 1 broadcast of the 16 registers.
#[derive(Clone, Copy)]
pub struct AvxVnni(Avx2F32);

impl AvxVnni {
    /// The token, if this CPU has AVX-VNNI (and AVX2 and FMA for the f32 parts).
    pub fn detect() -> Option<Self> {
        Avx2F32::detect()
            .filter(|_| std::arch::is_x86_feature_detected!("avxvnni"))
            .map(Self)
    }
}

#[target_feature(enable = "avx2,fma,avxvnni")]
fn with_avxvnni<K: Kernel, O: Op<K>>(inside: &Inside<K>, op: O) -> O::Output {
    op.run(inside)
}

impl Kernel for AvxVnni {
    const NAME: &'static str = "x86_64-i8-avxvnni-vpdpbusd";
    const MR: usize = 6;
    const NR: usize = 16;
    const K_STEP: usize = 4;
    type Left = u8;
    type Right = i8;
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
        // SAFETY: the token proves every feature that `with_avxvnni` enables.
        unsafe { with_avxvnni(&Inside::new(self), op) }
    }
    #[inline(always)]
    unsafe fn multiply(self, tile: Tile<'_, Self>) {
        // SAFETY: the caller's.
        unsafe { by_dots(self, tile) }
    }
}

impl Dot for AvxVnni {
    type LeftVec = __m256i;
    type RightVec = [__m256i; 2];
    type AccVec = [__m256i; 2];

    #[inline(always)]
    fn zero(self) -> [__m256i; 2] {
        // SAFETY: the token proves AVX2.
        [unsafe { _mm256_setzero_si256() }; 2]
    }
    #[inline(always)]
    unsafe fn splat(self, left: *const u8) -> __m256i {
        // SAFETY: the caller gives 4 readable u8 = one unaligned i32; the token proves AVX2.
        unsafe { _mm256_set1_epi32(left.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn load(self, right: *const i8) -> [__m256i; 2] {
        // SAFETY: the caller gives 16 · 4 readable i8 = two registers; the token proves AVX2.
        unsafe {
            [
                _mm256_loadu_si256(right.cast()),
                _mm256_loadu_si256(right.add(32).cast()),
            ]
        }
    }
    #[inline(always)]
    fn dot(self, sum: [__m256i; 2], left: __m256i, right: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: the token proves AVX-VNNI.
        unsafe {
            [
                _mm256_dpbusd_avx_epi32(sum[0], left, right[0]),
                _mm256_dpbusd_avx_epi32(sum[1], left, right[1]),
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
