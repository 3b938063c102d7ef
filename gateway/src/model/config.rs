//! The parts of `config.json` and `tokenizer_config.json` that the gateway acts on, by
//! transformers' and sentence-transformers' rules. Pure: text in, facts out.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::prompt::generates;
use crate::score::{Activation, Side};

/// Labels one classifier may have.
const LABELS_MAX: usize = 4_096;
/// A tokenizer that knows no limit writes 10³⁰; nothing that we serve reads more than this.
const ROW_TOKENS_MAX: u64 = 131_072;
/// What BERT reads, for a model that does not say.
const ROW_TOKENS_DEFAULT: usize = 512;

/// Architectures whose positions start behind the padding token's id, so that
/// `max_position_embeddings` counts `pad_token_id + 1` positions that no token can have.
const POSITIONS_AFTER_PAD: [&str; 11] = [
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "roberta-prelayernorm",
    "mpnet",
    "longformer",
    "data2vec-text",
    "xmod",
    "ibert",
    "luke",
];

/// Families that read from left to right, with all that are called after them: `qwen3_moe`.
const DECODERS: [&str; 7] = [
    "qwen2", "qwen3", "llama", "mistral", "gemma", "phi", "smollm",
];

/// `config.json` as it is written: every field may be absent or null.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Config {
    architectures: Option<Vec<String>>,
    pub model_type: Option<String>,
    #[serde(rename = "_name_or_path")]
    name_or_path: Option<String>,
    id2label: Option<BTreeMap<String, Value>>,
    num_labels: Option<usize>,
    problem_type: Option<String>,
    max_position_embeddings: Option<i64>,
    /// T5's name for it.
    n_positions: Option<i64>,
    pad_token_id: Option<i64>,
    pub type_vocab_size: Option<u32>,
    pub vocab_size: Option<u32>,
    sentence_transformers: Option<SentenceTransformers>,
    sbert_ce_default_activation_function: Option<String>,
}

/// `config_sentence_transformers.json`, and the object of that name inside `config.json`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct SentenceTransformers {
    activation_fn: Option<String>,
}

/// `tokenizer_config.json`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct TokenizerConfig {
    model_max_length: Option<f64>,
    truncation_side: Option<TruncationSide>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum TruncationSide {
    Left,
    Right,
}

// === impl TokenizerConfig ===

impl TokenizerConfig {
    /// Where texts are cut, if it says so.
    pub(super) fn truncation_side(&self) -> Option<Side> {
        self.truncation_side.map(|side| match side {
            TruncationSide::Left => Side::Left,
            TruncationSide::Right => Side::Right,
        })
    }
}

// === impl Config ===

impl Config {
    /// The architecture with a scoring head, else one that generates, or the reason why there is none.
    pub(super) fn scoring_architecture(&self) -> Result<&str, String> {
        let architectures = self.architectures.as_deref().unwrap_or_default();
        let scoring = |name: &&String| name.ends_with("ForSequenceClassification");
        let generating = |name: &&String| generates(name);
        let mut both = architectures.iter().filter(scoring);
        let found = both
            .next()
            .or_else(|| architectures.iter().find(generating));
        if let Some(name) = found {
            return Ok(name);
        }
        match architectures.first() {
            None => Err("`architectures` is missing, so nothing says what the weights are".into()),
            Some(name) => Err(format!(
                "the architecture is {name}, which has no scoring head (…ForSequenceClassification)"
            )),
        }
    }

    /// Whether the family reads from left to right and was taught with prompts.
    pub(super) fn is_decoder(&self) -> bool {
        let kind = self.model_type.as_deref();
        kind.is_some_and(|kind| DECODERS.iter().any(|family| kind.starts_with(family)))
    }

    /// The name that the model had where it was trained from.
    pub(super) fn name_or_path(&self) -> Option<&str> {
        self.name_or_path.as_deref()
    }

