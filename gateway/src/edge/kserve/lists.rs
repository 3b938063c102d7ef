//! Lists within bounds: what is small on the way may be large in memory.

use crate::score::ScoreError;
use serde::de::{DeserializeOwned, DeserializeSeed, Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use std::fmt;
use std::marker::PhantomData;

/// Tensors in one request, and dimensions of one.
const FEW_MAX: usize = 8;
/// Lists inside one another in a tensor's data.
const DEPTH_MAX: usize = FEW_MAX;

/// A list of few elements.
pub(in crate::edge) struct Few<T>(pub(super) Vec<T>);

struct FewVisitor<T>(PhantomData<T>);

impl<'de, T: DeserializeOwned> Deserialize<'de> for Few<T> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_seq(FewVisitor(PhantomData))
    }
}

impl<'de, T: DeserializeOwned> Visitor<'de> for FewVisitor<T> {
    type Value = Few<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {FEW_MAX}")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Few<T>, A::Error> {
        let mut few = Vec::new();
        while let Some(element) = list.next_element()? {
            if few.len() == FEW_MAX {
                return Err(A::Error::invalid_length(FEW_MAX + 1, &self));
            }
            few.push(element);
        }
        Ok(Few(few))
    }
}

/// A tensor's texts, in the order in which they stand.
pub(super) fn elements(
    param: &str,
    data: &RawValue,
    most: usize,
) -> Result<Vec<String>, ScoreError> {
    let mut texts = Vec::new();
    let leaves = Leaves {
        texts: &mut texts,
        most,
        depth: 0,
    };
    let read = leaves.deserialize(&mut serde_json::Deserializer::from_str(data.get()));
    match read {
        Ok(()) => Ok(texts),
        Err(_) if most < texts.len() => Err(ScoreError::TooLarge {
            param: param.to_owned(),
            why: format!("more elements than intake.documents_max = {most}; send less"),
        }),
        Err(error) => Err(ScoreError::invalid(param, error.to_string())),
    }
}

struct Leaves<'a> {
    texts: &'a mut Vec<String>,
    most: usize,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Leaves<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<(), D::Error> {
        input.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Leaves<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("texts, in lists")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.texts.push(text.to_owned());
        match self.texts.len() <= self.most {
            true => Ok(()),
            false => Err(E::custom("too many")),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Self { texts, most, depth } = self;
        if depth == DEPTH_MAX {
            return Err(A::Error::custom("lists are too deep"));
        }
        loop {
            let inner = Leaves {
                texts: &mut *texts,
                most,
                depth: depth + 1,
            };
            if list.next_element_seed(inner)?.is_none() {
                return Ok(());
            }
        }
    }
}
