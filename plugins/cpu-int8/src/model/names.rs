//! What each family calls its tensors. The one place that knows.

use crate::encoder::pointwise::Activation;
use crate::model::LoadError;
use crate::model::config::Family;
use crate::model::weights::Weights;

/// A tensor of jina-reranker-v2, which says that it is an XLM-RoBERTa and has names and joined projections of its own.
const FOREIGN: &str = "roberta.encoder.layers.0.mixer.Wqkv.weight";

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
    /// From embeddings to the hidden width, where they differ.
    pub embedding_project: &'static str,
    /// Whether that comes before the norm and has no bias, as DeBERTa's.
    pub project_first: bool,
    /// Projections of attention.
    pub projections: Projections,
    /// Relative positions, of the family that has them.
    pub relative: Relative,
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

/// What a DeBERTa's relative positions are made from.
#[derive(Clone, Copy)]
pub struct Relative {
    /// The table and its norm, behind the prefix.
    pub embeddings: &'static str,
    pub norm: &'static str,
    /// The layers' projections, where they are not those of tokens.
    pub key: &'static str,
    pub query: &'static str,
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
    embedding_project: "embeddings_project",
    project_first: false,
    projections: Projections::Three([
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
    ]),
    relative: Relative {
        embeddings: "encoder.rel_embeddings",
        norm: "encoder.LayerNorm",
        key: "attention.self.pos_key_proj",
        query: "attention.self.pos_query_proj",
    },
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
    ..BERT
};

const DEBERTA: Names = Names {
    prefix: "deberta.",
    embedding_project: "embeddings.embed_proj",
    project_first: true,
    projections: Projections::Three([
        "attention.self.query_proj",
        "attention.self.key_proj",
        "attention.self.value_proj",
    ]),
    head_dense: "pooler.dense",
    // The default; the configuration has the last word.
    head_activation: Activation::Gelu,
    ..BERT
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
            Family::DebertaV2 => DEBERTA,
        }
    }
}

/// Says no to a sound checkpoint of another implementation, before a tensor is missed in it.
///
/// # Errors
/// `Unsupported`: another plugin may know its names.
pub fn refuse_foreign(weights: &Weights) -> Result<(), LoadError> {
    if weights.has(FOREIGN) {
        return Err(LoadError::Unsupported(format!(
            "{FOREIGN}: the checkpoint is of an implementation of its own, whose tensors this engine does not read"
        )));
    }
    Ok(())
}
