//! Linear layers: weights in floats or in GGUF's blocks.

use super::activation::Activation;
use super::product::product;
use super::{Steps, Vector, bytes_of, composed, fused, values};
#[cfg(feature = "cuda")]
use crate::cuda::steps;
use crate::loader::made;
use crate::numbers::{Held, Numbers};
use crate::raw::Piece;
use backend_api::Fault;
#[cfg(feature = "cuda")]
use candle_core::bail;
use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{CpuStorage, DType, Device, Module, Result, Storage, Tensor};
use half::slice::HalfFloatSliceExt;
#[cfg(feature = "cuda")]
use std::ops::Range;
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
    /// Files may store some outputs in other blocks than others: one part under the other.
    /// On CPUs each product widens them to f32 first: for more than a few cells that is faster than
    /// candle's products of blocks, and only weights are rounded. Other devices multiply blocks.
    Blocks {
        parts: Vec<Arc<QTensor>>,
        n_in: usize,
    },
}

impl Linear {
    /// A layer of these weights, outputs × inputs, row-major: values are held as was asked for, what is stored in
    /// blocks as it is stored.
    pub(crate) fn new(
        numbers: &Numbers,
        held: Held,
        weights: Vec<Piece>,
        n_in: usize,
        bias: Option<Vector>,
    ) -> std::result::Result<Self, Fault> {
        let n_out = weights.iter().map(|piece| piece.n_rows(n_in)).sum();
        let floats = match (held, weights.as_slice()) {
            (_, [Piece::Stored(stored)]) => match stored.kind.ggml {
                GgmlDType::F32 => Some(DType::F32),
                GgmlDType::F16 => Some(DType::F16),
                GgmlDType::BF16 => Some(DType::BF16),
                _ => None,
            },
            (Held::Float(dtype), [Piece::Values(_)]) => Some(dtype),
            _ => None,
        };
        let weight = match floats {
            Some(dtype) => {
                let values = weights.into_iter().map(Piece::decoded);
                let values = values.collect::<std::result::Result<Vec<_>, _>>()?.concat();
                made(Weight::of_floats(numbers, dtype, values, (n_out, n_in)))?
            }
            None => made(Weight::of_blocks(numbers, held, weights, n_in))?,
        };
        Ok(Self {
            weight,
            bias,
            n_out,
        })
    }

    /// What the layer multiplies, in the type of its own weights where those are wider than the model's.
    pub(crate) fn widened(&self, x: &Tensor) -> Result<Tensor> {
        match &self.weight {
            #[cfg(feature = "cuda")]
            Weight::Whole(weight) if x.device().is_cuda() && weight.dtype() != x.dtype() => {
                steps::to_f32(x)
            }
            _ => Ok(x.clone()),
        }
    }

