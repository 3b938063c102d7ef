//! Equal pairs that are computed at the same time: one flight, whoever waits for it.
//!
//! A flight belongs to nobody who waits. It is a row of a [`Work`] that a task of its own drives, so it goes
//! on when the request that began it goes away and another one still waits, and ends with its last waiter.

use super::Levels;
use super::asker::Asker;
use super::key::Key;
use super::pair::Pair;
use crate::generation::line::Line;
use crate::generation::work::{RowFault, Scored, Sink, Work};
use crate::runtime::now;
use crate::score::{Priority, Times};
use crate::sync::{Mutex, MutexGuard, PoisonError};
use smallvec::{SmallVec, smallvec};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Weak};
use std::time::Instant;

/// Which pairs are in flight. Bounded by what is admitted: each flight is a row of an admitted request.
#[derive(Default)]
pub struct Board {
    flights: Mutex<HashMap<BoardKey, Seat>>,
}

/// Pairs of different generations are never the same flight: no answer is mixed from two. The first part is
/// the address of the generation's line, which lives while anybody waits for a flight of it.
type BoardKey = (usize, Key);

/// A row of a fleet.
#[derive(Clone)]
struct Seat {
    fleet: Arc<Fleet>,
    row: usize,
}

/// The flights that one request began.
pub struct Fleet {
    work: Arc<Work>,
    line: Arc<Line>,
    keys: Box<[Key]>,
    // Of each row; `None` once it has landed or been given up: nobody can join any more.
    waiters: Mutex<Box<[Option<Waiters>]>>,
    levels: Levels,
}

type Waiters = SmallVec<[Waiter; 1]>;

/// A request that waits for a row, for its document of this index.
#[derive(Clone)]
struct Waiter {
    asker: Arc<Asker>,
    index: usize,
    is_own: bool,
}

/// A pair that a request misses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miss {
    /// The document's index.
    pub index: usize,
    /// The pair's key.
    pub key: Key,
}

/// What a flight keeps to for who waits; for several, the most of each.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// When scores are of no use any more.
    pub deadline: Instant,
    /// How urgent they are.
    pub priority: Priority,
}

/// A request's hold on the flights that it waits for. Dropped, it leaves those that have not landed.
pub struct Hold {
    asker: Arc<Asker>,
    seats: Vec<Seat>,
    // When it left, if it was told.
    left: Option<Instant>,
    /// The flights that it began, and the documents' indices of their rows; `None` if others had begun all.
    pub own: Option<(Arc<Fleet>, Vec<usize>)>,
    /// Documents that had just landed.
    pub n_landed: usize,
}

/// Where flights start.
pub struct Gate<'a> {
    /// Where they are found, and where they land.
    pub levels: &'a Levels,
    /// The line of the generation that computes them.
    pub line: &'a Arc<Line>,
}

// === impl Board ===

impl Board {
    /// Those that nobody computes yet.
    pub fn new_ones(&self, line: &Arc<Line>, misses: &[Miss]) -> Vec<Miss> {
        let flights = self.flights();
        let is_new = |miss: &&Miss| !flights.contains_key(&board_key(line, miss.key));
        misses.iter().filter(is_new).copied().collect()
    }

    /// Pairs that are in flight.
    pub fn n_flights(&self) -> usize {
        self.flights().len()
    }

