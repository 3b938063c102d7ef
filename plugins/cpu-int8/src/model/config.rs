//! `config.json`, raw and then checked: after [`Config::check`] nothing downstream asks again.

pub mod deberta;
pub mod modern;
mod values;

use crate::encoder::pointwise::Activation;
use crate::kernel::K_MAX;
use crate::model::{LoadError, Pooling};
use deberta::{Deberta, RawDeberta, Relative};
use modern::RawModern;
use serde::Deserialize;
use std::collections::BTreeMap;
use values::{activation, size};

/// Most layers, heads, labels a model may have, and the most values of a row of embeddings: bounds
/// on what a file can make us allocate, far above any BERT.
const LAYERS_MAX: usize = 256;
const LABELS_MAX: usize = 65_536;
const VOCAB_MAX: usize = 1 << 24;
const POSITIONS_MAX: usize = 1 << 16;

/// The architectures that this engine computes, by their `transformers` class names.
pub const ARCHITECTURES: [(&str, Family); 8] = [
    ("BertForSequenceClassification", Family::Bert),
    ("RobertaForSequenceClassification", Family::Roberta),
    ("CamembertForSequenceClassification", Family::Roberta),
    ("XLMRobertaForSequenceClassification", Family::Roberta),
    ("ElectraForSequenceClassification", Family::Electra),
    ("DistilBertForSequenceClassification", Family::DistilBert),
    ("ModernBertForSequenceClassification", Family::ModernBert),
    ("DebertaV2ForSequenceClassification", Family::DebertaV2),
];

/// What every family but ModernBERT has.
const BERT_BIASES: Biases = Biases {
    attention: true,
    inner: true,
    norm: true,
    head: true,
};
const BERT_HEAD: Head = Head {
    pooling: Pooling::First,
    activation: None,
};

const NO_DEBERTA: Deberta = Deberta {
    position_table: true,
    score_terms: 1,
    relative: None,
    head: BERT_HEAD,
};

/// What tells the members of the BERT family apart: tensor names, positions and head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Pooler with tanh, then a classifier.
    Bert,
    /// Also CamemBERT and XLM-RoBERTa. Positions start behind the padding index; dense, tanh,
    /// projection.
    Roberta,
    /// Embeddings may be projected; dense, GELU, projection.
    Electra,
    /// No token types; dense, ReLU, classifier.
    DistilBert,
    /// Norms before the sublayers, rotary positions, windows, gates; dense, activation, norm,
    /// classifier.
    ModernBert,
    /// Also DeBERTa-v3. Relative positions; embeddings may be projected; dense, activation,
    /// classifier.
    DebertaV2,
}

/// `config.json` as it may be. Fields that this engine does not need are passed over.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Raw {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
    vocab_size: Option<usize>,
    #[serde(alias = "dim")]
    hidden_size: Option<usize>,
    embedding_size: Option<usize>,
    #[serde(alias = "n_layers")]
    num_hidden_layers: Option<usize>,
    #[serde(alias = "n_heads")]
    num_attention_heads: Option<usize>,
    #[serde(alias = "hidden_dim")]
    intermediate_size: Option<usize>,
    #[serde(alias = "activation", alias = "hidden_activation")]
    hidden_act: Option<String>,
    layer_norm_eps: Option<f32>,
    norm_eps: Option<f32>,
    max_position_embeddings: Option<usize>,
    position_embedding_type: Option<String>,
    type_vocab_size: Option<usize>,
    pad_token_id: Option<u32>,
    is_decoder: Option<bool>,
    add_cross_attention: Option<bool>,
    id2label: Option<BTreeMap<String, serde_json::Value>>,
    num_labels: Option<usize>,
    quantization_config: Option<serde_json::Value>,
    #[serde(flatten)]
    modern: RawModern,
    #[serde(flatten)]
    deberta: RawDeberta,
}

