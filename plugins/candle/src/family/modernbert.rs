//! ModernBERT: norms before the sublayers, rotary positions, windows, gates.
//!
//! Older `transformers` (4.48 on) write `global_attn_every_n_layers` and two thetas, newer ones (5.0 on)
//! `layer_types` and `rope_parameters`; where both stand, the newer keys count.

use super::bert::wanted;
use crate::block::attention::{Attention, HeadShape};
use crate::block::embedding::Embeddings;
use crate::block::head::Head;
use crate::block::layer::{FeedForward, Layer, Wanted};
use crate::block::norm::Norm;
use crate::block::rotary::Angles;
use crate::config::{self, Config, unsupported};
use crate::loader::{Loader, made};
use crate::model::{Model, Sizes};
use crate::rows::Rows;
use backend_api::Fault;
use candle_core::{Result as Computed, Tensor};
use serde_json::{Value, json};
use std::sync::Arc;

/// `transformers`' defaults.
const GLOBAL_EVERY: usize = 3;
const LOCAL_ATTENTION: usize = 128;
const GLOBAL_THETA: f64 = 160_000.0;
const LOCAL_THETA: f64 = 10_000.0;

struct ModernBert {
    embeddings: Embeddings,
    layers: Vec<Layer>,
    last_norm: Norm,
    /// Whether the head reads the mean of all tokens, not the first.
    mean: bool,
    head: Head,
    sizes: Sizes,
}

impl Model for ModernBert {
    fn forward(&self, rows: &Rows) -> Computed<Tensor> {
        let mut x = self.embeddings.forward(rows)?;
        for (layer, wanted) in wanted(&self.layers) {
            let wanted = if self.mean { Wanted::All } else { wanted };
            x = layer.pre(x, rows, None, wanted)?;
        }
        let x = self.last_norm.forward(&x)?;
        let pooled = if self.mean { rows.means(&x)? } else { x };
        self.head.forward(&pooled)
    }

    fn sizes(&self) -> Sizes {
        self.sizes
    }
}

/// What a family of layers shares.
struct Shape {
    hidden: usize,
    n_heads: usize,
    dim: usize,
    inner: usize,
    epsilon: f32,
    norm_bias: bool,
}

/// How a layer's tokens see each other.
#[derive(Clone)]
struct Sight {
    window: Option<usize>,
    angles: Arc<Angles>,
}

pub(super) fn open(loader: &Loader<'_>) -> Result<Box<dyn Model>, Fault> {
    let config = loader.config;
    let hidden = config.width(&["hidden_size"])?;
    let n_heads = config.n_heads(&["num_attention_heads"], None)?;
    let shape = Shape {
        hidden,
        n_heads,
        dim: config.head_dim(hidden, n_heads)?,
        inner: config.width(&["intermediate_size"])?,
        epsilon: config.epsilon("norm_eps", 1e-5)?,
        norm_bias: config.flag_or("norm_bias", false)?,
    };
    if !shape.dim.is_multiple_of(2) {
        return Err(Fault::bad_model(format!(
            "config.json: hidden_size = {hidden} over num_attention_heads = {n_heads} is odd: rotary \
             positions need pairs"
        )));
    }
    let mean = match config.text(&["classifier_pooling"])? {
        None | Some("cls") => false,
        Some("mean") => true,
        Some(other) => {
            let known = "\"cls\" and \"mean\"";
            return Err(unsupported("classifier_pooling", &json!(other), known));
        }
    };
    let (head, n_labels) = head(loader, &shape)?;
    let vocab = config.vocab()?;
    let norm = |name: &str| loader.layer_norm(name, hidden, shape.epsilon, shape.norm_bias);
    let embeddings = Embeddings {
        words: loader.words("model.embeddings.tok_embeddings.weight", vocab, hidden)?,
        positions: None,
        types: None,
        norm: Some(norm("model.embeddings.norm")?),
    };
    let positions = config.positions(&["max_position_embeddings"], None)?;
    let row_tokens_max = positions.min(loader.row_tokens_max);
    let sights = sights(loader, shape.dim / 2, row_tokens_max)?;
    let layers = sights.into_iter().enumerate();
    let layers = layers.map(|(at, sight)| layer(loader, &shape, at, sight));
    let layers = layers.collect::<Result<Vec<_>, _>>()?;
    let sizes = Sizes {
        vocab,
        row_tokens_max,
        n_labels,
        n_bytes: embeddings.n_bytes() + head.n_bytes(),
        ..Sizes::default()
    };
    Ok(Box::new(ModernBert {
        sizes: sizes.with_layers(&layers, hidden),
        embeddings,
        layers,
        last_norm: norm("model.final_norm")?,
        mean,
        head,
    }))
}

