//! The forward pass, written once for every kernel, data type and family:
//!
//! ```text
//! embed → N × (attend, add & norm, feed-forward, add & norm) → pool → dense → classifier
//! ```
//!
//! Families differ in what a [`Layer`] says: ModernBERT's norms come before their sublayers, which is
//! the same order of work: a norm stands behind each addition, the next sublayer reads its result,
//! and only the residual stream keeps the sum ([`pointwise::Stream`]). A window, rotary or relative
//! positions and a gate are options of a layer.
//!
//! The rows of a micro-batch are concatenated: A is (sum of lengths) × hidden in every linear
//! layer, without padding. Only attention looks at `offsets`. Scales are per token and sums are
//! exact or in a fixed order, so a row's logits do not depend, bit for bit, on the rows beside it.
//!
//! Where the head reads each row's first token alone, the last layer computes keys and values of all
//! tokens, and everything else for that token.

pub mod attention;
pub mod embed;
pub mod pointwise;
pub mod pool;
pub mod relative;
pub mod rotary;

use crate::arena::{Codes, Scratch, inner_tokens};
use crate::gemm::Linear;
use crate::gemm::finish::Finish;
use crate::kernel::Kernel;
use crate::model::{Layer, Model, Pooling, Shape};
use attention::AttendRow;
use pointwise::NormAndEncode;
use pool::MeanOfTokens;

/// Computes the logits of the micro-batch whose embeddings are in `scratch.hidden` (see
/// [`embed::finish_rows`]), into `scratch.logits`: rows × labels.
pub fn forward<K: Kernel>(kernel: K, model: &Model<K>, scratch: &mut Scratch<K>) {
    let n_rows = scratch.rows.len();
    let n_tokens = scratch.offsets.last().copied().unwrap_or(0);
    let last = model.layers.len() - 1;
    for (layer_idx, layer) in model.layers.iter().enumerate() {
        let queries = if layer_idx == last && model.head.pooling == Pooling::First {
            Queries::First
        } else {
            Queries::All
        };
        let n_queries = match queries {
            Queries::All => n_tokens,
            Queries::First => n_rows,
        };
        let shape = &model.shape;
        attend(kernel, shape, layer, scratch, n_queries, queries);
        let next = model.layers.get(layer_idx + 1);
        let smoothing = next.map_or(&[][..], |next| &next.smooth_input);
        feed_forward(kernel, shape, layer, smoothing, scratch, n_queries);
    }
    if model.head.pooling == Pooling::Mean {
        kernel.float().vectorize(MeanOfTokens {
            x: &mut scratch.hidden,
            width: model.shape.hidden,
            offsets: &scratch.offsets,
        });
    }
    score(kernel, model, scratch, n_rows);
}

/// Which tokens a layer computes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Queries {
    /// All.
    All,
    /// Each row's first: the last layer, if the head reads nothing else.
    First,
}

fn keys_and_values<K: Kernel>(kernel: K, layer: &Layer<K>, s: &mut Scratch<K>) {
    let n_tokens = s.offsets.last().copied().unwrap_or(0);
    Linear {
        left: &s.hidden_codes,
        rows: 0..n_tokens,
        weights: &layer.key_value,
        finish: Finish::Store,
        sums: &mut s.tile,
        out: &mut s.key_value[..],
    }
    .run(kernel);
}

/// Moves each row's first token to the row's index, in the residual stream and its codes.
fn keep_first_tokens<K: Kernel>(shape: &Shape, s: &mut Scratch<K>) {
    let Codes {
        codes,
        scales,
        stride,
    } = &mut s.hidden_codes;
    for (row, &token) in s.offsets.iter().take(s.rows.len()).enumerate() {
        // Rows are not empty, so row ≤ token and nothing is overwritten before it is moved.
        s.hidden.copy_within(
            token * shape.hidden..(token + 1) * shape.hidden,
            row * shape.hidden,
        );
        codes.copy_within(token * *stride..(token + 1) * *stride, row * *stride);
        scales[row] = scales[token];
    }
}

