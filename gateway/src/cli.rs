//! The command line: which command, with which configuration.
//!
//! Flags are made from the table of settings, so a new setting needs nothing here. A new command is
//! a line in [`program`], an arm in [`parse`] and a variant of [`Command`].

mod admin;
mod bench;
mod offline;
mod swap;

use swap::Deed;
pub use swap::Order;

use crate::bench::Options;
use crate::config::raw::Raw;
use crate::config::setting::{Kind, Setting};
use crate::config::table::{GROUPS, SETTINGS};
use crate::config::{Config, ConfigError, older, show, value};
use crate::offline::{rerank, score};
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches};
use std::ffi::OsString;
use std::io::Write;

/// Usage and configuration are wrong in the same way: the user can mend both.
const EXIT_USAGE: u8 = 2;
/// A file of settings is a page or two; more is the wrong file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What to do.
#[derive(Clone, Debug)]
pub enum Command {
    /// Serve until told to stop.
    Serve(Box<Config>),
    /// List the plugins that are found, with what each can do.
    Plugins(Box<Config>),
    /// Measure a stage and print what came of it.
    Bench(Box<Config>, Box<Options>),
    /// Rank documents by a query and print them.
    Rerank(Box<Config>, Box<rerank::Options>),
    /// Score a file's pairs and write them.
    Score(Box<Config>, Box<score::Options>),
    /// Have a running server replace a model's backend.
    Swap(Box<Order>),
    /// Try a plugin out, for a server that asks for it.
    Probe,
    /// Write this to standard output; nothing else.
    Print(String),
}

/// Why nothing is done. `--help` is one of them, with exit code 0.
#[derive(Debug)]
pub enum CliError {
    Usage(clap::Error),
    Config(ConfigError),
}

/// Reads arguments, the program's name first. `env` stands for the environment; [`env`] is the
/// real one. Of the file system only the file of settings is read, and for `swap` that of the key.
pub fn parse<I, A>(args: I, env: impl Fn(&str) -> Option<String>) -> Result<Command, CliError>
where
    I: IntoIterator<Item = A>,
    A: Into<OsString> + Clone,
{
    let matches = program().try_get_matches_from(args)?;
    let (command, of_command) = matches.subcommand().unwrap_or(("serve", &matches));
    if command == "version" {
        return Ok(Command::Print(format!("crossgate {VERSION}\n")));
    }
    if command == "probe" {
        return Ok(Command::Probe);
    }
    if let Some(deed) = Deed::ALL.into_iter().find(|deed| deed.name() == command) {
        // A server's settings are not its operators'.
        let order = swap::order(deed, of_command, env);
        let wrong = |why| program().error(ErrorKind::InvalidValue, why);
        return Ok(Command::Swap(Box::new(order.map_err(wrong)?)));
    }
    if command == "config" && of_command.get_flag("reference") {
        return Ok(Command::Print(show::reference()));
    }

    // `crossgate --port 1 serve --port 2` says both; what stands last counts.
    let mut flags = given(&matches);
    if matches.subcommand().is_some() {
        flags.extend(given(of_command));
    }
    let mut raw = Raw::collect(&flags, env, read_file).map_err(ConfigError::new)?;
    if ["rerank", "score"].contains(&command) {
        offline::hush(&mut raw);
    }
    for (flag, why) in older::FLAGS {
        if matches.get_flag(flag) || of_command.get_flag(flag) {
            raw.note(older::passed_over(flag, why));
        }
    }
    let config = Box::new(Config::check(&raw)?);
    Ok(match command {
        "config" if of_command.get_flag("json") => Command::Print(show::json(&raw)),
        "config" => Command::Print(show::text(&raw)),
        "plugins" => Command::Plugins(config),
        "bench" => {
            let options = bench::options(of_command).ok_or_else(missing)?;
            Command::Bench(config, Box::new(options))
        }
        "rerank" => {
            let options = offline::rerank_options(of_command).ok_or_else(missing)?;
            Command::Rerank(config, Box::new(options))
        }
        "score" => {
            let options = offline::score_options(of_command).ok_or_else(missing)?;
            Command::Score(config, Box::new(options))
        }
        _ => match bench::older_options(of_command).or_else(|| bench::older_options(&matches)) {
            Some(options) => Command::Bench(config, Box::new(options)),
            None => Command::Serve(config),
        },
    })
}

fn missing() -> CliError {
    let error = program().error(ErrorKind::MissingRequiredArgument, "");
    error.into()
}

/// The environment. What is not Unicode comes out with replacement characters, so that an error can
/// show it.
#[must_use]
pub fn env(name: &str) -> Option<String> {
    std::env::var_os(name).map(|text| text.to_string_lossy().into_owned())
}

