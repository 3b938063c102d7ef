//! What GGUF files call the tensors that `transformers` names: the same, or as llama.cpp's converter does.

use std::borrow::Cow;

/// Names of one of llama.cpp's architectures.
struct Architecture {
    name: &'static str,
    /// Outside of layers: transformers' names without the model's prefix, and llama.cpp's.
    outside: &'static [(&'static str, &'static str)],
    /// Behind a layer's number.
    inside: &'static [(&'static str, &'static str)],
}

/// A way to name tensors.
#[derive(Clone, Copy, Default)]
pub(super) struct Names(Option<&'static Architecture>);

/// Every GGUF of llama.cpp's has it, and no model of transformers'.
pub(super) const MARK: &str = "token_embd.weight";

/// Before everything but heads.
const PREFIXES: [&str; 4] = ["bert.", "roberta.", "distilbert.", "model."];
/// Before a layer's number.
const LAYERS: [&str; 4] = [
    "encoder.layer.",
    "encoder.layers.",
    "transformer.layer.",
    "layers.",
];

static ARCHITECTURES: [Architecture; 4] = [
    // BERT, RoBERTa, XLM-R, under jina-reranker-v2's names too, and DistilBERT.
    Architecture {
        name: "bert",
        outside: &[
            ("embeddings.word_embeddings", "token_embd"),
            ("embeddings.position_embeddings", "position_embd"),
            ("embeddings.token_type_embeddings", "token_types"),
            ("embeddings.LayerNorm", "token_embd_norm"),
            ("emb_ln", "token_embd_norm"),
            ("pooler.dense", "cls"),
            ("classifier.dense", "cls"),
            ("pre_classifier", "cls"),
            ("classifier.out_proj", "cls.output"),
            ("classifier", "cls.output"),
        ],
        inside: &[
            ("attention.self.query", "attn_q"),
            ("attention.self.key", "attn_k"),
            ("attention.self.value", "attn_v"),
            ("attention.output.dense", "attn_output"),
            ("attention.output.LayerNorm", "attn_output_norm"),
            ("intermediate.dense", "ffn_up"),
            ("output.dense", "ffn_down"),
            ("output.LayerNorm", "layer_output_norm"),
            ("attention.q_lin", "attn_q"),
            ("attention.k_lin", "attn_k"),
            ("attention.v_lin", "attn_v"),
            ("attention.out_lin", "attn_output"),
            ("sa_layer_norm", "attn_output_norm"),
            ("ffn.lin1", "ffn_up"),
            ("ffn.lin2", "ffn_down"),
            ("output_layer_norm", "layer_output_norm"),
            ("mixer.Wqkv", "attn_qkv"),
            ("mixer.out_proj", "attn_output"),
            ("norm1", "attn_output_norm"),
            ("mlp.fc1", "ffn_up"),
            ("mlp.fc2", "ffn_down"),
            ("norm2", "layer_output_norm"),
        ],
    },
    Architecture {
        name: "modern-bert",
        outside: &[
            ("embeddings.tok_embeddings", "token_embd"),
            ("embeddings.norm", "token_embd_norm"),
            ("final_norm", "output_norm"),
            ("head.dense", "cls"),
            ("head.norm", "cls.norm"),
            ("classifier", "cls.output"),
        ],
        inside: &[
            ("attn.Wqkv", "attn_qkv"),
            ("attn.Wo", "attn_output"),
            ("attn_norm", "attn_norm"),
            ("mlp.Wi", "ffn_up"),
            ("mlp.Wo", "ffn_down"),
            ("mlp_norm", "ffn_norm"),
        ],
    },
    Architecture {
        name: "qwen2",
        outside: QWEN_OUTSIDE,
        inside: QWEN_INSIDE,
    },
    Architecture {
        name: "qwen3",
        outside: QWEN_OUTSIDE,
        inside: QWEN_INSIDE,
    },
];

const QWEN_OUTSIDE: &[(&str, &str)] = &[
    ("embed_tokens", "token_embd"),
    ("norm", "output_norm"),
    ("lm_head", "output"),
];

const QWEN_INSIDE: &[(&str, &str)] = &[
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

// === impl Names ===

impl Names {
    /// llama.cpp's for this architecture. The error says which are known.
    pub(super) fn of_llama_cpp(architecture: Option<&str>) -> Result<Self, String> {
        let known = |found: &&Architecture| Some(found.name) == architecture;
        match ARCHITECTURES.iter().find(known) {
            Some(found) => Ok(Self(Some(found))),
            None => {
                let known = ARCHITECTURES.each_ref().map(|found| found.name).join(", ");
                Err(format!(
                    "its tensors have llama.cpp's names, of general.architecture = {architecture:?}; this plugin knows \
                     those of {known}, and transformers' own names of every model that it computes"
                ))
            }
        }
    }

    /// Whether they are llama.cpp's.
    pub(super) fn are_llama_cpp(self) -> bool {
        self.0.is_some()
    }

    /// What else there is to say when a tensor is missing.
    pub(super) fn why_missing(self, name: &str) -> &'static str {
        match self.0 {
            Some(_) if name.starts_with("bert.pooler.") => {
                ": llama.cpp's converter leaves out the pooler of a BERT, and without it there is no score; take the \
                 original model, or a GGUF under transformers' names"
            }
            _ => "",
        }
    }

    /// What the file calls a tensor of transformers'.
    pub(super) fn stored(self, name: &str) -> Cow<'_, str> {
        match self.0 {
            Some(architecture) => {
                translate(architecture, name).map_or(Cow::Borrowed(name), Cow::Owned)
            }
            None => Cow::Borrowed(name),
        }
    }
}

