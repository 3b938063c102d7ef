//! One request's wait: a place for each of its documents, filled from wherever the pair comes.

use super::pair::Pair;
use crate::generation::work::{RowFault, Scored, Sink};
use crate::score::{ScoreError, Times};
use crate::sync::{Mutex, MutexGuard, PoisonError};
use std::sync::Arc;
use tokio::sync::oneshot;

/// What came of a request.
pub type Outcome = Result<Answered, Failed>;

/// A request's pairs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answered {
    /// In the documents' order.
    pub pairs: Vec<Pair>,
    /// Where the time of those went that were computed.
    pub times: Times,
}

/// Why a request has no scores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// What went wrong.
    pub error: ScoreError,
    /// Whether it went wrong in a flight that this request began. What ends another's flight, its deadline
    /// say, need not concern whoever joined it.
    pub is_own: bool,
}

/// A request that waits. Answered once: by its last pair, or by its first failure.
#[derive(Debug)]
pub struct Asker(Mutex<State>);

#[derive(Debug)]
struct State {
    pairs: Vec<Option<Pair>>,
    n_missing: usize,
    times: Times,
    // Taken by whoever answers.
    reply: Option<oneshot::Sender<Outcome>>,
}

// === impl Asker ===

impl Asker {
    /// Has these pairs already and waits for the others, of which there is at least one.
    pub fn new(pairs: Vec<Option<Pair>>) -> (Arc<Self>, oneshot::Receiver<Outcome>) {
        let (reply, outcome) = oneshot::channel();
        let state = State {
            n_missing: pairs.iter().filter(|pair| pair.is_none()).count(),
            pairs,
            times: Times::default(),
            reply: Some(reply),
        };
        (Arc::new(Self(Mutex::new(state))), outcome)
    }

    /// The document of this index has its pair.
    pub fn fill(&self, index: usize, pair: Pair, times: Times) {
        let mut state = self.state();
        // Nothing is missing any more once it was answered.
        let Some(place) = state.pairs.get_mut(index) else {
            return;
        };
        if place.replace(pair).is_none() {
            state.n_missing -= 1;
        }
        state.times = state.times.max(times);
        if state.n_missing == 0
            && let Some(reply) = state.reply.take()
        {
            let answered = Answered {
                pairs: state.pairs.drain(..).flatten().collect(),
                times: state.times,
            };
            drop(state);
            // Whoever asked may just have gone; then nobody needs the answer.
            let _ = reply.send(Ok(answered));
        }
    }

    /// A document has no scores; see [`Failed`].
    pub fn fail(&self, error: ScoreError, is_own: bool) {
        let reply = self.state().reply.take();
        if let Some(reply) = reply {
            let _ = reply.send(Err(Failed { error, is_own }));
        }
    }

    /// The pairs that have come so far.
    pub fn so_far(&self) -> Vec<Option<Pair>> {
        self.state().pairs.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here can panic half-way; a poisoned lock is still sound.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request whose rows are its documents: nobody else waits for them.
impl Sink for Asker {
    fn landed(&self, row: usize, outcome: Result<Scored<'_>, RowFault>) {
        match outcome {
            Ok(scored) => self.fill(row, scored.into(), scored.times),
            Err(fault) => self.fail(fault.of_document(row), true),
        }
    }
}
