//! What a kernel's instruction gives at most: the limit that measured speeds are held against.

use super::tile::Tile;
use super::{Inside, Kernel, Op};
use crate::arena::Aligned;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Bytes of both operands: they stay in an L1 of 32 KiB.
const BYTES: usize = 24 * 1024;
/// Tiles between two looks at the clock, which costs as much as a hundredth of one.
const TILES: usize = 8;
/// Of one trial: short enough that some are not interrupted.
const TRIAL: Duration = Duration::from_micros(200);
/// The best counts: on a shared machine the others are somebody else's noise.
const TRIALS: usize = 5;

/// Operations a second, a multiplication and an addition counted as two, of one full tile that stays in
/// L1 over so long a `k` that its beginning and its end do not count. Takes about a millisecond.
pub fn operations_per_s<K: Kernel>(kernel: K) -> f64 {
    let k = (BYTES / (K::MR + K::NR) / size_of::<K::Right>()).next_multiple_of(K::K_ALIGN);
    let left = Aligned::<K::Left>::new(K::MR * k);
    let right = Aligned::<K::Right>::new(K::NR * k);
    let mut out = Aligned::<K::Acc>::new(K::MR * K::NR);
    let trial = |_| {
        let (left, right, out) = (&left, &right, &mut out);
        let repeat = Repeat {
            left,
            right,
            k,
            out,
        };
        let (n_tiles, took) = kernel.vectorize(repeat);
        (2 * K::MR * K::NR * k * n_tiles) as f64 / took.as_secs_f64()
    };
    (0..TRIALS).map(trial).fold(0.0, f64::max)
}

struct Repeat<'a, K: Kernel> {
    left: &'a [K::Left],
    right: &'a [K::Right],
    k: usize,
    out: &'a mut [K::Acc],
}

impl<K: Kernel> Op<K> for Repeat<'_, K> {
    type Output = (usize, Duration);

    #[inline(always)]
    fn run(self, inside: &Inside<K>) -> (usize, Duration) {
        let (mut n_tiles, started) = (0, Instant::now());
        loop {
            for _ in 0..TILES {
                Tile {
                    n_rows: K::MR,
                    left: black_box(self.left),
                    stride: self.k,
                    right: self.right,
                    out: self.out,
                    out_stride: K::NR,
                }
                .compute(inside);
            }
            n_tiles += TILES;
            let took = started.elapsed();
            if TRIAL <= took {
                return (n_tiles, took);
            }
        }
    }
}
