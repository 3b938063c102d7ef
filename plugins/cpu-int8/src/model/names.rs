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
    /// Projections of attention.
    pub query: &'static str,
    pub key: &'static str,
    pub value: &'static str,
    pub attention_output: &'static str,
    pub attention_norm: &'static str,
    /// Feed-forward layer.
    pub inner: &'static str,
    pub outer: &'static str,
    pub output_norm: &'static str,
    /// Head.
    pub head_dense: &'static str,
    pub head_activation: Activation,
    pub classifier: &'static str,
}

const BERT: Names = Names {
    prefix: "bert.",
    layers: "encoder.layer.",
    query: "attention.self.query",
    key: "attention.self.key",
    value: "attention.self.value",
    attention_output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    inner: "intermediate.dense",
    outer: "output.dense",
    output_norm: "output.LayerNorm",
    head_dense: "bert.pooler.dense",
    head_activation: Activation::Tanh,
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
    query: "attention.q_lin",
    key: "attention.k_lin",
    value: "attention.v_lin",
    attention_output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    inner: "ffn.lin1",
    outer: "ffn.lin2",
    output_norm: "output_layer_norm",
    head_dense: "pre_classifier",
    head_activation: Activation::Relu,
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
        }
    }
}
