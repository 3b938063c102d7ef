//! `config.json`, read key by key: every value that is used has been checked against a bound.

use crate::block::activation::Activation;
use backend_api::Fault;
use serde_json::{Map, Value};

/// Bounds on what a file can make us allocate, far above any ranking model.
const LAYERS_MAX: usize = 256;
const LABELS_MAX: usize = 65_536;
const VOCAB_MAX: usize = 1 << 24;
const POSITIONS_MAX: usize = 1 << 20;
const WIDTH_MAX: usize = 1 << 17;
const HEADS_MAX: usize = 1_024;

/// The keys of a `config.json`. A key that is `null` counts as missing.
pub(crate) struct Config {
    keys: Map<String, Value>,
}

impl Config {
    /// Parses the text of a `config.json`.
    pub(crate) fn parse(text: &str) -> Result<Self, Fault> {
        match serde_json::from_str(text) {
            Ok(Value::Object(keys)) => Ok(Self { keys }),
            Ok(_) => Err(Fault::bad_model("config.json: not a JSON object")),
            Err(error) => Err(Fault::bad_model(format!("config.json: {error}"))),
        }
    }

    /// The value of the first of these keys that is there: newer names first, then older ones.
    pub(crate) fn find(&self, keys: &[&str]) -> Option<&Value> {
        let mut values = keys.iter().filter_map(|&key| self.keys.get(key));
        values.find(|value| !value.is_null())
    }

    /// The value of a key as it stands there, `null` included.
    pub(crate) fn said(&self, key: &str) -> Option<&Value> {
        self.keys.get(key)
    }

    /// The value of a key, if it is of the kind that `read` reads.
    fn read<T>(
        &self,
        keys: &[&str],
        kind: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, Fault> {
        self.find(keys)
            .map(|value| read(value).ok_or_else(|| bad(keys[0], value, &format!("not {kind}"))))
            .transpose()
    }

    /// A size within 1..=`max`.
    fn size_or(&self, keys: &[&str], default: Option<usize>, max: usize) -> Result<usize, Fault> {
        let found = self.read(keys, "a whole number", |value| {
            value.as_u64().and_then(|value| usize::try_from(value).ok())
        })?;
        match found.or(default) {
            Some(size) if (1..=max).contains(&size) => Ok(size),
            Some(size) => Err(bad(keys[0], &size.into(), &format!("not within 1..={max}"))),
            None => Err(Fault::bad_model(format!(
                "config.json: {} is missing",
                keys[0]
            ))),
        }
    }

    /// The width of something: of the residual stream, of a feed-forward layer.
    pub(crate) fn width(&self, keys: &[&str]) -> Result<usize, Fault> {
        self.size_or(keys, None, WIDTH_MAX)
    }

    /// A width that need not be said.
    pub(crate) fn width_or(&self, keys: &[&str], default: usize) -> Result<usize, Fault> {
        self.size_or(keys, Some(default), WIDTH_MAX)
    }

    pub(crate) fn n_layers(&self, keys: &[&str]) -> Result<usize, Fault> {
        self.size_or(keys, None, LAYERS_MAX)
    }

    pub(crate) fn n_heads(&self, keys: &[&str], default: Option<usize>) -> Result<usize, Fault> {
        self.size_or(keys, default, HEADS_MAX)
    }

    pub(crate) fn vocab(&self) -> Result<usize, Fault> {
        self.size_or(&["vocab_size"], None, VOCAB_MAX)
    }

    pub(crate) fn positions(&self, keys: &[&str], default: Option<usize>) -> Result<usize, Fault> {
        self.size_or(keys, default, POSITIONS_MAX)
    }

    /// Rows of the table of token types; 0 without one.
    pub(crate) fn types_or(&self, default: usize) -> Result<usize, Fault> {
        if self.integer("type_vocab_size")?.unwrap_or(default as i64) == 0 {
            return Ok(0);
        }
        self.size_or(&["type_vocab_size"], Some(default), VOCAB_MAX)
    }

    /// Labels, if the configuration says; the classifier's shape has the last word.
    pub(crate) fn n_labels(&self) -> Result<Option<usize>, Fault> {
        let said = match self.find(&["id2label"]) {
            Some(Value::Object(names)) => Some(names.len()),
            Some(other) => return Err(bad("id2label", other, "not an object")),
            None => self.integer("num_labels")?.map(|n| n.max(0) as usize),
        };
        match said {
            Some(n) if !(1..=LABELS_MAX).contains(&n) => Err(bad(
                "id2label or num_labels",
                &n.into(),
                &format!("not within 1..={LABELS_MAX}"),
            )),
            said => Ok(said),
        }
    }

    /// A whole number that may be negative.
    pub(crate) fn integer(&self, key: &str) -> Result<Option<i64>, Fault> {
        self.read(&[key], "a whole number", Value::as_i64)
    }

    /// A token's id, which is below the vocabulary's size.
    pub(crate) fn token(&self, key: &str) -> Result<Option<u32>, Fault> {
        self.read(&[key], "a token id", |value| {
            value.as_u64().and_then(|value| u32::try_from(value).ok())
        })
    }

    /// A finite number from `least` up.
    pub(crate) fn number_or(&self, keys: &[&str], default: f64, least: f64) -> Result<f64, Fault> {
        let found = self.read(keys, "a number", Value::as_f64)?;
        let value = found.unwrap_or(default);
        if value.is_finite() && least <= value {
            Ok(value)
        } else {
            let what = format!("not a finite number from {least} up");
            Err(bad(keys[0], &value.into(), &what))
        }
    }

    /// What a norm adds to the variance.
    pub(crate) fn epsilon(&self, key: &str, default: f64) -> Result<f32, Fault> {
        Ok(self.number_or(&[key], default, 0.0)? as f32)
    }

    pub(crate) fn flag_or(&self, key: &str, default: bool) -> Result<bool, Fault> {
        let found = self.read(&[key], "true or false", Value::as_bool)?;
        Ok(found.unwrap_or(default))
    }

    pub(crate) fn text(&self, keys: &[&str]) -> Result<Option<&str>, Fault> {
        match self.find(keys) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(bad(keys[0], other, "not a text")),
        }
    }

