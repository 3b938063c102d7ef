use super::*;
use tokenizers::{TruncationParams, TruncationStrategy};

fn path() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("starter/tokenizer.json")
}

fn open(row_tokens_max: usize) -> Tokenizer {
    Tokenizer::open(&path(), row_tokens_max, 2, None).unwrap()
}

fn pair(tokenizer: &Tokenizer, query: &str, document: &str) -> (TokenRows, Cut) {
    let mut rows = TokenRows::none();
    let query = tokenizer.query(Some(query), &Form::default()).unwrap();
    tokenizer.push_pair(&query, document, &mut rows).unwrap();
    let cut = rows.cut(0);
    (rows, cut)
}

/// `n` tokens, no two neighbours alike.
fn words(word: &str, n: usize) -> String {
    let words = ["the", word, "of"].into_iter().cycle().take(n);
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn rows_are_what_the_library_itself_cuts() {
    let sides = [
        (Side::Left, TruncationDirection::Left),
        (Side::Right, TruncationDirection::Right),
    ];
    let lengths = [5, 16, 17, 64];
    for ((side, direction), row_tokens_max) in sides
        .into_iter()
        .flat_map(|side| lengths.map(|length| (side, length)))
    {
        let ours = open(row_tokens_max).cutting_at(side);
        let mut theirs = Encoder::from_file(path()).unwrap();
        theirs.with_padding(None);
        let params = TruncationParams {
            max_length: row_tokens_max,
            direction,
            strategy: TruncationStrategy::LongestFirst,
            ..TruncationParams::default()
        };
        theirs.with_truncation(Some(params)).unwrap();
        for n_query in [0, 1, 2, 5, 6, 7, 8, 13, 14, 40, 61, 90] {
            for n_document in [0, 1, 2, 5, 6, 7, 8, 13, 14, 40, 61, 90] {
                let (query, document) = (words("plants", n_query), words("light", n_document));
                let (rows, cut) = pair(&ours, &query, &document);
                let want = theirs.encode((query, document), true).unwrap();
                let place = format!("{side:?} {row_tokens_max}: {n_query} and {n_document}");
                assert_eq!(rows.input_ids, want.get_ids(), "{place}");
                assert_eq!(rows.type_ids, want.get_type_ids(), "{place}");
                let n_lost = n_query + n_document + ours.n_special() - rows.input_ids.len();
                assert_eq!(cut.query || cut.document, 0 < n_lost, "{place}");
            }
        }
    }
}

#[test]
fn what_was_cut_is_said() {
    let tokenizer = open(16);
    let (long, short) = ("light ".repeat(40), "light");
    let cut = |query: &str, document: &str| pair(&tokenizer, query, document).1;
    let say = |query, document| Cut { query, document };
    assert_eq!(cut(short, short), say(false, false));
    assert_eq!(cut(short, &long), say(false, true));
    assert_eq!(cut(&long, short), say(true, false));
    assert_eq!(cut(&long, &long), say(true, true));
    // Nine of thirteen tokens are more than half a row, and fit.
    assert_eq!(cut(&"light ".repeat(9), "a b"), say(false, false));
}

#[test]
fn long_texts_come_out_as_if_encoded_whole() {
    let texts = [
        "plants need light ".repeat(2_000),
        // A word of more than 100 letters is one unknown token: few tokens, many bytes.
        format!("{} ", "x".repeat(500)).repeat(100),
        "x".repeat(50_000),
        format!("{} light", "é".repeat(40_000)),
    ];
    for side in [Side::Left, Side::Right] {
        let tokenizer = open(16).cutting_at(side);
        for text in &texts {
            let whole = tokenizer.encode(text).unwrap();
            let part = tokenizer.ids(text, side).unwrap();
            let n = whole.len().min(16);
            assert_eq!(side.kept(&part, part.len().min(16)), side.kept(&whole, n));
            assert_eq!(part.len() <= 16, whole.len() <= 16);
        }
        // Only a part was encoded where that is enough.
        let n_ids = tokenizer.ids(&"light ".repeat(10_000), side).unwrap().len();
        assert!((32..1_000).contains(&n_ids), "{n_ids}");
    }
}

#[test]
fn ids_that_the_model_has_not_are_found() {
    let text = std::fs::read_to_string(path()).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let check = |json: &serde_json::Value, vocab_size: u32| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), json.to_string()).unwrap();
        let tokenizer = Tokenizer::open(file.path(), 32, 2, None).unwrap();
        tokenizer.check_vocabulary(vocab_size)
    };
    let n = json["model"]["vocab"].as_object().unwrap().len() as u32;
    assert_eq!(check(&json, n), Ok(None));
    let error = check(&json, n - 1).unwrap_err();
    let want = format!(
        "has id {}, but the model's vocabulary ends at {}",
        n - 1,
        n - 1
    );
    assert!(error.contains(&want), "{error}");

    let mut added = json.clone();
    let token = serde_json::json!({"id": n, "content": "<extra>", "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    added["added_tokens"].as_array_mut().unwrap().push(token);
    let warning = check(&added, n).unwrap().unwrap();
    assert!(warning.contains(&format!("has id {n}")), "{warning}");
    assert_eq!(check(&added, n + 1), Ok(None));

    let mut far = json;
    far["model"]["vocab"]["zzzzz"] = 40_000.into();
    let error = check(&far, 30_522).unwrap_err();
    assert!(
        error.contains("id 40000") && error.contains("30522"),
        "{error}"
    );
}

#[test]
fn a_smaller_bound_is_kept_and_an_impossible_one_refused() {
    let tokenizer = open(64).within(16).unwrap();
    assert_eq!(tokenizer.row_tokens_max(), 16);
    assert_eq!(tokenizer.within(64).unwrap().row_tokens_max(), 16);
    assert!(open(64).within(4).is_err());
}
