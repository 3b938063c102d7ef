//! What a DeBERTa-v2's `config.json` says beyond a BERT's (v3 has the same class): the terms of its
//! attention's scores, the table that they come from, and the head.

use super::values::activation;
use super::{BERT_HEAD, Head, LoadError, POSITIONS_MAX};
use crate::encoder::relative::offsets::Distances;
use serde::Deserialize;
use serde_json::Value;
use std::ops::RangeInclusive;

/// Half of the rows that a table of relative embeddings may have: 512 is the most that exists. Its rows
/// are projected for each layer, so a large one would make much of a small file.
const SPAN_MAX: usize = 2_048;
/// Values that the projected tables of a model may have: those of deberta-v2-xxlarge are 75 million.
const TABLE_VALUES_MAX: usize = 1 << 27;
/// What a kernel rounds a head's values up to, at most.
const HEAD_ALIGN: usize = 32;

/// The keys of a DeBERTa as they may be.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct RawDeberta {
    relative_attention: Option<bool>,
    pos_att_type: Option<Value>,
    share_att_key: Option<bool>,
    position_buckets: Option<i64>,
    max_relative_positions: Option<i64>,
    norm_rel_ebd: Option<String>,
    position_biased_input: Option<bool>,
    attention_head_size: Option<usize>,
    conv_kernel_size: Option<i64>,
    pooler_hidden_size: Option<usize>,
    pooler_hidden_act: Option<String>,
}

/// What the keys say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Deberta {
    /// Whether embeddings have a table of positions.
    pub position_table: bool,
    /// Terms of a score, whether computed or not.
    pub score_terms: usize,
    /// The terms beyond the product of query and key.
    pub relative: Option<Relative>,
    /// What the head does.
    pub head: Head,
}

/// Relative positions: which terms scores have of them, and where these come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relative {
    /// The rows of the table.
    pub distances: Distances,
    /// Whether queries meet the table ("c2p").
    pub keys: bool,
    /// Whether keys do ("p2c").
    pub queries: bool,
    /// Whether tokens' projections serve the table, too.
    pub shared: bool,
    /// Whether a norm is applied to the table.
    pub normed: bool,
}

impl RawDeberta {
    /// Checks the keys against the sizes that they refer to.
    pub fn check(
        &self,
        hidden: usize,
        n_heads: usize,
        n_layers: usize,
        positions: usize,
    ) -> Result<Deberta, LoadError> {
        if let Some(size @ 1..) = self.conv_kernel_size {
            return Err(LoadError::Unsupported(format!(
                "config.json: conv_kernel_size = {size}; this engine computes DeBERTas without a convolution"
            )));
        }
        for (key, value, only) in [
            (
                "attention_head_size",
                self.attention_head_size,
                hidden / n_heads,
            ),
            ("pooler_hidden_size", self.pooler_hidden_size, hidden),
        ] {
            if let Some(value) = value.filter(|&value| value != only) {
                return Err(LoadError::Bad(format!(
                    "config.json: {key} = {value}; with hidden_size = {hidden} and num_attention_heads = {n_heads} \
                     it can only be {only}"
                )));
            }
        }
        let [keys, queries] = self.terms()?;
        let relative = if self.relative_attention == Some(true) && (keys || queries) {
            let distances = self.distances(positions)?;
            let n_rows = (2 * distances.span).min(2 * positions - 1);
            let head = (hidden / n_heads).next_multiple_of(HEAD_ALIGN);
            let n_tables = n_layers * n_heads * (usize::from(keys) + usize::from(queries));
            // Each factor is bounded: the product fits 64 bits.
            if TABLE_VALUES_MAX < n_tables * n_rows * head {
                return Err(LoadError::Bad(format!(
                    "config.json: num_hidden_layers = {n_layers}, num_attention_heads = {n_heads} and tables of \
                     {n_rows} distances make {} values of relative positions; {TABLE_VALUES_MAX} are allowed",
                    n_tables * n_rows * head
                )));
            }
            Some(Relative {
                distances,
                keys,
                queries,
                shared: self.share_att_key == Some(true),
                normed: self.normed()?,
            })
        } else {
            None
        };
        let name = self.pooler_hidden_act.as_deref().unwrap_or("gelu");
        Ok(Deberta {
            position_table: self.position_biased_input.unwrap_or(true),
            score_terms: 1 + usize::from(keys) + usize::from(queries),
            relative,
            head: Head {
                activation: Some(activation("pooler_hidden_act", name)?),
                ..BERT_HEAD
            },
        })
    }

    /// Whether "c2p" and "p2c" are among the terms: a list, or a text with bars between them.
    fn terms(&self) -> Result<[bool; 2], LoadError> {
        let value = self.pos_att_type.as_ref().unwrap_or(&Value::Null);
        let unknown = || {
            LoadError::Unsupported(format!(
                "config.json: pos_att_type = {value}; this engine computes \"c2p\" and \"p2c\""
            ))
        };
        let text;
        let names: Vec<&str> = match value {
            Value::Null => Vec::new(),
            Value::String(names) => {
                text = names.to_lowercase();
                text.split('|').map(str::trim).collect()
            }
            Value::Array(names) => {
                let names = names.iter().map(Value::as_str);
                names.collect::<Option<_>>().ok_or_else(unknown)?
            }
            _ => return Err(unknown()),
        };
        let mut terms = [false; 2];
        for name in names {
            match name {
                "c2p" => terms[0] = true,
                "p2c" => terms[1] = true,
                "" | "none" => {}
                _ => return Err(unknown()),
            }
        }
        Ok(terms)
    }

