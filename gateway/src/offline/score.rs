//! `crossgate score`: every line of a file with its scores, in the file's order.

use super::engine::{Engine, Row};
use super::flow::{Done, Grouper, flow};
use super::journal::{Facts, Output, Whole};
use super::line::{Fault, Lines};
use super::pairs::{Asked, Reader, Rows};
use super::watch::Watch;
use super::{Input, Scoring, wrong};
use crate::app::{StartError, bounds};
use crate::config::Config;
use crate::model::hub;
use crate::score::{Activation, ranking};
use serde::Serialize;
use serde_json::value::RawValue;
use std::io::Write as _;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What is scored, and where the scores go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Lines of pairs.
    pub input: Input,
    /// Where a line for each goes; `-` for standard output.
    pub output: PathBuf,
    /// Whether what an earlier run has written there is written over.
    pub is_restart: bool,
    /// Whether a line that cannot be scored gets its error, instead of ending the run.
    pub skips_errors: bool,
    pub scoring: Scoring,
}

/// How a run ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Every line is done, or nobody reads on.
    Done,
    /// It was told to stop.
    Stopped,
}

/// A line of the input.
struct Record {
    line: u64,
    /// Of the input, up to its end.
    bytes: u64,
    id: Option<Box<RawValue>>,
    /// Whether its scores are a list; or why it has none.
    is_list: Result<bool, Fault>,
}

/// Scores every line of the input, until `stop` is over. Behind the lines that an earlier run has done.
///
/// # Errors
/// A setting or a line that is wrong, an output of something else, a model that does not load, or a line that
/// cannot be scored.
pub async fn run(
    config: &Config,
    hub: hub::Settings,
    options: &Options,
    stop: impl Future<Output = ()>,
) -> Result<Ended, StartError> {
    let mut stop = pin!(stop);
    let of_input = options.input.facts()?;
    let reader = options.input.open()?;
    let engine = tokio::select! {
        engine = Engine::open(config, hub, options.scoring.clone()) => engine?,
        () = &mut stop => return Ok(Ended::Stopped),
    };
    let is_twice_readable = of_input.is_some();
    let mut facts = of_input.unwrap_or_default();
    facts.extend(engine.facts());
    facts.extend(options.scoring.facts());
    let output = Output::open(&options.output, &options.input, &facts, options.is_restart)?;
    let done = output.done();
    if done.n_lines > 0 && !is_twice_readable {
        return Err(wrong(format!(
            "{} lines are done, but {} cannot be read again from its start; name a file, or --restart",
            done.n_lines, options.input
        )));
    }
    let mut lines = Lines::new(options.input.clone(), reader);
    pass_over(&mut lines, done, options)?;
    let (grouper, flow) = flow(&engine, config);
    let lines_bytes = lines.bytes();
    let watch = Watch::new(options.input.bytes(), lines_bytes);
    let reader = Reader {
        bounds: bounds(config),
        fields: options.scoring.fields.clone(),
        query: None,
    };
    let skips_errors = options.skips_errors;
    let read = move || read(lines, reader, grouper, skips_errors);
    let thread = engine.runtime().thread("read".to_owned(), read);
    thread.map_err(|error| StartError::Other(format!("no thread for the input: {error}")))?;
    let mut run = Run {
        engine: Arc::clone(&engine),
        options,
        output,
        watch,
        n_lines: done.n_lines,
        bytes: lines_bytes,
        n_errors: 0,
    };
    let ended = run.write_all(flow, stop).await;
    run.watch.end();
    engine.close().await;
    run.end(ended)
}

/// Passes over what is done, and checks that it is.
fn pass_over(lines: &mut Lines, done: Whole, options: &Options) -> Result<(), StartError> {
    let (n_lines, line) = lines.skip(done.n_lines).map_err(wrong)?;
    if (n_lines, line) == (done.n_lines, done.line) {
        return Ok(());
    }
    Err(wrong(format!(
        "--output {} has {} lines, the last of them for line {}, which do not come from {}; name another file, \
         or --restart to write over it",
        options.output.display(),
        done.n_lines,
        done.line,
        options.input
    )))
}

