//! Rotary positions: each head's queries and keys are turned by angles that grow with the token's
//! position, so that their product depends on the distance alone (Su and others 2021, RoFormer).
//!
//! ```text
//! angle[p][i] = p · base^(−2i / head dim)                             i < half = head dim / 2
//! (x[i], x[half + i]) ← (x[i] cos − x[half + i] sin, x[half + i] cos + x[i] sin)
//! ```

use crate::kernel::lanes::Lanes;
use crate::quant::Plain;

/// Cosines and sines of every position's angles, for one base.
pub struct Rotary {
    base: f64,
    half: usize,
    /// positions × (half cosines, then half sines).
    table: Vec<f32>,
}

impl Rotary {
    /// The table for `positions` positions of heads of `head_dim` values, an even number.
    pub fn new(base: f64, head_dim: usize, positions: usize) -> Self {
        let half = head_dim / 2;
        // As `transformers` rounds: the power, its reciprocal and the angle are f32 each. At
        // position 8,191 an angle that was not rounded would be 2e-4 away from theirs.
        let exponent = |i: usize| f64::from((2 * i) as f32 / head_dim as f32);
        let steps: Vec<f32> = (0..half)
            .map(|i| 1.0 / base.powf(exponent(i)) as f32)
            .collect();
        let mut table = Vec::with_capacity(positions * 2 * half);
        for position in 0..positions {
            let angles = || steps.iter().map(|step| f64::from(position as f32 * step));
            table.extend(angles().map(|angle| angle.cos() as f32));
            table.extend(angles().map(|angle| angle.sin() as f32));
        }
        Self { base, half, table }
    }

    /// What it was made for.
    pub fn base(&self) -> f64 {
        self.base
    }

    /// Bytes on the heap.
    pub fn n_bytes(&self) -> usize {
        self.table.len() * size_of::<f32>()
    }

    /// Turns the heads of a row's tokens in place: `tokens` has `stride` elements for each token
    /// from position 0 on, of which the first `hidden` are whole heads.
    ///
    /// The caller has checked that the positions suffice.
    #[inline(always)]
    pub fn turn<L: Lanes, E: Plain>(
        &self,
        lanes: L,
        tokens: &mut [E],
        stride: usize,
        hidden: usize,
    ) {
        let half = self.half;
        let whole = half / L::N * L::N;
        let angles = self.table.chunks_exact(2 * half);
        for (token, angles) in tokens.chunks_exact_mut(stride).zip(angles) {
            let (cos, sin) = angles.split_at(half);
            for head in token[..hidden].chunks_exact_mut(2 * half) {
                let (left, right) = head.split_at_mut(half);
                for at in (0..whole).step_by(L::N) {
                    let (cos, sin) = (lanes.load(&cos[at..]), lanes.load(&sin[at..]));
                    let (x, y) = (E::load(lanes, &left[at..]), E::load(lanes, &right[at..]));
                    let turned = lanes.sub(lanes.mul(x, cos), lanes.mul(y, sin));
                    E::store(lanes, turned, &mut left[at..]);
                    let turned = lanes.add(lanes.mul(y, cos), lanes.mul(x, sin));
                    E::store(lanes, turned, &mut right[at..]);
                }
                for at in whole..half {
                    let (x, y) = (left[at].get(), right[at].get());
                    left[at] = E::of(x * cos[at] - y * sin[at]);
                    right[at] = E::of(y * cos[at] + x * sin[at]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::scalar::PortableF32;

    #[test]
    fn the_first_token_stays_and_products_depend_on_distance_alone() {
        // Heads of 22: a whole register and a tail of the portable kernel's.
        let (head_dim, hidden, stride) = (22, 44, 50);
        let rotary = Rotary::new(10_000.0, head_dim, 40);
        let token: Vec<f32> = (0..stride).map(|i| (i as f32 * 0.7).sin()).collect();
        let mut tokens = token.repeat(40);
        rotary.turn(PortableF32, &mut tokens, stride, hidden);
        assert_eq!(tokens[..stride], token);
        let product = |a: usize, b: usize| -> f32 {
            let head = |token: usize| &tokens[token * stride + head_dim..][..head_dim];
            head(a).iter().zip(head(b)).map(|(a, b)| a * b).sum()
        };
        for distance in [0, 1, 5, 19] {
            assert!((product(0, distance) - product(20, 20 + distance)).abs() < 1e-4);
        }
        assert!((product(0, 5) - product(0, 6)).abs() > 1e-3);
        for token_idx in 0..40 {
            assert_eq!(
                tokens[token_idx * stride..][hidden..stride],
                token[hidden..]
            );
        }
    }
}
