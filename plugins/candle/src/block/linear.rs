//! Linear layers: weights in floats or in GGUF's blocks.

use super::activation::Activation;
use super::product::product;
use super::{Vector, bytes_of, composed, fused, is_fused, values};
use crate::numbers::{Held, Numbers};
use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{CpuStorage, DType, Device, Module, Result, Storage, Tensor};
use half::slice::HalfFloatSliceExt;
use std::sync::Arc;

/// x · weightᵀ + bias.
pub(crate) struct Linear {
    weight: Weight,
    bias: Option<Vector>,
    n_out: usize,
}

/// Outputs × inputs.
enum Weight {
    /// In the type that is computed in.
    Whole(Tensor),
    /// In halves, each product widens them to f32 first: on CPUs.
    Half(Tensor),
    /// In blocks along the inputs, of which there are `n_in`; behind them blocks are filled with zeros.
    /// On CPUs each product widens them to f32 first: for more than a few cells that is faster than
    /// candle's products of blocks, and only weights are rounded. Other devices multiply blocks.
    Blocks { blocks: Arc<QTensor>, n_in: usize },
}

impl Linear {
    /// A layer of these weights, outputs × inputs, row-major.
    pub(crate) fn new(
        numbers: &Numbers,
        held: Held,
        weights: Vec<f32>,
        n_in: usize,
        bias: Option<Vector>,
    ) -> Result<Self> {
        let shape = (weights.len() / n_in, n_in);
        let weight = match held {
            Held::Blocks(kind) => {
                let padded = pad(weights, n_in, kind.block_size());
                Weight::Blocks {
                    blocks: Arc::new(quantised(&padded, shape.0, kind, &numbers.device)?),
                    n_in,
                }
            }
            Held::Float(DType::F32) => Weight::Whole(numbers.tensor_of(weights, shape)?),
            Held::Float(dtype) => {
                let tensor = Tensor::from_vec(weights, shape, &Device::Cpu)?.to_dtype(dtype)?;
                let tensor = tensor.to_device(&numbers.device)?;
                if numbers.compute == dtype {
                    Weight::Whole(tensor)
                } else {
                    Weight::Half(tensor)
                }
            }
        };
        Ok(Self {
            weight,
            bias,
            n_out: shape.0,
        })
    }

    /// x · weightᵀ, for (cells, inputs).
    pub(super) fn product(&self, x: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Whole(weight) => product(x, &weight.t()?),
            Weight::Half(weight) => product(x, &widened(weight, x.dtype())?.t()?),
            Weight::Blocks { blocks, n_in } if x.device().is_cpu() => {
                let weight = blocks.dequantize(x.device())?.to_dtype(x.dtype())?;
                product(x, &weight.narrow(1, 0, *n_in)?.t()?)
            }
            Weight::Blocks { blocks, n_in } => {
                let padding = blocks.shape().dims2()?.1 - n_in;
                let x = x.pad_with_zeros(1, 0, padding)?;
                QMatMul::from_arc(Arc::clone(blocks))?.forward(&x)
            }
        }
    }

    pub(super) fn bias(&self) -> Option<&Vector> {
        self.bias.as_ref()
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.activated(x, Activation::Identity)
    }

    /// activation(linear(x)).
    pub(crate) fn activated(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let product = self.product(x)?;
        if !is_fused(&product) {
            let sum = composed::add_bias(product, self.bias())?;
            return composed::activate(activation, &sum);
        }
        if self.bias.is_some() || activation != Activation::Identity {
            product.inplace_op1(&fused::Activate {
                bias: values(self.bias()),
                activation,
            })?;
        }
        Ok(product)
    }

    /// Of outputs (a, b) of one width: activation(a) · b.
    pub(crate) fn gated(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let product = self.product(x)?;
        if is_fused(&product) {
            return product.apply_op1_no_bwd(&fused::Gate {
                bias: values(self.bias()),
                activation,
            });
        }
        composed::gate(activation, &composed::add_bias(product, self.bias())?)
    }

    /// stream + linear(x), in the stream's own memory where that can be.
    pub(crate) fn add_to(&self, stream: Tensor, x: &Tensor) -> Result<Tensor> {
        super::add_with_bias(stream, &self.product(x)?, self.bias())
    }

    pub(crate) fn n_out(&self) -> usize {
        self.n_out
    }

    pub(crate) fn n_bytes(&self) -> usize {
        let weights = match &self.weight {
            Weight::Whole(weight) | Weight::Half(weight) => bytes_of(weight),
            Weight::Blocks { blocks, .. } => blocks.storage_size_in_bytes(),
        };
        weights + self.bias.as_ref().map_or(0, Vector::n_bytes)
    }

    /// Bytes that a product needs for its weights beside them.
    pub(crate) fn n_widened_bytes(&self) -> usize {
        match &self.weight {
            Weight::Whole(_) => 0,
            Weight::Half(weight) => weight.elem_count() * size_of::<f32>(),
            Weight::Blocks { blocks, .. } => blocks.shape().elem_count() * size_of::<f32>(),
        }
    }
}

