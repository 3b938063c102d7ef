//! `crossgate rerank`: the lines of a file or a pipe by their relevance to a query.

use super::engine::{Engine, Row};
use super::flow::{Flow, Grouper, Unwanted, flow};
use super::line::{Fault, Lines};
use super::text::Json;
use super::{Input, Scoring, wrong};
use crate::app::{StartError, bounds};
use crate::config::Config;
use crate::intake::Bounds;
use crate::model::hub;
use crate::score::Texts;
use serde::Serialize;
use serde_json::value::RawValue;
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::fmt::Write as _;
use std::sync::Arc;

/// Of the documents that are ranked at the same time; with `top_n` only so many are kept.
const KEPT_BYTES_MAX: usize = 1 << 30;
/// A document's place among others costs about so much, however short it is.
const DOCUMENT_BYTES: usize = 64;

/// What is ranked, and how it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub query: String,
    /// Documents, one a line.
    pub input: Input,
    /// The best ones that are shown; `None` for all.
    pub top_n: Option<usize>,
    /// Whether an object a line is written, instead of columns.
    pub is_json: bool,
    pub format: Format,
    pub scoring: Scoring,
}

/// What a line is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// JSON if the first line begins with a brace, else text.
    #[default]
    Auto,
    /// A document.
    Text,
    /// A JSON object.
    Json,
}

/// A document that is to be ranked.
struct Document {
    index: usize,
    /// As it was written.
    line: String,
    is_json: bool,
}

/// The least comes first, so that a heap of them gives up the worst.
struct Ranked {
    score: f32,
    document: Document,
}

/// The best documents so far.
struct Best {
    heap: BinaryHeap<Ranked>,
    n_max: usize,
    bytes: usize,
}

/// Ranks the input's documents; what is to be shown.
///
/// # Errors
/// A setting or a line that is wrong, no documents at all, a model that does not load, or a document that
/// cannot be scored.
pub async fn run(
    config: &Config,
    hub: hub::Settings,
    options: &Options,
) -> Result<String, StartError> {
    let bounds = bounds(config);
    let query = bounds.check_query("--query", &options.query);
    query.map_err(|error| wrong(error.to_string()))?;
    let reader = options.input.open()?;
    let lines = Lines::new(options.input.clone(), reader);
    let engine = Engine::open(config, hub, options.scoring.clone()).await?;
    let (grouper, flow) = flow(&engine, config);
    let read = {
        let options = options.clone();
        move || read(lines, &options, &bounds, grouper)
    };
    let thread = engine.runtime().thread("read".to_owned(), read);
    thread.map_err(|error| StartError::Other(format!("no thread for the input: {error}")))?;
    let best = collect(&engine, flow, options).await?;
    engine.close().await;
    show(best, options.is_json)
}

/// On a thread of its own: reads every document.
fn read(mut lines: Lines, options: &Options, bounds: &Bounds, mut grouper: Grouper<Document>) {
    let outcome = push_all(&mut lines, options, bounds, &mut grouper);
    grouper.end(outcome);
}

fn push_all(
    lines: &mut Lines,
    options: &Options,
    bounds: &Bounds,
    grouper: &mut Grouper<Document>,
) -> Result<(), StartError> {
    let (query, mut format): (Arc<str>, _) = (options.query.as_str().into(), options.format);
    for index in 0.. {
        let Some(line) = lines.next().map_err(wrong)? else {
            break;
        };
        let fault = |fault: Fault| wrong(fault.at(&options.input, line.number));
        let content = line.content.map_err(fault)?;
        if format == Format::Auto {
            format = match content.trim_start().starts_with('{') {
                true => Format::Json,
                false => Format::Text,
            };
        }
        let fields = &options.scoring.fields;
        if format == Format::Text && !fields.is_empty() {
            let why = "the line is text, and --fields names fields of objects; leave it out, or give an object a line";
            return Err(fault(Fault::whole(why)));
        }
        let text = text(&content, format, fields).map_err(fault)?;
        let fits = bounds.check_document(index, text.len());
        fits.map_err(|error| fault(Fault::whole(error.to_string())))?;
        let rows = Texts::of_query(Arc::clone(&query), [text]);
        let document = Document {
            index,
            line: content,
            is_json: format == Format::Json,
        };
        if let Err(Unwanted) = grouper.push(document, rows) {
            break;
        }
    }
    Ok(())
}

