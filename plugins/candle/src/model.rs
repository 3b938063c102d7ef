//! A folder becomes a model.

use crate::backend::Asked;
use crate::block::embedding::PositionRule;
use crate::block::layer::Layer;
use crate::config::Config;
use crate::family::{FAMILIES, Family};
use crate::loader::Loader;
use crate::numbers::{Dtype, Numbers};
use crate::rows::Rows;
use crate::weights::{Weights, gguf_names};
use backend_api::Fault;
use candle_core::{DType, Device, Result as Computed, Tensor};
use std::ops::Range;

/// A model of one family.
pub(crate) trait Model: Send + Sync {
    /// (rows, labels).
    fn forward(&self, rows: &Rows) -> Computed<Tensor>;

    /// What the host must know of it.
    fn sizes(&self) -> Sizes;

    /// Why a row of known tokens cannot be scored, where that is so.
    fn why_not(&self, _ids: &[u32]) -> Option<String> {
        None
    }

    /// How it numbers positions.
    fn position_rule(&self) -> PositionRule {
        PositionRule::FromZero
    }

    /// The token of a row whose state the head reads.
    fn pick(&self, _ids: &[u32]) -> usize {
        0
    }

    /// What a decoder reads: of token ids by cell, and of each row's cells.
    fn begin(&self, _ids: &[u32], _cells: &[Range<usize>]) -> Vec<u32> {
        Vec::new()
    }
}

/// Sizes of a model.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sizes {
    /// Token ids are below this.
    pub(crate) vocab: usize,
    /// Token types are below this; 0 for a family without any, which ignores them, as does one with 1.
    pub(crate) types: usize,
    /// Tokens of the longest row.
    pub(crate) row_tokens_max: usize,
    /// Logits of a row.
    pub(crate) n_labels: usize,
    /// What stands in for padding.
    pub(crate) pad_id: u32,
    /// Bytes of weights.
    pub(crate) n_bytes: usize,
    /// Bytes that the largest product takes for its weights.
    pub(crate) n_product_bytes: usize,
    /// Heads of attention.
    pub(crate) n_heads: usize,
    /// Values of one.
    pub(crate) head_dim: usize,
    /// Values of a cell that exist at the same time, at most.
    pub(crate) cell_values: usize,
}

/// A model, and a hash of its configuration and of every tensor that was read.
pub(crate) struct Opened {
    pub(crate) model: Box<dyn Model>,
    pub(crate) sizes: Sizes,
    pub(crate) fingerprint: u64,
    /// What its linear layers are held in: a dtype, or the type that a GGUF file stores most of them in.
    pub(crate) dtype: &'static str,
    /// Where it is.
    pub(crate) device: Device,
}

impl Opened {
    /// Loads a model for rows of at most `row_tokens_max` tokens.
    pub(crate) fn load(
        asked: &Asked<'_>,
        device: &Device,
        row_tokens_max: usize,
    ) -> Result<Self, Fault> {
        let (dir, options) = (asked.request.model_dir.as_path(), asked.options);
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|error| {
            let why = match gguf_names(dir).first() {
                Some(name) => format!(
                    "; {name} needs one beside it, and a tokenizer.json: copy both from the repository of the model \
                     that it was converted from"
                ),
                None => String::new(),
            };
            Fault::bad_model(format!("{}: {error}{why}", path.display()))
        })?;
        let config = Config::parse(&text)?;
        refuse_what_nobody_computes(&config)?;
        let family = family(&config)?;
        let weights = Weights::open(dir, options.file.as_deref())?;
        let dtype = asked.dtype.unwrap_or(auto(family, &weights, device));
        let numbers = &Numbers {
            dtype,
            compute: match (options.reference, options.halves && dtype == Dtype::F16) {
                (true, _) => DType::F64,
                (false, true) => DType::F16,
                (false, false) => dtype.computed_on(device),
            },
            device: device.clone(),
        };
        weights.add_to_fingerprint(text.as_bytes());
        let loader = Loader {
            config: &config,
            weights: &weights,
            dir,
            numbers,
            options,
            row_tokens_max,
        };
        let model = (family.open)(&loader)?;
        let sizes = model.sizes();
        Ok(Self {
            model,
            sizes,
            fingerprint: weights.fingerprint(),
            dtype: match numbers.dtype {
                Dtype::Stored => weights.most(),
                asked => asked.name(),
            },
            device: numbers.device.clone(),
        })
    }
}

/// The dtype where the request leaves it open: what a GGUF file stores, else f32; on GPUs halves, of which those of
/// bf16 have f32's range. A checkpoint that is stored in them may use it, and T5's streams outgrow f16.
fn auto(family: &Family, weights: &Weights, device: &Device) -> Dtype {
    if !device.is_cpu() {
        return match family.is_wide || weights.are_mostly("bf16") {
            true => Dtype::Bf16,
            false => Dtype::F16,
        };
    }
    match weights.is_gguf() {
        true => Dtype::Stored,
        false => Dtype::F32,
    }
}

/// The family that a configuration names: by its architecture, or, without one, by its model type.
fn family(config: &Config) -> Result<&'static Family, Fault> {
    let known = || {
        FAMILIES
            .each_ref()
            .map(|family| family.architecture)
            .join(", ")
    };
    let architectures = match config.find(&["architectures"]) {
        Some(_) => config.texts("architectures")?,
        None => Vec::new(),
    };
    if architectures.is_empty() {
        let model_type = config.text(&["model_type"])?;
        let found = FAMILIES
            .iter()
            .find(|family| !family.model_type.is_empty() && Some(family.model_type) == model_type);
        return found.ok_or_else(|| {
            Fault::unsupported(format!(
                "config.json: no architectures, and model_type = {model_type:?}; this plugin computes {}",
                known()
            ))
        });
    }
    let found = FAMILIES
        .iter()
        .find(|family| architectures.iter().any(|name| name == family.architecture));
    found.ok_or_else(|| {
        Fault::unsupported(format!(
            "config.json: architectures = {architectures:?}; this plugin computes {}",
            known()
        ))
    })
}

fn refuse_what_nobody_computes(config: &Config) -> Result<(), Fault> {
    if config.find(&["quantization_config"]).is_some() {
        return Err(Fault::unsupported(
            "config.json: quantization_config is set; this plugin quantises float weights itself",
        ));
    }
    Ok(())
}

impl Sizes {
    /// Adds what layers of this width need.
    pub(crate) fn with_layers<'a>(
        mut self,
        layers: impl IntoIterator<Item = &'a Layer>,
        hidden: usize,
    ) -> Self {
        let mut inner = 0;
        for layer in layers {
            self.n_bytes += layer.n_bytes();
            self.n_product_bytes = self.n_product_bytes.max(layer.n_product_bytes());
            inner = inner.max(layer.n_inner());
            self.n_heads = layer.attention.shape.n_heads;
            self.head_dim = layer.attention.shape.dim;
        }
        // The stream, queries, keys and values as products and by heads, what they mix to; or the stream, its
        // norm and the inner values before and behind a gate. Twice, because the allocator keeps what the
        // others have left: measured, 93 to 99 % of what a process takes.
        self.cell_values = 2 * (2 * hidden + (8 * hidden).max(inner * 2));
        self
    }
}
