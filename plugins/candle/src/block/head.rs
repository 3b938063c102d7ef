//! From a row's pooled state to its logits, in what is computed in, on CUDA in f32, and never in blocks: a few values a
//! row.

use super::activation::Activation;
use super::linear::Linear;
use super::norm::Norm;
use candle_core::{Result, Tensor};

/// dense → activation → norm → classifier; each but the classifier may be missing.
pub(crate) struct Head {
    pub(crate) dense: Option<Linear>,
    pub(crate) activation: Activation,
    pub(crate) norm: Option<Norm>,
    pub(crate) classifier: Linear,
}

impl Head {
    /// A classifier alone.
    pub(crate) fn of(classifier: Linear) -> Self {
        Self {
            dense: None,
            activation: Activation::Identity,
            norm: None,
            classifier,
        }
    }

    /// (rows, hidden) to (rows, labels).
    pub(crate) fn forward(&self, pooled: &Tensor) -> Result<Tensor> {
        let mut x = self.classifier.widened(pooled)?;
        if let Some(dense) = &self.dense {
            x = dense.activated(&x, self.activation)?;
        }
        if let Some(norm) = &self.norm {
            x = norm.forward(&x)?;
        }
        self.classifier.forward(&x)
    }

    pub(crate) fn n_bytes(&self) -> usize {
        self.classifier.n_bytes() + self.dense.as_ref().map_or(0, Linear::n_bytes)
    }
}
