//! BERT, RoBERTa, CamemBERT, XLM-RoBERTa, ELECTRA, DistilBERT, Jina's variants and GTE: one encoder, whose
//! norms stand behind its additions, with other names, positions and heads.

mod names;

use self::names::{
    BERT, DISTILBERT, ELECTRA, FLASH, GTE, Inner, JINA_BERT, Names, Projections, ROBERTA,
};
use crate::block::activation::Activation;
use crate::block::attention::{Attention, Distances, HeadShape};
use crate::block::embedding::{Embeddings, PositionRule};
use crate::block::head::Head;
use crate::block::layer::{FeedForward, Layer, Wanted};
use crate::block::linear::Linear;
use crate::block::rotary::Angles;
use crate::config::unsupported;
use crate::loader::{Loader, made};
use crate::model::{Model, Sizes};
use crate::raw::RawLinear;
use crate::rows::Rows;
use backend_api::Fault;
use candle_core::{Result as Computed, Tensor};
use serde_json::json;
use std::sync::Arc;

/// How a member knows where a token stands.
#[derive(Clone, Copy)]
enum Positions {
    /// By a table, from 0 on.
    Table,
    /// By a table, behind the padding token's id.
    BehindPadding(u32),
    /// Queries and keys are turned, by angles of this base.
    Rotary(f64),
    /// Scores fall with the distance.
    Alibi,
}

struct Bert {
    embeddings: Embeddings,
    /// ELECTRA's, from embeddings to the stream.
    project: Option<Linear>,
    /// How the scores of each head fall with the distance, if they do.
    distances: Option<Distances>,
    layers: Vec<Layer>,
    head: Head,
    sizes: Sizes,
}

impl Model for Bert {
    fn forward(&self, rows: &Rows) -> Computed<Tensor> {
        let mut x = self.embeddings.forward(rows)?;
        if let Some(project) = &self.project {
            x = project.forward(&x)?;
        }
        for (layer, wanted) in wanted(&self.layers) {
            x = layer.post(&x, rows, self.distances.as_ref(), wanted)?;
        }
        self.head.forward(&x)
    }

    fn sizes(&self) -> Sizes {
        self.sizes
    }

    fn position_rule(&self) -> PositionRule {
        self.embeddings.position_rule()
    }
}

/// Layers, of whose last one only the cell of each row is wanted that the head reads.
pub(super) fn wanted(layers: &[Layer]) -> impl Iterator<Item = (&Layer, Wanted)> {
    layers.iter().enumerate().map(|(at, layer)| {
        let last = at + 1 == layers.len();
        (layer, if last { Wanted::Picks } else { Wanted::All })
    })
}

pub(super) fn open_bert(loader: &Loader<'_>) -> Result<Box<dyn Model>, Fault> {
    absolute(loader)?;
    open(loader, &BERT, 2, Positions::Table)
}

pub(super) fn open_roberta(loader: &Loader<'_>) -> Result<Box<dyn Model>, Fault> {
    let pad = loader.config.token("pad_token_id")?.unwrap_or(1);
    let flash = format!("roberta.{}0.mixer.Wqkv.weight", FLASH.layers);
    if !loader.weights.has(&flash) {
        absolute(loader)?;
        return open(loader, &ROBERTA, 1, Positions::BehindPadding(pad));
    }
    let rotary = json!("rotary");
    loader.config.only(
        "position_embedding_type",
        &[json!("absolute"), rotary.clone()],
    )?;
    let positions = match loader.config.find(&["position_embedding_type"]) {
        Some(kind) if *kind == rotary => {
            Positions::Rotary(loader.config.rope_theta(&["rotary_emb_base"], 10_000.0)?)
        }
        _ => Positions::BehindPadding(pad),
    };
    open(loader, &FLASH, 1, positions)
}

/// jina-embeddings-v3, which `transformers` writes under the names of Jina's own implementation.
pub(super) fn open_jina_v3(loader: &Loader<'_>) -> Result<Box<dyn Model>, Fault> {
    let theta = loader.config.rope_theta(&["rope_theta"], 20_000.0)?;
    open(loader, &FLASH, 1, Positions::Rotary(theta))
}

pub(super) fn open_jina_bert(loader: &Loader<'_>) -> Result<Box<dyn Model>, Fault> {
    loader
        .config
        .only("position_embedding_type", &[json!("alibi")])?;
    if loader
        .weights
        .has("bert.encoder.layer.0.mlp.up_gated_layer.weight")
    {
        return Err(Fault::unsupported(
            "bert.encoder.layer.0.mlp.up_gated_layer.weight: this is JinaBERT with norms of queries and keys; \
             this plugin computes the one of jina-reranker-v1, whose layers have mlp.gated_layers",
        ));
    }
    open(loader, &JINA_BERT, 2, Positions::Alibi)
}

pub(super) fn open_gte(loader: &Loader<'_>) -> Result<Box<dyn Model>, Fault> {
    let theta = loader.config.rope_theta(&["rope_theta"], 160_000.0)?;
    open(loader, &GTE, 1, Positions::Rotary(theta))
}

