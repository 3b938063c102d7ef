//! The architectures, each in a file of its own.

mod bert;
mod deberta;
mod modernbert;
mod qwen;
mod t5;
mod tokens;

use crate::loader::Loader;
use crate::model::Model;
use backend_api::Fault;

/// An architecture and who opens it.
pub(crate) struct Family {
    /// The class in `transformers`, as `config.json` names it.
    pub(crate) architecture: &'static str,
    /// What stands in for it where there is none; empty if that says too little.
    pub(crate) model_type: &'static str,
    pub(crate) open: fn(&Loader<'_>) -> Result<Box<dyn Model>, Fault>,
    /// Whether what it computes outgrows f16.
    pub(crate) is_wide: bool,
}

const fn family(
    architecture: &'static str,
    model_type: &'static str,
    open: fn(&Loader<'_>) -> Result<Box<dyn Model>, Fault>,
) -> Family {
    Family {
        architecture,
        model_type,
        open,
        is_wide: false,
    }
}

/// One whose stream is never normed, and is known to reach beyond what f16 holds.
const fn wide(
    architecture: &'static str,
    open: fn(&Loader<'_>) -> Result<Box<dyn Model>, Fault>,
) -> Family {
    Family {
        is_wide: true,
        ..family(architecture, "", open)
    }
}

/// All that this plugin computes.
pub(crate) static FAMILIES: [Family; 20] = [
    family("BertForSequenceClassification", "bert", bert::open_bert),
    family(
        "RobertaForSequenceClassification",
        "roberta",
        bert::open_roberta,
    ),
    family(
        "CamembertForSequenceClassification",
        "camembert",
        bert::open_roberta,
    ),
    family(
        "XLMRobertaForSequenceClassification",
        "xlm-roberta",
        bert::open_roberta,
    ),
    family(
        "ElectraForSequenceClassification",
        "electra",
        bert::open_electra,
    ),
    family(
        "DistilBertForSequenceClassification",
        "distilbert",
        bert::open_distilbert,
    ),
    family(
        "ModernBertForSequenceClassification",
        "modernbert",
        modernbert::open,
    ),
    family(
        "DebertaV2ForSequenceClassification",
        "deberta-v2",
        deberta::open,
    ),
    family(
        "JinaBertForSequenceClassification",
        "",
        bert::open_jina_bert,
    ),
    family(
        "JinaEmbeddingsV3ForSequenceClassification",
        "jina_embeddings_v3",
        bert::open_jina_v3,
    ),
    family("GteForSequenceClassification", "gte", bert::open_gte),
    family("Qwen2ForSequenceClassification", "", qwen::open_2),
    family("Qwen3ForSequenceClassification", "", qwen::open_3),
    family("Qwen2ForCausalLM", "", qwen::open_2_yes_no),
    family("Qwen3ForCausalLM", "", qwen::open_3_yes_no),
    wide("T5ForSequenceClassification", t5::open_classifier),
    // A copy of T5 in `transformers`, under other names; its output is T5 1.1's.
    wide("MT5ForSequenceClassification", t5::open_classifier),
    wide("MT5ForConditionalGeneration", t5::open_mt5_yes_no),
    wide("UMT5ForSequenceClassification", t5::open_classifier),
    wide("T5ForConditionalGeneration", t5::open_yes_no),
];
