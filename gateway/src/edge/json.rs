//! Reading JSON liberally: what clients of many dialects send is taken as they mean it.

use super::wire::Refusal;
use crate::score::ScoreError;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, Error, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::error::Category;
use serde_json::value::RawValue;
use std::fmt;
use std::marker::PhantomData;

/// What some programs write before UTF-8, and JSON's readers may ignore (RFC 8259, 8.1).
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();
/// How serde begins and ends what it says of types, and what the same is called in JSON.
const KINDS_FOUND: [(&str, &str); 2] = [
    ("invalid type: map", "invalid type: object"),
    ("invalid type: sequence", "invalid type: list"),
];
const KINDS_EXPECTED: [(&str, &str); 4] = [
    ("expected a sequence", "expected a list"),
    ("expected a map", "expected an object"),
    ("expected i64", "expected a whole number"),
    ("expected usize", "expected a whole number, 0 or more"),
];
/// What serde says of a `\u` escape that stands for half of a character.
const HALVES: [&str; 2] = [
    "unexpected end of hex escape",
    "lone leading surrogate in hex escape",
];

/// Reads one JSON object. What is not JSON is refused with line and column, what does not fit with
/// the field and the index.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    // Files that were saved on Windows begin with it.
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
    if bytes.trim_ascii().is_empty() {
        return Err(Refusal::Empty {
            param: "body",
            why: "is empty; send one JSON object",
        });
    }
    let mut input = serde_json::Deserializer::from_slice(bytes);
    let Object(value) = serde_path_to_error::deserialize(&mut input).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        match inner.classify() {
            Category::Data => misfit(path, &inner),
            Category::Io | Category::Syntax | Category::Eof => bad_json(&inner),
        }
    })?;
    input.end().map_err(|error| bad_json(&error))?;
    Ok(value)
}

/// A struct that is sent as an object. A derived one alone would read a list, too, field by field.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Object<T>(pub(super) T);

/// How many elements a list has; 0 for what is no list. Nothing of it is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Length(pub(super) usize);

/// A field that must be there.
pub(super) fn required<T>(field: Option<T>, param: &str, what: &str) -> Result<T, ScoreError> {
    field.ok_or_else(|| ScoreError::invalid(param, format!("is missing; send {what}")))
}

/// For fields: true, false, null, `"true"`, `"False"`, 1, 0.
pub(super) fn flag<'de, D: Deserializer<'de>>(input: D) -> Result<Option<bool>, D::Error> {
    input.deserialize_any(Flag)
}

/// For fields: a whole number not below 0, as a number, as `5.0` or as a string; or null.
pub(super) fn count<'de, D: Deserializer<'de>>(input: D) -> Result<Option<u64>, D::Error> {
    input.deserialize_any(Count { all: false })
}

/// For fields: the same, where -1 stands for all and is like null.
pub(super) fn count_or_all<'de, D: Deserializer<'de>>(input: D) -> Result<Option<u64>, D::Error> {
    input.deserialize_any(Count { all: true })
}

/// For fields: a number or a word, as it was written; or null.
pub(super) fn scalar<'de, D: Deserializer<'de>>(input: D) -> Result<Option<String>, D::Error> {
    let Some(value) = Option::<Box<RawValue>>::deserialize(input)? else {
        return Ok(None);
    };
    let text = value.get();
    if text.starts_with(['{', '[', 't', 'f']) {
        return Err(D::Error::custom("is not a number or a word; send one"));
    }
    Ok(Some(text.trim_matches('"').to_owned()))
}

fn bad_json(error: &serde_json::Error) -> Refusal {
    let mut why = error.to_string();
    if HALVES.iter().any(|half| why.starts_with(half)) {
        why += "; a \\u escape there is half of a character: send both halves, or the character itself";
    }
    Refusal::BadJson { why }
}

fn misfit(path: String, error: &serde_json::Error) -> Refusal {
    // The path is more use than the position, and the position would be of the value's end.
    let position = format!(" at line {} column {}", error.line(), error.column());
    let text = error.to_string();
    let mut why = text.strip_suffix(&position).unwrap_or(&text).to_owned();
    for (serdes, ours) in KINDS_FOUND {
        if let Some(rest) = why.strip_prefix(serdes) {
            why = format!("{ours}{rest}");
        }
    }
    for (serdes, ours) in KINDS_EXPECTED {
        if let Some(rest) = why.strip_suffix(serdes) {
            why = format!("{rest}{ours}");
        }
    }
    let param = if path == "." { "body".to_owned() } else { path };
    ScoreError::invalid(param, why).into()
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Object)
    }
}

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_any(LengthVisitor)
    }
}

struct LengthVisitor;

impl<'de> Visitor<'de> for LengthVisitor {
    type Value = Length;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Length, A::Error> {
        let mut n = 0;
        while list.next_element::<IgnoredAny>()?.is_some() {
            n += 1;
        }
        Ok(Length(n))
    }

