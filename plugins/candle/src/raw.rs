//! Linear layers' tensors before they are held: joined and split by outputs.

use crate::weights::Stored;
use backend_api::Fault;

/// Rows of weights as the files have them.
pub(crate) struct RawLinear {
    pub(crate) n_in: usize,
    /// Outputs × inputs, one piece under the other.
    pub(crate) weights: Vec<Piece>,
    /// Empty if there is none.
    pub(crate) bias: Vec<f32>,
}

/// Some outputs' weights.
pub(crate) enum Piece {
    /// To be held as was asked for.
    Values(Vec<f32>),
    /// To be held as they are.
    Stored(Stored),
}

// === impl RawLinear ===

impl RawLinear {
    /// Keeps the first `n_out` outputs and returns the others.
    pub(crate) fn split_off(&mut self, n_out: usize) -> Self {
        let bias = self.bias.split_off(n_out.min(self.bias.len()));
        let (mut kept, mut others, mut left) = (Vec::new(), Vec::new(), n_out);
        for mut piece in std::mem::take(&mut self.weights) {
            let n_here = piece.n_rows(self.n_in);
            if left < n_here {
                others.push(piece.split_off(left, self.n_in));
            }
            if 0 < left {
                kept.push(piece);
            }
            left = left.saturating_sub(n_here);
        }
        self.weights = kept;
        Self {
            n_in: self.n_in,
            weights: others,
            bias,
        }
    }

    /// Outputs.
    #[cfg(feature = "cuda")]
    pub(crate) fn n_out(&self) -> usize {
        let n_rows = self.weights.iter().map(|piece| piece.n_rows(self.n_in));
        n_rows.sum()
    }

    /// The outputs of several layers as those of one.
    pub(crate) fn join(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut all = Self {
            n_in: 1,
            weights: Vec::new(),
            bias: Vec::new(),
        };
        for part in parts {
            all.n_in = part.n_in;
            all.bias.extend(part.bias);
            for piece in part.weights {
                all.push(piece);
            }
        }
        all
    }

    /// Adds outputs, to the last piece if they are of its type.
    fn push(&mut self, piece: Piece) {
        match (self.weights.last_mut(), piece) {
            (Some(Piece::Values(all)), Piece::Values(values)) => all.extend(values),
            (Some(Piece::Stored(all)), Piece::Stored(more)) if all.kind.ggml == more.kind.ggml => {
                all.bytes.extend(more.bytes);
            }
            (_, piece) => self.weights.push(piece),
        }
    }
}

// === impl Piece ===

impl Piece {
    /// Outputs of `n_in` weights each.
    pub(crate) fn n_rows(&self, n_in: usize) -> usize {
        match self {
            Self::Values(values) => values.len() / n_in,
            Self::Stored(stored) => stored.bytes.len() / row_bytes(stored, n_in),
        }
    }

    fn split_off(&mut self, n_rows: usize, n_in: usize) -> Self {
        match self {
            Self::Values(values) => Self::Values(values.split_off(n_rows * n_in)),
            Self::Stored(stored) => Self::Stored(Stored {
                kind: stored.kind,
                bytes: stored.bytes.split_off(n_rows * row_bytes(stored, n_in)),
            }),
        }
    }

    /// A stored piece's values.
    pub(crate) fn decoded(self) -> Result<Vec<f32>, Fault> {
        match self {
            Self::Values(values) => Ok(values),
            Self::Stored(stored) => stored.decoded(),
        }
    }
}

/// Rows are whole blocks: the header was checked.
fn row_bytes(stored: &Stored, n_in: usize) -> usize {
    n_in / stored.kind.ggml.block_size() * stored.kind.ggml.type_size()
}