    fn distances(&self, positions: usize) -> Result<Distances, LoadError> {
        let most = match self.max_relative_positions {
            None | Some(..1) => positions,
            Some(most) => within("max_relative_positions", most, 1..=POSITIONS_MAX)?,
        };
        let Some(buckets @ 1..) = self.position_buckets else {
            let span = within("max_relative_positions", most as i64, 1..=SPAN_MAX)?;
            return Ok(Distances {
                span,
                logarithmic: None,
            });
        };
        let span = within("position_buckets", buckets, 2..=SPAN_MAX)?;
        if positions - 1 <= span / 2 {
            // No distance is far enough for a logarithm.
            return Ok(Distances {
                span,
                logarithmic: None,
            });
        }
        if most - 1 <= span / 2 {
            return Err(LoadError::Bad(format!(
                "config.json: position_buckets = {span}, of which half are for distances up to {}, need \
                 max_relative_positions of at least {}; it is {most}",
                span / 2,
                span / 2 + 2
            )));
        }
        Ok(Distances {
            span,
            logarithmic: Some(most - 1),
        })
    }

    fn normed(&self) -> Result<bool, LoadError> {
        let text = self.norm_rel_ebd.as_deref().unwrap_or("none");
        let mut normed = false;
        for name in text.to_lowercase().split('|').map(str::trim) {
            match name {
                "layer_norm" => normed = true,
                "" | "none" => {}
                _ => {
                    return Err(LoadError::Unsupported(format!(
                        "config.json: norm_rel_ebd = {text:?}; this engine computes \"layer_norm\" and \"none\""
                    )));
                }
            }
        }
        Ok(normed)
    }
}

fn within(key: &str, value: i64, range: RangeInclusive<usize>) -> Result<usize, LoadError> {
    let found = usize::try_from(value).ok();
    found.filter(|value| range.contains(value)).ok_or_else(|| {
        LoadError::Bad(format!(
            "config.json: {key} = {value} is not within {range:?}"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Pooling};
    use super::*;
    use crate::encoder::pointwise::Activation;
    use serde_json::json;

    /// A v3's configuration with some keys set.
    fn parse(keys: &[(&str, Value)]) -> Result<Config, LoadError> {
        let mut config = json!({"model_type": "deberta-v2", "vocab_size": 100, "hidden_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
            "max_position_embeddings": 64, "relative_attention": true, "max_relative_positions": -1,
            "position_buckets": 16, "norm_rel_ebd": "layer_norm", "share_att_key": true,
            "pos_att_type": "p2c|c2p", "position_biased_input": false, "type_vocab_size": 0});
        for (key, value) in keys {
            config[key] = value.clone();
        }
        Config::parse(&config.to_string())
    }

    #[test]
    fn a_v3_and_the_defaults() {
        let v3 = parse(&[]).unwrap();
        let relative = Relative {
            distances: Distances {
                span: 16,
                logarithmic: Some(63),
            },
            keys: true,
            queries: true,
            shared: true,
            normed: true,
        };
        assert_eq!((v3.relative, v3.score_terms), (Some(relative), 3));
        assert_eq!((v3.position_table, v3.types, v3.epsilon), (false, 0, 1e-7));
        assert_eq!(v3.head.activation, Some(Activation::Gelu));
        assert_eq!(v3.head.pooling, Pooling::First);
        // The longest of 64 positions' distances is 63, half of the table.
        let near = parse(&[("position_buckets", json!(126))]).unwrap();
        let near = near.relative.unwrap().distances;
        assert_eq!((near.span, near.logarithmic), (126, None));
        let null = |key| (key, json!(null));
        let v2 = parse(&[
            null("position_buckets"),
            null("norm_rel_ebd"),
            null("share_att_key"),
            null("position_biased_input"),
            ("max_relative_positions", json!(40)),
            ("pos_att_type", json!(["c2p"])),
            ("pooler_hidden_act", json!("tanh")),
        ])
        .unwrap();
        let relative = Relative {
            distances: Distances {
                span: 40,
                logarithmic: None,
            },
            keys: true,
            queries: false,
            shared: false,
            normed: false,
        };
        assert_eq!((v2.relative, v2.score_terms), (Some(relative), 2));
        assert!(v2.position_table);
        assert_eq!(v2.head.activation, Some(Activation::Tanh));
    }

    /// As `transformers`: the scale counts terms that are not computed.
    #[test]
    fn without_relative_attention_only_the_scale_is_left() {
        let config = parse(&[("relative_attention", json!(false))]).unwrap();
        assert_eq!((config.relative, config.score_terms), (None, 3));
        let config = parse(&[("pos_att_type", json!([]))]).unwrap();
        assert_eq!((config.relative, config.score_terms), (None, 1));
    }

    #[test]
    fn what_is_not_computed_names_key_and_value() {
        for (key, value, word, unsupported) in [
            ("conv_kernel_size", json!(3), "= 3", true),
            ("pos_att_type", json!("c2p|p2p"), "c2p|p2p", true),
            ("pos_att_type", json!([7]), "[7]", true),
            ("norm_rel_ebd", json!("batch_norm"), "batch_norm", true),
            ("pooler_hidden_act", json!("mish"), "mish", true),
            ("attention_head_size", json!(16), "only be 12", false),
            ("pooler_hidden_size", json!(96), "only be 48", false),
            ("position_buckets", json!(1), "= 1 is not within 2", false),
            ("position_buckets", json!(1_u64 << 40), "2048", false),
            ("max_relative_positions", json!(70_000), "70000", false),
            ("position_buckets", json!("many"), "many", false),
            (
                "max_relative_positions",
                json!(9),
                "at least 10; it is 9",
                false,
            ),
            ("relative_attention", json!("yes"), "yes", false),
        ] {
            let error = parse(&[(key, value)]).expect_err(key);
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
