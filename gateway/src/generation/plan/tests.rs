use super::*;
use crate::generation::hold::HoldBounds;

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
