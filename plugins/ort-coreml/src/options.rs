//! The plugin's options, as JSON.

use backend_api::Fault;
use ort::session::builder::GraphOptimizationLevel;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The most tokens of a rectangle that may be asked for: 256 MiB of ids, mask and types.
const RECTANGLE_TOKENS_MAX: usize = 1 << 23;

/// The most shapes: each has a copy of the weights.
const SHAPES_MAX: usize = 16;

/// What may be asked beyond the open request. All of it has a default.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// ONNX Runtime's library, instead of the first that is found.
    pub library: Option<PathBuf>,
    /// The graph, a file of the model's folder, instead of the one for the data type.
    pub file: Option<PathBuf>,
    /// What computes, where a device has several: `cpu`, `coreml`, `cuda`, `openvino`.
    pub provider: Option<String>,
    /// Options of the provider, as ONNX Runtime calls them: `{"ModelFormat": "NeuralNetwork"}`.
    pub provider_options: BTreeMap<String, String>,
    /// The most tokens that are computed together, padding included.
    pub rectangle_tokens: Option<usize>,
    /// Widths of rectangles are multiples of this.
    pub width_multiple: Option<usize>,
    /// Rows and tokens of the only rectangles that are computed, each by a session of its own: `[[8, 64], [1, 512]]`.
    pub shapes: Vec<[usize; 2]>,
    /// Where Core ML keeps what it compiled.
    pub cache_dir: Option<PathBuf>,
    /// How much ONNX Runtime may change the graph.
    pub optimization: Optimization,
    /// Whether activations come from ONNX Runtime's own arena, which keeps what it once had.
    pub memory_arena: Option<bool>,
    /// Whether memory is planned ahead for every shape that was seen. Each shape's plan is kept.
    pub memory_pattern: bool,
    /// Whether threads inside an operator wait busily. Only with `n_threads` of more than 1.
    pub spinning: bool,
}

/// ONNX Runtime's levels.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Optimization {
    /// The graph as it is in the file.
    Disable,
    /// What changes no rounding.
    Basic,
    /// Fused operators.
    Extended,
    /// All that this version can.
    #[default]
    All,
}

impl Options {
    /// Parses and checks the request's options.
    ///
    /// # Errors
    /// `BadRequest`, which names the option, its value and what is possible.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let options: Self = serde_json::from_str(text)
            .map_err(|error| Fault::bad_request(format!("options {text:?}: {error}")))?;
        let sizes = [
            ("rectangle_tokens", options.rectangle_tokens),
            ("width_multiple", options.width_multiple),
        ];
        for (name, value) in sizes {
            if let Some(value) = value.filter(|value| !(1..=RECTANGLE_TOKENS_MAX).contains(value)) {
                return Err(Fault::bad_request(format!(
                    "options.{name} = {value}: from 1 to {RECTANGLE_TOKENS_MAX}"
                )));
            }
        }
        options.check_shapes()?;
        if let Some((name, _)) = options
            .provider_options
            .iter()
            .find(|(name, value)| name.contains('\0') || value.contains('\0'))
        {
            return Err(Fault::bad_request(format!(
                "options.provider_options: {name:?} holds a NUL"
            )));
        }
        Ok(options)
    }

    fn check_shapes(&self) -> Result<(), Fault> {
        let refused = |why: String| Err(Fault::bad_request(format!("options.shapes: {why}")));
        if SHAPES_MAX < self.shapes.len() {
            return refused(format!(
                "{} of them, at most {SHAPES_MAX}",
                self.shapes.len()
            ));
        }
        for (at, &[rows, width]) in self.shapes.iter().enumerate() {
            let cells = rows.saturating_mul(width);
            if !(1..=RECTANGLE_TOKENS_MAX).contains(&cells) {
                return refused(format!(
                    "[{rows}, {width}] is {cells} tokens: from 1 to {RECTANGLE_TOKENS_MAX}"
                ));
            }
            if self.shapes[..at].iter().any(|&[_, other]| other == width) {
                return refused(format!("two of width {width}"));
            }
        }
        Ok(())
    }
}

// === impl Optimization ===

impl Optimization {
    /// The name in options and in the numerics id: fused operators round otherwise.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Basic => "basic",
            Self::Extended => "extended",
            Self::All => "all",
        }
    }

    /// The level as ONNX Runtime has it.
    #[must_use]
    pub fn level(self) -> GraphOptimizationLevel {
        match self {
            Self::Disable => GraphOptimizationLevel::Disable,
            Self::Basic => GraphOptimizationLevel::Level1,
            Self::Extended => GraphOptimizationLevel::Level2,
            Self::All => GraphOptimizationLevel::All,
        }
    }
}
