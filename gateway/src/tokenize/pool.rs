//! The tokenizer threads. A request's documents are cut into pieces that idle threads share.

use crate::model::{Query, TokenRows, Tokenizer};
use crate::runtime::Runtime;
use crate::score::ScoreError;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Documents in a piece: about a millisecond of passages, so that threads share a large request.
const PIECE_DOCUMENTS_MAX: usize = 32;
/// Bytes of documents after which a piece ends: some ten milliseconds of text.
const PIECE_BYTES_MAX: usize = 64 << 10;

/// Threads that tokenize for all models.
pub struct Pool {
    // Whoever asked owns the job, and with it the documents: when that goes away, what waits here is empty.
    jobs: Arc<Sender<Weak<Job>>>,
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
    /// What it took, if all threads had shared it.
    pub took: Duration,
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
    pieces: Vec<Piece>,
    // Of the pool, at least one.
    n_threads: u32,
    wanted: AtomicBool,
    reply: Mutex<Option<oneshot::Sender<Reply>>>,
}

/// Some of a job's documents, and what came of them.
struct Piece {
    documents: Range<usize>,
    done: OnceLock<Result<Tokenized, ScoreError>>,
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
        let (jobs, receiver) = bounded::<Weak<Job>>(jobs_max);
        let jobs = Arc::new(jobs);
        for thread in 0..n_threads {
            let (receiver, jobs) = (receiver.clone(), Arc::downgrade(&jobs));
            let work = move || work(&receiver, &jobs);
            runtime
                .thread(format!("tokenize-{thread}"), work)
                .map_err(|error| format!("no thread for the tokenizer: {error}"))?;
        }
        Ok(Self { jobs, n_threads })
    }

    /// Tokenizes the pairs of a query with its documents. Dropping the future stops the work.
    ///
    /// # Errors
    /// `Overloaded` when the queue is full, `Invalid` for a pair without any token, `Internal` when the
    /// encoder fails.
    pub async fn tokenize(
        &self,
        tokenizer: Arc<Tokenizer>,
        query: String,
        documents: Vec<String>,
    ) -> Reply {
        let (job, answer) = Job::new(tokenizer, query, documents, self.n_threads);
        let n_pieces = job.pieces.len();
        for helper in 0..n_pieces.min(self.n_threads) {
            match self.jobs.try_send(Arc::downgrade(&job)) {
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

/// A thread's life: a piece of each job in turn, so that a small request does not wait for a large one.
fn work(receiver: &Receiver<Weak<Job>>, jobs: &Weak<Sender<Weak<Job>>>) {
    for waiting in receiver {
        // Those that nobody waits for are gone.
        while let Some(job) = waiting.upgrade()
            && job.run_piece()
        {
            // Back to the end. The pool alone keeps the queue open, or threads would outlive it. Where
            // there is no room, nothing else is made to wait longer by going on here.
            let to_end = jobs
                .upgrade()
                .map(|jobs| jobs.try_send(Weak::clone(&waiting)));
            if matches!(to_end, Some(Ok(()))) {
                break;
            }
        }
    }
}

// === impl Job ===

impl Job {
    /// What a pool of `n_threads` is asked, and where the answer arrives.
    fn new(
        tokenizer: Arc<Tokenizer>,
        query: String,
        documents: Vec<String>,
        n_threads: usize,
    ) -> (Arc<Self>, oneshot::Receiver<Reply>) {
        let pieces: Vec<_> = pieces(&documents).map(Piece::new).collect();
        let (reply, answer) = oneshot::channel();
        let job = Self {
            tokenizer,
            query,
            documents,
            encoded: OnceLock::new(),
            next_piece: AtomicUsize::new(0),
            n_pieces_missing: AtomicUsize::new(pieces.len()),
            pieces,
            n_threads: u32::try_from(n_threads).unwrap_or(u32::MAX).max(1),
            wanted: AtomicBool::new(true),
            reply: Mutex::new(Some(reply)),
        };
        (Arc::new(job), answer)
    }

    /// Works on the next piece; the thread that finishes the last one answers. Says whether there are
    /// more.
    fn run_piece(&self) -> bool {
        let next = self.next_piece.fetch_add(1, Ordering::Relaxed);
        let Some(piece) = self.pieces.get(next) else {
            return false;
        };
        // The encoder is foreign code on foreign text: its panic is one request's failure.
        let documents = piece.documents.clone();
        let encode = std::panic::AssertUnwindSafe(|| self.encode(documents));
        let done = std::panic::catch_unwind(encode).unwrap_or_else(|_| {
            Err(ScoreError::Internal {
                why: "the tokenizer panicked".to_owned(),
            })
        });
        if piece.done.set(done).is_err() {
            unreachable!("each piece is taken once");
        }
        // AcqRel: the thread that sees the last one done sees all pieces.
        if self.n_pieces_missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.answer();
        }
        next + 1 < self.pieces.len()
    }

    fn encode(&self, documents: Range<usize>) -> Result<Tokenized, ScoreError> {
        let failed = |why: String| ScoreError::Internal {
            why: format!("the tokenizer failed: {why}"),
        };
        let started = Instant::now();
        self.check_wanted()?;
        let query = self
            .encoded
            .get_or_init(|| self.tokenizer.query(&self.query))
            .as_ref();
        let query = query.map_err(|why| failed(why.clone()))?;
        let mut done = Tokenized::none();
        for index in documents {
            self.check_wanted()?;
            let document = &self.documents[index];
            let cut = self
                .tokenizer
                .push_pair(query, document, &mut done.rows)
                .map_err(failed)?;
            if done.rows.row_len(done.rows.len() - 1) == 0 {
                return Err(ScoreError::invalid(
                    format!("documents[{index}]"),
                    "neither it nor the query holds anything that the model reads; send text",
                ));
            }
            if cut.document {
                done.truncated.push(index as u32);
            }
            done.query_truncated |= cut.query;
        }
        done.took = started.elapsed() / self.n_threads;
        Ok(done)
    }

    fn check_wanted(&self) -> Result<(), ScoreError> {
        if self.wanted.load(Ordering::Relaxed) {
            Ok(())
        } else {
            Err(ScoreError::Cancelled)
        }
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
        let mut all = Tokenized::none();
        for piece in self.pieces.iter().filter_map(|piece| piece.done.get()) {
            all.append(piece.as_ref().map_err(ScoreError::clone)?);
        }
        Ok(all)
    }
}

impl Piece {
    fn new(documents: Range<usize>) -> Self {
        Self {
            documents,
            done: OnceLock::new(),
        }
    }
}

/// Cuts documents into pieces, in their order: bounded in number and, from the second one on, in bytes.
fn pieces(documents: &[String]) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut first = 0;
    std::iter::from_fn(move || {
        let rest = documents.get(first..).filter(|rest| !rest.is_empty())?;
        let mut n_bytes = 0;
        let n_more = rest[1..]
            .iter()
            .zip(rest)
            .take(PIECE_DOCUMENTS_MAX - 1)
            .take_while(|(next, last)| {
                n_bytes += last.len();
                n_bytes + next.len() <= PIECE_BYTES_MAX
            })
            .count();
        let piece = first..first + 1 + n_more;
        first = piece.end;
        Some(piece)
    })
}

// === impl Tokenized ===

impl Tokenized {
    fn none() -> Self {
        Self {
            rows: TokenRows {
                offsets: vec![0],
                ..TokenRows::default()
            },
            ..Self::default()
        }
    }

    fn append(&mut self, other: &Self) {
        let Tokenized {
            rows,
            truncated,
            query_truncated,
            took,
        } = other;
        let base = self.rows.input_ids.len() as u32;
        self.rows.input_ids.extend_from_slice(&rows.input_ids);
        self.rows.type_ids.extend_from_slice(&rows.type_ids);
        let ends = rows.offsets[1..].iter().map(|end| base + end);
        self.rows.offsets.extend(ends);
        self.truncated.extend_from_slice(truncated);
        self.query_truncated |= query_truncated;
        self.took += *took;
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.wanted.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(lengths: &[usize], want: &[Range<usize>]) {
        let documents: Vec<_> = lengths.iter().map(|&length| "x".repeat(length)).collect();
        assert_eq!(pieces(&documents).collect::<Vec<_>>(), want);
    }

    #[test]
    fn pieces_are_bounded_in_documents_and_bytes() {
        const KIB: usize = 1 << 10;
        check(&[], &[]);
        check(&[0; 33], &[0..32, 32..33]);
        check(&[1; 70], &[0..32, 32..64, 64..70]);
        check(&[32 * KIB, 32 * KIB, 1], &[0..2, 2..3]);
        check(&[256 * KIB, 256 * KIB], &[0..1, 1..2]);
        check(&[1, 256 * KIB, 1, 1], &[0..1, 1..2, 2..4]);
    }

    fn pool(n_threads: usize) -> (tokio::runtime::Runtime, Pool, Arc<Tokenizer>) {
        let tasks = tokio::runtime::Runtime::new().unwrap();
        let runtime = Runtime::new(tasks.handle().clone(), n_threads);
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/starter/tokenizer.json");
        let tokenizer = Tokenizer::open(path.as_ref(), 32, 2).unwrap();
        let pool = Pool::start(&runtime, n_threads, 8).unwrap();
        (tasks, pool, Arc::new(tokenizer))
    }

    #[test]
    fn pieces_come_together_in_order() {
        let (tasks, pool, tokenizer) = pool(3);
        let documents: Vec<_> = (0..100).map(|n| "light ".repeat(n % 60)).collect();
        let query = tokenizer.query("plants").unwrap();
        let mut want = Tokenized::none();
        for (index, document) in documents.iter().enumerate() {
            let cut = tokenizer
                .push_pair(&query, document, &mut want.rows)
                .unwrap();
            want.truncated.extend(cut.document.then_some(index as u32));
        }
        let asked = pool.tokenize(tokenizer, "plants".to_owned(), documents);
        let got = tasks.block_on(asked).unwrap();
        assert_eq!(got.rows, want.rows);
        assert_eq!(
            (got.truncated, got.query_truncated),
            (want.truncated, false)
        );
    }

    #[test]
    fn a_job_that_nobody_waits_for_keeps_no_documents() {
        // No thread takes it out of the channel.
        let (tasks, pool, tokenizer) = pool(0);
        let pool = Pool {
            n_threads: 1,
            ..pool
        };
        let (jobs, waiting) = bounded(8);
        let pool = Pool {
            jobs: Arc::new(jobs),
            ..pool
        };
        let asked = pool.tokenize(tokenizer, "q".to_owned(), vec!["x".to_owned()]);
        let soon = Duration::from_millis(1);
        let outcome = tasks.block_on(async { tokio::time::timeout(soon, asked).await });
        assert!(outcome.is_err());
        assert!(waiting.recv().unwrap().upgrade().is_none());
    }

    #[test]
    fn a_small_request_does_not_wait_for_a_large_one() {
        let (tasks, _pool, tokenizer) = pool(0);
        let ask = |documents| Job::new(Arc::clone(&tokenizer), "q".to_owned(), documents, 1);
        let (large, _) = ask(vec!["light ".repeat(2_000); 500]);
        let (small, answer) = ask(vec!["light".to_owned()]);
        let (jobs, receiver) = bounded(8);
        let jobs = Arc::new(jobs);
        for job in [&large, &small] {
            jobs.send(Arc::downgrade(job)).unwrap();
        }
        std::thread::scope(|scope| {
            let again = Arc::downgrade(&jobs);
            scope.spawn(move || work(&receiver, &again));
            assert_eq!(tasks.block_on(answer).unwrap().unwrap().rows.len(), 1);
            assert!(large.n_pieces_missing.load(Ordering::Acquire) > 1);
            // Nobody waits: the thread ends long before the large one would.
            drop((Wanted(large), jobs));
        });
    }

    #[test]
    fn work_that_nobody_waits_for_stops_between_documents() {
        let (_tasks, _pool, tokenizer) = pool(0);
        let documents = vec!["x light ".repeat(8_000); 500];
        let (job, _) = Job::new(tokenizer, "q".to_owned(), documents, 1);
        std::thread::scope(|scope| {
            let encoding = scope.spawn(|| job.encode(0..500));
            while job.encoded.get().is_none() {
                std::thread::yield_now();
            }
            drop(Wanted(Arc::clone(&job)));
            assert_eq!(encoding.join().unwrap().unwrap_err(), ScoreError::Cancelled);
        });
    }

    #[test]
    fn a_pair_without_any_token_is_refused_by_its_index() {
        let (tasks, pool, _) = pool(1);
        let starter = concat!(env!("CARGO_MANIFEST_DIR"), "/starter/tokenizer.json");
        let mut json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(starter).unwrap()).unwrap();
        json["post_processor"] = serde_json::Value::Null;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), json.to_string()).unwrap();
        let tokenizer = Arc::new(Tokenizer::open(file.path(), 32, 2).unwrap());
        assert_eq!(tokenizer.n_special(), 0);
        // Normalizing takes control characters away.
        let ask = |query: &str| {
            let documents = vec!["light".to_owned(), "\u{7}".to_owned()];
            tasks.block_on(pool.tokenize(Arc::clone(&tokenizer), query.to_owned(), documents))
        };
        let error = ask("\u{7}").unwrap_err();
        let ScoreError::Invalid { param, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(param, "documents[1]");
        assert_eq!(ask("plants").unwrap().rows.len(), 2);
    }
}