/// A configuration that this engine can compute.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The member of the family.
    pub family: Family,
    /// Token ids are below this.
    pub vocab: usize,
    /// Values of a token between layers: heads × head dim.
    pub hidden: usize,
    /// Values of an embedding; differs from `hidden` in small ELECTRAs and some DeBERTas only.
    pub embedding: usize,
    /// Encoder layers.
    pub n_layers: usize,
    /// Attention heads.
    pub n_heads: usize,
    /// Values of a token inside the feed-forward layer.
    pub inner: usize,
    /// The feed-forward layer's nonlinearity.
    pub activation: Activation,
    /// Added to the variance by every layer norm.
    pub epsilon: f32,
    /// Positions: rows of the position table, if there is one.
    pub positions: usize,
    /// Whether there is one.
    pub position_table: bool,
    /// Rows of the token type table; 0 for a family without one.
    pub types: usize,
    /// The padding token. RoBERTa's positions count from it.
    pub pad_id: u32,
    /// Labels, if the configuration says; the classifier's shape has the last word.
    pub n_labels: Option<usize>,
    /// What each layer's attention does beyond BERT's, one of `n_layers`.
    pub layers: Vec<LayerKind>,
    /// Terms of a score, whether computed or not: what it is divided by grows with them.
    pub score_terms: usize,
    /// The terms beyond the product of query and key.
    pub relative: Option<Relative>,
    /// Which biases the files hold.
    pub biases: Biases,
    /// What the head does.
    pub head: Head,
}

/// How a layer's tokens see each other. BERT's have neither.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LayerKind {
    /// How far a token sees to either side; `None`: the whole row.
    pub window: Option<usize>,
    /// The base of rotary positions.
    pub rope_theta: Option<f64>,
}

/// Which parts of a model have biases; those of the others are zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Biases {
    /// Attention's linear layers.
    pub attention: bool,
    /// The feed-forward layers.
    pub inner: bool,
    /// The norms.
    pub norm: bool,
    /// The head's dense layer.
    pub head: bool,
}

/// What the configuration says of the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// What it reads.
    pub pooling: Pooling,
    /// Its nonlinearity, where it is not the family's.
    pub activation: Option<Activation>,
}

impl Config {
    /// Parses and checks the text of a `config.json`.
    ///
    /// # Errors
    /// Names the key, its value and what is possible.
    pub fn parse(text: &str) -> Result<Self, LoadError> {
        let raw = serde_json::from_str(text)
            .map_err(|error| LoadError::Bad(format!("config.json: {error}")))?;
        Self::check(raw)
    }

    /// Checks a raw configuration.
    ///
    /// # Errors
    /// Names the key, its value and what is possible.
    pub fn check(raw: Raw) -> Result<Self, LoadError> {
        let family = family(&raw)?;
        refuse_what_is_not_computed(&raw)?;
        let hidden = size("hidden_size", raw.hidden_size, None, K_MAX)?;
        let n_heads = size("num_attention_heads", raw.num_attention_heads, None, hidden)?;
        if hidden % n_heads != 0 {
            return Err(LoadError::Bad(format!(
                "config.json: hidden_size = {hidden} is not a multiple of num_attention_heads = {n_heads}"
            )));
        }
        let embedding = match family {
            Family::Electra | Family::DebertaV2 => {
                size("embedding_size", raw.embedding_size, Some(hidden), K_MAX)?
            }
            _ => hidden,
        };
        let n_layers = size("num_hidden_layers", raw.num_hidden_layers, None, LAYERS_MAX)?;
        let positions = size(
            "max_position_embeddings",
            raw.max_position_embeddings,
            None,
            POSITIONS_MAX,
        )?;
        let deberta = match family {
            Family::DebertaV2 => raw.deberta.check(hidden, n_heads, n_layers, positions)?,
            _ => Deberta {
                position_table: family != Family::ModernBert,
                ..NO_DEBERTA
            },
        };
        let (layers, biases, head) = if family == Family::ModernBert {
            modern::check_head_dim(hidden, n_heads)?;
            let modern = raw.modern();
            (modern.layers(n_layers)?, modern.biases(), modern.head()?)
        } else {
            (
                vec![LayerKind::default(); n_layers],
                BERT_BIASES,
                deberta.head,
            )
        };
        let config = Self {
            family,
            vocab: size("vocab_size", raw.vocab_size, None, VOCAB_MAX)?,
            hidden,
            embedding,
            n_layers,
            n_heads,
            inner: size("intermediate_size", raw.intermediate_size, None, K_MAX)?,
            activation: activation("hidden_act", raw.hidden_act.as_deref().unwrap_or("gelu"))?,
            epsilon: epsilon(family, &raw)?,
            positions,
            position_table: deberta.position_table,
            types: types(family, &raw)?,
            pad_id: raw
                .pad_token_id
                .unwrap_or(if family == Family::Roberta { 1 } else { 0 }),
            n_labels: n_labels(&raw)?,
            layers,
            score_terms: deberta.score_terms,
            relative: deberta.relative,
            biases,
            head,
        };
        if config.row_tokens_max() == 0 {
            return Err(LoadError::Bad(format!(
                "config.json: max_position_embeddings = {} leaves no position behind pad_token_id = {}",
                config.positions, config.pad_id
            )));
        }
        Ok(config)
    }

