//! What is kept of a scored pair.

use crate::generation::work::Scored;
use crate::model::Cut;
use smallvec::SmallVec;

/// A pair's scores and what its answer says beside them.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// One for each label: a reranker has one.
    pub logits: SmallVec<[f32; 2]>,
    /// Tokens of the row, special ones included.
    pub n_tokens: u32,
    /// What did not fit into the row.
    pub cut: Cut,
}

// === impl Pair ===

impl Pair {
    /// As other servers read it: tokens, cuts, logits, all little-endian.
    pub fn to_bytes(&self) -> Vec<u8> {
        let cuts = u8::from(self.cut.query) | u8::from(self.cut.document) << 1;
        let mut bytes = self.n_tokens.to_le_bytes().to_vec();
        bytes.push(cuts);
        for logit in &self.logits {
            bytes.extend_from_slice(&logit.to_le_bytes());
        }
        bytes
    }

    /// What [`to_bytes`](Self::to_bytes) wrote of a pair with `n_labels` logits. `None` for anything else,
    /// and for what is not a number: whoever can write into the second level need not be trusted.
    pub fn from_bytes(bytes: &[u8], n_labels: usize) -> Option<Self> {
        let (n_tokens, rest) = bytes.split_first_chunk()?;
        let (&cuts, logits) = rest.split_first()?;
        let (logits, []) = logits.as_chunks() else {
            return None;
        };
        let logits: SmallVec<[f32; 2]> = logits
            .iter()
            .map(|&logit| f32::from_le_bytes(logit))
            .collect();
        let is_sound = logits.len() == n_labels && logits.iter().all(|logit| logit.is_finite());
        (is_sound && cuts < 4).then(|| Self {
            logits,
            n_tokens: u32::from_le_bytes(*n_tokens),
            cut: Cut {
                query: cuts & 1 != 0,
                document: cuts & 2 != 0,
            },
        })
    }
}

impl From<Scored<'_>> for Pair {
    fn from(scored: Scored<'_>) -> Self {
        Self {
            logits: SmallVec::from_slice(scored.logits),
            // Bounded by the tokens of a batch.
            n_tokens: scored.n_tokens as u32,
            cut: scored.cut,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_and_nothing_else_passes() {
        for (query, document) in [(false, false), (true, false), (false, true), (true, true)] {
            let pair = Pair {
                logits: SmallVec::from_slice(&[1.5, -2.25, 0.0]),
                n_tokens: 70_000,
                cut: Cut { query, document },
            };
            let bytes = pair.to_bytes();
            assert_eq!(Pair::from_bytes(&bytes, 3), Some(pair));
            assert_eq!(Pair::from_bytes(&bytes, 2), None);
            for end in 0..bytes.len() {
                assert_eq!(Pair::from_bytes(&bytes[..end], 3), None);
            }
        }
        let nan = [&[0; 5][..], &f32::NAN.to_le_bytes()].concat();
        assert_eq!(Pair::from_bytes(&nan, 1), None);
        assert_eq!(Pair::from_bytes(&[0, 0, 0, 0, 4, 0, 0, 0, 0], 1), None);
    }
}
