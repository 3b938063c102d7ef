//! Nothing is computed twice: pairs that were scored are kept, and pairs that are being scored are waited
//! for.

mod asker;
mod flight;
mod key;
mod pair;
mod store;

pub use asker::{Answered, Asker, Failed, Outcome};
pub use flight::{Board, Claim, Fleet, Gate, Hold, Miss};
pub use key::{Key, keys};
pub use pair::Pair;
pub use store::{Kept, Store};

use crate::admit::Admit;
use crate::generation::Generation;
use crate::generation::plan::Ask;
use crate::load::{CacheState, Origins};
use crate::runtime::{Runtime, aside, now};
use crate::score::{
    Answer, Form, Priority, ScoreError, ScoreRequest, ScoreResponse, Texts, Times, text_bytes,
};
use crate::shared::{Lease, Shared};
use crate::tokenize::{Admitted, Tokenize};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::time::timeout;
use tower::{Service, ServiceExt as _};

/// The stage: answers what it knows, waits for what is under way, and has the rest computed.
#[derive(Clone)]
pub struct Cache {
    levels: Levels,
    admit: Admit,
    next: Tokenize,
    runtime: Runtime,
}

/// Where pairs are looked for.
#[derive(Clone, Default)]
pub struct Levels {
    /// In memory; `None` where nothing is kept.
    pub store: Option<Store>,
    /// In flight; `None` where equal pairs are computed each for itself.
    pub board: Option<Arc<Board>>,
    /// In memory of all servers; asked, and filled, behind the store alone.
    pub shared: Option<Shared>,
}

/// A checked request and the generation that will answer it.
pub struct Routed {
    /// What is asked.
    pub request: ScoreRequest,
    /// By whom it is answered.
    pub generation: Arc<Generation>,
}

/// A request on its way through the stage.
struct Asked {
    /// Their texts are shared with the flights that it begins: it may have to begin one again.
    rows: Vec<Texts>,
    form: Form,
    deadline: Instant,
    priority: Priority,
    generation: Arc<Generation>,
    misses: Vec<Miss>,
    /// Flights that were begun for it, pairs that had landed by then, and those that other servers had.
    n_begun: usize,
    n_landed: usize,
    n_distributed: usize,
}

/// How often what others' flights did not bring is tried again.
const TRIES_MAX: usize = 3;

// === impl Cache ===

impl Cache {
    /// Looks into `levels`, asks `admit` for what they do not have, and passes that on to `next`.
    pub fn new(levels: Levels, admit: Admit, next: Tokenize, runtime: Runtime) -> Self {
        Self {
            levels,
            admit,
            next,
            runtime,
        }
    }

    async fn answer(self, routed: Routed) -> Result<ScoreResponse, ScoreError> {
        let Routed {
            request,
            generation,
        } = routed;
        let is_alone = request.rows.iter().any(|row| row.query.is_none());
        generation.tokenizer().check(&request.form, is_alone)?;
        let keys = self.levels.keys(&generation, &request);
        let mut pairs: Vec<_> = keys.iter().map(|&key| self.levels.get(key)).collect();
        let misses = keys.into_iter().zip(&pairs).enumerate();
        let misses: Vec<_> = misses
            .filter(|(_, (_, pair))| pair.is_none())
            .map(|(index, (key, _))| Miss { index, key })
            .collect();
        let n_missed = misses.len();
        let mut asked = Asked {
            rows: request.rows,
            form: request.form,
            deadline: request.deadline,
            priority: request.priority,
            generation,
            misses,
            n_begun: 0,
            n_landed: 0,
            n_distributed: 0,
        };
        self.ask_others(&mut asked, &mut pairs).await;
        let answered = if asked.misses.is_empty() {
            let pairs = pairs.into_iter().flatten().collect();
            let times = Times::default();
            Answered { pairs, times }
        } else {
            self.wait(&mut asked, pairs).await?
        };
        self.count(&asked, n_missed);
        Ok(respond(&asked.generation, answered))
    }

    /// Looks into the second level for what nobody computes here.
    async fn ask_others(&self, asked: &mut Asked, pairs: &mut [Option<Pair>]) {
        let (Some(store), Some(shared)) = (&self.levels.store, &self.levels.shared) else {
            return;
        };
        if asked.misses.is_empty() {
            return;
        }
        let new = self.new_ones(asked);
        let keys: Vec<_> = new.iter().map(|miss| miss.key).collect();
        let n_labels = asked.generation.n_labels();
        for (miss, bytes) in new.iter().zip(shared.get(&keys).await) {
            // What is not sound is computed again, and written over.
            let Some(pair) = bytes.and_then(|bytes| Pair::from_bytes(&bytes, n_labels)) else {
                continue;
            };
            store.insert(miss.key, pair.clone());
            pairs[miss.index] = Some(pair);
            asked.n_distributed += 1;
        }
        asked.misses.retain(|miss| pairs[miss.index].is_none());
    }

