//! The tokenizer threads. A request's documents are cut into pieces that idle threads share.

use crate::model::{Query, TokenRows, Tokenizer};
use crate::runtime::Runtime;
use crate::score::ScoreError;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// Documents in a piece: about a millisecond of passages, so that threads share a large request.
const PIECE_DOCUMENTS: usize = 32;

/// Threads that tokenize for all models.
pub struct Pool {
    jobs: Sender<Arc<Job>>,
    n_threads: usize,
}

/// A request's rows, tokenized.
#[derive(Debug, Default)]
pub struct Tokenized {
    /// One row a document, in the documents' order.
    pub rows: TokenRows,
    /// Indices of documents that were cut.
    pub truncated: Vec<u32>,
    /// Whether the query was cut.
    pub query_truncated: bool,
}

type Reply = Result<Tokenized, ScoreError>;

struct Job {
    tokenizer: Arc<Tokenizer>,
    query: String,
    documents: Vec<String>,
    // Encoded by whichever thread comes first.
    encoded: OnceLock<Result<Query, String>>,
    next_piece: AtomicUsize,
    n_pieces_missing: AtomicUsize,
    pieces: Vec<OnceLock<Result<Piece, ScoreError>>>,
    wanted: AtomicBool,
    reply: Mutex<Option<oneshot::Sender<Reply>>>,
}

#[derive(Debug)]
struct Piece {
    rows: TokenRows,
    truncated: Vec<u32>,
}

/// Tells the threads that nobody waits any more.
struct Wanted(Arc<Job>);

// === impl Pool ===

impl Pool {
    /// Starts `n_threads` threads behind a queue of `jobs_max` jobs. They end when the pool is dropped.
    ///
    /// # Errors
    /// When the system has no more threads.
    pub fn start(runtime: &Runtime, n_threads: usize, jobs_max: usize) -> Result<Self, String> {
        let (jobs, receiver) = bounded::<Arc<Job>>(jobs_max);
        for thread in 0..n_threads {
            let receiver: Receiver<Arc<Job>> = receiver.clone();
            runtime
                .thread(format!("tokenize-{thread}"), move || {
                    receiver.iter().for_each(|job| job.run())
                })
                .map_err(|error| format!("no thread for the tokenizer: {error}"))?;
        }
        Ok(Self { jobs, n_threads })
    }

    /// Tokenizes the pairs of a query with its documents. Dropping the future stops the work.
    ///
    /// # Errors
    /// `Overloaded` when the queue is full, `Internal` when the encoder fails.
    pub async fn tokenize(
        &self,
        tokenizer: Arc<Tokenizer>,
        query: String,
        documents: Vec<String>,
    ) -> Reply {
        let n_pieces = documents.len().div_ceil(PIECE_DOCUMENTS);
        let (reply, answer) = oneshot::channel();
        let job = Arc::new(Job {
            tokenizer,
            query,
            documents,
            encoded: OnceLock::new(),
            next_piece: AtomicUsize::new(0),
            n_pieces_missing: AtomicUsize::new(n_pieces),
            pieces: (0..n_pieces).map(|_| OnceLock::new()).collect(),
            wanted: AtomicBool::new(true),
            reply: Mutex::new(Some(reply)),
        });
        for helper in 0..n_pieces.min(self.n_threads) {
            match self.jobs.try_send(Arc::clone(&job)) {
                // One thread is enough; the others would only have made it faster.
                Err(TrySendError::Full(_)) if helper > 0 => break,
                Err(TrySendError::Full(_)) => {
                    let why = "the tokenizer's queue is full".to_owned();
                    return Err(ScoreError::Overloaded {
                        why,
                        retry_after: Duration::from_secs(1),
                    });
                }
                Err(TrySendError::Disconnected(_)) => {
                    return Err(ScoreError::Internal {
                        why: "the tokenizer threads are gone".to_owned(),
                    });
                }
                Ok(()) => {}
            }
        }
        let _wanted = Wanted(job);
        answer.await.unwrap_or_else(|_| {
            Err(ScoreError::Internal {
                why: "a tokenizer thread died".to_owned(),
            })
        })
    }
}

// === impl Job ===

impl Job {
    /// Works on pieces until none is left. The thread that finishes the last one answers.
    fn run(&self) {
        loop {
            let piece = self.next_piece.fetch_add(1, Ordering::Relaxed);
            let Some(place) = self.pieces.get(piece) else {
                return;
            };
            if !self.wanted.load(Ordering::Relaxed) {
                return;
            }
            // The encoder is foreign code on foreign text: its panic is one request's failure.
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.piece(piece)))
                .unwrap_or_else(|_| {
                    Err(ScoreError::Internal {
                        why: "the tokenizer panicked".to_owned(),
                    })
                });
            if place.set(done).is_err() {
                unreachable!("each piece is taken once");
            }
            // AcqRel: the thread that sees the last one done sees all pieces.
            if self.n_pieces_missing.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.answer();
            }
        }
    }

    fn piece(&self, piece: usize) -> Result<Piece, ScoreError> {
        let failed = |why: String| ScoreError::Internal {
            why: format!("the tokenizer failed: {why}"),
        };
        let query = self
            .encoded
            .get_or_init(|| self.tokenizer.query(&self.query))
            .as_ref();
        let query = query.map_err(|why| failed(why.clone()))?;
        let first = piece * PIECE_DOCUMENTS;
        let documents = &self.documents[first..(first + PIECE_DOCUMENTS).min(self.documents.len())];
        let mut rows = TokenRows {
            offsets: vec![0],
            ..TokenRows::default()
        };
        let mut truncated = Vec::new();
        for (place, document) in documents.iter().enumerate() {
            if self
                .tokenizer
                .push_pair(query, document, &mut rows)
                .map_err(failed)?
            {
                truncated.push((first + place) as u32);
            }
        }
        Ok(Piece { rows, truncated })
    }

    fn answer(&self) {
        let reply = self
            .reply
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(reply) = reply {
            // Whoever asked may just have gone.
            let _ = reply.send(self.joined());
        }
    }

    fn joined(&self) -> Reply {
        let mut all = Tokenized {
            rows: TokenRows {
                offsets: vec![0],
                ..TokenRows::default()
            },
            ..Tokenized::default()
        };
        for piece in self.pieces.iter().filter_map(OnceLock::get) {
            let Piece { rows, truncated } = piece.as_ref().map_err(ScoreError::clone)?;
            let base = all.rows.input_ids.len() as u32;
            all.rows.input_ids.extend_from_slice(&rows.input_ids);
            all.rows.type_ids.extend_from_slice(&rows.type_ids);
            all.rows
                .offsets
                .extend(rows.offsets[1..].iter().map(|end| base + end));
            all.truncated.extend_from_slice(truncated);
        }
        all.query_truncated = matches!(self.encoded.get(), Some(Ok(query)) if query.truncated);
        Ok(all)
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.wanted.store(false, Ordering::Relaxed);
    }
}
