//! Distances between tokens, the rows of the table that they have, and the order in which those are kept.

use crate::kernel::NR_MAX;

/// Which row of the table of relative embeddings a distance has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Distances {
    /// The table has 2 · span rows; distance 0 has row `span`.
    pub span: usize,
    /// Where rows beyond span/2 stand for more and more distances: the distance, less 1, that has the
    /// last one. It is above span/2.
    pub logarithmic: Option<usize>,
}

impl Distances {
    /// The row of the distance query − key.
    fn row(&self, distance: isize) -> usize {
        let span = self.span as isize;
        let bucket = self.logarithmic.map_or(distance, |most| {
            let magnitude = self.bucket(distance.unsigned_abs(), most) as isize;
            distance.signum() * magnitude
        });
        (bucket + span).clamp(0, 2 * span - 1) as usize
    }

    /// Rounded as `transformers` does, each step to f32: one ulp would be another row.
    fn bucket(&self, distance: usize, most: usize) -> usize {
        let middle = self.span / 2;
        if distance <= middle {
            return distance;
        }
        let log = |ratio: f32| f64::from(ratio).ln() as f32;
        let part = log(distance as f32 / middle as f32) / log((most as f64 / middle as f64) as f32);
        (part * (middle - 1) as f32).ceil() as usize + middle
    }
}

/// The rows that the distances within a row of text have.
pub struct Offsets {
    tokens_max: usize,
    // Of the offsets key − query from −(tokens_max − 1) on: the row's place in `rows`. Behind the last
    // one stand NR_MAX copies of it, for padding behind the last key.
    ranks: Vec<u32>,
    rows: Vec<usize>,
}

impl Offsets {
    /// Those of rows of at most `tokens_max` tokens, 1 or more.
    pub fn new(distances: &Distances, tokens_max: usize) -> Self {
        let last = tokens_max as isize - 1;
        let (mut ranks, mut rows) = (Vec::new(), Vec::new());
        for offset in -last..=last {
            let row = distances.row(-offset);
            if rows.last() != Some(&row) {
                rows.push(row);
            }
            ranks.push(rows.len() as u32 - 1);
        }
        ranks.extend([rows.len() as u32 - 1; NR_MAX]);
        Self {
            tokens_max,
            ranks,
            rows,
        }
    }

    /// Rows of the table, in the order of ranks.
    pub fn rows(&self) -> &[usize] {
        &self.rows
    }

    /// Ranks of the offsets from key − query on.
    #[inline(always)]
    pub(super) fn ranks(&self, key: usize, query: usize) -> &[u32] {
        &self.ranks[self.tokens_max - 1 + key - query..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(span: usize, logarithmic: Option<usize>, expected: &[(isize, usize)]) {
        let distances = Distances { span, logarithmic };
        for &(distance, row) in expected {
            assert_eq!(distances.row(distance), row, "distance {distance}");
        }
    }

    /// Rows by `make_log_bucket_position` of `transformers` 5.24.
    #[test]
    fn far_distances_share_rows_by_logarithm() {
        let v3 = [
            (0, 256),
            (1, 257),
            (-1, 255),
            (128, 384),
            (-128, 128),
            (129, 385),
            (-129, 127),
            (131, 387),
            (140, 393),
            (200, 425),
            (300, 463),
            (400, 489),
            (510, 511),
            (511, 511),
            (-511, 1),
            (600, 511),
        ];
        check(256, Some(511), &v3);
        let small = [(8, 24), (9, 25), (12, 25), (20, 26), (40, 28), (100, 30)];
        check(16, Some(239), &small);
        check(16, Some(239), &[(238, 31), (300, 31), (-9, 7), (-239, 1)]);
        check(64, Some(69), &[(33, 98), (34, 99), (50, 115), (68, 127)]);
        // The least that a configuration may say.
        check(2, Some(2), &[(0, 2), (1, 3), (2, 3), (-1, 1), (-2, 1)]);
        check(3, None, &[(0, 3), (2, 5), (3, 5), (-3, 0), (-4, 0)]);
    }

    #[test]
    fn ranks_grow_by_one_at_most_and_name_their_rows() {
        for (span, logarithmic) in [(256, Some(511)), (64, Some(69)), (20, None), (2, Some(2))] {
            let distances = Distances { span, logarithmic };
            for tokens_max in [1, 2, 40, 512] {
                let offsets = Offsets::new(&distances, tokens_max);
                let ranks = offsets.ranks(0, tokens_max - 1);
                assert_eq!(ranks.len(), 2 * tokens_max - 1 + NR_MAX);
                assert!(ranks.windows(2).all(|pair| pair[1] - pair[0] <= 1));
                for (key, query) in [(0, 0), (tokens_max - 1, 0), (0, tokens_max - 1)] {
                    let row = offsets.rows()[offsets.ranks(key, query)[0] as usize];
                    assert_eq!(row, distances.row(query as isize - key as isize));
                }
            }
        }
    }
}
