//! Tables of vectors, looked up by token, position or type.

use super::linear::widened;
use super::norm::Norm;
use super::{add, bytes_of};
use crate::rows::{Rows, indices};
use candle_core::quantized::QTensor;
use candle_core::{DType, Result, Tensor};

/// A table.
pub(crate) struct Table {
    rows: Vectors,
    compute: DType,
}

/// A table's rows.
enum Vectors {
    /// Maybe in halves.
    Floats(Tensor),
    /// In blocks along each row.
    Blocks(QTensor),
}

impl Table {
    pub(crate) fn new(rows: Tensor, compute: DType) -> Self {
        Self {
            rows: Vectors::Floats(rows),
            compute,
        }
    }

    /// A table as a GGUF file stores it.
    pub(crate) fn of_blocks(rows: QTensor, compute: DType) -> Self {
        Self {
            rows: Vectors::Blocks(rows),
            compute,
        }
    }

    /// These rows, in the type that is computed in.
    pub(crate) fn look_up(&self, rows: Vec<u32>) -> Result<Tensor> {
        let found = match &self.rows {
            Vectors::Floats(table) => table.index_select(&indices(rows, table.device())?, 0)?,
            Vectors::Blocks(table) => table.embedding(&indices(rows, &table.device())?)?,
        };
        if found.dtype() == self.compute {
            Ok(found)
        } else {
            widened(&found, self.compute)
        }
    }

    pub(crate) fn n_bytes(&self) -> usize {
        match &self.rows {
            Vectors::Floats(table) => bytes_of(table),
            Vectors::Blocks(table) => table.storage_size_in_bytes(),
        }
    }

    /// Rows that it has.
    fn n_rows(&self) -> Result<usize> {
        match &self.rows {
            Vectors::Floats(table) => table.dim(0),
            Vectors::Blocks(table) => Ok(table.shape().dims2()?.0),
        }
    }
}

/// How a family numbers positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PositionRule {
    /// 0, 1, 2, …
    FromZero,
    /// pad + 1, pad + 2, …; a padding token inside a row has position pad and does not count.
    BehindPadding(u32),
}

/// The sum of what a token, its position and its type look up, and a norm behind it.
pub(crate) struct Embeddings {
    pub(crate) words: Table,
    pub(crate) positions: Option<(Table, PositionRule)>,
    pub(crate) types: Option<Table>,
    /// DeBERTa's stands behind a projection, elsewhere.
    pub(crate) norm: Option<Norm>,
}

impl Embeddings {
    /// (cells, width).
    pub(crate) fn forward(&self, rows: &Rows) -> Result<Tensor> {
        let mut x = self.words.look_up(rows.ids.clone())?;
        if let Some((table, rule)) = &self.positions {
            x = add(x, &table.look_up(rule.positions(rows))?)?;
        }
        if let Some(table) = &self.types {
            // With one row there is nothing to tell apart: types are whatever the tokenizer says.
            let types = match table.n_rows()? {
                1 => vec![0; rows.types.len()],
                _ => rows.types.clone(),
            };
            x = add(x, &table.look_up(types)?)?;
        }
        match &self.norm {
            Some(norm) => norm.forward(&x),
            None => Ok(x),
        }
    }

    pub(crate) fn n_bytes(&self) -> usize {
        let positions = self.positions.iter().map(|(table, _)| table.n_bytes());
        let types = self.types.iter().map(Table::n_bytes);
        self.words.n_bytes() + positions.chain(types).sum::<usize>()
    }
}

impl PositionRule {
    /// The position of each cell; that of padding behind a row is one that the table has.
    fn positions(self, rows: &Rows) -> Vec<u32> {
        let mut positions = Vec::with_capacity(rows.ids.len());
        for (ids, &len) in rows.ids.chunks_exact(rows.width).zip(&rows.lens) {
            let mut counted = 0;
            positions.extend(ids.iter().enumerate().map(|(at, &id)| match self {
                Self::FromZero => at as u32,
                Self::BehindPadding(pad) if id == pad || len <= at => pad,
                Self::BehindPadding(pad) => {
                    counted += 1;
                    pad + counted
                }
            }));
        }
        positions
    }
}
