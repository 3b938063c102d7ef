//! The tokenizer threads. A request's documents are cut into pieces that idle threads share.

use crate::generation::work::{RowFault, Work};
use crate::model::{Cut, Query, TokenRows, Tokenizer};
use crate::runtime::{Runtime, now};
use crate::score::{Form, ScoreError, Texts};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;
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
    /// In the request's order. Rows that nobody wants are empty.
    pub rows: TokenRows,
    /// What it took, if all threads had shared it.
    pub took: Duration,
}

type Reply = Result<Tokenized, ScoreError>;

struct Job {
    tokenizer: Arc<Tokenizer>,
    rows: Vec<Texts>,
    form: Form,
    // Knows which rows somebody waits for.
    work: Arc<Work>,
    // Of each row.
    queries: Vec<Arc<Encoded>>,
    next_piece: AtomicUsize,
    n_pieces_missing: AtomicUsize,
    pieces: Vec<Piece>,
    // Of the pool, at least one.
    n_threads: u32,
    reply: Mutex<Option<oneshot::Sender<Reply>>>,
}

/// A query, encoded by whichever thread comes first.
type Encoded = OnceLock<Result<Query, ScoreError>>;

/// How many of the threads a request may have at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Haste {
    /// All: nobody else needs the processors.
    All,
    /// Half: where workers compute on the same processors, a large request that takes all threads makes those
    /// wait that are nearly done.
    Half,
}

