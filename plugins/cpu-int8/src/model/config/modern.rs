//! What a ModernBERT's `config.json` says beyond a BERT's: the sight and the rotary base of each
//! layer, which biases exist, pooling. Older `transformers` (4.48 on) write
//! `global_attn_every_n_layers` and two thetas, newer ones (5.0 on) `layer_types` and
//! `rope_parameters`; where both stand, the newer keys count.

use super::{Biases, Head, LayerKind, Raw, activation, size};
use crate::model::{LoadError, Pooling};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::collections::BTreeMap;

/// `transformers`' defaults.
const GLOBAL_EVERY: usize = 3;
const LOCAL_ATTENTION: usize = 128;
const GLOBAL_THETA: f64 = 160_000.0;
const LOCAL_THETA: f64 = 10_000.0;

/// The keys of a ModernBERT as they may be.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct RawModern {
    attention_bias: bool,
    mlp_bias: bool,
    norm_bias: bool,
    classifier_bias: bool,
    classifier_activation: Option<String>,
    classifier_pooling: Option<String>,
    local_attention: Option<usize>,
    global_attn_every_n_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    global_rope_theta: Option<f64>,
    #[serde(deserialize_with = "null_is_a_value")]
    local_rope_theta: Option<Value>,
    /// By kind of layer in a ModernBERT; read when it is one, since other families write other things here.
    rope_parameters: Option<Value>,
    rope_scaling: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct RawRope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
}

/// A theta that is null means the global one, and a missing one the default.
fn null_is_a_value<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(from).map(Some)
}

impl RawModern {
    /// Which parts of the model have biases.
    pub fn biases(&self) -> Biases {
        Biases {
            attention: self.attention_bias,
            inner: self.mlp_bias,
            norm: self.norm_bias,
            head: self.classifier_bias,
        }
    }

    /// What the head does.
    pub fn head(&self) -> Result<Head, LoadError> {
        let pooling = match self.classifier_pooling.as_deref() {
            None | Some("cls") => Pooling::First,
            Some("mean") => Pooling::Mean,
            Some(other) => {
                return Err(LoadError::Unsupported(format!(
                    "config.json: classifier_pooling = {other:?}; this engine computes \"cls\" and \"mean\""
                )));
            }
        };
        let name = self.classifier_activation.as_deref().unwrap_or("gelu");
        let activation = Some(activation("classifier_activation", name)?);
        Ok(Head {
            pooling,
            activation,
        })
    }

    /// Each layer's sight.
    pub fn layers(&self, n_layers: usize) -> Result<Vec<LayerKind>, LoadError> {
        if let Some(scaling) = self.rope_scaling.as_ref().filter(|value| !value.is_null()) {
            return Err(LoadError::Unsupported(format!(
                "config.json: rope_scaling = {scaling}; this engine computes unscaled positions"
            )));
        }
        let global = LayerKind {
            window: None,
            rope_theta: Some(self.theta("full_attention")?),
        };
        let local = LayerKind {
            window: Some(self.local_attention.unwrap_or(LOCAL_ATTENTION) / 2),
            rope_theta: Some(self.theta("sliding_attention")?),
        };
        if let Some(types) = &self.layer_types {
            if types.len() != n_layers {
                return Err(LoadError::Bad(format!(
                    "config.json: layer_types has {} entries, num_hidden_layers = {n_layers}",
                    types.len()
                )));
            }
            return types
                .iter()
                .map(|kind| match kind.as_str() {
                    "full_attention" => Ok(global),
                    "sliding_attention" => Ok(local),
                    other => Err(LoadError::Unsupported(format!(
                        "config.json: layer_types has {other:?}; this engine computes \
                         \"full_attention\" and \"sliding_attention\""
                    ))),
                })
                .collect();
        }
        let every = size(
            "global_attn_every_n_layers",
            self.global_attn_every_n_layers,
            Some(GLOBAL_EVERY),
            usize::MAX,
        )?;
        let kind = |layer: usize| {
            if layer.is_multiple_of(every) {
                global
            } else {
                local
            }
        };
        Ok((0..n_layers).map(kind).collect())
    }

