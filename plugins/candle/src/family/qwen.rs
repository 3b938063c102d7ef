//! Qwen2 and Qwen3: decoders that rank, by a head that classifies or by the logits of two tokens.

use super::bert::wanted;
use super::tokens::Tokens;
use crate::block::attention::{Attention, HeadShape};
use crate::block::embedding::Embeddings;
use crate::block::head::Head;
use crate::block::layer::{FeedForward, Layer, Wanted};
use crate::block::norm::Norm;
use crate::block::rotary::Angles;
use crate::config::{Config, unsupported};
use crate::loader::{Loader, made};
use crate::model::{Model, Sizes};
use crate::raw::RawLinear;
use crate::rows::Rows;
use backend_api::Fault;
use candle_core::{Result as Computed, Tensor};
use serde_json::json;
use std::sync::Arc;

struct Qwen {
    embeddings: Embeddings,
    layers: Vec<Layer>,
    last_norm: Norm,
    head: Head,
    /// What a classifier passes over when it looks for a row's last token.
    pad: Option<u32>,
    sizes: Sizes,
}

impl Model for Qwen {
    fn forward(&self, rows: &Rows) -> Computed<Tensor> {
        let mut x = self.embeddings.forward(rows)?;
        for (layer, last) in wanted(&self.layers) {
            // A rectangle's queries are its first ones, where they are not all.
            let wanted = if rows.is_packed() { last } else { Wanted::All };
            x = layer.pre(x, rows, None, wanted)?;
        }
        if !rows.is_packed() {
            x = rows.picked(&x)?;
        }
        self.head.forward(&self.last_norm.forward(&x)?)
    }

    fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// The last token of a row that is not padding, or the first one if all are.
    fn pick(&self, ids: &[u32]) -> usize {
        match self.pad {
            Some(pad) => ids.iter().rposition(|&id| id != pad).unwrap_or(0),
            None => ids.len() - 1,
        }
    }
}

/// What tells the two apart.
#[derive(Clone, Copy)]
struct Kind {
    /// Whether attention's projections of tokens have biases where the configuration does not say.
    bias: bool,
    /// Whether queries and keys are normed.
    normed: bool,
}

const QWEN2: Kind = Kind {
    bias: true,
    normed: false,
};
const QWEN3: Kind = Kind {
    bias: false,
    normed: true,
};

pub(super) fn open_2(loader: &Loader<'_>) -> Result<Box<dyn Model>, Fault> {
    open(loader, QWEN2, classifier)
}

pub(super) fn open_3(loader: &Loader<'_>) -> Result<Box<dyn Model>, Fault> {
    open(loader, QWEN3, classifier)
}

pub(super) fn open_2_yes_no(loader: &Loader<'_>) -> Result<Box<dyn Model>, Fault> {
    open(loader, QWEN2, yes_no)
}

pub(super) fn open_3_yes_no(loader: &Loader<'_>) -> Result<Box<dyn Model>, Fault> {
    open(loader, QWEN3, yes_no)
}