pub(super) fn open_electra(loader: &Loader<'_>) -> Result<Box<dyn Model>, Fault> {
    absolute(loader)?;
    open(loader, &ELECTRA, 2, Positions::Table)
}

pub(super) fn open_distilbert(loader: &Loader<'_>) -> Result<Box<dyn Model>, Fault> {
    open(loader, &DISTILBERT, 0, Positions::Table)
}

fn absolute(loader: &Loader<'_>) -> Result<(), Fault> {
    loader
        .config
        .only("position_embedding_type", &[json!("absolute")])
}

/// What a member's layers share.
struct Shape {
    names: Names,
    hidden: usize,
    n_heads: usize,
    dim: usize,
    inner: usize,
    epsilon: f32,
    activation: Activation,
    angles: Option<Arc<Angles>>,
}

fn open(
    loader: &Loader<'_>,
    names: &Names,
    types: usize,
    positions: Positions,
) -> Result<Box<dyn Model>, Fault> {
    let config = loader.config;
    refuse_decoders(loader)?;
    let shape = shape(loader, names, positions)?;
    let hidden = shape.hidden;
    let embedding = match names.prefix {
        "electra." => config.width_or(&["embedding_size"], hidden)?,
        _ => hidden,
    };
    let (head, n_labels) = loader.head(names.dense, names.activation, names.classifier, hidden)?;
    let types = match types {
        0 => 0,
        types => config.types_or(types)?,
    };
    let embeddings = embeddings(loader, &shape, embedding, types, positions)?;
    let project = match embedding == hidden {
        true => None,
        false => {
            let name = format!("{}embeddings_project", names.prefix);
            Some(loader.linear(&name, hidden, embedding, true)?)
        }
    };
    let n_layers = config.n_layers(&["num_hidden_layers", "n_layers"])?;
    let layers = (0..n_layers).map(|at| layer(loader, &shape, at));
    let layers = layers.collect::<Result<Vec<_>, _>>()?;
    let row_tokens_max = row_tokens_max(loader, positions)?.min(loader.row_tokens_max);
    let distances = match positions {
        Positions::Alibi => Some(fall(loader, shape.n_heads, row_tokens_max)?),
        _ => None,
    };
    let n_distances = distances.as_ref().map_or(0, Distances::n_bytes);
    let sizes = Sizes {
        vocab: config.vocab()?,
        types,
        row_tokens_max,
        n_labels,
        pad_id: match positions {
            Positions::BehindPadding(pad) => pad,
            _ => 0,
        },
        n_bytes: embeddings.n_bytes() + head.n_bytes() + n_distances,
        ..Sizes::default()
    };
    Ok(Box::new(Bert {
        sizes: sizes.with_layers(&layers, hidden),
        embeddings,
        project,
        distances,
        layers,
        head,
    }))
}

fn shape(loader: &Loader<'_>, names: &Names, positions: Positions) -> Result<Shape, Fault> {
    let config = loader.config;
    let hidden = config.width(&["hidden_size", "dim"])?;
    let n_heads = config.n_heads(&["num_attention_heads", "n_heads"], None)?;
    let dim = config.head_dim(hidden, n_heads)?;
    let gate = config.text(&["feed_forward_type"])?;
    let activation = match (names.inner, gate) {
        // JinaBERT's gates; "original" would be BERT's layer, under BERT's names.
        (Inner::GateFirst(_), Some("geglu")) => Activation::Gelu,
        (Inner::GateFirst(_), Some("reglu")) => Activation::Relu,
        (Inner::GateFirst(_), other) => {
            let known = "\"geglu\" and \"reglu\"";
            return Err(unsupported("feed_forward_type", &json!(other), known));
        }
        _ => config.activation(&["hidden_act", "activation"], "gelu")?,
    };
    let angles = match positions {
        Positions::Rotary(_) if !dim.is_multiple_of(2) => {
            return Err(Fault::bad_model(format!(
                "config.json: hidden_size = {hidden} over num_attention_heads = {n_heads} is odd: rotary \
                 positions need pairs"
            )));
        }
        Positions::Rotary(theta) => {
            let n = row_tokens_max(loader, positions)?.min(loader.row_tokens_max);
            Some(Arc::new(made(Angles::new(
                loader.numbers,
                theta,
                dim / 2,
                n,
            ))?))
        }
        _ => None,
    };
    Ok(Shape {
        names: *names,
        hidden,
        n_heads,
        dim,
        inner: config.width(&["intermediate_size", "hidden_dim"])?,
        // DistilBERT's is in its code, not in its configuration.
        epsilon: match names.prefix {
            "distilbert." => 1e-12,
            _ => config.epsilon("layer_norm_eps", 1e-12)?,
        },
        activation,
        angles,
    })
}

/// Tokens of the longest row: RoBERTa's first position is pad_token_id + 1.
fn row_tokens_max(loader: &Loader<'_>, positions: Positions) -> Result<usize, Fault> {
    let n = loader
        .config
        .positions(&["max_position_embeddings"], None)?;
    let Positions::BehindPadding(pad) = positions else {
        return Ok(n);
    };
    let left = n.saturating_sub(pad as usize + 1);
    if left == 0 {
        return Err(Fault::bad_model(format!(
            "config.json: max_position_embeddings = {n} leaves no position behind pad_token_id = {pad}"
        )));
    }
    Ok(left)
}

