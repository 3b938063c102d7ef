//! How texts become rows in the forms that a request may ask for, with the starter's tokenizer and against the
//! `tokenizers` library's own cutting.

use gateway::model::{TokenRows, Tokenizer};
use gateway::score::{Form, ScoreError, Side};
use std::path::{Path, PathBuf};
use tokenizers::{EncodeInput, TruncationDirection, TruncationParams, TruncationStrategy};

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("starter/tokenizer.json")
}

fn ours(row_tokens_max: usize) -> Tokenizer {
    Tokenizer::open(&path(), row_tokens_max, 2, None).unwrap()
}

/// What the library makes of texts in rows of so many tokens.
fn theirs<'s>(
    texts: impl Into<EncodeInput<'s>>,
    max_length: usize,
    direction: TruncationDirection,
) -> (Vec<u32>, Vec<u32>) {
    let mut encoder = tokenizers::Tokenizer::from_file(path()).unwrap();
    encoder.with_padding(None);
    let params = TruncationParams {
        max_length,
        strategy: TruncationStrategy::LongestFirst,
        direction,
        ..TruncationParams::default()
    };
    encoder.with_truncation(Some(params)).unwrap();
    let encoding = encoder.encode(texts, true).unwrap();
    (
        encoding.get_ids().to_vec(),
        encoding.get_type_ids().to_vec(),
    )
}

fn row(tokenizer: &Tokenizer, query: Option<&str>, document: &str, form: &Form) -> TokenRows {
    let mut rows = TokenRows::none();
    let query = tokenizer.query(query, form).unwrap();
    tokenizer.push_pair(&query, document, &mut rows).unwrap();
    rows
}

/// Words that are a token each, so that what was kept can be told.
fn words(n: usize, first: usize) -> String {
    let all = [
        "light", "water", "green", "plants", "sun", "soil", "air", "tree", "sea",
    ];
    let words: Vec<_> = (first..first + n).map(|at| all[at % all.len()]).collect();
    words.join(" ")
}

#[test]
fn both_sides_are_cut_as_the_library_cuts_them() {
    let sides = [
        (Side::Right, TruncationDirection::Right),
        (Side::Left, TruncationDirection::Left),
    ];
    for (side, direction) in sides {
        let form = Form {
            side: Some(side),
            ..Form::default()
        };
        for row_tokens_max in [7, 16, 33] {
            let tokenizer = ours(row_tokens_max);
            for n_query in [1, 3, 6, 15, 40] {
                for n_document in [1, 3, 7, 16, 90] {
                    let (query, document) = (words(n_query, 0), words(n_document, 4));
                    let rows = row(&tokenizer, Some(&query), &document, &form);
                    let wanted = theirs(
                        (query.as_str(), document.as_str()),
                        row_tokens_max,
                        direction,
                    );
                    let place = format!("{side:?} {row_tokens_max}: {n_query} and {n_document}");
                    assert_eq!((rows.input_ids, rows.type_ids), wanted, "{place}");
                }
            }
            for n_words in [1, 5, 6, 90] {
                let text = words(n_words, 2);
                let rows = row(&tokenizer, None, &text, &form);
                let wanted = theirs(text.as_str(), row_tokens_max, direction);
                assert_eq!(rows.cut(0).document, row_tokens_max < n_words + 2);
                assert_eq!(
                    (rows.input_ids, rows.type_ids),
                    wanted,
                    "{side:?} {n_words} alone"
                );
            }
        }
    }
}

/// A long text of which the end counts, longer than what is encoded of one whose beginning does.
#[test]
fn the_end_of_a_very_long_text_is_its_own() {
    let tokenizer = ours(16);
    let form = Form {
        side: Some(Side::Left),
        ..Form::default()
    };
    let document = format!("{} the very end", "plants need light ".repeat(3_000));
    let rows = row(&tokenizer, Some("q"), &document, &form);
    let short = row(
        &tokenizer,
        Some("q"),
        "light plants need light plants need light the very end",
        &form,
    );
    assert_eq!(
        rows.input_ids[8..],
        short.input_ids[short.input_ids.len() - 8..]
    );
}

#[test]
fn bounds_in_tokens_are_kept_and_said() {
    let tokenizer = ours(64);
    let bounds = |query, document, row| Form {
        query_tokens_max: query,
        document_tokens_max: document,
        row_tokens_max: row,
        ..Form::default()
    };
    let lengths = |form: &Form, n_query: usize, n_document: usize| {
        let rows = row(
            &tokenizer,
            Some(&words(n_query, 0)),
            &words(n_document, 0),
            form,
        );
        let separator = rows
            .type_ids
            .iter()
            .filter(|&&segment| segment == 0)
            .count();
        let cut = rows.cut(0);
        (
            separator - 2,
            rows.input_ids.len() - separator - 1,
            cut.query,
            cut.document,
        )
    };
    assert_eq!(
        lengths(&bounds(None, None, None), 5, 9),
        (5, 9, false, false)
    );
    assert_eq!(
        lengths(&bounds(Some(3), None, None), 5, 9),
        (3, 9, true, false)
    );
    assert_eq!(
        lengths(&bounds(None, Some(4), None), 5, 9),
        (5, 4, false, true)
    );
    assert_eq!(
        lengths(&bounds(None, None, Some(13)), 5, 9),
        (5, 5, false, true)
    );
    assert_eq!(
        lengths(&bounds(Some(2), Some(6), Some(9)), 5, 9),
        (2, 4, true, true)
    );
    // More than the model reads is what it reads.
    assert_eq!(
        lengths(&bounds(None, None, Some(900)), 5, 90),
        (5, 56, false, true)
    );
    assert_eq!(
        lengths(&bounds(Some(9), Some(9), Some(64)), 9, 9),
        (9, 9, false, false)
    );
}

