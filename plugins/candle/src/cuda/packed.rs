//! Rows without padding, one behind another, and what goes up with them: all of it in one copy.

use super::twins::{TILE_QUERIES, TILE_WORDS};
use crate::model::Model;
use crate::rows::{Lists, Rows};
use backend_api::Row;
use candle_core::{Result, Tensor, bail};
use std::cmp::Reverse;
use std::ops::Range;

/// What kernels need of packed rows beyond the lists of all rows.
pub(crate) struct Packed {
    /// The first cell of each row, and behind the last.
    pub(crate) starts: Tensor,
    /// Where each row's picked token stands in it.
    pick_positions: Tensor,
    n_rows: usize,
    n_cells: usize,
    /// All cells look at all of their row.
    all: Tiles,
    /// One cell a row looks at all of it.
    picks: Tiles,
    /// One cell a row, and nothing else.
    alone: Tiles,
}

/// Attention's work.
pub(super) struct Tiles {
    pub(super) words: Tensor,
    pub(super) n: usize,
    /// Whether each has one query.
    pub(super) of_one: bool,
}

/// What the sizes of a batch's launches follow from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) n_rows: usize,
    pub(super) n_cells: usize,
    n_tiles: usize,
    /// Tokens of the longest row that there may be.
    pub(super) width: usize,
}

/// Rows as they go up, those that fill up a shape behind those that were asked for.
pub(super) struct Words {
    lists: Lists,
    starts: Vec<u32>,
    pick_positions: Vec<u32>,
    all: Vec<u32>,
    picks: Vec<u32>,
    alone: Vec<u32>,
    shape: Shape,
}

/// Words that go up with rows of so many tokens in all.
pub(super) fn words_max(n_rows: usize, n_cells: usize) -> usize {
    // Ids, types, positions and what a decoder reads; starts, picks and their positions; three kinds of tiles.
    let n_tiles = 2 * n_rows + tiles_max(n_rows, n_cells);
    4 * n_cells + 3 * n_rows + 1 + TILE_WORDS * n_tiles
}

/// Tiles of rows of so many tokens in all, each row's last one as empty as it may be.
fn tiles_max(n_rows: usize, n_cells: usize) -> usize {
    n_rows + n_cells / TILE_QUERIES
}

/// Of the longest rows first, so that the last to end are short: the first query's cell, queries, the first one's
/// position, the row's first cell, its keys.
fn tiles_of_all(cells: &[Range<usize>]) -> Vec<u32> {
    let mut order: Vec<_> = cells.iter().collect();
    order.sort_by_key(|cells| Reverse(cells.len()));
    let mut tiles = Vec::new();
    for cells in order {
        for first in (0..cells.len()).step_by(TILE_QUERIES) {
            let n_queries = TILE_QUERIES.min(cells.len() - first);
            let tile = [
                cells.start + first,
                n_queries,
                first,
                cells.start,
                cells.len(),
            ];
            tiles.extend(tile.map(|word| word as u32));
        }
    }
    tiles
}

fn tiles_of_picks(cells: &[Range<usize>], positions: &[u32]) -> Vec<u32> {
    let rows = cells.iter().zip(positions).enumerate();
    let tiles = rows.flat_map(|(row, (cells, &position))| {
        [
            row as u32,
            1,
            position,
            cells.start as u32,
            cells.len() as u32,
        ]
    });
    tiles.collect()
}

/// Until there are as many, the last one once more: it computes what it has computed.
fn repeat_last(tiles: &mut Vec<u32>, n_tiles: usize) {
    while tiles.len() < n_tiles * TILE_WORDS {
        tiles.extend_from_within(tiles.len() - TILE_WORDS..);
    }
}

// === impl Shape ===

