//! A rectangle of rows, as models see it.

use crate::block::product::product;
use backend_api::RaggedBatch;
use backend_api::pad::{self, Rectangle};
use candle_core::{Device, Result, Tensor};

/// Rows that are computed together: row after row, each `width` cells, padding behind its tokens.
pub(crate) struct Rows {
    pub(crate) ids: Vec<u32>,
    pub(crate) types: Vec<u32>,
    /// Tokens of each row.
    pub(crate) lens: Vec<usize>,
    pub(crate) width: usize,
}

impl Rows {
    /// Fills a rectangle of a batch; padding has this id.
    pub(crate) fn new(batch: &RaggedBatch<'_>, rectangle: &Rectangle, pad_id: u32) -> Self {
        let n_cells = rectangle.rows.len() * rectangle.width;
        let [mut ids, mut types, mut mask] = [const { Vec::new() }; 3];
        for cells in [&mut ids, &mut types, &mut mask] {
            cells.resize(n_cells, 0);
        }
        pad::fill(batch, rectangle, pad_id, &mut ids, &mut types, &mut mask);
        let rows = rectangle.rows.iter();
        Self {
            ids,
            types,
            lens: rows.map(|&row| batch.row(row).input_ids.len()).collect(),
            width: rectangle.width,
        }
    }

    /// Rows.
    pub(crate) fn n(&self) -> usize {
        self.lens.len()
    }

    /// Cells of the first token of each row.
    pub(crate) fn firsts(&self, x: &Tensor) -> Result<Tensor> {
        self.pick(x, |_| 0)
    }

    /// One cell of each row: (cells, values) to (rows, values).
    pub(crate) fn pick(&self, x: &Tensor, position: impl Fn(usize) -> usize) -> Result<Tensor> {
        let cells = (0..self.n()).map(|row| (row * self.width + position(row)) as u32);
        x.index_select(&indices(cells.collect(), x.device())?, 0)
    }

    /// The mean of each row's tokens: (cells, values) to (rows, values).
    pub(crate) fn means(&self, x: &Tensor) -> Result<Tensor> {
        let n_cells = self.ids.len();
        let mut parts = vec![0.0_f32; self.n() * n_cells];
        for (row, (parts, &len)) in parts.chunks_exact_mut(n_cells).zip(&self.lens).enumerate() {
            parts[row * self.width..][..len].fill(1.0 / len as f32);
        }
        let parts = Tensor::from_vec(parts, (self.n(), n_cells), x.device())?;
        product(&parts.to_dtype(x.dtype())?, x)
    }
}

/// Indices on a device.
pub(crate) fn indices(indices: Vec<u32>, device: &Device) -> Result<Tensor> {
    let n = indices.len();
    Tensor::from_vec(indices, n, device)
}