    /// The labels in order. `n_head` is what the classifier's shape says, where that is known.
    pub(super) fn labels(&self, n_head: Option<usize>) -> Result<Vec<String>, String> {
        let declared = self
            .id2label
            .as_ref()
            .map(BTreeMap::len)
            .or(self.num_labels);
        // transformers writes neither when there are two labels.
        let n_labels = declared.or(n_head).unwrap_or(2);
        if n_labels == 0 || LABELS_MAX < n_labels {
            return Err(format!("{n_labels} labels, expected 1 to {LABELS_MAX}"));
        }
        if let Some(n_head) = n_head.filter(|&n_head| n_head != n_labels) {
            return Err(format!(
                "config.json has {n_labels} labels, the classifier {n_head}"
            ));
        }
        let Some(names) = &self.id2label else {
            return Ok((0..n_labels).map(|idx| format!("LABEL_{idx}")).collect());
        };
        (0..n_labels)
            .map(|idx| match names.get(&idx.to_string()) {
                Some(Value::String(name)) => Ok(name.clone()),
                Some(other) => Ok(other.to_string()),
                None => Err(format!("id2label has {n_labels} labels but no label {idx}")),
            })
            .collect()
    }

    /// The model's own activation; what could not be followed is added to `warnings`.
    pub(super) fn activation(
        &self,
        beside: &SentenceTransformers,
        n_labels: usize,
        warnings: &mut Vec<String>,
    ) -> Activation {
        let inner = self.sentence_transformers.as_ref();
        let declared = inner
            .and_then(|inner| inner.activation_fn.as_ref())
            .or(self.sbert_ce_default_activation_function.as_ref())
            .or(beside.activation_fn.as_ref());
        let default = self.default_activation(n_labels);
        let Some(text) = declared else { return default };
        let used = default.name();
        match Activation::parse(text) {
            // One label's softmax is 1 whatever the logit: no ranking could come of it.
            Some(Activation::Softmax) if n_labels == 1 => {
                warnings.push(format!(
                    "{text} of one label is always 1; using {used} instead"
                ));
                default
            }
            Some(activation) => activation,
            None => {
                warnings.push(format!(
                    "unknown activation {text:?}, using {used}; set the model's `activation`"
                ));
                default
            }
        }
    }

    fn default_activation(&self, n_labels: usize) -> Activation {
        // Labels that do not exclude each other each have their own probability.
        let independent = self.problem_type.as_deref() == Some("multi_label_classification");
        if n_labels == 1 || independent {
            Activation::Sigmoid
        } else {
            Activation::Softmax
        }
    }

    /// The most tokens that one row may have, special tokens included.
    pub(super) fn row_tokens_max(
        &self,
        tokenizer: &TokenizerConfig,
        warnings: &mut Vec<String>,
    ) -> Result<usize, String> {
        let positions = self.max_position_embeddings.or(self.n_positions);
        let unusable = if self.positions_after_pad() {
            self.pad_token_id() + 1
        } else {
            0
        };
        // Some configurations write 0 or -1 for "no limit".
        let by_model = positions
            .filter(|&n| 0 < n)
            .map(|n| n - i64::from(unusable));
        if let Some(said) = tokenizer.model_max_length.filter(|&n| n < 1.0) {
            warnings.push(format!(
                "tokenizer_config.json: model_max_length = {said} is no length, expected 1 or more; it is passed over"
            ));
        }
        let by_tokenizer = tokenizer
            .model_max_length
            .filter(|n| (1.0..=1e9).contains(n));
        let bounds = [by_model, by_tokenizer.map(|n| n as i64)];
        let Some(bound) = bounds.into_iter().flatten().min() else {
            warnings.push(format!(
                "neither max_position_embeddings nor model_max_length is given; \
                 rows end at {ROW_TOKENS_DEFAULT} tokens"
            ));
            return Ok(ROW_TOKENS_DEFAULT);
        };
        // A pair needs a beginning, two separators and a token of each text.
        match u64::try_from(bound) {
            Ok(bound) if 5 <= bound => Ok(bound.min(ROW_TOKENS_MAX) as usize),
            _ => Err(format!(
                "max_position_embeddings and model_max_length leave {bound} tokens for a row, \
                 expected at least 5"
            )),
        }
    }

    /// The id that fills rectangles; the family's own where the file is silent.
    fn pad_token_id(&self) -> u32 {
        let default = u32::from(self.positions_after_pad());
        self.pad_token_id
            .and_then(|id| u32::try_from(id).ok())
            .unwrap_or(default)
    }

