//! Registers of f32 lanes: what the passes between the products ask of an instruction set.
//!
//! Written out instead of left to the compiler: it turned the same loops over arrays into vectors
//! that went through the stack, at a third of the speed.

use crate::quant::Bf16;
use crate::quant::f16::F16;
use crate::quant::int4::Group;

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
    /// The same of halves, exactly.
    fn load_f16(self, x: &[F16]) -> Self::F;
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

    /// Each lane of `b` whose bit is set in `bits`, and of `a` elsewhere.
    fn blend(self, bits: u32, a: Self::F, b: Self::F) -> Self::F;

    /// `x[at[lane] − at[0]]` in each lane, where `at` grows by at most 1 from lane to lane. (The
    /// first N of both are there.)
    #[inline(always)]
    fn near(self, x: &[f32], at: &[u32]) -> Self::F {
        let mut lanes = [0.0; LANES_MAX];
        for (lane, &place) in lanes.iter_mut().zip(&at[..Self::N]) {
            *lane = x[(place - at[0]) as usize];
        }
        self.load(&lanes)
    }

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

    /// Unpacks one group of all columns of a panel of 4-bit weights ([`int4`](crate::quant::int4)):
    /// `groups` has a byte a column, `pairs` two codes a byte, `out` is `[steps][columns][k_step]`.
    #[inline(always)]
    fn unpack_i8(self, k_step: usize, groups: &[u8], pairs: &[u8], out: &mut [i8]) {
        unpack(k_step, groups, pairs, out, |quantum| quantum);
    }

    /// The same, wider.
    #[inline(always)]
    fn unpack_i16(self, k_step: usize, groups: &[u8], pairs: &[u8], out: &mut [i16]) {
        unpack(k_step, groups, pairs, out, i16::from);
    }

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

