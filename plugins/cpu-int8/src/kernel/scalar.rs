//! Kernels without vector instructions: the oracle, the fallback, and the emulation of `vpdpbusd`.

#![allow(unsafe_code)] // The trait's pointer loads, here over fixed-size arrays.

use crate::kernel::lanes::Lanes;
use crate::kernel::tile::{Dot, Tile, by_dots};
use crate::kernel::{Inside, Kernel, Op};
use crate::quant::f16::F16;
use crate::quant::{Bf16, Plain};

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
        // SAFETY: this is `vectorize`.
        op.run(&unsafe { Inside::new(self) })
    }
    #[inline(always)]
    unsafe fn multiply(self, tile: Tile<'_, Self>) {
        // SAFETY: the caller's.
        unsafe { by_dots(self, tile) }
    }
}

impl Dot for ScalarInt8 {
    type LeftVec = i8;
    type RightVec = [i8; NR];
    type AccVec = [i32; NR];

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
    type Left = u8;
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
        // SAFETY: this is `vectorize`.
        op.run(&unsafe { Inside::new(self) })
    }
    #[inline(always)]
    unsafe fn multiply(self, tile: Tile<'_, Self>) {
        // SAFETY: the caller's.
        unsafe { by_dots(self, tile) }
    }
}

impl Dot for EmulatedDpbusd {
    type LeftVec = [u8; 4];
    type RightVec = [[i8; 4]; 2 * NR];
    type AccVec = [i32; 2 * NR];

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
        // SAFETY: this is `vectorize`.
        op.run(&unsafe { Inside::new(self) })
    }
    #[inline(always)]
    unsafe fn multiply(self, tile: Tile<'_, Self>) {
        // SAFETY: the caller's.
        unsafe { by_dots(self, tile) }
    }
}

impl Dot for PortableF32 {
    type LeftVec = f32;
    type RightVec = [f32; NR];
    type AccVec = [f32; NR];

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
        std::array::from_fn(|c| mul_add(left, right[c], sum[c]))
    }
    #[inline(always)]
    unsafe fn store(self, sum: [f32; NR], out: *mut f32) {
        // SAFETY: the caller gives NR writable elements.
        unsafe { out.cast::<[f32; NR]>().write(sum) }
    }
}

/// bf16 in pairs, as `vdpbf16ps` multiplies them, in plain Rust.
#[derive(Clone, Copy)]
pub struct PortableBf16;

impl Kernel for PortableBf16 {
    const NAME: &'static str = "portable-bf16";
    const MR: usize = 4;
    const NR: usize = NR;
    const K_STEP: usize = 2;
    type Left = Bf16;
    type Right = Bf16;
    type Acc = f32;
    type Float = PortableF32;
    type Element = f32;
    type Attend = PortableF32;

    fn float(self) -> PortableF32 {
        PortableF32
    }
    fn attend(self) -> PortableF32 {
        PortableF32
    }
    #[inline(always)]
    fn vectorize<O: Op<Self>>(self, op: O) -> O::Output {
        // SAFETY: this is `vectorize`.
        op.run(&unsafe { Inside::new(self) })
    }
    #[inline(always)]
    unsafe fn multiply(self, tile: Tile<'_, Self>) {
        // SAFETY: the caller's.
        unsafe { by_dots(self, tile) }
    }
}

impl Dot for PortableBf16 {
    type LeftVec = [f32; 2];
    type RightVec = [[Bf16; 2]; NR];
    type AccVec = [f32; NR];

    #[inline(always)]
    fn zero(self) -> [f32; NR] {
        [0.0; NR]
    }
    #[inline(always)]
    unsafe fn splat(self, left: *const Bf16) -> [f32; 2] {
        // SAFETY: the caller gives K_STEP = 2 readable elements of a Bf16 slice.
        unsafe { *left.cast::<[Bf16; 2]>() }.map(Bf16::get)
    }
    #[inline(always)]
    unsafe fn load(self, right: *const Bf16) -> [[Bf16; 2]; NR] {
        // SAFETY: the caller gives NR · K_STEP readable elements of a Bf16 slice.
        unsafe { *right.cast() }
    }
    #[inline(always)]
    fn dot(self, sum: [f32; NR], left: [f32; 2], right: [[Bf16; 2]; NR]) -> [f32; NR] {
        std::array::from_fn(|c| {
            let first = mul_add(left[0], right[c][0].get(), sum[c]);
            mul_add(left[1], right[c][1].get(), first)
        })
    }
    #[inline(always)]
    unsafe fn store(self, sum: [f32; NR], out: *mut f32) {
        // SAFETY: the caller gives NR writable elements.
        unsafe { out.cast::<[f32; NR]>().write(sum) }
    }
}

