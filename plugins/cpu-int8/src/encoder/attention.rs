//! Attention of one row of the batch: for each head, softmax(Q Kᵀ / √d) V in f32.
//!
//! Rows of a batch never meet here: `offsets` cuts them apart and nothing is padded or masked. Both
//! products run on the f32 kernel's tile: the head's keys and values are packed into panels, MR
//! queries at a time are multiplied, normalised while in L1 (6 × 512 × 4 B = 12 KiB) and multiplied
//! again.

use crate::arena::AttentionScratch;
use crate::encoder::pointwise::softmax_unscaled;
use crate::kernel::tile::Tile;
use crate::kernel::{Kernel, Op};

/// One row's attention over all heads.
pub struct AttendRow<'a, F: Kernel> {
    /// The f32 kernel.
    pub kernel: F,
    /// Queries: `n_queries` × hidden, the first of them the row's first token.
    pub query: &'a [f32],
    /// Keys and values: tokens × 2 hidden, the keys first.
    pub key_value: &'a [f32],
    /// Heads.
    pub n_heads: usize,
    /// Values of a head: hidden = heads × head dim.
    pub head_dim: usize,
    /// Result: `n_queries` × hidden.
    pub context: &'a mut [f32],
    /// Buffers.
    pub scratch: &'a mut AttentionScratch,
}

impl<F: Kernel<Left = f32, Right = f32, Acc = f32>> Op for AttendRow<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self {
            kernel,
            query,
            key_value,
            n_heads,
            head_dim,
            context,
            scratch,
        } = self;
        let hidden = n_heads * head_dim;
        let n_tokens = key_value.len() / (2 * hidden);
        let n_queries = query.len() / hidden;
        for head in 0..n_heads {
            let first = head * head_dim;
            pack_keys::<F>(key_value, hidden, first, head_dim, &mut scratch.keys);
            pack_values::<F>(key_value, hidden, first, head_dim, &mut scratch.values);
            for start in (0..n_queries).step_by(F::MR) {
                let n_rows = (n_queries - start).min(F::MR);
                let range = start * hidden..(start + n_rows) * hidden;
                attend_tile(
                    kernel,
                    &Head {
                        query: &query[range.clone()],
                        hidden,
                        first,
                        head_dim,
                        n_tokens,
                        n_rows,
                    },
                    scratch,
                    &mut context[range],
                );
            }
        }
    }
}

/// One tile of queries of one head.
struct Head<'a> {
    query: &'a [f32],
    hidden: usize,
    first: usize,
    head_dim: usize,
    n_tokens: usize,
    n_rows: usize,
}

/// Keys, transposed: `[tokens / NR][head dim][NR]`, zeros behind the last token.
#[inline(always)]
fn pack_keys<F: Kernel>(
    key_value: &[f32],
    hidden: usize,
    first: usize,
    head_dim: usize,
    keys: &mut [f32],
) {
    let rows = key_value.chunks_exact(2 * hidden);
    let n_tokens = rows.len();
    let panel_len = head_dim * F::NR;
    for (token, row) in rows.enumerate() {
        let panel = &mut keys[token / F::NR * panel_len..][..panel_len];
        let lane = token % F::NR;
        for (step, &v) in panel
            .chunks_exact_mut(F::NR)
            .zip(&row[first..first + head_dim])
        {
            step[lane] = v;
        }
    }
    // What the last panel holds behind the last token is an earlier row's: finite or not, it must
    // not be multiplied into a column that nobody reads without having been written.
    let (last, used) = (n_tokens / F::NR, n_tokens % F::NR);
    if used != 0 {
        keys[last * panel_len..][..panel_len]
            .chunks_exact_mut(F::NR)
            .for_each(|step| step[used..].fill(0.0));
    }
}

/// Values: `[head dim / NR][tokens][NR]`, zeros behind the last of the head.
#[inline(always)]
fn pack_values<F: Kernel>(
    key_value: &[f32],
    hidden: usize,
    first: usize,
    head_dim: usize,
    values: &mut [f32],
) {
    let rows = key_value.chunks_exact(2 * hidden);
    let panel_len = rows.len() * F::NR;
    for (token, row) in rows.enumerate() {
        let head = &row[hidden + first..][..head_dim];
        for (panel, part) in head.chunks(F::NR).enumerate() {
            let step = &mut values[panel * panel_len + token * F::NR..][..F::NR];
            step[..part.len()].copy_from_slice(part);
            step[part.len()..].fill(0.0);
        }
    }
}

#[inline(always)]
fn attend_tile<F: Kernel<Left = f32, Right = f32, Acc = f32>>(
    kernel: F,
    head: &Head<'_>,
    scratch: &mut AttentionScratch,
    context: &mut [f32],
) {
    let &Head {
        query,
        hidden,
        first,
        head_dim,
        n_tokens,
        n_rows,
    } = head;
    let AttentionScratch {
        keys,
        values,
        weights,
        tile,
        ..
    } = scratch;
    let stride = n_tokens.next_multiple_of(F::NR);
    for (panel, right) in keys[..stride * head_dim]
        .chunks_exact(head_dim * F::NR)
        .enumerate()
    {
        Tile {
            kernel,
            n_rows,
            left: &query[first..],
            stride: hidden,
            right,
            out: tile,
        }
        .run();
        for (row, scores) in tile.chunks_exact(F::NR).take(n_rows).enumerate() {
            weights[row * stride + panel * F::NR..][..F::NR].copy_from_slice(scores);
        }
    }
    let scale = 1.0 / (head_dim as f32).sqrt();
    let mut inverse_sums = [0.0; crate::kernel::MR_MAX];
    for (row, inverse) in inverse_sums.iter_mut().take(n_rows).enumerate() {
        *inverse = 1.0 / softmax_unscaled::<F>(&mut weights[row * stride..][..n_tokens], scale);
    }
    let panel_len = n_tokens * F::NR;
    for (panel, first_dim) in (0..head_dim).step_by(F::NR).enumerate() {
        let right = &values[panel * panel_len..][..panel_len];
        Tile {
            kernel,
            n_rows,
            left: weights,
            stride,
            right,
            out: tile,
        }
        .run();
        let n_dims = (head_dim - first_dim).min(F::NR);
        for (row, sums) in tile.chunks_exact(F::NR).take(n_rows).enumerate() {
            let out = &mut context[row * hidden + first + first_dim..][..n_dims];
            for (out, &sum) in out.iter_mut().zip(sums) {
                *out = sum * inverse_sums[row];
            }
        }
    }
}
