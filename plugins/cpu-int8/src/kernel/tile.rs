//! A register tile: up to MR rows by NR columns over the whole of `k`, and the one loop of all
//! kernels that multiply vectors. (AMX multiplies matrices and has a loop of its own.)

#![allow(unsafe_code)] // Unchecked loads; the asserts of `Tile::compute` are their premise.

use crate::kernel::{Inside, Kernel, Op};

/// The operands of `out[r · out_stride + c] = Σ_k left[r · stride + k] · right[k][c]`.
///
/// `right` is one panel laid out `[k / K_STEP][NR][K_STEP]`; its length says how long `k` is. The
/// sums of a row do not depend on `n_rows`: each row has its own accumulators and walks `k` in
/// order.
pub struct Tile<'a, K: Kernel> {
    /// Rows of this tile, 1 to MR.
    pub n_rows: usize,
    /// Row-major activations; whole groups of ROW_GROUP rows.
    pub left: &'a [K::Left],
    /// Elements from one row of `left` to the next.
    pub stride: usize,
    /// One packed panel, padded along `k` to K_ALIGN.
    pub right: &'a [K::Right],
    /// NR sums for each row, written; whole groups of ROW_GROUP rows.
    pub out: &'a mut [K::Acc],
    /// Elements from one row of `out` to the next.
    pub out_stride: usize,
}

impl<K: Kernel> Tile<'_, K> {
    /// Computes the tile.
    ///
    /// # Panics
    /// If `n_rows` is 0 or above MR, or a slice is too short.
    #[inline(always)]
    pub fn compute(self, inside: &Inside<K>) {
        let k = self.right.len() / K::NR;
        assert!(k * K::NR == self.right.len() && k.is_multiple_of(K::K_ALIGN));
        assert!(0 < self.n_rows && self.n_rows <= K::MR);
        let last_row = self.n_rows.next_multiple_of(K::ROW_GROUP) - 1;
        assert!(last_row * self.stride + k <= self.left.len());
        assert!(last_row * self.out_stride + K::NR <= self.out.len());
        // SAFETY: the asserts are what `multiply` asks for, and `inside` is the proof that this
        // runs within `vectorize`.
        unsafe { inside.kernel().multiply(self) };
    }
}

/// Computes a tile outside of `vectorize`, for tests.
///
/// # Panics
/// As [`Tile::compute`].
pub fn compute<K: Kernel>(kernel: K, tile: Tile<'_, K>) {
    struct Alone<'a, K: Kernel>(Tile<'a, K>);
    impl<K: Kernel> Op<K> for Alone<'_, K> {
        type Output = ();
        #[inline(always)]
        fn run(self, inside: &Inside<K>) {
            self.0.compute(inside);
        }
    }
    kernel.vectorize(Alone(tile));
}

/// What a kernel says whose instruction multiplies vectors: everything but the loop.
pub trait Dot: Kernel {
    /// Registers with K_STEP activations of one row, repeated.
    type LeftVec: Copy;
    /// Registers with K_STEP weights of each of NR columns.
    type RightVec: Copy;
    /// Registers with NR running sums.
    type AccVec: Copy;

    /// NR sums of zero.
    fn zero(self) -> Self::AccVec;

    /// Repeats K_STEP neighbours of a row.
    ///
    /// # Safety
    /// `left` points to K_STEP readable elements.
    unsafe fn splat(self, left: *const Self::Left) -> Self::LeftVec;

    /// Loads one K_STEP of a panel, laid out `[NR][K_STEP]`.
    ///
    /// # Safety
    /// `right` points to NR · K_STEP readable elements.
    unsafe fn load(self, right: *const Self::Right) -> Self::RightVec;

    /// `sum[c] + Σ_s left[s] · right[c][s]`.
    fn dot(self, sum: Self::AccVec, left: Self::LeftVec, right: Self::RightVec) -> Self::AccVec;

