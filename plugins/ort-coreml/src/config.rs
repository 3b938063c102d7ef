//! What the plugin must know of a model beyond its graph: `config.json`, raw and then checked.

use backend_api::Fault;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Bounds on what a file can make us allocate, far above any encoder.
const LABELS_MAX: usize = 65_536;
const SIZE_MAX: usize = 1 << 24;
/// A configuration is some kilobytes.
const BYTES_MAX: u64 = 16 << 20;

/// Families whose positions start behind the padding token's id, so that so many of their table's rows are never used.
const BEHIND_PADDING: [&str; 8] = [
    "roberta",
    "camembert",
    "xlm-roberta",
    "xlm-roberta-xl",
    "roberta-prelayernorm",
    "xmod",
    "data2vec-text",
    "mpnet",
];

/// `config.json` as it may be; other keys are passed over.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Raw {
    model_type: Option<String>,
    vocab_size: Option<usize>,
    type_vocab_size: Option<usize>,
    pad_token_id: Option<u32>,
    max_position_embeddings: Option<usize>,
    id2label: Option<BTreeMap<String, Value>>,
    num_labels: Option<usize>,
    #[serde(alias = "dim")]
    hidden_size: Option<usize>,
    #[serde(alias = "n_heads")]
    num_attention_heads: Option<usize>,
    #[serde(alias = "hidden_dim")]
    intermediate_size: Option<usize>,
}

/// A model's numbers, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Token ids are below this.
    pub vocab: u32,
    /// Token types are below this, where the graph reads them; `None` for any.
    pub types: Option<u32>,
    /// The padding token.
    pub pad_id: u32,
    /// Whether positions are counted from `pad_id + 1` on.
    pub behind_padding: bool,
    /// The longest row, if the model has a limit.
    pub row_tokens_max: Option<usize>,
    /// Logits of a row, if the configuration says.
    pub n_labels: Option<usize>,
    /// Values of a token between layers, inside a feed-forward layer, and attention heads: what scratch memory is estimated from.
    pub hidden: usize,
    /// See `hidden`.
    pub inner: usize,
    /// See `hidden`.
    pub n_heads: usize,
}

impl Config {
    /// Reads `config.json` of a model's folder.
    ///
    /// # Errors
    /// `BadModel`, which names the file, and the key where one is wrong.
    pub fn read(dir: &Path) -> Result<Self, Fault> {
        let path = dir.join("config.json");
        let named = |why: String| Fault::bad_model(format!("{}: {why}", path.display()));
        let meta = std::fs::metadata(&path).map_err(|error| named(error.to_string()))?;
        if BYTES_MAX < meta.len() {
            return Err(named(format!(
                "{} bytes, at most {BYTES_MAX} are read",
                meta.len()
            )));
        }
        let text = std::fs::read_to_string(&path).map_err(|error| named(error.to_string()))?;
        Self::parse(&text).map_err(named)
    }

    /// Parses and checks the text of a `config.json`.
    ///
    /// # Errors
    /// Names the key, its value and what is possible.
    pub fn parse(text: &str) -> Result<Self, String> {
        let raw: Raw = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let vocab = size("vocab_size", raw.vocab_size, SIZE_MAX)?;
        let vocab = vocab.ok_or("vocab_size is missing, so token ids cannot be checked")?;
        // Some families write 0 for a table that they do not have.
        let types = raw.type_vocab_size.filter(|&types| types != 0);
        let types = size("type_vocab_size", types, SIZE_MAX)?;
        let behind_padding = raw
            .model_type
            .as_deref()
            .is_some_and(|kind| BEHIND_PADDING.contains(&kind));
        let pad_id = raw.pad_token_id.unwrap_or(u32::from(behind_padding));
        if vocab <= pad_id as usize {
            return Err(format!(
                "pad_token_id = {pad_id} is no token: vocab_size = {vocab}"
            ));
        }
        let positions = size(
            "max_position_embeddings",
            raw.max_position_embeddings,
            SIZE_MAX,
        )?;
        let unused = if behind_padding {
            pad_id as usize + 1
        } else {
            0
        };
        if let Some(positions) = positions.filter(|&positions| positions <= unused) {
            return Err(format!(
                "max_position_embeddings = {positions} leaves no position behind pad_token_id = {pad_id}"
            ));
        }
        let said = raw.id2label.map(|labels| labels.len()).or(raw.num_labels);
        let hidden = size("hidden_size", raw.hidden_size, SIZE_MAX)?.unwrap_or(1_024);
        Ok(Self {
            vocab: vocab as u32,
            types: types.map(|types| types as u32),
            pad_id,
            behind_padding,
            row_tokens_max: positions.map(|positions| positions - unused),
            n_labels: size("id2label / num_labels", said, LABELS_MAX)?,
            hidden,
            inner: size("intermediate_size", raw.intermediate_size, SIZE_MAX)?
                .unwrap_or(4 * hidden),
            n_heads: size("num_attention_heads", raw.num_attention_heads, hidden)?
                .unwrap_or(hidden.div_ceil(64)),
        })
    }
}

/// A size within 1..=max, if it is said.
fn size(key: &str, value: Option<usize>, max: usize) -> Result<Option<usize>, String> {
    match value {
        Some(value) if !(1..=max).contains(&value) => {
            Err(format!("{key} = {value} is not within 1..={max}"))
        }
        value => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BERT: &str = r#"{"model_type":"bert","vocab_size":100,"max_position_embeddings":40,"id2label":{"0":"LABEL_0"}}"#;

    /// Parses `BERT` with one key set to a JSON value (`null` removes it).
    fn with(key: &str, value: &str) -> Result<Config, String> {
        let mut json: Value = serde_json::from_str(BERT).unwrap();
        json[key] = serde_json::from_str(value).unwrap();
        Config::parse(&json.to_string())
    }

    #[track_caller]
    fn refused(key: &str, value: &str, words: &[&str]) {
        let text = with(key, value).expect_err("accepted");
        for word in words {
            assert!(text.contains(word), "{text:?} does not name {word:?}");
        }
    }

    #[test]
    fn what_is_not_said_has_a_default() {
        let config = Config::parse(BERT).unwrap();
        assert_eq!(
            (config.pad_id, config.types, config.n_labels),
            (0, None, Some(1))
        );
        assert_eq!(
            (config.row_tokens_max, config.behind_padding),
            (Some(40), false)
        );
        assert_eq!(
            with("max_position_embeddings", "null")
                .unwrap()
                .row_tokens_max,
            None
        );
        assert_eq!(with("type_vocab_size", "0").unwrap().types, None);
    }

    #[test]
    fn positions_behind_the_padding_token() {
        let config = with("model_type", r#""xlm-roberta""#).unwrap();
        assert_eq!((config.pad_id, config.row_tokens_max), (1, Some(38)));
    }

    #[test]
    fn wrong_values_are_named() {
        refused("vocab_size", "null", &["vocab_size", "missing"]);
        refused("vocab_size", "0", &["vocab_size = 0", "16777216"]);
        refused(
            "pad_token_id",
            "100",
            &["pad_token_id = 100", "vocab_size = 100"],
        );
        refused("num_attention_heads", "0", &["num_attention_heads = 0"]);
        refused("vocab_size", r#""many""#, &["many"]);
        let roberta = r#"{"model_type":"roberta","vocab_size":9,"max_position_embeddings":2}"#;
        assert!(
            Config::parse(roberta)
                .unwrap_err()
                .contains("leaves no position")
        );
    }
}
