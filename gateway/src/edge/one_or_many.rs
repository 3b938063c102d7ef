//! What several dialects send bare where it is one, and as a list where there are more.

use super::document::Document;
use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::fmt;
use std::marker::PhantomData;
use utoipa::ToSchema;

/// One thing, or a list of any length.
#[derive(Debug)]
pub(super) struct OneOrMany<T> {
    pub(super) items: Vec<T>,
    /// Whether it came as a list.
    pub(super) is_list: bool,
}

/// How [`OneOrMany`] texts are described.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
#[schema(as = TextOrTexts)]
#[expect(dead_code, reason = "read by the derive only")]
pub(super) enum TextOrTexts {
    One(String),
    Many(Vec<String>),
}

/// How [`OneOrMany`] documents are described.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
#[schema(as = DocumentOrDocuments)]
#[expect(dead_code, reason = "read by the derive only")]
pub(super) enum DocumentOrDocuments {
    One(Document),
    Many(Vec<Document>),
}

struct OneOrManyVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_any(OneOrManyVisitor(PhantomData))
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrManyVisitor<T> {
    type Value = OneOrMany<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or a list of them")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        T::deserialize(StrDeserializer::new(text)).map(OneOrMany::one)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(OneOrMany::one)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(OneOrMany {
            items,
            is_list: true,
        })
    }
}

impl<T> OneOrMany<T> {
    fn one(item: T) -> Self {
        Self {
            items: vec![item],
            is_list: false,
        }
    }
}
