//! Where a pair that is too long for a row is cut, and what is said of it.

use crate::score::Side;
use serde::{Deserialize, Serialize};

/// What of a pair did not fit into a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// The query lost tokens.
    pub query: bool,
    /// The document lost tokens.
    pub document: bool,
}

/// The part of a text that stays where `side` is cut, and more: from the other one up to the first whitespace behind
/// `bytes_min`. Tokens at such a cut may differ from the whole text's; they stand far beyond what a row holds.
pub(super) fn part(side: Side, text: &str, bytes_min: usize) -> &str {
    match side {
        Side::Left => {
            let end = text.len().saturating_sub(bytes_min);
            let before = text[..text.floor_char_boundary(end)].char_indices();
            let space = before.rev().find(|(_, char)| char.is_whitespace());
            space.map_or(text, |(at, _)| &text[at..])
        }
        Side::Right => {
            let behind = text.char_indices().skip_while(|(at, _)| *at < bytes_min);
            let mut spaces = behind.filter(|(_, char)| char.is_whitespace());
            spaces.next().map_or(text, |(at, _)| &text[..at])
        }
    }
}

/// Tokens of a query and of a document that share `room`, as `longest_first` of Python's tokenizers cuts
/// them: the longer one gives first, an odd token stays with the longer, and of what fits nothing is cut.
pub(super) fn share(room: usize, n_query: usize, n_document: usize) -> (usize, usize) {
    let half = room / 2;
    if n_query + n_document <= room {
        (n_query, n_document)
    } else if n_query <= half {
        (n_query, room - n_query)
    } else if n_document <= half {
        (room - n_document, n_document)
    } else if n_document < n_query {
        (room - half, half)
    } else {
        (half, room - half)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shares_a_row() {
        // room, query, document: what is left of both.
        let cases = [
            ((10, 3, 7), (3, 7)),
            ((10, 9, 1), (9, 1)),
            ((10, 10, 0), (10, 0)),
            ((10, 9, 2), (8, 2)),
            ((10, 3, 9), (3, 7)),
            ((10, 20, 20), (5, 5)),
            ((10, 20, 0), (10, 0)),
            ((11, 20, 30), (5, 6)),
            ((11, 30, 20), (6, 5)),
            ((11, 6, 6), (5, 6)),
            ((2, 9, 9), (1, 1)),
        ];
        for ((room, query, document), want) in cases {
            let got = share(room, query, document);
            assert_eq!(got, want, "{room} {query} {document}");
        }
    }

    #[test]
    fn parts_end_at_whitespace() {
        use Side::{Left, Right};
        let cases = [
            (Right, "one two three", 3, "one"),
            (Right, "one two three", 4, "one two"),
            (Right, "é é", 1, "é"),
            (Right, "one", 1, "one"),
            (Left, "one two three", 5, " three"),
            (Left, "one two three", 6, " two three"),
            (Left, "é é", 1, " é"),
            (Left, "é é", 3, "é é"),
            (Left, "one", 1, "one"),
            (Left, "one", 9, "one"),
        ];
        for (side, text, bytes_min, want) in cases {
            assert_eq!(part(side, text, bytes_min), want, "{side:?} {bytes_min}");
        }
    }
}
