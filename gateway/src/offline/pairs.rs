//! Lines of `crossgate score`: what each asks for.

use super::line::Fault;
use super::text::Json;
use crate::intake::Bounds;
use crate::score::{ScoreError, Texts};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::sync::Arc;

const FORM: &str = r#"{"query": "…", "document": "…"}, {"query": "…", "documents": ["…", …]}, {"text_1": "…", "text_2": "…"} or {"text": "…"}"#;

/// Reads one line after another.
pub(super) struct Reader {
    pub(super) bounds: Bounds,
    /// Of a document that is an object, the fields that are its text.
    pub(super) fields: Vec<String>,
    /// Of the line before: lines that share it are encoded once.
    pub(super) query: Option<Arc<str>>,
}

/// What a line asks for.
pub(super) struct Asked {
    /// As it was written; `None` where there is none.
    pub(super) id: Option<Box<RawValue>>,
    pub(super) rows: Result<Rows, Fault>,
}

/// A line's rows.
pub(super) struct Rows {
    pub(super) rows: Vec<Texts>,
    /// Whether they were written as a list, and their scores are.
    pub(super) is_list: bool,
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    query: Option<&'a RawValue>,
    #[serde(borrow)]
    document: Option<&'a RawValue>,
    #[serde(borrow)]
    documents: Option<&'a RawValue>,
    #[serde(borrow)]
    text_1: Option<&'a RawValue>,
    #[serde(borrow)]
    text_2: Option<&'a RawValue>,
    #[serde(borrow)]
    text: Option<&'a RawValue>,
}

// === impl Reader ===