/// A variable as [`env`] would give it.
#[must_use]
pub fn lossy((name, text): (OsString, OsString)) -> (String, String) {
    let [name, text] = [name, text].map(|part| part.to_string_lossy().into_owned());
    (name, text)
}

// === impl CliError ===

impl CliError {
    /// 0 for `--help` and `--version`, else 2.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(error) if !error.use_stderr() => 0,
            _ => EXIT_USAGE,
        }
    }

    /// Writes help to standard output, and anything else to standard error.
    pub fn print(&self) {
        // Nobody is left to be told when standard error is closed.
        match self {
            Self::Usage(error) => _ = error.print(),
            Self::Config(_) => _ = write!(std::io::stderr(), "{self}"),
        }
    }
}

impl std::fmt::Display for CliError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Usage(error) => error.fmt(f),
            Self::Config(error) => {
                for sentence in error.sentences() {
                    writeln!(f, "error: {sentence}")?;
                }
                writeln!(
                    f,
                    "\nNothing was started. `crossgate config --reference` explains every setting."
                )
            }
        }
    }
}

impl std::error::Error for CliError {}

impl From<clap::Error> for CliError {
    fn from(error: clap::Error) -> Self {
        Self::Usage(error)
    }
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

// === clap ===

const VERSION: &str = env!("CARGO_PKG_VERSION");

const ABOUT: &str = "Serves cross-encoders: rerankers and sequence classifiers, by HTTP and gRPC.";

const EXAMPLES: &str = "\
Examples:
  crossgate                                     the small model that is built in, on port 8000
  crossgate --models ./my-model --port 8080     a model in a folder
  crossgate -m small=cross-encoder/ms-marco-MiniLM-L6-v2 -m large=BAAI/bge-reranker-v2-m3
                                                two models of the hub, by names of your choice
  crossgate --config crossgate.yaml --threads 4
  crossgate rerank --query energy notes.txt     lines by relevance, without a server; also `crossgate score`
  crossgate config --port 8080                  what would hold, and where it comes from

Each setting is a flag, a variable of the environment, or a key of the file, in this order:
`crossgate config --reference` lists all names.

Exit codes: 0 stopped when told to; 1 something failed, or asked twice to stop; 2 a flag or a setting is
wrong; 3 the drain timeout passed before every request was answered.";

/// Every command and flag, for parsing and for documentation.
#[must_use]
pub fn program() -> clap::Command {
    let command = |name: &'static str, about: &'static str| {
        clap::Command::new(name)
            .about(about)
            .args_override_self(true)
    };
    let json = Arg::new("json").long("json").action(ArgAction::SetTrue);
    let reference = Arg::new("reference")
        .long("reference")
        .action(ArgAction::SetTrue);
    command("crossgate", ABOUT)
        .version(VERSION)
        .after_help(EXAMPLES)
        .args(flags())
        .args(bench::older_args())
        .subcommand(
            command(
                "serve",
                "Serve until told to stop; what happens without a command",
            )
            .args(flags())
            .args(bench::older_args()),
        )
        .subcommand(
            command(
                "config",
                "Print every setting, its value and where it comes from",
            )
            .arg(json.help("As a JSON object by key"))
            .arg(reference.help("Print what can be set instead, in Markdown"))
            .args(flags()),
        )
        .subcommand(
            command("bench", bench::ABOUT)
                .after_help(bench::EXAMPLES)
                .args(bench::args())
                .args(flags()),
        )
        .subcommand(
            command("rerank", offline::RERANK_ABOUT)
                .after_help(offline::RERANK_EXAMPLES)
                .args(offline::rerank_args())
                .args(flags()),
        )
        .subcommand(
            command("score", offline::SCORE_ABOUT)
                .after_help(offline::SCORE_EXAMPLES)
                .args(offline::score_args())
                .args(flags()),
        )
        .subcommands(Deed::ALL.map(|deed| {
            command(deed.name(), deed.about())
                .after_help(deed.examples())
                .args(deed.args())
        }))
        .subcommand(
            command(
                "probe",
                "Try a plugin out, as a server's standard input says",
            )
            .hide(true),
        )
        .subcommand(command("plugins", "List the plugins that are found").args(flags()))
        .subcommand(command("version", "Print the version"))
}

fn flags() -> impl Iterator<Item = Arg> {
    let settings = SETTINGS.iter().flat_map(|setting| {
        let off = setting.off.iter().map(|name| off_flag(setting, name));
        [flag(setting)].into_iter().chain(off)
    });
    let older = older::FLAGS.map(|(name, _)| {
        let arg = Arg::new(name).long(name).action(ArgAction::SetTrue);
        arg.hide(true)
    });
    settings.chain(older)
}

/// A flag that needs no value: its name says no.
fn off_flag(setting: &'static Setting, name: &'static str) -> Arg {
    let title = GROUPS.iter().find(|(group, _)| *group == setting.group());
    Arg::new(name)
        .long(name)
        .action(ArgAction::SetTrue)
        .help(format!("The same as --{} false", setting.flag))
        .help_heading(title.map(|(_, title)| *title))
}

fn flag(setting: &'static Setting) -> Arg {
    let title = GROUPS.iter().find(|(group, _)| *group == setting.group());
    let action = if setting.is_list() {
        ArgAction::Append
    } else {
        ArgAction::Set
    };
    let arg = Arg::new(setting.key)
        .long(setting.flag)
        .visible_aliases(setting.also.iter().copied())
        .value_name(setting.value_name)
        .action(action)
        .help(show::help(setting))
        // A wrong value may begin with a dash: `--port -1` is a wrong port, not a flag.
        .allow_negative_numbers(true)
        .help_heading(title.map(|(_, title)| *title));
    let arg = match setting.kind {
        // Its value stands behind `=`: `--distributed serve` is a flag and a command.
        Kind::Switch => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
        _ => arg,
    };
    match setting.short {
        Some(letter) => arg.short(letter),
        None => arg,
    }
}

/// Settings that flags named, in the order in which they stand.
fn given(matches: &ArgMatches) -> Vec<(&'static str, String)> {
    let of_setting = |setting: &'static Setting| {
        let values = matches.try_get_many::<String>(setting.key).ok().flatten();
        let is_off = setting.off.iter().any(|name| matches.get_flag(name));
        let said = values.into_iter().flatten().cloned();
        said.chain(is_off.then(|| "false".to_owned()))
            .map(|text| (setting.key, text))
    };
    SETTINGS.iter().flat_map(of_setting).collect()
}

