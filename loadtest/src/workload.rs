//! Workloads: one request a line of JSON, with the scores that it must get where they are known.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::Error;

#[derive(Debug, Clone)]
pub struct Workload {
    /// The file's path, for reports.
    pub name: String,
    /// At least one.
    pub requests: Vec<Request>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Place in the file, from 1.
    pub line: usize,
    pub query: String,
    /// At least one.
    pub documents: Vec<String>,
    /// Logits in document order, as many as documents.
    pub expected: Option<Vec<f32>>,
}

/// What a workload is read from.
#[derive(Debug, Clone, Default)]
pub struct Source {
    pub path: PathBuf,
    /// A file of `{"scores": […]}`, a line for each line of the workload. Wins over scores in the workload.
    pub expect: Option<PathBuf>,
    /// Each request keeps its first documents only.
    pub documents_max: Option<usize>,
}

#[derive(Deserialize)]
struct RawRequest {
    query: String,
    documents: Vec<String>,
    scores: Option<Vec<f32>>,
}

#[derive(Deserialize)]
struct RawExpectation {
    /// Written by `record`; guards against the expectations of another workload.
    query: Option<String>,
    scores: Vec<f32>,
}

impl Workload {
    pub fn load(source: &Source) -> Result<Self, Error> {
        let text = read(&source.path)?;
        let expectations = source
            .expect
            .as_deref()
            .map(|path| Ok((path, read(path)?)))
            .transpose()?;
        let expectations = expectations
            .as_ref()
            .map(|(path, text)| (*path, text.as_str()));
        Self::parse(&source.path, &text, expectations, source.documents_max)
    }

    /// `path`s are for messages. Empty lines are skipped in both files.
    pub fn parse(
        path: &Path,
        text: &str,
        expectations: Option<(&Path, &str)>,
        documents_max: Option<usize>,
    ) -> Result<Self, Error> {
        let mut requests = Vec::new();
        for (line, content) in filled_lines(text) {
            let raw: RawRequest = parse_line(path, line, content)?;
            if raw.documents.is_empty() {
                return Err(at(path, line, "no documents"));
            }
            requests.push(Request {
                line,
                query: raw.query,
                documents: raw.documents,
                expected: raw.scores,
            });
        }
        if requests.is_empty() {
            return Err(Error::Usage(format!("{}: no requests", path.display())));
        }
        if let Some((expect_path, expect_text)) = expectations {
            expect(&mut requests, expect_path, expect_text)?;
        }
        for request in &mut requests {
            limit(request, documents_max).map_err(|reason| at(path, request.line, &reason))?;
        }
        Ok(Self {
            name: path.display().to_string(),
            requests,
        })
    }

    pub fn has_expectations(&self) -> bool {
        self.requests
            .iter()
            .any(|request| request.expected.is_some())
    }
}

/// Puts line k of the expectations on request k.
fn expect(requests: &mut [Request], path: &Path, text: &str) -> Result<(), Error> {
    let lines: Vec<_> = filled_lines(text).collect();
    if lines.len() != requests.len() {
        let reason = format!(
            "{}: {} lines for a workload of {} requests",
            path.display(),
            lines.len(),
            requests.len()
        );
        return Err(Error::Usage(reason));
    }
    for (request, (line, content)) in requests.iter_mut().zip(lines) {
        let raw: RawExpectation = parse_line(path, line, content)?;
        if raw.query.is_some_and(|query| query != request.query) {
            return Err(at(
                path,
                line,
                "another query than the workload's: recorded from another workload",
            ));
        }
        request.expected = Some(raw.scores);
    }
    Ok(())
}

/// Cuts documents and scores. Scores may have been recorded from the whole request or from the cut one.
fn limit(request: &mut Request, documents_max: Option<usize>) -> Result<(), String> {
    let before = request.documents.len();
    request.documents.truncate(documents_max.unwrap_or(before));
    let after = request.documents.len();
    if let Some(expected) = &mut request.expected {
        if expected.len() != before && expected.len() != after {
            return Err(format!(
                "{} expected scores for {before} documents",
                expected.len()
            ));
        }
        expected.truncate(after);
    }
    Ok(())
}

