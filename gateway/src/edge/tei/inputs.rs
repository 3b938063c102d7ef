//! `inputs`: a text, a pair, or a batch of both.

use crate::score::Texts;
use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, SeqAccess, Visitor};
use std::fmt;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

/// A text, a pair, or a batch of both.
#[derive(Debug, PartialEq)]
pub(super) struct Inputs {
    pub(super) inputs: Vec<Input>,
    /// Whether the answer is a list of lists.
    pub(super) is_batch: bool,
}

/// A text alone, or with a second one.
#[derive(Debug, PartialEq)]
pub(super) struct Input(String, Option<String>);

/// What an element of a list is: a text bare, or in a list of one or two.
enum Element {
    Bare(String),
    Listed(Input),
}

/// What may be sent.
pub(super) const EXPECTED: &str =
    "a text, a pair [text, text], or a batch [[text], [text, text], …]";

impl From<Input> for Texts {
    fn from(input: Input) -> Self {
        match input {
            Input(text, None) => Self {
                query: None,
                document: text.into(),
            },
            Input(first, Some(second)) => Self {
                query: Some(first.into()),
                document: second.into(),
            },
        }
    }
}

impl<'de> Deserialize<'de> for Inputs {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_any(InputsVisitor)
    }
}

struct InputsVisitor;

impl<'de> Visitor<'de> for InputsVisitor {
    type Value = Inputs;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Inputs, E> {
        Ok(Inputs {
            inputs: vec![Input(text.to_owned(), None)],
            is_batch: false,
        })
    }

    /// A list of one or two bare texts is one input, as TEI has it; a longer one, which TEI refuses, can only be
    /// a batch.
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Inputs, A::Error> {
        let (mut inputs, mut all_bare) = (Vec::new(), true);
        while let Some(element) = list.next_element()? {
            inputs.push(match element {
                Element::Bare(text) => Input(text, None),
                Element::Listed(input) => {
                    all_bare = false;
                    input
                }
            });
        }
        if !all_bare || !(1..=2).contains(&inputs.len()) {
            return Ok(Inputs {
                inputs,
                is_batch: true,
            });
        }
        let mut texts = inputs.into_iter().map(|Input(text, _)| text);
        let only = texts.next().map(|first| Input(first, texts.next()));
        Ok(Inputs {
            inputs: only.into_iter().collect(),
            is_batch: false,
        })
    }
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_any(ElementVisitor)
    }
}

struct ElementVisitor;

impl<'de> Visitor<'de> for ElementVisitor {
    type Value = Element;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, or a list of one or two")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Element, E> {
        Ok(Element::Bare(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Element, A::Error> {
        let first = list.next_element()?;
        let first = first.ok_or_else(|| A::Error::invalid_length(0, &self))?;
        let input = Input(first, list.next_element()?);
        match list.next_element::<IgnoredAny>()? {
            None => Ok(Element::Listed(input)),
            Some(_) => Err(A::Error::custom(
                "has more than two texts; send one, or a pair",
            )),
        }
    }
}

impl PartialSchema for Inputs {
    fn schema() -> RefOr<Schema> {
        let text = || ObjectBuilder::new().schema_type(Type::String);
        let listed = || ArrayBuilder::new().items(text()).min_items(Some(1));
        let pair = listed()
            .max_items(Some(2))
            .description(Some("A text, or a pair"));
        let batch = ArrayBuilder::new()
            .items(listed().max_items(Some(2)))
            .min_items(Some(1))
            .description(Some("Texts and pairs"));
        let bare = ArrayBuilder::new()
            .items(text())
            .min_items(Some(3))
            .description(Some("Texts; of three or more no pair can be meant"));
        OneOfBuilder::new()
            .item(text().description(Some("A text")))
            .item(pair)
            .item(batch)
            .item(bare)
            .into()
    }
}

impl ToSchema for Inputs {}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, wanted: &[(&str, Option<&str>)], is_batch: bool) {
        let inputs = wanted.iter();
        let inputs = inputs.map(|(first, second)| Input((*first).into(), second.map(Into::into)));
        let wanted = Inputs {
            inputs: inputs.collect(),
            is_batch,
        };
        let found: Inputs = serde_json::from_str(text).expect("inputs");
        assert_eq!(found, wanted, "{text}");
    }

    #[test]
    fn every_form_of_inputs() {
        check(r#""a""#, &[("a", None)], false);
        check(r#"["a"]"#, &[("a", None)], false);
        check(r#"["a","b"]"#, &[("a", Some("b"))], false);
        check(
            r#"["a","b","c"]"#,
            &[("a", None), ("b", None), ("c", None)],
            true,
        );
        check(r#"[["a"]]"#, &[("a", None)], true);
        check(
            r#"[["a"],["b","c"]]"#,
            &[("a", None), ("b", Some("c"))],
            true,
        );
        check(r#"["a",["b","c"]]"#, &[("a", None), ("b", Some("c"))], true);
        check("[]", &[], true);
        for bad in ["5", r#"[["a","b","c"]]"#, "[[]]", "[5]"] {
            assert!(serde_json::from_str::<Inputs>(bad).is_err(), "{bad}");
        }
    }
}
