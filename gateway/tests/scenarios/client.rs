//! Clients and what the stages do for them, as `intake`, `cache` and `tokenize` compose it.

use super::crew::Model;
use super::ledger::{Count, PairId, score};
use super::setup::{self, Question};
use super::{Timed, World};
use crate::setup::{PATIENCE, ROWS_MAX, bytes, text_tokens};
use gateway::cache::{Answered, Asker, Claim, Failed, Fleet, Gate, Hold, Miss, Pair};
use gateway::generation::line::Permit;
use gateway::generation::plan::Ask;
use gateway::model::{Cut, TokenRows};
use gateway::score::ScoreError;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// As in `cache.rs`.
const TRIES_MAX: usize = 3;
const TOKENIZER_RETRY_AFTER: Duration = Duration::from_secs(1);
/// Microseconds of tokenizing, and of one document more.
const TOKENIZING_US: (f64, f64) = (200.0, 100.0);
const LEASE_US: f64 = 10_000.0;

/// A request on its way.
struct Call {
    world: Rc<World>,
    model: Rc<Model>,
    id: usize,
    question: Question,
    deadline: Instant,
    misses: Vec<Miss>,
    /// Documents that have gone to be computed.
    is_sent: Vec<bool>,
}

/// A request that waits for its pairs, in the ledger.
struct Waits {
    world: Rc<World>,
    pairs: Vec<PairId>,
}

/// A client's life.
pub(crate) async fn ask(world: Rc<World>, id: usize, question: Question) {
    let clock = Rc::clone(&world.clock);
    let (model, came) = (world.live(), clock.now());
    let deadline = came + question.timeout;
    let (hangs_up_after, timeout) = (question.hangs_up_after, question.timeout);
    world.ledger.came(question.documents.len());
    let call = Call {
        world: Rc::clone(&world),
        model: Rc::clone(&model),
        id,
        is_sent: vec![false; question.documents.len()],
        question: question.clone(),
        deadline,
        misses: Vec::new(),
    };
    let hangs_up = async {
        match hangs_up_after {
            Some(after) => clock.sleep(after).await,
            None => std::future::pending().await,
        }
    };
    let outcome = tokio::select! {
        biased;
        outcome = call.answer() => Some(outcome),
        () = clock.sleep_until(deadline) => Some(Err(ScoreError::DeadlinePassed { after: timeout })),
        () = hangs_up => None,
    };
    world.ledger.count(Count::Requests);
    let has_left = !matches!(outcome, Some(Ok(_)));
    world.ledger.ended(id, question.documents.len(), has_left);
    assert!(
        clock.now() <= deadline,
        "request {id} was answered too late"
    );
    if let Some(outcome) = outcome {
        check(&world, &model, &question, outcome, came);
    } else {
        world.ledger.count(Count::Cancellations);
    }
    world.changed.ring();
}

/// An answer is right, or says what there was reason for.
fn check(
    world: &World,
    model: &Model,
    question: &Question,
    outcome: Result<Vec<Pair>, ScoreError>,
    came: Instant,
) {
    let (ledger, setup) = (&world.ledger, &world.setup);
    let took = world.clock.now() - came;
    let is_patient = question.timeout == PATIENCE;
    match outcome {
        Ok(pairs) => {
            let found: Vec<_> = pairs.iter().map(|pair| pair.logits[0]).collect();
            let pairs = question
                .documents
                .iter()
                .map(|&document| [model.tag, question.query, document]);
            let want: Vec<_> = pairs.map(score).collect();
            assert_eq!(found, want, "scores were mixed up");
            ledger.count(Count::Scored);
            let is_old = model.line.is_closed();
            ledger.count_many(Count::ScoredByOld, usize::from(is_old));
            ledger.count_many(
                Count::Large,
                usize::from(ROWS_MAX < question.documents.len()),
            );
        }
        Err(ScoreError::DeadlinePassed { .. }) => {
            assert!(!is_patient, "somebody starved for {took:?}");
            ledger.count(Count::Expiries);
        }
        Err(
            ScoreError::Overloaded { .. }
            | ScoreError::TooLarge { .. }
            | ScoreError::Unavailable { .. },
        ) => {
            ledger.count(Count::Refusals);
        }
        Err(ScoreError::Backend { .. }) => {
            assert!(setup.is_faulty(), "the backend has done nothing wrong")
        }
        Err(error) => panic!("nobody is to be told {error:?}"),
    }
    if is_patient && setup.queue.wait_max.is_none() {
        let waited = world
            .clock
            .now()
            .saturating_duration_since(came.max(world.load_ended.get()));
        assert!(
            waited < WAIT_MAX,
            "somebody has waited for {took:?}, {waited:?} of it behind nobody"
        );
    }
}

