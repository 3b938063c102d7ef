//! When requests start, and which ones: pure, from a seed.

use std::time::Duration;

use rand_pcg::Pcg64;
use rand_pcg::rand_core::{Rng, SeedableRng};
use serde::Serialize;

/// The gaps between the starts of an open loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Spacing {
    /// Exponential gaps: independent users.
    Poisson,
    /// Equal gaps: the k-th request starts k / rate seconds after the first.
    Uniform,
}

/// The intended starts of an open loop as offsets from its beginning. Endless.
#[derive(Debug, Clone)]
pub struct Arrivals {
    spacing: Spacing,
    rate_per_s: f64,
    started: u64,
    offset_s: f64,
    random: Pcg64,
}

impl Arrivals {
    /// `rate_per_s` is above 0.
    pub fn new(spacing: Spacing, rate_per_s: f64, seed: u64) -> Self {
        // Another stream than the order's, so that arrivals and requests are independent.
        let random = Pcg64::seed_from_u64(seed.wrapping_add(0x9e37_79b9_7f4a_7c15));
        Self {
            spacing,
            rate_per_s,
            started: 0,
            offset_s: 0.0,
            random,
        }
    }
}

impl Iterator for Arrivals {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.offset_s = match self.spacing {
            // From the count, not by adding gaps, whose rounding would add up.
            Spacing::Uniform => self.started as f64 / self.rate_per_s,
            // A draw in [0, 1) makes the logarithm's argument at least 2^-53.
            Spacing::Poisson => {
                self.offset_s - (1.0 - unit(&mut self.random)).ln() / self.rate_per_s
            }
        };
        self.started += 1;
        Some(Duration::from_secs_f64(self.offset_s))
    }
}

/// Which line of the workload is sent next.
#[derive(Debug, Clone)]
pub enum Order {
    /// First to last, again and again.
    InTurn { next: usize, lines: usize },
    /// Line `k` (from 1) with a probability in proportion to `1 / k^exponent`.
    Zipf {
        cumulative: Vec<f64>,
        random: Box<Pcg64>,
    },
}

impl Order {
    /// `lines` is at least 1. An exponent of 0 draws every line equally often.
    pub fn new(lines: usize, zipf: Option<f64>, seed: u64) -> Self {
        let Some(exponent) = zipf else {
            return Self::InTurn { next: 0, lines };
        };
        let mut total = 0.0;
        let cumulative = (1..=lines)
            .map(|rank| {
                total += (rank as f64).powf(-exponent);
                total
            })
            .collect();
        Self::Zipf {
            cumulative,
            random: Box::new(Pcg64::seed_from_u64(seed)),
        }
    }

    /// The next line, from 0.
    pub fn draw(&mut self) -> usize {
        match self {
            Self::InTurn { next, lines } => {
                let line = *next;
                *next = (line + 1) % *lines;
                line
            }
            Self::Zipf { cumulative, random } => {
                let last = cumulative.len() - 1;
                let point = unit(random) * cumulative[last];
                cumulative
                    .partition_point(|&reached| reached <= point)
                    .min(last)
            }
        }
    }
}

/// Which requests are abandoned by their client.
#[derive(Debug, Clone)]
pub struct HangUps {
    share: f64,
    random: Pcg64,
}

impl HangUps {
    /// `share` is from 0 to 1.
    pub fn new(share: f64, seed: u64) -> Self {
        // A third stream, so that a share changes neither arrivals nor order.
        let random = Pcg64::seed_from_u64(seed.wrapping_add(0x3c6e_f372_fe94_f82a));
        Self { share, random }
    }

    pub fn draw(&mut self) -> bool {
        unit(&mut self.random) < self.share
    }
}

/// Uniform in [0, 1), from the 53 bits that an f64 holds.
pub(crate) fn unit(random: &mut Pcg64) -> f64 {
    (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(zipf: Option<f64>, seed: u64, count: usize) -> Vec<usize> {
        let mut order = Order::new(5, zipf, seed);
        (0..count).map(|_| order.draw()).collect()
    }

    #[test]
    fn without_zipf_the_lines_come_in_turn() {
        assert_eq!(draws(None, 7, 7), [0, 1, 2, 3, 4, 0, 1]);
    }

    #[test]
    fn zipf_draws_by_rank() {
        let count = 100_000;
        for exponent in [0.0, 0.8, 1.0, 2.0] {
            let drawn = draws(Some(exponent), 1, count);
            let weights: Vec<f64> = (1..=5)
                .map(|rank| f64::from(rank).powf(-exponent))
                .collect();
            for (line, weight) in weights.iter().enumerate() {
                let expected = weight / weights.iter().sum::<f64>();
                let seen =
                    drawn.iter().filter(|&&drawn| drawn == line).count() as f64 / count as f64;
                // Five standard deviations of a share near one half are 0.008.
                assert!(
                    (seen - expected).abs() < 0.01,
                    "exponent {exponent}, line {line}: {seen}, not {expected}"
                );
            }
        }
    }

    #[test]
    fn a_seed_is_a_sequence() {
        assert_eq!(draws(Some(1.0), 3, 1000), draws(Some(1.0), 3, 1000));
        assert_ne!(draws(Some(1.0), 3, 1000), draws(Some(1.0), 4, 1000));
        // Pinned: a seed means the same run in every later version.
        assert_eq!(
            draws(Some(1.0), 0, 12),
            [0, 0, 2, 0, 3, 0, 0, 1, 3, 4, 0, 0]
        );
    }

    #[test]
    fn a_share_hangs_up() {
        for share in [0.0, 0.25, 1.0] {
            let mut hang_ups = HangUps::new(share, 3);
            let count = (0..10_000).filter(|_| hang_ups.draw()).count();
            // Five standard deviations of a quarter of 10,000 are 217.
            assert!(
                (count as f64 - share * 1e4).abs() < 217.0,
                "{share}: {count}"
            );
        }
    }

    #[test]
    fn uniform_arrivals_are_equally_spaced() {
        let offsets_ms: Vec<u128> = Arrivals::new(Spacing::Uniform, 100.0, 0)
            .take(4)
            .map(|offset| offset.as_millis())
            .collect();
        assert_eq!(offsets_ms, [0, 10, 20, 30]);
    }

    #[test]
    fn poisson_arrivals_keep_the_rate_and_are_reproducible() {
        let starts = |seed| {
            Arrivals::new(Spacing::Poisson, 50.0, seed)
                .take(50_000)
                .collect::<Vec<_>>()
        };
        let offsets = starts(1);
        assert_eq!(offsets, starts(1));
        assert_ne!(offsets, starts(2));
        assert!(offsets.is_sorted());
        let gaps_s: Vec<f64> = offsets
            .windows(2)
            .map(|pair| (pair[1] - pair[0]).as_secs_f64())
            .collect();
        let mean_s = gaps_s.iter().sum::<f64>() / gaps_s.len() as f64;
        assert!((mean_s * 50.0 - 1.0).abs() < 0.03, "mean gap {mean_s} s");
        // An exponential gap is longer than its mean with probability 1/e.
        let long =
            gaps_s.iter().filter(|&&gap_s| gap_s > 0.02).count() as f64 / gaps_s.len() as f64;
        assert!(
            (long - (-1.0_f64).exp()).abs() < 0.02,
            "share above the mean {long}"
        );
    }
}
