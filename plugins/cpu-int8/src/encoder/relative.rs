//! Disentangled attention (He and others 2021, DeBERTa): a score has terms that depend on how far the
//! key stands from the query.
//!
//! ```text
//! score[i][j] = Q[i]·K[j] + Q[i]·PosK[row(i − j)] + PosQ[row(i − j)]·K[j]
//! ```
//!
//! PosK and PosQ are the layer's projections of one table of relative embeddings: constants, made at
//! load. Far distances share rows of the table, so both hold the rows that some distance has, in the
//! order of the offset j − i: the rank of a row grows by 0 or 1 from offset to offset. Both terms are
//! products of whole tiles and then moved to where they belong, without a step for each score:
//!
//! * Q·PosK: a tile of queries meets the ranks that it sees. A query's row of results holds its scores
//!   in order, so a register of scores is one load and one permutation ([`Lanes::near`]).
//! * PosQ·K: the ranks meet a panel of keys, [`QUERY_BLOCK`] queries at a time. The score of query i and
//!   key j stands in row rank(j − i), column j: each column is to move up by its own index, which
//!   is a blend for each bit of the index.

pub mod offsets;

use crate::arena::{Aligned, Codes};
use crate::encoder::attention::score_stride;
use crate::encoder::pointwise::NormAndEncode;
use crate::gemm::pack::Packed;
use crate::kernel::lanes::{LANES_MAX, Lanes};
use crate::kernel::tile::Tile;
use crate::kernel::{Inside, Kernel};
use crate::quant::narrow::Storage;
use offsets::Offsets;
use std::ops::Range;
use std::sync::Arc;

/// Queries that meet a panel of keys at a time: their products and what they become (159 × 32 and
/// 132 × 16 floats, 29 KB) stay in L1.
pub const QUERY_BLOCK: usize = 128;

/// A layer's projections of the table, ranks × hidden, as loaded.
pub struct Tables {
    /// The offsets that ranks belong to.
    pub offsets: Arc<Offsets>,
    /// Values of a head.
    pub head_dim: usize,
    /// What queries are multiplied with, if they are.
    pub keys: Option<Vec<f32>>,
    /// What keys are multiplied with, if they are.
    pub queries: Option<Vec<f32>>,
}

/// A layer's projections, packed for one kernel.
pub struct Relative<A: Kernel> {
    offsets: Arc<Offsets>,
    // One a head, a rank a column; none if queries are not multiplied.
    keys: Vec<Packed<A>>,
    // One a head, a rank a row, and ROW_GROUP more that are only read; none if keys are not multiplied.
    queries: Vec<Codes<A>>,
}

/// Scratch for one row's relative attention.
pub struct RelativeScratch {
    /// One tile of queries by ranks: `[MR][ranks]`.
    content: Aligned<f32>,
    /// Ranks by one panel of keys: `[ranks][NR]`.
    products: Aligned<f32>,
    /// Products on their way to the scores: `[queries + N][N]`.
    moved: Aligned<f32>,
    /// What a block of queries' scores get from keys, the last query first, as [`Skew`] makes
    /// them: `[QUERY_BLOCK][tokens]`.
    bias: Aligned<f32>,
}

impl RelativeScratch {
    /// Room for rows of `tokens_max` tokens; none if they are 0.
    pub fn new<A: Kernel>(tokens_max: usize) -> Self {
        if tokens_max == 0 {
            let none = || Aligned::new(0);
            return Self {
                content: none(),
                products: none(),
                moved: none(),
                bias: none(),
            };
        }
        let block = QUERY_BLOCK.min(tokens_max);
        let products = (block + A::NR).next_multiple_of(A::MR) + A::ROW_GROUP;
        Self {
            content: Aligned::new(A::MR * content_stride::<A>(tokens_max) + LANES_MAX),
            products: Aligned::new(products * A::NR),
            moved: Aligned::new((block + LANES_MAX) * <A::Float as Lanes>::N),
            bias: Aligned::new(block * score_stride::<A>(tokens_max)),
        }
    }

    /// Bytes on the heap.
    pub fn n_bytes(&self) -> usize {
        self.content.n_bytes()
            + self.products.n_bytes()
            + self.moved.n_bytes()
            + self.bias.n_bytes()
    }
}

/// Elements from one query's products with ranks to the next's, at most: a tile sees n + MR − 1
/// offsets, which start and end inside panels. An odd number of panels, as [`score_stride`].
fn content_stride<A: Kernel>(n_tokens: usize) -> usize {
    score_stride::<A>(n_tokens + A::MR + 2 * A::NR)
}

/// One tile of queries of one head.
pub struct TilePlace {
    /// The head.
    pub head: usize,
    /// Tokens of the row.
    pub n_tokens: usize,
    /// The end of the tile's block of queries.
    pub block_end: usize,
    /// The tile's queries.
    pub queries: Range<usize>,
}

// === impl Relative ===

