//! From f32 to a kernel's elements and back: symmetric i8, one scale a row (activations) or column
//! (weights).
//!
//! ```text
//! scale = max|x| / 127      q = round_half_even(x / scale) ∈ [−127, 127]      x ≈ scale · q
//! Σ x·w ≈ scale_x · scale_w · (Σ (q_x + zero)·q_w − zero · Σ q_w)             zero = 128 for u8, else 0
//! ```
//!
//! −128 is never produced: the range is symmetric, so every kernel's exactness argument holds.

pub mod f16;
pub mod int4;
pub mod narrow;

/// The largest quantum.
pub const QUANTUM_MAX: f32 = 127.0;

use crate::kernel::lanes::{LANES_MAX, Lanes, max_abs};
use f16::Halves;
use int4::Nibbles;
use narrow::{Narrow, Never};

/// An element that a kernel multiplies.
pub trait Code: Copy + Default + Send + Sync + 'static {
    /// What the element for 0.0 reads as, in quanta.
    const ZERO_POINT: i32;
    /// Whether elements are quanta; false for f32, which stand for themselves.
    const QUANTISED: bool;
    /// How weights of this element are held where they are held narrower.
    type Narrow: Narrow<Self>;

    /// Encodes `x` (a row of activations or a column of weights) into the first `x.len()` elements
    /// of `out` and zeros into the rest. Returns the scale; NaN if `x` holds a value that is not
    /// finite, which makes everything computed from it NaN too instead of quietly wrong.
    fn encode<L: Lanes>(lanes: L, x: &[f32], out: &mut [Self]) -> f32;

    /// The element as an integer without its zero point; 0 for f32, which needs no correction.
    fn quantum(self) -> i32;
}

/// An element that stands for a number by itself, without a scale.
pub trait Plain: Code {
    /// Whether an element has so few bits that an error of 1e-4 of itself is lost in its rounding.
    const COARSE: bool;

    /// The nearest element.
    fn of(value: f32) -> Self;
    /// The number.
    fn get(self) -> f32;
    /// A register of numbers.
    fn load<L: Lanes>(lanes: L, x: &[Self]) -> L::F;
    /// Writes a register of numbers.
    fn store<L: Lanes>(lanes: L, v: L::F, out: &mut [Self]);
}

/// The upper half of an f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Bf16(u16);

/// A kernel's sum.
pub trait Sum: Copy + Default + PartialEq + std::fmt::Debug + Send + Sync + 'static {
    /// The correction to take off a sum: zero point · Σ quanta of the column.
    fn correction(zero_point: i32, quanta: i32) -> Self;
    /// The sum without its correction.
    fn corrected(self, correction: Self) -> f32;
    /// A register of sums without their corrections, if they have any.
    fn load<L: Lanes>(lanes: L, sums: &[Self], corrections: Option<&[Self]>) -> L::F;
}

/// Quantises `x` through `store` and returns the scale. See [`Code::encode`].
#[inline(always)]
fn quantise<L: Lanes, T: Copy>(
    lanes: L,
    x: &[f32],
    out: &mut [T],
    zero: T,
    store: impl Fn(L::F, &mut [T]),
) -> f32 {
    let (used, padding) = out.split_at_mut(x.len());
    padding.fill(zero);
    let most = max_abs(lanes, x);
    if !most.is_finite() {
        used.fill(zero);
        return f32::NAN;
    }
    // A row of zeros, or of values whose quotient would overflow, is a row of zeros.
    let inverse = if most < 1e-30 {
        0.0
    } else {
        QUANTUM_MAX / most
    };
    let inverse = lanes.splat(inverse);
    let (mut xs, mut outs) = (x.chunks_exact(L::N), used.chunks_exact_mut(L::N));
    for (x, out) in (&mut xs).zip(&mut outs) {
        store(lanes.mul(lanes.load(x), inverse), out);
    }
    let (x, out) = (xs.remainder(), outs.into_remainder());
    if !x.is_empty() {
        let mut codes = [zero; LANES_MAX];
        store(lanes.mul(lanes.load_part(x, 0.0), inverse), &mut codes);
        out.copy_from_slice(&codes[..out.len()]);
    }
    most / QUANTUM_MAX
}

macro_rules! quantised {
    ($element:ty, $zero:literal, $store:ident, $narrow:ty) => {
        impl Code for $element {
            const ZERO_POINT: i32 = $zero;
            const QUANTISED: bool = true;
            type Narrow = $narrow;
            #[inline(always)]
            fn encode<L: Lanes>(lanes: L, x: &[f32], out: &mut [Self]) -> f32 {
                quantise(lanes, x, out, $zero, |v, out| lanes.$store(v, out))
            }
            #[inline(always)]
            fn quantum(self) -> i32 {
                i32::from(self) - $zero
            }
        }
    };
}

quantised!(i8, 0, store_i8, Nibbles);
quantised!(u8, 128, store_u8, Never);
quantised!(i16, 0, store_i16, Nibbles);

impl Code for f32 {
    const ZERO_POINT: i32 = 0;
    const QUANTISED: bool = false;
    type Narrow = Halves;
    #[inline(always)]
    fn encode<L: Lanes>(_: L, x: &[f32], out: &mut [Self]) -> f32 {
        let (used, padding) = out.split_at_mut(x.len());
        used.copy_from_slice(x);
        padding.fill(0.0);
        1.0
    }
    fn quantum(self) -> i32 {
        0
    }
}

impl Plain for f32 {
    const COARSE: bool = false;

    #[inline(always)]
    fn of(value: f32) -> Self {
        value
    }
    #[inline(always)]
    fn get(self) -> f32 {
        self
    }
    #[inline(always)]
    fn load<L: Lanes>(lanes: L, x: &[Self]) -> L::F {
        lanes.load(x)
    }
    #[inline(always)]
    fn store<L: Lanes>(lanes: L, v: L::F, out: &mut [Self]) {
        lanes.store(v, out);
    }
}