/// On a thread of its own: reads every line.
fn read(mut lines: Lines, mut reader: Reader, mut grouper: Grouper<Record>, skips_errors: bool) {
    let outcome = loop {
        let line = match lines.next() {
            Ok(Some(line)) => line,
            Ok(None) => break Ok(()),
            Err(why) => break Err(wrong(why)),
        };
        let Asked { id, rows } = match line.content {
            Ok(content) => reader.read(&content),
            Err(fault) => Asked {
                id: None,
                rows: Err(fault),
            },
        };
        let (rows, is_list) = match rows {
            Ok(Rows { rows, is_list }) => (rows, Ok(is_list)),
            Err(fault) => (Vec::new(), Err(fault)),
        };
        let is_last = is_list.is_err() && !skips_errors;
        let record = Record {
            line: line.number,
            bytes: lines.bytes(),
            id,
            is_list,
        };
        if grouper.push(record, rows).is_err() || is_last {
            break Ok(());
        }
    };
    grouper.end(outcome);
}

/// A run while it goes on.
struct Run<'a> {
    engine: Arc<Engine>,
    options: &'a Options,
    output: Output,
    watch: Watch,
    /// Lines that are done, by this run and before.
    n_lines: u64,
    /// Of the input, that are done.
    bytes: u64,
    n_errors: u64,
}

/// How writing ended.
enum Written {
    All,
    /// Nobody reads on.
    Unread,
    Stopped,
}

// === impl Run ===

impl Run<'_> {
    async fn write_all(
        &mut self,
        mut flow: super::flow::Flow<Record>,
        mut stop: std::pin::Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Written, StartError> {
        loop {
            let done = tokio::select! {
                biased;
                () = &mut stop => return Ok(Written::Stopped),
                done = flow.next() => done?,
            };
            let Some(done) = done else {
                return Ok(Written::All);
            };
            let (mut text, mut pairs, mut outcome) = (String::new(), 0, Ok(()));
            for done in done {
                outcome = self.show(&done, &mut text);
                if outcome.is_err() {
                    break;
                }
                pairs += done.rows.len() as u64;
                (self.n_lines, self.bytes) = (self.n_lines + 1, done.item.bytes);
            }
            self.watch.add(pairs, self.bytes);
            // What comes before a fault is done.
            if !self.output.write(&text)? {
                return Ok(Written::Unread);
            }
            outcome?;
        }
    }

    /// Adds a line's answer to `text`.
    fn show(&mut self, done: &Done<Record>, text: &mut String) -> Result<(), StartError> {
        let Done { item, rows } = done;
        let scored = match &item.is_list {
            Ok(is_list) => logits(rows, *is_list).map(|logits| (logits, *is_list)),
            Err(fault) => Err(fault.clone()),
        };
        let mut line = Line {
            line: item.line,
            id: item.id.as_deref(),
            score: None,
            scores: None,
            labels: None,
            error: None,
        };
        match scored {
            Ok((logits, is_list)) => self.fill(&mut line, &logits, is_list),
            Err(fault) if self.options.skips_errors => {
                self.n_errors += 1;
                line.error = Some(fault.to_string());
            }
            Err(fault) => {
                let why = fault.at(&self.options.input, item.line);
                let why = format!("{why}; --on-error skip goes on without it");
                return Err(match item.is_list {
                    Ok(_) => StartError::Other(why),
                    Err(_) => wrong(why),
                });
            }
        }
        let internal = |error: serde_json::Error| StartError::Other(error.to_string());
        text.push_str(&serde_json::to_string(&line).map_err(internal)?);
        text.push('\n');
        Ok(())
    }

    fn fill<'a>(&'a self, line: &mut Line<'a>, logits: &[&[f32]], is_list: bool) {
        let (activation, labels) = (self.engine.activation(), self.engine.labels());
        if labels.len() == 1 {
            let mut scores = logits.iter().map(|logits| activation.apply(logits)[0]);
            match is_list {
                true => line.scores = Some(scores.collect()),
                false => line.score = scores.next(),
            }
            return;
        }
        let mut all = logits
            .iter()
            .map(|logits| labelled(activation, labels, logits));
        line.labels = match is_list {
            true => Some(Labels::Many(all.collect())),
            false => all.next().map(Labels::One),
        };
    }

    /// Says how it ended.
    fn end(self, ended: Result<Written, StartError>) -> Result<Ended, StartError> {
        let summary = self.summary();
        let how = match &ended {
            Ok(Written::Unread) => return Ok(Ended::Done),
            Ok(Written::All) => {
                self.output.finish()?;
                say(&summary);
                return Ok(Ended::Done);
            }
            Ok(Written::Stopped) => "stopped",
            Err(_) => "ended by an error",
        };
        self.output.pause(&self.options.input, self.bytes);
        let done = count(self.n_lines, "line");
        let go_on = match self.output.can_go_on() {
            true => "; the same command goes on behind what is done",
            false => "",
        };
        say(&format!("{summary}\n{how}, {done} done{go_on}"));
        ended.map(|_| Ended::Stopped)
    }

    fn summary(&self) -> String {
        let (pairs, seconds) = (self.watch.pairs(), self.watch.seconds());
        let counts = self.engine.counts();
        let tokens = counts.tokens.load(Ordering::Relaxed);
        let rate = pairs as f64 / seconds;
        let mut text = format!(
            "{} in {seconds:.1} s, {rate:.1} pairs/s, {tokens} tokens",
            count(pairs, "pair")
        );
        let cut = counts.cut.load(Ordering::Relaxed);
        if cut > 0 {
            text += &format!(", {} cut", count(cut, "text"));
        }
        if self.n_errors > 0 {
            text += &format!(", {} with an error", count(self.n_errors, "line"));
        }
        text
    }
}

