//! The architectures, each in a file of its own.

mod bert;
mod deberta;
mod modernbert;

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
    }
}

/// All that this plugin computes.
pub(crate) const FAMILIES: [Family; 8] = [
    family("BertForSequenceClassification", "bert", bert::open_bert),
    family("RobertaForSequenceClassification", "roberta", bert::open_roberta),
    family("CamembertForSequenceClassification", "camembert", bert::open_roberta),
    family("XLMRobertaForSequenceClassification", "xlm-roberta", bert::open_roberta),
    family("ElectraForSequenceClassification", "electra", bert::open_electra),
    family("DistilBertForSequenceClassification", "distilbert", bert::open_distilbert),
    family("ModernBertForSequenceClassification", "modernbert", modernbert::open),
    family("DebertaV2ForSequenceClassification", "deberta-v2", deberta::open),
];
