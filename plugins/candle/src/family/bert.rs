//! BERT, RoBERTa, CamemBERT, XLM-RoBERTa, ELECTRA and DistilBERT: one encoder, other names and heads.

use crate::block::activation::Activation;
use crate::block::attention::{Attention, HeadShape};
use crate::block::embedding::{Embeddings, PositionRule};
use crate::block::head::Head;
use crate::block::layer::{FeedForward, Layer, Wanted};
use crate::block::linear::Linear;
use crate::config::unsupported;
use crate::loader::{Loader, RawLinear};
use crate::model::{Model, Sizes};
use crate::rows::Rows;
use backend_api::Fault;
use candle_core::{Result as Computed, Tensor};
use serde_json::json;

/// What tells the members apart.
struct Names {
    /// Before everything but the head.
    prefix: &'static str,
    layers: &'static str,
    /// Query, key, value.
    projections: [&'static str; 3],
    attention_output: &'static str,
    attention_norm: &'static str,
    inner: &'static str,
    outer: &'static str,
    output_norm: &'static str,
    dense: &'static str,
    activation: Activation,
    classifier: &'static str,
}

const BERT: Names = Names {
    prefix: "bert.",
    layers: "encoder.layer.",
    projections: [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
    ],
    attention_output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    inner: "intermediate.dense",
    outer: "output.dense",
    output_norm: "output.LayerNorm",
    dense: "bert.pooler.dense",
    activation: Activation::Tanh,
    classifier: "classifier",
};

const ROBERTA: Names = Names {
    prefix: "roberta.",
    dense: "classifier.dense",
    classifier: "classifier.out_proj",
    ..BERT
};

const ELECTRA: Names = Names {
    prefix: "electra.",
    activation: Activation::Gelu,
    ..ROBERTA
};

const DISTILBERT: Names = Names {
    prefix: "distilbert.",
    layers: "transformer.layer.",
    projections: ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
    attention_output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    inner: "ffn.lin1",
    outer: "ffn.lin2",
    output_norm: "output_layer_norm",
    dense: "pre_classifier",
    activation: Activation::Relu,
    ..BERT
};

struct Bert {
    embeddings: Embeddings,
    /// ELECTRA's, from embeddings to the stream.
    project: Option<Linear>,
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
            x = layer.post(&x, rows, None, wanted)?;
        }
        self.head.forward(&x)
    }

    fn sizes(&self) -> Sizes {
        self.sizes
    }
}

/// Layers, of whose last one only each row's first cell is wanted.
pub(super) fn wanted(layers: &[Layer]) -> impl Iterator<Item = (&Layer, Wanted)> {
    layers.iter().enumerate().map(|(at, layer)| {
        let last = at + 1 == layers.len();
        (layer, if last { Wanted::Firsts } else { Wanted::All })
    })
}

pub(super) fn open_bert(loader: &Loader<'_>) -> Result<Box<dyn Model>, Fault> {
    let types = loader.config.types_or(2)?;
    open(loader, &BERT, types, 1e-12, None)
}

pub(super) fn open_roberta(loader: &Loader<'_>) -> Result<Box<dyn Model>, Fault> {
    let types = loader.config.types_or(1)?;
    let pad = loader.config.token("pad_token_id")?.unwrap_or(1);
    open(loader, &ROBERTA, types, 1e-12, Some(pad))
}

pub(super) fn open_electra(loader: &Loader<'_>) -> Result<Box<dyn Model>, Fault> {
    let types = loader.config.types_or(2)?;
    open(loader, &ELECTRA, types, 1e-12, None)
}

pub(super) fn open_distilbert(loader: &Loader<'_>) -> Result<Box<dyn Model>, Fault> {
    open(loader, &DISTILBERT, 0, 1e-12, None)
}

