//! Documents that are longer than a row, as windows that overlap.

use super::tokenizer::{Query, Tokenizer};
use crate::score::ScoreError;
use std::ops::Range;

/// What a window shares with the next, of its own length: a sentence or two, so that what is said at an edge is
/// read whole in one of them.
const OVERLAP_DIVISOR: usize = 8;
/// Tokens that a window leaves free: encoded by itself, its text may make a little more than it did within the
/// document.
const SPARE_TOKENS: usize = 2;

/// A document in windows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Bytes of the document, in its order; at least one.
    pub parts: Vec<Range<usize>>,
    /// Tokens of all of them, those that two share once.
    pub n_tokens: usize,
    /// Whether some of the document is in none, because its form bounds it.
    pub is_cut: bool,
}

impl Tokenizer {
    /// Where a document is to be taken apart, so that each part fits into a row beside the query, of which half
    /// a row counts at most. One window where all of it fits.
    ///
    /// # Errors
    /// `Internal`, the encoder's own.
    pub fn windows(&self, query: &Query, document: &str) -> Result<Windows, ScoreError> {
        let (n_before, all) = self.spans(query, document)?;
        let spans = query.kept(&all);
        // A prefix stands in every window.
        let room = query.document_room().saturating_sub(n_before).max(1);
        let bytes = |of: Range<usize>| {
            let start = document.floor_char_boundary(spans[of.start].bytes.start);
            start..document.ceil_char_boundary(spans[of.end - 1].bytes.end)
        };
        let is_cut = spans.len() < all.len();
        let parts = match (spans.len() <= room, is_cut) {
            (true, false) => std::iter::once(0..document.len()).collect(),
            (true, true) => std::iter::once(bytes(0..spans.len())).collect(),
            (false, _) => {
                let len = room.saturating_sub(SPARE_TOKENS).max(1);
                cut(spans, len).map(bytes).collect()
            }
        };
        Ok(Windows {
            parts,
            n_tokens: n_before + spans.len(),
            is_cut,
        })
    }
}

/// Windows of at most `len` tokens, from one beginning of a word to another where that is possible.
fn cut(spans: &[Span], len: usize) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut next = Some(0);
    std::iter::from_fn(move || {
        let start = next.take()?;
        let end = at_word(spans, start + len, start + len / 2 + 1);
        if end < spans.len() {
            let shared = (end - start) / OVERLAP_DIVISOR;
            next = Some(at_word(spans, end - shared, start + 1));
        }
        Some(start..end)
    })
}

/// A token's place in its text, and whether a word begins with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) bytes: Range<usize>,
    pub(super) begins_word: bool,
}

/// The last place up to `at` at which a word begins, or the end of all; `at` itself where there is none behind
/// `least`.
fn at_word(spans: &[Span], at: usize, least: usize) -> usize {
    if spans.len() <= at {
        return spans.len();
    }
    let places = (least..=at).rev();
    let mut words = places.filter(|&place| spans[place].begins_word);
    words.next().unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(n_tokens: usize, word: usize) -> Vec<Span> {
        let span = |token: usize| Span {
            bytes: token..token + 1,
            begins_word: token.is_multiple_of(word),
        };
        (0..n_tokens).map(span).collect()
    }

    #[test]
    fn windows_cover_everything_and_end_at_words() {
        for (n_tokens, word, len) in [
            (100, 1, 16),
            (100, 3, 16),
            (1_000, 7, 40),
            (50, 1_000, 9),
            (5, 1, 1),
        ] {
            let spans = spans(n_tokens, word);
            let windows: Vec<_> = cut(&spans, len).collect();
            assert_eq!(windows[0].start, 0);
            assert_eq!(windows.last().unwrap().end, n_tokens);
            for window in &windows {
                assert!(!window.is_empty() && window.len() <= len, "{window:?}");
            }
            for pair in windows.windows(2) {
                assert!(
                    pair[1].start <= pair[0].end && pair[0].start < pair[1].start,
                    "{pair:?}"
                );
                if word <= len / 2 {
                    assert!(
                        pair[1].start.is_multiple_of(word),
                        "{pair:?} in words of {word}"
                    );
                    assert!(
                        pair[0].end.is_multiple_of(word),
                        "{pair:?} in words of {word}"
                    );
                }
            }
        }
        let shared = cut(&spans(1_000, 1), 80).collect::<Vec<_>>();
        assert_eq!(shared[0], 0..80);
        assert_eq!(shared[1].start, 70);
    }
}