/// A head, and the padding that it passes over.
type Ending = fn(&Loader<'_>, usize) -> Result<(Head, Option<u32>), Fault>;

fn classifier(loader: &Loader<'_>, hidden: usize) -> Result<(Head, Option<u32>), Fault> {
    let n_labels = loader.n_labels("score")?;
    let head = Head::of(loader.whole("score", n_labels, hidden, false)?);
    Ok((head, loader.config.token("pad_token_id")?))
}

fn yes_no(loader: &Loader<'_>, hidden: usize) -> Result<(Head, Option<u32>), Fault> {
    let tokens = Tokens::of(loader)?;
    let table = match loader.config.flag_or("tie_word_embeddings", false)? {
        true => "model.embed_tokens.weight",
        false => "lm_head.weight",
    };
    Ok((tokens.head(loader, table, hidden, 1.0)?, None))
}

/// What layers share.
struct Shape {
    hidden: usize,
    heads: HeadShape,
    epsilon: f32,
    bias: bool,
    normed: bool,
    angles: Arc<Angles>,
}

fn open(loader: &Loader<'_>, kind: Kind, ending: Ending) -> Result<Box<dyn Model>, Fault> {
    let config = loader.config;
    let hidden = config.width(&["hidden_size"])?;
    let (head, pad) = ending(loader, hidden)?;
    let n_heads = config.n_heads(&["num_attention_heads"], None)?;
    let n_kv = config.n_heads(&["num_key_value_heads"], Some(n_heads))?;
    if !n_heads.is_multiple_of(n_kv) {
        return Err(Fault::bad_model(format!(
            "config.json: num_attention_heads = {n_heads} is not a multiple of num_key_value_heads = {n_kv}"
        )));
    }
    let dim = config.width_or(&["head_dim"], config.head_dim(hidden, n_heads)?)?;
    if !dim.is_multiple_of(2) {
        return Err(Fault::bad_model(format!(
            "config.json: head_dim = {dim} is odd: rotary positions need pairs"
        )));
    }
    let positions = config.positions(&["max_position_embeddings"], None)?;
    let row_tokens_max = positions.min(loader.row_tokens_max);
    let theta = config.rope_theta(&["rope_theta"], 10_000.0)?;
    let angles = made(Angles::new(loader.numbers, theta, dim / 2, row_tokens_max))?;
    let shape = Shape {
        hidden,
        heads: HeadShape { n_heads, n_kv, dim },
        epsilon: config.epsilon("rms_norm_eps", 1e-6)?,
        bias: match kind.normed {
            true => config.flag_or("attention_bias", kind.bias)?,
            false => kind.bias,
        },
        normed: kind.normed,
        angles: Arc::new(angles),
    };
    let embeddings = Embeddings {
        words: loader.words("model.embed_tokens.weight", config.vocab()?, hidden)?,
        positions: None,
        types: None,
        norm: None,
    };
    let windows = windows(config)?.into_iter().enumerate();
    let layers = windows.map(|(at, window)| layer(loader, &shape, at, window));
    let layers = layers.collect::<Result<Vec<_>, _>>()?;
    let sizes = Sizes {
        vocab: config.vocab()?,
        row_tokens_max,
        n_labels: head.classifier.n_out(),
        n_bytes: embeddings.n_bytes() + head.n_bytes() + shape.angles.n_bytes(),
        ..Sizes::default()
    };
    Ok(Box::new(Qwen {
        sizes: sizes.with_layers(&layers, hidden.max(n_heads * dim)),
        embeddings,
        layers,
        last_norm: loader.rms_norm("model.norm", hidden, shape.epsilon)?,
        head,
        pad,
    }))
}

/// How far back each layer's tokens see, themselves not counted.
fn windows(config: &Config) -> Result<Vec<Option<usize>>, Fault> {
    let n_layers = config.n_layers(&["num_hidden_layers"])?;
    let window = match config.flag_or("use_sliding_window", false)? {
        true => Some(config.width_or(&["sliding_window"], 4_096)? - 1),
        false => None,
    };
    if config.find(&["layer_types"]).is_none() {
        let first = config.integer("max_window_layers")?.unwrap_or(28);
        let of = |at: usize| window.filter(|_| first <= at as i64);
        return Ok((0..n_layers).map(of).collect());
    }
    let types = config.texts("layer_types")?;
    if types.len() != n_layers {
        return Err(Fault::bad_model(format!(
            "config.json: layer_types has {} entries, num_hidden_layers = {n_layers}",
            types.len()
        )));
    }
    let kinds = types.iter().map(|kind| match kind.as_str() {
        "full_attention" => Ok(None),
        "sliding_attention" => Ok(window),
        other => {
            let known = "\"full_attention\" and \"sliding_attention\"";
            Err(unsupported("layer_types", &json!(other), known))
        }
    });
    kinds.collect()
}

fn layer(
    loader: &Loader<'_>,
    shape: &Shape,
    at: usize,
    window: Option<usize>,
) -> Result<Layer, Fault> {
    let Shape {
        hidden, epsilon, ..
    } = *shape;
    let HeadShape { n_heads, n_kv, dim } = shape.heads;
    let config = loader.config;
    let name = |part: &str| format!("model.layers.{at}.{part}");
    let raw = |part: &str, n_out, bias| loader.raw(&name(part), n_out, hidden, bias);
    let norm = |part: &str, n| loader.rms_norm(&name(part), n, epsilon);
    let key_value = [
        raw("self_attn.k_proj", n_kv * dim, shape.bias)?,
        raw("self_attn.v_proj", n_kv * dim, shape.bias)?,
    ];
    let inner = config.width(&["intermediate_size"])?;
    let gate_and_up = [
        raw("mlp.gate_proj", inner, false)?,
        raw("mlp.up_proj", inner, false)?,
    ];
    // Qwen3's output has a bias if the others have one; Qwen2's never.
    let output_bias = shape.bias && shape.normed;
    Ok(Layer {
        attention: Attention {
            inputs: loader.query_key_value(
                raw("self_attn.q_proj", n_heads * dim, shape.bias)?,
                RawLinear::join(key_value),
            )?,
            output: loader.linear(
                &name("self_attn.o_proj"),
                hidden,
                n_heads * dim,
                output_bias,
            )?,
            shape: shape.heads,
            norms: match shape.normed {
                true => Some([
                    norm("self_attn.q_norm", dim)?,
                    norm("self_attn.k_norm", dim)?,
                ]),
                false => None,
            },
            angles: Some(Arc::clone(&shape.angles)),
            window,
            causal: true,
            scale: 1.0 / (dim as f32).sqrt(),
            relative: None,
        },
        attention_norm: Some(norm("input_layernorm", hidden)?),
        feed_forward: FeedForward {
            inner: loader.held(RawLinear::join(gate_and_up))?,
            outer: loader.linear(&name("mlp.down_proj"), hidden, inner, false)?,
            activation: config.activation(&["hidden_act"], "silu")?,
            gated: true,
        },
        output_norm: norm("post_attention_layernorm", hidden)?,
    })
}
