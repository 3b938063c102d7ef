//! Half precision: weights held in 16 bits, multiplied in f32.
//!
//! ```text
//! w ≈ scale · half      scale = 2ⁿ, one a column: its largest weight becomes 2¹⁴ to 2¹⁵
//! ```
//!
//! So nothing overflows, whatever the checkpoint holds, and what is small has all the bits that a half
//! has. A power of two takes nothing off: a checkpoint in F16 is multiplied bit for bit as in f32, but
//! where a column has weights of 2¹⁵ and more beside ones below 2⁻¹³.

use super::narrow::{Narrow, Panels};
use crate::arena::Aligned;
use crate::kernel::Kernel;
use crate::kernel::lanes::Lanes;

/// IEEE half precision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct F16(u16);

impl F16 {
    /// The number with these bits.
    pub fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// The nearest half, ties to even; infinity from 65,520 on.
    pub fn of(value: f32) -> Self {
        // f32 has 13 bits of mantissa more, and the exponents' biases differ by 127 − 15 = 112.
        const LEAST_NORMAL: u32 = (127 - 14) << 23;
        const INFINITY: u32 = 0x7C00;
        let bits = value.to_bits();
        let (sign, magnitude) = (bits >> 16 & 0x8000, bits & 0x7FFF_FFFF);
        let half = if magnitude < LEAST_NORMAL {
            // A unit in the last place of 0.5 is 2⁻²⁴, as a subnormal half's: the sum rounds.
            (f32::from_bits(magnitude) + 0.5).to_bits() - 0.5_f32.to_bits()
        } else if magnitude <= f32::INFINITY.to_bits() {
            let rounded = magnitude + 0xFFF + (magnitude >> 13 & 1);
            ((rounded >> 13) - (112 << 10)).min(INFINITY)
        } else {
            INFINITY | 0x200
        };
        Self((sign | half) as u16)
    }

    /// The number, exactly, and without a branch, so that a loop of it becomes vector instructions.
    #[inline(always)]
    pub fn get(self) -> f32 {
        let sign = u32::from(self.0 & 0x8000) << 16;
        let magnitude = u32::from(self.0 & 0x7FFF) << 13;
        // The exponents' biases differ by 127 − 15 = 112; infinity's and NaN's by 255 − 31 = 224.
        let exponent = if magnitude < 31 << 23 {
            112 << 23
        } else {
            224 << 23
        };
        // A subnormal is what stands behind the 1 of 2⁻¹⁴: put it there and take the 1 away.
        let one = f32::from_bits(113 << 23);
        let subnormal = f32::from_bits(magnitude + (113 << 23)) - one;
        let bits = if magnitude < 1 << 23 {
            subnormal.to_bits()
        } else {
            magnitude + exponent
        };
        f32::from_bits(sign | bits)
    }
}

/// A linear layer's panels in halves, laid out as the kernel's own.
pub struct Halves {
    halves: Aligned<F16>,
    panels: Panels,
}

impl Narrow<f32> for Halves {
    fn new(panels: Panels) -> Self {
        Self {
            halves: Aligned::new(panels.n_panels * panels.panel_len()),
            panels,
        }
    }

    fn place(&mut self, column_idx: usize, weights: &[f32], column: &mut [f32]) -> f32 {
        let most = weights.iter().fold(0.0_f32, |most, w| most.max(w.abs()));
        let scale = power_of_two(most);
        let (used, padding) = column.split_at_mut(weights.len());
        for (value, weight) in used.iter_mut().zip(weights) {
            *value = F16::of(weight / scale).get();
        }
        padding.fill(0.0);
        let k_step = self.panels.k_step;
        for (start, values) in self
            .panels
            .steps(column_idx)
            .zip(column.chunks_exact(k_step))
        {
            for (half, &value) in self.halves[start..].iter_mut().zip(values) {
                *half = F16::of(value);
            }
        }
        scale
    }

    #[inline(always)]
    fn unpack<K: Kernel<Right = f32>>(&self, lanes: K::Float, panel_idx: usize, panel: &mut [f32]) {
        let n = <K::Float as Lanes>::N;
        const { assert!(K::NR.is_multiple_of(<K::Float as Lanes>::N)) };
        let halves = &self.halves[panel_idx * panel.len()..][..panel.len()];
        for (halves, out) in halves.chunks_exact(n).zip(panel.chunks_exact_mut(n)) {
            lanes.store(lanes.load_f16(halves), out);
        }
    }

    fn n_bytes(&self) -> usize {
        self.halves.n_bytes()
    }
}

/// The power of two that divides a column whose largest weight is `most`; kept where its reciprocal is
/// a normal number.
fn power_of_two(most: f32) -> f32 {
    let exponent = (most.to_bits() >> 23).max(30) - 14;
    f32::from_bits(exponent << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_exact() {
        let cases = [
            (0x0000, 0.0),
            (0x3C00, 1.0),
            (0xC000, -2.0),
            (0x3555, 0.333_251_95),
            (0x7BFF, 65_504.0),
            (0x0001, 5.960_464_5e-8),
            (0x03FF, 6.097_555e-5),
            (0x0400, 6.103_515_6e-5),
            (0x0400, 6.103_515_6e-5),
            (0x8001, -5.960_464_5e-8),
            (0x7C00, f32::INFINITY),
            (0xFC00, f32::NEG_INFINITY),
        ];
        for (bits, expected) in cases {
            assert_eq!(F16(bits).get(), expected, "{bits:#06x}");
        }
        assert!(F16(0x7E00).get().is_nan() && F16(0x7C01).get().is_nan());
        assert!(F16(0x8000).get().is_sign_negative());
    }

    #[test]
    fn every_half_comes_back() {
        for half in (0..=u16::MAX).map(F16) {
            let value = half.get();
            assert!(value.is_nan() || F16::of(value) == half, "{half:?}");
        }
    }

    #[test]
    fn halves_are_rounded_to_the_nearest_and_ties_to_even() {
        for pair in (0..0x7BFF).map(|bits| [F16(bits), F16(bits + 1)]) {
            let [low, high] = pair.map(F16::get);
            // Both have 11 bits of mantissa: f32 holds the middle, and what is beside it.
            let middle = (low + high) / 2.0;
            let even = if pair[0].0.is_multiple_of(2) {
                low
            } else {
                high
            };
            assert_eq!(F16::of(middle).get(), even, "{middle}");
            assert_eq!(F16::of(middle.next_down()).get(), low, "below {middle}");
            assert_eq!(F16::of(-middle.next_up()).get(), -high, "above {middle}");
        }
        assert_eq!(F16::of(65_519.0).get(), 65_504.0);
        assert_eq!(F16::of(65_520.0).get(), f32::INFINITY);
        assert_eq!(F16::of(-f32::MAX).get(), f32::NEG_INFINITY);
        assert!(F16::of(f32::NAN).get().is_nan());
    }

    #[test]
    fn a_column_takes_the_scale_that_its_largest_weight_needs() {
        for (most, expected) in [
            (0.0, 2.0_f32.powi(-111)),
            (1e-45, 2.0_f32.powi(-111)),
            (1.0, 2.0_f32.powi(-14)),
            (1.99, 2.0_f32.powi(-14)),
            (16_384.0, 1.0),
            (f32::MAX, 2.0_f32.powi(113)),
        ] {
            let scale = power_of_two(most);
            assert_eq!(scale, expected, "{most}");
            assert!(most / scale < 32_768.0 && scale.recip().is_normal());
        }
    }
}
