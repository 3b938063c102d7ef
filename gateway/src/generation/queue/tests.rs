use super::*;
use crate::generation::hold::HoldBounds;
use crate::generation::work::{RowFault, Scored, Sink};
use crate::model::{Cut, TokenRows};
use crate::score::ScoreError;
use std::sync::Weak;
use std::time::Duration;

/// What failed.
mod again;
/// Priorities.
mod urgent;

const BOUNDS: QueueBounds = QueueBounds {
    rows_max: 100,
    tokens_max: 1_000,
    requests_max: 100,
    bytes_max: 100_000,
    wait_max: None,
};
/// One worker, and predictions that hold.
const ALONE: (f64, usize) = (1.0, 1);
const BATCH: BatchBounds = BatchBounds {
    rows_max: 4,
    tokens_max: 100,
    time_max: Duration::from_secs(1),
    // Filled up, whatever a batch costs.
    hold: HoldBounds {
        is_adaptive: false,
        ..HoldBounds::NEVER
    },
};

struct Nobody;

impl Sink for Nobody {
    fn landed(&self, _: usize, _: Result<Scored<'_>, RowFault>) {}
}

fn work(lengths: &[u32], deadline: Instant) -> Arc<Work> {
    let mut rows = TokenRows::none();
    for length in lengths {
        let n = rows.input_ids.len() + *length as usize;
        rows.input_ids.resize(n, 1);
        rows.type_ids.resize(n, 0);
        rows.end_row(Cut::default());
    }
    let now = Instant::now();
    // The least: its promise says how urgent it is.
    let low = Priority::Low;
    let work = Work::new(lengths.len(), low, deadline, now, Weak::<Nobody>::new());
    work.pushed(rows, now);
    work
}

fn reservation(rows: usize, tokens: usize) -> Reservation {
    let size = Size {
        tokens: tokens as f64,
        squares: 0.0,
    };
    Reservation {
        waiting: Waiting {
            amount: Amount { rows, size },
            deadline: Instant::now(),
        },
        text_bytes: 0,
        priority: Priority::Normal,
    }
}

/// Admits and pushes.
fn push(queue: &mut Queue, work: &Arc<Work>) {
    push_as(queue, work, Priority::Normal);
}

fn push_as(queue: &mut Queue, work: &Arc<Work>, priority: Priority) {
    let tokens = work.amount().size.tokens;
    let asked = Reservation {
        priority,
        ..reservation(work.rows().len(), tokens as usize)
    };
    let alone_s = tokens / 1e4;
    let promise = queue.reserve(asked, alone_s).unwrap();
    queue.push(Arc::clone(work), promise, alone_s, Instant::now());
}

/// Pushes requests of these row lengths, cuts until empty; expects batches of (request, row).
#[track_caller]
fn check(requests: &[&[u32]], bounds: &BatchBounds, expected: &[&[(usize, u32)]]) {
    let (now, mut queue, mut batch) = (Instant::now(), Queue::new(BOUNDS), Vec::new());
    let works: Vec<_> = requests
        .iter()
        .map(|lengths| work(lengths, now + Duration::from_secs(9)))
        .collect();
    for work in &works {
        push(&mut queue, work);
    }
    let mut found = Vec::new();
    loop {
        queue.cut(now, bounds, &Cost::default(), ALONE, &mut batch);
        if batch.is_empty() {
            break;
        }
        let request = |taken: &Taken| {
            works
                .iter()
                .position(|work| Arc::ptr_eq(work, &taken.0))
                .unwrap()
        };
        found.push(
            batch
                .iter()
                .map(|taken| (request(taken), taken.1))
                .collect::<Vec<_>>(),
        );
    }
    assert_eq!(found, expected);
    assert_eq!((queue.n_rows(), queue.n_tokens()), (0, 0));
}

#[test]
fn one_request_in_order() {
    check(&[&[10, 10, 10]], &BATCH, &[&[(0, 0), (0, 1), (0, 2)]]);
}
#[test]
fn bounded_in_rows() {
    check(
        &[&[1; 5]],
        &BATCH,
        &[&[(0, 0), (0, 1), (0, 2), (0, 3)], &[(0, 4)]],
    );
}
#[test]
fn bounded_in_tokens() {
    check(&[&[60, 40, 1]], &BATCH, &[&[(0, 0), (0, 1)], &[(0, 2)]]);
}
#[test]
fn bounded_in_time() {
    // 0.1 ms and 0.1 ms a token at the start.
    let bounds = BatchBounds {
        time_max: Duration::from_micros(2_150),
        ..BATCH
    };
    check(&[&[10, 10, 10]], &bounds, &[&[(0, 0), (0, 1)], &[(0, 2)]]);
}
#[test]
fn a_row_beyond_the_bounds_goes_alone() {
    check(&[&[400, 1]], &BATCH, &[&[(0, 0)], &[(0, 1)]]);
}
#[test]
fn equal_requests_first_come_first_served() {
    check(
        &[&[10; 3], &[10; 3]],
        &BATCH,
        &[&[(0, 0), (0, 1), (0, 2), (1, 0)], &[(1, 1), (1, 2)]],
    );
}
#[test]
fn who_is_complete_does_not_wait_for_others_where_a_batch_costs_little() {
    let adaptive = BatchBounds {
        hold: HoldBounds::NEVER,
        ..BATCH
    };
    // A batch costs 0.1 ms, a token as much: ten times that is enough.
    check(
        &[&[3; 2], &[20; 2], &[30]],
        &adaptive,
        &[&[(0, 0), (0, 1), (2, 0)], &[(1, 0), (1, 1)]],
    );
    check(
        &[&[10], &[20], &[20]],
        &adaptive,
        &[&[(0, 0)], &[(1, 0)], &[(2, 0)]],
    );
}
#[test]
fn the_cheaper_request_first() {
    check(
        &[&[20; 2], &[10; 3]],
        &BATCH,
        &[&[(1, 0), (1, 1), (1, 2), (0, 0)], &[(0, 1)]],
    );
}

#[test]
fn small_requests_do_not_starve_a_large_one() {
    let (now, mut queue, mut batch) = (Instant::now(), Queue::new(BOUNDS), Vec::new());
    let (later, one) = (
        now + Duration::from_secs(9),
        BatchBounds {
            rows_max: 1,
            ..BATCH
        },
    );
    let large = work(&[10; 20], later);
    push(&mut queue, &large);
    // A small request comes with every batch, and one row is all that a batch holds.
    let rounds = (1..1_000).find(|_| {
        push(&mut queue, &work(&[10], later));
        queue.cut(now, &one, &Cost::default(), ALONE, &mut batch);
        Arc::ptr_eq(&batch[0].0, &large)
    });
    // Shared equally, it would be done in round 434, 42 sharing then: nobody has to wait longer than that.
    assert!(
        rounds.is_some_and(|rounds| (20..=434 - 20).contains(&rounds)),
        "{rounds:?}"
    );
}

#[test]
fn a_late_small_request_does_not_wait_behind_a_large_one() {
    let (now, mut queue, mut batch) = (Instant::now(), Queue::new(BOUNDS), Vec::new());
    let later = now + Duration::from_secs(9);
    push(&mut queue, &work(&[10; 50], later));
    queue.cut(now, &BATCH, &Cost::default(), ALONE, &mut batch);
    let small = work(&[10], later);
    push(&mut queue, &small);
    queue.cut(now, &BATCH, &Cost::default(), ALONE, &mut batch);
    assert!(batch.iter().any(|(work, _)| Arc::ptr_eq(work, &small)));
}

#[test]
fn what_nobody_waits_for_is_not_cut() {
    let (now, mut queue, mut batch) = (Instant::now(), Queue::new(BOUNDS), Vec::new());
    let (late, gone, kept) = (
        work(&[9], now),
        work(&[9], now + BATCH.time_max),
        work(&[9], now + BATCH.time_max),
    );
    for work in [&late, &gone, &kept] {
        push(&mut queue, work);
    }
    gone.unwant(0);
    queue.cut(now, &BATCH, &Cost::default(), ALONE, &mut batch);
    assert_eq!((batch.len(), queue.n_rows()), (1, 0));
    assert!(Arc::ptr_eq(&batch[0].0, &kept));
}

#[test]
fn forgotten_rows_give_their_room_back() {
    let (now, mut queue, mut batch) = (Instant::now(), Queue::new(BOUNDS), Vec::new());
    let (first, second) = (
        work(&[5; 6], now + BATCH.time_max),
        work(&[7; 2], now + BATCH.time_max),
    );
    push(&mut queue, &first);
    queue.cut(now, &BATCH, &Cost::default(), ALONE, &mut batch);
    push(&mut queue, &second);
    // Rows 0 to 3 were cut.
    let left = |queue: &Queue| (queue.n_rows(), queue.n_tokens());
    first.unwant(4);
    queue.forget(&first, now);
    assert_eq!(left(&queue), (3, 19));
    first.unwant(5);
    queue.forget(&first, now);
    assert_eq!(left(&queue), (2, 14));
    queue.forget(&first, now);
    assert_eq!(left(&queue), (2, 14));
}

#[test]
fn rows_that_nobody_wants_are_passed_over() {
    let (now, mut queue, mut batch) = (Instant::now(), Queue::new(BOUNDS), Vec::new());
    let some = work(&[5, 6, 7, 8, 9], now + BATCH.time_max);
    some.unwant(0);
    push(&mut queue, &some);
    assert_eq!((queue.n_rows(), queue.n_tokens()), (4, 30));
    some.unwant(2);
    some.unwant(4);
    queue.cut(now, &BATCH, &Cost::default(), ALONE, &mut batch);
    let rows: Vec<_> = batch.iter().map(|(_, row)| *row).collect();
    assert_eq!(rows, [1, 3]);
    // The last one is found when somebody looks for it.
    queue.cut(now, &BATCH, &Cost::default(), ALONE, &mut batch);
    assert_eq!((batch.len(), queue.n_rows(), queue.n_tokens()), (0, 0, 0));
    assert_eq!(queue.take_late().len(), 0);
}

#[test]
fn promises_count_until_released() {
    let mut queue = Queue::new(BOUNDS);
    let most = queue.reserve(reservation(100, 10), 10.0).unwrap();
    let full = Full {
        bound: "queue.rows_max",
        max: 100,
    };
    assert_eq!(queue.reserve(reservation(1, 1), 1.0).unwrap_err(), full);
    queue.release(most);
    queue.reserve(reservation(1, 1), 1.0).unwrap();
    assert_eq!(queue.amount().rows, 1);
}

#[test]
fn a_request_larger_than_the_queue_is_served_when_idle() {
    let mut queue = Queue::new(BOUNDS);
    let huge = reservation(500, 50_000);
    let _first = queue.reserve(huge, 1.0).unwrap();
    queue.reserve(huge, 1.0).unwrap_err();
}

#[test]
fn a_place_is_kept_while_its_request_is_tokenized() {
    let mut queue = Queue::new(BOUNDS);
    let later = Instant::now() + Duration::from_secs(9);
    let (first, second) = (work(&[10; 2], later), work(&[10; 2], later));
    let promise = queue.reserve(reservation(2, 20), 0.002).unwrap();
    push(&mut queue, &second);
    let rows: Vec<_> = queue
        .waiting()
        .map(|(_, waiting)| waiting.amount.rows)
        .collect();
    assert_eq!(rows, [2, 2]);
    queue.push(Arc::clone(&first), promise, 0.002, Instant::now());
    let mut batch = Vec::new();
    queue.cut(Instant::now(), &BATCH, &Cost::default(), ALONE, &mut batch);
    assert!(Arc::ptr_eq(&batch[0].0, &first));
}

#[test]
fn others_are_tokenized_in_turn() {
    let mut queue = Queue::new(BOUNDS);
    for text_bytes in [1_000, 5] {
        let asked = Reservation {
            text_bytes,
            ..reservation(1, 1)
        };
        let _promise = queue.reserve(asked, 1.0).unwrap();
    }
    assert_eq!(queue.text_bytes_until(20), 20 + 5 + 20);
}

#[test]
fn what_cannot_be_done_in_time_leaves_the_workers_to_others() {
    let (now, mut batch) = (Instant::now(), Vec::new());
    // 100 tokens are 10 ms for one worker.
    let cases = [
        (20, ALONE, true),
        (9, ALONE, true),
        (7, ALONE, false),
        (7, (1.0, 4), true),
        (20, (3.0, 1), false),
    ];
    for (left_ms, speed, is_done) in cases {
        let mut queue = Queue::new(BOUNDS);
        let first = work(&[50; 2], now + Duration::from_millis(left_ms));
        let second = work(&[70; 2], now + Duration::from_secs(9));
        push(&mut queue, &first);
        push(&mut queue, &second);
        queue.cut(now, &BATCH, &Cost::default(), speed, &mut batch);
        let is_first = Arc::ptr_eq(&batch[0].0, &first);
        assert_eq!(is_first, is_done, "{left_ms} ms, {speed:?}");
        // Alone it is tried in any case.
        queue = Queue::new(BOUNDS);
        push(
            &mut queue,
            &work(&[50; 2], now + Duration::from_millis(left_ms)),
        );
        queue.cut(now, &BATCH, &Cost::default(), speed, &mut batch);
        assert_eq!(batch.len(), 2);
    }
}

#[test]
fn who_has_rows_in_a_batch_is_not_given_up_by_it() {
    let (now, mut queue, mut batch) = (Instant::now(), Queue::new(BOUNDS), Vec::new());
    // Two workers share 7 ms; the second row alone takes one of them 5.
    let first = work(&[20, 50], now + Duration::from_millis(3));
    push(&mut queue, &first);
    push(&mut queue, &work(&[70; 2], now + Duration::from_secs(9)));
    queue.cut(now, &BATCH, &Cost::default(), (1.0, 2), &mut batch);
    let n_first = batch.iter().filter(|(its, _)| Arc::ptr_eq(its, &first));
    assert_eq!((n_first.count(), queue.take_late().len()), (2, 0));
}

#[test]
fn every_bound_is_kept_and_named() {
    let refused = |bounds, asked| {
        let mut queue = Queue::new(bounds);
        let _first = queue.reserve(asked, 1.0).unwrap();
        let full = queue.reserve(asked, 1.0).unwrap_err();
        (full.bound, full.max)
    };
    let asked = Reservation {
        text_bytes: 100,
        ..reservation(3, 30)
    };
    let cases = [
        (
            QueueBounds {
                rows_max: 5,
                ..BOUNDS
            },
            ("queue.rows_max", 5),
        ),
        (
            QueueBounds {
                tokens_max: 59,
                ..BOUNDS
            },
            ("queue.tokens_max", 59),
        ),
        (
            QueueBounds {
                requests_max: 1,
                ..BOUNDS
            },
            ("queue.requests_max", 1),
        ),
        // 30 tokens of 8 bytes and 100 bytes of text, twice.
        (
            QueueBounds {
                bytes_max: 679,
                ..BOUNDS
            },
            ("queue.bytes_max", 679),
        ),
    ];
    for (bounds, want) in cases {
        assert_eq!(refused(bounds, asked), want);
    }
    let mut queue = Queue::new(QueueBounds {
        bytes_max: 680,
        ..BOUNDS
    });
    let first = queue.reserve(asked, 1.0).unwrap();
    let _second = queue.reserve(asked, 1.0).unwrap();
    assert_eq!(queue.n_bytes(), 680);
    // Tokenized: its text is gone.
    queue.push(work(&[10; 3], Instant::now()), first, 1.0, Instant::now());
    assert_eq!(queue.n_bytes(), 580);
}

#[test]
fn who_waited_too_long_is_told_so_unless_begun() {
    let (now, mut batch) = (Instant::now(), Vec::new());
    let wait_max = Some(Duration::from_secs(1));
    let mut queue = Queue::new(QueueBounds { wait_max, ..BOUNDS });
    let later = now + Duration::from_secs(9);
    let [begun, waits] = [5, 20].map(|n| work(&vec![10; n], later));
    push(&mut queue, &begun);
    push(&mut queue, &waits);
    queue.cut(now, &BATCH, &Cost::default(), ALONE, &mut batch);
    let soon = now + Duration::from_millis(999);
    queue.cut(
        soon,
        &BatchBounds {
            rows_max: 0,
            ..BATCH
        },
        &Cost::default(),
        ALONE,
        &mut batch,
    );
    assert_eq!(queue.take_late().len(), 0);
    let then = now + Duration::from_millis(1_001);
    push(&mut queue, &begun);
    queue.cut(then, &BATCH, &Cost::default(), ALONE, &mut batch);
    let late = queue.take_late();
    let Some((work, ScoreError::Unavailable { why, .. })) = late.last() else {
        panic!("it waited a second: {late:?}")
    };
    assert!(Arc::ptr_eq(work, &waits));
    assert!(
        why.contains("1.0 s in the queue, as long as queue.wait_max"),
        "{why}"
    );
}

#[test]
fn what_is_dropped_is_counted_by_its_reason() {
    let (now, mut queue, mut batch) = (Instant::now(), Queue::new(BOUNDS), Vec::new());
    let later = now + Duration::from_secs(9);
    let expired = work(&[9; 2], now);
    let hopeless = work(&[50; 3], now + Duration::from_millis(10));
    let [gone, left, late, kept] = [5, 6, 7, 20].map(|n| work(&vec![9; n], later));
    for work in [&expired, &hopeless, &gone, &left, &late, &kept] {
        push(&mut queue, work);
    }
    for (work, n) in [(&gone, 5), (&left, 6), (&late, 7)] {
        (0..n).for_each(|row| work.unwant(row));
    }
    queue.forget(&left, now);
    queue.forget(&late, later);
    queue.cut(now, &BATCH, &Cost::default(), ALONE, &mut batch);
    while !batch.is_empty() {
        queue.cut(now, &BATCH, &Cost::default(), ALONE, &mut batch);
    }
    let want = Dropped {
        cancelled: 5 + 6,
        expired: 2 + 7,
        hopeless: 3,
    };
    assert_eq!(queue.dropped(), want);
}
