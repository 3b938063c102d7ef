use super::*;

/// Requests of these tokens and priorities, in the order in which they are served.
#[track_caller]
fn check_order(requests: &[(u32, Priority)], expected: &[usize]) {
    let (now, mut queue, mut batch) = (Instant::now(), Queue::new(BOUNDS), Vec::new());
    let one = BatchBounds {
        rows_max: 1,
        ..BATCH
    };
    let works: Vec<_> = requests
        .iter()
        .map(|&(tokens, priority)| {
            let work = work(&[tokens], now + Duration::from_secs(9));
            push_as(&mut queue, &work, priority);
            work
        })
        .collect();
    let served = std::iter::from_fn(|| {
        queue.cut(now, &one, &Cost::default(), ALONE, &mut batch);
        let (taken, _) = batch.first()?;
        works.iter().position(|work| Arc::ptr_eq(work, taken))
    });
    assert_eq!(served.collect::<Vec<_>>(), expected);
}

#[test]
fn the_more_urgent_first_as_far_as_their_weights_go() {
    use Priority::{High, Low, Normal};
    check_order(&[(50, Low), (50, Normal), (50, High)], &[2, 1, 0]);
    // Four times the tokens for each step.
    check_order(&[(11, Normal), (40, High), (10, Normal)], &[1, 2, 0]);
    check_order(&[(10, Normal), (41, High)], &[0, 1]);
    check_order(&[(9, Low), (40, Normal), (150, High)], &[0, 2, 1]);
}

#[test]
fn urgent_requests_do_not_starve_others() {
    let (now, mut queue, mut batch) = (Instant::now(), Queue::new(BOUNDS), Vec::new());
    let later = now + Duration::from_secs(9);
    let one = BatchBounds {
        rows_max: 1,
        ..BATCH
    };
    let low = work(&[10], later);
    push_as(&mut queue, &low, Priority::Low);
    let urgent = || work(&[10], later);
    (0..9).for_each(|_| push_as(&mut queue, &urgent(), Priority::High));
    // Ten always wait, and one comes whenever one is served.
    let rounds = (1..1_000).find(|_| {
        push_as(&mut queue, &urgent(), Priority::High);
        queue.cut(now, &one, &Cost::default(), ALONE, &mut batch);
        Arc::ptr_eq(&batch[0].0, &low)
    });
    // Shared by weight, it would be done in round 318, 22 sharing then: nobody has to wait longer than that.
    assert!(
        rounds.is_some_and(|rounds| (16..=318).contains(&rounds)),
        "{rounds:?}"
    );
}

#[test]
fn what_was_raised_moves_forward() {
    let (now, mut queue, mut batch) = (Instant::now(), Queue::new(BOUNDS), Vec::new());
    let later = now + Duration::from_secs(9);
    let works: Vec<_> = (0..3).map(|_| work(&[10; 4], later)).collect();
    works.iter().for_each(|work| push(&mut queue, work));
    let one = BatchBounds {
        rows_max: 1,
        ..BATCH
    };
    let mut next = |queue: &mut Queue| {
        queue.cut(now, &one, &Cost::default(), ALONE, &mut batch);
        let (taken, row) = &batch[0];
        let index = works.iter().position(|work| Arc::ptr_eq(work, taken));
        (index.unwrap(), *row)
    };
    assert_eq!(next(&mut queue), (0, 0));
    queue.raise(&works[2], Priority::High);
    assert_eq!(next(&mut queue), (2, 0));
    // Nothing is lowered, and its rows stay in order.
    queue.raise(&works[2], Priority::Low);
    queue.raise(&works[1], Priority::Normal);
    let rest: Vec<_> = (0..10).map(|_| next(&mut queue)).collect();
    let want = [
        (2, 1),
        (2, 2),
        (2, 3),
        (0, 1),
        (0, 2),
        (0, 3),
        (1, 0),
        (1, 1),
        (1, 2),
        (1, 3),
    ];
    assert_eq!(rest, want);
    // A request that is not there any more.
    queue.raise(&works[0], Priority::High);
    assert_eq!((queue.n_rows(), queue.n_requests()), (0, 0));
}

#[test]
fn what_was_raised_while_it_was_tokenized_has_its_place() {
    let (now, mut queue, mut batch) = (Instant::now(), Queue::new(BOUNDS), Vec::new());
    let later = now + Duration::from_secs(9);
    let [first, raised] = [20, 40].map(|tokens| work(&[tokens], later));
    push(&mut queue, &first);
    let promise = queue.reserve(reservation(1, 40), 4e-3).unwrap();
    let rows = |queue: &Queue| {
        let waiting = queue.waiting();
        let tokens = waiting.map(|(_, waiting)| waiting.amount.size.tokens as u32);
        tokens.collect::<Vec<_>>()
    };
    assert!(!raised.raise(Priority::Low) && raised.raise(Priority::High));
    assert_eq!(rows(&queue), [20, 40]);
    queue.push(Arc::clone(&raised), promise, 4e-3, now);
    assert_eq!(rows(&queue), [40, 20]);
    queue.cut(now, &BATCH, &Cost::default(), ALONE, &mut batch);
    assert!(Arc::ptr_eq(&batch[0].0, &raised));
    assert_eq!((queue.n_rows(), queue.n_bytes()), (0, 0));
}
