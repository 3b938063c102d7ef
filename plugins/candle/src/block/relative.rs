//! DeBERTa's disentangled attention: terms of scores that queries and keys have with embeddings of their
//! distance.

use super::product::product;
use super::{Steps, bytes_of, fused};
use crate::numbers::Numbers;
use candle_core::{Result, Tensor};
use std::sync::Arc;

/// Which row of the table of relative embeddings a distance has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buckets {
    /// The table has 2 · span rows; distance 0 has row `span`.
    pub(crate) span: usize,
    /// Where rows beyond span/2 stand for more and more distances: the distance, less 1, that has the
    /// last one. It is above span/2.
    pub(crate) logarithmic: Option<usize>,
}

impl Buckets {
    /// The row of the distance query − key.
    pub(crate) fn row(&self, distance: isize) -> usize {
        let span = self.span as isize;
        let bucket = self.logarithmic.map_or(distance, |most| {
            let magnitude = self.bucket(distance.unsigned_abs(), most) as isize;
            distance.signum() * magnitude
        });
        (bucket + span).clamp(0, 2 * span - 1) as usize
    }

    /// Rounded to f32 at each step, as `transformers` does: one ulp would be another row.
    fn bucket(&self, distance: usize, most: usize) -> usize {
        let middle = self.span / 2;
        if distance <= middle {
            return distance;
        }
        let log = |ratio: f32| f64::from(ratio).ln() as f32;
        let far = log((most as f64 / middle as f64) as f32);
        let part = log(distance as f32 / middle as f32) / far;
        (part * (middle - 1) as f32).ceil() as usize + middle
    }
}

/// The rows that all distances have, from −(reach − 1) on: shared by the layers.
pub(crate) struct Lookup {
    pub(crate) reach: usize,
    rows: Vec<u32>,
    /// The same on the device.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code))]
    pub(crate) table: Tensor,
}

impl Lookup {
    /// Of rows of at most `reach` tokens.
    pub(crate) fn new(numbers: &Numbers, buckets: &Buckets, reach: usize) -> Result<Self> {
        let last = reach as isize - 1;
        let rows = (-last..=last).map(|distance| buckets.row(distance) as u32);
        let rows: Vec<_> = rows.collect();
        Ok(Self {
            reach,
            table: Tensor::from_slice(&rows, rows.len(), &numbers.device)?,
            rows,
        })
    }

    /// The first row that distances below `width` look up, and how many they may: rows rise with distances.
    pub(crate) fn range(&self, width: usize) -> (usize, usize) {
        let first = self.rows[self.reach - width];
        let last = self.rows[self.reach + width - 2];
        (first as usize, (last - first + 1) as usize)
    }

    /// The rows of distances below `width`, from the first of the table that is among them on; that one, and how
    /// many there are.
    fn within(&self, width: usize) -> (Vec<u32>, usize, usize) {
        let near = &self.rows[self.reach - width..self.reach + width - 1];
        let (first, n_rows) = self.range(width);
        let rows = near.iter().map(|row| row - first as u32).collect();
        (rows, first, n_rows)
    }
}

/// One layer's tables.
pub(crate) struct Relative {
    pub(crate) lookup: Arc<Lookup>,
    /// What queries meet ("c2p"), as (heads, dim, rows of the table).
    pub(crate) keys: Option<Tensor>,
    /// What keys meet ("p2c"), alike.
    pub(crate) queries: Option<Tensor>,
}

impl Relative {
    /// Terms of keys with the table, (heads, keys, rows); of nothing if there are none.
    pub(super) fn by_key(&self, k: &Tensor) -> Result<Tensor> {
        let (_, first, n_rows) = self.lookup.within(k.dim(1)?);
        terms(k, self.queries.as_ref(), first, n_rows)
    }

    /// Adds both terms to scores (heads, queries, keys) of one row.
    pub(super) fn add(
        &self,
        scores: Tensor,
        q: &Tensor,
        by_key: &Tensor,
        first_query: usize,
    ) -> Result<Tensor> {
        let (_, n_queries, n_keys) = scores.dims3()?;
        let (rows, first, n_rows) = self.lookup.within(n_keys);
        let by_query = terms(q, self.keys.as_ref(), first, n_rows)?;
        if Steps::of(&scores) == Steps::Fused {
            let step = fused::AddRelative {
                rows: &rows,
                n_rows,
                by_query: self.keys.is_some(),
                by_key: self.queries.is_some(),
                first_query,
            };
            scores.inplace_op3(&by_query, by_key, &step)?;
            return Ok(scores);
        }
        let row = |query: usize, key: usize| rows[n_keys - 1 + first_query + query - key];
        let index = |lines: usize, columns: usize, row: &dyn Fn(usize, usize) -> u32| {
            let cells = (0..lines).flat_map(|line| (0..columns).map(move |column| (line, column)));
            let rows: Vec<u32> = cells.map(|(line, column)| row(line, column)).collect();
            Tensor::from_vec(rows, (1, lines, columns), q.device())?
                .broadcast_as((q.dim(0)?, lines, columns))?
                .contiguous()
        };
        let mut sum = scores;
        if self.keys.is_some() {
            sum = (sum + by_query.gather(&index(n_queries, n_keys, &row)?, 2)?)?;
        }
        if self.queries.is_some() {
            let turned =
                by_key.gather(&index(n_keys, n_queries, &|key, query| row(query, key))?, 2)?;
            sum = (sum + turned.transpose(1, 2)?)?;
        }
        Ok(sum)
    }

    pub(super) fn n_bytes(&self) -> usize {
        self.keys.iter().chain(&self.queries).map(bytes_of).sum()
    }
}

/// (heads, positions, dim) · (heads, dim, rows), of these rows of the table.
fn terms(x: &Tensor, table: Option<&Tensor>, first: usize, n_rows: usize) -> Result<Tensor> {
    match table {
        Some(table) => product(x, &table.narrow(2, first, n_rows)?),
        None => Tensor::zeros((1, 1, 1), x.dtype(), x.device()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers::Dtype;
    use candle_core::{DType, Device};

    #[track_caller]
    fn check(span: usize, logarithmic: Option<usize>, expected: &[(isize, usize)]) {
        let buckets = Buckets { span, logarithmic };
        for &(distance, row) in expected {
            assert_eq!(buckets.row(distance), row, "distance {distance}");
        }
    }

    /// Rows by `make_log_bucket_position` of `transformers` 5.24.
    #[test]
    fn far_distances_share_rows_by_logarithm() {
        check(
            256,
            Some(511),
            &[(0, 256), (-1, 255), (128, 384), (-129, 127)],
        );
        check(
            256,
            Some(511),
            &[(131, 387), (200, 425), (510, 511), (-511, 1), (600, 511)],
        );
        check(
            16,
            Some(239),
            &[(8, 24), (9, 25), (20, 26), (238, 31), (-239, 1)],
        );
        check(3, None, &[(0, 3), (2, 5), (3, 5), (-3, 0), (-4, 0)]);
    }

    #[test]
    fn only_rows_within_reach_are_looked_up() {
        let buckets = Buckets {
            span: 16,
            logarithmic: Some(239),
        };
        let numbers = Numbers {
            dtype: Dtype::F32,
            compute: DType::F32,
            device: Device::Cpu,
        };
        let lookup = Lookup::new(&numbers, &buckets, 100).unwrap();
        assert_eq!(lookup.within(3), (vec![0, 1, 2, 3, 4], 14, 5));
    }
}
