//! 4-bit weights for the i8 kernels: 16 levels a group, which unpack to i8 without rounding.
//!
//! ```text
//! w ≈ scale · q      q = (code − offset) · times ∈ [−127, 127]
//! code 0 to 15, of each weight    offset 0 to 15, times 1 to 15, of 16 inputs    scale an f32, of a column
//! ```
//!
//! 4 bits a weight and 8 a group: 4.5 bits a weight. `times` is what a group has for a scale of its own. It is an integer, so q is one, all
//! groups of a column add up in one i32, and the kernels' loops and their exactness stay as they are.
//! That costs 1 % of the squared error that an f32 for each group would leave, in the feed-forward part's second
//! layer up to 12 %.
//!
//! Squared error over the weights' square, on twelve of MiniLM-L6's tensors: 4.7e-3 to 5.4e-3. Groups of 32
//! (4.25 bits) leave 6.3e-3 to 7.7e-3, of 64 8.1e-3 to 10.1e-3; in groups of 32 a symmetric code of 15 levels with
//! times up to 18 leaves 8.6e-3 to 11.4e-3, one of 16 that are mirrored where the largest weight is positive 7.0e-3
//! to 9.2e-3. i8 with a scale a column: 0.06e-3 to 0.45e-3. Not adopted, after one trial each outside of this
//! engine (384 pairs, a seeded head, most in groups of 32): weighting errors by the activations' squares, moving
//! the error's mean into the bias, GPTQ. None raised rho, some lowered it.

use super::QUANTUM_MAX;
use super::narrow::{Narrow, Panels};
use crate::arena::Aligned;
use crate::kernel::Kernel;
use crate::kernel::lanes::Lanes;

/// Inputs that share an offset and a factor.
pub const GROUP: usize = 16;
/// The largest code.
const CODE_MAX: f32 = 15.0;

/// How the codes of [`GROUP`] inputs of a column are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// The code of 0.0.
    pub offset: u8,
    /// The i8 from one code to the next.
    pub times: u8,
}

/// A column of weights, quantised.
pub struct Column {
    /// The weight of an i8 of 1.
    pub scale: f32,
    /// A code for each weight.
    pub codes: Vec<u8>,
    /// In order.
    pub groups: Vec<Group>,
}

/// A linear layer's panels in pairs of codes.
pub struct Nibbles {
    /// Panels laid out as the kernel's own. Of what lies side by side there, `[NR][K_STEP]`, byte i has
    /// element i in its low half and element i + NR · K_STEP / 2 in its high one: unpacking reads and
    /// writes in order, whole registers.
    pairs: Aligned<u8>,
    /// `[n_panels][k / GROUP][NR]`: a byte for each group.
    groups: Vec<u8>,
    panels: Panels,
}

// === impl Group ===

impl Group {
    const ZERO: Self = Self {
        offset: 8,
        times: 1,
    };

    /// The offset, and f32 instead of `times`, with which the codes cover `weights` and 0.
    fn covering(weights: &[f32]) -> (u8, f32) {
        let least = weights.iter().fold(0.0_f32, |least, &w| least.min(w));
        let most = weights.iter().fold(0.0_f32, |most, &w| most.max(w));
        // Halves first: the difference of both ends of f32 is no f32.
        let step = (most / CODE_MAX) - (least / CODE_MAX);
        if step < f32::MIN_POSITIVE {
            return (Self::ZERO.offset, 0.0);
        }
        ((-least / step).round().min(CODE_MAX) as u8, step)
    }

    /// The largest factor with which every code is an i8 of at most 127.
    fn times_max(offset: u8) -> u8 {
        QUANTUM_MAX as u8 / offset.max(CODE_MAX as u8 - offset)
    }

    /// Codes of `weights`, and the sum of the squares of what they are off, in squares of `scale`.
    fn encode(self, weights: &[f32], scale: f32, codes: &mut [u8; GROUP]) -> f32 {
        // 2²³ more rounds an f32 below it half to even: a conversion is slower.
        const ROUND: f32 = 8_388_608.0;
        let (offset, times) = (f32::from(self.offset), f32::from(self.times));
        let inverse = 1.0 / (scale * times);
        let mut error = 0.0;
        for (&weight, code) in weights.iter().zip(codes) {
            let exact = weight * inverse + offset;
            let whole = exact.clamp(0.0, CODE_MAX) + ROUND - ROUND;
            *code = whole as u8;
            error += (exact - whole) * (exact - whole);
        }
        error * times * times
    }

