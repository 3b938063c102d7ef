//! `linear`: activations × packed weights, finished in registers.
//!
//! ```text
//! for each block of rows that stays in L2            256 KiB of activations
//!     for each panel of NR columns                   stays in L1 while the rows of the block pass
//!         for each MR rows: tile → finish → out
//! ```
//!
//! The panel is outside and the rows inside because a panel (K = 384, i16: 12 KiB) is larger than
//! six rows (4.5 KiB): the larger operand is the one that is read from L1.

pub mod finish;
pub mod pack;

use crate::arena::{Aligned, Codes};
use crate::kernel::tile::Tile;
use crate::kernel::{Kernel, Op};
use finish::{Finish, finish_row};
use pack::Packed;

/// Bytes of activations that pass under one panel before the next: half of a 512 KiB L2.
const BLOCK_BYTES: usize = 256 * 1024;

/// Computes `finish(left · weights + bias)` for the first `n_rows` rows of `left` into `out`, whose
/// rows are `weights.n_out` apart. `sums` holds a tile, MR × NR.
///
/// # Panics
/// If a slice is too short, or `left` was encoded for another input width.
pub fn linear<K: Kernel>(
    kernel: K,
    left: &Codes<K>,
    n_rows: usize,
    weights: &Packed<K>,
    sums: &mut Aligned<K::Acc>,
    finish: Finish,
    out: &mut [f32],
) {
    assert_eq!(left.stride, weights.stride, "activations of another width");
    assert!(n_rows * weights.n_out <= out.len());
    let block_rows = block_rows::<K>(weights.stride);
    for block in (0..n_rows).step_by(block_rows) {
        let block_end = n_rows.min(block + block_rows);
        for panel_idx in 0..weights.n_panels() {
            let panel = PanelOverRows {
                kernel,
                left,
                weights,
                panel_idx,
                finish,
                sums,
                out,
            };
            kernel.vectorize(BlockOp {
                panel,
                rows: block..block_end,
            });
        }
    }
}

fn block_rows<K: Kernel>(stride: usize) -> usize {
    let row_bytes = stride.max(1) * size_of::<K::Left>();
    (BLOCK_BYTES / row_bytes / K::MR).max(1) * K::MR
}

/// One panel and everything that passes under it.
struct PanelOverRows<'a, K: Kernel> {
    kernel: K,
    left: &'a Codes<K>,
    weights: &'a Packed<K>,
    panel_idx: usize,
    finish: Finish,
    sums: &'a mut Aligned<K::Acc>,
    out: &'a mut [f32],
}

struct BlockOp<'a, K: Kernel> {
    panel: PanelOverRows<'a, K>,
    rows: std::ops::Range<usize>,
}

impl<K: Kernel> Op for BlockOp<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let PanelOverRows {
            kernel,
            left,
            weights,
            panel_idx,
            finish,
            sums,
            out,
        } = self.panel;
        let columns = weights.columns(panel_idx);
        let first = panel_idx * K::NR;
        let range = first..weights.n_out.min(first + K::NR);
        for row in self.rows.clone().step_by(K::MR) {
            let n_rows = (self.rows.end - row).min(K::MR);
            Tile {
                kernel,
                n_rows,
                left: &left.codes[row * left.stride..],
                stride: left.stride,
                right: weights.panel(panel_idx),
                out: sums,
            }
            .run();
            let scales = &left.scales[row..row + n_rows];
            let out = &mut out[row * weights.n_out..(row + n_rows) * weights.n_out];
            for ((sums, &scale), out) in sums
                .chunks_exact(K::NR)
                .zip(scales)
                .zip(out.chunks_exact_mut(weights.n_out))
            {
                finish_row::<K>(sums, scale, &columns, finish, &mut out[range.clone()]);
            }
        }
    }
}