    /// The misses that nobody computes yet.
    fn new_ones(&self, asked: &Asked) -> Vec<Miss> {
        match &self.levels.board {
            Some(board) => board.new_ones(asked.generation.line(), &asked.misses),
            None => asked.misses.clone(),
        }
    }

    /// Waits for all misses, those of them that nobody else computes in flights of its own.
    async fn wait(
        &self,
        asked: &mut Asked,
        mut pairs: Vec<Option<Pair>>,
    ) -> Result<Answered, ScoreError> {
        let (mut n_tries, mut held) = (0, None);
        loop {
            let (asker, outcome) = Asker::new(pairs);
            let hold = self.begin(asked, &asker).await?;
            // What is left of an earlier try is let go only now: it has been joined again.
            drop(held.replace(hold));
            n_tries += 1;
            // The asker lives in the hold, and answers before it goes.
            let outcome = outcome.await.unwrap_or_else(|_| {
                Err(Failed {
                    error: ScoreError::Cancelled,
                    is_own: true,
                })
            });
            match outcome {
                Ok(answered) => return Ok(answered),
                Err(failed) if n_tries < TRIES_MAX && asked.can_try_again(&failed) => {
                    pairs = asker.so_far();
                    asked.misses.retain(|miss| pairs[miss.index].is_none());
                }
                Err(failed) => return Err(failed.error),
            }
        }
    }

    /// Has `asker` wait for every miss, and has those computed that nobody computes yet.
    async fn begin(&self, asked: &mut Asked, asker: &Arc<Asker>) -> Result<Hold, ScoreError> {
        let generation = Arc::clone(&asked.generation);
        let line = generation.line();
        let new = self.new_ones(asked);
        let mut admission = None;
        if !new.is_empty() {
            let ask = asked.ask(new.iter().map(|miss| miss.index));
            admission = Some(self.admit.admit(line, &ask).await?);
        }
        let gate = Gate {
            levels: &self.levels,
            line,
        };
        let mut hold = gate.claim(&asked.misses, asker, asked.claim(), now());
        asked.n_landed += hold.n_landed;
        let Some((fleet, indices)) = hold.own.take() else {
            return Ok(hold);
        };
        // From here on others may join: whatever becomes of this request, they are told.
        let driven = Driven(Arc::clone(&fleet));
        asked.n_begun += indices.len();
        // Both are in the rows' order.
        let is_admitted =
            |index: &usize| new.binary_search_by_key(index, |miss| miss.index).is_ok();
        if !indices.iter().all(is_admitted) {
            // Flights that it counted on have ended meanwhile: it is asked again, for all of its own.
            drop(admission.take());
            let ask = asked.ask(indices.iter().copied());
            let late = self.admit.admit(line, &ask).await;
            admission = Some(late.inspect_err(|error| fleet.work().fail(error))?);
        }
        let Some(admission) = admission else {
            unreachable!("who begins flights has asked for all of them");
        };
        let rows = indices.iter().map(|&index| asked.rows[index].clone());
        let (rows, form) = (rows.collect(), asked.form.clone());
        self.drive(
            driven,
            Admitted {
                rows,
                form,
                work: Arc::clone(fleet.work()),
                generation,
                permit: admission.permit,
            },
            admission.lease,
        );
        Ok(hold)
    }

    /// Has the flights computed by a task of their own, which ends with them or with the last who waits.
    fn drive(&self, driven: Driven, admitted: Admitted, lease: Option<Lease>) {
        let next = self.next.clone();
        let line = Arc::clone(admitted.generation.line());
        self.runtime.task(async move {
            let work = Arc::clone(driven.0.work());
            let landing = async {
                let ticket = next.oneshot(admitted).await?;
                if let Some(wait_max) = line.wait_max()
                    && timeout(wait_max, ticket.over()).await.is_err()
                {
                    line.drop_waited(now());
                }
                ticket.over().await;
                Ok(())
            };
            tokio::select! {
                biased;
                () = work.over() => {}
                Err(error) = landing => work.fail(&error),
                else => {}
            }
            drop((driven, lease));
        });
    }

    /// Counts where a request's pairs came from, of which so many were not in the store.
    fn count(&self, asked: &Asked, n_missed: usize) {
        if self.levels.is_off() {
            return;
        }
        let n_computed = n_missed - asked.n_landed - asked.n_distributed;
        // Who tried twice began some of them twice.
        let miss = asked.n_begun.min(n_computed);
        asked.generation.metrics().cache(&Origins {
            hit: asked.rows.len() - n_missed + asked.n_landed,
            hit_distributed: asked.n_distributed,
            coalesced: n_computed - miss,
            miss,
        });
    }
}