/// Rows of weights, each filled up with zeros to whole blocks.
fn pad(weights: Vec<f32>, n_in: usize, block: usize) -> Vec<f32> {
    let padded = n_in.next_multiple_of(block);
    if padded == n_in {
        return weights;
    }
    let mut rows = vec![0.0; weights.len() / n_in * padded];
    for (row, weights) in rows
        .chunks_exact_mut(padded)
        .zip(weights.chunks_exact(n_in))
    {
        row[..n_in].copy_from_slice(weights);
    }
    rows
}

fn quantised(rows: &[f32], n_out: usize, kind: GgmlDType, device: &Device) -> Result<QTensor> {
    let shape = (n_out, rows.len() / n_out.max(1));
    let rows = Tensor::from_slice(rows, shape, &Device::Cpu)?;
    QTensor::quantize_onto(&rows, kind, device)
}

/// Halves as what is computed in. candle's own conversion takes one value after the other.
pub(super) fn widened(x: &Tensor, to: DType) -> Result<Tensor> {
    let (storage, layout) = x.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        return x.to_dtype(to);
    };
    let values = match &*storage {
        Storage::Cpu(CpuStorage::F16(values)) => values[start..end].to_f32_vec(),
        Storage::Cpu(CpuStorage::BF16(values)) => values[start..end].to_f32_vec(),
        _ => return x.to_dtype(to),
    };
    Tensor::from_vec(values, layout.shape().clone(), &Device::Cpu)?.to_dtype(to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers::Dtype;
    use candle_core::D;

    /// How far products may be off, beside their own size, when weights are held as each type: of widths
    /// with whole blocks, with parts of one, and with fewer values than a block.
    #[test]
    fn weights_are_held_as_they_say() -> Result<()> {
        let wave = |n: usize, step: f32| {
            (0..n)
                .map(|at| (at as f32 * step).sin())
                .collect::<Vec<_>>()
        };
        for (dtype, tolerance) in [
            (Dtype::F32, 1e-6),
            (Dtype::F16, 1e-3),
            (Dtype::Bf16, 8e-3),
            (Dtype::Int8, 1e-2),
            (Dtype::Int4, 0.12),
        ] {
            let numbers = Numbers {
                dtype,
                compute: DType::F32,
                device: Device::Cpu,
            };
            for (n_in, n_out) in [(20, 3), (100, 7), (256, 5), (768, 9)] {
                let x = Tensor::from_vec(wave(4 * n_in, 0.71), (4, n_in), &Device::Cpu)?;
                let weights = wave(n_out * n_in, 0.37);
                let exact = Tensor::from_slice(&weights, (n_out, n_in), &Device::Cpu)?;
                let exact = x.matmul(&exact.t()?)?;
                let linear = Linear::new(&numbers, dtype.held(n_in), weights, n_in, None)?;
                let size = |x: &Tensor| x.sqr()?.mean(D::Minus1)?.mean_all()?.to_scalar::<f32>();
                let off = (linear.forward(&x)? - &exact)?;
                // Beside the size of what is added up, for the waves' sum nearly cancels.
                let ratio = (size(&off)? / (n_in as f32 / 4.0)).sqrt();
                assert!(ratio <= tolerance, "{dtype:?} of {n_in}: {ratio}");
                assert_eq!(off.dims(), [4, n_out]);
            }
        }
        Ok(())
    }
}
