//! Rows of tokens.

use super::cut::Cut;
use serde::{Deserialize, Serialize};

/// Rows of tokens, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRows {
    /// Token ids.
    pub input_ids: Vec<u32>,
    /// Token types.
    pub type_ids: Vec<u32>,
    /// Where each row ends among them.
    pub ends: Vec<u32>,
    /// What did not fit into each row; nothing is missing from rows that are not listed.
    pub cuts: Vec<Cut>,
}

// === impl TokenRows ===

impl TokenRows {
    /// No rows yet.
    pub const fn none() -> Self {
        Self {
            input_ids: Vec::new(),
            type_ids: Vec::new(),
            ends: Vec::new(),
            cuts: Vec::new(),
        }
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// No rows.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Tokens in a row.
    pub fn row_len(&self, row: usize) -> usize {
        self.range(row).len()
    }

    /// A row's ids and types.
    pub fn row(&self, row: usize) -> (&[u32], &[u32]) {
        let range = self.range(row);
        (&self.input_ids[range.clone()], &self.type_ids[range])
    }

    /// What did not fit into a row.
    pub fn cut(&self, row: usize) -> Cut {
        self.cuts.get(row).copied().unwrap_or_default()
    }

    /// Ends a row where the tokens end now.
    pub fn end_row(&mut self, cut: Cut) {
        // A request's tokens are bounded far below 2^32 by the intake.
        self.ends.push(self.input_ids.len() as u32);
        self.cuts.push(cut);
    }

    /// Appends the rows of another.
    pub fn append(&mut self, other: &Self) {
        let base = self.input_ids.len() as u32;
        self.input_ids.extend_from_slice(&other.input_ids);
        self.type_ids.extend_from_slice(&other.type_ids);
        self.ends.extend(other.ends.iter().map(|end| base + end));
        self.cuts.extend_from_slice(&other.cuts);
    }

    fn range(&self, row: usize) -> std::ops::Range<usize> {
        let start = row.checked_sub(1).map_or(0, |before| self.ends[before]);
        start as usize..self.ends[row] as usize
    }
}
