//! Values of `config.json`, checked by key.

use crate::encoder::pointwise::Activation;
use crate::model::LoadError;

/// A size within 1..=max, or its default if the key is missing.
pub(super) fn size(
    key: &str,
    value: Option<usize>,
    default: Option<usize>,
    max: usize,
) -> Result<usize, LoadError> {
    match value.or(default) {
        Some(value) if (1..=max).contains(&value) => Ok(value),
        Some(value) => Err(LoadError::Bad(format!(
            "config.json: {key} = {value} is not within 1..={max}"
        ))),
        None => Err(LoadError::Bad(format!("config.json: {key} is missing"))),
    }
}

pub(super) fn activation(key: &str, name: &str) -> Result<Activation, LoadError> {
    match name {
        "gelu" | "gelu_python" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        "silu" | "swish" => Ok(Activation::Silu),
        "tanh" => Ok(Activation::Tanh),
        other => Err(LoadError::Unsupported(format!(
            "config.json: {key} = {other:?}; this engine computes gelu, gelu_new, gelu_pytorch_tanh, relu, silu and tanh"
        ))),
    }
}
