//! Every small graph against the logits that `transformers` computes, alone and in batches, however these are cut.

#![allow(clippy::print_stdout)] // The measured differences.

mod common;

use backend_api::RowStatus;
use common::{BERT, DEBERTA, FIXED, GoldenRow, HALF, INT8, MODELS, Model, QWEN, T5, XLM_ROBERTA};
use common::{difference, has_runtime, open, request, score};

/// The largest difference of any row to its golden logits.
#[track_caller]
fn check(model: Model, options: &str, rows: &[&GoldenRow], how: &str) {
    let dir = model.dir();
    let backend = open(&request(dir.path(), model.dtype, options)).unwrap();
    let mut worker = backend.worker().unwrap();
    let mut worst = 0.0_f32;
    for (found, row) in score(&mut worker, rows).iter().zip(rows) {
        let found = found
            .as_ref()
            .unwrap_or_else(|status| panic!("{} {how}: {status:?}", model.name));
        worst = worst.max(difference(&row.logits, found));
    }
    println!("{} {how}: {worst:.1e}", model.name);
    assert!(worst <= model.tolerance, "{} {how}: {worst}", model.name);
}

/// The rows that the graph takes.
fn rows(model: Model) -> Vec<GoldenRow> {
    let longest = if model.name == FIXED.name {
        16
    } else {
        usize::MAX
    };
    let rows = model
        .rows()
        .into_iter()
        .filter(|row| row.input_ids.len() <= longest);
    rows.collect()
}

#[test]
fn rows_alone() {
    if !has_runtime() {
        return;
    }
    for model in MODELS {
        for row in &rows(model) {
            check(
                model,
                "{}",
                &[row],
                &format!("{} tokens alone", row.input_ids.len()),
            );
        }
    }
}

#[test]
fn rows_together_and_turned_round() {
    if !has_runtime() {
        return;
    }
    for model in MODELS {
        let rows = rows(model);
        let together: Vec<_> = rows.iter().collect();
        check(model, "{}", &together, "together");
        let turned: Vec<_> = rows.iter().rev().collect();
        check(model, "{}", &turned, "turned round");
    }
}

#[test]
fn sixty_four_rows() {
    if !has_runtime() {
        return;
    }
    for model in MODELS {
        let rows = rows(model);
        let many: Vec<_> = rows.iter().cycle().take(64).collect();
        check(model, "{}", &many, "64 rows");
    }
}

/// However rectangles are cut, padded and planned, scores stay.
#[test]
fn every_cut() {
    if !has_runtime() {
        return;
    }
    for model in [BERT, XLM_ROBERTA, DEBERTA, QWEN, T5, HALF, INT8, FIXED] {
        let rows = rows(model);
        let many: Vec<_> = rows.iter().cycle().take(20).collect();
        for options in [
            r#"{"rectangle_tokens":1}"#,
            r#"{"rectangle_tokens":100000}"#,
            r#"{"width_multiple":7}"#,
            r#"{"width_multiple":64,"rectangle_tokens":90}"#,
            r#"{"memory_arena":false,"memory_pattern":true,"spinning":true}"#,
        ] {
            check(model, options, &many, options);
        }
    }
}

/// A session for each shape, rows in the narrowest that takes them, lines that are left over empty.
#[test]
fn shapes_of_their_own() {
    if !has_runtime() {
        return;
    }
    for model in [BERT, XLM_ROBERTA] {
        let rows = rows(model);
        let many: Vec<_> = rows.iter().cycle().take(23).collect();
        for shapes in ["[[3,38]]", "[[2,38],[8,9]]", "[[1,17],[1,38],[64,3]]"] {
            let options = format!(r#"{{"shapes":{shapes}}}"#);
            let dir = model.dir();
            let backend = open(&request(dir.path(), model.dtype, &options)).unwrap();
            // BERT's longest golden row has 40 tokens: the host keeps it away.
            assert_eq!(backend.limits().row_tokens_max, 38, "{shapes}");
            let fitting: Vec<_> = many
                .iter()
                .copied()
                .filter(|row| row.input_ids.len() <= 38)
                .collect();
            check(model, &options, &fitting, shapes);
            check(model, &options, &fitting[..1], shapes);
        }
    }
}

#[test]
fn every_level_of_optimization() {
    if !has_runtime() {
        return;
    }
    for level in ["disable", "basic", "extended", "all"] {
        for model in [BERT, DEBERTA] {
            let rows = rows(model);
            let options = format!(r#"{{"optimization":"{level}"}}"#);
            check(model, &options, &rows.iter().collect::<Vec<_>>(), level);
        }
    }
}

#[test]
fn several_threads_inside_an_operator() {
    if !has_runtime() {
        return;
    }
    let (dir, rows) = (BERT.dir(), BERT.rows());
    let several = backend_api::OpenRequest {
        n_threads: 3,
        ..request(dir.path(), "f32", "{}")
    };
    let backend = open(&several).unwrap();
    let mut worker = backend.worker().unwrap();
    for (row, found) in rows
        .iter()
        .zip(score(&mut worker, &rows.iter().collect::<Vec<_>>()))
    {
        assert!(difference(&row.logits, &found.unwrap()) <= BERT.tolerance);
    }
}

/// Workers share a session: many at once, each with batches of its own, get what each gets alone.
#[test]
fn workers_do_not_disturb_each_other() {
    if !has_runtime() {
        return;
    }
    for model in [BERT, INT8] {
        let (dir, rows) = (model.dir(), model.rows());
        let backend = open(&request(dir.path(), model.dtype, "{}")).unwrap();
        std::thread::scope(|scope| {
            for first in 0..4 {
                let (mut worker, rows) = (backend.worker().unwrap(), &rows);
                scope.spawn(move || {
                    for at in 0..200 {
                        let batch = [
                            &rows[(first + at) % rows.len()],
                            &rows[(first * at) % rows.len()],
                        ];
                        for (row, found) in batch.iter().zip(score(&mut worker, &batch)) {
                            let worst = difference(&row.logits, &found.unwrap());
                            assert!(worst <= model.tolerance, "{}: {worst}", model.name);
                        }
                    }
                });
            }
        });
    }
}

#[test]
fn unknown_tokens_and_types_fail_their_row_alone() {
    if !has_runtime() {
        return;
    }
    let (dir, rows) = (BERT.dir(), BERT.rows());
    let backend = open(&request(dir.path(), "f32", "{}")).unwrap();
    let mut worker = backend.worker().unwrap();
    let (mut token, mut kind) = (rows[3].clone(), rows[4].clone());
    token.input_ids[1] = 120;
    kind.type_ids[1] = 2;
    let found = score(&mut worker, &[&rows[5], &token, &kind, &rows[6]]);
    assert_eq!(
        (&found[1], &found[2]),
        (&Err(RowStatus::Failed), &Err(RowStatus::Failed))
    );
    for (at, row) in [(0, &rows[5]), (3, &rows[6])] {
        assert!(difference(&row.logits, found[at].as_ref().unwrap()) <= BERT.tolerance);
    }
}
