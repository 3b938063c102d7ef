//! `crossgate bench`: how fast the stages behind the edge are, in process, by the code that serves.
//!
//! The model is loaded and warmed up as for serving. One round over the workload comes before the measured
//! ones, so that the cost model has seen these rows; it also gives the answers that the others must repeat.

mod report;
mod rounds;
mod workload;

pub use report::Report;
pub use workload::Workload;

use crate::app::StartError;
use crate::app::core::{Core, Reuse};
use crate::config::{Config, ConfigError};
use crate::generation::Generation;
use crate::model::{TokenRows, hub};
use crate::score::Form;
use crate::tokenize::{Haste, Pool};
use indicatif::{ProgressBar, ProgressStyle};
use rounds::{Driver, Round};
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use workload::Request;

/// The workers are idle when the last round is done; they only have to notice.
const JOIN_MAX: Duration = Duration::from_secs(5);

/// What is measured, and how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// The part of a request's way.
    pub stage: Stage,
    /// Where requests come from.
    pub workload: Workload,
    /// The first ones of a file that are sent, all in each round; at least 1.
    pub requests: usize,
    /// Measured rounds; at least 1.
    pub rounds: usize,
    /// Requests at a time; at least 1.
    pub in_flight: usize,
    /// Where the logits go; `None` for nowhere.
    pub output: Option<PathBuf>,
    /// Whether the report is printed as JSON.
    pub is_json: bool,
}

/// A part of a request's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Rows that were tokenized before, from the queue to the scores.
    Inference,
    /// Texts to rows, on the tokenizer's threads.
    Tokenize,
    /// Texts to scores: everything but the edge.
    Pipeline,
}

// === impl Stage ===

impl Stage {
    /// Every stage.
    pub const ALL: [Self; 3] = [Self::Inference, Self::Tokenize, Self::Pipeline];

    /// The name on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Inference => "inference",
            Self::Tokenize => "tokenize",
            Self::Pipeline => "pipeline",
        }
    }
}

/// Loads the model, checks its answers and measures.
///
/// # Errors
/// A setting or a workload that is wrong, a model that does not load, a request that fails, or scores that
/// are not what the backend promises.
pub async fn run(
    config: &Config,
    hub: hub::Settings,
    options: &Options,
) -> Result<Report, StartError> {
    let requests = options
        .workload
        .requests(options.requests)
        .map_err(|why| StartError::Config(ConfigError::new(vec![why])))?;
    if config.models().sources.len() > 1 {
        let why = "bench measures one model; name one";
        return Err(StartError::Config(config.refuse("model.sources", why)));
    }
    // Rounds are the same requests again: a cache would answer all but the first.
    let core = Core::new(config, hub, Reuse::Never)?;
    let (slots, pool, threads) = (
        Arc::clone(&core.slots),
        Arc::clone(&core.pool),
        core.threads,
    );
    let (intake, runtime) = (core.intake.clone(), core.runtime.clone());
    let generation = core.load_first().await?;
    let rows = tokenize(&pool, &generation, &requests)
        .await
        .map_err(StartError::Other)?;
    let driver = Arc::new(Driver {
        stage: options.stage,
        in_flight: options.in_flight.min(requests.len()),
        requests,
        rows,
        generation,
        intake,
        pool,
        runtime: runtime.clone(),
    });
    let rounds = measure(&driver, options).await.map_err(StartError::Other)?;
    if let Some(path) = &options.output {
        write_scores(path, &driver, &rounds[0]).map_err(|error| {
            StartError::Other(format!(
                "--output {} cannot be written: {error}",
                path.display()
            ))
        })?;
    }
    let report = Report::new(&driver, options, threads, &rounds);
    let stopped = runtime.blocking(move || slots.shut_down(Instant::now() + JOIN_MAX));
    stopped
        .await
        .map_err(|error| StartError::Other(format!("the workers did not stop: {error}")))?;
    Ok(report)
}

/// The rows of each request, for the stage that takes rows and to count tokens.
async fn tokenize(
    pool: &Pool,
    generation: &Generation,
    requests: &[Request],
) -> Result<Vec<TokenRows>, String> {
    let mut rows = Vec::with_capacity(requests.len());
    for (idx, request) in requests.iter().enumerate() {
        let tokenizer = Arc::clone(generation.tokenizer());
        let texts = request.clone().into_texts();
        let work = rounds::unheard(texts.len());
        let tokenized = pool
            .tokenize(tokenizer, texts, Form::default(), work, Haste::All)
            .await
            .map_err(|error| format!("request {} of the workload: {error}", idx + 1))?;
        rows.push(tokenized.rows);
    }
    Ok(rows)
}

/// The measured rounds, each checked against the one that came before all of them.
async fn measure(driver: &Arc<Driver>, options: &Options) -> Result<Vec<Round>, String> {
    let bar = bar(options);
    let first = driver.round().await?;
    check_finite(&first)?;
    bar.inc(1);
    let is_bitwise = driver.generation.facts().description.bitwise;
    let mut rounds = Vec::with_capacity(options.rounds);
    for _ in 0..options.rounds {
        let round = driver.round().await?;
        check_finite(&round)?;
        if is_bitwise {
            check_equal(&first, &round)?;
        }
        rounds.push(round);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(rounds)
}

/// One step a round, the first one included; absent when nobody watches.
fn bar(options: &Options) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(options.rounds as u64 + 1).with_prefix(options.stage.name());
    bar.enable_steady_tick(Duration::from_millis(200));
    // A template that does not parse costs its looks only.
    match ProgressStyle::with_template("{prefix} {bar:30} round {pos}/{len} {elapsed}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn check_finite(round: &Round) -> Result<(), String> {
    let is_wrong = |answer: &rounds::Answer| answer.logits.iter().any(|logit| !logit.is_finite());
    match round.answers.iter().position(is_wrong) {
        Some(idx) => Err(format!(
            "a score of request {} of the workload is not a number: the backend or the model is broken, \
             and no time is worth reporting",
            idx + 1
        )),
        None => Ok(()),
    }
}

fn check_equal(first: &Round, round: &Round) -> Result<(), String> {
    let bits = |answer: &rounds::Answer| -> Vec<u32> {
        answer.logits.iter().map(|logit| logit.to_bits()).collect()
    };
    let mut pairs = first.answers.iter().zip(&round.answers);
    match pairs.position(|(a, b)| bits(a) != bits(b)) {
        Some(idx) => Err(format!(
            "two rounds gave different scores for request {} of the workload, but the backend says that \
             its scores are bitwise reproducible: report this as a mistake of the plugin",
            idx + 1
        )),
        None => Ok(()),
    }
}

/// A line for each request with its query and the first label's logits, as `loadtest record` writes them.
fn write_scores(path: &Path, driver: &Driver, round: &Round) -> std::io::Result<()> {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    let n_labels = driver.generation.n_labels();
    for (request, answer) in driver.requests.iter().zip(&round.answers) {
        let scores: Vec<f32> = answer.logits.iter().step_by(n_labels).copied().collect();
        let line = serde_json::json!({"query": request.query, "scores": scores});
        writeln!(file, "{line}")?;
    }
    file.flush()
}
