//! Attention over a rectangle of rows, in blocks of queries, so that a row of 8,192 tokens does not need all
//! of its scores at once, and a window's far keys are not multiplied.

use super::linear::Linear;
use super::norm::Norm;
use super::product::product;
use super::relative::Relative;
use super::rotary::Angles;
use super::{Steps, bytes_of, composed, fused, values};
#[cfg(feature = "cuda")]
use crate::cuda::attention;
use crate::numbers::Numbers;
use crate::rows::Rows;
use candle_core::{DType, Device, Result, Tensor};
use std::ops::Range;
use std::sync::Arc;

/// Scores that a block of queries may have on a CPU: 4 MB stay in its cache. On a GPU a block pays for its launches, and
/// 64 MB exist several times.
const CPU_SCORES_MAX: usize = 1 << 20;
const DEVICE_SCORES_MAX: usize = 1 << 24;
/// Tensors of scores that candle's operations make on the way to weights.
const SCORES_COPIES: usize = 6;
/// Queries of a block at least: fewer would read all keys too often.
const QUERIES_MIN: usize = 64;
/// Queries of a block where a window hides far keys: more would multiply more that is hidden.
const WINDOW_QUERIES_MAX: usize = 128;

/// How many heads, and how wide.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadShape {
    pub(crate) n_heads: usize,
    /// Heads of keys and values; several heads of queries may share one.
    pub(crate) n_kv: usize,
    pub(crate) dim: usize,
}

/// A layer's attention up to its output's linear layer, and that layer.
pub(crate) struct Attention {
    pub(crate) inputs: QueryKeyValue,
    pub(crate) output: Linear,
    pub(crate) shape: HeadShape,
    /// Of each head's query and key.
    pub(crate) norms: Option<[Norm; 2]>,
    pub(crate) angles: Option<Arc<Angles>>,
    /// How far a token sees to either side; `None`: the whole row.
    pub(crate) window: Option<usize>,
    /// Whether a token sees only what stands before it.
    pub(crate) causal: bool,
    /// What products of query and key are multiplied with.
    pub(crate) scale: f32,
    pub(crate) relative: Option<Relative>,
}

/// The layers that attention begins with.
pub(crate) struct QueryKeyValue {
    pub(crate) query: Linear,
    /// Keys, then values.
    pub(crate) key_value: Linear,
    /// All three as one layer, whose weights are the others' too: for one product where all of them are of the same cells.
    #[cfg(feature = "cuda")]
    pub(crate) together: Option<Linear>,
}

/// What is added to scores by the distance of key and query, in each head.
pub(crate) struct Distances {
    /// Distances below this to either side.
    pub(crate) reach: usize,
    /// heads × (2 · reach − 1), by key − query from −(reach − 1) on.
    values: Vec<f32>,
    /// The same on the device.
    pub(crate) table: Tensor,
}

/// Which keys a query sees, and how.
pub(crate) struct Keys<'a> {
    /// Keys of each row.
    pub(super) lens: &'a [usize],
    pub(super) first_query: usize,
    pub(super) first_key: usize,
    pub(super) window: Option<usize>,
    pub(super) causal: bool,
    pub(super) scale: f32,
    pub(super) distances: Option<&'a Distances>,
}

/// Bytes of the scores that exist at the same time on a device, for rows of so many tokens.
pub(crate) fn scores_bytes(device: &Device, n_heads: usize, row_tokens_max: usize) -> usize {
    let copies = if device.is_cpu() { 1 } else { SCORES_COPIES };
    let n_scores = scores_max(device).max(n_heads * QUERIES_MIN * row_tokens_max);
    copies * n_scores * size_of::<f32>()
}

fn scores_max(device: &Device) -> usize {
    match device {
        Device::Cpu => CPU_SCORES_MAX,
        _ => DEVICE_SCORES_MAX,
    }
}

// === impl QueryKeyValue ===

#[cfg(feature = "cuda")]
impl QueryKeyValue {
    /// The first outputs of a layer as queries, and the others as keys and values.
    pub(crate) fn parts_of(together: Linear, n_queries: usize) -> Result<Self> {
        Ok(Self {
            query: together.outputs(0..n_queries)?,
            key_value: together.outputs(n_queries..together.n_out())?,
            together: Some(together),
        })
    }
}

// === impl Attention ===

