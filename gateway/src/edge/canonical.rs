//! The canonical dialect: what clients of Cohere, Jina, vLLM, infinity, LocalAI and Xinference
//! speak.

use super::Edge;
use super::answer::{Usage, scored};
use super::document::{Document, RankFields, texts};
use super::json;
use super::overflow::{Overflow, bound, cuts, instruction, side};
use super::post::{self, Post};
use super::scoring::{filled, n_results, ranked};
use super::wire::Refusal;
use super::words::Words;
use crate::intake::Bounds;
use crate::runtime::aside;
use crate::score::{Form, Priority, ScoreResponse, Texts};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Documents that one search unit pays for, as Cohere bills them.
const SEARCH_UNIT_DOCUMENTS: usize = 100;

/// A query and the documents to rank by it. Every optional field may be null; others are ignored.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = RerankRequest, example = json!({
    "model": "default",
    "query": "What is the capital of France?",
    "documents": ["Paris is the capital of France.", "Bread is made of flour."],
    "top_n": 1,
    "return_documents": true
}))]
pub(super) struct Body {
    /// A name from `/models`; absent for the first.
    model: Option<String>,
    /// What the documents are compared with; not empty.
    #[schema(value_type = String, min_length = 1)]
    query: Option<String>,
    /// At least one.
    #[schema(value_type = Vec<Document>, min_items = 1)]
    documents: Option<Vec<Document>>,
    /// How many results to return; 0 or absent for all.
    #[serde(default, deserialize_with = "json::count")]
    top_n: Option<u64>,
    /// Repeat each document's text in its result.
    #[serde(default, deserialize_with = "json::flag")]
    return_documents: Option<bool>,
    /// Of documents that are objects, the fields that are their text, in this order; at most 64.
    #[schema(value_type = Option<Vec<String>>, max_items = 64)]
    rank_fields: Option<RankFields>,
    /// The model's logit instead of its activation's value.
    #[serde(default, deserialize_with = "json::flag")]
    raw_scores: Option<bool>,
    /// vLLM's word for it: false is `raw_scores` true.
    #[serde(default, deserialize_with = "json::flag")]
    use_activation: Option<bool>,
    /// An older name of `use_activation`, which counts more.
    #[serde(default, deserialize_with = "json::flag")]
    activation: Option<bool>,
    /// An older name of `use_activation`, which counts more.
    #[serde(default, deserialize_with = "json::flag")]
    softmax: Option<bool>,
    /// What becomes of a request with a text that is too long: `truncate` (or absent) cuts it and warns,
    /// `error` refuses the request and names the text, `chunk_max` reads a long document in windows that
    /// overlap and scores it by the best one.
    #[schema(value_type = Option<String>, example = "truncate")]
    overflow: Option<String>,
    /// Of each document no more tokens count; 0 or absent for all that the model reads.
    #[serde(default, deserialize_with = "json::count")]
    max_tokens_per_doc: Option<u64>,
    /// The same of the query.
    #[serde(default, deserialize_with = "json::count")]
    max_tokens_per_query: Option<u64>,
    /// Query and document together have no more tokens, special ones included; -1, 0 or absent for the
    /// model's length.
    #[serde(default, deserialize_with = "json::count_or_all")]
    #[schema(value_type = Option<i64>, minimum = -1)]
    truncate_prompt_tokens: Option<u64>,
    /// Where texts that are too long are cut: `right` or `left`; absent for the side that the model's tokenizer
    /// names.
    truncation_side: Option<String>,
    /// As `truncation_side`, which counts more.
    truncation_direction: Option<String>,
    /// What the model is told to look for, in place of its own instruction; for models that have one in
    /// their prompt.
    instruction: Option<String>,
    /// vLLM's place for `instruction`.
    #[schema(value_type = Option<TemplateKwargs>)]
    chat_template_kwargs: Option<json::Object<TemplateKwargs>>,
    /// How urgent the request is: `high`, `normal` or `low`, in any case, or vLLM's number, of which those
    /// below 0 are high and those above low; absent or 0 for what `X-Priority` says, or normal.
    #[serde(default, deserialize_with = "json::scalar")]
    #[schema(value_type = Option<String>, example = "normal")]
    priority: Option<String>,
}

/// What a prompt's template is told; the instruction of it counts.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = TemplateKwargs)]
pub(super) struct TemplateKwargs {
    /// As the request's own `instruction`, which counts more.
    instruction: Option<String>,
}

/// What the core calls otherwise.
pub(super) const WORDS: Words = Words(&[("row_tokens_max", "truncate_prompt_tokens")]);

/// The documents by falling score; equal scores keep the documents' order.
#[derive(Serialize, ToSchema)]
#[schema(as = RerankAnswer, example = json!({
    "id": "5f0c7f3e-9d2f-4a7e-8f43-0f7d8b5f6c11",
    "object": "list",
    "model": "default",
    "results": [{
        "index": 0,
        "relevance_score": 0.9987,
        "document": {"text": "Paris is the capital of France."}
    }],
    "usage": {"prompt_tokens": 31, "total_tokens": 31},
    "meta": {
        "api_version": {"version": "2"},
        "billed_units": {"search_units": 1},
        "tokens": {"input_tokens": 31, "output_tokens": 0}
    }
}))]
pub(super) struct Answer {
    /// The request's id.
    id: String,
    object: &'static str,
    /// The model's name, as configured.
    model: String,
    results: Vec<Ranked>,
    usage: Usage,
    meta: Meta,
}