    /// A list of texts.
    pub(crate) fn texts(&self, key: &str) -> Result<Vec<String>, Fault> {
        let texts = self.read(&[key], "a list of texts", |value| {
            let texts = value
                .as_array()?
                .iter()
                .map(|text| text.as_str().map(str::to_owned));
            texts.collect()
        })?;
        Ok(texts.unwrap_or_default())
    }

    /// A list of texts, or one text with bars in between, in lower case.
    pub(crate) fn words(&self, key: &str) -> Result<Vec<String>, Fault> {
        let Some(value) = self.find(&[key]) else {
            return Ok(Vec::new());
        };
        let words: Option<Vec<&str>> = match value {
            Value::String(text) => Some(text.split('|').collect()),
            Value::Array(values) => values.iter().map(Value::as_str).collect(),
            _ => None,
        };
        let words = words.ok_or_else(|| bad(key, value, "not a list of texts"))?;
        let words = words.into_iter().map(|word| word.trim().to_lowercase());
        Ok(words
            .filter(|word| !matches!(word.as_str(), "" | "none"))
            .collect())
    }

    /// A nonlinearity by its name in `transformers`.
    pub(crate) fn activation(&self, keys: &[&str], default: &str) -> Result<Activation, Fault> {
        let name = self.text(keys)?.unwrap_or(default);
        Activation::named(name)
            .ok_or_else(|| unsupported(keys[0], &name.into(), &Activation::NAMES.join(", ")))
    }

    /// Refuses a model that sets one of these keys to something else than `only`.
    pub(crate) fn only(&self, key: &str, only: &[Value]) -> Result<(), Fault> {
        match self.find(&[key]) {
            Some(value) if !only.contains(value) => {
                let only: Vec<_> = only.iter().map(Value::to_string).collect();
                Err(unsupported(key, value, &only.join(" or ")))
            }
            _ => Ok(()),
        }
    }

    /// The base of rotary positions, of which this plugin computes unscaled ones.
    pub(crate) fn rope_theta(&self, older: &[&str], default: f64) -> Result<f64, Fault> {
        self.refuse_rope_scaling()?;
        let older = self.number_or(older, default, 1.0)?;
        theta(self.find(&["rope_parameters"]), older)
    }

    pub(crate) fn refuse_rope_scaling(&self) -> Result<(), Fault> {
        match self.find(&["rope_scaling"]) {
            Some(scaling) => Err(unsupported("rope_scaling", scaling, "unscaled positions")),
            None => Ok(()),
        }
    }

    /// Checks that heads share the width evenly, and returns a head's part.
    pub(crate) fn head_dim(&self, hidden: usize, n_heads: usize) -> Result<usize, Fault> {
        if hidden.is_multiple_of(n_heads) {
            return Ok(hidden / n_heads);
        }
        Err(Fault::bad_model(format!(
            "config.json: hidden_size = {hidden} is not a multiple of num_attention_heads = {n_heads}"
        )))
    }
}

/// What an entry of `rope_parameters` says of the base, or else `older`.
pub(crate) fn theta(rope: Option<&Value>, older: f64) -> Result<f64, Fault> {
    let Some(rope) = rope else {
        return Ok(older);
    };
    match rope.get("rope_type").or(rope.get("type")) {
        None | Some(Value::Null) => {}
        Some(Value::String(name)) if name == "default" => {}
        Some(other) => return Err(unsupported("rope_type", other, "\"default\"")),
    }
    match rope.get("rope_theta") {
        None | Some(Value::Null) => Ok(older),
        Some(value) => value
            .as_f64()
            .filter(|theta| theta.is_finite() && 1.0 <= *theta)
            .ok_or_else(|| bad("rope_theta", value, "not a finite number from 1 up")),
    }
}

/// A value that cannot be.
pub(crate) fn bad(key: &str, value: &Value, what: &str) -> Fault {
    Fault::bad_model(format!("config.json: {key} = {value}: {what}"))
}

/// A value that another engine may compute.
pub(crate) fn unsupported(key: &str, value: &Value, known: &str) -> Fault {
    Fault::unsupported(format!(
        "config.json: {key} = {value}; this plugin computes {known}"
    ))
}