impl Attention {
    /// What the heads bring together, (rows × queries, heads × dim): `queries` are the first cells of each
    /// row, or all of them, and `x` what they look at.
    pub(crate) fn mix(
        &self,
        queries: &Tensor,
        x: &Tensor,
        rows: &Rows,
        distances: Option<&Distances>,
    ) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if Steps::of(x) == Steps::Cuda {
            return attention::mix(self, queries, x, rows, distances);
        }
        let query_norm = self.norms.as_ref().map(|[query, _]| query);
        let key_norm = self.norms.as_ref().map(|[_, key]| key);
        let q = self
            .heads(queries, &self.inputs.query, 1, rows.n(), query_norm)?
            .get(0)?;
        let kv = self.heads(x, &self.inputs.key_value, 2, rows.n(), key_norm)?;
        let (k, v) = (kv.get(0)?, kv.get(1)?);
        let keys = Keys {
            lens: &rows.lens,
            first_query: 0,
            first_key: 0,
            window: self.window,
            causal: self.causal,
            scale: self.scale,
            distances,
        };
        let mixed = match &self.relative {
            None => attend(&q, &k, &v, &keys, None)?,
            // Row by row: what their distances look up differs.
            Some(relative) => {
                let n = self.shape.n_heads;
                let mixed = rows.lens.iter().enumerate().map(|(row, len)| {
                    let part = |x: &Tensor| x.narrow(0, row * n, n);
                    let lens = std::slice::from_ref(len);
                    attend(
                        &part(&q)?,
                        &part(&k)?,
                        &part(&v)?,
                        &Keys { lens, ..keys },
                        Some(relative),
                    )
                });
                Tensor::cat(&mixed.collect::<Result<Vec<_>>>()?, 0)?
            }
        };
        self.merge(&mixed, rows.n())
    }

    /// A linear layer's outputs, as (parts, rows × heads, positions, dim).
    fn heads(
        &self,
        x: &Tensor,
        linear: &Linear,
        parts: usize,
        n_rows: usize,
        norm: Option<&Norm>,
    ) -> Result<Tensor> {
        let HeadShape { n_heads, n_kv, dim } = self.shape;
        let product = linear.product(x)?;
        let heads = fused::Heads {
            parts,
            n_rows,
            n_heads,
            // Queries are not shared.
            n_kv: if parts == 1 { n_heads } else { n_kv },
            dim,
            bias: values(linear.bias()),
            norm: norm.map(Norm::parameters),
            angles: self.angles.as_deref(),
        };
        if Steps::of(&product) == Steps::Fused {
            return product.apply_op1_no_bwd(&heads);
        }
        let biased = composed::add_bias(product, linear.bias())?;
        composed::heads(&biased, &heads, norm)
    }

    /// (rows × heads, queries, dim) to (rows × queries, heads × dim).
    fn merge(&self, x: &Tensor, n_rows: usize) -> Result<Tensor> {
        let (HeadShape { n_heads, dim, .. }, n_queries) = (self.shape, x.dim(1)?);
        x.reshape((n_rows, n_heads, n_queries, dim))?
            .transpose(1, 2)?
            .reshape((n_rows * n_queries, n_heads * dim))
    }

    pub(crate) fn linears(&self) -> [&Linear; 3] {
        [&self.inputs.query, &self.inputs.key_value, &self.output]
    }

    pub(crate) fn n_bytes(&self) -> usize {
        let linears = self.linears().map(Linear::n_bytes).iter().sum::<usize>();
        linears + self.relative.as_ref().map_or(0, Relative::n_bytes)
    }
}

/// softmax(q · kᵀ) · v of (rows × heads, positions, dim), by blocks of queries.
fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    keys: &Keys<'_>,
    relative: Option<&Relative>,
) -> Result<Tensor> {
    let (n, n_queries, _) = q.dims3()?;
    let n_keys = k.dim(1)?;
    let mut keys = Keys { ..*keys };
    let (mut q, mut terms_of) = (q.clone(), k.clone());
    // Sums of halves would go beyond what they hold, so they are of scaled values.
    if Steps::of(&q) == Steps::Composed && matches!(q.dtype(), DType::F16 | DType::BF16) {
        let scale = f64::from(std::mem::replace(&mut keys.scale, 1.0));
        q = (q * scale)?;
        terms_of = match relative {
            Some(_) => (terms_of * scale)?,
            None => terms_of,
        };
    }
    let terms = relative.map(|relative| relative.by_key(&terms_of));
    let terms = terms.transpose()?;
    let mut block = (scores_max(q.device()) / (n * n_keys)).max(QUERIES_MIN);
    if keys.window.is_some() {
        block = block.min(WINDOW_QUERIES_MAX);
    }
    let mut mixed = Vec::new();
    for first_query in (0..n_queries).step_by(block) {
        let n_queries = block.min(n_queries - first_query);
        let near = keys.near(first_query..first_query + n_queries, n_keys);
        let q = q.narrow(1, first_query, n_queries)?;
        let k = k.narrow(1, near.start, near.len())?;
        let v = v.narrow(1, near.start, near.len())?;
        let keys = Keys {
            first_query,
            first_key: near.start,
            ..keys
        };
        let mut scores = product(&q, &k.t()?)?;
        if let Some((relative, terms)) = relative.zip(terms.as_ref()) {
            scores = relative.add(scores, &q, terms, first_query)?;
        }
        mixed.push(keys.mix(scores, &v)?);
    }
    match mixed.len() {
        1 => Ok(mixed.swap_remove(0)),
        _ => Tensor::cat(&mixed, 1),
    }
}