impl Plain for Bf16 {
    const COARSE: bool = true;

    /// Rounds half away from zero: to even would be three instructions more, for one value in 65,536.
    /// A NaN stays one if it is quiet, as every NaN is that arithmetic makes.
    #[inline(always)]
    fn of(value: f32) -> Self {
        Self((value.to_bits().wrapping_add(0x8000) >> 16) as u16)
    }
    #[inline(always)]
    fn get(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
    #[inline(always)]
    fn load<L: Lanes>(lanes: L, x: &[Self]) -> L::F {
        lanes.load_bf16(x)
    }
    #[inline(always)]
    fn store<L: Lanes>(lanes: L, v: L::F, out: &mut [Self]) {
        lanes.store_bf16(v, out);
    }
}

impl Code for Bf16 {
    const ZERO_POINT: i32 = 0;
    const QUANTISED: bool = false;
    type Narrow = Never;
    #[inline(always)]
    fn encode<L: Lanes>(lanes: L, x: &[f32], out: &mut [Self]) -> f32 {
        let (used, padding) = out.split_at_mut(x.len());
        let (mut xs, mut outs) = (x.chunks_exact(L::N), used.chunks_exact_mut(L::N));
        for (x, out) in (&mut xs).zip(&mut outs) {
            lanes.store_bf16(lanes.load(x), out);
        }
        for (x, out) in xs.remainder().iter().zip(outs.into_remainder()) {
            *out = Self::of(*x);
        }
        padding.fill(Self(0));
        1.0
    }
    fn quantum(self) -> i32 {
        0
    }
}

impl Sum for i32 {
    fn correction(zero_point: i32, quanta: i32) -> Self {
        zero_point * quanta
    }
    #[inline(always)]
    fn corrected(self, correction: Self) -> f32 {
        (self - correction) as f32
    }
    #[inline(always)]
    fn load<L: Lanes>(lanes: L, sums: &[Self], corrections: Option<&[Self]>) -> L::F {
        lanes.load_i32(sums, corrections)
    }
}

impl Sum for f32 {
    fn correction(_: i32, _: i32) -> Self {
        0.0
    }
    #[inline(always)]
    fn corrected(self, _: Self) -> f32 {
        self
    }
    #[inline(always)]
    fn load<L: Lanes>(lanes: L, sums: &[Self], _: Option<&[Self]>) -> L::F {
        lanes.load(sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::scalar::PortableF32;

    #[test]
    fn bf16_rounds_half_away_from_zero() {
        let ulp = 2.0_f32.powi(-7);
        for (value, expected) in [
            (1.0, 1.0),
            (1.0 + ulp / 2.0, 1.0 + ulp),
            (1.0 + 0.49 * ulp, 1.0),
            (1.0 + 0.51 * ulp, 1.0 + ulp),
            (1.0 + 1.5 * ulp, 1.0 + 2.0 * ulp),
            (-1.0 - 1.5 * ulp, -1.0 - 2.0 * ulp),
            (0.0, 0.0),
            (f32::MAX, f32::INFINITY),
            (f32::NEG_INFINITY, f32::NEG_INFINITY),
        ] {
            assert_eq!(Bf16::of(value).get(), expected, "{value}");
        }
        assert!(Bf16::of(f32::NAN).get().is_nan());
        assert!(Bf16::of(f32::INFINITY - f32::INFINITY).get().is_nan());
    }

    #[track_caller]
    fn check(x: &[f32], expected: &[i32], scale: f32) {
        let mut bytes = vec![1_i8; expected.len()];
        let mut words = vec![1_i16; expected.len()];
        let mut offset = vec![1_u8; expected.len()];
        for found in [
            i8::encode(PortableF32, x, &mut bytes),
            i16::encode(PortableF32, x, &mut words),
            u8::encode(PortableF32, x, &mut offset),
        ] {
            assert!(
                found == scale || (found.is_nan() && scale.is_nan()),
                "{found} is not {scale}"
            );
        }
        assert_eq!(
            bytes.iter().map(|q| q.quantum()).collect::<Vec<_>>(),
            expected
        );
        assert_eq!(
            words.iter().map(|q| q.quantum()).collect::<Vec<_>>(),
            expected
        );
        assert_eq!(
            offset.iter().map(|q| q.quantum()).collect::<Vec<_>>(),
            expected
        );
    }

    #[test]
    fn extremes_are_127_and_padding_is_zero() {
        check(&[2.0, -2.0, 1.0], &[127, -127, 64, 0, 0], 2.0 / 127.0);
    }

    #[test]
    fn halves_round_to_even() {
        check(
            &[127.0, 0.5, 1.5, -0.5, -1.5, 2.5],
            &[127, 0, 2, 0, -2, 2],
            1.0,
        );
    }

    #[test]
    fn zeros_stay_zeros() {
        check(&[0.0, -0.0], &[0, 0], 0.0);
        check(&[], &[0], 0.0);
        check(&[1e-40, 0.0], &[0, 0], 1e-40 / 127.0);
    }

    #[test]
    fn what_is_not_finite_poisons_the_scale() {
        check(&[1.0, f32::NAN], &[0, 0], f32::NAN);
        check(&[f32::NEG_INFINITY, 1.0], &[0, 0], f32::NAN);
        let mut long = vec![0.5; 77];
        long[40] = f32::NAN;
        check(&long, &[0; 77], f32::NAN);
    }

    #[test]
    fn huge_rows_do_not_overflow() {
        check(&[f32::MAX, -f32::MAX], &[127, -127], f32::MAX / 127.0);
    }
}
