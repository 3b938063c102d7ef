//! What every route that scores has in common: its headers, both ways, and its checks.

use super::wire::Refusal;
use crate::score::{ScoreError, Texts, ranking};
use utoipa::IntoParams;
use utoipa::openapi::Required;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{
    KnownFormat, ObjectBuilder, OneOfBuilder, Schema, SchemaFormat, Type,
};

/// The headers that a route that scores reads.
pub(super) struct ScoringHeaders;

/// How many results are wanted; all of `n` where nothing is said.
///
/// # Errors
/// Refuses none at all; `param` is the field's name in the dialect.
pub(super) fn n_results(param: &str, asked: Option<u64>, n: usize) -> Result<usize, ScoreError> {
    match asked {
        None => Ok(n),
        Some(0) => Err(ScoreError::invalid(
            param,
            "is 0; send 1 or more, or leave it out for all",
        )),
        Some(asked) => Ok(usize::try_from(asked).unwrap_or(usize::MAX).min(n)),
    }
}

/// A list that has at least one element.
///
/// # Errors
/// Refuses one that has none.
pub(super) fn filled<T>(param: &'static str, list: Vec<T>) -> Result<Vec<T>, Refusal> {
    if list.is_empty() {
        let why = "is empty; send at least one text";
        return Err(Refusal::Empty { param, why });
    }
    Ok(list)
}

/// One text with each of many, or each of two lists with its own; `None` for lists of other lengths.
pub(super) fn joined(mut first: Vec<String>, second: Vec<String>) -> Option<Vec<Texts>> {
    match first.len() {
        1 => Some(Texts::of_query(first.pop()?, second)),
        n if n == second.len() => Some(Texts::of_pairs(first.into_iter().zip(second))),
        _ => None,
    }
}

/// The best `n` rows by falling score: place, score, and the row's own of `texts`, where these are repeated.
pub(super) fn ranked(
    scores: &[f32],
    n: usize,
    mut texts: Option<Vec<String>>,
) -> impl Iterator<Item = (usize, f32, Option<String>)> {
    let order = ranking(scores).into_iter().take(n);
    order.map(move |index| {
        let text = texts
            .as_mut()
            .map(|texts| std::mem::take(&mut texts[index]));
        (index, scores[index], text)
    })
}

impl IntoParams for ScoringHeaders {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let header = |name: &str, of: Schema, about: &str| {
            ParameterBuilder::new()
                .name(name)
                .parameter_in(ParameterIn::Header)
                .required(Required::False)
                .description(Some(about))
                .schema(Some(of))
                .build()
        };
        let of = |kind: Type| ObjectBuilder::new().schema_type(kind);
        let whole =
            || of(Type::Integer).format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)));
        let named = of(Type::String).enum_values(Some(["high", "normal", "low"]));
        let urgency = OneOfBuilder::new().item(named).item(whole());
        vec![
            header(
                "X-Request-Id",
                of(Type::String).into(),
                "A name for the request, kept in answer and log: at most 128 visible ASCII characters",
            ),
            header(
                "X-Request-Timeout-Ms",
                whole().minimum(Some(1)).into(),
                "Less time than allowed",
            ),
            header(
                "X-Priority",
                urgency.into(),
                "`high`, `normal` or `low`, or a whole number: below 0 high, above 0 low; a body's own `priority` counts \
                 more",
            ),
        ]
    }
}