// === impl Keys ===

impl Keys<'_> {
    /// Keys that any of these queries may see in a row of `n_keys`.
    fn near(&self, queries: Range<usize>, n_keys: usize) -> Range<usize> {
        let before = |window| queries.start.saturating_sub(window);
        let behind = |window| n_keys.min(queries.end + window);
        let start = self.window.map_or(0, before);
        let end = self.window.map_or(n_keys, behind);
        start..if self.causal {
            end.min(queries.end)
        } else {
            end
        }
    }

    /// Keys of the block that a query of it sees; none if it is padding.
    #[inline(always)]
    pub(super) fn seen(&self, row: usize, query: usize, n_keys: usize) -> Range<usize> {
        let (query, len) = (self.first_query + query, self.lens[row]);
        if len <= query {
            return 0..0;
        }
        let mut seen = 0..len;
        if let Some(window) = self.window {
            seen = query.saturating_sub(window)..len.min(query + window + 1);
        }
        if self.causal {
            seen.end = query + 1;
        }
        let of_block = |key: usize| key.saturating_sub(self.first_key).min(n_keys);
        of_block(seen.start)..of_block(seen.end)
    }

    /// What is added to the scores of the keys seen; empty for nothing.
    #[inline(always)]
    pub(super) fn bias(&self, head: usize, query: usize, seen: &Range<usize>) -> &[f32] {
        self.distances.map_or(&[], |distances| {
            let key = self.first_key + seen.start;
            distances.from(head, key, self.first_query + query, seen.len())
        })
    }

    /// Scores become weights, and values are mixed by them.
    fn mix(&self, scores: Tensor, v: &Tensor) -> Result<Tensor> {
        if Steps::of(&scores) == Steps::Fused {
            scores.inplace_op1(self)?;
            return product(&scores, v);
        }
        composed::mix(self, &scores, v)
    }
}

// === impl Distances ===

impl Distances {
    /// Of rows of at most `reach` tokens; `value` gets the head and key − query.
    pub(crate) fn new(
        numbers: &Numbers,
        n_heads: usize,
        reach: usize,
        value: impl Fn(usize, isize) -> f32,
    ) -> Result<Self> {
        let last = reach as isize - 1;
        let places = (0..n_heads).flat_map(|head| (-last..=last).map(move |offset| (head, offset)));
        let values: Vec<_> = places.map(|(head, offset)| value(head, offset)).collect();
        Ok(Self {
            reach,
            table: numbers.exact_tensor(&values, values.len())?,
            values,
        })
    }

    pub(crate) fn n_bytes(&self) -> usize {
        size_of_val(&self.values[..]) + bytes_of(&self.table)
    }

    #[inline(always)]
    fn from(&self, head: usize, key: usize, query: usize, n_keys: usize) -> &[f32] {
        let start = head * (2 * self.reach - 1) + self.reach - 1 + key - query;
        &self.values[start..start + n_keys]
    }

    /// heads × queries × keys.
    pub(super) fn rectangle(
        &self,
        first_query: usize,
        n_queries: usize,
        first_key: usize,
        n_keys: usize,
    ) -> Vec<f32> {
        let n_heads = self.values.len() / (2 * self.reach - 1);
        let mut values = Vec::with_capacity(n_heads * n_queries * n_keys);
        for head in 0..n_heads {
            for query in first_query..first_query + n_queries {
                values.extend_from_slice(self.from(head, first_key, query, n_keys));
            }
        }
        values
    }
}
