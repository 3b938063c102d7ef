//! Rows that are computed together, as models see them.
//!
//! On CPUs and on Metal they are a rectangle: each takes as many cells as the longest, padding behind its tokens. On
//! CUDA they are packed, one behind another, and no cell is padding.

use crate::block::product::product;
use crate::model::Model;
use backend_api::Row;
use candle_core::{DType, Device, Result, Tensor};
use std::ops::Range;

/// Rows in cells, and what is looked up for each cell, where it is looked up.
pub(crate) struct Rows {
    /// Tokens of each row.
    pub(crate) lens: Vec<usize>,
    /// Cells of each row.
    pub(crate) cells: Vec<Range<usize>>,
    /// Tokens of the longest row.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code))]
    pub(crate) width: usize,
    /// Token ids by cell.
    pub(crate) ids: Tensor,
    /// Token types by cell; zeros for a family that does not tell them apart.
    pub(crate) types: Tensor,
    /// By cell, as the model numbers them.
    pub(crate) positions: Tensor,
    /// The cell of each row whose state the model's head reads.
    pub(crate) picks: Tensor,
    /// What a decoder reads, by cell or one a row; empty for a model without one.
    pub(crate) begun: Tensor,
    /// What attention by one step needs.
    #[cfg(feature = "cuda")]
    pub(crate) packed: Option<crate::cuda::packed::Packed>,
}

/// The same before it is where it is looked up.
pub(crate) struct Lists {
    pub(crate) lens: Vec<usize>,
    pub(crate) cells: Vec<Range<usize>>,
    pub(crate) ids: Vec<u32>,
    pub(crate) types: Vec<u32>,
    pub(crate) positions: Vec<u32>,
    pub(crate) picks: Vec<u32>,
    pub(crate) begun: Vec<u32>,
}

impl Lists {
    /// Of these rows, each of `width` cells, or, without a width, of as many as it has tokens.
    pub(crate) fn new(rows: &[Row<'_>], width: Option<usize>, model: &dyn Model) -> Self {
        let sizes = model.sizes();
        let lens: Vec<_> = rows.iter().map(|row| row.input_ids.len()).collect();
        let mut end = 0;
        let cells = lens.iter().map(|&len| {
            let start = end;
            end += width.unwrap_or(len);
            start..end
        });
        let cells: Vec<_> = cells.collect();
        let (mut ids, mut types) = (vec![sizes.pad_id; end], vec![0; end]);
        let mut positions = Vec::with_capacity(end);
        let mut picks = Vec::with_capacity(rows.len());
        for (row, cells) in rows.iter().zip(&cells) {
            let tokens = cells.start..cells.start + row.input_ids.len();
            ids[tokens.clone()].copy_from_slice(row.input_ids);
            // With one type there is nothing to tell apart: types are whatever the tokenizer says.
            if 1 < sizes.types {
                types[tokens].copy_from_slice(row.type_ids);
            }
            model
                .position_rule()
                .number(row.input_ids, cells.len(), &mut positions);
            picks.push((cells.start + model.pick(row.input_ids)) as u32);
        }
        let begun = model.begin(&ids, &cells);
        Self {
            lens,
            cells,
            ids,
            types,
            positions,
            picks,
            begun,
        }
    }
}

impl Rows {
    /// A rectangle: each row has as many cells as the longest.
    pub(crate) fn rectangle(rows: &[Row<'_>], model: &dyn Model, device: &Device) -> Result<Self> {
        let width = rows.iter().map(|row| row.input_ids.len()).max();
        let lists = Lists::new(rows, width, model);
        Ok(Self {
            width: width.unwrap_or(0),
            lens: lists.lens,
            cells: lists.cells,
            ids: indices(lists.ids, device)?,
            types: indices(lists.types, device)?,
            positions: indices(lists.positions, device)?,
            picks: indices(lists.picks, device)?,
            begun: indices(lists.begun, device)?,
            #[cfg(feature = "cuda")]
            packed: None,
        })
    }

    /// Rows.
    pub(crate) fn n(&self) -> usize {
        self.lens.len()
    }

    /// Whether no cell is padding.
    pub(crate) fn is_packed(&self) -> bool {
        #[cfg(feature = "cuda")]
        return self.packed.is_some();
        #[cfg(not(feature = "cuda"))]
        false
    }

    /// Cells.
    pub(crate) fn n_cells(&self) -> usize {
        self.cells.last().map_or(0, |cells| cells.end)
    }

    /// The cell of each row that the head reads: (cells, values) to (rows, values).
    pub(crate) fn picked(&self, x: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return crate::cuda::steps::pick(x, &self.picks);
        }
        x.index_select(&self.picks, 0)
    }

    /// The mean of each row's tokens: (cells, values) to (rows, values).
    pub(crate) fn means(&self, x: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Some(packed) = &self.packed {
            return crate::cuda::steps::means(x, &packed.starts);
        }
        let n_cells = self.n_cells();
        let mut parts = vec![0.0_f32; self.n() * n_cells];
        let lines = parts.chunks_exact_mut(n_cells);
        for ((parts, cells), &len) in lines.zip(&self.cells).zip(&self.lens) {
            parts[cells.start..][..len].fill(1.0 / len as f32);
        }
        let parts = Tensor::from_vec(parts, (self.n(), n_cells), x.device())?;
        product(&parts.to_dtype(x.dtype())?, x)
    }
}

/// Indices on a device.
fn indices(indices: Vec<u32>, device: &Device) -> Result<Tensor> {
    // Metal has no buffers without bytes for what it is given.
    if indices.is_empty() {
        return Tensor::zeros(0, DType::U32, device);
    }
    let n = indices.len();
    Tensor::from_vec(indices, n, device)
}
