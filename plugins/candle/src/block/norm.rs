//! Layer norms, and RMS norms, which have neither mean nor bias.

use super::linear::Linear;
use super::{Steps, Vector, composed, fused, values};
#[cfg(feature = "cuda")]
use crate::cuda::steps;
use candle_core::{Result, Tensor};

/// (x − mean) / √(variance + ε) · weight + bias.
#[derive(Clone)]
pub(crate) struct Norm {
    pub(crate) weight: Vector,
    pub(crate) bias: Option<Vector>,
    pub(crate) epsilon: f32,
    /// Whether the mean is taken off.
    pub(crate) centred: bool,
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
        match Steps::of(x) {
            Steps::Fused => x.apply_op1_no_bwd(&self.parameters()),
            #[cfg(feature = "cuda")]
            Steps::Cuda => steps::norm(self, x),
            Steps::Composed => composed::norm(self, x),
        }
    }

    /// norm(linear(x) + residual).
    pub(crate) fn behind(&self, linear: &Linear, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let product = linear.product(x)?;
        match Steps::of(&product) {
            Steps::Fused => {
                let step = fused::AddNorm {
                    bias: values(linear.bias()),
                    norm: self.parameters(),
                };
                product.inplace_op2(residual, &step)?;
            }
            #[cfg(feature = "cuda")]
            Steps::Cuda => steps::add_norm(self, &product, linear.bias(), residual, false)?,
            Steps::Composed => {
                let sum = composed::add_bias((product + residual)?, linear.bias())?;
                return composed::norm(self, &sum);
            }
        }
        Ok(product)
    }

    /// stream + linear(x), in the stream's own memory where that can be, and the norm of it.
    pub(crate) fn beside(
        &self,
        linear: &Linear,
        x: &Tensor,
        stream: Tensor,
    ) -> Result<(Tensor, Tensor)> {
        #[cfg(feature = "cuda")]
        if Steps::of(&stream) == Steps::Cuda {
            let product = linear.product(x)?;
            steps::add_norm(self, &product, linear.bias(), &stream, true)?;
            return Ok((stream, product));
        }
        let stream = linear.add_to(stream, x)?;
        let normed = self.forward(&stream)?;
        Ok((stream, normed))
    }

    pub(crate) fn n_bytes(&self) -> usize {
        self.weight.n_bytes() + self.bias.as_ref().map_or(0, Vector::n_bytes)
    }
}
