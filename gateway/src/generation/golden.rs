//! Golden rows: the same pairs, scored by two generations, tell whether one computes what the other does.

use super::Generation;
use super::plan::Ask;
use super::work::{RowFault, Scored, Sink, Work};
use crate::model::{TokenRows, Tokenizer};
use crate::runtime::{self, Runtime};
use crate::score::{Form, Priority};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Each query with each document makes a row.
const QUERIES: [&str; 8] = [
    "how do plants turn light into sugar",
    "capital of France",
    "symptoms of vitamin D deficiency",
    "rust borrow checker",
    "wie funktioniert eine Wärmepumpe",
    "flow past a flat plate at high speed",
    "1969 moon landing",
    "?",
];
const DOCUMENTS: [&str; 8] = [
    "Photosynthesis converts light energy into chemical energy: chlorophyll absorbs light, water is split, and \
     carbon dioxide is reduced to sugars.",
    "Paris is the capital and largest city of France.",
    "Low vitamin D can cause fatigue, bone pain, muscle weakness and, in children, rickets.",
    "The borrow checker rejects programs in which a reference outlives what it points to, or in which something \
     is changed while it is shared.",
    "Eine Wärmepumpe entzieht der Umgebung Wärme und hebt sie mit einem Verdichter auf eine höhere Temperatur.",
    "The boundary layer on a flat plate thickens downstream; at supersonic speeds, heating by friction changes \
     its profile and the skin friction with it.",
    "Apollo 11 landed on the Moon on 20 July 1969.",
    "x",
];
/// The last document is made as long as the model reads, for every other query.
const LONG_WORDS: usize = 16_384;
/// Scores whose order is compared: that takes the square of their number.
const RANKED_MAX: usize = 2_048;
/// Between two attempts to be admitted by a generation that is busy.
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// A generation's scores of the golden rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Golden {
    /// Rows × labels.
    logits: Vec<f32>,
    n_labels: usize,
}

/// How far two generations' scores of the golden rows are apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Agreement {
    /// The largest difference of two logits.
    pub largest: f64,
    /// The mean difference.
    pub mean: f64,
    /// Spearman's rank correlation of the first label's logits; 1 where all of them are equal.
    pub rank: f64,
    /// Where the largest difference is.
    pub worst: Worst,
}

/// One row's logits that differ most.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Worst {
    /// What the row is.
    pub row: String,
    /// The label.
    pub label: usize,
    /// What it is compared with.
    pub expected: f32,
    /// What is to serve.
    pub candidate: f32,
}

/// How far apart they may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// See [`Agreement::largest`].
    pub largest: f64,
    /// See [`Agreement::rank`].
    pub rank: f64,
    /// Why that much.
    pub why: &'static str,
}

// === impl Golden ===

impl Golden {
    /// Has `generation` score the golden rows on its own workers, after whatever else it has to do. Blocks.
    ///
    /// # Errors
    /// Why it cannot until `deadline`.
    pub fn of(
        generation: &Generation,
        runtime: &Runtime,
        deadline: Instant,
    ) -> Result<Self, String> {
        let rows = golden_rows(generation.tokenizer())?;
        let (n_rows, n_tokens) = (rows.len(), rows.input_ids.len());
        let (collected, landed) = Collected::new(n_rows);
        let ask = Ask {
            rows: n_rows,
            row_bytes: 0,
            text_bytes: 0,
            tokens_max: n_tokens,
            deadline,
            priority: Priority::Low,
        };
        let permit = loop {
            let now = runtime::now();
            match generation.line().admit(&ask, now) {
                Ok(permit) => break permit,
                Err(error) if deadline <= now + BUSY_PAUSE => {
                    return Err(format!("it is too busy to be compared: {error}"));
                }
                Err(_) => std::thread::sleep(BUSY_PAUSE),
            }
        };
        let sink = Arc::downgrade(&collected);
        let sink: Weak<dyn Sink> = sink;
        let work = Work::new(n_rows, ask.priority, deadline, runtime::now(), sink);
        let ticket = permit.push(Arc::clone(&work), rows, runtime::now());
        let left = deadline.saturating_duration_since(runtime::now());
        let landed = runtime.wait(async { tokio::time::timeout(left, landed).await });
        drop(ticket);
        if landed.is_err() {
            return Err("its golden rows were not scored in time".to_owned());
        }
        collected.golden(generation.n_labels())
    }

    /// The logits of the golden rows, as somebody else has computed them; `None` if they are not of all rows.
    pub fn from_logits(logits: Vec<f32>, n_labels: usize) -> Option<Self> {
        let is_whole = logits.len() == QUERIES.len() * DOCUMENTS.len() * n_labels;
        is_whole.then_some(Self { logits, n_labels })
    }