    /// The i8 that a code stands for.
    #[inline(always)]
    pub fn quantum(self, code: u8) -> i8 {
        (code.cast_signed() - self.offset.cast_signed()) * self.times.cast_signed()
    }

    /// As it is held.
    fn to_byte(self) -> u8 {
        self.offset << 4 | (self.times - 1)
    }

    /// From how it is held.
    #[inline(always)]
    pub fn of_byte(byte: u8) -> Self {
        Self {
            offset: byte >> 4,
            times: (byte & 15) + 1,
        }
    }
}

// === impl Column ===

impl Column {
    /// Quantises a column. Of three factors a group takes the one with the least squared error: the
    /// larger rounds more coarsely, the smaller cuts off the ends.
    pub fn of(weights: &[f32]) -> Self {
        let covering: Vec<(u8, f32)> = weights.chunks(GROUP).map(Group::covering).collect();
        let needed = |&(offset, step): &(u8, f32)| step / f32::from(Group::times_max(offset));
        let scale = covering.iter().map(needed).fold(0.0, f32::max);
        let mut column = Self {
            scale,
            codes: Vec::with_capacity(weights.len()),
            groups: Vec::with_capacity(covering.len()),
        };
        for (weights, (offset, step)) in weights.chunks(GROUP).zip(covering) {
            let (group, codes) = nearest(weights, offset, step, scale);
            column.groups.push(group);
            column.codes.extend_from_slice(&codes[..weights.len()]);
        }
        column
    }

    fn group(&self, k: usize) -> Group {
        self.groups.get(k / GROUP).copied().unwrap_or(Group::ZERO)
    }

    /// The code at `k`; behind the last, that of 0.
    fn code(&self, k: usize) -> u8 {
        let code = self.codes.get(k).copied();
        code.unwrap_or_else(|| self.group(k).offset)
    }

    /// The i8 that it stands for.
    pub fn quantum(&self, k: usize) -> i8 {
        self.group(k).quantum(self.code(k))
    }
}

/// The best factor for one group of a column, and its codes.
fn nearest(weights: &[f32], offset: u8, step: f32, scale: f32) -> (Group, [u8; GROUP]) {
    let mut best = (Group::ZERO, [Group::ZERO.offset; GROUP]);
    // A column of zeros, or of numbers whose scale has no reciprocal.
    if step == 0.0 || scale < 1e-30 {
        return best;
    }
    let near = (step / scale).round() as u8;
    let mut least = f32::INFINITY;
    for times in near.saturating_sub(1)..=near + 1 {
        let times = times.clamp(1, Group::times_max(offset));
        let (group, mut codes) = (Group { offset, times }, [0; GROUP]);
        let error = group.encode(weights, scale, &mut codes);
        if error < least {
            least = error;
            best = (group, codes);
        }
    }
    best
}

// === impl Nibbles ===

impl Nibbles {
    fn n_groups(&self) -> usize {
        self.panels.stride.div_ceil(GROUP)
    }

    /// Keeps a quantised column, with codes of zero behind its last.
    fn keep(&mut self, column_idx: usize, column: &Column) {
        let Panels { nr, k_step, .. } = self.panels;
        let (panel_idx, lane) = (column_idx / nr, column_idx % nr);
        let n_groups = self.n_groups();
        for (group_idx, group) in column.groups.iter().enumerate() {
            self.groups[(panel_idx * n_groups + group_idx) * nr + lane] = group.to_byte();
        }
        let half = nr * k_step / 2;
        for (step_idx, start) in self.panels.steps(column_idx).enumerate() {
            for s in 0..k_step {
                let code = column.code(step_idx * k_step + s);
                let (step, element) = ((start + s) / (2 * half), (start + s) % (2 * half));
                let (pair, shift) = (
                    &mut self.pairs[step * half + element % half],
                    4 * (element / half),
                );
                *pair = *pair & !(15 << shift) | code << shift;
            }
        }
    }
}

