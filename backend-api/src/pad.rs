//! Ragged rows to rectangles, for backends that need them.
//!
//! The gateway knows ragged batches only. A backend that must pad sorts the rows by length and cuts
//! groups, so that little padding is computed.

use crate::RaggedBatch;

/// Rows that are computed together, each padded to `width` tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rectangle {
    /// Indices into the batch, by falling length.
    pub rows: Vec<usize>,
    /// Tokens that each row takes, padding included.
    pub width: usize,
}

/// Cuts rows of these lengths into rectangles of at most `cells_max` tokens, padding included, whose
/// widths are multiples of `multiple`. A row that alone exceeds `cells_max` gets a rectangle of its own.
///
/// Longest first: the peak of memory comes with the first rectangle, not in the middle of the work.
pub fn rectangles(lengths: &[usize], cells_max: usize, multiple: usize) -> Vec<Rectangle> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    // Stable, so equal lengths keep their order and the result is the same every time.
    order.sort_by_key(|&row| std::cmp::Reverse(lengths[row]));
    let mut cut: Vec<Rectangle> = Vec::new();
    for row in order {
        match cut.last_mut() {
            Some(last) if last.width * (last.rows.len() + 1) <= cells_max => last.rows.push(row),
            _ => cut.push(Rectangle {
                rows: vec![row],
                width: lengths[row].next_multiple_of(multiple.max(1)),
            }),
        }
    }
    cut
}

/// Writes a rectangle's tokens row by row: ids and types padded with `pad_id` and 0, and a mask that is
/// 1 on tokens and 0 on padding. Each slice must hold `rows × width` values.
///
/// # Panics
/// When a slice has another length or the rectangle names a row that the batch has not.
pub fn fill(
    batch: &RaggedBatch<'_>,
    rectangle: &Rectangle,
    pad_id: u32,
    ids: &mut [u32],
    types: &mut [u32],
    mask: &mut [u32],
) {
    let cells = rectangle.rows.len() * rectangle.width;
    assert!(
        ids.len() == cells && types.len() == cells && mask.len() == cells,
        "a slice is not {cells} long"
    );
    ids.fill(pad_id);
    types.fill(0);
    mask.fill(0);
    for (line, &row) in rectangle.rows.iter().enumerate() {
        let row = batch.row(row);
        let start = line * rectangle.width;
        let end = start + row.input_ids.len();
        ids[start..end].copy_from_slice(row.input_ids);
        types[start..end].copy_from_slice(row.type_ids);
        mask[start..end].fill(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(lengths: &[usize], cells_max: usize, multiple: usize, expected: &[(&[usize], usize)]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|&(rows, width)| Rectangle {
                rows: rows.to_vec(),
                width,
            })
            .collect();
        assert_eq!(rectangles(lengths, cells_max, multiple), expected);
    }

    #[test]
    fn none() {
        check(&[], 100, 8, &[]);
    }
    #[test]
    fn sorted_by_length() {
        check(&[2, 9, 5], 100, 1, &[(&[1, 2, 0], 9)]);
    }
    #[test]
    fn cut_by_cells() {
        check(&[4, 4, 4], 8, 1, &[(&[0, 1], 4), (&[2], 4)]);
    }
    #[test]
    fn width_rounds_up() {
        check(&[5, 3], 16, 8, &[(&[0, 1], 8)]);
    }
    #[test]
    fn a_row_beyond_the_bound_stands_alone() {
        check(&[20, 3], 8, 1, &[(&[0], 20), (&[1], 3)]);
    }
}
