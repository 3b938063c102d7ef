use super::*;

const DEADLINE: Duration = Duration::from_secs(9);

fn failure(by: WorkerId, tries: u32, is_free_together: bool) -> Failure {
    Failure {
        by,
        tries,
        tries_max: 1,
        is_free_together,
        error: ScoreError::Cancelled,
    }
}

fn batch(works: &[Arc<Work>]) -> Vec<Taken> {
    let mut rows = Vec::new();
    for work in works {
        rows.extend((0..work.rows().len() as u32).map(|row| (Arc::clone(work), row)));
    }
    rows
}

#[test]
fn what_failed_goes_first_to_another_worker() {
    let (now, mut queue, mut taken) = (Instant::now(), Queue::new(BOUNDS), Vec::new());
    let failed = work(&[3, 4], now + DEADLINE);
    assert!(
        queue
            .put_back(&batch(&[failed]), &failure(1, 0, true), now)
            .is_empty()
    );
    assert_eq!((queue.n_rows(), queue.n_tokens()), (2, 7));
    assert!(!queue.is_empty());

    assert_eq!(queue.cut_again(now, (1, false), &mut taken), None);
    assert_eq!(queue.cut_again(now, (2, false), &mut taken), Some(1));
    assert_eq!(taken.len(), 2);
    assert!(queue.is_empty());

    // It has been tried often enough.
    let given_up = queue.put_back(&taken, &failure(2, 1, true), now);
    assert_eq!((given_up.len(), queue.n_rows()), (2, 0));
}

#[test]
fn who_is_the_only_one_tries_its_own_again() {
    let (now, mut queue, mut taken) = (Instant::now(), Queue::new(BOUNDS), Vec::new());
    let failed = work(&[3], now + DEADLINE);
    queue.put_back(&batch(&[failed]), &failure(1, 0, true), now);
    assert_eq!(queue.cut_again(now, (1, true), &mut taken), Some(1));
}

#[test]
fn requests_that_failed_together_are_tried_one_by_one_and_it_does_not_count() {
    let (now, mut queue, mut taken) = (Instant::now(), Queue::new(BOUNDS), Vec::new());
    let works = [work(&[3], now + DEADLINE), work(&[4, 5], now + DEADLINE)];
    let mixed: Vec<_> = [(1, 0), (0, 0), (1, 1)]
        .map(|(idx, row): (usize, u32)| (Arc::clone(&works[idx]), row))
        .into();
    // No try is left, and none is needed.
    assert!(queue.put_back(&mixed, &failure(1, 1, true), now).is_empty());
    let mut sizes = Vec::new();
    while let Some(tries) = queue.cut_again(now, (2, false), &mut taken) {
        assert_eq!(tries, 1);
        assert!(taken.iter().all(|(work, _)| Arc::ptr_eq(work, &taken[0].0)));
        sizes.push(taken.len());
    }
    sizes.sort_unstable();
    assert_eq!(sizes, [1, 2]);

    // Where each try may cost a worker, it counts.
    let given_up = queue.put_back(&mixed, &failure(1, 1, false), now);
    assert_eq!((given_up.len(), queue.is_empty()), (3, true));
}

#[test]
fn rows_that_nobody_wants_are_not_tried_again() {
    let (now, mut queue, mut taken) = (Instant::now(), Queue::new(BOUNDS), Vec::new());
    let failed = work(&[3, 4, 5], now + DEADLINE);
    failed.unwant(0);
    queue.put_back(&batch(&[Arc::clone(&failed)]), &failure(1, 0, true), now);
    assert_eq!(queue.n_rows(), 2);
    failed.unwant(1);
    queue.forget(&failed, now);
    assert_eq!((queue.n_rows(), queue.dropped().cancelled), (1, 1));
    failed.unwant(2);
    assert_eq!(queue.cut_again(now, (2, false), &mut taken), None);
    assert_eq!((queue.is_empty(), queue.dropped().cancelled), (true, 2));
    // The rest of the request, if there was any, goes on.
    assert!(queue.take_late().is_empty());
}

#[test]
fn nothing_is_tried_again_after_its_deadline() {
    let (now, mut queue, mut taken) = (Instant::now(), Queue::new(BOUNDS), Vec::new());
    let failed = work(&[3, 4], now + DEADLINE);
    queue.put_back(&batch(&[failed]), &failure(1, 0, true), now);
    let then = now + DEADLINE;
    assert_eq!(queue.cut_again(then, (2, false), &mut taken), None);
    assert_eq!(queue.dropped().expired, 2);
    let late = queue.take_late();
    assert!(matches!(late[..], [(_, ScoreError::DeadlinePassed { .. })]));
}

#[test]
fn a_closing_generation_forgets_what_is_to_be_tried_again() {
    let (now, mut queue) = (Instant::now(), Queue::new(BOUNDS));
    let works = [work(&[3], now + DEADLINE), work(&[4], now + DEADLINE)];
    queue.put_back(&batch(&works), &failure(1, 0, true), now);
    assert_eq!(queue.drain().len(), 2);
    assert!(queue.is_empty());
}

#[test]
fn who_failed_it_tries_again_where_no_other_comes() {
    let (now, mut queue, mut taken) = (Instant::now(), Queue::new(BOUNDS), Vec::new());
    let failed = work(&[3], now + DEADLINE);
    queue.put_back(&batch(&[failed]), &failure(1, 0, true), now);
    let own_at = queue.own_at(1).unwrap();
    assert_eq!(queue.own_at(2), None);
    let before = own_at - Duration::from_millis(1);
    assert!(now < before);
    assert_eq!(queue.cut_again(before, (1, false), &mut taken), None);
    assert_eq!(queue.cut_again(own_at, (1, false), &mut taken), Some(1));
}