    fn positions_after_pad(&self) -> bool {
        self.model_type
            .as_deref()
            .is_some_and(|kind| POSITIONS_AFTER_PAD.contains(&kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        serde_json::from_str(text).unwrap()
    }

    #[track_caller]
    fn check_activation(text: &str, n_labels: usize, want: Activation, n_warnings: usize) {
        let mut warnings = Vec::new();
        let beside = SentenceTransformers::default();
        let got = config(text).activation(&beside, n_labels, &mut warnings);
        assert_eq!(
            (got, warnings.len()),
            (want, n_warnings),
            "{text} {n_labels}: {warnings:?}"
        );
    }

    #[test]
    fn activations() {
        use Activation::{Identity, Sigmoid, Softmax};
        check_activation("{}", 1, Sigmoid, 0);
        check_activation("{}", 3, Softmax, 0);
        check_activation(
            r#"{"problem_type":"multi_label_classification"}"#,
            3,
            Sigmoid,
            0,
        );
        let old = r#"{"sbert_ce_default_activation_function":"torch.nn.modules.linear.Identity"}"#;
        check_activation(old, 1, Identity, 0);
        check_activation(old, 3, Identity, 0);
        let new = r#"{"sentence_transformers":
            {"activation_fn":"torch.nn.modules.activation.Sigmoid","version":"4.1.0"},
            "sbert_ce_default_activation_function":"torch.nn.modules.linear.Identity"}"#;
        check_activation(new, 1, Sigmoid, 0);
        check_activation(new, 3, Sigmoid, 0);
        let softmax = r#"{"sentence_transformers":{"activation_fn":"torch.nn.Softmax"}}"#;
        check_activation(softmax, 3, Softmax, 0);
        check_activation(softmax, 1, Sigmoid, 1);
        let unknown = r#"{"sbert_ce_default_activation_function":"my.pkg.Scaled"}"#;
        check_activation(unknown, 1, Sigmoid, 1);
        check_activation(unknown, 2, Softmax, 1);
        check_activation(
            r#"{"sentence_transformers":{"activation_fn":null}}"#,
            1,
            Sigmoid,
            0,
        );
    }

    #[test]
    fn the_file_beside_config_comes_last() {
        let beside: SentenceTransformers =
            serde_json::from_str(r#"{"activation_fn":"torch.nn.modules.linear.Identity"}"#)
                .unwrap();
        let mut warnings = Vec::new();
        let got = config("{}").activation(&beside, 1, &mut warnings);
        assert_eq!(got, Activation::Identity);
        let inside = r#"{"sbert_ce_default_activation_function":"x.Sigmoid"}"#;
        let got = config(inside).activation(&beside, 1, &mut warnings);
        assert_eq!(got, Activation::Sigmoid);
        assert!(warnings.is_empty());
    }

    #[track_caller]
    fn check_labels(text: &str, n_head: Option<usize>, want: Result<&[&str], &str>) {
        match (config(text).labels(n_head), want) {
            (Ok(got), Ok(want)) => assert_eq!(got, want, "{text}"),
            (Err(got), Err(want)) => assert!(got.contains(want), "{got:?} is not {want:?}"),
            (got, want) => panic!("{text}: {got:?}, expected {want:?}"),
        }
    }

    #[test]
    fn labels() {
        let three = r#"{"id2label":{"0":"no","2":"yes","1":"maybe"}}"#;
        check_labels(three, None, Ok(&["no", "maybe", "yes"]));
        check_labels(three, Some(3), Ok(&["no", "maybe", "yes"]));
        check_labels(three, Some(1), Err("3 labels, the classifier 1"));
        check_labels(r#"{"id2label":{"0":0}}"#, None, Ok(&["0"]));
        check_labels(r#"{"num_labels":1}"#, None, Ok(&["LABEL_0"]));
        check_labels("{}", Some(1), Ok(&["LABEL_0"]));
        check_labels("{}", None, Ok(&["LABEL_0", "LABEL_1"]));
        check_labels(r#"{"id2label":{"0":"a","2":"b"}}"#, None, Err("no label 1"));
        check_labels(r#"{"id2label":{}}"#, None, Err("0 labels"));
        check_labels(r#"{"num_labels":5000}"#, None, Err("1 to 4096"));
        // More than ten labels are not in the order of their text.
        let many: Vec<String> = (0..11).map(|idx| format!(r#""{idx}":"l{idx}""#)).collect();
        let got = config(&format!(r#"{{"id2label":{{{}}}}}"#, many.join(","))).labels(None);
        assert_eq!(got.unwrap()[10], "l10");
    }

    #[track_caller]
    fn check_tokens(model: &str, tokenizer: &str, want: Result<usize, &str>) {
        let tokenizer: TokenizerConfig = serde_json::from_str(tokenizer).unwrap();
        match (
            config(model).row_tokens_max(&tokenizer, &mut Vec::new()),
            want,
        ) {
            (Ok(got), Ok(want)) => assert_eq!(got, want, "{model}"),
            (Err(got), Err(want)) => assert!(got.contains(want), "{got:?} is not {want:?}"),
            (got, want) => panic!("{model}: {got:?}, expected {want:?}"),
        }
    }

    #[test]
    fn a_length_that_is_none_is_told() {
        for (said, n_warnings) in [("-1", 1), ("0", 1), ("128", 0), ("1e30", 0)] {
            let text = format!("{{\"model_max_length\":{said}}}");
            let tokenizer: TokenizerConfig = serde_json::from_str(&text).unwrap();
            let mut warnings = Vec::new();
            let bert = config(r#"{"model_type":"bert","max_position_embeddings":512}"#);
            bert.row_tokens_max(&tokenizer, &mut warnings).unwrap();
            assert_eq!(warnings.len(), n_warnings, "{said}: {warnings:?}");
        }
    }

    #[test]
    fn row_lengths() {
        let bert = r#"{"model_type":"bert","max_position_embeddings":512,"pad_token_id":0}"#;
        let none = r#"{"model_max_length":1000000000000000019884624838656}"#;
        check_tokens(bert, "{}", Ok(512));
        check_tokens(bert, none, Ok(512));
        check_tokens(bert, r#"{"model_max_length":128}"#, Ok(128));
        check_tokens(bert, r#"{"model_max_length":1024}"#, Ok(512));
        let xlm = r#"{"model_type":"xlm-roberta","max_position_embeddings":514,"pad_token_id":1}"#;
        check_tokens(xlm, none, Ok(512));
        let silent = r#"{"model_type":"roberta","max_position_embeddings":514}"#;
        check_tokens(silent, "{}", Ok(512));
        let bge_m3 = r#"{"model_type":"xlm-roberta","max_position_embeddings":8194,
            "pad_token_id":1}"#;
        check_tokens(bge_m3, r#"{"model_max_length":8192}"#, Ok(8192));
        check_tokens(r#"{"model_type":"t5","n_positions":512}"#, "{}", Ok(512));
        check_tokens("{}", "{}", Ok(512));
        check_tokens("{}", none, Ok(512));
        check_tokens(r#"{"max_position_embeddings":-1}"#, "{}", Ok(512));
        check_tokens(r#"{"max_position_embeddings":900000}"#, "{}", Ok(131_072));
        check_tokens(
            r#"{"max_position_embeddings":4}"#,
            "{}",
            Err("leave 4 tokens"),
        );
        let under = r#"{"model_type":"roberta","max_position_embeddings":2,"pad_token_id":9}"#;
        check_tokens(under, "{}", Err("leave -8 tokens"));
    }

    #[track_caller]
    fn check_architecture(text: &str, want: Result<&str, &str>) {
        match (config(text).scoring_architecture(), want) {
            (Ok(got), Ok(want)) => assert_eq!(got, want),
            (Err(got), Err(want)) => assert!(got.contains(want), "{got:?} is not {want:?}"),
            (got, want) => panic!("{text}: {got:?}, expected {want:?}"),
        }
    }

    #[test]
    fn architectures() {
        let bert = r#"{"architectures":["BertForSequenceClassification"]}"#;
        check_architecture(bert, Ok("BertForSequenceClassification"));
        let two = r#"{"architectures":["A","NewForSequenceClassification"]}"#;
        check_architecture(two, Ok("NewForSequenceClassification"));
        check_architecture(
            r#"{"architectures":["BertModel"]}"#,
            Err("BertModel, which has no"),
        );
        let generates = r#"{"architectures":["Qwen3ForCausalLM"]}"#;
        check_architecture(generates, Ok("Qwen3ForCausalLM"));
        check_architecture(r#"{"architectures":[]}"#, Err("missing"));
        check_architecture("{}", Err("missing"));
    }

    #[test]
    fn padding_ids() {
        assert_eq!(config("{}").pad_token_id(), 0);
        assert_eq!(config(r#"{"model_type":"roberta"}"#).pad_token_id(), 1);
        assert_eq!(config(r#"{"pad_token_id":50283}"#).pad_token_id(), 50_283);
        assert_eq!(config(r#"{"pad_token_id":-1}"#).pad_token_id(), 0);
    }
}