    /// The longest row: RoBERTa's first position is pad_token_id + 1.
    pub fn row_tokens_max(&self) -> usize {
        match self.family {
            Family::Roberta => self.positions.saturating_sub(self.pad_id as usize + 1),
            Family::Bert
            | Family::Electra
            | Family::DistilBert
            | Family::ModernBert
            | Family::DebertaV2 => self.positions,
        }
    }
}

fn family(raw: &Raw) -> Result<Family, LoadError> {
    let known = || ARCHITECTURES.map(|(name, _)| name).join(", ");
    if let Some(names) = raw.architectures.as_ref().filter(|names| !names.is_empty()) {
        let found = names
            .iter()
            .find_map(|name| ARCHITECTURES.iter().find(|(known, _)| known == name));
        return match found {
            Some(&(_, family)) => Ok(family),
            None => Err(LoadError::Unsupported(format!(
                "config.json: architectures = {names:?}; this engine computes {}",
                known()
            ))),
        };
    }
    match raw.model_type.as_deref() {
        Some("bert") => Ok(Family::Bert),
        Some("roberta" | "camembert" | "xlm-roberta") => Ok(Family::Roberta),
        Some("electra") => Ok(Family::Electra),
        Some("distilbert") => Ok(Family::DistilBert),
        Some("modernbert") => Ok(Family::ModernBert),
        Some("deberta-v2") => Ok(Family::DebertaV2),
        other => Err(LoadError::Unsupported(format!(
            "config.json: no architectures, and model_type = {other:?}; this engine computes {}",
            known()
        ))),
    }
}

fn refuse_what_is_not_computed(raw: &Raw) -> Result<(), LoadError> {
    if let Some(kind) = raw
        .position_embedding_type
        .as_deref()
        .filter(|&kind| kind != "absolute")
    {
        return Err(LoadError::Unsupported(format!(
            "config.json: position_embedding_type = {kind:?}; this engine computes \"absolute\""
        )));
    }
    if raw.is_decoder == Some(true) || raw.add_cross_attention == Some(true) {
        return Err(LoadError::Unsupported(
            "config.json: is_decoder or add_cross_attention = true; this engine computes encoders"
                .to_owned(),
        ));
    }
    if raw
        .quantization_config
        .as_ref()
        .is_some_and(|value| !value.is_null())
    {
        return Err(LoadError::Unsupported(
            "config.json: quantization_config is set; this engine quantises float weights itself"
                .to_owned(),
        ));
    }
    Ok(())
}

/// Rows of the token type table; 0 without one.
fn types(family: Family, raw: &Raw) -> Result<usize, LoadError> {
    let size = |default| {
        size(
            "type_vocab_size",
            raw.type_vocab_size,
            Some(default),
            VOCAB_MAX,
        )
    };
    match family {
        Family::DistilBert | Family::ModernBert => Ok(0),
        Family::DebertaV2 if raw.type_vocab_size.unwrap_or(0) == 0 => Ok(0),
        Family::Roberta => size(1),
        Family::Bert | Family::Electra | Family::DebertaV2 => size(2),
    }
}

fn epsilon(family: Family, raw: &Raw) -> Result<f32, LoadError> {
    let (key, value) = match family {
        // DistilBERT's is in its code, not in its configuration.
        Family::DistilBert => ("layer_norm_eps", 1e-12),
        // A ModernBERT's configuration may hold the other key too, which nobody reads.
        Family::ModernBert => ("norm_eps", raw.norm_eps.unwrap_or(1e-5)),
        Family::DebertaV2 => ("layer_norm_eps", raw.layer_norm_eps.unwrap_or(1e-7)),
        _ => ("layer_norm_eps", raw.layer_norm_eps.unwrap_or(1e-12)),
    };
    if value.is_finite() && 0.0 <= value {
        Ok(value)
    } else {
        Err(LoadError::Bad(format!(
            "config.json: {key} = {value} is not a finite number from 0 up"
        )))
    }
}