/// What was admitted is done so soon after the last request came: a full queue takes 0.1 s, and workers that
/// hang or are opened again some more.
const WAIT_MAX: Duration = Duration::from_secs(10);

// === impl Call ===

impl Call {
    fn pair(&self, index: usize) -> PairId {
        [
            self.model.tag,
            self.question.query,
            self.question.documents[index],
        ]
    }

    /// `Cache::answer`.
    async fn answer(mut self) -> Result<Vec<Pair>, ScoreError> {
        let world = Rc::clone(&self.world);
        let documents = self.question.documents.iter().enumerate();
        let keys = documents.map(|(index, &document)| Miss {
            index,
            key: setup::key(self.model.tag, self.question.query, document),
        });
        let mut pairs = vec![None; self.question.documents.len()];
        for miss in keys.collect::<Vec<_>>() {
            pairs[miss.index] = world
                .levels
                .store
                .as_ref()
                .and_then(|store| store.get(miss.key));
            if pairs[miss.index].is_none() {
                self.misses.push(miss);
            }
        }
        world
            .ledger
            .count_many(Count::Hits, pairs.len() - self.misses.len());
        if self.misses.is_empty() {
            return Ok(pairs.into_iter().flatten().collect());
        }
        self.wait(pairs).await
    }

    /// `Cache::wait`.
    async fn wait(mut self, mut pairs: Vec<Option<Pair>>) -> Result<Vec<Pair>, ScoreError> {
        let (mut n_tries, mut held) = (0, None);
        loop {
            let (asker, outcome) = Asker::new(pairs);
            let hold = self.begin(&asker).await?;
            drop(held.replace(hold));
            n_tries += 1;
            let outcome = outcome.await.expect("the asker lives in the hold");
            match outcome {
                Ok(Answered { pairs, .. }) => return Ok(pairs),
                Err(failed) if n_tries < TRIES_MAX && self.can_try_again(&failed) => {
                    self.world.ledger.count(Count::Rejoins);
                    pairs = asker.so_far();
                    self.misses.retain(|miss| pairs[miss.index].is_none());
                }
                Err(failed) => return Err(failed.error),
            }
        }
    }

    fn can_try_again(&self, failed: &Failed) -> bool {
        let is_theirs = matches!(
            failed.error,
            ScoreError::DeadlinePassed { .. }
                | ScoreError::Cancelled
                | ScoreError::Overloaded { .. }
        );
        is_theirs && !failed.is_own && self.world.clock.now() < self.deadline
    }

    /// `Cache::begin`.
    async fn begin(&mut self, asker: &Arc<Asker>) -> Result<(Timed<Hold>, Waits), ScoreError> {
        let world = Rc::clone(&self.world);
        let new = match &world.levels.board {
            Some(board) => board.new_ones(&self.model.line, &self.misses),
            None => self.misses.clone(),
        };
        let mut permit = None;
        if !new.is_empty() {
            permit = Some(
                self.admit(new.iter().map(|miss| miss.index).collect())
                    .await?,
            );
        }
        let gate = Gate {
            levels: &world.levels,
            line: &self.model.line,
        };
        let claim = Claim {
            deadline: self.deadline,
            priority: self.question.priority,
        };
        let mut hold = gate.claim(&self.misses, asker, claim, world.clock.now());
        world.ledger.count_many(Count::Landed, hold.n_landed);
        let own = hold.own.take();
        let n_own = own.as_ref().map_or(0, |(_, indices)| indices.len());
        world
            .ledger
            .count_many(Count::Joins, self.misses.len() - hold.n_landed - n_own);
        let hold = (Timed::new(hold, &world.clock), Waits::new(self));
        let Some((fleet, indices)) = own else {
            return Ok(hold);
        };
        let driven = Driven(fleet);
        if new.len() < indices.len() {
            world.ledger.count(Count::Readmissions);
            drop(permit.take());
            let late = self.admit(indices.clone()).await;
            permit = Some(late.inspect_err(|error| driven.0.work().fail(error))?);
        }
        let is_gone = indices.iter().any(|&index| self.is_sent[index]);
        if indices.len() == self.misses.len() {
            indices.iter().for_each(|&index| self.is_sent[index] = true);
        }
        let (Some(permit), false) = (permit, is_gone) else {
            return Err(ScoreError::Cancelled);
        };
        let work = Arc::clone(driven.0.work());
        let pairs: Vec<_> = indices.iter().map(|&index| self.pair(index)).collect();
        world
            .ledger
            .begun(self.id, self.model.tag, &work, pairs.len());
        world
            .ledger
            .check_bounds(&world.setup, self.model.tag, &self.model.line);
        let model = Rc::clone(&self.model);
        world
            .clock
            .spawn(drive(Rc::clone(&world), model, driven, pairs, permit));
        Ok(hold)
    }

