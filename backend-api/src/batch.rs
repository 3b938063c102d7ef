//! The batch as it crosses: ragged rows, borrowed for one call, and the place for their scores.

use abi_stable::StableAbi;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Rows of tokens without padding, checked.
///
/// Row `i` is `input_ids[offsets[i]..offsets[i + 1]]`, never empty. The same [`check`](Self::check)
/// runs in the host before the call and in the plugin's library after it.
#[derive(Clone, Copy)]
pub struct RaggedBatch<'a> {
    input_ids: &'a [u32],
    type_ids: &'a [u32],
    offsets: &'a [u32],
    prefix_lens: &'a [u32],
    controls: &'a [RowControl<'a>],
    started: Instant,
}

/// One row's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// Token ids, special tokens included.
    pub input_ids: &'a [u32],
    /// Token type (segment) of each token.
    pub type_ids: &'a [u32],
}

/// Whether anybody still waits for a row. Frozen: it crosses by value.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct RowControl<'a> {
    /// Microseconds from the call's start until the row is of no use; `u64::MAX` for never.
    pub deadline_us: u64,
    /// The host clears it when nobody waits for the row any more.
    pub wanted: &'a AtomicBool,
}

/// The most that a batch may hold. Agreed at open: the least of what host and backend can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rows in a batch.
    pub rows_max: usize,
    /// Tokens in a batch.
    pub tokens_max: usize,
    /// Tokens in a row.
    pub row_tokens_max: usize,
}

/// What became of a row. Numbers are for ever; one that is not known reads as `Failed`.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RowStatus {
    /// Its logits are in place.
    Scored = 0,
    /// Nobody waits for it any more; it was not computed.
    Unwanted = 1,
    /// Its deadline passed; it was not computed.
    Expired = 2,
    /// The row itself cannot be scored (for example a token id beyond the vocabulary).
    Failed = 3,
    /// A logit came out as NaN or infinite; set by the host's side.
    NotFinite = 4,
    /// The plugin neither scored the row nor said why; set by the host's side before the call.
    Untouched = 255,
}

/// Where the scores go: `n_rows × n_labels` logits and a status for each row.
pub struct Scores<'a> {
    logits: &'a mut [f32],
    statuses: &'a mut [u8],
    n_labels: usize,
}

// === impl Limits ===

impl Limits {
    /// What both sides can do.
    pub fn and(&self, other: &Self) -> Self {
        Self {
            rows_max: self.rows_max.min(other.rows_max),
            tokens_max: self.tokens_max.min(other.tokens_max),
            row_tokens_max: self.row_tokens_max.min(other.row_tokens_max),
        }
    }
}

// === impl RaggedBatch ===

