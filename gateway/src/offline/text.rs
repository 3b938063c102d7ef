//! Texts in a line of JSON: where they stand, and what of an object is its text.

use super::line::Fault;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::HashMap;

/// Between a field's name and its value in a document's text.
const SEPARATOR: &str = ": ";

/// A line while it is read.
#[derive(Clone, Copy)]
pub(crate) struct Json<'a> {
    line: &'a str,
}

// === impl Json ===

impl<'a> Json<'a> {
    pub(crate) fn new(line: &'a str) -> Self {
        Self { line }
    }

    /// The line as a `T`, which may borrow from it.
    ///
    /// # Errors
    /// Names the column and ends with `form`, which says what is expected.
    pub(super) fn parse<T: Deserialize<'a>>(self, form: &str) -> Result<T, Fault> {
        serde_json::from_str(self.line).map_err(|error| {
            // The parser counts lines of its own, of which there is one.
            let why = error.to_string();
            let why = why.split(" at line 1 column").next().unwrap_or_default();
            Fault {
                column: Some(error.column().max(1)),
                why: format!("{why}; expected {form}"),
            }
        })
    }

    /// The same of a struct, which is sent as an object: a derived one would read a list, too, field by field.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub(crate) fn object<T: Deserialize<'a>>(self, form: &str) -> Result<T, Fault> {
        if self.line.trim_start().starts_with('{') {
            return self.parse(form);
        }
        Err(Fault {
            column: Some(1),
            why: format!("is no JSON object; expected {form}"),
        })
    }

    /// The column at which a part of this line begins.
    pub(super) fn fault(self, part: &RawValue, why: impl Into<String>) -> Fault {
        let start = self.line.as_ptr() as usize;
        let offset = (part.get().as_ptr() as usize).checked_sub(start);
        let offset = offset.filter(|offset| *offset < self.line.len());
        Fault {
            column: offset.map(|offset| offset + 1),
            why: why.into(),
        }
    }

    /// A part that must be a string.
    ///
    /// # Errors
    /// Names the field.
    pub(super) fn string(self, name: &str, part: &'a RawValue) -> Result<String, Fault> {
        let what = match part.get().starts_with('"') {
            true => "has a \\u escape of half a character; give both halves",
            false => "is not a string; give one",
        };
        serde_json::from_str(part.get()).map_err(|_| self.fault(part, format!("{name} {what}")))
    }

    /// A part that is a document: a string, or an object with `text`, or with `fields` as lines of
    /// `name: value`.
    ///
    /// # Errors
    /// Names the field.
    pub(super) fn document(
        self,
        name: &str,
        part: &'a RawValue,
        fields: &[String],
    ) -> Result<String, Fault> {
        match part.get().as_bytes().first() {
            Some(b'"') => self.string(name, part),
            Some(b'{') => {
                let object: HashMap<Cow<'a, str>, &'a RawValue> = serde_json::from_str(part.get())
                    .map_err(|error| self.fault(part, error.to_string()))?;
                self.text_of(part, &object, fields)
            }
            _ => Err(self.fault(
                part,
                format!("{name} is neither a string nor an object; give one of them"),
            )),
        }
    }

    fn text_of(
        self,
        part: &RawValue,
        object: &HashMap<Cow<'a, str>, &'a RawValue>,
        fields: &[String],
    ) -> Result<String, Fault> {
        if fields.is_empty() {
            return match object.get("text") {
                Some(text) => self.string("text", text),
                None => Err(self.fault(
                    part,
                    "the object has no `text`; name the fields that are its text with --fields",
                )),
            };
        }
        let mut lines = Vec::new();
        for name in fields {
            let Some(value) = object.get(name.as_str()).filter(|v| v.get() != "null") else {
                continue;
            };
            let words = match value.get().starts_with('"') {
                true => Cow::Owned(self.string(name, value)?),
                false => Cow::Borrowed(value.get()),
            };
            lines.push(format!("{name}{SEPARATOR}{words}"));
        }
        if lines.is_empty() {
            let why = format!("the object has none of the fields {}", fields.join(", "));
            return Err(self.fault(part, why));
        }
        Ok(lines.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, fields: &[&str], wanted: Result<&str, (usize, &str)>) {
        let json = Json::new(line);
        let fields: Vec<_> = fields.iter().map(|&name| name.to_owned()).collect();
        let found = json
            .parse(r#"{"text": "…"}"#)
            .and_then(|part| json.document("document", part, &fields));
        match (found, wanted) {
            (Ok(text), Ok(wanted)) => assert_eq!(text, wanted),
            (Err(fault), Err((column, word))) => {
                assert_eq!(fault.column, Some(column), "{}", fault.why);
                assert!(fault.why.contains(word), "{} lacks {word:?}", fault.why);
            }
            (found, wanted) => panic!("{line}: {found:?}, not {wanted:?}"),
        }
    }

    #[test]
    fn documents() {
        check(r#""é\n""#, &["title"], Ok("é\n"));
        check(r#"{"title":"t","text":"x"}"#, &[], Ok("x"));
        let fields = ["year", "title", "none"];
        check(
            r#"{"title":"t","year":2024}"#,
            &fields,
            Ok("year: 2024\ntitle: t"),
        );
    }

    #[test]
    fn faults_name_their_column() {
        check(r#"  {"text": 5}"#, &[], Err((12, "text is not a string")));
        check(r#"{"text": "\ud800"}"#, &[], Err((10, "half a character")));
        check(r#" {"title": "t"}"#, &[], Err((2, "--fields")));
        check(r#"{"text":null}"#, &["a"], Err((1, "none of the fields a")));
        check("[1]", &[], Err((1, "neither a string")));
        check(r#"{"text": "x""#, &[], Err((12, r#"expected {"text""#)));
    }
}
