//! The requests that are measured: one JSON object a line of a file, or made here.

use crate::offline::{Fault, Input, Json, Lines};
use crate::score::Texts;
use serde::Deserialize;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Documents of a request that is made here.
const MADE_DOCUMENTS: usize = 32;
/// Words of a document that is made here: from so many, and so many more at most. Passages are as long.
const MADE_WORDS: (usize, usize) = (24, 72);
/// What it is made of. Nothing is said by it, and it takes as long as if there was.
const WORDS: [&str; 48] = [
    "the", "of", "and", "a", "in", "is", "to", "water", "which", "light", "by", "city", "with",
    "plants", "their", "energy", "from", "river", "was", "history", "for", "people", "some",
    "heat", "on", "market", "are", "cells", "often", "weather", "as", "music", "between", "engine",
    "these", "health", "under", "stone", "many", "language", "after", "forest", "most", "winter",
    "large", "ship", "than", "science",
];

/// Where requests come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Workload {
    /// A file of them.
    File(PathBuf),
    /// So many documents, at least 1, of words at random that are the same every time.
    Made {
        /// Documents, in requests of 32.
        texts: usize,
    },
}

/// A query and its documents.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) query: String,
    pub(super) documents: Vec<String>,
}

// === impl Workload ===

impl Workload {
    /// The first `requests_max` requests of a file; all that are made.
    ///
    /// # Errors
    /// As [`read`].
    pub(super) fn requests(&self, requests_max: usize) -> Result<Vec<Request>, String> {
        match self {
            Self::File(path) => read(path, requests_max),
            Self::Made { texts } => Ok(make(*texts)),
        }
    }
}

/// As reports name it.
impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Made { texts } => write!(f, "{texts} texts made of words"),
        }
    }
}

fn make(texts: usize) -> Vec<Request> {
    // A linear congruence by Knuth's constants: its high bits are random enough to mix words.
    let mut state = 1_u64;
    let mut random = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut text = |n_words: usize| {
        let words: Vec<_> = (0..n_words).map(|_| WORDS[random(WORDS.len())]).collect();
        words.join(" ")
    };
    let (least, more) = MADE_WORDS;
    let mut request = |start: usize| Request {
        query: text(6),
        documents: (start..texts.min(start + MADE_DOCUMENTS))
            .map(|n| text(least + n * 29 % (more + 1)))
            .collect(),
    };
    (0..texts)
        .step_by(MADE_DOCUMENTS)
        .map(&mut request)
        .collect()
}

// === impl Request ===

impl Request {
    /// A row for each document.
    pub(super) fn into_texts(self) -> Vec<Texts> {
        Texts::of_query(self.query, self.documents)
    }

    /// Bytes of all pairs: the query stands in each.
    pub(super) fn row_bytes(&self) -> usize {
        let documents: usize = self.documents.iter().map(String::len).sum();
        documents + self.documents.len() * self.query.len()
    }
}

/// The first `requests_max` requests of a file. Empty lines are passed over, fields that are not known too.
///
/// # Errors
/// Names the file, the line and what is expected.
pub(super) fn read(path: &Path, requests_max: usize) -> Result<Vec<Request>, String> {
    let name = path.display();
    let unreadable = |error: std::io::Error| {
        format!(
            "--workload {name} cannot be read: {error}; name a file with a request a line: {FORM}"
        )
    };
    let file = File::open(path).map_err(unreadable)?;
    let input = Input::File(path.to_owned());
    let mut lines = Lines::new(input.clone(), Box::new(file));
    let of_workload = |why: String| format!("--workload {why}");
    let mut requests = Vec::new();
    while requests.len() < requests_max
        && let Some(line) = lines.next().map_err(of_workload)?
    {
        let request = line.content.and_then(|content| parse(&content));
        let wrong = |fault: Fault| of_workload(fault.at(&input, line.number));
        requests.push(request.map_err(wrong)?);
    }
    if requests.is_empty() {
        return Err(format!(
            "--workload {name} holds no requests; expected one a line: {FORM}"
        ));
    }
    Ok(requests)
}

const FORM: &str = r#"{"query": "…", "documents": ["…", …]}"#;

fn parse(content: &str) -> Result<Request, Fault> {
    let request: Request = Json::new(content).object(FORM)?;
    if request.documents.is_empty() {
        return Err(Fault::whole("no documents; give at least one"));
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str, requests_max: usize) -> Result<Vec<Request>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.jsonl");
        std::fs::write(&path, text).unwrap();
        read(&path, requests_max)
    }

    #[test]
    fn lines_become_requests() {
        let text = "{\"query\": \"a\", \"documents\": [\"x\", \"yy\"]}\n\n{\"documents\": [\"x\"], \
                    \"query\": \"b\", \"scores\": [1]}\nnot read";
        let requests = read_text(text, 2).unwrap();
        assert_eq!(requests.len(), 2);
        assert_eq!(requests[0].row_bytes(), 5);
        assert_eq!(read_text(text, 1).unwrap().len(), 1);
    }

    #[test]
    fn texts_that_are_made_are_the_same_every_time() {
        let made = Workload::Made { texts: 40 };
        let requests = made.requests(1).unwrap();
        assert_eq!(requests, made.requests(1).unwrap());
        let n_documents: Vec<_> = requests.iter().map(|r| r.documents.len()).collect();
        assert_eq!(n_documents, [32, 8]);
        let (least, more) = MADE_WORDS;
        let lengths = requests.iter().flat_map(|request| &request.documents);
        let lengths: Vec<_> = lengths.map(|text| text.split(' ').count()).collect();
        assert!(
            lengths.iter().all(|n| (least..=least + more).contains(n)),
            "{lengths:?}"
        );
    }

    #[track_caller]
    fn check(text: &str, word: &str) {
        let why = read_text(text, 24).unwrap_err();
        assert!(why.contains(word), "{why:?} does not say {word:?}");
    }

    #[test]
    fn faults_name_the_line_and_what_is_expected() {
        check("", "holds no requests; expected one a line");
        check(
            "\n{\"query\": \"a\"}",
            "w.jsonl:2:14: missing field `documents`",
        );
        check("{\"query\": \"a\"}", "\"documents\": [");
        check(
            "{\"query\": \"a\", \"documents\": []}",
            "w.jsonl:1: no documents",
        );
        check("{\"query\": \"a\", \"documents\": [1]}", "w.jsonl:1:30: ");
        check("[\"a\", [\"x\"]]", "w.jsonl:1:1: is no JSON object");
    }
}
