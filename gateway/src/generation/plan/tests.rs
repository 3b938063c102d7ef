use super::*;
use crate::generation::hold::HoldBounds;
use crate::generation::work::{RowFault, Scored, Sink};
use crate::model::TokenRows;
use crate::score::ScoreError;
use std::sync::Weak;

struct Nobody;

impl Sink for Nobody {
    fn landed(&self, _: usize, _: Result<Scored<'_>, RowFault>) {}
}

#[test]
fn rows_that_were_skipped_teach_nothing_and_the_others_count() {
    let (queue, batch) = (
        QueueBounds {
            rows_max: 10,
            tokens_max: 1_000,
            requests_max: 10,
            bytes_max: 100_000,
            wait_max: None,
        },
        BatchBounds {
            rows_max: 10,
            tokens_max: 1_000,
            time_max: Duration::from_millis(10),
            hold: HoldBounds::NEVER,
        },
    );
    let mut plan = Plan::new(queue, batch, 3);
    let mut done = Computed {
        n_rows: 2,
        size: Size::row(40),
        longest: 20,
        took: Duration::from_millis(4),
        is_whole: true,
        ..Computed::default()
    };
    plan.computed(&done);
    let learned = plan.cost.coefficients();
    done.is_whole = false;
    done.took = Duration::from_micros(1);
    plan.computed(&done);
    assert_eq!(plan.cost.coefficients(), learned);
    let totals = plan.totals();
    assert_eq!((totals.batches, totals.rows, totals.tokens), (2, 4, 80));
}

const QUEUE: QueueBounds = QueueBounds {
    rows_max: 1_000,
    tokens_max: 100_000,
    requests_max: 10,
    bytes_max: 1_000_000,
    wait_max: None,
};

/// A plan before so many workers of a GPU: 5 ms a batch, and next to nothing a row.
fn plan(n_workers: usize, queue: QueueBounds, hold: HoldBounds) -> Plan {
    let batch = BatchBounds {
        rows_max: 100,
        tokens_max: 10_000,
        time_max: Duration::from_millis(10),
        hold,
    };
    let mut plan = Plan::new(queue, batch, 3);
    plan.count_worker(n_workers as isize);
    for tokens in [10, 20, 40, 80, 160, 320, 640] {
        let took = Duration::from_micros(5_000 + tokens as u64);
        plan.learn(Size::row(tokens), took);
    }
    plan
}

fn ask(rows: usize, now: Instant) -> Ask {
    Ask {
        rows,
        row_bytes: 40 * rows,
        text_bytes: 40 * rows,
        tokens_max: 100 * rows,
        deadline: now + Duration::from_secs(9),
        priority: Priority::Normal,
    }
}

/// Admits a request of rows of 10 tokens and pushes them.
fn push(plan: &mut Plan, rows: usize, now: Instant) -> Arc<Work> {
    let ask = ask(rows, now);
    let promise = plan.admit(&ask, now).unwrap();
    let rows = TokenRows {
        input_ids: vec![1; 10 * rows],
        type_ids: vec![0; 10 * rows],
        ends: (1..=rows as u32).map(|row| 10 * row).collect(),
        ..TokenRows::none()
    };
    let nobody = Weak::<Nobody>::new();
    let work = Work::new(rows.len(), ask.priority, ask.deadline, now, nobody);
    work.pushed(rows, now);
    plan.push(Arc::clone(&work), promise, now);
    work
}

/// A worker comes back from a batch that teaches nothing.
fn back(plan: &mut Plan, now: Instant) {
    let cut = Cut {
        tries: 0,
        at: now,
        predicted_s: 0.0,
    };
    plan.returned(&cut, false, now);
}

/// Rows of the next batch; 0 for none, -1 for one that is held back.
fn cut(plan: &mut Plan, now: Instant) -> i32 {
    let mut batch = Vec::new();
    match plan.cut(now, 0, &mut batch) {
        Next::Batch(_) => batch.len() as i32,
        Next::Nothing | Next::Done => 0,
        Next::Hold(until) => {
            assert!(now < until && batch.is_empty());
            -1
        }
    }
}

const FIXED: HoldBounds = HoldBounds {
    wait_max: Duration::from_millis(10),
    rows_preferred: 8,
    is_adaptive: false,
};

#[test]
fn a_batch_is_held_back_until_it_is_full_or_its_time_is_up() {
    let now = Instant::now();
    let after = |ms| now + Duration::from_millis(ms);
    let plan_of = |n_workers| plan(n_workers, QUEUE, FIXED);
    let mut plan = plan_of(1);
    assert_eq!(cut(&mut plan, now), 0);
    push(&mut plan, 3, now);
    assert_eq!(cut(&mut plan, now), -1);
    push(&mut plan, 4, after(5));
    assert_eq!(cut(&mut plan, after(9)), -1);
    assert_eq!(cut(&mut plan, after(10)), 7);
    // The preferred rows are there.
    plan = plan_of(1);
    push(&mut plan, 8, now);
    assert_eq!(cut(&mut plan, now), 8);
    // Who goes away while it is held back leaves nothing to wait for.
    plan = plan_of(1);
    let gone = push(&mut plan, 1, now);
    assert_eq!(cut(&mut plan, now), -1);
    gone.unwant(0);
    plan.forget(&gone, now);
    assert_eq!(cut(&mut plan, now), 0);
    // However many workers are idle.
    plan = plan_of(2);
    push(&mut plan, 1, now);
    assert_eq!(cut(&mut plan, now), -1);
    // Nobody comes any more.
    plan.close();
    assert_eq!(cut(&mut plan, now), 1);
}

#[test]
fn adaptive_it_is_held_back_while_others_are_expected() {
    let hold = HoldBounds {
        is_adaptive: true,
        ..FIXED
    };
    let (start, mut plan) = (Instant::now(), plan(1, QUEUE, hold));
    push(&mut plan, 1, start);
    assert_eq!(cut(&mut plan, start), 1, "nothing is known of arrivals");
    // One a millisecond, each cut by itself.
    let mut now = start;
    for _ in 0..1_000 {
        now += Duration::from_millis(1);
        back(&mut plan, now);
        push(&mut plan, 1, now);
        while cut(&mut plan, now) == -1 {
            now += Duration::from_millis(1);
            push(&mut plan, 1, now);
        }
    }
    back(&mut plan, now);
    push(&mut plan, 1, now);
    let mut batch = Vec::new();
    let Next::Hold(until) = plan.cut(now, 0, &mut batch) else {
        panic!("four more are expected in the time of a batch")
    };
    // 5 ms less twice the one that waits.
    let waits_ms = 1e3 * (until - now).as_secs_f64();
    assert!((2.0..3.5).contains(&waits_ms), "{waits_ms}");
    // Nobody came.
    assert_eq!(cut(&mut plan, until), 1);
    // Another worker is idle too.
    plan.count_worker(1);
    push(&mut plan, 1, until);
    assert_eq!(cut(&mut plan, until), -1);
    plan.count_worker(1);
    assert_eq!(cut(&mut plan, until), 1);
}

#[test]
fn who_is_idle_has_no_queue() {
    let now = Instant::now();
    let mut plan = plan(1, QUEUE, HoldBounds::NEVER);
    assert_eq!(plan.load().queue_time, Duration::ZERO);
    push(&mut plan, 1, now);
    assert!(plan.load().queue_time >= Duration::from_millis(4));
    assert_eq!(cut(&mut plan, now), 1);
    back(&mut plan, now);
    assert_eq!(plan.load().queue_time, Duration::ZERO);
}

#[test]
fn a_refusal_names_the_bound() {
    let now = Instant::now();
    let refused = |queue, rows| {
        let mut plan = plan(1, queue, HoldBounds::NEVER);
        push(&mut plan, 500, now);
        let Err(ScoreError::Overloaded { why, .. }) = plan.admit(&ask(rows, now), now) else {
            panic!("there is no room")
        };
        why
    };
    let why = refused(
        QueueBounds {
            bytes_max: 41_000,
            ..QUEUE
        },
        20,
    );
    assert!(why.contains("queue.bytes_max = 41000"), "{why}");
    let why = refused(
        QueueBounds {
            requests_max: 1,
            ..QUEUE
        },
        1,
    );
    assert!(why.contains("500 rows of 5000 tokens wait"), "{why}");
    assert!(why.contains("queue.requests_max = 1"), "{why}");
    let wait_max = Some(Duration::from_millis(1));
    let why = refused(QueueBounds { wait_max, ..QUEUE }, 501);
    assert!(why.contains("more than queue.wait_max"), "{why}");
}

#[test]
fn what_was_late_or_in_vain_is_counted() {
    let (now, mut plan) = (Instant::now(), plan(1, QUEUE, HoldBounds::NEVER));
    let gone = push(&mut plan, 3, now);
    (0..3).for_each(|row| gone.unwant(row));
    plan.forget(&gone, now);
    for outcome in [Some(false), Some(true), None, Some(false)] {
        plan.requests_in_flight = 1;
        plan.leave(outcome);
    }
    plan.computed(&Computed {
        n_unwanted: 2,
        n_skipped: 1,
        ..Computed::default()
    });
    let totals = plan.totals();
    assert_eq!(totals.late, 2);
    assert_eq!((totals.unwanted, totals.skipped), (2, 1));
    assert_eq!(totals.dropped.cancelled, 3);
    let learned = plan.load().learned;
    assert!((4.9e-3..5.1e-3).contains(&learned.batch_s), "{learned:?}");
    assert_eq!(learned.pace, 1.0);
    // Two were late.
    assert!((0.60..0.62).contains(&learned.share), "{learned:?}");
}