    /// Stores NR sums.
    ///
    /// # Safety
    /// `out` points to NR writable elements.
    unsafe fn store(self, sum: Self::AccVec, out: *mut Self::Acc);
}

/// The body for each row below `$n`, written out. A loop over 12 rows is more than the compiler
/// unrolls, and then the sums live in memory instead of registers: half the speed, measured.
macro_rules! each_row {
    ($n:expr, $row:ident, $body:block) => {
        each_row!(@ $n, $row, $body, 0 1 2 3 4 5 6 7 8 9 10 11)
    };
    (@ $n:expr, $row:ident, $body:block, $($index:literal)*) => {
        $(if $index < $n {
            let $row = $index;
            $body
        })*
    };
}

/// [`Kernel::multiply`] of every [`Dot`].
///
/// # Safety
/// As [`Kernel::multiply`].
#[inline(always)]
pub(super) unsafe fn by_dots<K: Dot>(kernel: K, tile: Tile<'_, K>) {
    // One loop a height, so that accumulators are registers. Heights above MR compile to nothing.
    macro_rules! heights {
        ($($rows:literal)*) => {
            match tile.n_rows {
                // SAFETY: the caller's.
                $($rows if $rows <= K::MR => unsafe { multiply::<K, $rows>(kernel, tile) },)*
                n_rows => unreachable!("a tile of {} has no height {n_rows}", K::NAME),
            }
        };
    }
    heights!(1 2 3 4 5 6 7 8 9 10 11 12)
}

/// Rows up to which two steps are written out.
const TWO_STEPS_ROWS_MAX: usize = 6;

/// # Safety
/// As [`Kernel::multiply`], with R = `tile.n_rows`.
#[inline(always)]
unsafe fn multiply<K: Dot, const R: usize>(kernel: K, tile: Tile<'_, K>) {
    let Tile {
        left,
        stride,
        right,
        out,
        out_stride,
        ..
    } = tile;
    let n_steps = right.len() / (K::NR * K::K_STEP);
    let mut sums = [kernel.zero(); R];
    let mut step = 0;
    // Two steps a turn: addresses and the loop's own instructions are a fifth of a single step's.
    // A tall tile has work enough for one, and no registers for two.
    if R <= TWO_STEPS_ROWS_MAX {
        while step + 2 <= n_steps {
            // SAFETY: step + 1 < n_steps: the caller's promise covers both.
            unsafe { one_step(kernel, left, stride, right, step, &mut sums) };
            // SAFETY: as above.
            unsafe { one_step(kernel, left, stride, right, step + 1, &mut sums) };
            step += 2;
        }
    }
    while step < n_steps {
        // SAFETY: step < n_steps.
        unsafe { one_step(kernel, left, stride, right, step, &mut sums) };
        step += 1;
    }
    each_row!(R, row, {
        // SAFETY: row < R: the caller promises room for NR elements there.
        unsafe { kernel.store(sums[row], out.as_mut_ptr().add(row * out_stride)) };
    });
}

/// Adds K_STEP products to each of R × NR sums.
///
/// # Safety
/// `right` has more than `step` steps of NR · K_STEP elements, and `left` R rows of as many steps
/// of K_STEP.
#[inline(always)]
unsafe fn one_step<K: Dot, const R: usize>(
    kernel: K,
    left: &[K::Left],
    stride: usize,
    right: &[K::Right],
    step: usize,
    sums: &mut [K::AccVec; R],
) {
    // SAFETY: the caller's first promise.
    let weights = unsafe { kernel.load(right.as_ptr().add(step * K::NR * K::K_STEP)) };
    each_row!(R, row, {
        // SAFETY: the caller's second promise, row < R.
        let repeated = unsafe { kernel.splat(left.as_ptr().add(row * stride + step * K::K_STEP)) };
        sums[row] = kernel.dot(sums[row], repeated, weights);
    });
}
