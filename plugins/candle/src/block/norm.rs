//! Layer norms, and RMS norms, which have neither mean nor bias.

use super::linear::Linear;
use super::{Vector, composed, fused, is_fused, values};
use candle_core::{Result, Tensor};

/// (x − mean) / √(variance + ε) · weight + bias.
#[derive(Clone)]
pub(crate) struct Norm {
    pub(super) weight: Vector,
    pub(super) bias: Option<Vector>,
    pub(super) epsilon: f32,
    /// Whether the mean is taken off.
    pub(super) centred: bool,
}

impl Norm {
    pub(crate) fn new(weight: Vector, bias: Option<Vector>, epsilon: f32, centred: bool) -> Self {
        Self {
            weight,
            bias,
            epsilon,
            centred,
        }
    }

    pub(super) fn parameters(&self) -> fused::Norm<'_> {
        fused::Norm {
            weight: &self.weight.values,
            bias: values(self.bias.as_ref()),
            epsilon: self.epsilon,
            centred: self.centred,
        }
    }

    /// The normed rows, as a tensor of their own.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if is_fused(x) {
            x.apply_op1_no_bwd(&self.parameters())
        } else {
            composed::norm(self, x)
        }
    }

    /// norm(linear(x) + residual).
    pub(crate) fn behind(&self, linear: &Linear, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let product = linear.product(x)?;
        if is_fused(&product) {
            let step = fused::AddNorm {
                bias: values(linear.bias()),
                norm: self.parameters(),
            };
            product.inplace_op2(residual, &step)?;
            return Ok(product);
        }
        let sum = composed::add_bias((product + residual)?, linear.bias())?;
        composed::norm(self, &sum)
    }

    pub(crate) fn n_bytes(&self) -> usize {
        self.weight.n_bytes() + self.bias.as_ref().map_or(0, Vector::n_bytes)
    }
}