impl<'a> RaggedBatch<'a> {
    /// Checks the five slices against each other and against `limits`; `started` is when the
    /// deadlines' clock began.
    ///
    /// # Errors
    /// What is wrong, naming the row where one is.
    pub fn check(
        input_ids: &'a [u32],
        type_ids: &'a [u32],
        offsets: &'a [u32],
        prefix_lens: &'a [u32],
        controls: &'a [RowControl<'a>],
        limits: &Limits,
        started: Instant,
    ) -> Result<Self, String> {
        let Some((&first, ends)) = offsets.split_first() else {
            return Err("offsets must hold one more entry than rows".to_owned());
        };
        if first != 0 {
            return Err(format!("offsets must start at 0, not {first}"));
        }
        let (n_rows, n_tokens) = (ends.len(), input_ids.len());
        if let Some(row) = offsets.windows(2).position(|pair| pair[1] <= pair[0]) {
            return Err(format!("row {row} is empty or ends before it starts"));
        }
        let end = ends.last().map_or(0, |&end| end as usize);
        if end != n_tokens {
            return Err(format!(
                "offsets end at {end}, but there are {n_tokens} input ids"
            ));
        }
        if type_ids.len() != n_tokens {
            return Err(format!(
                "{} type ids for {n_tokens} input ids",
                type_ids.len()
            ));
        }
        if controls.len() != n_rows {
            return Err(format!("{} row controls for {n_rows} rows", controls.len()));
        }
        if !prefix_lens.is_empty() && prefix_lens.len() != n_rows {
            return Err(format!(
                "{} prefix lengths for {n_rows} rows",
                prefix_lens.len()
            ));
        }
        if limits.rows_max < n_rows {
            return Err(format!(
                "{n_rows} rows, at most {} were agreed",
                limits.rows_max
            ));
        }
        if limits.tokens_max < n_tokens {
            return Err(format!(
                "{n_tokens} tokens, at most {} were agreed",
                limits.tokens_max
            ));
        }
        let batch = Self {
            input_ids,
            type_ids,
            offsets,
            prefix_lens,
            controls,
            started,
        };
        batch.check_rows(limits.row_tokens_max)?;
        Ok(batch)
    }

    fn check_rows(&self, row_tokens_max: usize) -> Result<(), String> {
        for row in 0..self.n_rows() {
            let n_tokens = self.row(row).input_ids.len();
            if row_tokens_max < n_tokens {
                return Err(format!(
                    "row {row} has {n_tokens} tokens, at most {row_tokens_max} were agreed"
                ));
            }
            if n_tokens < self.prefix_len(row) {
                return Err(format!(
                    "row {row} has a prefix of more than its {n_tokens} tokens"
                ));
            }
        }
        Ok(())
    }

    /// Rows in the batch.
    pub fn n_rows(&self) -> usize {
        self.controls.len()
    }

    /// Tokens in the batch, the sum over rows.
    pub fn n_tokens(&self) -> usize {
        self.input_ids.len()
    }

    /// All rows' token ids, one after the other.
    pub fn input_ids(&self) -> &'a [u32] {
        self.input_ids
    }

    /// All rows' token types, one after the other.
    pub fn type_ids(&self) -> &'a [u32] {
        self.type_ids
    }

    /// Where each row starts; one entry more than rows.
    pub fn offsets(&self) -> &'a [u32] {
        self.offsets
    }

    /// The row of this index.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row(&self, row: usize) -> Row<'a> {
        let range = self.offsets[row] as usize..self.offsets[row + 1] as usize;
        Row {
            input_ids: &self.input_ids[range.clone()],
            type_ids: &self.type_ids[range],
        }
    }

    /// How many leading tokens this row shares with the row before it: what a decoder may reuse.
    pub fn prefix_len(&self, row: usize) -> usize {
        self.prefix_lens.get(row).map_or(0, |&len| len as usize)
    }

    /// Prefix lengths as given: one for each row, or none at all.
    pub fn prefix_lens(&self) -> &'a [u32] {
        self.prefix_lens
    }

    /// Deadlines and flags, one for each row.
    pub fn controls(&self) -> &'a [RowControl<'a>] {
        self.controls
    }

    /// Whether the row should still be computed: `Scored` if so, else `Unwanted` or `Expired`.
    pub fn state(&self, row: usize) -> RowStatus {
        let control = &self.controls[row];
        if !control.wanted.load(Ordering::Relaxed) {
            return RowStatus::Unwanted;
        }
        let expired = control.deadline_us != u64::MAX
            && Duration::from_micros(control.deadline_us) <= self.started.elapsed();
        if expired {
            RowStatus::Expired
        } else {
            RowStatus::Scored
        }
    }

    /// Whether the row should still be computed.
    pub fn wanted(&self, row: usize) -> bool {
        self.state(row) == RowStatus::Scored
    }
}

// === impl RowStatus ===

impl RowStatus {
    /// The status of this number; `Failed` for one that a newer plugin brought along.
    pub fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Scored,
            1 => Self::Unwanted,
            2 => Self::Expired,
            4 => Self::NotFinite,
            255 => Self::Untouched,
            _ => Self::Failed,
        }
    }
}

// === impl Scores ===

impl<'a> Scores<'a> {
    /// `logits` must hold `statuses.len() × n_labels` values.
    ///
    /// # Errors
    /// When it does not.
    pub fn check(
        logits: &'a mut [f32],
        statuses: &'a mut [u8],
        n_labels: usize,
    ) -> Result<Self, String> {
        if n_labels == 0 || statuses.len().checked_mul(n_labels) != Some(logits.len()) {
            let (n_logits, n_rows) = (logits.len(), statuses.len());
            return Err(format!(
                "{n_logits} logits for {n_rows} rows of {n_labels} labels"
            ));
        }
        Ok(Self {
            logits,
            statuses,
            n_labels,
        })
    }

    /// Rows there is room for.
    pub fn n_rows(&self) -> usize {
        self.statuses.len()
    }

    /// Logits for each row.
    pub fn n_labels(&self) -> usize {
        self.n_labels
    }

    /// Puts a row's logits in place.
    ///
    /// # Panics
    /// When there is no such row or `logits` is not `n_labels` long.
    pub fn set(&mut self, row: usize, logits: &[f32]) {
        let n_labels = self.n_labels;
        self.logits[row * n_labels..(row + 1) * n_labels].copy_from_slice(logits);
        self.statuses[row] = RowStatus::Scored as u8;
    }

    /// Says why a row has no logits.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn fail(&mut self, row: usize, status: RowStatus) {
        self.statuses[row] = status as u8;
    }

    /// A row's logits if it was scored, else why it was not.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row(&self, row: usize) -> Result<&[f32], RowStatus> {
        match RowStatus::from_number(self.statuses[row]) {
            RowStatus::Scored => Ok(&self.logits[row * self.n_labels..(row + 1) * self.n_labels]),
            status => Err(status),
        }
    }

    /// The raw slices, for crossing.
    pub(crate) fn parts(&mut self) -> (&mut [f32], &mut [u8]) {
        (self.logits, self.statuses)
    }
}