    /// How far the scores of `candidate` are from these.
    ///
    /// # Errors
    /// That they are of different numbers of labels.
    pub fn agreement(&self, candidate: &Self) -> Result<Agreement, String> {
        if self.n_labels != candidate.n_labels {
            return Err(format!(
                "it has {} labels, what it is compared with has {}",
                candidate.n_labels, self.n_labels
            ));
        }
        let mut comparison = Comparison::default();
        comparison.add(&self.logits, &candidate.logits, self.n_labels, |row| {
            let (query, document) = pair(row);
            format!("the golden row ({query:?}, {document:?})")
        });
        Ok(comparison.agreement())
    }
}

// === impl Comparison ===

/// Scores of the same rows by two generations, as they come.
#[derive(Default)]
pub(super) struct Comparison {
    n_logits: u64,
    sum: f64,
    largest: f64,
    worst: Worst,
    // Of the first label, for the ranks: not more than can be compared each with each.
    firsts: [Vec<f32>; 2],
}

impl Comparison {
    /// Rows × labels of what is expected, and as many of what is to serve.
    pub(super) fn add(
        &mut self,
        expected: &[f32],
        candidate: &[f32],
        n_labels: usize,
        name: impl Fn(usize) -> String,
    ) {
        for (place, (a, b)) in expected.iter().zip(candidate).enumerate() {
            let difference = f64::from((a - b).abs());
            self.n_logits += 1;
            self.sum += difference;
            if self.largest < difference {
                self.largest = difference;
                self.worst = Worst {
                    row: name(place / n_labels),
                    label: place % n_labels,
                    expected: *a,
                    candidate: *b,
                };
            }
        }
        for (firsts, logits) in self.firsts.iter_mut().zip([expected, candidate]) {
            let room = RANKED_MAX.saturating_sub(firsts.len());
            firsts.extend(logits.iter().step_by(n_labels).take(room));
        }
    }

    /// What there is to say of all of them.
    pub(super) fn agreement(&self) -> Agreement {
        let [expected, candidate] = &self.firsts;
        Agreement {
            largest: self.largest,
            mean: self.sum / self.n_logits.max(1) as f64,
            rank: spearman(expected, candidate),
            worst: self.worst.clone(),
        }
    }
}

/// What came of the rows.
struct Collected(Mutex<Landing>);

struct Landing {
    rows: Vec<Outcome>,
    n_missing: usize,
    // Sent when none is missing.
    all: Option<oneshot::Sender<()>>,
}

/// A row's logits, or why it has none; `None` before either.
type Outcome = Option<Result<Vec<f32>, RowFault>>;

impl Collected {
    fn new(n_rows: usize) -> (Arc<Self>, oneshot::Receiver<()>) {
        let (all, landed) = oneshot::channel();
        let landing = Landing {
            rows: vec![None; n_rows],
            n_missing: n_rows,
            all: Some(all),
        };
        (Arc::new(Self(Mutex::new(landing))), landed)
    }

    fn golden(&self, n_labels: usize) -> Result<Golden, String> {
        let mut logits = Vec::new();
        for (row, outcome) in self.landing().rows.iter().enumerate() {
            let (query, document) = pair(row);
            match outcome {
                Some(Ok(of_row)) => logits.extend_from_slice(of_row),
                Some(Err(fault)) => {
                    let error = fault.clone().of_document(row % DOCUMENTS.len());
                    return Err(format!("golden row ({query:?}, {document:?}): {error}"));
                }
                None => return Err(format!("golden row ({query:?}, {document:?}) has no score")),
            }
        }
        Ok(Golden { logits, n_labels })
    }

    fn landing(&self) -> MutexGuard<'_, Landing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for Collected {
    fn landed(&self, row: usize, outcome: Result<Scored<'_>, RowFault>) {
        let mut landing = self.landing();
        landing.rows[row] = Some(outcome.map(|scored| scored.logits.to_vec()));
        landing.n_missing -= 1;
        if landing.n_missing == 0
            && let Some(all) = landing.all.take()
        {
            // Whoever waited may have given up.
            let _ = all.send(());
        }
    }
}

// === impl Agreement ===

impl Agreement {
    /// Whether that is near enough.
    ///
    /// # Errors
    /// What is not, with the row, both scores and the tolerance.
    pub fn check(&self, tolerance: &Tolerance) -> Result<(), String> {
        let Tolerance { largest, rank, why } = tolerance;
        if *largest < self.largest {
            let Worst {
                row,
                label,
                expected,
                candidate,
            } = &self.worst;
            return Err(format!(
                "{row} scores {candidate} (label {label}), expected is {expected}: a difference of {:.6}, of which \
                 {largest} is tolerated, because {why}",
                self.largest
            ));
        }
        if self.rank < *rank {
            return Err(format!(
                "it orders the rows otherwise: a rank correlation of {:.4}, at least {rank} is needed, because {why}",
                self.rank
            ));
        }
        Ok(())
    }
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            largest,
            mean,
            rank,
            ..
        } = self;
        write!(
            f,
            "largest difference {largest:.6}, mean {mean:.6}, rank correlation {rank:.4}"
        )
    }
}

