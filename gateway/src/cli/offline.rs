//! The arguments of `crossgate rerank` and `crossgate score`.

use crate::config::raw::{Origin, Raw};
use crate::offline::rerank::{self, Format};
use crate::offline::{Input, Scoring, score};
use crate::score::Form;
use clap::builder::PossibleValue;
use clap::{Arg, ArgAction, ArgMatches, value_parser};
use std::path::PathBuf;

const HEADING: &str = "Scoring";

/// Tokens of the longest context that any model has.
const TOKENS_MAX: i64 = 1 << 20;
const TOP_N_MAX: i64 = 1 << 24;

pub(super) const RERANK_ABOUT: &str =
    "Rank the lines of a file or a pipe by a query, without a server";

pub(super) const RERANK_EXAMPLES: &str = "\
Examples:
  grep -ri energy notes/ | crossgate rerank -q 'how do plants make energy' -n 5
  crossgate rerank -q 'how do plants make energy' passages.txt
  crossgate rerank -q energy documents.jsonl --fields title,body --json | jq .document.id
  crossgate rerank -q energy passages.txt --model BAAI/bge-reranker-base --max-tokens-per-doc 256

A document a line: text, or JSON objects where the first line begins with a brace. Of an object the field `text`
is scored, or those that --fields names, as lines of `name: value`. Empty lines are passed over. What comes out is
`score<TAB>line`, the best first and equal ones in their order; with --json an object a line with `index` (of the
document, from 0), `score` and `document` as it was written. There may be more documents than a request to a server
may have. They are kept in memory until all are ranked, at most 1 GiB of them; with --top-n only so many.

Every setting of `serve` that is about models holds, in the file and the environment as well. Only warnings are
logged, to standard error, unless --log-level says otherwise.

Exit codes: 0 ranked; 1 something failed; 2 a flag, a setting or a line of the input is wrong.";

pub(super) fn rerank_args() -> Vec<Arg> {
    let formats = [
        PossibleValue::new("auto").help("objects if the first line begins with a brace"),
        PossibleValue::new("text").help("a line is a document"),
        PossibleValue::new("jsonl").help("a line is an object"),
    ];
    let args = [
        Arg::new("query")
            .long("query")
            .short('q')
            .value_name("TEXT")
            .required(true)
            .help("What the documents are compared with"),
        Arg::new("input")
            .value_name("FILE")
            .default_value("-")
            .value_parser(value_parser!(PathBuf))
            .help("Documents, one a line; - for standard input"),
        Arg::new("top-n")
            .long("top-n")
            .short('n')
            .value_name("N")
            .value_parser(value_parser!(u32).range(1..=TOP_N_MAX))
            .help("Print the best N documents, instead of all"),
        Arg::new("json")
            .long("json")
            .action(ArgAction::SetTrue)
            .help("Print an object a line: index, score, document"),
        Arg::new("format")
            .long("format")
            .value_name("FORMAT")
            .default_value("auto")
            .value_parser(formats)
            .help("What a line is"),
    ];
    headed(args.into_iter().chain(scoring_args()))
}

pub(super) const SCORE_ABOUT: &str =
    "Score the pairs of a file, however long, without a server; goes on where it was ended";

pub(super) const SCORE_EXAMPLES: &str = r#"Examples:
  crossgate score --input pairs.jsonl --output scores.jsonl
  crossgate score -i pairs.jsonl -o scores.jsonl                 the same again goes on where it was ended
  zcat pairs.jsonl.gz | crossgate score | gzip > scores.jsonl.gz
  crossgate score -i texts.jsonl -o labels.jsonl --model ./my-classifier --on-error skip

A line is one of
  {"query": "…", "document": "…"}             answered by  {"line": 1, "score": 0.93}
  {"text_1": "…", "text_2": "…"}                           the same
  {"query": "…", "documents": ["…", …]}                    {"line": 2, "scores": [0.93, …]}
  {"text": "…"}                                            {"line": 3, "score": …}, for models that take one text
with an "id" of any kind, which the answer repeats; other fields are passed over, and empty lines. A model with
several labels answers "labels": [{"label": "…", "score": …}, …] by falling score in place of the score. A document
may be an object: see --fields. Lines of one query next to each other are read once, so sort by it. Equal pairs are
computed once as long as the cache remembers them (--cache=false: never).

A line of the output is a line of the input, in its order. Memory is bounded however long the file is. Beside the
output stands OUTPUT.progress until all is done: the input's size and beginning, the model and the flags that scores
depend on. Ended at any moment, by Ctrl-C or by kill -9, the same command goes on behind the last whole line, if all of
them are the same; --restart begins anew. What comes in by a pipe cannot be gone on with.

Every setting of `serve` that is about models holds, in the file and the environment as well.

Exit codes: 0 all lines are done; 1 something failed; 2 a flag, a setting or a line of the input is wrong; 130 stopped
by Ctrl-C or SIGTERM."#;

