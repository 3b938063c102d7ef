//! The one loop of all kernels: a register tile of up to MR rows by NR columns over the whole of
//! `k`.

#![allow(unsafe_code)] // Unchecked loads; the asserts at the top of `multiply` are their premise.

use crate::kernel::{Kernel, Op};

/// Computes a tile: `out[r · NR + c] = Σ_k left[r · stride + k] · right[k][c]`.
///
/// `right` is one panel laid out `[k / K_STEP][NR][K_STEP]`; its length says how long `k` is. The
/// sums of a row do not depend on `n_rows`: each row has its own accumulators and walks `k` in
/// order.
///
/// # Panics
/// If `n_rows` is 0 or above MR, or a slice is too short.
pub fn compute<K: Kernel>(
    kernel: K,
    n_rows: usize,
    left: &[K::Left],
    stride: usize,
    right: &[K::Right],
    out: &mut [K::Acc],
) {
    kernel.vectorize(Tile {
        kernel,
        n_rows,
        left,
        stride,
        right,
        out,
    });
}

/// The operands of [`compute`] as an [`Op`], for callers that are inside `vectorize` already.
pub struct Tile<'a, K: Kernel> {
    /// The instruction set.
    pub kernel: K,
    /// Rows of this tile, 1 to MR.
    pub n_rows: usize,
    /// Row-major activations.
    pub left: &'a [K::Left],
    /// Elements from one row of `left` to the next.
    pub stride: usize,
    /// One packed panel.
    pub right: &'a [K::Right],
    /// At least `n_rows` · NR sums, written.
    pub out: &'a mut [K::Acc],
}

impl<K: Kernel> Op for Tile<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        // One loop a height, so that accumulators are registers. Heights above MR compile to
        // nothing.
        macro_rules! heights {
            ($($rows:literal)*) => {
                match self.n_rows {
                    $($rows if $rows <= K::MR => multiply::<K, $rows>(self),)*
                    n_rows => panic!("a tile of {} has no height {n_rows}", K::NAME),
                }
            };
        }
        heights!(1 2 3 4 5 6 7 8 9 10 11 12)
    }
}

#[inline(always)]
fn multiply<K: Kernel, const R: usize>(tile: Tile<'_, K>) {
    let Tile {
        kernel,
        left,
        stride,
        right,
        out,
        ..
    } = tile;
    let step_len = K::NR * K::K_STEP;
    let n_steps = right.len() / step_len;
    assert!(n_steps * step_len == right.len());
    assert!((R - 1) * stride + n_steps * K::K_STEP <= left.len());
    assert!(R * K::NR <= out.len());

    let mut sums = [kernel.zero(); R];
    let mut step = 0;
    // Two steps a turn: addresses and the loop's own instructions are a fifth of a single step's.
    while step + 2 <= n_steps {
        // SAFETY: step + 1 < n_steps, and the first two asserts.
        unsafe { one_step(kernel, left, stride, right, step, &mut sums) };
        // SAFETY: as above.
        unsafe { one_step(kernel, left, stride, right, step + 1, &mut sums) };
        step += 2;
    }
    if step < n_steps {
        // SAFETY: step < n_steps, and the first two asserts.
        unsafe { one_step(kernel, left, stride, right, step, &mut sums) };
    }
    for (row, sum) in sums.into_iter().enumerate() {
        // SAFETY: row < R: the third assert keeps NR elements inside.
        unsafe { kernel.store(sum, out.as_mut_ptr().add(row * K::NR)) };
    }
}

/// Adds K_STEP products to each of R × NR sums.
///
/// # Safety `right` has more than `step` steps of NR · K_STEP elements, and `left` R rows of as
/// many steps of K_STEP.
#[inline(always)]
unsafe fn one_step<K: Kernel, const R: usize>(
    kernel: K,
    left: &[K::Left],
    stride: usize,
    right: &[K::Right],
    step: usize,
    sums: &mut [K::AccVec; R],
) {
    // SAFETY: the caller's first promise.
    let weights = unsafe { kernel.load(right.as_ptr().add(step * K::NR * K::K_STEP)) };
    for (row, sum) in sums.iter_mut().enumerate() {
        // SAFETY: the caller's second promise, row < R.
        let repeated = unsafe { kernel.splat(left.as_ptr().add(row * stride + step * K::K_STEP)) };
        *sum = kernel.dot(*sum, repeated, weights);
    }
}