    /// `Admit::admit`.
    async fn admit(&self, indices: Vec<usize>) -> Result<Permit, ScoreError> {
        let world = &self.world;
        let documents = indices
            .iter()
            .map(|&index| bytes(text_tokens(self.question.documents[index])));
        let (rows, documents_bytes) = (indices.len(), documents.sum::<usize>());
        let ask = Ask {
            rows,
            row_bytes: documents_bytes + rows * bytes(1),
            text_bytes: documents_bytes + bytes(1),
            tokens_max: rows * 16,
            deadline: self.deadline,
            priority: self.question.priority,
        };
        let permit = self.model.line.admit(&ask, world.clock.now())?;
        if world.happens(world.setup.lease_share) {
            let permit = Rung(Some(permit), &self.model);
            world.clock.sleep(world.micros(LEASE_US)).await;
            return Ok(permit.keep());
        }
        Ok(permit)
    }
}

/// As in `cache.rs`: nobody waits for its flights in vain.
struct Driven(Arc<Fleet>);

impl Drop for Driven {
    fn drop(&mut self) {
        self.0.work().fail(&ScoreError::Cancelled);
    }
}

/// A permit that wakes the workers when it goes, as the line does.
struct Rung<'a>(Option<Permit>, &'a Model);

impl Rung<'_> {
    fn keep(mut self) -> Permit {
        self.0.take().expect("it was not kept before")
    }
}

impl Drop for Rung<'_> {
    fn drop(&mut self) {
        drop(self.0.take());
        self.1.came.ring();
    }
}

/// `Cache::drive` and `Tokenize`.
async fn drive(
    world: Rc<World>,
    model: Rc<Model>,
    driven: Driven,
    pairs: Vec<PairId>,
    permit: Permit,
) {
    let work = Arc::clone(driven.0.work());
    let landing = async {
        let (least_us, document_us) = TOKENIZING_US;
        world
            .clock
            .sleep(world.micros(least_us + document_us * pairs.len() as f64))
            .await;
        if world.happens(world.setup.pool_full_share) {
            let why = "the tokenizer's queue is full".to_owned();
            return Err(ScoreError::Overloaded {
                why,
                retry_after: TOKENIZER_RETRY_AFTER,
            });
        }
        let rows = tokenize(&pairs, |row| work.is_wanted(row));
        if (0..rows.len()).all(|row| rows.row_len(row) > 0) {
            let n_bytes = pairs
                .iter()
                .map(|pair| bytes(text_tokens(pair[2]) + 1))
                .sum();
            model
                .line
                .learn_text(rows.len(), n_bytes, rows.input_ids.len());
        }
        let ticket = permit.push(Arc::clone(&work), rows, world.clock.now());
        let ticket = Timed::new(ticket, &world.clock);
        model.came.ring();
        world
            .ledger
            .check_bounds(&world.setup, model.tag, &model.line);
        ticket.over().await;
        Ok(())
    };
    tokio::select! {
        biased;
        () = work.over() => {}
        Err(error) = landing => work.fail(&error),
        else => {}
    }
    world
        .ledger
        .count_many(Count::Untokenized, usize::from(work.rows().is_empty()));
    world.ledger.driven(&work);
    model.came.ring();
}

/// Rows that say what they are about: query, document, generation, and as many tokens as the texts have.
fn tokenize(pairs: &[PairId], is_wanted: impl Fn(usize) -> bool) -> TokenRows {
    let mut rows = TokenRows::none();
    for (row, pair) in pairs.iter().enumerate() {
        if is_wanted(row) {
            let end = rows.input_ids.len() + text_tokens(pair[2]) + 2;
            rows.input_ids.extend(pair.map(|id| id as u32));
            rows.input_ids.resize(end, 0);
        }
        rows.end_row(Cut::default());
    }
    rows.type_ids = vec![0; rows.input_ids.len()];
    rows
}

// === impl Waits ===

impl Waits {
    fn new(call: &Call) -> Self {
        let pairs: Vec<_> = call
            .misses
            .iter()
            .map(|miss| call.pair(miss.index))
            .collect();
        for &pair in &pairs {
            call.world.ledger.waits(pair, true);
        }
        Self {
            world: Rc::clone(&call.world),
            pairs,
        }
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        for &pair in &self.pairs {
            self.world.ledger.waits(pair, false);
        }
    }
}
