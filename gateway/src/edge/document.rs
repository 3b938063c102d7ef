//! A document as clients send it: a string, or an object of which some fields are its text.

use super::json::Object;
use crate::intake::Bounds;
use crate::score::ScoreError;
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::openapi::{RefOr, schema};
use utoipa::{PartialSchema, ToSchema};

/// Fields of one document. Each costs some hundred bytes, however few it came in.
const FIELDS_MAX: usize = 256;
/// Fields that a request may name as its documents' text.
const RANK_FIELDS_MAX: usize = 64;
/// Between a field's name and its value in a document's text.
const SEPARATOR: &str = ": ";
/// What is wrong with a string that is not text.
const HALF: &str =
    "has a \\u escape of half a character; send both halves, or the character itself";

/// A string, or an object's fields in the order sent.
#[derive(Debug)]
pub(super) enum Document {
    Text(String),
    Fields(Vec<Field>),
}

/// A value stays as it was written: most are not asked for, and unpacked it could be many times as
/// large.
#[derive(Debug)]
pub(super) struct Field {
    name: String,
    value: Box<RawValue>,
}

/// A part of a document that may hold more than text.
#[derive(Deserialize)]
struct Part {
    #[serde(rename = "type", default)]
    kind: String,
    text: Option<String>,
}

/// The fields that are a document's text, in this order; each once.
#[derive(Debug, Default, PartialEq)]
pub(super) struct RankFields(Vec<String>);

// === impl Document ===

impl Document {
    /// The text to score. Of an object: the named fields as `name: value` lines; without names its
    /// `text`, or else the texts of its `content`, where that is a list of parts as vLLM's clients send it, and all
    /// fields that are strings. To name `text` alone is to name nothing.
    pub(super) fn into_text(
        self,
        idx: usize,
        rank_fields: &RankFields,
        bounds: &Bounds,
    ) -> Result<String, ScoreError> {
        let fields = match self {
            Self::Text(text) => return Ok(text),
            Self::Fields(fields) => fields,
        };
        let invalid = |why: String| ScoreError::invalid(format!("documents[{idx}]"), why);
        let mut lines = Lines::new(idx, bounds);
        if !rank_fields.is_text() {
            for field in rank_fields.of(&fields) {
                lines.push(field)?;
            }
            let n = rank_fields.0.len();
            return lines.text.ok_or_else(|| {
                invalid(format!("has none of the {n} rank_fields; send one of them"))
            });
        }
        if let Some(field) = fields.iter().find(|field| field.name == "text") {
            if field.is_string() {
                return field.words(idx).map(Cow::into_owned);
            }
            if !field.is_null() {
                return Err(field.invalid(idx, "is not a string; send one"));
            }
        }
        if let Some(parts) = fields.iter().find_map(Field::parts) {
            for Object(part) in parts {
                let text = part.text.filter(|_| part.kind == "text");
                let param = || format!("documents[{idx}].content");
                let text = text.ok_or_else(|| {
                    ScoreError::invalid(param(), "has a part that is no text; send texts only")
                })?;
                lines.push_line(&[&text])?;
            }
        }
        for field in fields.iter().filter(|field| field.is_string()) {
            lines.push(field)?;
        }
        lines.text.ok_or_else(|| {
            invalid("has no text; send a string, or an object with `text`".to_owned())
        })
    }
}

/// The text of each document.
///
/// # Errors
/// The first one that has none, by its place among `documents`.
pub(super) fn texts(
    documents: Vec<Document>,
    rank_fields: &RankFields,
    bounds: &Bounds,
) -> Result<Vec<String>, ScoreError> {
    let documents = documents.into_iter().enumerate();
    documents
        .map(|(idx, document)| document.into_text(idx, rank_fields, bounds))
        .collect()
}

/// `name: value` lines; `None` before the first.
struct Lines<'a> {
    idx: usize,
    bounds: &'a Bounds,
    text: Option<String>,
}

