//! A document as clients send it: a string, or an object of which some fields are its text.

use crate::score::ScoreError;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::Value;
use std::borrow::Cow;
use std::fmt;
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::openapi::{RefOr, schema};
use utoipa::{PartialSchema, ToSchema};

/// A string, or an object's fields in the order sent.
#[derive(Debug, PartialEq)]
pub(super) enum Document {
    Text(String),
    Fields(Vec<(String, Value)>),
}

// === impl Document ===

impl Document {
    /// The text to score. Of an object: the named fields as `name: value` lines; without names its
    /// `text`, or else all fields that are strings. To name `text` alone is to name nothing.
    pub(super) fn into_text(
        self,
        idx: usize,
        rank_fields: &[String],
    ) -> Result<String, ScoreError> {
        let fields = match self {
            Self::Text(text) => return Ok(text),
            Self::Fields(fields) => fields,
        };
        if !(rank_fields.is_empty() || rank_fields == ["text"]) {
            let named = rank_fields
                .iter()
                .filter_map(|name| fields.iter().find(|field| field.0 == *name));
            return lines(named.filter(|field| !field.1.is_null())).ok_or_else(|| {
                let why = format!(
                    "has none of the rank_fields {}; send one of them",
                    rank_fields.join(", ")
                );
                ScoreError::invalid(format!("documents[{idx}]"), why)
            });
        }
        match fields.iter().find(|field| field.0 == "text") {
            Some((_, Value::String(text))) => Ok(text.clone()),
            None | Some((_, Value::Null)) => {
                lines(fields.iter().filter(|field| field.1.is_string())).ok_or_else(|| {
                    let why = "has no text; send a string, or an object with `text`";
                    ScoreError::invalid(format!("documents[{idx}]"), why)
                })
            }
            Some(_) => Err(ScoreError::invalid(
                format!("documents[{idx}].text"),
                "is not a string; send one",
            )),
        }
    }
}

/// `name: value` lines; `None` without fields.
fn lines<'a>(fields: impl Iterator<Item = &'a (String, Value)>) -> Option<String> {
    let lines: Vec<String> = fields
        .map(|(name, value)| format!("{name}: {}", words(value)))
        .collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

fn words(value: &Value) -> Cow<'_, str> {
    match value {
        Value::String(text) => Cow::Borrowed(text),
        other => Cow::Owned(other.to_string()),
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
        while let Some(field) = map.next_entry()? {
            fields.push(field);
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

    #[track_caller]
    fn check(document: &str, rank_fields: &[&str], wanted: Result<&str, &str>) {
        let document: Document = serde_json::from_str(document).expect("a document");
        let rank_fields: Vec<String> = rank_fields.iter().map(|&name| name.to_owned()).collect();
        let text = document
            .into_text(3, &rank_fields)
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
            r#"{"year":2024,"title":null}"#,
            &["year", "title", "none"],
            Ok("year: 2024"),
        );
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
            Err("documents[3]: has none of the rank_fields a, b; send one of them"),
        );
    }
}