/// Attention and its add & norm: `hidden` and `hidden_codes` become those after the sublayer.
pub fn attend<K: Kernel>(
    kernel: K,
    shape: &Shape,
    layer: &Layer<K>,
    s: &mut Scratch<K>,
    n_queries: usize,
    queries: Queries,
) {
    let &Shape {
        hidden,
        n_heads,
        head_dim,
        ..
    } = shape;
    keys_and_values(kernel, layer, s);
    if queries == Queries::First {
        keep_first_tokens(shape, s);
    }
    Linear {
        left: &s.hidden_codes,
        rows: 0..n_queries,
        weights: &layer.query,
        finish: Finish::Store,
        sums: &mut s.tile,
        out: &mut s.query[..],
    }
    .run(kernel);
    for (row, ends) in s.offsets.windows(2).enumerate() {
        let query = match queries {
            Queries::All => ends[0] * hidden..ends[1] * hidden,
            Queries::First => row * hidden..(row + 1) * hidden,
        };
        kernel.attend().vectorize(AttendRow {
            query: &mut s.query[query.clone()],
            key_value: &mut s.key_value[2 * ends[0] * hidden..2 * ends[1] * hidden],
            rotary: layer.rotary.as_deref(),
            relative: layer.relative.as_ref(),
            scale: layer.scale,
            window: layer.window,
            n_heads,
            head_dim,
            context: &mut s.context[query],
            scratch: &mut s.attention,
        });
    }
    let codes = &mut s.hidden_codes;
    kernel.vectorize(NormAndEncode::encode(
        &mut s.context,
        hidden,
        n_queries,
        codes,
    ));
    Linear {
        left: codes,
        rows: 0..n_queries,
        weights: &layer.output,
        finish: Finish::AddTo,
        sums: &mut s.tile,
        out: &mut s.hidden[..],
    }
    .run(kernel);
    let norm = Some(&layer.attention_norm);
    kernel.vectorize(NormAndEncode {
        norm,
        smoothing: &layer.smooth_inner,
        aside: &mut s.aside,
        x: &mut s.hidden,
        width: hidden,
        n_rows: n_queries,
        codes,
    });
}

/// The feed-forward layer and its add & norm. `smoothing` is the next layer's.
pub fn feed_forward<K: Kernel>(
    kernel: K,
    shape: &Shape,
    layer: &Layer<K>,
    smoothing: &[f32],
    s: &mut Scratch<K>,
    n_tokens: usize,
) {
    let &Shape { hidden, inner, .. } = shape;
    let tokens_max = inner_tokens(shape.storage);
    for start in (0..n_tokens).step_by(tokens_max) {
        let rows = start..n_tokens.min(start + tokens_max);
        let n_rows = rows.len();
        let mut finish = Finish::Activate(shape.activation);
        if let Some(gate) = &layer.gate {
            Linear {
                left: &s.hidden_codes,
                rows: rows.clone(),
                weights: gate,
                finish: Finish::Store,
                sums: &mut s.tile,
                out: &mut s.inner[..],
            }
            .run(kernel);
            finish = Finish::Gate(shape.activation);
        }
        Linear {
            left: &s.hidden_codes,
            rows,
            weights: &layer.inner,
            finish,
            sums: &mut s.tile,
            out: &mut s.inner[..],
        }
        .run(kernel);
        let codes = &mut s.inner_codes;
        kernel.vectorize(NormAndEncode::encode(&mut s.inner, inner, n_rows, codes));
        Linear {
            left: codes,
            rows: 0..n_rows,
            weights: &layer.outer,
            finish: Finish::AddTo,
            sums: &mut s.tile,
            out: &mut s.hidden[start * hidden..],
        }
        .run(kernel);
    }
    let (norm, codes) = (Some(&layer.output_norm), &mut s.hidden_codes);
    kernel.vectorize(NormAndEncode {
        norm,
        smoothing,
        aside: &mut s.aside,
        x: &mut s.hidden,
        width: hidden,
        n_rows: n_tokens,
        codes,
    });
}

/// The head, in f32: its few operations decide the score, and cost nothing beside the encoder's.
fn score<K: Kernel>(kernel: K, model: &Model<K>, s: &mut Scratch<K>, n_rows: usize) {
    let (float, head, width) = (kernel.float(), &model.head, model.shape.hidden);
    let codes = &mut s.float_codes;
    codes.stride = width;
    float.vectorize(NormAndEncode::encode(&mut s.hidden, width, n_rows, codes));
    let activate = Finish::Activate(head.activation);
    Linear {
        left: codes,
        rows: 0..n_rows,
        weights: &head.dense,
        finish: activate,
        sums: &mut s.float_tile,
        out: &mut s.pooled[..],
    }
    .run(float);
    float.vectorize(NormAndEncode {
        norm: head.norm.as_ref(),
        smoothing: &[],
        aside: &mut [],
        x: &mut s.pooled,
        width,
        n_rows,
        codes,
    });
    Linear {
        left: codes,
        rows: 0..n_rows,
        weights: &head.classifier,
        finish: Finish::Store,
        sums: &mut s.float_tile,
        out: &mut s.logits[..],
    }
    .run(float);
}
