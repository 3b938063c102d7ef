//! Flights, queue and line under a scheduler that tries interleavings of threads: `make test-interleavings`.
//! Where one fails, shuttle prints its schedule, which `shuttle::replay` runs again.

#[path = "interleavings/place.rs"]
mod place;

use gateway::generation::line::Permit;
use gateway::generation::plan::Next;
use gateway::generation::queue::Failure;
use gateway::runtime::now;
use gateway::score::{Priority, ScoreError};
use place::{DOCUMENT, Kept, Place, Stays, line, work_of};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::thread::{self, JoinHandle};
use shuttle::{Config, Runner};
use std::sync::Arc;

/// Of each kind of schedule.
const SCHEDULES: usize = 1_500;
/// Changes of priority among threads in one schedule (Burckhardt et al. 2010): mistakes need few.
const DEPTH: usize = 3;

fn check(test: impl Fn() + Send + Sync + 'static) {
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    let test = Arc::new(test);
    let again = Arc::clone(&test);
    Runner::new(RandomScheduler::new(SCHEDULES), config.clone()).run(move || test());
    Runner::new(PctScheduler::new(DEPTH, SCHEDULES), config).run(move || again());
}

fn join_all<const N: usize>(threads: [JoinHandle<()>; N]) {
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn who_stays_is_answered_whenever_the_other_one_leaves() {
    for kept in [Kept::No, Kept::Yes] {
        check(move || {
            let place = Place::new(kept, 1);
            let leaves = place.ask_later(Stays::No, Priority::Normal);
            let stays = place.ask_later(Stays::Yes, Priority::Normal);
            assert!(leaves.join().is_ok());
            assert_eq!(stays.join().unwrap(), Ok(vec![place.score()]));
            place.end();
        });
    }
}

#[test]
fn landing_joining_and_leaving_lose_nobody_and_compute_once() {
    check(|| {
        let place = Place::new(Kept::Yes, 2);
        let first = place.ask_later(Stays::Yes, Priority::Normal);
        let leaves = place.ask_later(Stays::No, Priority::Normal);
        let second = place.ask_later(Stays::Yes, Priority::Normal);
        for stays in [first, second] {
            assert_eq!(stays.join().unwrap(), Ok(vec![place.score()]));
        }
        assert!(leaves.join().is_ok());
        // Who left may have begun it, and ended it before anybody joined.
        assert!((1..=2).contains(&place.n_computed()));
        place.end();
    });
}

#[test]
fn what_is_kept_or_in_flight_is_computed_once() {
    check(|| {
        let place = Place::new(Kept::Yes, 2);
        let all = [Priority::Normal; 3].map(|priority| place.ask_later(Stays::Yes, priority));
        for stays in all {
            assert_eq!(stays.join().unwrap(), Ok(vec![place.score()]));
        }
        assert_eq!(place.n_computed(), 1);
        place.end();
    });
}

#[test]
fn somebody_more_urgent_joins_while_a_batch_is_cut() {
    check(|| {
        let place = Place::new(Kept::No, 1);
        let low = place.ask_later(Stays::Yes, Priority::Low);
        let high = place.ask_later(Stays::Yes, Priority::High);
        let other = place.ask_for_later(DOCUMENT + 1, Stays::Yes, Priority::Normal);
        for (stays, document) in [(low, 0), (high, 0), (other, 1)] {
            let want = place.score() + document as f32;
            assert_eq!(stays.join().unwrap(), Ok(vec![want]));
        }
        place.end();
    });
}

#[test]
fn two_generations_never_share_a_flight() {
    check(|| {
        let (old, new) = Place::two_generations();
        let before = old.ask_later(Stays::Yes, Priority::Normal);
        let after = new.ask_later(Stays::Yes, Priority::Normal);
        let again = old.ask_later(Stays::Yes, Priority::Normal);
        assert_eq!(after.join().unwrap(), Ok(vec![new.score()]));
        // It is closed while somebody may still come.
        for asked in [before, again] {
            assert_eq!(asked.join().unwrap(), Ok(vec![old.score()]));
        }
        assert_ne!(old.score(), new.score());
        old.end();
        new.end();
    });
}

#[test]
fn workers_are_woken_by_rows_and_by_the_end() {
    check(|| {
        let line = line(2);
        let workers = [0, 1].map(|id| place::work_later(&line, id, 0.0));
        let pushes = [1, 2].map(|n_rows| {
            let line = Arc::clone(&line);
            thread::spawn(move || {
                let permit = place::admit(&line, n_rows, Priority::Normal).unwrap();
                let work = work_of(n_rows);
                let ticket = permit.push(Arc::clone(&work), place::rows(n_rows), now());
                shuttle::future::block_on(ticket.over());
                assert!(work.is_scored());
            })
        });
        join_all(pushes);
        line.close();
        join_all(workers);
        place::check_nothing_left(&line);
    });
}

#[test]
fn workers_wait_for_what_was_admitted_before_the_end() {
    type After = fn(Permit);
    let pushes: After = |permit| {
        let work = work_of(1);
        let ticket = permit.push(Arc::clone(&work), place::rows(1), now());
        shuttle::future::block_on(ticket.over());
        assert!(work.is_scored());
    };
    let goes_away: After = drop;
    for after in [pushes, goes_away] {
        check(move || {
            let line = line(2);
            let permit = place::admit(&line, 1, Priority::Normal).unwrap();
            let workers = [0, 1].map(|id| place::work_later(&line, id, 0.0));
            let closed = Arc::clone(&line);
            let closes = thread::spawn(move || closed.close());
            after(permit);
            closes.join().unwrap();
            join_all(workers);
            place::check_nothing_left(&line);
        });
    }
}

#[test]
fn what_one_worker_fails_another_one_scores_also_at_the_end() {
    for closes_early in [false, true] {
        check(move || fail_once(closes_early));
    }
}

fn fail_once(closes_early: bool) {
    let line = line(2);
    let permit = place::admit(&line, 1, Priority::Normal).unwrap();
    let work = work_of(1);
    let ticket = permit.push(Arc::clone(&work), place::rows(1), now());
    let fails = Arc::clone(&line);
    // It takes the row before the other one looks, puts it back, and goes on as a worker.
    let mut batch = Vec::new();
    let Next::Batch(cut) = line.look(now(), 0, &mut batch) else {
        panic!("a row waits")
    };
    let failing = thread::spawn(move || {
        fails.returned(&cut, false, now);
        let failure = Failure {
            by: 0,
            tries: cut.tries,
            tries_max: 1,
            is_free_together: true,
            error: ScoreError::Cancelled,
        };
        fails.put_back(&batch, &failure, now());
        drop(batch);
        place::work(&fails, 0, 0.0);
    });
    let other = place::work_later(&line, 1, 0.0);
    let closed = Arc::clone(&line);
    let closes = thread::spawn(move || {
        if closes_early {
            closed.close();
        }
    });
    shuttle::future::block_on(ticket.over());
    assert!(work.is_scored());
    drop(ticket);
    line.close();
    join_all([failing, other, closes]);
    place::check_nothing_left(&line);
}
