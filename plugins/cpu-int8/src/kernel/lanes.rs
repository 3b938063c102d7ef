//! Registers of f32 lanes: what the passes between the products ask of an instruction set.
//!
//! Written out instead of left to the compiler: it turned the same loops over arrays into vectors
//! that went through the stack, at a third of the speed.

use crate::quant::Bf16;

/// Lanes of the widest register of any instruction set.
pub const LANES_MAX: usize = 16;

/// An instruction set's vector arithmetic. A value of the type is the proof that this CPU has it.
///
/// Slices must hold at least N elements: methods panic otherwise, which a loop over `chunks_exact`
/// lets the compiler leave out. Arithmetic rounds as IEEE 754 says, `fma` once or twice.
pub trait Lanes: Copy + Send + Sync + 'static {
    /// Lanes of a register, at most [`LANES_MAX`].
    const N: usize;
    /// N lanes of f32.
    type F: Copy;
    /// N lanes of u32.
    type U: Copy;

    /// `x` in each lane.
    fn splat(self, x: f32) -> Self::F;
    /// The first N of `x`.
    fn load(self, x: &[f32]) -> Self::F;
    /// The first N of `x`, widened.
    fn load_bf16(self, x: &[Bf16]) -> Self::F;
    /// `x`, less `minus` if there is one, exactly; then rounded to f32.
    fn load_i32(self, x: &[i32], minus: Option<&[i32]>) -> Self::F;
    /// Writes the first N of `out`.
    fn store(self, v: Self::F, out: &mut [f32]);
    /// The same, each rounded as [`Bf16`] says.
    fn store_bf16(self, v: Self::F, out: &mut [Bf16]);
    /// The same as integers, rounded half to even; |v| ≤ 127.5.
    fn store_i8(self, v: Self::F, out: &mut [i8]);
    /// The same, plus 128.
    fn store_u8(self, v: Self::F, out: &mut [u8]);
    /// The same as [`store_i8`](Self::store_i8), wider.
    fn store_i16(self, v: Self::F, out: &mut [i16]);

    /// a + b
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// a − b
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// a · b
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// a · b + c
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The greater; `b` where one is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The lesser; `b` where one is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// 1 / x to 1 or 2 ulp, for x whose reciprocal is a normal number.
    fn recip(self, x: Self::F) -> Self::F;
    /// Half to even, for |x| < 2²².
    fn round(self, x: Self::F) -> Self::F;
    /// x · 2ⁿ for whole n in [−126, 127] and x in [0.5, 2).
    fn scale(self, x: Self::F, n: Self::F) -> Self::F;

    /// The bits of +0.0.
    fn no_magnitude(self) -> Self::U;
    /// The greater of `most` and |x|, as bits: magnitudes of floats order like their bits, and
    /// infinity and NaN come last.
    fn magnitude(self, most: Self::U, x: Self::F) -> Self::U;
    /// The greatest lane, as the f32 that its bits stand for.
    fn greatest(self, most: Self::U) -> f32;
    /// The sum of the lanes.
    fn sum(self, v: Self::F) -> f32;
    /// The greatest of the lanes, if none is NaN.
    fn most(self, v: Self::F) -> f32;

    /// Fewer than N elements of `x`, and `fill` behind them.
    #[inline(always)]
    fn load_part(self, x: &[f32], fill: f32) -> Self::F {
        let mut lanes = [fill; LANES_MAX];
        lanes[..x.len()].copy_from_slice(x);
        self.load(&lanes)
    }

    /// Writes as many lanes as `out` has room for.
    #[inline(always)]
    fn store_part(self, v: Self::F, out: &mut [f32]) {
        let mut lanes = [0.0; LANES_MAX];
        self.store(v, &mut lanes);
        out.copy_from_slice(&lanes[..out.len()]);
    }
}

/// Replaces each of `x` by `f` of it.
#[inline(always)]
pub fn map<L: Lanes>(lanes: L, x: &mut [f32], f: impl Fn(L::F) -> L::F) {
    let mut chunks = x.chunks_exact_mut(L::N);
    for chunk in &mut chunks {
        lanes.store(f(lanes.load(chunk)), chunk);
    }
    let tail = chunks.into_remainder();
    if !tail.is_empty() {
        lanes.store_part(f(lanes.load_part(tail, 0.0)), tail);
    }
}

/// Folds `x` into two registers, in turn: one alone would wait for each result. What is missing in
/// the last is `fill`.
#[inline(always)]
pub fn fold<L: Lanes, A: Copy>(
    lanes: L,
    x: &[f32],
    fill: f32,
    start: A,
    f: impl Fn(A, L::F) -> A,
) -> [A; 2] {
    let mut pairs = x.chunks_exact(2 * L::N);
    let [mut even, mut odd] = [start; 2];
    for pair in &mut pairs {
        let (first, second) = pair.split_at(L::N);
        even = f(even, lanes.load(first));
        odd = f(odd, lanes.load(second));
    }
    let mut chunks = pairs.remainder().chunks_exact(L::N);
    for chunk in &mut chunks {
        even = f(even, lanes.load(chunk));
    }
    let tail = chunks.remainder();
    if !tail.is_empty() {
        odd = f(odd, lanes.load_part(tail, fill));
    }
    [even, odd]
}

/// Σ f(x)
#[inline(always)]
pub fn sum_of<L: Lanes>(lanes: L, x: &[f32], fill: f32, f: impl Fn(L::F) -> L::F) -> f32 {
    let [even, odd] = fold(lanes, x, fill, lanes.splat(0.0), |sum, v| {
        lanes.add(sum, f(v))
    });
    lanes.sum(lanes.add(even, odd))
}

/// Largest magnitude in `x`; NaN or infinite if `x` holds such a value.
#[inline(always)]
pub fn max_abs<L: Lanes>(lanes: L, x: &[f32]) -> f32 {
    let [even, odd] = fold(lanes, x, 0.0, lanes.no_magnitude(), |most, v| {
        lanes.magnitude(most, v)
    });
    let (even, odd) = (lanes.greatest(even), lanes.greatest(odd));
    // As bits again: a NaN must not lose against a number.
    f32::from_bits(even.to_bits().max(odd.to_bits()))
}

/// Σ c[i] · x^i by Horner's rule.
#[inline(always)]
pub fn polynomial<L: Lanes, const N: usize>(lanes: L, x: L::F, coefficients: [f32; N]) -> L::F {
    let mut sum = lanes.splat(coefficients[N - 1]);
    for i in (0..N - 1).rev() {
        sum = lanes.fma(sum, x, lanes.splat(coefficients[i]));
    }
    sum
}