/// The file of settings, refused when it is too large to be one.
fn read_file(name: &str) -> Result<String, String> {
    let is_wrong = |error: std::io::Error| format!("{name} cannot be read: {error}");
    let path = value::expand_home(name);
    let n_bytes = std::fs::metadata(&path).map_err(is_wrong)?.len();
    if FILE_BYTES_MAX < n_bytes {
        return Err(format!(
            "{name} has {n_bytes} bytes; expected at most {FILE_BYTES_MAX}"
        ));
    }
    std::fs::read_to_string(path).map_err(is_wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str, port: Option<&str>) -> Result<Command, CliError> {
        let env = |name: &str| port.filter(|_| name == "PORT").map(str::to_owned);
        parse(line.split_whitespace(), env)
    }

    #[track_caller]
    fn serve(line: &str) -> Config {
        match run(line, None) {
            Ok(Command::Serve(config)) => *config,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn flags_stand_before_and_after_the_command() {
        for line in [
            "crossgate --port 1",
            "crossgate serve --port 1",
            "crossgate --port 1 serve",
            "crossgate --port 2 serve --port 1",
            "crossgate --port 2 --port 1",
            "crossgate -p 1",
            "crossgate serve --port=1",
        ] {
            assert_eq!(serve(line).server().port, 1, "{line}");
        }
        let config = serve("crossgate -m a=./x --models b=./y,c=./z serve --model d=./w");
        let names: Vec<_> = config
            .models()
            .sources
            .iter()
            .map(|m| m.name.as_str())
            .collect();
        assert_eq!(names, ["a", "b", "c", "d"]);
        assert!(matches!(
            run("crossgate plugins --plugin-dir /p", None),
            Ok(Command::Plugins(_))
        ));
    }

    #[test]
    fn usage() {
        let cases = [
            ("crossgate --prot 1", 2, "'--port'"),
            ("crossgate serv", 2, "'serve'"),
            ("crossgate --port", 2, "--port <PORT>"),
            ("crossgate --port x", 2, "Nothing was started"),
            ("crossgate config --json --port x", 2, "from 0 to 65535"),
            (
                "crossgate --config /nowhere.yaml",
                2,
                "/nowhere.yaml cannot be read",
            ),
            ("crossgate --help", 0, "Examples:"),
            (
                "crossgate serve --help",
                0,
                "[default: 8000] [env: CROSSGATE_PORT, PORT]",
            ),
            ("crossgate --version", 0, "crossgate "),
        ];
        for (line, code, word) in cases {
            let error = run(line, None).unwrap_err();
            assert_eq!(error.exit_code(), code, "{line}");
            assert!(
                error.to_string().contains(word),
                "{line}: {error} does not say {word:?}"
            );
        }
        // What cannot depend on the configuration does not fail because of it.
        for line in ["crossgate version", "crossgate config --reference"] {
            assert!(
                matches!(run(line, Some("x")), Ok(Command::Print(_))),
                "{line}"
            );
        }
    }
}
