//! Memory: buffers that start on a cache line, and a worker's scratch, allocated once.

use crate::encoder::attention::score_stride;
use crate::encoder::relative::RelativeScratch;
use crate::kernel::{Kernel, MR_MAX, NR_MAX};
use crate::model::Shape;
use crate::quant::narrow::Storage;
use std::ops::{Deref, DerefMut};

/// Bytes of a cache line. A panel's K_STEP of 16 columns is exactly one or two of them, so an
/// aligned panel is read without a load ever crossing a line.
const LINE_BYTES: usize = 64;

/// Tokens that are computed together. Weights stream from L3 once for each micro-batch (21 MB as
/// i16 for MiniLM-L6), which 256 tokens turn into less than 1 GB/s; more tokens would only delay
/// the next look at who still waits.
pub const MICRO_TOKENS: usize = 256;

/// Tokens whose inner activations exist at a time: 64 of MiniLM's are 384 KiB in f32 and 96 KiB
/// encoded, which stay in L2 beside both layers' weights; those of a whole micro-batch did not.
const INNER_TOKENS: usize = 64;

/// Tokens whose inner activations exist at a time. Where panels are unpacked, those of a whole
/// micro-batch: for MiniLM it is no difference, but a model whose weights exceed L2 reads them once
/// instead of for every 64 (BERT-large's geometry, 128 tokens, int4 by AMX: 16.5 rows a second, not 13.9).
pub fn inner_tokens(storage: Storage) -> usize {
    match storage {
        Storage::Whole => INNER_TOKENS,
        Storage::Narrow => MICRO_TOKENS,
    }
}

/// A fixed-size buffer whose first element starts a cache line.
pub struct Aligned<T> {
    storage: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Copy + Default> Aligned<T> {
    /// `len` defaults.
    pub fn new(len: usize) -> Self {
        let slack = LINE_BYTES / size_of::<T>();
        let storage = vec![T::default(); len + slack];
        // `align_offset` may give up (`usize::MAX`); alignment is for speed only.
        let start = storage.as_ptr().align_offset(LINE_BYTES).min(slack);
        Self {
            storage,
            start,
            len,
        }
    }

    /// Bytes on the heap.
    pub fn n_bytes(&self) -> usize {
        self.storage.len() * size_of::<T>()
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.storage[self.start..self.start + self.len]
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.storage[self.start..self.start + self.len]
    }
}

/// Encoded activations: rows of `stride` elements and a scale for each row.
pub struct Codes<K: Kernel> {
    /// Row-major elements; a row's tail up to `stride` encodes zero.
    pub codes: Aligned<K::Left>,
    /// What a row's elements are multiples of.
    pub scales: Vec<f32>,
    /// Elements from row to row: the row's length rounded up to K_ALIGN.
    pub stride: usize,
}

impl<K: Kernel> Codes<K> {
    /// Room for `rows_max` rows of `n_features` values.
    pub fn new(rows_max: usize, n_features: usize) -> Self {
        let stride = n_features.next_multiple_of(K::K_ALIGN);
        Self {
            codes: Aligned::new(rows_max.next_multiple_of(K::ROW_GROUP) * stride),
            scales: vec![0.0; rows_max],
            stride,
        }
    }

    /// Bytes on the heap.
    pub fn n_bytes(&self) -> usize {
        self.codes.n_bytes() + size_of_val(&self.scales[..])
    }
}

/// Scratch for the attention of one row.
pub struct AttentionScratch<A: Kernel> {
    /// One head's queries of one tile: `[MR][head dim]`, head dim padded to K_ALIGN.
    pub queries: Aligned<A::Left>,
    /// One head's keys, transposed into panels: `[tokens / NR][head dim / K_STEP][NR][K_STEP]`.
    pub keys: Aligned<A::Right>,
    /// One head's values in panels: `[head dim / NR][tokens / K_STEP][NR][K_STEP]`.
    pub values: Aligned<A::Right>,
    /// Scores of one tile of queries: `[MR][tokens]`.
    pub scores: Aligned<f32>,
    /// The weights that they become, tokens padded to K_ALIGN.
    pub weights: Aligned<A::Left>,
    /// A finished tile: `[MR][NR]`.
    pub tile: Aligned<f32>,
    /// What relative positions need.
    pub relative: RelativeScratch,
}

/// Scratch of a linear layer.
pub struct TileScratch<K: Kernel> {
    /// A finished tile of sums: `[MR][NR]`.
    pub sums: Aligned<K::Acc>,
    /// An unpacked panel of the longest layer; empty where panels are held whole.
    pub panel: Aligned<K::Right>,
}

impl<K: Kernel> TileScratch<K> {
    /// Room for panels of `n_in` inputs, held as `storage`.
    pub fn new(storage: Storage, n_in: usize) -> Self {
        Self {
            sums: Aligned::new(MR_MAX * NR_MAX),
            panel: Aligned::new(Self::panel_len(storage, n_in)),
        }
    }

    fn n_bytes(&self) -> usize {
        self.sums.n_bytes() + self.panel.n_bytes()
    }