    /// The base of the rotary positions of a type of layers.
    fn theta(&self, kind: &str) -> Result<f64, LoadError> {
        let by_kind: BTreeMap<String, Option<RawRope>> = match &self.rope_parameters {
            None | Some(Value::Null) => BTreeMap::new(),
            Some(value) => Deserialize::deserialize(value).map_err(|error| {
                LoadError::Bad(format!("config.json: rope_parameters: {error}"))
            })?,
        };
        let rope = by_kind.get(kind).and_then(Option::as_ref);
        if let Some(scaled) = rope
            .and_then(|rope| rope.rope_type.as_deref())
            .filter(|&name| name != "default")
        {
            return Err(LoadError::Unsupported(format!(
                "config.json: rope_parameters.{kind}.rope_type = {scaled:?}; this engine computes \"default\""
            )));
        }
        let global = self.global_rope_theta.unwrap_or(GLOBAL_THETA);
        let older = match (&self.local_rope_theta, kind) {
            (_, "full_attention") => global,
            (None, _) => LOCAL_THETA,
            (Some(Value::Null), _) => global,
            (Some(value), _) => value.as_f64().ok_or_else(|| {
                LoadError::Bad(format!(
                    "config.json: local_rope_theta = {value} is not a number"
                ))
            })?,
        };
        let theta = rope.and_then(|rope| rope.rope_theta).unwrap_or(older);
        if theta.is_finite() && 1.0 <= theta {
            Ok(theta)
        } else {
            Err(LoadError::Bad(format!(
                "config.json: rope_theta of {kind} = {theta} is not a finite number from 1 up"
            )))
        }
    }
}

/// Checks what ModernBERT asks of sizes: a head's values turn in pairs.
pub fn check_head_dim(hidden: usize, n_heads: usize) -> Result<(), LoadError> {
    if (hidden / n_heads).is_multiple_of(2) {
        return Ok(());
    }
    Err(LoadError::Bad(format!(
        "config.json: hidden_size = {hidden} over num_attention_heads = {n_heads} is odd: rotary positions need pairs"
    )))
}

impl Raw {
    /// ModernBERT's keys.
    pub(super) fn modern(&self) -> &RawModern {
        &self.modern
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;
    use serde_json::json;

    fn parse(key: &str, value: Value) -> Result<Config, LoadError> {
        let mut config = json!({"architectures": ["ModernBertForSequenceClassification"],
            "vocab_size": 100, "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
            "intermediate_size": 96, "max_position_embeddings": 8192});
        config[key] = value;
        Config::parse(&config.to_string())
    }

    fn thetas_and_windows(key: &str, value: Value) -> Vec<(f64, Option<usize>)> {
        let layers = parse(key, value).unwrap().layers.into_iter();
        layers
            .map(|kind| (kind.rope_theta.unwrap(), kind.window))
            .collect()
    }

    #[test]
    fn both_generations_of_keys_are_read() {
        let (global, local) = ((160_000.0, None), (10_000.0, Some(64)));
        let found = |key, value| thetas_and_windows(key, value);
        assert_eq!(found("x", json!(0)), [global, local, local, global]);
        let every = "global_attn_every_n_layers";
        assert_eq!(found(every, json!(2)), [global, local, global, local]);
        let types = json!([
            "sliding_attention",
            "full_attention",
            "full_attention",
            "full_attention"
        ]);
        assert_eq!(found("layer_types", types), [local, global, global, global]);
        assert_eq!(found("local_attention", json!(9))[1], (10_000.0, Some(4)));
        assert_eq!(found("local_rope_theta", json!(5.5))[1], (5.5, Some(64)));
        // As transformers 4 reads it.
        assert_eq!(
            found("local_rope_theta", json!(null))[1],
            (160_000.0, Some(64))
        );
        let rope = json!({"full_attention": {"rope_type": "default", "rope_theta": 7.0}});
        assert_eq!(found("rope_parameters", rope)[..2], [(7.0, None), local]);
    }

    #[test]
    fn what_is_not_computed_names_key_and_value() {
        for (key, value, word, unsupported) in [
            ("classifier_pooling", json!("max"), "max", true),
            ("classifier_activation", json!("mish"), "mish", true),
            ("hidden_activation", json!("mish"), "mish", true),
            ("rope_scaling", json!({"factor": 2}), "factor", true),
            (
                "rope_parameters",
                json!({"full_attention": {"rope_type": "yarn"}}),
                "yarn",
                true,
            ),
            (
                "layer_types",
                json!(["chunked_attention", "", "", ""]),
                "chunked_attention",
                true,
            ),
            (
                "layer_types",
                json!(["full_attention"]),
                "num_hidden_layers = 4",
                false,
            ),
            ("global_attn_every_n_layers", json!(0), "= 0", false),
            ("global_rope_theta", json!(-1.0), "-1", false),
            ("local_rope_theta", json!("x"), "x", false),
            ("num_attention_heads", json!(16), "pairs", false),
        ] {
            let error = parse(key, value).expect_err(key);
            let text = error.to_string();
            assert!(text.contains(word), "{key}: {text}");
            assert_eq!(
                matches!(error, LoadError::Unsupported(_)),
                unsupported,
                "{key}"
            );
        }
    }
}
