//! Rows without padding, one behind another, and what goes up with them: all of it in one copy.

use super::driver::{Buffers, Stream};
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

/// Words that go up with rows of so many tokens in all.
pub(super) fn words_max(n_rows: usize, n_cells: usize) -> usize {
    // Ids, types, positions and what a decoder reads; starts, picks and their positions; three kinds of tiles.
    let n_tiles = 3 * n_rows + n_cells / TILE_QUERIES;
    4 * n_cells + 3 * n_rows + 1 + TILE_WORDS * n_tiles
}

/// Sends rows up.
pub(super) fn send(
    stream: &Stream,
    buffers: &mut Buffers,
    rows: &[Row<'_>],
    model: &dyn Model,
) -> Result<Rows> {
    let lists = Lists::new(rows, None, model);
    let n_cells = lists.ids.len();
    let mut starts = vec![0];
    starts.extend(lists.cells.iter().map(|cells| cells.end as u32));
    let places = lists.picks.iter().zip(&lists.cells);
    let pick_positions: Vec<_> = places
        .map(|(pick, cells)| pick - cells.start as u32)
        .collect();
    let all = tiles_of_all(&lists.cells);
    let picks = tiles_of_picks(&lists.cells, &pick_positions);
    let alone: Vec<_> = (0..rows.len() as u32)
        .flat_map(|row| [row, 1, 0, row, 1])
        .collect();
    let parts = [
        &lists.ids,
        &lists.types,
        &lists.positions,
        &lists.picks,
        &lists.begun,
        &starts,
        &pick_positions,
        &all,
        &picks,
        &alone,
    ];
    let sent = buffers.send(stream, &parts.map(Vec::as_slice))?;
    let mut end = 0;
    let mut part = |words: &[u32]| {
        let start = end;
        end += words.len();
        sent.narrow(0, start, words.len())
    };
    let width = lists.lens.iter().copied().max().unwrap_or(0);
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
    ] = parts.map(|words| part(words));
    let tiles = |words: Result<Tensor>, of_one| -> Result<Tiles> {
        let words = words?;
        let n = words.elem_count() / TILE_WORDS;
        Ok(Tiles { words, n, of_one })
    };
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
            n_rows: rows.len(),
            n_cells,
            all: tiles(all, width == 1)?,
            picks: tiles(picks, true)?,
            alone: tiles(alone, true)?,
        }),
        lens: lists.lens,
        cells: lists.cells,
    })
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