    /// x · weightᵀ, for (cells, inputs).
    pub(crate) fn product(&self, x: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Whole(weight) => product(x, &weight.t()?),
            Weight::Half(weight) => product(x, &widened(weight, x.dtype())?.t()?),
            Weight::Blocks { parts, n_in } if x.device().is_cpu() => {
                let widen = |part: &Arc<QTensor>| part.dequantize(x.device());
                let weight = under_each_other(parts, widen, 0)?.to_dtype(x.dtype())?;
                product(x, &weight.narrow(1, 0, *n_in)?.t()?)
            }
            Weight::Blocks { parts, n_in } => {
                let multiply = |part: &Arc<QTensor>| {
                    let padding = part.shape().dims2()?.1 - n_in;
                    let x = x.pad_with_zeros(1, 0, padding)?;
                    QMatMul::from_arc(Arc::clone(part))?.forward(&x)
                };
                under_each_other(parts, multiply, 1)
            }
        }
    }

    pub(crate) fn bias(&self) -> Option<&Vector> {
        self.bias.as_ref()
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.activated(x, Activation::Identity)
    }

    /// activation(linear(x)).
    pub(crate) fn activated(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let product = self.product(x)?;
        let is_done = self.bias.is_none() && activation == Activation::Identity;
        match Steps::of(&product) {
            _ if is_done => {}
            Steps::Fused => product.inplace_op1(&fused::Activate {
                bias: values(self.bias()),
                activation,
            })?,
            #[cfg(feature = "cuda")]
            Steps::Cuda => steps::activate(&product, self.bias(), activation)?,
            Steps::Composed => {
                let sum = composed::add_bias(product, self.bias())?;
                return composed::activate(activation, &sum);
            }
        }
        Ok(product)
    }

    /// Of outputs (a, b) of one width: activation(a) · b.
    pub(crate) fn gated(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let product = self.product(x)?;
        match Steps::of(&product) {
            Steps::Fused => product.apply_op1_no_bwd(&fused::Gate {
                bias: values(self.bias()),
                activation,
            }),
            #[cfg(feature = "cuda")]
            Steps::Cuda => steps::gate(&product, self.bias(), activation),
            Steps::Composed => {
                composed::gate(activation, &composed::add_bias(product, self.bias())?)
            }
        }
    }

    /// stream + linear(x), in the stream's own memory where that can be.
    pub(crate) fn add_to(&self, stream: Tensor, x: &Tensor) -> Result<Tensor> {
        super::add_with_bias(stream, &self.product(x)?, self.bias())
    }

    /// Some outputs as a layer of their own, which shares the weights.
    #[cfg(feature = "cuda")]
    pub(crate) fn outputs(&self, outputs: Range<usize>) -> Result<Self> {
        let Weight::Whole(weight) = &self.weight else {
            bail!("outputs of a layer whose weights are widened by each product");
        };
        let part = |x: &Tensor| x.narrow(0, outputs.start, outputs.len());
        let bias = |bias: &Vector| -> Result<Vector> {
            let values = bias.values.get(outputs.clone()).unwrap_or_default();
            Ok(Vector {
                tensor: part(&bias.tensor)?,
                values: values.to_vec(),
            })
        };
        Ok(Self {
            weight: Weight::Whole(part(weight)?),
            bias: self.bias.as_ref().map(bias).transpose()?,
            n_out: outputs.len(),
        })
    }

    pub(crate) fn n_out(&self) -> usize {
        self.n_out
    }

    pub(crate) fn n_bytes(&self) -> usize {
        let weights = match &self.weight {
            Weight::Whole(weight) | Weight::Half(weight) => bytes_of(weight),
            Weight::Blocks { parts, .. } => {
                parts.iter().map(|part| part.storage_size_in_bytes()).sum()
            }
        };
        weights + self.bias.as_ref().map_or(0, Vector::n_bytes)
    }

    /// Bytes that a product takes for its weights beside them: gemm packs them, and what is not f32 is
    /// widened first.
    pub(crate) fn n_product_bytes(&self) -> usize {
        let (n_values, copies) = match &self.weight {
            Weight::Whole(weight) => (weight.elem_count(), 1),
            Weight::Half(weight) => (weight.elem_count(), 2),
            Weight::Blocks { parts, .. } => {
                let n_values = parts.iter().map(|part| part.shape().elem_count());
                (n_values.sum(), if parts.len() == 1 { 2 } else { 3 })
            }
        };
        copies * n_values * size_of::<f32>()
    }
}

// === impl Weight ===

impl Weight {
    fn of_floats(
        numbers: &Numbers,
        dtype: DType,
        values: Vec<f32>,
        shape: (usize, usize),
    ) -> Result<Self> {
        if dtype == DType::F32 {
            return Ok(Self::Whole(numbers.tensor_of(values, shape)?));
        }
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?;
        let tensor = tensor.to_device(&numbers.device)?;
        if numbers.compute == dtype {
            Ok(Self::Whole(tensor))
        } else {
            Ok(Self::Half(tensor))
        }
    }

    fn of_blocks(numbers: &Numbers, held: Held, weights: Vec<Piece>, n_in: usize) -> Result<Self> {
        let kind = match held {
            Held::Blocks(kind) => kind,
            Held::Float(_) => GgmlDType::F32,
        };
        let device = &numbers.device;
        let part = |piece| match piece {
            Piece::Values(values) => {
                let n_out = values.len() / n_in;
                quantised(&pad(values, n_in, kind.block_size()), n_out, kind, device)
            }
            Piece::Stored(stored) => stored.kind.blocks(&stored.bytes, n_in, device),
        };
        let parts = weights.into_iter().map(|piece| part(piece).map(Arc::new));
        Ok(Self::Blocks {
            parts: parts.collect::<Result<_>>()?,
            n_in,
        })
    }
}

/// What is made of each part, as one tensor.
fn under_each_other(
    parts: &[Arc<QTensor>],
    make: impl Fn(&Arc<QTensor>) -> Result<Tensor>,
    dim: usize,
) -> Result<Tensor> {
    match parts {
        [one] => make(one),
        _ => Tensor::cat(&parts.iter().map(make).collect::<Result<Vec<_>>>()?, dim),
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
                let weights = vec![Piece::Values(weights)];
                let linear = Linear::new(&numbers, dtype.held(n_in), weights, n_in, None)
                    .map_err(candle_core::Error::msg)?;
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