fn n_labels(raw: &Raw) -> Result<Option<usize>, LoadError> {
    let said = raw.id2label.as_ref().map(BTreeMap::len).or(raw.num_labels);
    said.map(|n| size("id2label / num_labels", Some(n), None, LABELS_MAX))
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BERT: &str = r#"{"architectures":["BertForSequenceClassification"],"vocab_size":100,"hidden_size":48,
        "num_hidden_layers":2,"num_attention_heads":4,"intermediate_size":96,"max_position_embeddings":40}"#;

    /// Parses `BERT` with one key set to a JSON value (`null` removes it).
    fn with(key: &str, value: &str) -> Result<Config, LoadError> {
        let mut json: serde_json::Value = serde_json::from_str(BERT).unwrap();
        json[key] = serde_json::from_str(value).unwrap();
        Config::parse(&json.to_string())
    }

    #[track_caller]
    fn refused(key: &str, value: &str, words: &[&str]) {
        let text = with(key, value).expect_err("accepted").to_string();
        for word in words {
            assert!(text.contains(word), "{text:?} does not name {word:?}");
        }
    }

    #[test]
    fn defaults_are_the_familys() {
        let config = with("pad_token_id", "null").unwrap();
        assert_eq!(
            (config.types, config.pad_id, config.epsilon, config.n_labels),
            (2, 0, 1e-12, None)
        );
        assert_eq!(
            (config.activation, config.row_tokens_max()),
            (Activation::Gelu, 40)
        );
        let roberta = with(
            "architectures",
            r#"["XLMRobertaForSequenceClassification"]"#,
        )
        .unwrap();
        assert_eq!(
            (roberta.types, roberta.pad_id, roberta.row_tokens_max()),
            (1, 1, 38)
        );
    }

    #[test]
    fn model_type_stands_in_for_architectures() {
        let text = BERT.replace(
            r#""architectures":["BertForSequenceClassification"]"#,
            r#""model_type":"distilbert""#,
        );
        assert_eq!(Config::parse(&text).unwrap().family, Family::DistilBert);
    }

    #[test]
    fn errors_name_key_and_value() {
        refused(
            "architectures",
            r#"["T5ForConditionalGeneration"]"#,
            &["T5ForConditionalGeneration", "BertFor"],
        );
        refused(
            "hidden_size",
            "50",
            &["hidden_size = 50", "num_attention_heads = 4"],
        );
        refused("hidden_size", "null", &["hidden_size is missing"]);
        refused("hidden_size", "70000", &["hidden_size = 70000", "65536"]);
        refused("num_attention_heads", "0", &["num_attention_heads = 0"]);
        refused("hidden_act", r#""mish""#, &["hidden_act", "mish", "silu"]);
        refused(
            "position_embedding_type",
            r#""relative_key""#,
            &["position_embedding_type", "relative_key"],
        );
        refused("is_decoder", "true", &["is_decoder"]);
        refused("layer_norm_eps", "-1.0", &["layer_norm_eps = -1"]);
        refused("vocab_size", r#""many""#, &["config.json", "many"]);
        refused("id2label", "{}", &["id2label", "0"]);
        refused(
            "num_hidden_layers",
            "1000000",
            &["num_hidden_layers = 1000000"],
        );
        refused(
            "quantization_config",
            r#"{"bits":4}"#,
            &["quantization_config"],
        );
    }

    #[test]
    fn a_roberta_needs_a_position_behind_the_padding() {
        let mut json: serde_json::Value = serde_json::from_str(BERT).unwrap();
        json["architectures"] = serde_json::json!(["RobertaForSequenceClassification"]);
        json["pad_token_id"] = 39.into();
        let text = Config::parse(&json.to_string())
            .expect_err("accepted")
            .to_string();
        assert!(
            text.contains("max_position_embeddings = 40") && text.contains("pad_token_id = 39"),
            "{text}"
        );
    }
}