/// `behind` is the padding token's id where positions start behind it.
fn open(
    loader: &Loader<'_>,
    names: &Names,
    types: usize,
    epsilon: f64,
    behind: Option<u32>,
) -> Result<Box<dyn Model>, Fault> {
    let config = loader.config;
    refuse_what_is_not_computed(loader)?;
    let hidden = config.width(&["hidden_size", "dim"])?;
    let embedding = match names.prefix {
        "electra." => config.width_or(&["embedding_size"], hidden)?,
        _ => hidden,
    };
    let positions = config.positions(&["max_position_embeddings"], None)?;
    let rule = behind.map_or(PositionRule::FromZero, PositionRule::BehindPadding);
    let row_tokens_max = positions.saturating_sub(behind.map_or(0, |pad| pad as usize + 1));
    if row_tokens_max == 0 {
        return Err(Fault::bad_model(format!(
            "config.json: max_position_embeddings = {positions} leaves no position behind pad_token_id = {behind:?}"
        )));
    }
    // DistilBERT's is in its code, not in its configuration.
    let epsilon = match names.prefix {
        "distilbert." => epsilon as f32,
        _ => config.epsilon("layer_norm_eps", epsilon)?,
    };
    let (head, n_labels) =
        loader.head(names.dense, names.activation, names.classifier, hidden)?;
    let vocab = config.vocab()?;
    let part = |part: &str| format!("{}embeddings.{part}", names.prefix);
    let table = |name: &str, n| loader.table(&part(name), n, embedding);
    let embeddings = Embeddings {
        words: loader.words(&part("word_embeddings.weight"), vocab, embedding)?,
        positions: Some((table("position_embeddings.weight", positions)?, rule)),
        types: match types {
            0 => None,
            types => Some(table("token_type_embeddings.weight", types)?),
        },
        norm: Some(loader.layer_norm(&part("LayerNorm"), embedding, epsilon, true)?),
    };
    let project = match embedding == hidden {
        true => None,
        false => {
            let name = format!("{}embeddings_project", names.prefix);
            Some(loader.linear(&name, hidden, embedding, true)?)
        }
    };
    let n_layers = config.n_layers(&["num_hidden_layers", "n_layers"])?;
    let layers = (0..n_layers).map(|at| layer(loader, names, at, hidden, epsilon));
    let layers = layers.collect::<Result<Vec<_>, _>>()?;
    let sizes = Sizes {
        vocab,
        types,
        row_tokens_max,
        n_labels,
        pad_id: behind.unwrap_or(0),
        n_bytes: embeddings.n_bytes() + head.n_bytes(),
        ..Sizes::default()
    };
    Ok(Box::new(Bert {
        sizes: sizes.with_layers(&layers, hidden),
        embeddings,
        project,
        layers,
        head,
    }))
}

fn layer(
    loader: &Loader<'_>,
    names: &Names,
    at: usize,
    hidden: usize,
    epsilon: f32,
) -> Result<Layer, Fault> {
    let config = loader.config;
    let n_heads = config.n_heads(&["num_attention_heads", "n_heads"], None)?;
    let dim = config.head_dim(hidden, n_heads)?;
    let inner = config.width(&["intermediate_size", "hidden_dim"])?;
    let name = |part: &str| format!("{}{}{at}.{part}", names.prefix, names.layers);
    let [query, key, value] = names.projections;
    let key_value = [
        loader.raw(&name(key), hidden, hidden, true)?,
        loader.raw(&name(value), hidden, hidden, true)?,
    ];
    Ok(Layer {
        attention: Attention {
            query: loader.linear(&name(query), hidden, hidden, true)?,
            key_value: loader.held(RawLinear::join(key_value))?,
            output: loader.linear(&name(names.attention_output), hidden, hidden, true)?,
            shape: HeadShape {
                n_heads,
                n_kv: n_heads,
                dim,
            },
            norms: None,
            angles: None,
            window: None,
            causal: false,
            scale: 1.0 / (dim as f32).sqrt(),
            relative: None,
        },
        attention_norm: Some(loader.layer_norm(&name(names.attention_norm), hidden, epsilon, true)?),
        feed_forward: FeedForward {
            inner: loader.linear(&name(names.inner), inner, hidden, true)?,
            outer: loader.linear(&name(names.outer), hidden, inner, true)?,
            activation: config.activation(&["hidden_act", "activation"], "gelu")?,
            gated: false,
        },
        output_norm: loader.layer_norm(&name(names.output_norm), hidden, epsilon, true)?,
    })
}

fn refuse_what_is_not_computed(loader: &Loader<'_>) -> Result<(), Fault> {
    loader.config.only("position_embedding_type", &[json!("absolute")])?;
    for key in ["is_decoder", "add_cross_attention"] {
        if loader.config.flag_or(key, false)? {
            return Err(unsupported(key, &json!(true), "encoders"));
        }
    }
    Ok(())
}