    /// A flight has ended; another one of the same pair may have begun meanwhile.
    fn remove(&self, key: BoardKey, fleet: &Fleet) {
        if let Entry::Occupied(entry) = self.flights().entry(key)
            && std::ptr::eq(&*entry.get().fleet, fleet)
        {
            entry.remove();
        }
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<BoardKey, Seat>> {
        // Nothing in here can panic half-way; a poisoned lock is still sound.
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Gate ===

impl Gate<'_> {
    /// Has `asker` wait for each miss: on a flight that there is, or on one of its own.
    pub fn claim(&self, misses: &[Miss], asker: &Arc<Asker>, claim: Claim, now: Instant) -> Hold {
        let mut hold = Hold {
            asker: Arc::clone(asker),
            seats: Vec::with_capacity(misses.len()),
            left: None,
            own: None,
            n_landed: 0,
        };
        let (mut own, mut raised) = (Own::default(), Vec::new());
        // Held until the own flights are on the board: of two requests that come together one begins them.
        let board = self.levels.board.as_ref();
        let mut flights = board.map(|board| board.flights());
        for &Miss { index, key } in misses {
            let waiter = |is_own| Waiter {
                asker: Arc::clone(asker),
                index,
                is_own,
            };
            let Some(flights) = &flights else {
                own.push(key, waiter(true));
                continue;
            };
            let seat = flights.get(&board_key(self.line, key));
            if let Some(seat) = seat.filter(|seat| seat.fleet.join(seat.row, waiter(false))) {
                seat.fleet.work.extend(claim.deadline);
                if seat.fleet.work.raise(claim.priority) {
                    raised.push(Arc::clone(&seat.fleet));
                }
                hold.seats.push(seat.clone());
            } else if let Some(pair) = self.levels.get(key) {
                asker.fill(index, pair, Times::default());
                hold.n_landed += 1;
            } else {
                own.push_or_join(key, waiter(true));
            }
        }
        if let Some((fleet, indices)) = self.begin(own, claim, now) {
            for (row, &key) in fleet.keys.iter().enumerate() {
                let fleet = Arc::clone(&fleet);
                let seat = Seat { fleet, row };
                if let Some(flights) = &mut flights {
                    flights.insert(board_key(self.line, key), seat.clone());
                }
                hold.seats.push(seat);
            }
            hold.own = Some((fleet, indices));
        }
        drop(flights);
        for fleet in raised {
            fleet.line.raise(&fleet.work, claim.priority);
        }
        hold
    }

    fn begin(&self, own: Own, claim: Claim, now: Instant) -> Option<(Arc<Fleet>, Vec<usize>)> {
        if own.keys.is_empty() {
            return None;
        }
        let indices = own.waiters.iter().map(|waiters| waiters[0].index).collect();
        let fleet = Arc::new_cyclic(|fleet: &Weak<Fleet>| Fleet {
            work: Work::new(
                own.keys.len(),
                claim.priority,
                claim.deadline,
                now,
                Weak::<Fleet>::clone(fleet),
            ),
            line: Arc::clone(self.line),
            keys: own.keys.into(),
            waiters: Mutex::new(own.waiters.into_iter().map(Some).collect()),
            levels: self.levels.clone(),
        });
        Some((fleet, indices))
    }
}

/// Flights that a request begins.
#[derive(Default)]
struct Own {
    keys: Vec<Key>,
    waiters: Vec<Waiters>,
    rows: HashMap<Key, usize>,
}

impl Own {
    fn push(&mut self, key: Key, waiter: Waiter) {
        self.keys.push(key);
        self.waiters.push(smallvec![waiter]);
    }

    /// The same where an equal document may have begun the flight.
    fn push_or_join(&mut self, key: Key, waiter: Waiter) {
        match self.rows.entry(key) {
            Entry::Occupied(row) => self.waiters[*row.get()].push(waiter),
            Entry::Vacant(row) => {
                row.insert(self.keys.len());
                self.push(key, waiter);
            }
        }
    }
}

// === impl Fleet ===

impl Fleet {
    /// What is computed.
    pub fn work(&self) -> &Arc<Work> {
        &self.work
    }

    /// Has somebody wait for a row, unless it has ended.
    fn join(&self, row: usize, waiter: Waiter) -> bool {
        let mut waiters = self.waiters();
        let Some(waiting) = &mut waiters[row] else {
            return false;
        };
        waiting.push(waiter);
        true
    }

    /// Somebody waits for a row no more. The last one to leave ends the flight.
    fn leave(&self, row: usize, asker: &Arc<Asker>) {
        let mut waiters = self.waiters();
        let Some(waiting) = &mut waiters[row] else {
            return;
        };
        waiting.retain(|waiter| !Arc::ptr_eq(&waiter.asker, asker));
        if waiting.is_empty() {
            waiters[row] = None;
            drop(waiters);
            self.work.unwant(row);
            self.strike(row);
        }
    }

    /// What nobody waits for any more need not wait in the line.
    fn forget(&self, now: Instant) {
        if !self.work.is_over() {
            self.line.forget(&self.work, now);
        }
    }

    /// Takes a flight off the board.
    fn strike(&self, row: usize) {
        if let Some(board) = &self.levels.board {
            board.remove(board_key(&self.line, self.keys[row]), self);
        }
    }

    fn waiters(&self) -> MutexGuard<'_, Box<[Option<Waiters>]>> {
        // Nothing in here can panic half-way; a poisoned lock is still sound.
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for Fleet {
    fn landed(&self, row: usize, outcome: Result<Scored<'_>, RowFault>) {
        let times = outcome
            .as_ref()
            .map_or_else(|_| Times::default(), |s| s.times);
        let outcome = outcome.map(Pair::from);
        // Kept before it leaves the board: whoever looks at both in the other order finds it in one. Faults
        // are not kept: they may not last.
        if let Ok(pair) = &outcome {
            self.levels.keep(self.keys[row], pair);
        }
        let waiters = self.waiters()[row].take();
        self.strike(row);
        for waiter in waiters.into_iter().flatten() {
            let Waiter {
                asker,
                index,
                is_own,
            } = waiter;
            match &outcome {
                Ok(pair) => asker.fill(index, pair.clone(), times),
                Err(fault) => asker.fail(fault.clone().of_document(index), is_own),
            }
        }
    }
}

fn board_key(line: &Arc<Line>, key: Key) -> BoardKey {
    (Arc::as_ptr(line).addr(), key)
}

// === impl Hold ===

impl Hold {
    /// Leaves at `now`.
    pub fn leave(mut self, now: Instant) {
        self.left = Some(now);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let now = self.left.unwrap_or_else(now);
        let mut last: Option<&Arc<Fleet>> = None;
        for Seat { fleet, row } in &self.seats {
            fleet.leave(*row, &self.asker);
            // Seats of one fleet follow each other, more or less.
            if let Some(left) = last.filter(|last| !Arc::ptr_eq(last, fleet)) {
                left.forget(now);
            }
            last = Some(fleet);
        }
        if let Some(left) = last {
            left.forget(now);
        }
    }
}