impl<'a> Lines<'a> {
    fn new(idx: usize, bounds: &'a Bounds) -> Self {
        Self {
            idx,
            bounds,
            text: None,
        }
    }

    /// Stops as soon as the document is too long.
    fn push(&mut self, field: &Field) -> Result<(), ScoreError> {
        self.push_line(&[&field.name, SEPARATOR, &field.words(self.idx)?])
    }

    /// A line of these words.
    fn push_line(&mut self, words: &[&str]) -> Result<(), ScoreError> {
        let text = match &mut self.text {
            None => self.text.insert(String::new()),
            Some(text) => {
                text.push('\n');
                text
            }
        };
        let bytes = text.len() + words.iter().map(|word| word.len()).sum::<usize>();
        self.bounds.check_document(self.idx, bytes)?;
        text.extend(words.iter().copied());
        Ok(())
    }
}

// === impl Field ===

impl Field {
    fn is_null(&self) -> bool {
        self.value.get() == "null"
    }

    fn is_string(&self) -> bool {
        self.value.get().starts_with('"')
    }

    /// vLLM's `content`, if it is that: a list of parts, each a text or something else.
    fn parts(&self) -> Option<Vec<Object<Part>>> {
        let is_list = self.name == "content" && self.value.get().starts_with('[');
        is_list.then(|| serde_json::from_str(self.value.get()).ok())?
    }

    /// A string's text; of other values what was sent. Of a string only the escapes can be wrong: what else is no
    /// JSON was found before.
    fn words(&self, idx: usize) -> Result<Cow<'_, str>, ScoreError> {
        if !self.is_string() {
            return Ok(Cow::Borrowed(self.value.get()));
        }
        let text = serde_json::from_str(self.value.get()).map(Cow::Owned);
        text.map_err(|_| self.invalid(idx, HALF))
    }

    fn invalid(&self, idx: usize, why: &str) -> ScoreError {
        ScoreError::invalid(format!("documents[{idx}].{}", self.name), why)
    }
}

// === impl RankFields ===

impl RankFields {
    fn is_text(&self) -> bool {
        self.0.is_empty() || self.0 == ["text"]
    }

    /// A document's fields that are named and not null, in the order of the names. Of fields with one
    /// name it is the first.
    fn of<'a>(&self, fields: &'a [Field]) -> impl Iterator<Item = &'a Field> {
        // Looked up, since names may be long and many.
        let mut by_name: HashMap<&str, &Field> = HashMap::with_capacity(fields.len());
        for field in fields {
            by_name.entry(&field.name).or_insert(field);
        }
        let found: Vec<_> = self
            .0
            .iter()
            .filter_map(|name| by_name.get(name.as_str()).copied())
            .collect();
        found.into_iter().filter(|field| !field.is_null())
    }
}

impl<'de> Deserialize<'de> for RankFields {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_seq(RankFieldsVisitor)
    }
}

struct RankFieldsVisitor;

impl<'de> Visitor<'de> for RankFieldsVisitor {
    type Value = RankFields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of strings")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<RankFields, A::Error> {
        let (mut names, mut n) = (Vec::new(), 0);
        while let Some(name) = list.next_element::<String>()? {
            n += 1;
            if RANK_FIELDS_MAX < n {
                let why = format!("has more than {RANK_FIELDS_MAX} names; send fewer");
                return Err(A::Error::custom(why));
            }
            if !names.contains(&name) {
                names.push(name);
            }
        }
        Ok(RankFields(names))
    }
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_any(DocumentVisitor)
    }
}

struct DocumentVisitor;

impl<'de> Visitor<'de> for DocumentVisitor {
    type Value = Document;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or an object with `text`")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Document::Text(text.to_owned()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Self::Value, E> {
        Ok(Document::Text(text))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Vec::new();
        while let Some((name, value)) = map.next_entry()? {
            if fields.len() == FIELDS_MAX {
                let why = format!("has more than {FIELDS_MAX} fields; send fewer");
                return Err(A::Error::custom(why));
            }
            fields.push(Field { name, value });
        }
        Ok(Document::Fields(fields))
    }
}

