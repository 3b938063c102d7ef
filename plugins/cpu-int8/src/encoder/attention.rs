//! Attention of one row of the batch: for each head, softmax(scale · Q Kᵀ) V.
//!
//! Rows of a batch never meet here: `offsets` cuts them apart and nothing is padded or masked. Both
//! products run on a kernel's tile: the head's keys and values are packed into panels, MR queries at
//! a time are multiplied, made into weights while in cache (32 × 512 × 4 B = 64 KiB) and multiplied
//! again. Sums and the softmax are f32; what is multiplied is the kernel's element, f32 or bf16.
//!
//! Where a layer has a window, a tile of queries meets only the panels of keys that one of them sees:
//! at most 2 · window + MR + 2 · NR columns, however long the row is. Where it has relative positions,
//! their terms are added to the scores ([`relative`](crate::encoder::relative)).

use crate::arena::AttentionScratch;
use crate::encoder::pointwise::softmax_unscaled;
use crate::encoder::relative::{QUERY_BLOCK, Relative, TilePlace};
use crate::encoder::rotary::Rotary;
use crate::kernel::lanes::Lanes;
use crate::kernel::tile::Tile;
use crate::kernel::{Inside, Kernel, MR_MAX, Op};
use crate::quant::Plain;
use std::ops::Range;

/// One row's attention over all heads.
pub struct AttendRow<'a, A: Kernel> {
    /// Queries: `n_queries` × hidden, the first of them the row's first token. Turned in place by
    /// `rotary`.
    pub query: &'a mut [A::Left],
    /// Keys and values: tokens × 2 hidden, the keys first. The keys are turned in place.
    pub key_value: &'a mut [A::Right],
    /// What turns queries and keys by their positions, if something does.
    pub rotary: Option<&'a Rotary>,
    /// What adds to scores by distance, if something does; not together with a window.
    pub relative: Option<&'a Relative<A>>,
    /// What scores are multiplied with.
    pub scale: f32,
    /// How far a token sees to either side; `None`: the whole row.
    pub window: Option<usize>,
    /// Heads.
    pub n_heads: usize,
    /// Values of a head: hidden = heads × head dim.
    pub head_dim: usize,
    /// Result: `n_queries` × hidden.
    pub context: &'a mut [f32],
    /// Buffers.
    pub scratch: &'a mut AttentionScratch<A>,
}

impl<A, E> Op<A> for AttendRow<'_, A>
where
    E: Plain,
    A: Kernel<Left = E, Right = E, Acc = f32>,
{
    type Output = ();

    #[inline(always)]
    fn run(self, inside: &Inside<A>) {
        let Self {
            query,
            key_value,
            rotary,
            relative,
            scale,
            window,
            n_heads,
            head_dim,
            context,
            scratch,
        } = self;
        let hidden = n_heads * head_dim;
        if let Some(rotary) = rotary {
            let lanes = inside.kernel().float();
            rotary.turn(lanes, query, hidden, hidden);
            rotary.turn(lanes, key_value, 2 * hidden, hidden);
        }
        let n_tokens = key_value.len() / (2 * hidden);
        let n_queries = query.len() / hidden;
        let block_len = relative.map_or(usize::MAX, |_| QUERY_BLOCK);
        for first in (0..hidden).step_by(head_dim) {
            let head = first / head_dim;
            let dims = Dims {
                hidden,
                first,
                head_dim,
                n_tokens,
                window,
                scale,
            };
            pack_keys::<A>(key_value, &dims, &mut scratch.keys);
            pack_values::<A>(key_value, &dims, &mut scratch.values);
            for block in (0..n_queries).step_by(block_len) {
                let block = block..n_queries.min(block.saturating_add(block_len));
                if let Some(relative) = relative {
                    let AttentionScratch {
                        keys,
                        relative: room,
                        ..
                    } = &mut *scratch;
                    relative.meet_keys(inside, head, n_tokens, &block, keys, room);
                }
                for start in block.clone().step_by(A::MR) {
                    let queries = start..block.end.min(start + A::MR);
                    let range = start * hidden..queries.end * hidden;
                    attend_tile(
                        inside,
                        &dims,
                        relative,
                        &TilePlace {
                            head,
                            n_tokens,
                            block_end: block.end,
                            queries,
                        },
                        &query[range.clone()],
                        scratch,
                        &mut context[range],
                    );
                }
            }
        }
    }
}

/// Elements from one query's scores, and weights, to the next's: an odd number of panels. At 512 tokens
/// an even one would send the rows of a tile to four of the 64 sets of L1.
pub fn score_stride<A: Kernel>(n_tokens: usize) -> usize {
    (n_tokens.div_ceil(A::NR) | 1) * A::NR
}

/// Where one head of one row lies.
struct Dims {
    hidden: usize,
    // The head's first value of a token.
    first: usize,
    head_dim: usize,
    n_tokens: usize,
    window: Option<usize>,
    scale: f32,
}