/// Lanes as arrays: what the compiler makes of them.
impl Lanes for PortableF32 {
    const N: usize = 16;
    type F = [f32; 16];
    type U = [u32; 16];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; 16]
    }
    #[inline(always)]
    fn load(self, x: &[f32]) -> Self::F {
        std::array::from_fn(|lane| x[lane])
    }
    #[inline(always)]
    fn load_bf16(self, x: &[Bf16]) -> Self::F {
        std::array::from_fn(|lane| x[lane].get())
    }
    #[inline(always)]
    fn load_f16(self, x: &[F16]) -> Self::F {
        std::array::from_fn(|lane| x[lane].get())
    }
    #[inline(always)]
    fn load_i32(self, x: &[i32], minus: Option<&[i32]>) -> Self::F {
        std::array::from_fn(|lane| (x[lane] - minus.map_or(0, |minus| minus[lane])) as f32)
    }
    #[inline(always)]
    fn store(self, v: Self::F, out: &mut [f32]) {
        out[..Self::N].copy_from_slice(&v);
    }
    #[inline(always)]
    fn store_bf16(self, v: Self::F, out: &mut [Bf16]) {
        out[..Self::N].copy_from_slice(&v.map(Bf16::of));
    }
    #[inline(always)]
    fn store_i8(self, v: Self::F, out: &mut [i8]) {
        out[..Self::N].copy_from_slice(&v.map(|v| whole(v) as i8));
    }
    #[inline(always)]
    fn store_u8(self, v: Self::F, out: &mut [u8]) {
        out[..Self::N].copy_from_slice(&v.map(|v| (whole(v) + 128) as u8));
    }
    #[inline(always)]
    fn store_i16(self, v: Self::F, out: &mut [i16]) {
        out[..Self::N].copy_from_slice(&v.map(|v| whole(v) as i16));
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|lane| a[lane] + b[lane])
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|lane| a[lane] - b[lane])
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|lane| a[lane] * b[lane])
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|lane| mul_add(a[lane], b[lane], c[lane]))
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        // As `maxps`: the second where one is NaN.
        std::array::from_fn(|lane| if a[lane] > b[lane] { a[lane] } else { b[lane] })
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|lane| if a[lane] < b[lane] { a[lane] } else { b[lane] })
    }
    #[inline(always)]
    fn recip(self, x: Self::F) -> Self::F {
        x.map(|x| 1.0 / x)
    }
    #[inline(always)]
    fn round(self, x: Self::F) -> Self::F {
        x.map(|x| x + ROUND - ROUND)
    }
    #[inline(always)]
    fn scale(self, x: Self::F, n: Self::F) -> Self::F {
        std::array::from_fn(|lane| {
            let exponent = whole(n[lane]).cast_unsigned() << 23;
            f32::from_bits(x[lane].to_bits().wrapping_add(exponent))
        })
    }
    #[inline(always)]
    fn blend(self, bits: u32, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|lane| {
            if bits & (1 << lane) != 0 {
                b[lane]
            } else {
                a[lane]
            }
        })
    }
    #[inline(always)]
    fn no_magnitude(self) -> Self::U {
        [0; 16]
    }
    #[inline(always)]
    fn magnitude(self, most: Self::U, x: Self::F) -> Self::U {
        std::array::from_fn(|lane| most[lane].max(x[lane].to_bits() & 0x7FFF_FFFF))
    }
    #[inline(always)]
    fn greatest(self, most: Self::U) -> f32 {
        f32::from_bits(most.into_iter().fold(0, u32::max))
    }
    #[inline(always)]
    fn sum(self, v: Self::F) -> f32 {
        v.into_iter().sum()
    }
    #[inline(always)]
    fn most(self, v: Self::F) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

/// 1.5 · 2²³: adding it to an f32 of magnitude below 2²² rounds it half to even and leaves the
/// integer in the low bits. Plain arithmetic, so that a loop becomes vector instructions without a
/// conversion that has to treat NaN.
const ROUND: f32 = 12_582_912.0;

/// The nearest whole number, half to even, for |v| < 2²².
#[inline(always)]
fn whole(v: f32) -> i32 {
    (v + ROUND)
        .to_bits()
        .wrapping_sub(ROUND.to_bits())
        .cast_signed()
}

/// `a · b + c`, fused where that is one instruction: without it, `f32::mul_add` is a call of some 20 ns.
#[inline(always)]
fn mul_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}
