//! The arguments of `crossgate bench`.

use crate::bench::{Options, Stage, Workload};
use clap::builder::PossibleValue;
use clap::{Arg, ArgAction, ArgMatches, value_parser};
use std::path::PathBuf;

/// Steady enough, and short enough to be repeated.
const REQUESTS: &str = "24";
const ROUNDS: &str = "3";
/// What a batcher can see at a time, and mix.
const IN_FLIGHT: &str = "8";
/// Bounds of what is kept in memory: texts, tokens and scores of all requests.
const REQUESTS_MAX: i64 = 100_000;
const ROUNDS_MAX: i64 = 1_000;
const IN_FLIGHT_MAX: i64 = 1_024;

const HEADING: &str = "Measuring";

pub(super) const ABOUT: &str = "Measure a stage in process, without ports, by the code that serves";

pub(super) const EXAMPLES: &str = "\
Examples:
  crossgate bench --stage inference --workload requests.jsonl
  crossgate bench --stage pipeline --workload requests.jsonl --models ./my-model --dtype f32 --threads 1
  crossgate bench --stage inference --workload requests.jsonl --rounds 7 --json > after.json
  crossgate bench --stage pipeline --texts 1000                  without a workload of your own

The workload is a request a line: {\"query\": \"…\", \"documents\": [\"…\", …]}. Its first requests are sent
again in each round, a fixed number of them at a time; a round that is not measured goes first. Every setting
of `serve` holds: model, backend, threads and bounds of batches.

Answers are checked before time: scores must be finite, and equal bit for bit in all rounds where the backend
promises it. GOP/s are counted from the model's sizes, a multiply-add as two; hold them against what
`cargo bench -p cpu-int8` measures as the machine's own peak. Compare two versions in turn (A B A B …), at
least seven times: machines are noisier than most changes.

Exit codes: 0 measured; 1 something failed, or the answers are wrong; 2 a flag, a setting or the workload is
wrong.";

/// Of other servers, which measure by flags instead of a command.
const OLDER: &str = "benchmark";
const OLDER_TEXTS: &str = "benchmark-texts";
/// What they measure with.
const OLDER_TEXTS_DEFAULT: usize = 1_000;
const TEXTS_MAX: i64 = 1_000_000;

/// Flags that are this command.
pub(super) fn older_args() -> [Arg; 2] {
    let texts = Arg::new(OLDER_TEXTS)
        .long(OLDER_TEXTS)
        .value_parser(value_parser!(u32).range(1..=TEXTS_MAX));
    let benchmark = Arg::new(OLDER).long(OLDER).action(ArgAction::SetTrue);
    [benchmark, texts].map(|arg| arg.hide(true))
}

/// What flags of other servers ask for.
pub(super) fn older_options(matches: &ArgMatches) -> Option<Options> {
    let texts = matches.try_get_one::<u32>(OLDER_TEXTS).ok().flatten();
    let is_asked = matches.try_get_one::<bool>(OLDER).ok().flatten();
    if texts.is_none() && is_asked != Some(&true) {
        return None;
    }
    Some(Options {
        stage: Stage::Pipeline,
        workload: Workload::Made {
            texts: texts.map_or(OLDER_TEXTS_DEFAULT, |&texts| texts as usize),
        },
        requests: 0,
        rounds: ROUNDS.parse().ok()?,
        in_flight: IN_FLIGHT.parse().ok()?,
        output: None,
        is_json: false,
    })
}

pub(super) fn args() -> [Arg; 8] {
    let stages = Stage::ALL.map(|stage| {
        PossibleValue::new(stage.name()).help(match stage {
            Stage::Inference => "from rows that were tokenized before to scores",
            Stage::Tokenize => "texts to rows, on the tokenizer's threads",
            Stage::Pipeline => "texts to scores: everything but HTTP and gRPC",
        })
    });
    let count = |name: &'static str, default: &'static str, max: i64, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("N")
            .default_value(default)
            .value_parser(value_parser!(u32).range(1..=max))
            .help(help)
    };
    let path = |name: &'static str| {
        let arg = Arg::new(name).long(name).value_name("FILE");
        arg.value_parser(value_parser!(PathBuf))
    };
    [
        Arg::new("stage")
            .long("stage")
            .value_name("STAGE")
            .required(true)
            .value_parser(stages)
            .help("The part of a request's way that is measured"),
        path("workload")
            .required_unless_present("texts")
            .conflicts_with("texts")
            .help("The requests, one a line: {\"query\": \"…\", \"documents\": [\"…\", …]}"),
        Arg::new("texts")
            .long("texts")
            .value_name("N")
            .value_parser(value_parser!(u32).range(1..=TEXTS_MAX))
            .help("Make so many documents of words, in requests of 32, instead of a workload"),
        count(
            "requests",
            REQUESTS,
            REQUESTS_MAX,
            "The workload's first requests that are sent in each round",
        ),
        count(
            "rounds",
            ROUNDS,
            ROUNDS_MAX,
            "Measured rounds; the median one is reported",
        ),
        count(
            "in-flight",
            IN_FLIGHT,
            IN_FLIGHT_MAX,
            "Requests that are sent at a time",
        ),
        path("output").help("Write the logits of each request here, a line of JSON for each"),
        Arg::new("json")
            .long("json")
            .action(ArgAction::SetTrue)
            .help("Print the report as a JSON object"),
    ]
    .map(|arg| arg.help_heading(HEADING))
}

/// What was said; `None` never happens to arguments that clap has checked.
pub(super) fn options(matches: &ArgMatches) -> Option<Options> {
    let count = |name: &str| Some(*matches.get_one::<u32>(name)? as usize);
    let stage = matches.get_one::<String>("stage")?;
    Some(Options {
        stage: Stage::ALL.into_iter().find(|known| known.name() == stage)?,
        workload: match matches.get_one::<u32>("texts") {
            Some(&texts) => Workload::Made {
                texts: texts as usize,
            },
            None => Workload::File(matches.get_one::<PathBuf>("workload")?.clone()),
        },
        requests: count("requests")?,
        rounds: count("rounds")?,
        in_flight: count("in-flight")?,
        output: matches.get_one::<PathBuf>("output").cloned(),
        is_json: matches.get_flag("json"),
    })
}
