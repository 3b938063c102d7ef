//! What models are made of. Each block computes on any device by candle's operations (`composed`), and on
//! CPUs in f32 by fewer passes over memory (`fused`); both are compared on every golden model.
//!
//! A rectangle of rows is one matrix of cells: row after row, each `width` tokens, padding included.

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

use crate::numbers::Numbers;
use candle_core::{DType, Result, Tensor};

/// A value for each output of a layer, also where the fused loops read it.
#[derive(Clone)]
pub(crate) struct Vector {
    tensor: Tensor,
    values: Vec<f32>,
}

impl Vector {
    pub(crate) fn new(numbers: &Numbers, values: Vec<f32>) -> Result<Self> {
        let tensor = numbers.tensor(&values, values.len())?;
        Ok(Self { tensor, values })
    }

    pub(crate) fn n_bytes(&self) -> usize {
        size_of_val(&self.values[..]) + bytes_of(&self.tensor)
    }
}

/// Whether the fused loops can compute on this tensor.
fn is_fused(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// `to` + `x`, in `to`'s own memory where that can be.
pub(crate) fn add(to: Tensor, x: &Tensor) -> Result<Tensor> {
    add_with_bias(to, x, None)
}

/// `to` + `x` + bias.
fn add_with_bias(to: Tensor, x: &Tensor, bias: Option<&Vector>) -> Result<Tensor> {
    if is_fused(&to) {
        to.inplace_op2(x, &fused::Add { bias: values(bias) })?;
        return Ok(to);
    }
    let sum = (to + x)?;
    composed::add_bias(sum, bias)
}

fn values(vector: Option<&Vector>) -> &[f32] {
    vector.map_or(&[], |vector| &vector.values)
}

pub(crate) fn bytes_of(tensor: &Tensor) -> usize {
    tensor.elem_count() * tensor.dtype().size_in_bytes()
}