impl Shape {
    /// Of these rows and no others.
    pub(super) fn of(rows: &[Row<'_>]) -> Self {
        let lens = || rows.iter().map(|row| row.input_ids.len());
        Self {
            n_rows: rows.len(),
            n_cells: lens().sum(),
            n_tiles: lens().map(|len| len.div_ceil(TILE_QUERIES)).sum(),
            width: lens().max().unwrap_or(0),
        }
    }

    /// Of any rows of so many tokens in all, none of more than `width`.
    pub(super) fn any(n_rows: usize, n_cells: usize, width: usize) -> Self {
        Self {
            n_rows,
            n_cells,
            n_tiles: tiles_max(n_rows, n_cells),
            width: width.min(n_cells),
        }
    }

    /// How many rows of how many tokens in all make one of this shape out of another, if any do.
    fn left_by(self, other: Self) -> Option<(usize, usize)> {
        let n_rows = self.n_rows.checked_sub(other.n_rows)?;
        let n_cells = self.n_cells.checked_sub(other.n_cells)?;
        // A row has a token at least.
        let fits = match n_rows {
            0 => n_cells == 0,
            _ => (n_rows..=n_rows * self.width).contains(&n_cells),
        };
        (fits && other.width <= self.width).then_some((n_rows, n_cells))
    }

    /// Whether rows of another shape become rows of this one by others beside them.
    pub(super) fn holds(self, other: Self) -> bool {
        self.left_by(other).is_some()
    }

    /// The tokens of each of those others.
    pub(super) fn beside(self, other: Self) -> Option<Vec<usize>> {
        let (n_rows, n_cells) = self.left_by(other)?;
        let lens = (0..n_rows).map(|row| n_cells / n_rows + usize::from(row < n_cells % n_rows));
        Some(lens.collect())
    }
}

// === impl Words ===

impl Words {
    /// Of rows of this shape, or such that others beside them make it.
    pub(super) fn new(rows: &[Row<'_>], shape: Shape, model: &dyn Model) -> Result<Self> {
        let Some(beside) = shape.beside(Shape::of(rows)) else {
            bail!("{:?} as {shape:?}", Shape::of(rows));
        };
        // They end as a row does that somebody asked for: models look for that.
        let last = rows.last().and_then(|row| row.input_ids.last());
        let longest = beside.iter().copied().max().unwrap_or(0);
        let ids = vec![last.copied().unwrap_or(0); longest];
        let types = vec![0; longest];
        let mut rows = rows.to_vec();
        rows.extend(beside.iter().map(|&len| Row {
            input_ids: &ids[..len],
            type_ids: &types[..len],
        }));
        let lists = Lists::new(&rows, None, model);
        let mut starts = vec![0];
        starts.extend(lists.cells.iter().map(|cells| cells.end as u32));
        let places = lists.picks.iter().zip(&lists.cells);
        let pick_positions: Vec<_> = places
            .map(|(pick, cells)| pick - cells.start as u32)
            .collect();
        let mut all = tiles_of_all(&lists.cells);
        repeat_last(&mut all, shape.n_tiles);
        let alone = (0..rows.len() as u32).flat_map(|row| [row, 1, 0, row, 1]);
        Ok(Self {
            all,
            picks: tiles_of_picks(&lists.cells, &pick_positions),
            alone: alone.collect(),
            lists,
            starts,
            pick_positions,
            shape,
        })
    }

    /// One behind another.
    pub(super) fn parts(&self) -> [&[u32]; 10] {
        [
            &self.lists.ids,
            &self.lists.types,
            &self.lists.positions,
            &self.lists.picks,
            &self.lists.begun,
            &self.starts,
            &self.pick_positions,
            &self.all,
            &self.picks,
            &self.alone,
        ]
    }

    /// The rows, when their words are on the GPU as one tensor.
    pub(super) fn rows(self, sent: &Tensor) -> Result<Rows> {
        let mut end = 0;
        let parts = self.parts().map(|part| {
            let start = end;
            end += part.len();
            sent.narrow(0, start, part.len())
        });
        let [
            ids,
            types,
            positions,
            picked,
            begun,
            starts,
            pick_positions,
            all,
            picks,
            alone,
        ] = parts;
        let tiles = |words: Result<Tensor>, of_one| -> Result<Tiles> {
            let words = words?;
            let n = words.elem_count() / TILE_WORDS;
            Ok(Tiles { words, n, of_one })
        };
        let width = self.shape.width;
        Ok(Rows {
            ids: ids?,
            types: types?,
            positions: positions?,
            picks: picked?,
            begun: begun?,
            width,
            packed: Some(Packed {
                starts: starts?,
                pick_positions: pick_positions?,
                n_rows: self.shape.n_rows,
                n_cells: self.shape.n_cells,
                all: tiles(all, width == 1)?,
                picks: tiles(picks, true)?,
                alone: tiles(alone, true)?,
            }),
            lens: self.lists.lens,
            cells: self.lists.cells,
        })
    }
}

// === impl Packed ===

impl Packed {
    /// The tiles of so many queries that look at so many keys.
    pub(super) fn tiles(&self, n_queries: usize, n_keys: usize) -> Result<&Tiles> {
        // Where every row is one token, all three are the same.
        match (n_queries, n_keys) {
            (queries, keys) if queries == self.n_cells && keys == self.n_cells => Ok(&self.all),
            (queries, keys) if queries == self.n_rows && keys == self.n_cells => Ok(&self.picks),
            (queries, keys) if queries == self.n_rows && keys == self.n_rows => Ok(&self.alone),
            _ => bail!(
                "{n_queries} queries and {n_keys} keys of {} rows in {} cells",
                self.n_rows,
                self.n_cells
            ),
        }
    }