#[test]
fn what_is_not_possible_is_named() {
    let tokenizer = ours(64);
    let check = |form: Form| match tokenizer.check(&form, false) {
        Err(ScoreError::Invalid { param, why }) => format!("{param}: {why}"),
        other => panic!("{other:?}"),
    };
    let narrow = check(Form {
        row_tokens_max: Some(4),
        ..Form::default()
    });
    assert!(
        narrow.contains("row_tokens_max: 4") && narrow.contains("5 or more"),
        "{narrow}"
    );
    let told = check(Form {
        instruction: Some("find laws".into()),
        ..Form::default()
    });
    assert!(told.contains("instruction: this model's prompt"), "{told}");
}

#[test]
fn windows_hold_all_of_a_document_and_each_fits() {
    for (row_tokens_max, n_query, n_document) in
        [(64, 5, 500), (32, 20, 300), (16, 1, 33), (512, 7, 3_000)]
    {
        let tokenizer = ours(row_tokens_max);
        let form = Form {
            windows: true,
            ..Form::default()
        };
        let query = tokenizer.query(Some(&words(n_query, 0)), &form).unwrap();
        // Numbers of several tokens each, so that windows could begin within one.
        let document: Vec<_> = (0..n_document).map(|n| format!("{}", 10_000 + n)).collect();
        let text = document.join(" ");
        let windows = tokenizer.windows(&query, &text).unwrap();
        assert!(1 < windows.parts.len() && !windows.is_cut);
        let mut rows = TokenRows::none();
        for part in &windows.parts {
            tokenizer
                .push_pair(&query, &text[part.clone()], &mut rows)
                .unwrap();
            let cut = rows.cut(rows.len() - 1);
            assert!(!cut.document, "{row_tokens_max}: {part:?}");
        }
        for number in &document {
            let is_whole = |part: &std::ops::Range<usize>| {
                text[part.clone()].split(' ').any(|word| word == number)
            };
            assert!(
                windows.parts.iter().any(is_whole),
                "{row_tokens_max}: {number}"
            );
        }
        let whole = row(
            &ours(1 << 20),
            Some(&words(n_query, 0)),
            &text,
            &Form::default(),
        );
        assert_eq!(windows.n_tokens, whole.input_ids.len() - 3 - n_query);
    }
}

#[test]
fn what_fits_is_one_window_and_what_is_bounded_is_less() {
    let tokenizer = ours(32);
    let form = |document_tokens_max| Form {
        document_tokens_max,
        ..Form::default()
    };
    let windows = |form: &Form, document: &str| {
        let query = tokenizer.query(Some("q"), form).unwrap();
        let windows = tokenizer.windows(&query, document).unwrap();
        let parts: Vec<_> = windows
            .parts
            .iter()
            .map(|part| document[part.clone()].to_owned())
            .collect();
        (parts, windows.is_cut)
    };
    assert_eq!(
        windows(&form(None), "light and air  "),
        (vec!["light and air  ".to_owned()], false)
    );
    assert_eq!(windows(&form(None), ""), (vec![String::new()], false));
    assert_eq!(
        windows(&form(Some(2)), "light and air"),
        (vec!["light and".to_owned()], true)
    );
    let (parts, is_cut) = windows(&form(Some(40)), &words(90, 0));
    assert!(1 < parts.len() && is_cut);
    assert!(words(40, 0).ends_with(parts.last().unwrap()), "{parts:?}");
    // Letters of several bytes are not taken apart.
    let (parts, _) = windows(&form(None), &"光合作用需要陽光".repeat(30));
    assert!(1 < parts.len());
}

#[test]
fn prefixes_stand_before_texts_and_in_every_window() {
    let (plain, prefixed) = (ours(64), ours(64).with_prefixes("plants: ", "the sea "));
    let form = Form::default();
    let wanted = row(&plain, Some("plants: soil"), "the sea air", &form);
    assert_eq!(row(&prefixed, Some("soil"), "air", &form), wanted);
    // Whoever scores with another frame scores other rows.
    assert_ne!(plain.frame(), prefixed.frame());
    let alone = row(&plain, None, "air", &form);
    assert_eq!(row(&prefixed, None, "air", &form), alone);
    let query = prefixed.query(Some("soil"), &form).unwrap();
    let text = words(300, 0);
    let windows = prefixed.windows(&query, &text).unwrap();
    assert!(1 < windows.parts.len());
    assert_eq!(windows.n_tokens, 302);
    let mut rows = TokenRows::none();
    for part in windows.parts {
        prefixed.push_pair(&query, &text[part], &mut rows).unwrap();
        assert!(!rows.cut(rows.len() - 1).document);
    }
}
