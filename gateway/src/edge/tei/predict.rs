//! TEI's `/predict`: texts or pairs in, their labels by falling score out.

use super::super::Edge;
use super::super::answer::{scored, warn};
use super::super::classes::{self, PREDICTION_BYTES, Prediction};
use super::super::json;
use super::super::overflow::{Overflow, cuts, side};
use super::super::post::Post;
use super::super::scoring::{filled, n_results};
use super::super::wire::Refusal;
use super::super::words::Words;
use super::{characters, describe_compute};
use crate::runtime::aside;
use crate::score::{Activation, Form, ScoreError, Texts};
use axum::response::Response;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

/// Texts to classify. `x-crossgate-warnings` tells which were cut.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = TeiPredictRequest, example = json!({
    "inputs": [["Paris is the capital of France."], ["What is bread?", "Bread is made of flour."]]
}))]
pub(in super::super) struct Body {
    /// A name from `/models`; absent for the first.
    model: Option<String>,
    #[schema(value_type = Inputs)]
    inputs: Option<Inputs>,
    /// The model's logits instead of probabilities.
    #[serde(default, deserialize_with = "json::flag")]
    raw_scores: Option<bool>,
    /// Whether texts that are too long are cut (absent or true) or refused (false).
    #[serde(default, deserialize_with = "json::flag")]
    truncate: Option<bool>,
    /// Where they are cut: `right` (or absent) or `left`, in any case.
    truncation_direction: Option<String>,
    /// What the hub's clients send beside `inputs`; they read a list of lists for one text, too.
    #[schema(value_type = Option<Parameters>)]
    parameters: Option<Parameters>,
}

/// How the hub's clients want to be answered.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = TeiPredictParameters)]
struct Parameters {
    /// `sigmoid`, `softmax` or `none`, in place of the model's own.
    function_to_apply: Option<String>,
    /// How many labels of each text, at least 1; absent for all.
    #[serde(default, deserialize_with = "json::count")]
    top_k: Option<u64>,
}

/// A text, a pair, or a batch of both.
#[derive(Debug, PartialEq)]
struct Inputs {
    inputs: Vec<Input>,
    is_batch: bool,
}

/// A text alone, or with a second one.
#[derive(Debug, PartialEq)]
struct Input(String, Option<String>);

/// What an element of a list is: a text bare, or in a list of one or two.
enum Element {
    Bare(String),
    Listed(Input),
}

/// A batch's labels text by text, or those of one text.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = TeiPredictAnswer)]
pub(in super::super) enum Answer {
    One(Vec<Prediction>),
    Batch(Vec<Vec<Prediction>>),
}

/// What the core calls otherwise.
pub(in super::super) const WORDS: Words = Words(&[
    ("documents", "inputs"),
    ("queries", "inputs"),
    ("query", "inputs"),
]);

/// A body that makes sense.
struct Asked {
    model: Option<String>,
    rows: Vec<Texts>,
    form: Form,
    overflow: Overflow,
    raw: bool,
    is_batch: bool,
    /// In place of the model's own.
    activation: Option<Activation>,
    labels_max: usize,
}

/// Answers a body with `inputs`.
pub(in super::super) async fn predict(edge: &Edge, post: &Post) -> Result<Response, Refusal> {
    let asked = aside(post.body.len(), || read(&post.body))?;
    let n_characters = |row: &Texts| characters(row.query()) + characters(&row.document);
    let n_characters = asked.rows.iter().map(n_characters).sum();
    let question = post.question(asked.model, asked.rows, asked.form.clone());
    let response = edge.ask(question, asked.overflow, &WORDS).await?;
    let own = classes::activation(&response, asked.raw);
    let activation = asked.activation.unwrap_or(own);
    let labels = classes::labels(edge, &response);
    let mut answer = aside(response.logits.len() * PREDICTION_BYTES, || {
        let mut rows = classes::predictions(&response, activation, &labels);
        rows.iter_mut()
            .for_each(|row| row.truncate(asked.labels_max));
        let answer = match rows.pop() {
            Some(only) if !asked.is_batch => Answer::One(only),
            last => {
                rows.extend(last);
                Answer::Batch(rows)
            }
        };
        scored(&post.call, &response, activation, &answer)
    });
    describe_compute(&mut answer, edge, post, &response, n_characters);
    warn(&mut answer, &cuts(&response, "inputs", &asked.form));
    Ok(answer)
}

fn read(body: &[u8]) -> Result<Asked, Refusal> {
    let body: Body = json::parse(body)?;
    let inputs = json::required(body.inputs, "inputs", EXPECTED)?;
    let direction = body.truncation_direction.as_deref();
    let is_batch = inputs.is_batch || body.parameters.is_some();
    let (function, top_k) = match body.parameters {
        None => (None, None),
        Some(parameters) => (parameters.function_to_apply, parameters.top_k),
    };
    let rows = filled("inputs", inputs.inputs)?.into_iter();
    Ok(Asked {
        model: body.model,
        rows: rows.map(Texts::from).collect(),
        form: Form {
            side: side("truncation_direction", direction)?,
            ..Form::default()
        },
        overflow: match body.truncate {
            Some(false) => Overflow::TooLarge,
            _ => Overflow::Truncate,
        },
        raw: body.raw_scores == Some(true),
        is_batch,
        activation: function.as_deref().map(activation_of).transpose()?,
        labels_max: n_results("parameters.top_k", top_k, usize::MAX)?,
    })
}

fn activation_of(function: &str) -> Result<Activation, ScoreError> {
    match function {
        "none" => Ok(Activation::Identity),
        "sigmoid" => Ok(Activation::Sigmoid),
        "softmax" => Ok(Activation::Softmax),
        other => {
            let why = format!(r#"there is no {other:?}; use "sigmoid", "softmax" or "none""#);
            Err(ScoreError::invalid("parameters.function_to_apply", why))
        }
    }
}

const EXPECTED: &str = "a text, a pair [text, text], or a batch [[text], [text, text], …]";

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
        match list.next_element::<serde::de::IgnoredAny>()? {
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