/// One document's result.
#[derive(Serialize, ToSchema)]
pub(super) struct Ranked {
    /// The document's place in the request.
    index: usize,
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<RankedDocument>,
}

/// The document's text, when `return_documents` asked for it; at `/infinity/rerank` bare.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum RankedDocument {
    Object { text: String },
    Bare(String),
}

/// The same counts where Cohere's clients look for them.
#[derive(Serialize, ToSchema)]
pub(super) struct Meta {
    api_version: ApiVersion,
    billed_units: BilledUnits,
    tokens: Tokens,
    /// What was cut, and what was read in windows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct ApiVersion {
    #[schema(example = "2")]
    version: &'static str,
}

#[derive(Serialize, ToSchema)]
pub(super) struct BilledUnits {
    /// One for every started 100 documents.
    search_units: usize,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Tokens {
    input_tokens: u64,
    output_tokens: u64,
}

/// Bytes of a result without its document, about.
const RESULT_BYTES: usize = 64;

/// A body that makes sense.
struct Asked {
    model: Option<String>,
    rows: Vec<Texts>,
    form: Form,
    /// Where the body names one.
    priority: Option<Priority>,
    shown: Shown,
}

/// How to present the scores.
struct Shown {
    n_results: usize,
    raw: bool,
    /// The documents' texts, where they are to be repeated.
    texts: Option<Vec<String>>,
    /// Bare, not as objects.
    bare: bool,
    overflow: Overflow,
}

/// The path of clients that expect infinity's answers, whose documents are bare strings. They send what vLLM's
/// send, and each fails at what the other one reads.
pub(super) const BARE_PATH: &str = "/infinity/rerank";

/// Answers a body with `documents` that came to `path`.
pub(super) async fn rerank(edge: &Edge, path: &str, post: &Post) -> Result<Response, Refusal> {
    let Asked {
        model,
        rows,
        form,
        priority,
        mut shown,
    } = aside(post.body.len(), || read(&post.body, edge.door.bounds()))?;
    let mut question = post.question(model, rows, form.clone());
    shown.bare = path == BARE_PATH;
    question.priority = priority.unwrap_or(question.priority);
    let response = edge.ask(question, shown.overflow, &WORDS).await?;
    let activation = response.activation_unless(shown.raw);
    Ok(aside(shown.bytes(), || {
        let warnings = cuts(&response, "documents", &form);
        let answer = answer(post.call.id().to_string(), &response, shown, warnings);
        scored(&post.call, &response, activation, &answer)
    }))
}

fn read(body: &[u8], bounds: &Bounds) -> Result<Asked, Refusal> {
    let body: Body = json::parse(body)?;
    let query = json::required(
        body.query,
        "query",
        "the text to compare the documents with",
    )?;
    let documents = json::required(body.documents, "documents", "a list of strings")?;
    let documents = filled("documents", documents)?;
    let priority = post::priority("priority", body.priority.as_deref().unwrap_or_default())?;
    let overflow = Overflow::parse(body.overflow.as_deref())?;
    let kwargs = body.chat_template_kwargs;
    let said = body
        .instruction
        .or(kwargs.and_then(|kwargs| kwargs.0.instruction));
    let form = Form {
        instruction: instruction(said),
        query_tokens_max: bound(body.max_tokens_per_query),
        document_tokens_max: bound(body.max_tokens_per_doc),
        row_tokens_max: bound(body.truncate_prompt_tokens),
        side: match body.truncation_side.as_deref() {
            Some(said) => side("truncation_side", Some(said))?,
            None => side("truncation_direction", body.truncation_direction.as_deref())?,
        },
        windows: overflow == Overflow::ChunkMax,
    };
    let rank_fields = body.rank_fields.unwrap_or_default();
    let texts = texts(documents, &rank_fields, bounds)?;
    let shown = Shown {
        // vLLM's clients send 0, its own default, for all; those of the others never do.
        n_results: n_results("top_n", body.top_n.filter(|&n| n != 0), texts.len())?,
        raw: body
            .raw_scores
            .unwrap_or(body.use_activation.or(body.activation).or(body.softmax) == Some(false)),
        texts: body
            .return_documents
            .unwrap_or(false)
            .then(|| texts.clone()),
        bare: false,
        overflow,
    };
    Ok(Asked {
        model: body.model,
        rows: Texts::of_query(query, texts),
        form,
        priority,
        shown,
    })
}

fn answer(id: String, response: &ScoreResponse, shown: Shown, warnings: Vec<String>) -> Answer {
    let scores = response.scores(shown.raw);
    let document = |text| match shown.bare {
        true => RankedDocument::Bare(text),
        false => RankedDocument::Object { text },
    };
    let results = ranked(&scores, shown.n_results, shown.texts);
    let results = results.map(|(index, relevance_score, text)| Ranked {
        index,
        relevance_score,
        document: text.map(document),
    });
    Answer {
        id,
        object: "list",
        model: response.model.to_string(),
        results: results.collect(),
        usage: Usage::of(response),
        meta: Meta {
            api_version: ApiVersion { version: "2" },
            billed_units: BilledUnits {
                search_units: scores.len().div_ceil(SEARCH_UNIT_DOCUMENTS),
            },
            tokens: Tokens {
                input_tokens: response.n_tokens,
                output_tokens: 0,
            },
            warnings,
        },
    }
}

impl Shown {
    /// The answer's bytes, about.
    fn bytes(&self) -> usize {
        let texts = self.texts.iter().flatten().map(String::len);
        self.n_results * RESULT_BYTES + texts.sum::<usize>()
    }
}
