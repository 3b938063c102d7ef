//! Pairs that are too long, cut at either side: the rows and scores of `transformers` (tests/truncation/make_truncation.py),
//! for tokenizers that join pairs as BERT, RoBERTa and T5 do.

#[path = "serve/server.rs"]
mod server;

use gateway::model::{Folder, ModelInfo, TokenRows, Tokenizer, Wanted};
use gateway::score::{Form, Side};
use serde::Deserialize;
use serde_json::{Value, json};
use server::Server;
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;

const FAMILIES: [&str; 3] = ["bert", "roberta", "t5"];
const SIDES: [&str; 2] = ["left", "right"];
/// Tokens of a row where scores are compared: one of the lengths of every golden.json.
const SERVED_ROW_TOKENS: usize = 16;

#[derive(Deserialize)]
struct Golden {
    texts: BTreeMap<String, String>,
    rows: Vec<Row>,
}

/// A pair of texts by their names, and what `transformers` makes of it.
#[derive(Deserialize)]
struct Row {
    side: String,
    row_tokens_max: usize,
    query: String,
    document: String,
    input_ids: Vec<u32>,
    type_ids: Vec<u32>,
    logit: f64,
}

fn golden(family: &str) -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/truncation");
    let text = std::fs::read_to_string(path.join(family).join("golden.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// A copy of a family's folder whose file `name` went through `edit`.
fn folder(family: &str, name: &str, edit: impl Fn(&mut Value)) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/truncation");
    for entry in std::fs::read_dir(path.join(family)).unwrap() {
        let entry = entry.unwrap();
        let mut bytes = std::fs::read(entry.path()).unwrap();
        if entry.file_name() == name {
            let mut json = serde_json::from_slice(&bytes).unwrap();
            edit(&mut json);
            bytes = serde_json::to_vec(&json).unwrap();
        }
        std::fs::write(copy.path().join(entry.file_name()), bytes).unwrap();
    }
    copy
}

/// As a user's model says it.
fn cut_at(family: &str, side: &str) -> TempDir {
    folder(family, "tokenizer_config.json", |config| {
        config["truncation_side"] = side.into();
    })
}

fn info(dir: &TempDir) -> Result<ModelInfo, String> {
    let folder = Folder {
        path: dir.path().to_owned(),
        name: "it".to_owned(),
        revision: None,
        wanted: Wanted::default(),
        warnings: Vec::new(),
    };
    ModelInfo::read(&folder).map_err(|error| error.to_string())
}

fn open(info: &ModelInfo) -> Tokenizer {
    let n_types = info.type_vocab_size.unwrap_or(1);
    Tokenizer::open(&info.tokenizer_path, info.row_tokens_max, n_types, None).unwrap()
}

#[test]
fn rows_are_those_of_transformers_at_either_side() {
    for family in FAMILIES {
        let golden = golden(family);
        assert!(golden.rows.len() > 40, "{family}");
        for row in &golden.rows {
            let dir = cut_at(family, &row.side);
            let info = info(&dir).unwrap();
            let side = info.truncation_side.unwrap();
            let tokenizer = open(&info).within(row.row_tokens_max).unwrap();
            let tokenizer = tokenizer.cutting_at(side);
            let query = tokenizer
                .query(Some(&golden.texts[&row.query]), &Form::default())
                .unwrap();
            let mut found = TokenRows::none();
            let document = &golden.texts[&row.document];
            tokenizer.push_pair(&query, document, &mut found).unwrap();
            let pair = format!("{} and {}", row.query, row.document);
            let place = format!("{family}, {side:?}, {}: {pair}", row.row_tokens_max);
            assert_eq!(found.input_ids, row.input_ids, "{place}");
            assert_eq!(found.type_ids, row.type_ids, "{place}");
        }
    }
}

/// `tokenizer_config.json` has the last word; where it says nothing, what `tokenizer.json` was saved with counts.
#[test]
fn a_side_that_tokenizer_json_was_saved_with_counts() {
    let saved = folder("bert", "tokenizer.json", |tokenizer| {
        tokenizer["truncation"] =
            json!({"direction": "Left", "max_length": 8, "strategy": "LongestFirst", "stride": 0});
    });
    let info = info(&saved).unwrap();
    assert_eq!(info.truncation_side, None);
    let ends = |tokenizer: Tokenizer| {
        let tokenizer = tokenizer.within(SERVED_ROW_TOKENS).unwrap();
        let golden = golden("bert");
        let (query, mut found) = (
            tokenizer.query(Some("light"), &Form::default()).unwrap(),
            TokenRows::none(),
        );
        let document = &golden.texts["numbered"];
        tokenizer.push_pair(&query, document, &mut found).unwrap();
        let is_it = |row: &&Row| {
            row.row_tokens_max == SERVED_ROW_TOKENS
                && (row.query.as_str(), row.document.as_str()) == ("short", "numbered")
                && row.input_ids == found.input_ids
        };
        golden.rows.iter().find(is_it).unwrap().side.clone()
    };
    assert_eq!(ends(open(&info)), "left");
    assert_eq!(ends(open(&info).cutting_at(Side::Right)), "right");
}

#[test]
fn a_side_that_there_is_not_is_refused() {
    let why = info(&cut_at("bert", "up")).unwrap_err();
    for word in ["tokenizer_config.json", "up", "left"] {
        assert!(why.contains(word), "{why} does not say {word}");
    }
}

#[test]
fn scores_are_those_of_transformers_at_either_side() {
    let models = FAMILIES
        .into_iter()
        .flat_map(|family| SIDES.map(|side| (family, side, cut_at(family, side))));
    let models: Vec<_> = models.collect();
    let sources = models
        .iter()
        .map(|(family, side, dir)| format!("{family}-{side}={}", dir.path().display()));
    let sources = sources.collect::<Vec<_>>().join(",");
    let length = SERVED_ROW_TOKENS.to_string();
    let server = Server::start(
        "{}",
        &[
            ("model.sources", &sources),
            ("model.backend", "candle-cpu"),
            ("model.dtype", "f32"),
            ("model.options", "{}"),
            ("model.max_length", &length),
            ("threads.total", "1"),
        ],
    );
    for (family, side, _) in &models {
        let golden = golden(family);
        let of_side = golden.rows.iter().filter(|row| row.side == *side);
        for row in of_side.filter(|row| row.row_tokens_max == SERVED_ROW_TOKENS) {
            let (query, document) = (&golden.texts[&row.query], &golden.texts[&row.document]);
            let body = json!({"model": format!("{family}-{side}"), "query": query, "documents": [document],
                "raw_scores": true});
            let answer = server.rerank(&body);
            assert_eq!(answer.status, 200, "{answer:?}");
            let found = answer.results()[0]["relevance_score"].as_f64().unwrap();
            let place = format!("{family}, {side}: {} and {}", row.query, row.document);
            assert!(
                (found - row.logit).abs() < 1e-4,
                "{place}: {found}, {}",
                row.logit
            );
        }
    }
}
