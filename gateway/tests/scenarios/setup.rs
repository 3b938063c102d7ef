//! What a scenario is drawn to be: the server's bounds, its load, and what goes wrong.

use crate::draw::Random;
use gateway::cache::Key;
use gateway::generation::Identity;
use gateway::generation::hold::HoldBounds;
use gateway::generation::queue::{BatchBounds, QueueBounds};
use gateway::score::{Form, Priority, Texts};
use std::sync::LazyLock;
use std::time::Duration;

pub(crate) const QUERIES: usize = 4;
pub(crate) const DOCUMENTS: usize = 120;
/// A batch costs this beside its rows, and a token this: a row of 7 tokens takes 1.4 ms.
pub(crate) const BATCH_US: f64 = 500.0;
pub(crate) const TOKEN_US: f64 = 200.0;
pub(crate) const ROWS_MAX: usize = 60;
/// Of a request that exceeds the whole queue.
const LARGE_DOCUMENTS: usize = ROWS_MAX + 20;
/// One worker's rows of 7 tokens, with a part of their batches.
const REQUEST_US: f64 = 3.2 * 1_700.0;
/// A deadline that nobody who is served reaches.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3_600);

/// Of both generations, for each query and document.
static KEYS: LazyLock<[Vec<Key>; 2]> = LazyLock::new(|| {
    let documents: Vec<_> = (0..DOCUMENTS).map(|n| format!("document {n}")).collect();
    [b"old", b"new"].map(|files| {
        let identity = Identity::new(&[files]);
        let queries = (0..QUERIES).map(|n| format!("query {n}"));
        queries
            .flat_map(|query| {
                let rows = Texts::of_query(query, documents.iter().map(String::as_str));
                gateway::cache::keys(&identity, &Form::default(), &rows)
            })
            .collect()
    })
});

pub(crate) struct Setup {
    pub(crate) n_requests: usize,
    pub(crate) n_workers: usize,
    pub(crate) has_store: bool,
    pub(crate) has_board: bool,
    /// Between two requests.
    gap_us: f64,
    burst_share: f64,
    hang_up_share: f64,
    is_skewed: bool,
    pub(crate) queue: QueueBounds,
    pub(crate) batch: BatchBounds,
    pub(crate) retries_max: u32,
    pub(crate) worker_timeout: Duration,
    /// Of batches.
    pub(crate) fault_share: f64,
    pub(crate) stall_share: f64,
    /// Of attempts to open the backend again.
    pub(crate) reopen_fault_share: f64,
    /// A document that makes the backend panic, and one that it cannot score.
    pub(crate) guilty: Option<usize>,
    pub(crate) bad: Option<usize>,
    /// Of admissions that wait for a lease, and of tokenizing that finds no room.
    pub(crate) lease_share: f64,
    pub(crate) pool_full_share: f64,
    /// After so many requests, and until the old generation closes.
    pub(crate) swap: Option<(usize, Duration)>,
}

/// What a client asks.
#[derive(Clone)]
pub(crate) struct Question {
    pub(crate) query: usize,
    pub(crate) documents: Vec<usize>,
    pub(crate) priority: Priority,
    pub(crate) timeout: Duration,
    pub(crate) hangs_up_after: Option<Duration>,
}

/// A pair's key in a generation.
pub(crate) fn key(generation: usize, query: usize, document: usize) -> Key {
    KEYS[generation][query * DOCUMENTS + document]
}

/// A document's tokens, without the query's one and the special one.
pub(crate) fn text_tokens(document: usize) -> usize {
    2 + document % 8
}

/// Bytes of a text of so many tokens: a little less than what is believed before anything is known, so that
/// estimates are never too small.
pub(crate) fn bytes(tokens: usize) -> usize {
    4 * tokens
}

// === impl Setup ===

