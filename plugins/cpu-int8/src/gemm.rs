//! `linear`: activations × packed weights, finished in registers.
//!
//! ```text
//! for each block of rows that stays close            64 KiB of activations
//!     for each panel of NR columns                   stays in L1 while the rows of the block pass
//!         for each MR rows: tile → finish → out
//! ```
//!
//! Panels that are held narrow ([`crate::quant::narrow`]) are unpacked where they are chosen, and their
//! block is all rows: unpacking is paid once.
//!
//! The panel is outside and the rows inside because a panel (K = 384, i16: 12 KiB) is larger than
//! six rows (4.5 KiB): the larger operand is the one that is read from L1.

pub mod finish;
pub mod pack;

use crate::arena::{Codes, TileScratch};
use crate::kernel::tile::Tile;
use crate::kernel::{Inside, Kernel, Op};
use crate::quant::Plain;
use finish::{Finish, Sums};
use pack::Packed;
use std::ops::Range;

/// Bytes of activations that pass under one panel before the next.
const BLOCK_BYTES: usize = 64 * 1024;

/// A linear layer over some rows: computes `finish(left · weights + bias)`.
pub struct Linear<'a, K: Kernel, O> {
    /// Activations, encoded.
    pub left: &'a Codes<K>,
    /// Which of their rows.
    pub rows: Range<usize>,
    /// Weights and bias.
    pub weights: &'a Packed<K>,
    /// What happens to a sum.
    pub finish: Finish,
    /// Room for a tile of sums and for an unpacked panel.
    pub sums: &'a mut TileScratch<K>,
    /// Results: a row of `n_out` for each of `rows`.
    pub out: &'a mut [O],
}

impl<K: Kernel, O: Plain> Linear<'_, K, O> {
    /// Computes it.
    ///
    /// # Panics
    /// If a slice is too short, or `left` was encoded for another input width.
    pub fn run(self, kernel: K) {
        kernel.vectorize(self);
    }
}

impl<K: Kernel, O: Plain> Op<K> for Linear<'_, K, O> {
    type Output = ();

    #[inline(always)]
    fn run(self, inside: &Inside<K>) {
        let Self {
            left,
            rows,
            weights,
            finish,
            sums: TileScratch { sums, panel },
            out,
        } = self;
        assert_eq!(left.stride, weights.stride, "activations of another width");
        assert!(rows.len() * weights.n_out <= out.len());
        let lanes = inside.kernel().float();
        let block_rows = if weights.is_narrow() {
            rows.len().max(1)
        } else {
            block_rows::<K>(weights.stride)
        };
        for block in rows.clone().step_by(block_rows) {
            let block_end = rows.end.min(block + block_rows);
            for panel_idx in 0..weights.n_panels() {
                let first = panel_idx * K::NR;
                let right = weights.panel(lanes, panel_idx, panel);
                for row in (block..block_end).step_by(K::MR) {
                    let n_rows = (block_end - row).min(K::MR);
                    Tile {
                        n_rows,
                        left: &left.codes[row * left.stride..],
                        stride: left.stride,
                        right,
                        out: sums,
                        out_stride: K::NR,
                    }
                    .compute(inside);
                    Sums::<K> {
                        sums,
                        row_scales: &left.scales[row..row + n_rows],
                        columns: weights.columns(panel_idx),
                        stride: weights.n_out,
                        n_columns: (weights.n_out - first).min(K::NR),
                    }
                    .finish(
                        lanes,
                        finish,
                        &mut out[(row - rows.start) * weights.n_out + first..],
                    );
                }
            }
        }
    }
}

fn block_rows<K: Kernel>(stride: usize) -> usize {
    let row_bytes = stride.max(1) * size_of::<K::Left>();
    (BLOCK_BYTES / row_bytes / K::MR).max(1) * K::MR
}