impl Dims {
    /// Values of a head as the kernel pads them.
    fn head_padded<A: Kernel>(&self) -> usize {
        self.head_dim.next_multiple_of(A::K_ALIGN)
    }

    /// Tokens as the second product pads them.
    fn tokens_padded<A: Kernel>(&self) -> usize {
        self.n_tokens.next_multiple_of(A::K_ALIGN)
    }

    /// The tokens that some of these see, from a whole panel's first to a whole panel's last or the
    /// row's: what stands behind the end is padding, never a token.
    fn columns<A: Kernel>(&self, queries: &Range<usize>) -> Range<usize> {
        let Some(window) = self.window else {
            return 0..self.n_tokens;
        };
        let start = queries.start.saturating_sub(window) / A::NR * A::NR;
        let end = queries.end.saturating_add(window).min(self.n_tokens);
        start..end.next_multiple_of(A::NR).min(self.n_tokens)
    }
}

/// Sets to −∞ the scores of one query, whose columns are the tokens from `first` on, of tokens that
/// it does not see. Without a window it sees all.
#[inline(always)]
fn hide(scores: &mut [f32], first: usize, query: usize, window: Option<usize>) {
    let Some(window) = window else { return };
    let seen_from = query.saturating_sub(window).saturating_sub(first);
    let seen_to = query.saturating_add(window).saturating_add(1) - first;
    scores[..seen_from].fill(f32::NEG_INFINITY);
    if seen_to < scores.len() {
        scores[seen_to..].fill(f32::NEG_INFINITY);
    }
}

/// Keys, transposed: `[tokens / NR][head dim / K_STEP][NR][K_STEP]`, zeros behind the last token and
/// behind the last of the head.
#[inline(always)]
fn pack_keys<A: Kernel>(key_value: &[A::Right], dims: &Dims, keys: &mut [A::Right]) {
    let panel_len = dims.head_padded::<A>() * A::NR;
    for (token, row) in key_value.chunks_exact(2 * dims.hidden).enumerate() {
        let panel = &mut keys[token / A::NR * panel_len..][..panel_len];
        let lane = token % A::NR * A::K_STEP;
        let key = row[dims.first..][..dims.head_dim].chunks_exact(A::K_STEP);
        let rest = key.remainder();
        let mut steps = panel.chunks_exact_mut(A::NR * A::K_STEP);
        // Of a length known at compile time: a call of memmove for each four bytes took 7 % of all.
        for (part, step) in key.zip(&mut steps) {
            step[lane..lane + A::K_STEP].copy_from_slice(part);
        }
        if !rest.is_empty() {
            let step = steps.next().expect("the head is padded to whole steps");
            step[lane..lane + rest.len()].copy_from_slice(rest);
        }
    }
    // What the last panel holds behind the last token is an earlier row's: finite or not, it must
    // not be multiplied into a column that nobody reads without having been written.
    let (last, used) = (dims.n_tokens / A::NR, dims.n_tokens % A::NR * A::K_STEP);
    if used != 0 {
        keys[last * panel_len..][..panel_len]
            .chunks_exact_mut(A::NR * A::K_STEP)
            .for_each(|step| step[used..].fill(A::Right::default()));
    }
}

/// Values: `[head dim / NR][tokens / K_STEP][NR][K_STEP]`, zeros behind the last of the head and
/// behind the last token.
#[inline(always)]
fn pack_values<A: Kernel>(key_value: &[A::Right], dims: &Dims, values: &mut [A::Right]) {
    let row_len = 2 * dims.hidden;
    let (step_len, n_steps) = (A::NR * A::K_STEP, dims.tokens_padded::<A>() / A::K_STEP);
    for (panel_idx, first_dim) in (0..dims.head_dim).step_by(A::NR).enumerate() {
        let n_dims = (dims.head_dim - first_dim).min(A::NR);
        let column = dims.hidden + dims.first + first_dim;
        let panel = &mut values[panel_idx * n_steps * step_len..][..n_steps * step_len];
        let tokens = key_value.chunks(A::K_STEP * row_len);
        let n_used = tokens.len();
        for (step, rows) in panel.chunks_exact_mut(step_len).zip(tokens) {
            if rows.len() == A::K_STEP * row_len && n_dims == A::NR {
                interleave::<A>(&rows[column..], row_len, step);
            } else {
                step.fill(A::Right::default());
                for (s, row) in rows.chunks_exact(row_len).enumerate() {
                    for (dim, &value) in row[column..][..n_dims].iter().enumerate() {
                        step[dim * A::K_STEP + s] = value;
                    }
                }
            }
        }
        panel[n_used * step_len..].fill(A::Right::default());
    }
}

/// K_STEP rows' first NR values, `[NR][K_STEP]`.
#[inline(always)]
fn interleave<A: Kernel>(rows: &[A::Right], row_len: usize, step: &mut [A::Right]) {
    if A::K_STEP == 2 {
        // Two slices of known length: that, the compiler interleaves in registers.
        let pairs = rows[..A::NR].iter().zip(&rows[row_len..][..A::NR]);
        for (out, (&even, &odd)) in step.chunks_exact_mut(2).zip(pairs) {
            out[0] = even;
            out[1] = odd;
        }
    } else {
        for s in 0..A::K_STEP {
            for (dim, &value) in rows[s * row_len..][..A::NR].iter().enumerate() {
                step[dim * A::K_STEP + s] = value;
            }
        }
    }
}