/// On standard error; nobody is left to be told when that is closed.
fn say(text: &str) {
    _ = writeln!(std::io::stderr(), "{text}");
}

fn count(n: u64, noun: &str) -> String {
    match n {
        1 => format!("1 {noun}"),
        _ => format!("{n} {noun}s"),
    }
}

/// Of every row, or the first fault.
fn logits(rows: &[Row], is_list: bool) -> Result<Vec<&[f32]>, Fault> {
    let of_row = |(index, row): (usize, &'_ Row)| match row {
        Ok(_) => None,
        Err(why) if is_list => Some(Fault::whole(format!("documents[{index}]: {why}"))),
        Err(why) => Some(Fault::whole(why)),
    };
    match rows.iter().enumerate().find_map(of_row) {
        Some(fault) => Err(fault),
        None => Ok(rows.iter().flatten().map(Vec::as_slice).collect()),
    }
}

/// By falling score.
fn labelled<'a>(activation: Activation, labels: &'a [String], logits: &[f32]) -> Vec<Label<'a>> {
    let scores = activation.apply(logits);
    let order = ranking(&scores).into_iter();
    let labels = order.filter_map(|index| {
        let (label, score) = (labels.get(index)?, scores[index]);
        Some(Label { label, score })
    });
    labels.collect()
}

/// A line of the output.
#[derive(Serialize)]
struct Line<'a> {
    /// Of the input; [`Whole`] reads it.
    line: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scores: Option<Vec<f32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<Labels<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Labels<'a> {
    One(Vec<Label<'a>>),
    Many(Vec<Vec<Label<'a>>>),
}

#[derive(Serialize)]
struct Label<'a> {
    label: &'a str,
    score: f32,
}

// === impl Scoring ===

impl Scoring {
    /// What scores depend on, beside the model and the texts.
    fn facts(&self) -> Facts {
        let Self {
            form,
            is_strict,
            is_raw,
            fields,
        } = self;
        let tokens = |max: Option<u32>| max.map(|max| max.to_string()).unwrap_or_default();
        let overflow = match (is_strict, form.windows) {
            (true, _) => "error",
            (false, true) => "chunk_max",
            (false, false) => "truncate",
        };
        let facts = [
            ("--fields", fields.join(",")),
            ("--raw-scores", is_raw.to_string()),
            ("--overflow", overflow.to_owned()),
            ("--max-tokens-per-doc", tokens(form.document_tokens_max)),
            ("--max-tokens-per-query", tokens(form.query_tokens_max)),
            (
                "--instruction",
                form.instruction.as_deref().unwrap_or_default().to_owned(),
            ),
        ];
        facts.map(|(name, fact)| (name.to_owned(), fact)).into()
    }
}