impl PartialSchema for Document {
    fn schema() -> RefOr<Schema> {
        let text = ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("The text itself"));
        let fields = ObjectBuilder::new()
            .schema_type(Type::Object)
            .property("text", ObjectBuilder::new().schema_type(Type::String))
            .additional_properties(Some(schema::AdditionalProperties::FreeForm(true)))
            .description(Some(
                "An object with `text`, or with other fields: see `rank_fields`",
            ));
        OneOfBuilder::new().item(text).item(fields).into()
    }
}

impl ToSchema for Document {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::Priority;

    const BOUNDS: Bounds = Bounds {
        body_bytes_max: 1 << 10,
        bytes_max: 1 << 10,
        requests_max: 1,
        documents_max: 10,
        document_bytes_max: 20,
        query_bytes_max: 20,
        priority_max: Priority::High,
    };

    #[track_caller]
    fn check(document: &str, rank_fields: &[&str], wanted: Result<&str, &str>) {
        let document: Document = serde_json::from_str(document).expect("a document");
        let rank_fields = RankFields(rank_fields.iter().map(|&name| name.to_owned()).collect());
        let text = document
            .into_text(3, &rank_fields, &BOUNDS)
            .map_err(|error| error.to_string());
        assert_eq!(text.as_deref().map_err(String::as_str), wanted);
    }

    #[test]
    fn text_of_documents() {
        check(r#""plain""#, &["title"], Ok("plain"));
        check(r#""""#, &[], Ok(""));
        check(r#"{"title":"t","text":"x"}"#, &[], Ok("x"));
        check(r#"{"title":"t","text":"x"}"#, &["text"], Ok("x"));
        check(
            r#"{"title":"t","text":"x"}"#,
            &["text", "title"],
            Ok("text: x\ntitle: t"),
        );
        check(r#"{"b":"2","a":"1","n":3}"#, &[], Ok("b: 2\na: 1"));
        check(r#"{"b":"2","text":null}"#, &[], Ok("b: 2"));
        check(
            r#"{"content":[{"type":"text","text":"x"},{"type":"text","text":"y"}]}"#,
            &[],
            Ok("x\ny"),
        );
        check(
            r#"{"content":[{"type":"image_url","image_url":{"url":"u"}}]}"#,
            &[],
            Err("documents[3].content: has a part that is no text; send texts only"),
        );
        check(r#"{"content":"x"}"#, &[], Ok("content: x"));
        check(
            r#"{"year":2024,"title":null}"#,
            &["year", "title", "none"],
            Ok("year: 2024"),
        );
        // As sent, and the first of those with one name.
        check(
            r#"{"a":[1, {"b":2.50}],"a":"x"}"#,
            &["a"],
            Ok(r#"a: [1, {"b":2.50}]"#),
        );
        check(r#"{"a":"\u00e9\n"}"#, &["a"], Ok("a: é\n"));
    }

    #[test]
    fn documents_without_text_are_named() {
        check(
            "{}",
            &[],
            Err("documents[3]: has no text; send a string, or an object with `text`"),
        );
        check(
            r#"{"text":5}"#,
            &[],
            Err("documents[3].text: is not a string; send one"),
        );
        check(
            r#"{"text":"x"}"#,
            &["a", "b"],
            Err("documents[3]: has none of the 2 rank_fields; send one of them"),
        );
    }

    #[test]
    fn long_documents_are_not_written_out() {
        check(
            r#"{"a":"0123456789","b":"0123456789"}"#,
            &["a", "b"],
            Err(
                "documents[3]: 27 bytes are more than intake.document_bytes_max = 20; \
                 send less or raise the bound",
            ),
        );
    }
}