    /// Where so many cells stand in their rows.
    pub(super) fn positions<'a>(&'a self, n_cells: usize, rows: &'a Rows) -> &'a Tensor {
        match n_cells == self.n_cells {
            true => &rows.positions,
            false => &self.pick_positions,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_rows_come_first_and_in_parts() {
        let tiles = tiles_of_all(&[0..3, 3..133, 133..134]);
        let expected = [
            [3, 64, 0, 3, 130],
            [67, 64, 64, 3, 130],
            [131, 2, 128, 3, 130],
            [0, 3, 0, 0, 3],
            [133, 1, 0, 133, 1],
        ];
        assert_eq!(tiles, expected.concat());
    }

    #[test]
    fn a_picked_token_looks_at_its_row() {
        let tiles = tiles_of_picks(&[0..3, 3..10], &[0, 6]);
        assert_eq!(tiles, [[0, 1, 0, 0, 3], [1, 1, 6, 3, 7]].concat());
    }

    #[test]
    fn rows_beside_others_make_a_shape() {
        let lens = |n_rows, n_cells, width| {
            let other = Shape::any(n_rows, n_cells, width);
            Shape::any(4, 64, 32).beside(other)
        };
        assert_eq!(lens(1, 40, 32), Some(vec![8, 8, 8]));
        assert_eq!(lens(2, 61, 31), Some(vec![2, 1]));
        assert_eq!(lens(4, 64, 16), Some(vec![]));
        // As many rows but fewer tokens, more rows, too few tokens for a row each, and too many for those there would be.
        for (n_rows, n_cells, width) in [(4, 63, 16), (5, 60, 12), (1, 62, 32), (3, 30, 10)] {
            assert_eq!(lens(n_rows, n_cells, width), None, "{n_rows} {n_cells}");
        }
        assert_eq!(lens(1, 33, 33), None);
    }

    #[test]
    fn tiles_are_repeated_up_to_a_shape() {
        let mut tiles = tiles_of_all(&[0..65, 65..66]);
        repeat_last(&mut tiles, 5);
        let expected = [
            [0, 64, 0, 0, 65],
            [64, 1, 64, 0, 65],
            [65, 1, 0, 65, 1],
            [65, 1, 0, 65, 1],
            [65, 1, 0, 65, 1],
        ];
        assert_eq!(tiles, expected.concat());
    }

    #[test]
    fn there_is_room_for_all_that_goes_up() {
        for lens in [vec![1; 9], vec![64, 65, 63, 1], vec![8_192]] {
            let n_cells: usize = lens.iter().sum();
            let mut end = 0;
            let cells = lens.iter().map(|len| {
                end += len;
                end - len..end
            });
            let n_words = tiles_of_all(&cells.collect::<Vec<_>>()).len();
            let n_rows = lens.len();
            let used = 4 * n_cells + 3 * n_rows + 1 + n_words + 2 * TILE_WORDS * n_rows;
            assert!(used <= words_max(n_rows, n_cells), "{lens:?}");
        }
    }
}
