//! What each family calls its tensors. The one place that knows.

use crate::encoder::pointwise::Activation;
use crate::model::config::Family;

/// The parts of tensor names, without `.weight` and `.bias`.
#[derive(Clone, Copy)]
pub struct Names {
    /// Before everything but the head.
    pub prefix: &'static str,
    /// Before a layer's number.
    pub layers: &'static str,
    /// Embeddings, behind the prefix.
    pub words: &'static str,
    pub embedding_norm: &'static str,
    /// Projections of attention.
    pub projections: Projections,
    pub attention_output: &'static str,
    /// The norm behind attention's addition.
    pub attention_norm: &'static str,
    /// Feed-forward layer.
    pub inner: &'static str,
    /// Whether `inner` has as many rows again: the gate.
    pub gated: bool,
    pub outer: &'static str,
    pub output_norm: OutputNorm,
    /// Head.
    pub head_dense: &'static str,
    pub head_activation: Activation,
    /// Behind the head's activation.
    pub head_norm: Option<&'static str>,
    pub classifier: &'static str,
}

/// Where queries, keys and values come from.
#[derive(Clone, Copy)]
pub enum Projections {
    /// Three linear layers: query, key, value.
    Three([&'static str; 3]),
    /// One with the rows of all three, in this order.
    Fused(&'static str),
}

/// The norm behind the feed-forward layer's addition.
#[derive(Clone, Copy)]
pub enum OutputNorm {
    /// The layer's own: norms follow their sublayers.
    Own(&'static str),
    /// Norms come first in a layer: it is the next layer's `next`, and behind the last the model's
    /// `last`.
    Following {
        next: &'static str,
        last: &'static str,
    },
}

const BERT: Names = Names {
    prefix: "bert.",
    layers: "encoder.layer.",
    words: "embeddings.word_embeddings",
    embedding_norm: "embeddings.LayerNorm",
    projections: Projections::Three([
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
    ]),
    attention_output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    inner: "intermediate.dense",
    gated: false,
    outer: "output.dense",
    output_norm: OutputNorm::Own("output.LayerNorm"),
    head_dense: "bert.pooler.dense",
    head_activation: Activation::Tanh,
    head_norm: None,
    classifier: "classifier",
};

const ROBERTA: Names = Names {
    prefix: "roberta.",
    head_dense: "classifier.dense",
    classifier: "classifier.out_proj",
    ..BERT
};

const ELECTRA: Names = Names {
    prefix: "electra.",
    head_activation: Activation::Gelu,
    ..ROBERTA
};

const DISTILBERT: Names = Names {
    prefix: "distilbert.",
    layers: "transformer.layer.",
    projections: Projections::Three(["attention.q_lin", "attention.k_lin", "attention.v_lin"]),
    attention_output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    inner: "ffn.lin1",
    outer: "ffn.lin2",
    output_norm: OutputNorm::Own("output_layer_norm"),
    head_dense: "pre_classifier",
    head_activation: Activation::Relu,
    ..BERT
};

const MODERNBERT: Names = Names {
    prefix: "model.",
    layers: "layers.",
    words: "embeddings.tok_embeddings",
    embedding_norm: "embeddings.norm",
    projections: Projections::Fused("attn.Wqkv"),
    attention_output: "attn.Wo",
    attention_norm: "mlp_norm",
    inner: "mlp.Wi",
    gated: true,
    outer: "mlp.Wo",
    output_norm: OutputNorm::Following {
        next: "attn_norm",
        last: "final_norm",
    },
    head_dense: "head.dense",
    // The default; the configuration has the last word.
    head_activation: Activation::Gelu,
    head_norm: Some("head.norm"),
    classifier: "classifier",
};

impl Names {
    /// The names of a family.
    pub fn of(family: Family) -> Self {
        match family {
            Family::Bert => BERT,
            Family::Roberta => ROBERTA,
            Family::Electra => ELECTRA,
            Family::DistilBert => DISTILBERT,
            Family::ModernBert => MODERNBERT,
        }
    }
}