pub(super) fn score_args() -> Vec<Arg> {
    let path = |name: &'static str, letter: char, help: &'static str| {
        Arg::new(name)
            .long(name)
            .short(letter)
            .value_name("FILE")
            .default_value("-")
            .value_parser(value_parser!(PathBuf))
            .help(help)
    };
    let on_error = [
        PossibleValue::new("stop").help("the run ends with a message; what is done is kept"),
        PossibleValue::new("skip").help("its answer is {\"line\": …, \"error\": \"…\"}"),
    ];
    let args = [
        path("input", 'i', "Pairs, one a line; - for standard input"),
        path("output", 'o', "Where the scores go; - for standard output"),
        Arg::new("restart")
            .long("restart")
            .action(ArgAction::SetTrue)
            .help("Write over what is there, instead of going on behind it"),
        Arg::new("on-error")
            .long("on-error")
            .value_name("WHAT")
            .default_value("stop")
            .value_parser(on_error)
            .help("What becomes of a line that cannot be scored"),
    ];
    headed(args.into_iter().chain(scoring_args()))
}

/// What was said; `None` never happens to arguments that clap has checked.
pub(super) fn score_options(matches: &ArgMatches) -> Option<score::Options> {
    let path = |name: &str| matches.get_one::<PathBuf>(name).cloned();
    Some(score::Options {
        input: Input::new(path("input")?),
        output: path("output")?,
        is_restart: matches.get_flag("restart"),
        skips_errors: matches.get_one::<String>("on-error")? == "skip",
        scoring: scoring(matches)?,
    })
}

/// What both commands know.
fn scoring_args() -> [Arg; 6] {
    let tokens = |name: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("TOKENS")
            .value_parser(value_parser!(u32).range(1..=TOKENS_MAX))
            .help(help)
    };
    let overflow = [
        PossibleValue::new("truncate").help("it is cut"),
        PossibleValue::new("error").help("it is a fault"),
        PossibleValue::new("chunk_max").help("it is read in windows, and the best one counts"),
    ];
    [
        Arg::new("fields")
            .long("fields")
            .value_name("NAME,...")
            .action(ArgAction::Append)
            .value_delimiter(',')
            .help("Of a document that is an object, the fields that are its text [default: text]"),
        Arg::new("raw-scores")
            .long("raw-scores")
            .action(ArgAction::SetTrue)
            .help("Give logits, whatever the model makes of them"),
        Arg::new("overflow")
            .long("overflow")
            .value_name("WHAT")
            .default_value("truncate")
            .value_parser(overflow)
            .help("What becomes of a document that is too long for the model"),
        tokens("max-tokens-per-doc", "Of a document no more tokens count"),
        tokens("max-tokens-per-query", "Of a query no more tokens count"),
        Arg::new("instruction")
            .long("instruction")
            .value_name("TEXT")
            .help("What the model is told to look for, if its prompt has a place for it"),
    ]
}

fn headed(args: impl Iterator<Item = Arg>) -> Vec<Arg> {
    args.map(|arg| arg.help_heading(HEADING)).collect()
}

/// What was said; `None` never happens to arguments that clap has checked.
pub(super) fn rerank_options(matches: &ArgMatches) -> Option<rerank::Options> {
    let format = match matches.get_one::<String>("format")?.as_str() {
        "text" => Format::Text,
        "jsonl" => Format::Json,
        _ => Format::Auto,
    };
    Some(rerank::Options {
        query: matches.get_one::<String>("query")?.clone(),
        input: Input::new(matches.get_one::<PathBuf>("input")?.clone()),
        top_n: matches.get_one::<u32>("top-n").map(|n| *n as usize),
        is_json: matches.get_flag("json"),
        format,
        scoring: scoring(matches)?,
    })
}

fn scoring(matches: &ArgMatches) -> Option<Scoring> {
    let tokens = |name: &str| matches.get_one::<u32>(name).copied();
    let overflow = matches.get_one::<String>("overflow")?;
    let instruction = matches.get_one::<String>("instruction");
    let fields = matches.get_many::<String>("fields").into_iter().flatten();
    Some(Scoring {
        form: Form {
            instruction: instruction.map(|text| text.as_str().into()),
            query_tokens_max: tokens("max-tokens-per-query"),
            document_tokens_max: tokens("max-tokens-per-doc"),
            windows: overflow == "chunk_max",
            ..Form::default()
        },
        is_strict: overflow == "error",
        is_raw: matches.get_flag("raw-scores"),
        fields: fields.cloned().collect(),
    })
}

/// What a pipe's other end reads stands alone: unless somebody wants a log, it has warnings only.
pub(super) fn hush(raw: &mut Raw) {
    const LEVEL: &str = "log.level";
    if raw
        .get(LEVEL)
        .is_some_and(|said| said.origin == Origin::Default)
    {
        raw.say(LEVEL, "warn", Origin::Default);
    }
}