    // What else it is, and that it should not be, is for the dialect to say.
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Length, A::Error> {
        IgnoredAny.visit_map(map).map(|_| Length(0))
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Length, E> {
        Ok(Length(0))
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Length, E> {
        Ok(Length(0))
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Length, E> {
        Ok(Length(0))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Length, E> {
        Ok(Length(0))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Length, E> {
        Ok(Length(0))
    }
}

struct Flag;

impl Visitor<'_> for Flag {
    type Value = Option<bool>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("true or false")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Some(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        match value {
            0 => Ok(Some(false)),
            1 => Ok(Some(true)),
            _ => Err(E::invalid_value(Unexpected::Unsigned(value), &self)),
        }
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Self::Value, E> {
        match value.trim() {
            "" => Ok(None),
            "1" => Ok(Some(true)),
            "0" => Ok(Some(false)),
            word if word.eq_ignore_ascii_case("true") => Ok(Some(true)),
            word if word.eq_ignore_ascii_case("false") => Ok(Some(false)),
            _ => Err(E::invalid_value(Unexpected::Str(value), &self)),
        }
    }
}

struct Count {
    /// Whether -1 is taken, too.
    all: bool,
}

impl Visitor<'_> for Count {
    type Value = Option<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.all {
            "a whole number, 0 or more, or -1"
        } else {
            "a whole number, 0 or more"
        })
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Some(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        if self.all && value == -1 {
            return Ok(None);
        }
        u64::try_from(value)
            .map(Some)
            .map_err(|_| E::invalid_value(Unexpected::Signed(value), &self))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
        if self.all && value == -1.0 {
            return Ok(None);
        }
        // 2^53: above it a float does not say which integer it means.
        if value.fract() == 0.0 && (0.0..9_007_199_254_740_992.0).contains(&value) {
            Ok(Some(value as u64))
        } else {
            Err(E::invalid_value(Unexpected::Float(value), &self))
        }
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Self::Value, E> {
        let text = value.trim();
        if text.is_empty() {
            return Ok(None);
        }
        match (text.parse::<u64>(), text.parse::<f64>()) {
            (Ok(count), _) => Ok(Some(count)),
            (Err(_), Ok(number)) => self.visit_f64(number),
            (Err(_), Err(_)) => Err(E::invalid_value(Unexpected::Str(value), &self)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    struct Body {
        #[serde(default, deserialize_with = "flag")]
        on: Option<bool>,
        #[serde(default, deserialize_with = "count")]
        n: Option<u64>,
    }

    #[track_caller]
    fn check(text: &str, wanted: Result<(Option<bool>, Option<u64>), &str>) {
        let read = parse::<Body>(text.as_bytes())
            .map(|body| (body.on, body.n))
            .map_err(|error| error.to_string());
        assert_eq!(read, wanted.map_err(str::to_owned), "{text}");
    }

    #[test]
    fn fields_are_read_as_they_are_meant() {
        check("{}", Ok((None, None)));
        check(r#"{"on":null,"n":null,"other":[{}]}"#, Ok((None, None)));
        check(r#"{"on":true,"n":3}"#, Ok((Some(true), Some(3))));
        check(r#"{"on":"False","n":"3"}"#, Ok((Some(false), Some(3))));
        check(r#"{"on":1,"n":3.0}"#, Ok((Some(true), Some(3))));
        check(r#"{"on":"","n":" 4.0 "}"#, Ok((None, Some(4))));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        check(
            r#"{"on":"maybe"}"#,
            Err(r#"on: invalid value: string "maybe", expected true or false"#),
        );
        check(
            r#"{"n":-1}"#,
            Err("n: invalid value: integer `-1`, expected a whole number, 0 or more"),
        );
        check(
            r#"{"n":1.5}"#,
            Err("n: invalid value: floating point `1.5`, expected a whole number, 0 or more"),
        );
        check(
            r#"{"n":[1]}"#,
            Err("n: invalid type: list, expected a whole number, 0 or more"),
        );
        check(
            "[true, 1]",
            Err("body: invalid type: list, expected an object"),
        );
    }

    #[test]
    fn what_is_not_json_is_placed() {
        check(
            "{\"on\":true,\n \"n\" 3}",
            Err("the body is not valid JSON: expected `:` at line 2 column 6"),
        );
        check(
            "{\"on\":true",
            Err("the body is not valid JSON: EOF while parsing an object at line 1 column 10"),
        );
        check(
            "{} x",
            Err("the body is not valid JSON: trailing characters at line 1 column 4"),
        );
        check(
            "nope",
            Err("the body is not valid JSON: expected ident at line 1 column 2"),
        );
        check(" \n", Err("body: is empty; send one JSON object"));
    }
}
