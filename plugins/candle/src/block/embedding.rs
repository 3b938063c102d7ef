//! Tables of vectors, looked up by token, position or type.

use super::linear::widened;
use super::norm::Norm;
use super::{add, bytes_of};
use crate::rows::Rows;
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
    Blocks(Box<QTensor>),
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
            rows: Vectors::Blocks(Box::new(rows)),
            compute,
        }
    }

    /// These rows, in the type that is computed in.
    pub(crate) fn look_up(&self, rows: &Tensor) -> Result<Tensor> {
        let found = match &self.rows {
            #[cfg(feature = "cuda")]
            Vectors::Floats(table) if table.device().is_cuda() => {
                return crate::cuda::steps::pick(table, rows);
            }
            Vectors::Floats(table) => table.index_select(rows, 0)?,
            Vectors::Blocks(table) => table.embedding(rows)?,
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

    /// A table of floats.
    #[cfg(feature = "cuda")]
    pub(crate) fn floats(&self) -> Result<&Tensor> {
        match &self.rows {
            Vectors::Floats(table) => Ok(table),
            Vectors::Blocks(_) => candle_core::bail!("a table in blocks"),
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
        #[cfg(feature = "cuda")]
        if rows.packed.is_some() {
            return crate::cuda::steps::embed(self, rows);
        }
        let mut x = self.words.look_up(&rows.ids)?;
        if let Some((table, _)) = &self.positions {
            x = add(x, &table.look_up(&rows.positions)?)?;
        }
        if let Some(table) = &self.types {
            x = add(x, &table.look_up(&rows.types)?)?;
        }
        match &self.norm {
            Some(norm) => norm.forward(&x),
            None => Ok(x),
        }
    }

    pub(crate) fn position_rule(&self) -> PositionRule {
        self.positions
            .as_ref()
            .map_or(PositionRule::FromZero, |(_, rule)| *rule)
    }

    pub(crate) fn n_bytes(&self) -> usize {
        let positions = self.positions.iter().map(|(table, _)| table.n_bytes());
        let types = self.types.iter().map(Table::n_bytes);
        self.words.n_bytes() + positions.chain(types).sum::<usize>()
    }
}

impl PositionRule {
    /// Adds the positions of a row's cells; that of padding behind its tokens is one that the table has.
    pub(crate) fn number(self, ids: &[u32], n_cells: usize, positions: &mut Vec<u32>) {
        let mut counted = 0;
        positions.extend((0..n_cells).map(|at| match (self, ids.get(at)) {
            (Self::FromZero, _) => at as u32,
            (Self::BehindPadding(pad), Some(&id)) if id != pad => {
                counted += 1;
                pad + counted
            }
            (Self::BehindPadding(pad), _) => pad,
        }));
    }
}