impl<A: Kernel> Relative<A> {
    /// Packs a layer's projections.
    pub fn new(kernel: A, tables: &Tables) -> Self {
        let (head_dim, n_ranks) = (tables.head_dim, tables.offsets.rows().len());
        let columns = |head: Vec<f32>| {
            Packed::new(kernel, Storage::Whole, &head, &vec![0.0; n_ranks], head_dim)
        };
        let rows = |mut head: Vec<f32>| {
            let mut codes = Codes::<A>::new(n_ranks + A::ROW_GROUP, head_dim);
            // f32 or bf16: the scales are 1.
            kernel.vectorize(NormAndEncode::encode(
                &mut head, head_dim, n_ranks, &mut codes,
            ));
            codes
        };
        Self {
            offsets: Arc::clone(&tables.offsets),
            keys: heads(tables.keys.as_deref(), n_ranks, head_dim)
                .map(columns)
                .collect(),
            queries: heads(tables.queries.as_deref(), n_ranks, head_dim)
                .map(rows)
                .collect(),
        }
    }

    /// Bytes on the heap.
    pub fn n_bytes(&self) -> usize {
        let keys = self.keys.iter().map(Packed::n_bytes).sum::<usize>();
        let queries = self.queries.iter().map(Codes::n_bytes);
        keys + queries.sum::<usize>()
    }
}

/// A table cut by heads, each ranks × head dim.
fn heads(table: Option<&[f32]>, n_ranks: usize, head_dim: usize) -> impl Iterator<Item = Vec<f32>> {
    let table = table.unwrap_or_default();
    let hidden = table.len() / n_ranks;
    (0..hidden).step_by(head_dim).map(move |first| {
        let rows = table.chunks_exact(hidden);
        let head = rows.flat_map(|row| &row[first..][..head_dim]);
        head.copied().collect()
    })
}

impl<A: Kernel<Acc = f32>> Relative<A> {
    /// Makes what the scores of a block of queries get from one head's packed `keys`.
    #[inline(always)]
    pub fn meet_keys(
        &self,
        inside: &Inside<A>,
        head: usize,
        n_tokens: usize,
        block: &Range<usize>,
        keys: &[A::Right],
        scratch: &mut RelativeScratch,
    ) {
        let Some(table) = self.queries.get(head) else {
            return;
        };
        let lanes = inside.kernel().float();
        let stride = score_stride::<A>(n_tokens);
        let (products, moved, bias) = (
            &mut scratch.products[..],
            &mut scratch.moved[..],
            &mut scratch.bias[..],
        );
        let panels = keys.chunks_exact(table.stride * A::NR);
        for (first_key, right) in (0..n_tokens).step_by(A::NR).zip(panels) {
            let ranks = self.offsets.ranks(first_key, block.end - 1);
            let (first, end) = (ranks[0], ranks[block.len() + A::NR - 2] + 1);
            let n_ranks = (end - first) as usize;
            let left = &table.codes[first as usize * table.stride..];
            for row in (0..n_ranks).step_by(A::MR) {
                Tile {
                    n_rows: (n_ranks - row).min(A::MR),
                    left: &left[row * table.stride..],
                    stride: table.stride,
                    right,
                    out: &mut products[row * A::NR..],
                    out_stride: A::NR,
                }
                .compute(inside);
            }
            for column in (0..A::NR).step_by(<A::Float as Lanes>::N) {
                Skew {
                    products: &products[column..],
                    stride: A::NR,
                    ranks: &ranks[column..],
                    first,
                }
                .run(
                    lanes,
                    block.len(),
                    moved,
                    &mut bias[first_key + column..],
                    stride,
                );
            }
        }
    }

    /// Adds to a tile's scores, rows of `stride`, what its packed `queries` get from offsets and what
    /// [`meet_keys`](Self::meet_keys) made of its block.
    #[inline(always)]
    pub fn add_to(
        &self,
        inside: &Inside<A>,
        place: &TilePlace,
        queries: &[A::Left],
        scores: &mut [f32],
        stride: usize,
        scratch: &mut RelativeScratch,
    ) {
        let lanes = inside.kernel().float();
        let n_padded = place.n_tokens.next_multiple_of(<A::Float as Lanes>::N);
        let n_rows = place.queries.len();
        if let Some(table) = self.keys.get(place.head) {
            let ranks = self.offsets.ranks(0, place.queries.end - 1);
            let panel_of = |rank: u32| rank as usize / A::NR;
            let first = panel_of(ranks[0]);
            let panels = first..panel_of(ranks[place.n_tokens + n_rows - 2]) + 1;
            let width = score_stride::<A>(panels.len() * A::NR);
            let content = &mut scratch.content[..];
            for panel in panels {
                Tile {
                    n_rows,
                    left: queries,
                    stride: table.stride,
                    right: table.panel(lanes, panel, &mut []),
                    out: &mut content[(panel - first) * A::NR..],
                    out_stride: width,
                }
                .compute(inside);
            }
            for (row, scores) in scores.chunks_mut(stride).take(n_rows).enumerate() {
                // The last query's offsets come first.
                let ranks = &ranks[n_rows - 1 - row..][..n_padded];
                let products = &content[row * width..];
                add_near(
                    lanes,
                    products,
                    first * A::NR,
                    ranks,
                    &mut scores[..n_padded],
                );
            }
        }
        if !self.queries.is_empty() {
            let bias = &scratch.bias[..];
            for (query, scores) in place.queries.clone().zip(scores.chunks_mut(stride)) {
                let bias = &bias[(place.block_end - 1 - query) * stride..];
                add(lanes, &mut scores[..n_padded], &bias[..n_padded]);
            }
        }
    }
}

