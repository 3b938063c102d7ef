//! What simulations share: numbers by chance that come again, and batches in numbers.
#![allow(dead_code, reason = "each test uses a part of it")]

use gateway::generation::cost::Size;
use gateway::generation::queue::Taken;
use std::time::Duration;

/// Numbers by chance, the same for the same seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(state: u64) -> Self {
        Self(state)
    }

    /// Seeds that follow each other give numbers that have nothing in common (splitmix64).
    pub(crate) fn of_seed(seed: u64) -> Self {
        let mut mixed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        Self(mixed ^ (mixed >> 31))
    }

    /// From 0 to 1, without 1.
    pub(crate) fn unit(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f64 / (1_u64 << 24) as f64
    }

    pub(crate) fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.unit() * n as f64) as usize
    }

    /// True in this share of cases.
    pub(crate) fn happens(&mut self, share: f64) -> bool {
        self.unit() < share
    }

    pub(crate) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Between two events that come by chance, `mean` on average.
    pub(crate) fn gap(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }
}

/// Of a batch.
pub(crate) fn size(taken: &[Taken]) -> Size {
    let rows = taken
        .iter()
        .map(|(work, row)| Size::row(work.rows().row_len(*row as usize)));
    rows.fold(Size::default(), |sum, row| sum + row)
}

pub(crate) fn micros(us: f64) -> Duration {
    Duration::from_secs_f64(us / 1e6)
}
