//! Mixedbread's dialect of `/rerank`: `input` in, `data` out.

use super::Edge;
use super::answer::{Usage, scored, warn};
use super::document::{Document, RankFields, texts};
use super::json;
use super::overflow::{Overflow, cuts};
use super::post::Post;
use super::scoring::{filled, n_results, ranked};
use super::wire::Refusal;
use super::words::Words;
use crate::intake::Bounds;
use crate::runtime::aside;
use crate::score::{Form, ScoreResponse, Texts};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A query and the texts to rank by it. `x-crossgate-warnings` tells which were cut.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = MixedbreadRequest, example = json!({
    "model": "default",
    "query": "What is the capital of France?",
    "input": ["Paris is the capital of France.", "Bread is made of flour."],
    "top_k": 1,
    "return_input": true
}))]
pub(super) struct Body {
    /// A name from `/models`; absent for the first.
    model: Option<String>,
    /// What the texts are compared with; not empty.
    #[schema(value_type = String, min_length = 1)]
    query: Option<String>,
    /// At least one.
    #[schema(value_type = Vec<Document>, min_items = 1)]
    input: Option<Vec<Document>>,
    /// How many results to return, at least 1; absent for all.
    #[serde(default, deserialize_with = "json::count")]
    #[schema(minimum = 1)]
    top_k: Option<u64>,
    /// Repeat each text in its result.
    #[serde(default, deserialize_with = "json::flag")]
    return_input: Option<bool>,
    /// Of inputs that are objects, the fields that are their text, in this order; at most 64.
    #[schema(value_type = Option<Vec<String>>, max_items = 64)]
    rank_fields: Option<RankFields>,
}

/// The texts by falling score; equal scores keep their order.
#[derive(Serialize, ToSchema)]
#[schema(as = MixedbreadAnswer, example = json!({
    "usage": {"prompt_tokens": 31, "total_tokens": 31},
    "model": "default",
    "data": [{
        "index": 0, "score": 0.9987, "input": "Paris is the capital of France.", "object": "rank_result"
    }],
    "object": "list",
    "top_k": 1,
    "return_input": true
}))]
pub(super) struct Answer {
    usage: Usage,
    /// The model's name, as configured.
    model: String,
    data: Vec<Ranked>,
    #[schema(example = "list")]
    object: &'static str,
    /// How many results there are.
    top_k: usize,
    return_input: bool,
}

/// One text's result.
#[derive(Serialize, ToSchema)]
#[schema(as = MixedbreadRank)]
pub(super) struct Ranked {
    /// The text's place in the request.
    index: usize,
    score: f32,
    /// What was scored.
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<String>,
    #[schema(example = "rank_result")]
    object: &'static str,
}

/// What the core calls otherwise.
pub(super) const WORDS: Words = Words(&[("documents", "input")]);

/// Bytes of a result without its text, about.
const RESULT_BYTES: usize = 64;

/// A body that makes sense.
struct Asked {
    model: Option<String>,
    rows: Vec<Texts>,
    n_results: usize,
    repeated: Option<Vec<String>>,
}

/// Answers a body with `input`.
pub(super) async fn rerank(edge: &Edge, post: &Post) -> Result<Response, Refusal> {
    let asked = aside(post.body.len(), || read(&post.body, edge.door.bounds()))?;
    let (n_results, repeated) = (asked.n_results, asked.repeated);
    let question = post.question(asked.model, asked.rows, Form::default());
    let response = edge.ask(question, Overflow::Truncate, &WORDS).await?;
    let texts = repeated.iter().flatten().map(String::len);
    let bytes = n_results * RESULT_BYTES + texts.sum::<usize>();
    Ok(aside(bytes, || {
        let answer = Answer::new(&response, n_results, repeated);
        let mut answer = scored(&post.call, &response, response.activation, &answer);
        warn(&mut answer, &cuts(&response, "input", &Form::default()));
        answer
    }))
}

fn read(body: &[u8], bounds: &Bounds) -> Result<Asked, Refusal> {
    let body: Body = json::parse(body)?;
    let query = json::required(body.query, "query", "the text to compare the input with")?;
    let input = json::required(body.input, "input", "a list of strings")?;
    let rank_fields = body.rank_fields.unwrap_or_default();
    let texts = texts(filled("input", input)?, &rank_fields, bounds);
    let texts = texts.map_err(|error| WORDS.say(error))?;
    Ok(Asked {
        model: body.model,
        n_results: n_results("top_k", body.top_k, texts.len())?,
        repeated: (body.return_input == Some(true)).then(|| texts.clone()),
        rows: Texts::of_query(query, texts),
    })
}

// === impl Answer ===

impl Answer {
    fn new(response: &ScoreResponse, n_results: usize, repeated: Option<Vec<String>>) -> Self {
        let scores = response.scores(false);
        let return_input = repeated.is_some();
        let data = ranked(&scores, n_results, repeated);
        let data = data.map(|(index, score, input)| Ranked {
            index,
            score,
            input,
            object: "rank_result",
        });
        Self {
            data: data.collect(),
            usage: Usage::of(response),
            model: response.model.to_string(),
            object: "list",
            top_k: n_results,
            return_input,
        }
    }
}