impl Reader {
    pub(super) fn read(&mut self, line: &str) -> Asked {
        let json = Json::new(line);
        match json.object::<Body<'_>>(FORM) {
            Ok(body) => Asked {
                id: body.id.map(ToOwned::to_owned),
                rows: self.rows(json, &body),
            },
            Err(fault) => Asked {
                id: None,
                rows: Err(fault),
            },
        }
    }

    fn rows<'a>(&mut self, json: Json<'a>, body: &Body<'a>) -> Result<Rows, Fault> {
        let Body {
            query,
            document,
            documents,
            text_1,
            text_2,
            text,
            ..
        } = *body;
        let one = |rows| Rows {
            rows,
            is_list: false,
        };
        match (query, document, documents, text_1, text_2, text) {
            (Some(query), Some(document), None, None, None, None) => {
                let query = self.query(json, "query", query)?;
                let document = self.document(json, "document", document, 0)?;
                Ok(one(Texts::of_query(query, [document])))
            }
            (Some(query), None, Some(documents), None, None, None) => {
                let query = self.query(json, "query", query)?;
                let documents = self.documents(json, documents)?;
                Ok(Rows {
                    rows: Texts::of_query(query, documents),
                    is_list: true,
                })
            }
            (None, None, None, Some(first), Some(second), None) => {
                let query = self.query(json, "text_1", first)?;
                let document = self.document(json, "text_2", second, 0)?;
                Ok(one(Texts::of_query(query, [document])))
            }
            (None, None, None, None, None, Some(text)) => {
                let text = self.document(json, "text", text, 0)?;
                Ok(one(Texts::alone([text])))
            }
            _ => Err(Fault {
                column: Some(1),
                why: format!("has other fields than a line may have; expected {FORM}"),
            }),
        }
    }

    fn query<'a>(
        &mut self,
        json: Json<'a>,
        name: &str,
        part: &'a RawValue,
    ) -> Result<Arc<str>, Fault> {
        let text = json.string(name, part)?;
        if let Some(last) = self.query.as_ref().filter(|last| ***last == *text) {
            return Ok(Arc::clone(last));
        }
        let fits = self.bounds.check_query(name, &text);
        fits.map_err(|error| json.fault(part, error.to_string()))?;
        let query: Arc<str> = text.into();
        self.query = Some(Arc::clone(&query));
        Ok(query)
    }

    fn document<'a>(
        &self,
        json: Json<'a>,
        name: &str,
        part: &'a RawValue,
        index: usize,
    ) -> Result<String, Fault> {
        let text = json.document(name, part, &self.fields)?;
        match self.bounds.check_document(index, text.len()) {
            Ok(()) => Ok(text),
            Err(ScoreError::TooLarge { why, .. }) => {
                Err(json.fault(part, format!("{name}: {why}")))
            }
            Err(error) => Err(json.fault(part, error.to_string())),
        }
    }

    fn documents<'a>(&self, json: Json<'a>, part: &'a RawValue) -> Result<Vec<String>, Fault> {
        let list: Vec<&'a RawValue> = serde_json::from_str(part.get())
            .map_err(|_| json.fault(part, "documents is no list; give one, or `document`"))?;
        if list.is_empty() {
            return Err(json.fault(part, "documents is empty; give at least one"));
        }
        let document = |(index, part): (usize, &&'a RawValue)| {
            self.document(json, &format!("documents[{index}]"), part, index)
        };
        list.iter().enumerate().map(document).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::Priority;

    fn reader() -> Reader {
        Reader {
            bounds: Bounds {
                body_bytes_max: 1 << 10,
                bytes_max: 1 << 10,
                requests_max: 1,
                documents_max: 1,
                document_bytes_max: 10,
                query_bytes_max: 10,
                priority_max: Priority::High,
            },
            fields: Vec::new(),
            query: None,
        }
    }

    #[track_caller]
    fn check(line: &str, wanted: &[(Option<&str>, &str)], is_list: bool) {
        let rows = reader().read(line).rows.expect("a line");
        let found = rows.rows.iter();
        let found: Vec<_> = found
            .map(|row| (row.query.as_deref(), &*row.document))
            .collect();
        assert_eq!((&*found, rows.is_list), (wanted, is_list), "{line}");
    }

    #[test]
    fn shapes() {
        let pair = [(Some("q"), "d")];
        check(r#"{"query": "q", "document": "d"}"#, &pair, false);
        check(
            r#" {"query": "q", "document": {"text": "d"}}"#,
            &pair,
            false,
        );
        check(
            r#"{"text_1": "q", "text_2": "d", "label": 1}"#,
            &pair,
            false,
        );
        let list = r#"{"documents": ["d", {"text": "e"}], "query": "q"}"#;
        check(list, &[(Some("q"), "d"), (Some("q"), "e")], true);
        check(r#"{"text": "t", "query": null}"#, &[(None, "t")], false);
    }

    #[test]
    fn ids_and_queries_are_kept() {
        let mut reader = reader();
        let lines = [
            r#"{"id": [1, "a"], "query": "q", "document": "d"}"#,
            r#"{"id": 2, "query": "q", "document": 5}"#,
            r#"{"id": null, "query": "q", "documents": ["d"]}"#,
        ];
        let asked = lines.map(|line| reader.read(line));
        let ids = asked
            .each_ref()
            .map(|asked| asked.id.as_deref().map(RawValue::get));
        assert_eq!(ids, [Some(r#"[1, "a"]"#), Some("2"), None]);
        let [first, _, third] = asked.map(|asked| asked.rows);
        let (first, third) = (first.unwrap().rows, third.unwrap().rows);
        assert!(first[0].shares_query(&third[0]));
    }

    #[track_caller]
    fn check_wrong(line: &str, column: usize, word: &str) {
        let fault = reader().read(line).rows.err().expect("a fault");
        assert_eq!(fault.column, Some(column), "{}", fault.why);
        assert!(fault.why.contains(word), "{} lacks {word:?}", fault.why);
    }

    #[test]
    fn faults_name_the_column_and_what_is_expected() {
        check_wrong("nonsense", 1, "expected {\"query\"");
        check_wrong(r#"["q", "d"]"#, 1, "no JSON object");
        check_wrong(r#"{"query": "q"}"#, 1, "expected {\"query\"");
        check_wrong(r#"{"query": "q", "text": "t"}"#, 1, "other fields");
        check_wrong(r#"{"query": "q", "document": "d""#, 30, "EOF");
        check_wrong(r#"{"query": " ", "document": "d"}"#, 11, "empty");
        check_wrong(
            r#"{"query": 1, "document": "d"}"#,
            11,
            "query is not a string",
        );
        check_wrong(r#"{"query": "q", "documents": []}"#, 29, "at least one");
        check_wrong(r#"{"query": "q", "documents": "d"}"#, 29, "no list");
        let long = r#"{"query": "q", "documents": ["d", "12345678901"]}"#;
        check_wrong(
            long,
            35,
            "documents[1]: 11 bytes are more than intake.document_bytes_max",
        );
    }
}
