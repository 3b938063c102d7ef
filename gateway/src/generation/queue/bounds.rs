//! What may wait, and what one batch may hold.

use crate::generation::cost::Amount;
use crate::generation::hold::HoldBounds;
use std::time::Duration;

/// A token's id and type in memory, 32 bits each.
const TOKEN_BYTES: usize = 8;

/// What may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueBounds {
    /// Rows.
    pub rows_max: usize,
    /// Tokens.
    pub tokens_max: usize,
    /// Requests.
    pub requests_max: usize,
    /// Bytes of tokens that wait, and of texts that are being tokenized.
    pub bytes_max: usize,
    /// From the queue's door until a request's first row is taken; `None` for until its deadline.
    pub wait_max: Option<Duration>,
}

/// What one batch may hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchBounds {
    /// Rows.
    pub rows_max: usize,
    /// Tokens.
    pub tokens_max: usize,
    /// Predicted time; one row is taken whatever it costs.
    pub time_max: Duration,
    /// How long it may be held back for more rows.
    pub hold: HoldBounds,
}

/// No room: the bound that is reached, and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// A key of the configuration.
    pub bound: &'static str,
    /// In the bound's unit.
    pub max: usize,
}

// === impl QueueBounds ===

impl QueueBounds {
    /// Whether so many requests have room, with rows of this amount and texts of so many bytes that are
    /// still to be tokenized.
    pub(super) fn check(
        &self,
        n_requests: usize,
        amount: Amount,
        text_bytes: usize,
    ) -> Result<(), Full> {
        let n_tokens = amount.size.tokens as usize;
        let sizes = [
            ("queue.rows_max", amount.rows, self.rows_max),
            ("queue.tokens_max", n_tokens, self.tokens_max),
            ("queue.requests_max", n_requests, self.requests_max),
            ("queue.bytes_max", bytes(amount, text_bytes), self.bytes_max),
        ];
        match sizes.into_iter().find(|(_, size, max)| max < size) {
            Some((bound, _, max)) => Err(Full { bound, max }),
            None => Ok(()),
        }
    }
}

/// Memory of rows, and of texts beside them.
pub(super) fn bytes(amount: Amount, text_bytes: usize) -> usize {
    text_bytes.saturating_add(TOKEN_BYTES * amount.size.tokens as usize)
}
