use super::*;
use crate::generation::hold::HoldBounds;
use crate::generation::work::{RowFault, Scored, Sink};
use std::sync::Weak;

struct Nobody;

impl Sink for Nobody {
    fn landed(&self, _: usize, _: Result<Scored<'_>, RowFault>) {}
}

fn rows(n: usize) -> TokenRows {
    TokenRows {
        input_ids: vec![1; n],
        type_ids: vec![0; n],
        ends: (1..=n as u32).collect(),
        ..TokenRows::none()
    }
}

/// Before one worker that holds batches back for two rows.
fn line(wait_max: Duration) -> Arc<Line> {
    let queue = QueueBounds {
        rows_max: 100,
        tokens_max: 100,
        requests_max: 100,
        bytes_max: 10_000,
        wait_max: None,
    };
    let batch = BatchBounds {
        rows_max: 100,
        tokens_max: 100,
        time_max: Duration::from_secs(1),
        hold: HoldBounds {
            wait_max,
            rows_preferred: 2,
            is_adaptive: false,
        },
    };
    let line = Line::new(queue, batch, 1);
    line.count_worker(1);
    Arc::new(line)
}

fn ask(n: usize, now: Instant) -> Ask {
    Ask {
        rows: n,
        row_bytes: n,
        text_bytes: n,
        tokens_max: n,
        deadline: now + Duration::from_secs(60),
        priority: Priority::Normal,
    }
}

fn push(line: &Arc<Line>, n: usize) -> Ticket {
    let now = Instant::now();
    let permit = line.admit(&ask(n, now), now).unwrap();
    push_admitted(permit, n, now)
}

fn push_admitted(permit: Permit, n: usize, now: Instant) -> Ticket {
    let Ask {
        priority, deadline, ..
    } = ask(n, now);
    let work = Work::new(n, priority, deadline, now, Weak::<Nobody>::new());
    permit.push(work, rows(n), now)
}

#[test]
fn a_held_batch_is_cut_when_its_time_is_up() {
    let wait_max = Duration::from_millis(20);
    let (line, mut batch) = (line(wait_max), Vec::new());
    let started = Instant::now();
    let _ticket = push(&line, 1);
    line.next(0, &mut batch).unwrap();
    assert_eq!(batch.len(), 1);
    assert!(wait_max <= started.elapsed());
}

#[test]
fn a_held_batch_is_cut_when_rows_come_or_nobody_does() {
    // Longer than any test: whoever waits for it fails.
    let wait_max = Duration::from_secs(600);
    let line = line(wait_max);
    std::thread::scope(|scope| {
        let (cut, cuts) = crossbeam_channel::bounded(1);
        let worker = &line;
        scope.spawn(move || {
            let mut batch = Vec::new();
            while worker.next(0, &mut batch).is_some() {
                // So that it is the only idle one again.
                worker.count_worker(1);
                cut.send(batch.len()).unwrap();
            }
        });
        let mut tickets = vec![push(&line, 1), push(&line, 1)];
        assert_eq!(cuts.recv(), Ok(2));
        tickets.push(push(&line, 1));
        line.close();
        assert_eq!(cuts.recv(), Ok(1));
    });
}

#[test]
fn what_was_admitted_before_it_closed_is_still_served() {
    let line = line(Duration::ZERO);
    let (now, mut batch) = (Instant::now(), Vec::new());
    let admitted: Vec<_> = (0..2)
        .map(|_| line.admit(&ask(1, now), now).unwrap())
        .collect();
    line.close();
    std::thread::scope(|scope| {
        let (cut, cuts) = crossbeam_channel::bounded(2);
        let worker = &line;
        scope.spawn(move || {
            while worker.next(0, &mut batch).is_some() {
                cut.send(batch.len()).unwrap();
            }
            drop(cut);
        });
        let mut admitted = admitted.into_iter();
        let _ticket = push_admitted(admitted.next().unwrap(), 1, now);
        assert_eq!(cuts.recv(), Ok(1));
        // The other one never comes: only now is everything done.
        drop(admitted);
        assert!(cuts.recv().is_err());
    });
}
