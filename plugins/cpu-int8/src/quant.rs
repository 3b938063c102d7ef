//! From f32 to a kernel's elements and back: symmetric i8, one scale a row (activations) or column
//! (weights).
//!
//! ```text
//! scale = max|x| / 127      q = round_half_even(x / scale) ∈ [−127, 127]      x ≈ scale · q
//! Σ x·w ≈ scale_x · scale_w · (Σ (q_x + zero)·q_w − zero · Σ q_w)             zero = 128 for u8, else 0
//! ```
//!
//! −128 is never produced: the range is symmetric, so every kernel's exactness argument holds.

/// The largest quantum.
pub const QUANTUM_MAX: f32 = 127.0;

/// 1.5 · 2²³: adding it to an f32 of magnitude below 2²² rounds it half to even and leaves the
/// integer in the low bits. Plain arithmetic, so that the loop becomes vector instructions without
/// a conversion that has to treat NaN.
const ROUND: f32 = 12_582_912.0;

/// An element that a kernel multiplies.
pub trait Code: Copy + Default + Send + Sync + 'static {
    /// What the element for 0.0 reads as, in quanta.
    const ZERO_POINT: i32;
    /// Whether elements are quanta; false for f32, which stand for themselves.
    const QUANTISED: bool;

    /// Encodes `x` (a row of activations or a column of weights) into the first `x.len()` elements
    /// of `out` and zeros into the rest. Returns the scale; NaN if `x` holds a value that is not
    /// finite, which makes everything computed from it NaN too instead of quietly wrong.
    fn encode(x: &[f32], out: &mut [Self]) -> f32;

    /// The element as an integer without its zero point; 0 for f32, which needs no correction.
    fn quantum(self) -> i32;
}

/// A kernel's sum.
pub trait Sum: Copy + Default + PartialEq + std::fmt::Debug + Send + Sync + 'static {
    /// The correction to take off a sum: zero point · Σ quanta of the column.
    fn correction(zero_point: i32, quanta: i32) -> Self;
    /// The sum without its correction.
    fn corrected(self, correction: Self) -> f32;
}

/// Largest magnitude in `x`; NaN or infinite if `x` holds such a value.
#[inline(always)]
pub fn max_abs(x: &[f32]) -> f32 {
    // As integers: magnitudes of floats order like their bits, and infinity and NaN come last.
    let magnitude = |v: f32| v.to_bits() & 0x7FFF_FFFF;
    let (chunks, tail) = x.as_chunks::<32>();
    let mut most = [0; 32];
    for chunk in chunks {
        for (most, &v) in most.iter_mut().zip(chunk) {
            *most = magnitude(v).max(*most);
        }
    }
    let most = tail.iter().map(|&v| magnitude(v)).chain(most).max();
    f32::from_bits(most.unwrap_or(0))
}

/// Quantises `x` through `element` and returns the scale. See [`Code::encode`].
#[inline(always)]
fn quantise<T: Copy>(x: &[f32], out: &mut [T], zero_point: i32, element: impl Fn(i32) -> T) -> f32 {
    let (used, padding) = out.split_at_mut(x.len());
    padding.fill(element(zero_point));
    let most = max_abs(x);
    if !most.is_finite() {
        used.fill(element(zero_point));
        return f32::NAN;
    }
    // A row of zeros, or of values whose quotient would overflow, is a row of zeros.
    let inverse = if most < 1e-30 {
        0.0
    } else {
        QUANTUM_MAX / most
    };
    for (out, &v) in used.iter_mut().zip(x) {
        let rounded = (v * inverse + ROUND)
            .to_bits()
            .wrapping_sub(ROUND.to_bits());
        *out = element(rounded.cast_signed() + zero_point);
    }
    most / QUANTUM_MAX
}

impl Code for i8 {
    const ZERO_POINT: i32 = 0;
    const QUANTISED: bool = true;
    #[inline(always)]
    fn encode(x: &[f32], out: &mut [Self]) -> f32 {
        quantise(x, out, 0, |q| q as i8)
    }
    fn quantum(self) -> i32 {
        self.into()
    }
}

impl Code for i16 {
    const ZERO_POINT: i32 = 0;
    const QUANTISED: bool = true;
    #[inline(always)]
    fn encode(x: &[f32], out: &mut [Self]) -> f32 {
        quantise(x, out, 0, |q| q as i16)
    }
    fn quantum(self) -> i32 {
        self.into()
    }
}

impl Code for u8 {
    const ZERO_POINT: i32 = 128;
    const QUANTISED: bool = true;
    #[inline(always)]
    fn encode(x: &[f32], out: &mut [Self]) -> f32 {
        quantise(x, out, 128, |q| q as u8)
    }
    fn quantum(self) -> i32 {
        i32::from(self) - 128
    }
}

impl Code for f32 {
    const ZERO_POINT: i32 = 0;
    const QUANTISED: bool = false;
    #[inline(always)]
    fn encode(x: &[f32], out: &mut [Self]) -> f32 {
        let (used, padding) = out.split_at_mut(x.len());
        used.copy_from_slice(x);
        padding.fill(0.0);
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
}

impl Sum for f32 {
    fn correction(_: i32, _: i32) -> Self {
        0.0
    }
    #[inline(always)]
    fn corrected(self, _: Self) -> f32 {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(x: &[f32], expected: &[i32], scale: f32) {
        let mut bytes = vec![1_i8; expected.len()];
        let mut words = vec![1_i16; expected.len()];
        let mut offset = vec![1_u8; expected.len()];
        for found in [
            i8::encode(x, &mut bytes),
            i16::encode(x, &mut words),
            u8::encode(x, &mut offset),
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