fn embeddings(
    loader: &Loader<'_>,
    shape: &Shape,
    width: usize,
    types: usize,
    positions: Positions,
) -> Result<Embeddings, Fault> {
    let names = &shape.names;
    let part = |part: &str| format!("{}embeddings.{part}", names.prefix);
    let table = |name: &str, n| loader.table(&part(name), n, width);
    let n = loader
        .config
        .positions(&["max_position_embeddings"], None)?;
    let (rule, n_unused) = match positions {
        Positions::Table => (Some(PositionRule::FromZero), 0),
        Positions::BehindPadding(pad) => (Some(PositionRule::BehindPadding(pad)), pad as usize + 1),
        Positions::Rotary(_) | Positions::Alibi => (None, 0),
    };
    let norm = format!("{}{}", names.prefix, names.embedding_norm);
    Ok(Embeddings {
        words: loader.words(
            &part("word_embeddings.weight"),
            loader.config.vocab()?,
            width,
        )?,
        positions: match rule {
            Some(rule) => {
                let name = part("position_embeddings.weight");
                Some((loader.positions(&name, n, n_unused, width)?, rule))
            }
            None => None,
        },
        types: match types {
            0 => None,
            types => Some(table("token_type_embeddings.weight", types)?),
        },
        norm: Some(loader.layer_norm(&norm, width, shape.epsilon, true)?),
    })
}

fn layer(loader: &Loader<'_>, shape: &Shape, at: usize) -> Result<Layer, Fault> {
    let &Shape {
        ref names,
        hidden,
        n_heads,
        dim,
        inner,
        epsilon,
        activation,
        ..
    } = shape;
    let name = |part: &str| format!("{}{}{at}.{part}", names.prefix, names.layers);
    let norm = |part: &str| loader.layer_norm(&name(part), hidden, epsilon, true);
    let [query, key_value] = match names.projections {
        Projections::Three(parts) => {
            let raw = |part: &str| loader.raw(&name(part), hidden, hidden, true);
            let [query, key, value] = parts.map(raw);
            [query?, RawLinear::join([key?, value?])]
        }
        Projections::Fused(fused) => {
            let mut query = loader.raw(&name(fused), 3 * hidden, hidden, true)?;
            let key_value = query.split_off(hidden);
            [query, key_value]
        }
    };
    let (inner_rows, gated) = match names.inner {
        Inner::Plain(part) => (loader.raw(&name(part), inner, hidden, true)?, false),
        Inner::GateFirst(part) => (loader.raw(&name(part), 2 * inner, hidden, false)?, true),
        Inner::GateLast(part) => {
            let mut up = loader.raw(&name(part), 2 * inner, hidden, false)?;
            let gate = up.split_off(inner);
            (RawLinear::join([gate, up]), true)
        }
    };
    Ok(Layer {
        attention: Attention {
            inputs: loader.query_key_value(query, key_value)?,
            output: loader.linear(&name(names.attention_output), hidden, hidden, true)?,
            shape: HeadShape {
                n_heads,
                n_kv: n_heads,
                dim,
            },
            norms: None,
            angles: shape.angles.clone(),
            window: None,
            causal: false,
            scale: 1.0 / (dim as f32).sqrt(),
            relative: None,
        },
        attention_norm: Some(norm(names.attention_norm)?),
        feed_forward: FeedForward {
            inner: loader.held(inner_rows)?,
            outer: loader.linear(&name(names.outer), hidden, inner, true)?,
            activation,
            gated,
        },
        output_norm: norm(names.output_norm)?,
    })
}

/// What ALiBi takes from scores at each distance.
fn fall(loader: &Loader<'_>, n_heads: usize, row_tokens_max: usize) -> Result<Distances, Fault> {
    let slopes = slopes(n_heads);
    let reach = row_tokens_max.min(loader.row_tokens_max);
    let fall = |head: usize, offset: isize| -slopes[head] * offset.abs() as f32;
    made(Distances::new(loader.numbers, n_heads, reach, fall))
}

/// ALiBi's slopes: powers of two for a power of two of heads, and for more heads every other one of the
/// slopes of twice as many.
fn slopes(n_heads: usize) -> Vec<f32> {
    let power = 1 << n_heads.ilog2();
    let slope = |at: usize, of: usize| (-8.0 * (at + 1) as f64 / of as f64).exp2() as f32;
    let first = (0..power).map(|at| slope(at, power));
    let between = (0..n_heads - power).map(|at| slope(2 * at, 2 * power));
    first.chain(between).collect()
}

fn refuse_decoders(loader: &Loader<'_>) -> Result<(), Fault> {
    for key in ["is_decoder", "add_cross_attention"] {
        if loader.config.flag_or(key, false)? {
            return Err(unsupported(key, &json!(true), "encoders"));
        }
    }
    Ok(())
}