/// Flights that somebody drives. Whatever ends him, nobody waits for them in vain.
struct Driven(Arc<Fleet>);

impl Drop for Driven {
    fn drop(&mut self) {
        self.0.work().fail(&ScoreError::Cancelled);
    }
}

impl Service<Routed> for Cache {
    type Response = ScoreResponse;
    type Error = ScoreError;
    type Future = Answer;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), ScoreError>> {
        // What it passes on has been admitted, and waits for nothing.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, routed: Routed) -> Answer {
        Box::pin(self.clone().answer(routed))
    }
}

// === impl Asked ===

impl Asked {
    /// What is asked of admission for the rows of these indices.
    fn ask(&self, indices: impl Iterator<Item = usize> + Clone) -> Ask {
        let rows = indices.map(|index| &self.rows[index]);
        let n_rows = rows.clone().count();
        Ask {
            rows: n_rows,
            row_bytes: rows.clone().map(Texts::bytes).sum(),
            text_bytes: text_bytes(rows),
            tokens_max: n_rows * self.generation.tokenizer().row_tokens_max(),
            deadline: self.deadline,
            priority: self.priority,
        }
    }

    fn claim(&self) -> Claim {
        Claim {
            deadline: self.deadline,
            priority: self.priority,
        }
    }

    /// Whether another's flight ended for a reason that need not be this request's: its time, its place in the
    /// queue, or a document beside this one.
    fn can_try_again(&self, failed: &Failed) -> bool {
        let is_theirs = match failed.error {
            ScoreError::DeadlinePassed { .. }
            | ScoreError::Cancelled
            | ScoreError::Overloaded { .. }
            | ScoreError::Unavailable { .. }
            | ScoreError::TooLarge { .. }
            | ScoreError::Backend { .. } => true,
            ScoreError::Invalid { .. }
            | ScoreError::UnknownModel { .. }
            | ScoreError::Internal { .. } => false,
        };
        is_theirs && !failed.is_own && now() < self.deadline
    }
}

// === impl Levels ===

impl Levels {
    /// Nothing is kept and nothing shared.
    fn is_off(&self) -> bool {
        self.store.is_none() && self.board.is_none()
    }

    /// The key of each row; where nobody looks at them, none is made.
    fn keys(&self, generation: &Generation, request: &ScoreRequest) -> Vec<Key> {
        if self.is_off() {
            return vec![0; request.rows.len()];
        }
        let make = || keys(generation.identity(), &request.form, &request.rows);
        aside(request.text_bytes(), make)
    }

    /// Those of this server.
    #[must_use]
    pub fn alone(&self) -> Self {
        Self {
            shared: None,
            ..self.clone()
        }
    }

    /// How much is kept and under way.
    pub fn state(&self) -> CacheState {
        let kept = self.store.as_ref().map(Store::kept).unwrap_or_default();
        CacheState {
            is_enabled: self.store.is_some(),
            entries: kept.entries,
            bytes: kept.bytes,
            flights: self.board.as_ref().map_or(0, |board| board.n_flights()),
        }
    }

    /// Forgets what is kept here. What is in flight lands all the same, and is kept.
    pub fn clear(&self) {
        if let Some(store) = &self.store {
            store.clear();
        }
    }

    fn get(&self, key: Key) -> Option<Pair> {
        self.store.as_ref()?.get(key)
    }

    fn keep(&self, key: Key, pair: &Pair) {
        let Some(store) = &self.store else { return };
        if let Some(shared) = &self.shared {
            shared.put(vec![(key, pair.to_bytes())]);
        }
        store.insert(key, pair.clone());
    }
}

/// A response of these pairs, in the documents' order.
fn respond(generation: &Generation, Answered { pairs, times }: Answered) -> ScoreResponse {
    let n_labels = generation.n_labels();
    let mut response = ScoreResponse {
        model: generation.name(),
        logits: Vec::with_capacity(pairs.len() * n_labels),
        n_labels,
        activation: generation.activation(),
        n_tokens: 0,
        windows: Vec::new(),
        truncated: Vec::new(),
        query_truncated: false,
        times,
    };
    for (index, pair) in pairs.iter().enumerate() {
        response.logits.extend_from_slice(&pair.logits);
        response.n_tokens += u64::from(pair.n_tokens);
        response.query_truncated |= pair.cut.query;
        if pair.cut.document {
            response.truncated.push(index as u32);
        }
    }
    response
}
