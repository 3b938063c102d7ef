//! What models are made of. Each block computes on any device by candle's operations (`composed`), on CPUs in f32 by
//! fewer passes over memory (`fused`) and on CUDA by kernels of our own (`crate::cuda`); all are compared on every
//! golden model.
//!
//! Rows are one matrix of cells, row after row.

pub(crate) mod activation;
pub(crate) mod attention;
mod composed;
pub(crate) mod embedding;
mod fused;
pub(crate) mod head;
pub(crate) mod layer;
pub(crate) mod linear;
mod loops;
pub(crate) mod norm;
pub(crate) mod product;
pub(crate) mod relative;
pub(crate) mod rotary;

#[cfg(feature = "cuda")]
use crate::cuda::steps;
use crate::numbers::Numbers;
use candle_core::{DType, Device, Result, Tensor};

/// A value for each output of a layer, also where the fused loops read it.
#[derive(Clone)]
pub(crate) struct Vector {
    pub(crate) tensor: Tensor,
    values: Vec<f32>,
}

impl Vector {
    pub(crate) fn new(numbers: &Numbers, mut values: Vec<f32>) -> Result<Self> {
        let tensor = numbers.exact_tensor(&values, values.len())?;
        if !numbers.device.is_cpu() {
            values = Vec::new();
        }
        Ok(Self { tensor, values })
    }

    pub(crate) fn n_bytes(&self) -> usize {
        size_of_val(&self.values[..]) + bytes_of(&self.tensor)
    }
}

/// By what the steps between products are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Steps {
    /// Our loops.
    Fused,
    /// Our kernels.
    #[cfg(feature = "cuda")]
    Cuda,
    /// candle's operations.
    Composed,
}

impl Steps {
    /// The best that there is for this tensor.
    fn of(x: &Tensor) -> Self {
        match (x.device(), x.dtype()) {
            (Device::Cpu, DType::F32) => Self::Fused,
            #[cfg(feature = "cuda")]
            (Device::Cuda(_), _) => Self::Cuda,
            _ => Self::Composed,
        }
    }
}

/// `to` + `x`, in `to`'s own memory where that can be.
pub(crate) fn add(to: Tensor, x: &Tensor) -> Result<Tensor> {
    add_with_bias(to, x, None)
}

/// `to` + `x` + bias.
fn add_with_bias(to: Tensor, x: &Tensor, bias: Option<&Vector>) -> Result<Tensor> {
    match Steps::of(&to) {
        Steps::Fused => to.inplace_op2(x, &fused::Add { bias: values(bias) })?,
        #[cfg(feature = "cuda")]
        Steps::Cuda => steps::add(&to, x, bias)?,
        Steps::Composed => return composed::add_bias((to + x)?, bias),
    }
    Ok(to)
}

fn values(vector: Option<&Vector>) -> &[f32] {
    vector.map_or(&[], |vector| &vector.values)
}

pub(crate) fn bytes_of(tensor: &Tensor) -> usize {
    tensor.elem_count() * tensor.dtype().size_in_bytes()
}
