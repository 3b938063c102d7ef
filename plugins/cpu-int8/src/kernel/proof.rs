//! A kernel is believed when it has multiplied right on the CPU that it is to run on.
//!
//! Not every machine that a kernel is for is at hand when it is written. One tile of full-range numbers
//! takes microseconds at open; a kernel that fails it is not chosen, and no wrong score is served.

use super::scalar::{PortableF32, oracle};
use super::tile::{self, Tile};
use super::{Kernel, MR_MAX, NR_MAX};
use crate::quant::{Code, Sum};

/// Steps along K: an odd number, so that a loop unrolled by two meets its tail.
const N_STEPS: usize = 5;

/// Whether one full tile equals the scalar oracle.
pub fn is_exact<K: Kernel>(kernel: K) -> bool {
    let k = N_STEPS * K::K_ALIGN;
    let (a, b) = (quanta(K::MR, k, 1), quanta(K::NR, k, 2));
    let left: Vec<K::Left> = a.chunks_exact(k).flat_map(encoded).collect();
    let columns: Vec<Vec<K::Right>> = b.chunks_exact(k).map(encoded).collect();
    let mut panel = vec![K::Right::default(); K::NR * k];
    for (lane, column) in columns.iter().enumerate() {
        for (step, group) in column.chunks_exact(K::K_STEP).enumerate() {
            panel[(step * K::NR + lane) * K::K_STEP..][..K::K_STEP].copy_from_slice(group);
        }
    }
    let mut out = vec![K::Acc::default(); MR_MAX * NR_MAX];
    tile::compute(
        kernel,
        Tile {
            n_rows: K::MR,
            left: &left,
            stride: k,
            right: &panel,
            out: &mut out,
            out_stride: K::NR,
        },
    );
    let expected = oracle(&a, &b, k);
    (0..K::MR).all(|row| {
        (0..K::NR).all(|column| {
            let quanta: i32 = columns[column].iter().map(|code| code.quantum()).sum();
            let found = out[row * K::NR + column];
            let corrected = found.corrected(K::Acc::correction(K::Left::ZERO_POINT, quanta));
            // At most 127 · 127 · 320: f32 holds it exactly.
            corrected == expected[row * K::NR + column] as f32
        })
    })
}

/// Rows of `k` numbers in [-127, 127] with both ends among them; each begins with 127, so that its scale
/// is 1.
fn quanta(n_rows: usize, k: usize, seed: u32) -> Vec<i8> {
    let mut state = seed;
    (0..n_rows * k)
        .map(|place| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            match (place % k, state >> 30) {
                (0, _) | (_, 0) => 127,
                (_, 1) => -127,
                _ => (state >> 16) as i8,
            }
        })
        .map(|quantum: i8| quantum.max(-127))
        .collect()
}

fn encoded<C: Code>(quanta: &[i8]) -> Vec<C> {
    let values: Vec<f32> = quanta.iter().map(|&quantum| f32::from(quantum)).collect();
    let mut codes = vec![C::default(); values.len()];
    C::encode(PortableF32, &values, &mut codes);
    codes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Dtype, Visitor, visit_all};

    struct Prove;

    impl Visitor for Prove {
        type Output = (&'static str, bool);
        fn visit<K: Kernel>(&mut self, kernel: K) -> Self::Output {
            (K::NAME, is_exact(kernel))
        }
    }

    #[test]
    fn every_kernel_here_proves_itself() {
        for dtype in Dtype::ALL {
            for (name, exact) in visit_all(dtype, &mut Prove) {
                assert!(exact, "{name}");
            }
        }
    }

    #[test]
    fn both_ends_of_the_range_are_tried() {
        let tried = quanta(4, 20, 1);
        assert!(tried.contains(&127) && tried.contains(&-127));
        assert!(tried.iter().any(|quantum| (-126..127).contains(quantum)));
    }
}
