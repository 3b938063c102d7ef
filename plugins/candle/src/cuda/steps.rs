//! The steps between products, as blocks call them: each checks its tensors and launches one kernel. Those that change
//! a tensor do so where it lies; nobody else may look at it then.

use super::driver::{address, launch, unfilled};
use super::twins::{self, NormParameters};
use crate::block::Vector;
use crate::block::activation::Activation;
use crate::block::embedding::Embeddings;
use crate::block::norm::Norm;
use crate::rows::Rows;
use candle_core::{CudaDevice, D, DType, Device, Result, Tensor, bail};

pub(super) fn gpu(x: &Tensor) -> Result<&CudaDevice> {
    match x.device() {
        Device::Cuda(device) => Ok(device),
        _ => bail!("a step of a GPU's on a tensor that is elsewhere"),
    }
}

/// Cells and the values of one.
fn sizes(x: &Tensor) -> Result<(u64, u64)> {
    let width = x.dim(D::Minus1)?;
    Ok(((x.elem_count() / width.max(1)) as u64, width as u64))
}

/// Where a vector of this many values lies; 0 for none.
pub(super) fn bias(vector: Option<&Vector>, width: u64) -> Result<u64> {
    let Some(vector) = vector else {
        return Ok(0);
    };
    let (n, dtype) = (vector.tensor.elem_count(), vector.tensor.dtype());
    if n as u64 != width || dtype != DType::F32 {
        bail!("a bias of {n} {dtype:?} for {width} values in f32");
    }
    address(&vector.tensor)
}

pub(super) fn norm_parameters(norm: Option<&Norm>, width: u64) -> Result<NormParameters> {
    let Some(norm) = norm else {
        return Ok(NormParameters::default());
    };
    Ok(NormParameters {
        weight: bias(Some(&norm.weight), width)?,
        bias: bias(norm.bias.as_ref(), width)?,
        epsilon: norm.epsilon,
        centred: norm.centred.into(),
    })
}

/// Blocks of a step that moves values one by one.
fn elementwise(n_values: u64) -> (usize, u32) {
    let of_block = twins::POINTWISE_THREADS as usize * twins::VECTOR_VALUES;
    let n_blocks = (n_values as usize).div_ceil(of_block);
    blocks(n_blocks)
}

/// Blocks of a step that adds up a cell's values.
fn by_cell(n_cells: u64, width: u64) -> (usize, u32) {
    let (n_cells, width) = (n_cells as usize, width as usize);
    let by_warp = width <= twins::WARP_WIDTH_MAX && width.is_multiple_of(4);
    blocks(if by_warp {
        n_cells.div_ceil(twins::WARP_CELLS)
    } else {
        n_cells
    })
}

pub(super) fn blocks(n: usize) -> (usize, u32) {
    let n = n.clamp(1, twins::POINTWISE_GRID_MAX);
    (n, twins::POINTWISE_THREADS)
}

fn same(x: &Tensor, y: &Tensor) -> Result<()> {
    if x.elem_count() != y.elem_count() || x.dtype() != y.dtype() {
        bail!(
            "a step on {:?} {:?} and {:?} {:?}",
            x.dims(),
            x.dtype(),
            y.dims(),
            y.dtype()
        );
    }
    Ok(())
}

/// x += y + bias.
pub(crate) fn add(x: &Tensor, y: &Tensor, vector: Option<&Vector>) -> Result<()> {
    same(x, y)?;
    let (n_cells, width) = sizes(x)?;
    let argument = twins::Add {
        x: address(x)?,
        y: address(y)?,
        bias: bias(vector, width)?,
        n_cells,
        width,
    };
    launch(
        gpu(x)?,
        "add",
        x.dtype(),
        elementwise(n_cells * width),
        &argument,
    )
}

/// x = activation(x + bias).
pub(crate) fn activate(x: &Tensor, vector: Option<&Vector>, activation: Activation) -> Result<()> {
    let (n_cells, width) = sizes(x)?;
    let argument = twins::Activate {
        x: address(x)?,
        bias: bias(vector, width)?,
        n_cells,
        width,
        activation: twins::number(activation),
        unused: 0,
    };
    let grid = elementwise(n_cells * width);
    launch(gpu(x)?, "activate", x.dtype(), grid, &argument)
}

/// Of cells (a, b) of one width: activation(a) · b, each with its bias.
pub(crate) fn gate(x: &Tensor, vector: Option<&Vector>, activation: Activation) -> Result<Tensor> {
    let (n_cells, twice) = sizes(x)?;
    let width = twice / 2;
    let out = unfilled(gpu(x)?, x.dtype(), (n_cells as usize, width as usize))?;
    let argument = twins::Gate {
        out: address(&out)?,
        x: address(x)?,
        bias: bias(vector, twice)?,
        n_cells,
        width,
        activation: twins::number(activation),
        unused: 0,
    };
    let grid = elementwise(n_cells * width);
    launch(gpu(x)?, "gate", x.dtype(), grid, &argument)?;
    Ok(out)
}

