//! The same steps by candle's operations: for every device and type.

use super::Vector;
use super::activation::Activation;
use super::attention::Keys;
use super::norm::Norm;
use super::product::product;
use candle_core::{D, DType, Result, Tensor};

const HIDDEN: f32 = -1e30;
/// In f16 the weights of thousands of keys would have few digits, or none: so small are they. They are multiplied by this,
/// and what comes of them divided by it.
const WEIGHTS_SCALE: f64 = 64.0;

pub(super) fn add_bias(x: Tensor, bias: Option<&Vector>) -> Result<Tensor> {
    match bias {
        Some(bias) => x.broadcast_add(&bias.tensor),
        None => Ok(x),
    }
}

pub(super) fn activate(activation: Activation, x: &Tensor) -> Result<Tensor> {
    // Their cubes and exponentials go beyond what halves hold.
    if matches!(activation, Activation::GeluTanh | Activation::Silu) && x.dtype() == DType::F16 {
        return activate(activation, &widened(x)?)?.to_dtype(x.dtype());
    }
    match activation {
        Activation::Gelu => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
        Activation::Relu => x.relu(),
        Activation::Silu => x.silu(),
        Activation::Tanh => x.tanh(),
        Activation::Identity => Ok(x.clone()),
    }
}

/// Of rows (a, b) of one width: activation(a) · b.
pub(super) fn gate(activation: Activation, x: &Tensor) -> Result<Tensor> {
    let width = x.dim(D::Minus1)? / 2;
    let a = x.narrow(D::Minus1, 0, width)?.contiguous()?;
    let b = x.narrow(D::Minus1, width, width)?;
    activate(activation, &a)? * b
}

/// Halves have neither the range nor the digits for sums of squares and for exponentials.
fn widened(x: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::F16 | DType::BF16 => x.to_dtype(DType::F32),
        _ => Ok(x.clone()),
    }
}

pub(super) fn norm(norm: &Norm, x: &Tensor) -> Result<Tensor> {
    let wide = widened(x)?;
    let wide = if norm.centred {
        wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?
    } else {
        wide
    };
    let variance = wide.sqr()?.mean_keepdim(D::Minus1)?;
    let deviation = (variance + f64::from(norm.epsilon))?.sqrt()?;
    let normed = wide.broadcast_div(&deviation)?.to_dtype(x.dtype())?;
    let scaled = normed.broadcast_mul(&norm.weight.tensor)?;
    add_bias(scaled, norm.bias.as_ref())
}

/// Scores (rows × heads, queries, keys) become weights, by which values are mixed.
pub(super) fn mix(keys: &Keys<'_>, scores: &Tensor, v: &Tensor) -> Result<Tensor> {
    let scale = match scores.dtype() {
        DType::F16 => WEIGHTS_SCALE,
        _ => 1.0,
    };
    product(&softmax(keys, scores, scale)?, v)? * (1.0 / scale)
}

/// Weights, multiplied by `scale`.
fn softmax(keys: &Keys<'_>, scores: &Tensor, scale: f64) -> Result<Tensor> {
    let (n, n_queries, n_keys) = scores.dims3()?;
    let n_rows = keys.lens.len();
    let wide = (widened(scores)? * f64::from(keys.scale))?;
    let by_row = wide.reshape((n_rows, n / n_rows, n_queries, n_keys))?;
    let mut masked = match mask(keys, n_queries, n_keys) {
        None => by_row,
        Some(mask) => {
            let lines = mask.len() / (n_rows * n_keys);
            let mask = Tensor::from_vec(mask, (n_rows, 1, lines, n_keys), scores.device())?;
            by_row.broadcast_add(&mask.to_dtype(wide.dtype())?)?
        }
    };
    if let Some(distances) = keys.distances {
        let bias = distances.rectangle(keys.first_query, n_queries, keys.first_key, n_keys);
        let shape = (1, bias.len() / (n_queries * n_keys), n_queries, n_keys);
        let bias = Tensor::from_vec(bias, shape, scores.device())?;
        masked = masked.broadcast_add(&bias.to_dtype(wide.dtype())?)?;
    }
    let most = masked.max_keepdim(D::Minus1)?;
    let powers = masked.broadcast_sub(&most)?.exp()?;
    let sums = (powers.sum_keepdim(D::Minus1)? * (1.0 / scale))?;
    let weights = powers.broadcast_div(&sums)?;
    weights
        .reshape((n, n_queries, n_keys))?
        .to_dtype(scores.dtype())
}

/// What is added to scores so that nobody sees hidden keys: rows × queries × keys, or rows × 1 × keys where all queries of a
/// row see the same; nothing where they see all. It is made on the host for each layer, so it should be small.
fn mask(keys: &Keys<'_>, n_queries: usize, n_keys: usize) -> Option<Vec<f32>> {
    let differ = keys.window.is_some() || keys.causal;
    if !differ && keys.lens.iter().all(|&len| len == n_keys) {
        return None;
    }
    let lines = if differ { n_queries } else { 1 };
    // Large beside any score, and not infinite: a line without a key stays a number.
    let mut mask = vec![HIDDEN; keys.lens.len() * lines * n_keys];
    for (line, mask) in mask.chunks_exact_mut(n_keys).enumerate() {
        let (row, query) = (line / lines, line % lines);
        let seen = match differ {
            true => keys.seen(row, query, n_keys),
            // Padding sees them, too: nobody reads what comes of it.
            false => 0..keys.lens[row].min(n_keys),
        };
        mask[seen].fill(0.0);
    }
    Some(mask)
}

/// What `fused::Heads` does.
pub(super) fn heads(
    x: &Tensor,
    heads: &super::fused::Heads<'_>,
    norm: Option<&Norm>,
) -> Result<Tensor> {
    let (n_cells, n_rows) = (x.dim(0)?, heads.n_rows);
    let (n_kv, dim, width) = (heads.n_kv, heads.dim, n_cells / n_rows);
    let copies = heads.n_heads / n_kv;
    // (row, position, part, head, value) to (part, row, head, position, value).
    let by_part = x
        .reshape((n_rows, width, heads.parts, n_kv, dim))?
        .permute((2, 0, 3, 1, 4))?
        .contiguous()?;
    let mut parts = Vec::new();
    for part in 0..heads.parts {
        let mut x = by_part.get(part)?;
        if part == 0 {
            x = norm.map_or(Ok(x.clone()), |norm| self::norm(norm, &x))?;
            x = heads
                .angles
                .map_or(Ok(x.clone()), |angles| angles.turn(&x))?;
        }
        let spread = x
            .unsqueeze(2)?
            .broadcast_as((n_rows, n_kv, copies, width, dim))?;
        parts.push(spread.reshape((n_rows * heads.n_heads, width, dim))?);
    }
    Tensor::stack(&parts, 0)
}
