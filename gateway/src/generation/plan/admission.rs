//! Who is admitted, and what those are told who are not.

use super::Plan;
use crate::generation::cost::{Amount, Size};
use crate::generation::forecast::{Newcomer, Verdict};
use crate::generation::queue::{Full, Promise, Reservation, Waiting};
use crate::score::{Priority, ScoreError};
use std::time::{Duration, Instant};

/// The least that `Retry-After` says: a client that comes back sooner finds the same queue.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);
/// The most that `Retry-After` says: beyond this the prediction is no better than a guess.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// A request that asks for room and time.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// Rows.
    pub rows: usize,
    /// Bytes of text in the rows: the query's stand in each.
    pub row_bytes: usize,
    /// Bytes of text to tokenize: the query's once.
    pub text_bytes: usize,
    /// What the rows are cut to in all, however long the text is.
    pub tokens_max: usize,
    /// When the scores are of no use any more.
    pub deadline: Instant,
    /// How urgent it is.
    pub priority: Priority,
}

// === impl Plan ===

impl Plan {
    /// Decides whether a request will be in time and makes no other late, and keeps its place.
    ///
    /// # Errors
    /// `Overloaded` when there is no room or no time before its deadline; `TooLarge` when it alone takes
    /// longer than that; `Unavailable` when no worker lives.
    pub fn admit(&mut self, ask: &Ask, now: Instant) -> Result<Promise, ScoreError> {
        let admitted = self.try_admit(ask, now);
        if let Err(ScoreError::Overloaded { .. }) = admitted {
            self.crowd.refuse(now);
        }
        admitted
    }

    fn try_admit(&mut self, ask: &Ask, now: Instant) -> Result<Promise, ScoreError> {
        self.check_serves()?;
        let asked = self.estimate(ask);
        // An empty queue admits whatever comes: the prediction may be wrong, and refusing it now would
        // refuse it for ever.
        if self.queue.amount().rows > 0 {
            self.check_time(&asked, now)?;
        }
        let alone_s = self.forecast().alone_s(asked.waiting.amount);
        let promise = self.queue.reserve(asked, alone_s).map_err(|full| {
            let (rows, tokens) = (self.queue.n_rows(), self.queue.n_tokens());
            let Full { bound, max } = full;
            overloaded(
                format!(
                    "the queue is full: {rows} rows of {tokens} tokens wait, and this request would \
                     exceed {bound} = {max}"
                ),
                self.forecast().done(self.queue.amount()),
            )
        })?;
        self.arrivals.count(now);
        self.requests_in_flight += 1;
        Ok(promise)
    }

    fn check_serves(&self) -> Result<(), ScoreError> {
        let why = if self.closed {
            "the server is shutting down"
        } else if self.workers == 0 && self.workers_stuck > 0 {
            "none of the model's workers comes back from its batch"
        } else if self.workers == 0 {
            "the model's backend is being restarted"
        } else {
            return Ok(());
        };
        Err(ScoreError::Unavailable {
            why: why.to_owned(),
            retry_after: RETRY_AFTER_MIN,
        })
    }

    fn estimate(&self, ask: &Ask) -> Reservation {
        let tokens = self
            .text
            .tokens(ask.rows, ask.row_bytes)
            .min(ask.tokens_max);
        let each = Size::row(tokens / ask.rows.max(1));
        let size = Size {
            tokens: tokens as f64,
            squares: each.squares * ask.rows as f64,
        };
        Reservation {
            waiting: Waiting {
                amount: Amount {
                    rows: ask.rows,
                    size,
                },
                deadline: ask.deadline,
            },
            text_bytes: ask.text_bytes,
            priority: ask.priority,
        }
    }

    fn check_time(&self, asked: &Reservation, now: Instant) -> Result<(), ScoreError> {
        let waiting = asked.waiting;
        let text_bytes = self.queue.text_bytes_until(asked.text_bytes);
        let newcomer = Newcomer {
            place: self
                .queue
                .place(self.forecast().alone_s(waiting.amount), asked.priority),
            waiting,
            tokenizing_s: self.text.seconds(text_bytes),
            is_too_much: self.crowd.is_too_much(now),
        };
        let left_s = waiting
            .deadline
            .saturating_duration_since(now)
            .as_secs_f64();
        match self.forecast().judge(&self.queue, &newcomer, now) {
            Verdict::InTime => Ok(()),
            // Not `Overloaded`, which comes with `Retry-After`: the same request is not done sooner when
            // it comes again.
            Verdict::TooMuch { needs } => Err(ScoreError::TooLarge {
                param: "documents".to_owned(),
                why: format!(
                    "this request alone needs about {:.1} s, its deadline leaves {left_s:.1} s: send \
                     fewer documents or allow more time",
                    needs.as_secs_f64()
                ),
            }),
            Verdict::Late { ahead, retry_after } => {
                let ahead_s = ahead.as_secs_f64();
                let why = match self.wait_max {
                    Some(max) if max < ahead => format!(
                        "{ahead_s:.1} s of queued work go first, more than queue.wait_max = {max:?}"
                    ),
                    _ => format!(
                        "{ahead_s:.1} s of queued work go first, too much for the {left_s:.1} s that \
                         the request's deadline leaves"
                    ),
                };
                Err(overloaded(why, retry_after))
            }
            Verdict::Crowded { ahead, retry_after } => Err(overloaded(
                format!(
                    "there is more to do than can be done, and {:.2} s of queued work go first",
                    ahead.as_secs_f64()
                ),
                retry_after,
            )),
            Verdict::Crowding { queued } => Err(overloaded(
                format!(
                    "{:.1} s of work are queued, and this request would make one of them late",
                    queued.as_secs_f64()
                ),
                RETRY_AFTER_MIN,
            )),
        }
    }
}

fn overloaded(why: String, wait: Duration) -> ScoreError {
    ScoreError::Overloaded {
        why,
        retry_after: wait.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX),
    }
}
