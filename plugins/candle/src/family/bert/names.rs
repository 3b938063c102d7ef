//! What the members of the family call their tensors.

use crate::block::activation::Activation;

/// What tells the members apart.
#[derive(Clone, Copy)]
pub(super) struct Names {
    /// Before everything but the head.
    pub(super) prefix: &'static str,
    pub(super) embedding_norm: &'static str,
    /// Before a layer's number.
    pub(super) layers: &'static str,
    pub(super) projections: Projections,
    pub(super) attention_output: &'static str,
    pub(super) attention_norm: &'static str,
    pub(super) inner: Inner,
    pub(super) outer: &'static str,
    pub(super) output_norm: &'static str,
    /// Head.
    pub(super) dense: &'static str,
    pub(super) activation: Activation,
    pub(super) classifier: &'static str,
}

/// Where queries, keys and values come from.
#[derive(Clone, Copy)]
pub(super) enum Projections {
    /// Three linear layers: query, key, value.
    Three([&'static str; 3]),
    /// One with the rows of all three, in this order.
    Fused(&'static str),
}

/// The feed-forward layer's first half.
#[derive(Clone, Copy)]
pub(super) enum Inner {
    Plain(&'static str),
    /// What is activated, then what it is multiplied with; without a bias.
    GateFirst(&'static str),
    /// The other way round.
    GateLast(&'static str),
}

pub(super) const BERT: Names = Names {
    prefix: "bert.",
    embedding_norm: "embeddings.LayerNorm",
    layers: "encoder.layer.",
    projections: Projections::Three([
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
    ]),
    attention_output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    inner: Inner::Plain("intermediate.dense"),
    outer: "output.dense",
    output_norm: "output.LayerNorm",
    dense: "bert.pooler.dense",
    activation: Activation::Tanh,
    classifier: "classifier",
};

pub(super) const ROBERTA: Names = Names {
    prefix: "roberta.",
    dense: "classifier.dense",
    classifier: "classifier.out_proj",
    ..BERT
};

pub(super) const ELECTRA: Names = Names {
    prefix: "electra.",
    activation: Activation::Gelu,
    ..ROBERTA
};

pub(super) const DISTILBERT: Names = Names {
    prefix: "distilbert.",
    layers: "transformer.layer.",
    projections: Projections::Three(["attention.q_lin", "attention.k_lin", "attention.v_lin"]),
    attention_output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    inner: Inner::Plain("ffn.lin1"),
    outer: "ffn.lin2",
    output_norm: "output_layer_norm",
    dense: "pre_classifier",
    activation: Activation::Relu,
    ..BERT
};

/// Jina's XLM-RoBERTas, whose implementation came with flash attention.
pub(super) const FLASH: Names = Names {
    embedding_norm: "emb_ln",
    layers: "encoder.layers.",
    projections: Projections::Fused("mixer.Wqkv"),
    attention_output: "mixer.out_proj",
    attention_norm: "norm1",
    inner: Inner::Plain("mlp.fc1"),
    outer: "mlp.fc2",
    output_norm: "norm2",
    ..ROBERTA
};

pub(super) const JINA_BERT: Names = Names {
    inner: Inner::GateFirst("mlp.gated_layers"),
    outer: "mlp.wo",
    output_norm: "mlp.layernorm",
    ..BERT
};

pub(super) const GTE: Names = Names {
    prefix: "gte.",
    projections: Projections::Fused("attention.qkv_proj"),
    attention_output: "attention.o_proj",
    attention_norm: "attn_ln",
    inner: Inner::GateLast("mlp.up_gate_proj"),
    outer: "mlp.down_proj",
    output_norm: "mlp_ln",
    dense: "gte.pooler.dense",
    ..BERT
};