fn head(loader: &Loader<'_>, shape: &Shape) -> Result<(Head, usize), Fault> {
    let (config, hidden) = (loader.config, shape.hidden);
    let n_labels = loader.n_labels("classifier")?;
    let bias = config.flag_or("classifier_bias", false)?;
    let head = Head {
        dense: Some(loader.whole("head.dense", hidden, hidden, bias)?),
        activation: config.activation(&["classifier_activation"], "gelu")?,
        norm: Some(loader.layer_norm("head.norm", hidden, shape.epsilon, shape.norm_bias)?),
        classifier: loader.whole("classifier", n_labels, hidden, true)?,
    };
    Ok((head, n_labels))
}

fn layer(loader: &Loader<'_>, shape: &Shape, at: usize, sight: Sight) -> Result<Layer, Fault> {
    let &Shape {
        hidden,
        n_heads,
        dim,
        inner,
        epsilon,
        norm_bias,
    } = shape;
    let config = loader.config;
    let attention_bias = config.flag_or("attention_bias", false)?;
    let inner_bias = config.flag_or("mlp_bias", false)?;
    let name = |part: &str| format!("model.layers.{at}.{part}");
    let norm = |part: &str| loader.layer_norm(&name(part), hidden, epsilon, norm_bias);
    let mut query = loader.raw(&name("attn.Wqkv"), 3 * hidden, hidden, attention_bias)?;
    let key_value = query.split_off(hidden);
    Ok(Layer {
        attention: Attention {
            inputs: loader.query_key_value(query, key_value)?,
            output: loader.linear(&name("attn.Wo"), hidden, hidden, attention_bias)?,
            shape: HeadShape {
                n_heads,
                n_kv: n_heads,
                dim,
            },
            norms: None,
            angles: Some(sight.angles),
            window: sight.window,
            causal: false,
            scale: 1.0 / (dim as f32).sqrt(),
            relative: None,
        },
        attention_norm: match at {
            0 => None,
            _ => Some(norm("attn_norm")?),
        },
        feed_forward: FeedForward {
            inner: loader.linear(&name("mlp.Wi"), 2 * inner, hidden, inner_bias)?,
            outer: loader.linear(&name("mlp.Wo"), hidden, inner, inner_bias)?,
            activation: config.activation(&["hidden_activation"], "gelu")?,
            gated: true,
        },
        output_norm: norm("mlp_norm")?,
    })
}

/// Each layer's sight.
fn sights(loader: &Loader<'_>, n_pairs: usize, positions: usize) -> Result<Vec<Sight>, Fault> {
    let config = loader.config;
    config.refuse_rope_scaling()?;
    let window = config.width_or(&["local_attention"], LOCAL_ATTENTION)? / 2;
    let sight = |kind: &str, window| {
        let theta = theta(config, kind)?;
        let angles = made(Angles::new(loader.numbers, theta, n_pairs, positions))?;
        let angles = Arc::new(angles);
        Ok::<_, Fault>(Sight { window, angles })
    };
    let global = sight("full_attention", None)?;
    let local = sight("sliding_attention", Some(window))?;
    let n_layers = config.n_layers(&["num_hidden_layers"])?;
    if config.find(&["layer_types"]).is_none() {
        let every = config.width_or(&["global_attn_every_n_layers"], GLOBAL_EVERY)?;
        let of = |at: usize| {
            if at.is_multiple_of(every) {
                &global
            } else {
                &local
            }
        };
        return Ok((0..n_layers).map(|at| of(at).clone()).collect());
    }
    let types = config.texts("layer_types")?;
    if types.len() != n_layers {
        return Err(Fault::bad_model(format!(
            "config.json: layer_types has {} entries, num_hidden_layers = {n_layers}",
            types.len()
        )));
    }
    let kinds = types.iter().map(|kind| match kind.as_str() {
        "full_attention" => Ok(global.clone()),
        "sliding_attention" => Ok(local.clone()),
        other => {
            let known = "\"full_attention\" and \"sliding_attention\"";
            Err(unsupported("layer_types", &json!(other), known))
        }
    });
    kinds.collect()
}

/// The base of the rotary positions of a type of layers.
fn theta(config: &Config, kind: &str) -> Result<f64, Fault> {
    let global = config.number_or(&["global_rope_theta"], GLOBAL_THETA, 1.0)?;
    let older = match (kind, config.said("local_rope_theta")) {
        ("full_attention", _) => global,
        // As transformers 4 reads a null.
        (_, Some(Value::Null)) => global,
        _ => config.number_or(&["local_rope_theta"], LOCAL_THETA, 1.0)?,
    };
    let rope = config.find(&["rope_parameters"]);
    config::theta(rope.and_then(|all| all.get(kind)), older)
}