/// What the unpacking of 4-bit weights is, element by element.
#[inline(always)]
fn unpack<T>(
    k_step: usize,
    groups: &[u8],
    pairs: &[u8],
    out: &mut [T],
    element: impl Fn(i8) -> T + Copy,
) {
    let step_len = groups.len() * k_step;
    let (low_groups, high_groups) = groups.split_at(groups.len() / 2);
    for (pairs, out) in pairs
        .chunks_exact(step_len / 2)
        .zip(out.chunks_exact_mut(step_len))
    {
        let (low, high) = out.split_at_mut(step_len / 2);
        for (groups, out, shift) in [(low_groups, low, 0), (high_groups, high, 4)] {
            let columns = groups.iter().zip(pairs.chunks_exact(k_step));
            for ((&group, pairs), out) in columns.zip(out.chunks_exact_mut(k_step)) {
                let group = Group::of_byte(group);
                for (pair, out) in pairs.iter().zip(out) {
                    *out = element(group.quantum(pair >> shift & 15));
                }
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Dtype, Kernel, Visitor, visit_all};
    use crate::quant::Plain;

    /// Both ends, halves (which round to even), zeros of both signs.
    const VALUES: [f32; LANES_MAX] = [
        0.0, -0.0, 0.5, -1.5, 2.5, 126.5, -127.4, 127.0, 0.75, -3.25, 100.0, -99.5, 1e-3, 12.6,
        -64.0, 33.3,
    ];

    /// `f` of VALUES and of VALUES backwards, a register at a time, is `expected` of each pair.
    #[track_caller]
    fn check<L: Lanes>(
        lanes: L,
        f: impl Fn(L::F, L::F) -> L::F,
        expected: impl Fn(f32, f32) -> f32,
    ) {
        let mut backwards = VALUES;
        backwards.reverse();
        for (a, b) in VALUES.chunks_exact(L::N).zip(backwards.chunks_exact(L::N)) {
            let mut found = [0.0; LANES_MAX];
            lanes.store(f(lanes.load(a), lanes.load(b)), &mut found);
            for lane in 0..L::N {
                let expected = expected(a[lane], b[lane]);
                assert_eq!(found[lane], expected, "of {} and {}", a[lane], b[lane]);
            }
        }
    }

    struct Check;

    impl Visitor for Check {
        type Output = ();
        fn visit<K: Kernel>(&mut self, kernel: K) {
            let lanes = kernel.float();
            arithmetic(lanes);
            moves(lanes);
            conversions(lanes);
            reductions(lanes);
        }
    }

    fn arithmetic<L: Lanes>(lanes: L) {
        check(lanes, |a, b| lanes.add(a, b), |a, b| a + b);
        check(lanes, |a, b| lanes.sub(a, b), |a, b| a - b);
        check(lanes, |a, b| lanes.mul(a, b), |a, b| a * b);
        check(lanes, |a, b| lanes.max(a, b), f32::max);
        check(lanes, |a, b| lanes.min(a, b), f32::min);
        check(lanes, |a, _| lanes.round(a), |a, _| a.round_ties_even());
        let (nan, half) = (lanes.splat(f32::NAN), lanes.splat(0.5));
        check(lanes, |a, _| lanes.max(nan, a), |a, _| a);
        check(lanes, |a, _| lanes.min(nan, a), |a, _| a);
        // Powers of two, and sums that f32 holds: fused or not, the same.
        check(lanes, |a, _| lanes.fma(a, half, half), |a, _| a / 2.0 + 0.5);
        check(
            lanes,
            |a, _| lanes.scale(half, lanes.round(lanes.mul(a, half))),
            |a, _| 0.5 * (a / 2.0).round_ties_even().exp2(),
        );
    }

    fn moves<L: Lanes>(lanes: L) {
        let backwards = |lane: usize| VALUES[LANES_MAX - 1 - lane];
        let (bits, mut found) = (0b1001_0110_1100_0101, [0.0; LANES_MAX]);
        let (a, b) = (lanes.load(&VALUES), {
            let b: [f32; LANES_MAX] = std::array::from_fn(backwards);
            lanes.load(&b)
        });
        lanes.store(lanes.blend(bits, a, b), &mut found);
        for (lane, &found) in found[..L::N].iter().enumerate() {
            let expected = [VALUES[lane], backwards(lane)][usize::from(bits >> lane & 1 == 1)];
            assert_eq!(found, expected, "lane {lane} of a blend");
        }
        // Every step, no step, and some of each; from a place that is no multiple of N.
        for steps in [0xFFFF, 0, bits] {
            let mut at = [37_u32; LANES_MAX];
            for lane in 1..LANES_MAX {
                at[lane] = at[lane - 1] + (steps >> lane & 1);
            }
            lanes.store(lanes.near(&VALUES, &at), &mut found);
            let expected = at.map(|at| VALUES[(at - 37) as usize]);
            assert_eq!(found[..L::N], expected[..L::N], "steps {steps:b}");
        }
    }

    fn conversions<L: Lanes>(lanes: L) {
        let whole = |v: f32| v.round_ties_even();
        check(
            lanes,
            |a, _| through(lanes, a, [0_i8; LANES_MAX], L::store_i8, f32::from),
            |a, _| whole(a),
        );
        check(
            lanes,
            |a, _| through(lanes, a, [0_u8; LANES_MAX], L::store_u8, f32::from),
            |a, _| whole(a) + 128.0,
        );
        check(
            lanes,
            |a, _| through(lanes, a, [0_i16; LANES_MAX], L::store_i16, f32::from),
            |a, _| whole(a),
        );
        let bf16 = [Bf16::default(); LANES_MAX];
        check(
            lanes,
            |a, _| through(lanes, a, bf16, L::store_bf16, Bf16::get),
            |a, _| Bf16::of(a).get(),
        );
        let halves = VALUES.map(Bf16::of);
        let mut found = [0.0; LANES_MAX];
        lanes.store(lanes.load_bf16(&halves), &mut found);
        assert_eq!(found[..L::N], halves.map(Bf16::get)[..L::N]);
        let halves = VALUES.map(F16::of);
        lanes.store(lanes.load_f16(&halves), &mut found);
        assert_eq!(found[..L::N], halves.map(F16::get)[..L::N]);
        // Sums beyond 2²⁴ round once, after the subtraction.
        let (x, minus) = (VALUES.map(|v| v as i32 * 10_000_019), [3; LANES_MAX]);
        lanes.store(lanes.load_i32(&x, Some(&minus)), &mut found);
        assert_eq!(found[..L::N], x.map(|x| (x - 3) as f32)[..L::N]);
    }

    /// Stores a register as integers and loads them as f32.
    fn through<L: Lanes, T: Copy>(
        lanes: L,
        v: L::F,
        mut room: [T; LANES_MAX],
        store: impl Fn(L, L::F, &mut [T]),
        read: impl Fn(T) -> f32,
    ) -> L::F {
        store(lanes, v, &mut room);
        lanes.load(&room.map(read))
    }

    fn reductions<L: Lanes>(lanes: L) {
        let wholes: Vec<f32> = (-20..17).map(|v| v as f32).collect();
        assert_eq!(sum_of(lanes, &wholes, 0.0, |v| v), -74.0);
        assert_eq!(max_abs(lanes, &wholes), 20.0);
        assert!(max_abs(lanes, &[1.0, f32::NAN, 2.0]).is_nan());
        let start = lanes.splat(-99.0);
        let [even, odd] = fold(lanes, &wholes, -99.0, start, |most, v| lanes.max(most, v));
        assert_eq!(lanes.most(lanes.max(even, odd)), 16.0);
    }

    #[test]
    fn every_instruction_set_computes_what_f32_does() {
        visit_all(Dtype::F32, &mut Check);
    }
}
