//! Kernels without vector instructions: the oracle, the fallback, and the emulation of `vpdpbusd`.

#![allow(unsafe_code)] // The trait's pointer loads, here over fixed-size arrays.

use crate::kernel::{Kernel, Op};

/// The oracle: a plain triple loop over row-major `a` (rows × k) and `b` (columns × k), summed in
/// i64. Too slow for anything but tests; short enough to be obviously right.
pub fn oracle(a: &[i8], b: &[i8], k: usize) -> Vec<i64> {
    let mut out = Vec::new();
    for row in a.chunks_exact(k) {
        for column in b.chunks_exact(k) {
            out.push(
                row.iter()
                    .zip(column)
                    .map(|(&x, &y)| i64::from(x) * i64::from(y))
                    .sum(),
            );
        }
    }
    out
}

const NR: usize = 16;

/// i8 · i8 → i32 in plain Rust, on every CPU.
#[derive(Clone, Copy)]
pub struct ScalarInt8;

impl Kernel for ScalarInt8 {
    const NAME: &'static str = "scalar-i8";
    const MR: usize = 4;
    const NR: usize = NR;
    const K_STEP: usize = 1;
    const FMA: bool = PortableF32::FMA;
    type Left = i8;
    type Right = i8;
    type Acc = i32;
    type LeftVec = i8;
    type RightVec = [i8; NR];
    type AccVec = [i32; NR];
    type Float = PortableF32;

    fn float(self) -> PortableF32 {
        PortableF32
    }
    #[inline(always)]
    fn vectorize<O: Op>(self, op: O) -> O::Output {
        op.run()
    }
    #[inline(always)]
    fn zero(self) -> [i32; NR] {
        [0; NR]
    }
    #[inline(always)]
    unsafe fn splat(self, left: *const i8) -> i8 {
        // SAFETY: the caller gives one readable element.
        unsafe { *left }
    }
    #[inline(always)]
    unsafe fn load(self, right: *const i8) -> [i8; NR] {
        // SAFETY: the caller gives NR readable elements; i8 has no alignment.
        unsafe { *right.cast() }
    }
    #[inline(always)]
    fn dot(self, sum: [i32; NR], left: i8, right: [i8; NR]) -> [i32; NR] {
        std::array::from_fn(|c| sum[c] + i32::from(left) * i32::from(right[c]))
    }
    #[inline(always)]
    unsafe fn store(self, sum: [i32; NR], out: *mut i32) {
        // SAFETY: the caller gives NR writable elements.
        unsafe { out.cast::<[i32; NR]>().write(sum) }
    }
}

/// `vpdpbusd` in plain Rust: u8 · i8 in quads, with the packing and the 128 · Σ weights correction
/// of the VNNI kernels, so that both are tested on machines that lack the instruction.
#[derive(Clone, Copy)]
pub struct EmulatedDpbusd;

impl Kernel for EmulatedDpbusd {
    const NAME: &'static str = "emulated-u8i8-dpbusd";
    const MR: usize = 12;
    const NR: usize = 2 * NR;
    const K_STEP: usize = 4;
    const FMA: bool = PortableF32::FMA;
    type Left = u8;
    type Right = i8;
    type Acc = i32;
    type LeftVec = [u8; 4];
    type RightVec = [[i8; 4]; 2 * NR];
    type AccVec = [i32; 2 * NR];
    type Float = PortableF32;

    fn float(self) -> PortableF32 {
        PortableF32
    }
    #[inline(always)]
    fn vectorize<O: Op>(self, op: O) -> O::Output {
        op.run()
    }
    #[inline(always)]
    fn zero(self) -> [i32; 2 * NR] {
        [0; 2 * NR]
    }
    #[inline(always)]
    unsafe fn splat(self, left: *const u8) -> [u8; 4] {
        // SAFETY: the caller gives K_STEP = 4 readable elements; u8 has no alignment.
        unsafe { *left.cast() }
    }
    #[inline(always)]
    unsafe fn load(self, right: *const i8) -> [[i8; 4]; 2 * NR] {
        // SAFETY: the caller gives NR · K_STEP readable elements; i8 has no alignment.
        unsafe { *right.cast() }
    }
    #[inline(always)]
    fn dot(self, mut sum: Self::AccVec, left: [u8; 4], right: Self::RightVec) -> Self::AccVec {
        for (sum, quad) in sum.iter_mut().zip(right) {
            for (a, b) in left.into_iter().zip(quad) {
                *sum += i32::from(a) * i32::from(b);
            }
        }
        sum
    }
    #[inline(always)]
    unsafe fn store(self, sum: Self::AccVec, out: *mut i32) {
        // SAFETY: the caller gives NR writable elements.
        unsafe { out.cast::<[i32; 2 * NR]>().write(sum) }
    }
}

/// f32 over arrays of 16: what the compiler makes of it (SSE2 on x86-64, NEON `fmla` on aarch64).
#[derive(Clone, Copy)]
pub struct PortableF32;

impl Kernel for PortableF32 {
    const NAME: &'static str = "portable-f32";
    const MR: usize = 4;
    const NR: usize = NR;
    const K_STEP: usize = 1;
    // Without the instruction, `mul_add` is a call of some 20 ns.
    const FMA: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));
    type Left = f32;
    type Right = f32;
    type Acc = f32;
    type LeftVec = f32;
    type RightVec = [f32; NR];
    type AccVec = [f32; NR];
    type Float = Self;

    fn float(self) -> Self {
        self
    }
    #[inline(always)]
    fn vectorize<O: Op>(self, op: O) -> O::Output {
        op.run()
    }
    #[inline(always)]
    fn zero(self) -> [f32; NR] {
        [0.0; NR]
    }
    #[inline(always)]
    unsafe fn splat(self, left: *const f32) -> f32 {
        // SAFETY: the caller gives one readable element.
        unsafe { *left }
    }
    #[inline(always)]
    unsafe fn load(self, right: *const f32) -> [f32; NR] {
        // SAFETY: the caller gives NR readable elements of an f32 slice.
        unsafe { *right.cast() }
    }
    #[inline(always)]
    fn dot(self, sum: [f32; NR], left: f32, right: [f32; NR]) -> [f32; NR] {
        std::array::from_fn(|c| super::mul_add::<Self>(left, right[c], sum[c]))
    }
    #[inline(always)]
    unsafe fn store(self, sum: [f32; NR], out: *mut f32) {
        // SAFETY: the caller gives NR writable elements.
        unsafe { out.cast::<[f32; NR]>().write(sum) }
    }
}