/// Some of a job's rows, and what came of them.
struct Piece {
    rows: Range<usize>,
    done: OnceLock<Reply>,
}

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

    /// Tokenizes texts, each a row of `work`; rows that are not wanted are passed over, and one without any
    /// token fails. Dropping the future frees the texts.
    ///
    /// # Errors
    /// `Overloaded` when the queue is full, `Invalid` for a form that is not possible, `Internal` when the
    /// encoder fails.
    pub async fn tokenize(
        &self,
        tokenizer: Arc<Tokenizer>,
        rows: Vec<Texts>,
        form: Form,
        work: Arc<Work>,
        haste: Haste,
    ) -> Reply {
        let (job, answer) = Job::new(tokenizer, rows, form, work, self.n_threads);
        let n_pieces = job.pieces.len();
        let n_threads = match haste {
            Haste::All => self.n_threads,
            Haste::Half => self.n_threads.div_ceil(2),
        };
        for helper in 0..n_pieces.min(n_threads) {
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
        let _texts = job;
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
        rows: Vec<Texts>,
        form: Form,
        work: Arc<Work>,
        n_threads: usize,
    ) -> (Arc<Self>, oneshot::Receiver<Reply>) {
        let pieces: Vec<_> = pieces(&rows).map(Piece::new).collect();
        let mut queries: Vec<Arc<Encoded>> = Vec::with_capacity(rows.len());
        for (index, row) in rows.iter().enumerate() {
            let last = index.checked_sub(1);
            let shared = last.filter(|&last| row.shares_query(&rows[last]));
            queries.push(shared.map_or_else(Arc::default, |last| Arc::clone(&queries[last])));
        }
        let (reply, answer) = oneshot::channel();
        let job = Self {
            tokenizer,
            rows,
            form,
            work,
            queries,
            next_piece: AtomicUsize::new(0),
            n_pieces_missing: AtomicUsize::new(pieces.len()),
            pieces,
            n_threads: u32::try_from(n_threads).unwrap_or(u32::MAX).max(1),
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
        let rows = piece.rows.clone();
        let encode = std::panic::AssertUnwindSafe(|| self.encode(rows));
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

    fn encode(&self, indices: Range<usize>) -> Reply {
        let failed = |why: String| ScoreError::Internal {
            why: format!("the tokenizer failed: {why}"),
        };
        let started = now();
        let mut rows = TokenRows::none();
        for index in indices {
            if !self.work.is_wanted(index) {
                rows.end_row(Cut::default());
                continue;
            }
            let Texts { query, document } = &self.rows[index];
            let encode = || self.tokenizer.query(query.as_deref(), &self.form);
            let query = self.queries[index].get_or_init(encode).as_ref();
            self.tokenizer
                .push_pair(query.map_err(ScoreError::clone)?, document, &mut rows)
                .map_err(failed)?;
            if rows.row_len(rows.len() - 1) == 0 {
                self.work.fail_row(index, RowFault::Empty);
            }
        }
        let took = (now() - started) / self.n_threads;
        Ok(Tokenized { rows, took })
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
        let mut all = Tokenized::default();
        for piece in self.pieces.iter().filter_map(|piece| piece.done.get()) {
            let Tokenized { rows, took } = piece.as_ref().map_err(ScoreError::clone)?;
            all.rows.append(rows);
            all.took += *took;
        }
        Ok(all)
    }
}

impl Piece {
    fn new(rows: Range<usize>) -> Self {
        Self {
            rows,
            done: OnceLock::new(),
        }
    }
}

/// Cuts rows into pieces, in their order: bounded in number and, from the second one on, in bytes of documents.
fn pieces(rows: &[Texts]) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut first = 0;
    std::iter::from_fn(move || {
        let rest = rows.get(first..).filter(|rest| !rest.is_empty())?;
        let mut n_bytes = 0;
        let n_more = rest[1..]
            .iter()
            .zip(rest)
            .take(PIECE_DOCUMENTS_MAX - 1)
            .take_while(|(next, last)| {
                n_bytes += last.document.len();
                n_bytes + next.document.len() <= PIECE_BYTES_MAX
            })
            .count();
        let piece = first..first + 1 + n_more;
        first = piece.end;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::work::{Scored, Sink};
    use crate::score::Priority;
    use std::time::Instant;

    #[track_caller]
    fn check(lengths: &[usize], want: &[Range<usize>]) {
        let documents = lengths.iter().map(|&length| "x".repeat(length));
        let rows = Texts::of_query("", documents);
        assert_eq!(pieces(&rows).collect::<Vec<_>>(), want);
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
        let tokenizer = Tokenizer::open(path.as_ref(), 32, 2, None).unwrap();
        let pool = Pool::start(&runtime, n_threads, 8).unwrap();
        (tasks, pool, Arc::new(tokenizer))
    }

    const PLAIN: Form = Form {
        instruction: None,
        query_tokens_max: None,
        document_tokens_max: None,
        row_tokens_max: None,
        side: None,
        windows: false,
    };

    struct Nobody;

    impl Sink for Nobody {
        fn landed(&self, _: usize, _: Result<Scored<'_>, RowFault>) {}
    }

    fn rows(n_rows: usize) -> Arc<Work> {
        let now = Instant::now();
        Work::new(n_rows, Priority::Normal, now, now, Weak::<Nobody>::new())
    }

    #[test]
    fn pieces_come_together_in_order() {
        let (tasks, pool, tokenizer) = pool(3);
        let documents = (0..100).map(|n| "light ".repeat(n % 60));
        let texts = Texts::of_query("plants", documents);
        let query = tokenizer.query(Some("plants"), &PLAIN).unwrap();
        let mut want = TokenRows::none();
        for row in &texts {
            tokenizer
                .push_pair(&query, &row.document, &mut want)
                .unwrap();
        }
        let work = rows(texts.len());
        let asked = pool.tokenize(tokenizer, texts, PLAIN, work, Haste::All);
        let got = tasks.block_on(asked).unwrap();
        assert_eq!(got.rows, want);
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
        let asked = pool.tokenize(
            tokenizer,
            Texts::of_query("q", ["x"]),
            PLAIN,
            rows(1),
            Haste::All,
        );
        let soon = Duration::from_millis(1);
        let outcome = tasks.block_on(async { tokio::time::timeout(soon, asked).await });
        assert!(outcome.is_err());
        assert!(waiting.recv().unwrap().upgrade().is_none());
    }

    #[test]
    fn a_small_request_does_not_wait_for_a_large_one() {
        let (tasks, _pool, tokenizer) = pool(0);
        let ask = |documents: Vec<String>| {
            let (work, texts) = (rows(documents.len()), Texts::of_query("q", documents));
            Job::new(Arc::clone(&tokenizer), texts, PLAIN, work, 1)
        };
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
            drop((large, jobs));
        });
    }

    #[test]
    fn documents_that_nobody_waits_for_are_passed_over() {
        let (tasks, pool, tokenizer) = pool(1);
        let work = rows(3);
        work.unwant(1);
        let asked = pool.tokenize(
            tokenizer,
            Texts::of_query("q", ["light"; 3]),
            PLAIN,
            Arc::clone(&work),
            Haste::All,
        );
        let rows = tasks.block_on(asked).unwrap().rows;
        let lengths = [0, 1, 2].map(|row| rows.row_len(row));
        assert!(0 < lengths[0] && lengths[0] == lengths[2], "{lengths:?}");
        assert_eq!(lengths[1], 0);
    }

    /// Counts rows that failed as empty.
    #[derive(Default)]
    struct Empties(Mutex<Vec<usize>>);

    impl Sink for Empties {
        fn landed(&self, row: usize, outcome: Result<Scored<'_>, RowFault>) {
            assert_eq!(outcome.unwrap_err(), RowFault::Empty);
            self.0.lock().unwrap().push(row);
        }
    }

    #[test]
    fn a_pair_without_any_token_fails_its_row() {
        let (tasks, pool, _) = pool(1);
        let starter = concat!(env!("CARGO_MANIFEST_DIR"), "/starter/tokenizer.json");
        let mut json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(starter).unwrap()).unwrap();
        json["post_processor"] = serde_json::Value::Null;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), json.to_string()).unwrap();
        let tokenizer = Arc::new(Tokenizer::open(file.path(), 32, 2, None).unwrap());
        assert_eq!(tokenizer.n_special(), 0);
        // Normalizing takes control characters away.
        let ask = |query: &str| {
            let (empties, now) = (Arc::new(Empties::default()), Instant::now());
            let sink: Arc<dyn Sink> = Arc::<Empties>::clone(&empties);
            let work = Work::new(2, Priority::Normal, now, now, Arc::downgrade(&sink));
            let asked = pool.tokenize(
                Arc::clone(&tokenizer),
                Texts::of_query(query, ["light", "\u{7}"]),
                PLAIN,
                work,
                Haste::All,
            );
            assert_eq!(tasks.block_on(asked).unwrap().rows.len(), 2);
            empties.0.lock().unwrap().clone()
        };
        assert_eq!(ask("\u{7}"), [1]);
        assert_eq!(ask("plants"), [0; 0]);
    }
}