/// The normed cells, as a tensor of their own.
pub(crate) fn norm(norm: &Norm, x: &Tensor) -> Result<Tensor> {
    let (n_cells, width) = sizes(x)?;
    let out = unfilled(gpu(x)?, x.dtype(), x.shape())?;
    let argument = twins::Norm {
        out: address(&out)?,
        x: address(x)?,
        norm: norm_parameters(Some(norm), width)?,
        n_cells,
        width,
    };
    launch(
        gpu(x)?,
        "norm",
        x.dtype(),
        by_cell(n_cells, width),
        &argument,
    )?;
    Ok(out)
}

/// x = norm(x + bias + residual); where the sum is kept, residual = x + bias + residual.
pub(crate) fn add_norm(
    norm: &Norm,
    x: &Tensor,
    vector: Option<&Vector>,
    residual: &Tensor,
    keeps_sum: bool,
) -> Result<()> {
    same(x, residual)?;
    let (n_cells, width) = sizes(x)?;
    let (out, residual) = (address(x)?, address(residual)?);
    let argument = twins::AddNorm {
        out,
        sum: if keeps_sum { residual } else { 0 },
        x: out,
        residual,
        bias: bias(vector, width)?,
        norm: norm_parameters(Some(norm), width)?,
        n_cells,
        width,
    };
    launch(
        gpu(x)?,
        "add_norm",
        x.dtype(),
        by_cell(n_cells, width),
        &argument,
    )
}

/// What each token, its position and its type look up, and the norm behind their sum.
pub(crate) fn embed(embeddings: &Embeddings, rows: &Rows) -> Result<Tensor> {
    let words = embeddings.words.floats()?;
    let (n_cells, width) = (rows.n_cells(), words.dim(1)?);
    let table = |table: Option<&crate::block::embedding::Table>| -> Result<u64> {
        let Some(table) = table else {
            return Ok(0);
        };
        let table = table.floats()?;
        if table.dim(1)? != width || table.dtype() != words.dtype() {
            bail!("tables of {:?} and {:?}", words.shape(), table.shape());
        }
        address(table)
    };
    let out = unfilled(gpu(words)?, words.dtype(), (n_cells, width))?;
    let argument = twins::Embed {
        out: address(&out)?,
        words: address(words)?,
        positions: table(embeddings.positions.as_ref().map(|(table, _)| table))?,
        types: table(embeddings.types.as_ref())?,
        ids: address(&rows.ids)?,
        position_ids: address(&rows.positions)?,
        type_ids: address(&rows.types)?,
        norm: norm_parameters(embeddings.norm.as_ref(), width as u64)?,
        n_cells: n_cells as u64,
        width: width as u64,
    };
    let grid = by_cell(n_cells as u64, width as u64);
    launch(gpu(words)?, "embed", words.dtype(), grid, &argument)?;
    Ok(out)
}

/// These lines of x.
pub(crate) fn pick(x: &Tensor, indices: &Tensor) -> Result<Tensor> {
    let (_, width) = sizes(x)?;
    let n_out = indices.elem_count();
    let out = unfilled(gpu(x)?, x.dtype(), (n_out, width as usize))?;
    let argument = twins::Pick {
        out: address(&out)?,
        x: address(x)?,
        indices: address(indices)?,
        n_out: n_out as u64,
        width,
    };
    let grid = elementwise(n_out as u64 * width);
    launch(gpu(x)?, "pick", x.dtype(), grid, &argument)?;
    Ok(out)
}

/// The mean of each row's cells, which begin at `starts`, one more than rows.
pub(crate) fn means(x: &Tensor, starts: &Tensor) -> Result<Tensor> {
    let (_, width) = sizes(x)?;
    let n_rows = starts.elem_count() - 1;
    let out = unfilled(gpu(x)?, x.dtype(), (n_rows, width as usize))?;
    let argument = twins::Means {
        out: address(&out)?,
        x: address(x)?,
        starts: address(starts)?,
        n_rows: n_rows as u64,
        width,
    };
    let parts = (width as usize).div_ceil(twins::POINTWISE_THREADS as usize);
    launch(
        gpu(x)?,
        "means",
        x.dtype(),
        blocks(n_rows * parts),
        &argument,
    )?;
    Ok(out)
}

/// The same values in f32.
pub(crate) fn to_f32(x: &Tensor) -> Result<Tensor> {
    if x.dtype() == DType::F32 {
        return Ok(x.clone());
    }
    let n = x.elem_count();
    let out = unfilled(gpu(x)?, DType::F32, x.shape())?;
    let argument = twins::ToF32 {
        out: address(&out)?,
        x: address(x)?,
        n: n as u64,
    };
    let n_blocks = n.div_ceil(twins::POINTWISE_THREADS as usize);
    launch(gpu(x)?, "to_f32", x.dtype(), blocks(n_blocks), &argument)?;
    Ok(out)
}