macro_rules! nibbles {
    ($element:ty, $unpack:ident) => {
        impl Narrow<$element> for Nibbles {
            fn new(panels: Panels) -> Self {
                let n_groups = panels.n_panels * panels.stride.div_ceil(GROUP) * panels.nr;
                let mut pairs = Aligned::new(panels.n_panels * panels.panel_len() / 2);
                // Columns that the last panel lacks are zeros.
                pairs.fill(Group::ZERO.offset << 4 | Group::ZERO.offset);
                Self {
                    pairs,
                    groups: vec![Group::ZERO.to_byte(); n_groups],
                    panels,
                }
            }

            fn place(
                &mut self,
                column_idx: usize,
                weights: &[f32],
                column: &mut [$element],
            ) -> f32 {
                let quantised = Column::of(weights);
                for (k, element) in column.iter_mut().enumerate() {
                    *element = quantised.quantum(k).into();
                }
                self.keep(column_idx, &quantised);
                quantised.scale
            }

            #[inline(always)]
            fn unpack<K: Kernel<Right = $element>>(
                &self,
                lanes: K::Float,
                panel_idx: usize,
                panel: &mut [$element],
            ) {
                const { assert!(GROUP.is_multiple_of(K::K_STEP) && K::NR.is_multiple_of(2)) };
                let n_groups = self.n_groups();
                let pairs = &self.pairs[panel_idx * panel.len() / 2..][..panel.len() / 2];
                let groups = &self.groups[panel_idx * n_groups * K::NR..][..n_groups * K::NR];
                for ((groups, pairs), out) in groups
                    .chunks_exact(K::NR)
                    .zip(pairs.chunks(K::NR * GROUP / 2))
                    .zip(panel.chunks_mut(K::NR * GROUP))
                {
                    lanes.$unpack(K::K_STEP, groups, pairs, out);
                }
            }

            fn n_bytes(&self) -> usize {
                self.pairs.n_bytes() + self.groups.len()
            }
        }
    };
}

nibbles!(i8, unpack_i8);
nibbles!(i16, unpack_i16);

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers in [−1, 1).
    fn random(n: usize) -> Vec<f32> {
        let mut state = 7_u32;
        let numbers = (0..n).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        });
        numbers.collect()
    }

    /// Of the three factors tried, one covers the group and is at most 1.5 above what it needs; with it
    /// no weight is off by more than half a step.
    #[track_caller]
    fn check(weights: &[f32]) {
        let column = Column::of(weights);
        assert_eq!(column.codes.len(), weights.len());
        for (group_idx, group) in weights.chunks(GROUP).enumerate() {
            let (_, step) = Group::covering(group);
            let bound = (step + 1.5 * column.scale) / 2.0;
            let quanta = (group_idx * GROUP..).map(|k| column.quantum(k));
            let off = group.iter().zip(quanta).map(|(&weight, quantum)| {
                assert!((-127..=127).contains(&quantum), "{quantum}");
                (f64::from(weight) - f64::from(column.scale) * f64::from(quantum)).powi(2)
            });
            let rms = (off.sum::<f64>() / group.len() as f64).sqrt();
            assert!(
                rms <= f64::from(bound) * 1.000_01,
                "{rms} > {bound}: {group:?}"
            );
        }
    }

    #[test]
    fn a_group_is_off_by_half_a_step_at_most() {
        let random = random(999);
        check(&random);
        let cubes: Vec<f32> = random.iter().map(|w| w * w * w).collect();
        check(&cubes);
        for n in [1, 2, 15, 16, 17, 31, 33] {
            check(&random[..n]);
        }
        // All of a sign, one large among small, groups of very different ranges.
        check(&random.iter().map(|w| 2.0 + w).collect::<Vec<_>>());
        check(&random.iter().map(|w| -2.0 + w).collect::<Vec<_>>());
        let mut outlier = random.clone();
        outlier[40] = 300.0;
        check(&outlier);
        let wide = random.iter().enumerate();
        check(
            &wide
                .map(|(k, w)| w * (1 + k / GROUP) as f32)
                .collect::<Vec<_>>(),
        );
        check(&random.iter().map(|w| w * 1e38).collect::<Vec<_>>());
    }

    #[test]
    fn zeros_stay_zeros() {
        for (weights, k) in [
            (vec![0.0; 40], 3),
            (vec![1e-40; 40], 3),
            (vec![5.0; 17], 17),
        ] {
            assert_eq!(Column::of(&weights).quantum(k), 0);
        }
        let mut sparse = random(64);
        sparse[20] = 0.0;
        assert_eq!(Column::of(&sparse).quantum(20), 0);
    }

    #[test]
    fn what_is_not_finite_poisons_the_scale() {
        let column = Column::of(&[1.0, f32::INFINITY, 2.0]);
        assert!(!column.scale.is_finite());
    }

    #[test]
    fn a_group_is_a_byte() {
        for byte in 0..=u8::MAX {
            assert_eq!(Group::of_byte(byte).to_byte(), byte);
        }
    }
}