/// Queries: `[MR][head dim]`; what stands behind a head meets zeros of the keys.
#[inline(always)]
fn pack_queries<A: Kernel>(query: &[A::Left], dims: &Dims, queries: &mut [A::Left]) {
    let head = dims.first..dims.first + dims.head_dim;
    for (out, row) in queries
        .chunks_exact_mut(dims.head_padded::<A>())
        .zip(query.chunks_exact(dims.hidden))
    {
        out[..dims.head_dim].copy_from_slice(&row[head.clone()]);
    }
}

/// One tile of queries of one head.
#[inline(always)]
fn attend_tile<A, E>(
    inside: &Inside<A>,
    dims: &Dims,
    relative: Option<&Relative<A>>,
    place: &TilePlace,
    query: &[E],
    scratch: &mut AttentionScratch<A>,
    context: &mut [f32],
) where
    E: Plain,
    A: Kernel<Left = E, Right = E, Acc = f32>,
{
    let AttentionScratch {
        queries,
        keys,
        values,
        scores,
        weights,
        tile,
        relative: room,
    } = scratch;
    let &Dims { scale, window, .. } = dims;
    let (start, n_rows) = (place.queries.start, place.queries.len());
    let head_padded = dims.head_padded::<A>();
    pack_queries::<A>(query, dims, queries);
    // Of scores and of weights: whole panels, whole registers, whole groups of K_ALIGN.
    let columns = dims.columns::<A>(&place.queries);
    let stride = score_stride::<A>(columns.len());
    let n_keys = columns.len().next_multiple_of(A::NR);
    const { assert!(A::NR.is_multiple_of(A::K_ALIGN) && A::NR.is_multiple_of(<A::Float as Lanes>::N)) };
    let panel_len = head_padded * A::NR;
    for (panel, right) in keys[columns.start * head_padded..][..n_keys * head_padded]
        .chunks_exact(panel_len)
        .enumerate()
    {
        Tile {
            n_rows,
            left: queries,
            stride: head_padded,
            right,
            out: &mut scores[panel * A::NR..],
            out_stride: stride,
        }
        .compute(inside);
    }
    if let Some(relative) = relative {
        relative.add_to(inside, place, queries, scores, stride, room);
    }
    let lanes = inside.kernel().float();
    let mut inverse_sums = [0.0; MR_MAX];
    let n_weights = columns
        .len()
        .next_multiple_of(A::K_ALIGN.max(<A::Float as Lanes>::N));
    for (row, inverse) in inverse_sums.iter_mut().take(n_rows).enumerate() {
        let scores = &mut scores[row * stride..];
        let weights = &mut weights[row * stride..][..n_weights];
        let seen = &mut scores[..columns.len()];
        hide(seen, columns.start, start + row, window);
        *inverse = 1.0 / softmax_unscaled(lanes, columns.len(), scores, scale, weights);
    }
    let values = &values[columns.start * A::NR..];
    let weighted = Weighted {
        weights,
        stride,
        n_tokens: columns.end.next_multiple_of(A::K_ALIGN) - columns.start,
        inverse_sums: &inverse_sums[..n_rows],
    };
    weighted.sum_up(inside, dims, values, tile, context);
}

/// A tile's weights of some tokens.
struct Weighted<'a, E> {
    weights: &'a [E],
    stride: usize,
    n_tokens: usize,
    /// One a query.
    inverse_sums: &'a [f32],
}

impl<E: Plain> Weighted<'_, E> {
    /// Multiplies the packed `values` from the first of the tokens on.
    #[inline(always)]
    fn sum_up<A>(
        &self,
        inside: &Inside<A>,
        dims: &Dims,
        values: &[E],
        tile: &mut [f32],
        context: &mut [f32],
    ) where
        A: Kernel<Left = E, Right = E, Acc = f32>,
    {
        let panel_len = dims.tokens_padded::<A>() * A::NR;
        for (panel, first_dim) in (0..dims.head_dim).step_by(A::NR).enumerate() {
            Tile {
                n_rows: self.inverse_sums.len(),
                left: self.weights,
                stride: self.stride,
                right: &values[panel * panel_len..][..self.n_tokens * A::NR],
                out: tile,
                out_stride: A::NR,
            }
            .compute(inside);
            let n_dims = (dims.head_dim - first_dim).min(A::NR);
            for (row, (sums, &inverse)) in
                tile.chunks_exact(A::NR).zip(self.inverse_sums).enumerate()
            {
                let out = &mut context[row * dims.hidden + dims.first + first_dim..][..n_dims];
                for (out, &sum) in out.iter_mut().zip(sums) {
                    *out = sum * inverse;
                }
            }
        }
    }
}