fn translate(architecture: &Architecture, name: &str) -> Option<String> {
    let (stem, part) = name.rsplit_once('.')?;
    let stem = PREFIXES
        .iter()
        .find_map(|prefix| stem.strip_prefix(prefix))
        .unwrap_or(stem);
    let other = |names: &[(&str, &'static str)], name: &str| {
        names
            .iter()
            .find(|(ours, _)| *ours == name)
            .map(|&(_, theirs)| theirs)
    };
    if let Some(theirs) = other(architecture.outside, stem) {
        return Some(format!("{theirs}.{part}"));
    }
    let rest = LAYERS.iter().find_map(|prefix| stem.strip_prefix(prefix))?;
    let (layer, stem) = rest.split_once('.')?;
    let theirs = other(architecture.inside, stem)?;
    Some(format!("blk.{layer}.{theirs}.{part}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(architecture: &str, name: &str, want: &str) {
        let names = Names::of_llama_cpp(Some(architecture)).unwrap();
        assert_eq!(names.stored(name), want, "{architecture}");
    }

    #[test]
    fn tensors_are_found_under_other_names() {
        check("bert", "roberta.embeddings.word_embeddings.weight", MARK);
        check(
            "bert",
            "bert.encoder.layer.11.attention.output.LayerNorm.bias",
            "blk.11.attn_output_norm.bias",
        );
        check(
            "bert",
            "roberta.encoder.layers.3.mixer.Wqkv.weight",
            "blk.3.attn_qkv.weight",
        );
        check("bert", "classifier.dense.bias", "cls.bias");
        check("bert", "classifier.weight", "cls.output.weight");
        check("bert", "bert.unknown.weight", "bert.unknown.weight");
        check("modern-bert", "head.norm.weight", "cls.norm.weight");
        check(
            "modern-bert",
            "model.layers.2.mlp.Wi.weight",
            "blk.2.ffn_up.weight",
        );
        check("qwen3", "model.norm.weight", "output_norm.weight");
        check(
            "qwen2",
            "model.layers.20.self_attn.k_proj.bias",
            "blk.20.attn_k.bias",
        );
        assert_eq!(
            Names::default().stored("classifier.weight"),
            "classifier.weight"
        );
    }

    #[test]
    fn architectures_that_are_not_known_are_named() {
        for architecture in [None, Some("jina-bert-v3")] {
            let why = Names::of_llama_cpp(architecture).err().unwrap();
            for word in [architecture.unwrap_or("None"), "modern-bert", "qwen3"] {
                assert!(why.contains(word), "{why}");
            }
        }
    }
}