/// The golden pairs as this tokenizer makes rows of them.
///
/// # Errors
/// The encoder's own.
pub fn golden_rows(tokenizer: &Tokenizer) -> Result<TokenRows, String> {
    let long = "long ".repeat(LONG_WORDS.min(tokenizer.row_tokens_max()));
    let mut rows = TokenRows::none();
    for (place, query) in QUERIES.iter().enumerate() {
        let query = tokenizer.query(Some(query), &Form::default());
        let query = query.map_err(|error| error.to_string())?;
        for (document, text) in DOCUMENTS.iter().enumerate() {
            let is_long = document + 1 == DOCUMENTS.len() && place % 2 == 0;
            let text = if is_long { &long } else { *text };
            tokenizer.push_pair(&query, text, &mut rows)?;
        }
    }
    Ok(rows)
}

fn pair(row: usize) -> (&'static str, &'static str) {
    let (query, document) = (row / DOCUMENTS.len(), row % DOCUMENTS.len());
    (QUERIES[query], DOCUMENTS[document])
}

/// Spearman's rank correlation: Pearson's of the ranks, equal values sharing the mean of theirs.
fn spearman(a: &[f32], b: &[f32]) -> f64 {
    let (a, b) = (ranks(a), ranks(b));
    let mean = (a.len() as f64 - 1.0) / 2.0;
    let product = |x: &[f64], y: &[f64]| -> f64 {
        let pairs = x.iter().zip(y);
        pairs.map(|(x, y)| (x - mean) * (y - mean)).sum()
    };
    let scale = (product(&a, &a) * product(&b, &b)).sqrt();
    // Where one side orders nothing, the other must not either.
    if scale == 0.0 {
        return if a == b { 1.0 } else { 0.0 };
    }
    product(&a, &b) / scale
}

fn ranks(values: &[f32]) -> Vec<f64> {
    let below = |value: f32| values.iter().filter(|other| **other < value).count() as f64;
    let equal = |value: f32| values.iter().filter(|other| **other == value).count() as f64;
    let rank = |value: &f32| below(*value) + (equal(*value) - 1.0) / 2.0;
    values.iter().map(rank).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRICT: Tolerance = Tolerance {
        largest: 0.01,
        rank: 0.9,
        why: "of the test",
    };

    fn golden(change: impl Fn(usize) -> f32) -> Golden {
        let logits = (0..QUERIES.len() * DOCUMENTS.len()).map(|row| row as f32 / 8.0 + change(row));
        Golden {
            logits: logits.collect(),
            n_labels: 1,
        }
    }

    #[test]
    fn the_second_decimal_of_one_row_is_named() {
        let (live, wrong) = (
            golden(|_| 0.0),
            golden(|row| if row == 9 { 0.02 } else { 0.0 }),
        );
        let agreement = live.agreement(&wrong).unwrap();
        let told = agreement.check(&STRICT).unwrap_err();
        for word in [QUERIES[1], DOCUMENTS[1], "1.125", "1.145", "0.01"] {
            assert!(told.contains(word), "{told} does not say {word}");
        }
        assert!(live.agreement(&live).unwrap().check(&STRICT).is_ok());
    }

    #[test]
    fn another_order_is_refused_however_small_the_differences() {
        let (live, wrong) = (
            golden(|row| -(row as f32) / 8.001),
            golden(|row| -(row as f32) / 7.999),
        );
        let agreement = live.agreement(&wrong).unwrap();
        assert!(
            agreement.largest < STRICT.largest && agreement.rank < 0.0,
            "{agreement}"
        );
        assert!(
            agreement
                .check(&STRICT)
                .unwrap_err()
                .contains("rank correlation")
        );
    }

    #[test]
    fn ranks_of_equal_values_are_their_mean() {
        assert_eq!(ranks(&[2.0, 1.0, 2.0, 3.0]), [1.5, 0.0, 1.5, 3.0]);
        assert_eq!(spearman(&[1.0, 1.0], &[2.0, 2.0]), 1.0);
        assert_eq!(spearman(&[1.0, 2.0], &[2.0, 2.0]), 0.0);
        assert_eq!(spearman(&[1.0, 2.0, 3.0], &[9.0, 4.0, 1.0]), -1.0);
    }
}