fn filled_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..)
        .zip(text.lines())
        .filter(|(_, content)| !content.trim().is_empty())
}

fn parse_line<'a, T: Deserialize<'a>>(
    path: &Path,
    line: usize,
    content: &'a str,
) -> Result<T, Error> {
    serde_json::from_str(content).map_err(|error| at(path, line, &error.to_string()))
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|error| Error::Usage(format!("{}: {error}", path.display())))
}

fn at(path: &Path, line: usize, reason: &str) -> Error {
    Error::Usage(format!("{}:{line}: {reason}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = r#"{"query": "a", "documents": ["x", "y", "z"], "scores": [1, 2, 3]}

{"query": "b", "documents": ["x"], "more": true}
"#;

    #[track_caller]
    fn check(
        workload: &str,
        expectations: Option<&str>,
        documents_max: Option<usize>,
        wanted: Result<Vec<Option<Vec<f32>>>, &str>,
    ) {
        let expectations = expectations.map(|text| (Path::new("e.jsonl"), text));
        let parsed = Workload::parse(Path::new("w.jsonl"), workload, expectations, documents_max);
        let got = parsed
            .map(|workload| {
                workload
                    .requests
                    .into_iter()
                    .map(|request| request.expected)
                    .collect::<Vec<_>>()
            })
            .map_err(|error| error.to_string());
        match (got, wanted) {
            (Ok(got), Ok(wanted)) => assert_eq!(got, wanted),
            (Err(got), Err(wanted)) => assert!(got.starts_with(wanted), "{got}, not {wanted}"),
            (got, wanted) => panic!("{got:?}, not {wanted:?}"),
        }
    }

    #[test]
    fn lines_become_requests() {
        check(TWO, None, None, Ok(vec![Some(vec![1.0, 2.0, 3.0]), None]));
        check(TWO, None, Some(2), Ok(vec![Some(vec![1.0, 2.0]), None]));
    }

    #[test]
    fn faults_name_file_and_line() {
        check("", None, None, Err("w.jsonl: no requests"));
        check(
            "{\"query\": \"a\", \"documents\": []}",
            None,
            None,
            Err("w.jsonl:1: no documents"),
        );
        check(
            "\n{\"query\": \"a\"}",
            None,
            None,
            Err("w.jsonl:2: missing field `documents`"),
        );
        check(
            "{\"query\": \"a\", \"documents\": [\"x\"], \"scores\": []}",
            None,
            None,
            Err("w.jsonl:1: 0 expected scores for 1"),
        );
    }

    #[test]
    fn expectations_are_laid_on_the_workload() {
        let full = "{\"query\": \"a\", \"scores\": [4, 5, 6]}\n{\"scores\": [7]}";
        check(
            TWO,
            Some(full),
            None,
            Ok(vec![Some(vec![4.0, 5.0, 6.0]), Some(vec![7.0])]),
        );
        check(
            TWO,
            Some(full),
            Some(1),
            Ok(vec![Some(vec![4.0]), Some(vec![7.0])]),
        );
        // Recorded with the same limit.
        check(
            TWO,
            Some("{\"scores\": [4]}\n{\"scores\": [7]}"),
            Some(1),
            Ok(vec![Some(vec![4.0]), Some(vec![7.0])]),
        );
        check(
            TWO,
            Some("{\"scores\": [4]}\n{\"scores\": [7]}"),
            None,
            Err("w.jsonl:1: 1 expected scores for 3"),
        );
        check(
            TWO,
            Some("{\"scores\": [7]}"),
            None,
            Err("e.jsonl: 1 lines for a workload of 2"),
        );
        check(
            TWO,
            Some("{\"query\": \"z\", \"scores\": [4, 5, 6]}\n{\"scores\": [7]}"),
            None,
            Err("e.jsonl:1: another query"),
        );
    }
}