const FORM: &str = r#"{"text": "…"}, an object a line; --format text takes lines as they are"#;

fn text(line: &str, format: Format, fields: &[String]) -> Result<String, Fault> {
    if format != Format::Json {
        return Ok(line.to_owned());
    }
    let json = Json::new(line);
    json.document("the line", json.parse(FORM)?, fields)
}

async fn collect(
    engine: &Engine,
    mut flow: Flow<Document>,
    options: &Options,
) -> Result<Best, StartError> {
    let activation = engine.activation();
    let mut best = Best::new(options.top_n.unwrap_or(usize::MAX));
    let mut is_empty = true;
    while let Some(done) = flow.next().await? {
        for done in done {
            is_empty = false;
            let index = done.item.index;
            let failed = |why: &str| {
                let input = &options.input;
                StartError::Other(format!("document {} of {input}: {why}", index + 1))
            };
            let row: Option<Row> = done.rows.into_iter().next();
            let logits = row.unwrap_or_else(|| Err("has no score".to_owned()));
            let logits = logits.map_err(|why| failed(&why))?;
            let score = activation.apply(&logits)[0];
            best.push(Ranked {
                score,
                document: done.item,
            })?;
        }
    }
    match is_empty {
        true => Err(wrong(format!(
            "{} holds no documents; give one a line",
            options.input
        ))),
        false => Ok(best),
    }
}

// === impl Best ===

impl Best {
    fn new(n_max: usize) -> Self {
        Self {
            heap: BinaryHeap::new(),
            n_max,
            bytes: 0,
        }
    }

    fn push(&mut self, ranked: Ranked) -> Result<(), StartError> {
        self.bytes += ranked.bytes();
        self.heap.push(ranked);
        if self.n_max < self.heap.len()
            && let Some(worst) = self.heap.pop()
        {
            self.bytes -= worst.bytes();
        }
        match self.bytes <= KEPT_BYTES_MAX {
            true => Ok(()),
            false => Err(StartError::Other(format!(
                "the documents to be ranked hold more than {KEPT_BYTES_MAX} bytes; keep the best of them \
                 alone with --top-n, or write scores in the file's order with `crossgate score`"
            ))),
        }
    }
}

// === impl Ranked ===

impl Ranked {
    fn bytes(&self) -> usize {
        self.document.line.len() + DOCUMENT_BYTES
    }
}

impl Ord for Ranked {
    /// By falling score; of equal ones the earlier comes first.
    fn cmp(&self, other: &Self) -> Ordering {
        let score = other.score.total_cmp(&self.score);
        score.then(self.document.index.cmp(&other.document.index))
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Ranked {}

/// A line of the output.
#[derive(Serialize)]
struct Shown<'a> {
    index: usize,
    score: f32,
    document: Content<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Content<'a> {
    Text(&'a str),
    Json(&'a RawValue),
}

fn show(best: Best, is_json: bool) -> Result<String, StartError> {
    let mut out = String::with_capacity(best.bytes);
    let internal = |error: serde_json::Error| StartError::Other(error.to_string());
    for Ranked { score, document } in best.heap.into_sorted_vec() {
        if !is_json {
            _ = writeln!(out, "{score:.6}\t{}", document.line);
            continue;
        }
        let content = match document.is_json {
            true => Content::Json(serde_json::from_str(&document.line).map_err(internal)?),
            false => Content::Text(&document.line),
        };
        let shown = Shown {
            index: document.index,
            score,
            document: content,
        };
        out.push_str(&serde_json::to_string(&shown).map_err(internal)?);
        out.push('\n');
    }
    Ok(out)
}