    fn panel_len(storage: Storage, n_in: usize) -> usize {
        match storage {
            Storage::Whole => 0,
            Storage::Narrow => K::NR * n_in.next_multiple_of(K::K_ALIGN),
        }
    }
}

/// Everything a worker writes while it scores, sized for the largest micro-batch.
pub struct Scratch<K: Kernel> {
    /// Rows of the micro-batch: index in the batch.
    pub rows: Vec<usize>,
    /// Where each row of the micro-batch starts, one entry more than rows.
    pub offsets: Vec<usize>,
    /// The residual stream: tokens × hidden.
    pub hidden: Aligned<f32>,
    /// `hidden`, encoded for the next linear layer.
    pub hidden_codes: Codes<K>,
    /// One token normalised beside the residual stream, and one smoothed.
    pub aside: Aligned<f32>,
    /// Queries: tokens × hidden.
    pub query: Aligned<K::Element>,
    /// Keys and values: tokens × 2 hidden.
    pub key_value: Aligned<K::Element>,
    /// What attention returns: tokens × hidden.
    pub context: Aligned<f32>,
    /// The feed-forward layer's inner activations: at most `inner_tokens` × inner.
    pub inner: Aligned<f32>,
    /// `inner`, encoded.
    pub inner_codes: Codes<K>,
    /// Embeddings before ELECTRA's projection: tokens × embedding; empty without one.
    pub embedded: Aligned<f32>,
    /// f32 operands of the projection and of the head.
    pub float_codes: Codes<K::Float>,
    /// The head's inner activations: rows × hidden.
    pub pooled: Aligned<f32>,
    /// rows × labels.
    pub logits: Aligned<f32>,
    /// One row's attention.
    pub attention: AttentionScratch<K::Attend>,
    /// What a linear layer needs.
    pub tile: TileScratch<K>,
    /// The same for f32 linear layers outside of the encoder's.
    pub float_tile: TileScratch<K::Float>,
}

impl<K: Kernel> Scratch<K> {
    /// Scratch for micro-batches of at most `tokens_max` tokens in rows of at most
    /// `row_tokens_max`.
    pub fn new(shape: &Shape, tokens_max: usize, row_tokens_max: usize) -> Self {
        let projected = if shape.embedding == shape.hidden {
            0
        } else {
            shape.embedding
        };
        let inner_tokens = tokens_max.min(inner_tokens(shape.storage));
        // Every row has a token, so there are no more rows than tokens.
        let rows_max = tokens_max;
        Self {
            rows: Vec::with_capacity(rows_max),
            offsets: Vec::with_capacity(rows_max + 1),
            hidden: Aligned::new(tokens_max * shape.hidden),
            hidden_codes: Codes::new(tokens_max, shape.hidden),
            aside: Aligned::new(2 * shape.hidden),
            query: Aligned::new(tokens_max * shape.hidden),
            key_value: Aligned::new(tokens_max * 2 * shape.hidden),
            context: Aligned::new(tokens_max * shape.hidden),
            inner: Aligned::new(inner_tokens * shape.inner),
            inner_codes: Codes::new(inner_tokens, shape.inner),
            embedded: Aligned::new(tokens_max * projected),
            float_codes: Codes::new(tokens_max, shape.hidden.max(projected)),
            pooled: Aligned::new(rows_max * shape.hidden),
            logits: Aligned::new(rows_max * shape.n_labels),
            attention: AttentionScratch::new(shape, row_tokens_max),
            tile: TileScratch::new(shape.storage, shape.hidden.max(shape.inner)),
            float_tile: TileScratch::new(Storage::Whole, 0),
        }
    }

    /// Bytes on the heap.
    pub fn n_bytes(&self) -> usize {
        (self.rows.capacity() + self.offsets.capacity()) * size_of::<usize>()
            + self.hidden.n_bytes()
            + self.hidden_codes.n_bytes()
            + self.aside.n_bytes()
            + self.query.n_bytes()
            + self.key_value.n_bytes()
            + self.context.n_bytes()
            + self.inner.n_bytes()
            + self.inner_codes.n_bytes()
            + self.embedded.n_bytes()
            + self.float_codes.n_bytes()
            + self.pooled.n_bytes()
            + self.logits.n_bytes()
            + self.attention.n_bytes()
            + self.tile.n_bytes()
            + self.float_tile.n_bytes()
    }
}

impl<A: Kernel> AttentionScratch<A> {
    fn new(shape: &Shape, row_tokens_max: usize) -> Self {
        let head_dim = shape.head_dim;
        let tokens = row_tokens_max
            .next_multiple_of(A::NR)
            .next_multiple_of(A::K_ALIGN);
        let dims = head_dim.next_multiple_of(A::K_ALIGN);
        Self {
            queries: Aligned::new(A::MR * dims),
            keys: Aligned::new(tokens * dims),
            values: Aligned::new(tokens * head_dim.next_multiple_of(A::NR)),
            scores: Aligned::new(A::MR * score_stride::<A>(row_tokens_max)),
            weights: Aligned::new(A::MR * score_stride::<A>(row_tokens_max)),
            tile: Aligned::new(A::MR * A::NR),
            relative: RelativeScratch::new::<A>(if shape.relative { row_tokens_max } else { 0 }),
        }
    }

    fn n_bytes(&self) -> usize {
        self.queries.n_bytes()
            + self.keys.n_bytes()
            + self.values.n_bytes()
            + self.scores.n_bytes()
            + self.weights.n_bytes()
            + self.tile.n_bytes()
            + self.relative.n_bytes()
    }
}