impl Setup {
    pub(crate) fn draw(random: &mut Random) -> Self {
        let n_workers = 2 + random.below(3);
        let n_requests = 200 + random.below(40);
        let load = 0.05 * 100_f64.powf(random.unit());
        let is_faulty = random.happens(0.7);
        let faulty = |share: f64| if is_faulty { share } else { 0.0 };
        let is_adaptive = random.happens(0.8);
        let hold = HoldBounds {
            wait_max: Duration::from_millis(random.one_of(&[0, 0, 3, 10])),
            rows_preferred: 8,
            is_adaptive,
        };
        let wait_max = random.one_of(&[None, None, Some(Duration::from_millis(60))]);
        let swap_at = random.below(n_requests);
        let closes = micros(random.between(0.0, 20_000.0));
        Self {
            n_requests,
            n_workers,
            has_store: random.happens(0.5),
            has_board: random.happens(0.75),
            gap_us: REQUEST_US / n_workers as f64 / load,
            burst_share: random.one_of(&[0.0, 0.0, 0.5]),
            hang_up_share: random.one_of(&[0.0, 0.2, 0.5]),
            is_skewed: random.happens(0.7),
            queue: QueueBounds {
                rows_max: ROWS_MAX,
                tokens_max: 500,
                requests_max: random.one_of(&[12, 1_000]),
                bytes_max: 5_000,
                wait_max,
            },
            batch: BatchBounds {
                rows_max: 16,
                tokens_max: 80,
                time_max: Duration::from_millis(10),
                hold,
            },
            retries_max: random.below(3) as u32,
            worker_timeout: Duration::from_millis(50),
            fault_share: random.one_of(&[0.0, faulty(0.02), faulty(0.1)]),
            stall_share: random.one_of(&[0.0, faulty(0.01), faulty(0.04)]),
            reopen_fault_share: faulty(0.2),
            guilty: (is_faulty && random.happens(0.3)).then(|| random.below(DOCUMENTS)),
            bad: (is_faulty && random.happens(0.5)).then(|| random.below(DOCUMENTS)),
            lease_share: random.one_of(&[0.0, 0.0, 0.6]),
            pool_full_share: random.one_of(&[0.0, 0.01]),
            swap: random.happens(0.6).then_some((swap_at, closes)),
        }
    }

    /// Until the next request comes.
    pub(crate) fn gap(&self, random: &mut Random) -> Duration {
        if random.happens(self.burst_share) {
            return Duration::ZERO;
        }
        micros(random.gap(self.gap_us / (1.0 - self.burst_share)))
    }

    pub(crate) fn question(&self, random: &mut Random) -> Question {
        let is_large = random.happens(0.003);
        let n_documents = match random.below(20) {
            _ if is_large => LARGE_DOCUMENTS,
            0..12 => 1 + random.below(2),
            12..19 => 2 + random.below(5),
            _ => 8 + random.below(20),
        };
        let documents = match is_large {
            true => (0..n_documents).collect(),
            false => (0..n_documents).map(|_| self.document(random)).collect(),
        };
        let timeout = match random.below(10) {
            0..3 => PATIENCE,
            3..8 => micros(random.between(30_000.0, 400_000.0)),
            _ => micros(random.between(2_000.0, 30_000.0)),
        };
        let hangs_up = random.happens(self.hang_up_share);
        Question {
            query: (QUERIES as f64 * random.unit().powi(2)) as usize,
            documents,
            priority: random.one_of(&[
                Priority::Low,
                Priority::Normal,
                Priority::Normal,
                Priority::High,
            ]),
            timeout,
            hangs_up_after: hangs_up.then(|| micros(random.gap(20_000.0))),
        }
    }

    /// Whether the backend may fail.
    pub(crate) fn is_faulty(&self) -> bool {
        let shares = [self.fault_share, self.stall_share];
        shares.iter().any(|&share| share > 0.0) || self.guilty.is_some() || self.bad.is_some()
    }

    fn document(&self, random: &mut Random) -> usize {
        let power = if self.is_skewed { 4 } else { 1 };
        (DOCUMENTS as f64 * random.unit().powi(power)) as usize
    }
}

fn micros(us: f64) -> Duration {
    Duration::from_micros(us as u64)
}
