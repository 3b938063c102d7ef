//! Rotary positions: pairs of a head's values turned by angles that grow with the position.

use crate::numbers::Numbers;
use candle_core::{Result, Tensor};

/// The angles of every position, shared by the layers of one base.
pub(crate) struct Angles {
    /// Pairs that turn.
    pub(crate) n_pairs: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// The same as (positions, pairs) on the device.
    pub(crate) tables: [Tensor; 2],
}

impl Angles {
    /// Pair `i` of position `p` turns by p / base^(i / pairs).
    pub(crate) fn new(
        numbers: &Numbers,
        base: f64,
        n_pairs: usize,
        positions: usize,
    ) -> Result<Self> {
        let frequencies: Vec<f64> = (0..n_pairs)
            .map(|pair| base.powf(-(pair as f64) / n_pairs as f64))
            .collect();
        let angles = |of: fn(f64) -> f64| -> Vec<f32> {
            let positions = (0..positions).map(|position| position as f64);
            let angles = positions.flat_map(|position| {
                frequencies
                    .iter()
                    .map(move |frequency| position * frequency)
            });
            angles.map(|angle| of(angle) as f32).collect()
        };
        let (cos, sin) = (angles(f64::cos), angles(f64::sin));
        let table = |values: &[f32]| numbers.exact_tensor(values, (positions, n_pairs));
        Ok(Self {
            n_pairs,
            tables: [table(&cos)?, table(&sin)?],
            cos,
            sin,
        })
    }

    /// Cosines and sines of a position.
    #[inline(always)]
    pub(super) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.n_pairs..(position + 1) * self.n_pairs;
        (&self.cos[range.clone()], &self.sin[range])
    }

    /// Turns (…, width, dim), whose pairs lie half a turned width apart.
    pub(super) fn turn(&self, x: &Tensor) -> Result<Tensor> {
        let rank = x.rank();
        let (width, dim) = (x.dim(rank - 2)?, x.dim(rank - 1)?);
        let n = self.n_pairs;
        let cos = self.tables[0].narrow(0, 0, width)?;
        let sin = self.tables[1].narrow(0, 0, width)?;
        let (a, b) = (x.narrow(rank - 1, 0, n)?, x.narrow(rank - 1, n, n)?);
        let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        if 2 * n == dim {
            return Tensor::cat(&[&first, &second], rank - 1);
        }
        let rest = x.narrow(rank - 1, 2 * n, dim - 2 * n)?.contiguous()?;
        Tensor::cat(&[&first, &second, &rest], rank - 1)
    }

    pub(crate) fn n_bytes(&self) -> usize {
        let tables = self.tables.iter().map(super::bytes_of).sum::<usize>();
        tables + size_of_val(&self.cos[..]) + size_of_val(&self.sin[..])
    }
}