/// Adds to each score the product of its rank; `products` begin with rank `first`.
#[inline(always)]
fn add_near<L: Lanes>(lanes: L, products: &[f32], first: usize, ranks: &[u32], scores: &mut [f32]) {
    for (scores, ranks) in scores.chunks_exact_mut(L::N).zip(ranks.chunks_exact(L::N)) {
        let near = lanes.near(&products[ranks[0] as usize - first..], ranks);
        lanes.store(lanes.add(lanes.load(scores), near), scores);
    }
}

#[inline(always)]
fn add<L: Lanes>(lanes: L, sums: &mut [f32], x: &[f32]) {
    for (sums, x) in sums.chunks_exact_mut(L::N).zip(x.chunks_exact(L::N)) {
        lanes.store(lanes.add(lanes.load(sums), lanes.load(x)), sums);
    }
}

/// N columns of products, to be sorted by query.
struct Skew<'a> {
    /// Rows of `stride`, of which the first N columns count.
    products: &'a [f32],
    stride: usize,
    /// Rank of each offset of the first column, from the last query's on; `first` is row 0's.
    ranks: &'a [u32],
    first: u32,
}

impl Skew<'_> {
    /// Writes a row of N for each query, the last of them first: `out[w][c] = products[rank(w + c)][c]`.
    ///
    /// Column c moves up by c rows: in a first pass, in which rows are looked up by rank, by the two
    /// highest bits of c, in a second one by the others.
    #[inline(always)]
    fn run<L: Lanes>(
        &self,
        lanes: L,
        n_queries: usize,
        moved: &mut [f32],
        out: &mut [f32],
        out_stride: usize,
    ) {
        const { assert!(4 <= L::N && L::N <= 16 && L::N.is_power_of_two()) };
        let n = L::N;
        let moved = &mut moved[..(n_queries + n / 4) * n];
        let ranks = &self.ranks[..n_queries + n - 1];
        for (out, (((&a, &b), &c), &d)) in moved.chunks_exact_mut(n).zip(
            ranks
                .iter()
                .zip(&ranks[n / 4..])
                .zip(&ranks[n / 2..])
                .zip(&ranks[n / 2 + n / 4..]),
        ) {
            let near = [self.row(lanes, a), self.row(lanes, b)];
            let far = [self.row(lanes, c), self.row(lanes, d)];
            lanes.store(up_by_two_bits(lanes, n / 4, near, far), out);
        }
        // With 8 lanes one bit is left, with 4 none: a column moves by 0 rows for the others.
        let (one, two) = (if 8 <= n { n } else { 0 }, if 16 <= n { 2 * n } else { 0 });
        let rows = moved
            .chunks_exact(n)
            .zip(moved[one..].chunks_exact(n))
            .zip(moved[two..].chunks_exact(n))
            .zip(moved[one + two..].chunks_exact(n));
        let outs = out.chunks_mut(out_stride).take(n_queries);
        for ((((a, b), c), d), out) in rows.zip(outs) {
            let (near, far) = (
                [lanes.load(a), lanes.load(b)],
                [lanes.load(c), lanes.load(d)],
            );
            lanes.store(up_by_two_bits(lanes, 1, near, far), out);
        }
    }

    #[inline(always)]
    fn row<L: Lanes>(&self, lanes: L, rank: u32) -> L::F {
        lanes.load(&self.products[(rank - self.first) as usize * self.stride..])
    }
}

/// Each lane from the row that two bits of its index choose: 2 · `shift` between `near` and `far`, and
/// `shift` within them.
#[inline(always)]
fn up_by_two_bits<L: Lanes>(lanes: L, shift: usize, near: [L::F; 2], far: [L::F; 2]) -> L::F {
    let (low, high) = (columns_with(shift), columns_with(2 * shift));
    let near = lanes.blend(low, near[0], near[1]);
    lanes.blend(high, near, lanes.blend(low, far[0], far[1]))
}

/// The lanes whose index has the bit `shift`, as bits.
#[inline(always)]
const fn columns_with(shift: usize) -> u32 {
    let (mut bits, mut lane) = (0, 0);
    while lane < LANES_MAX {
        if lane & shift != 0 {
            bits |= 1 << lane;
        }
        lane += 1;
    }
    bits
}
