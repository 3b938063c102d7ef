//! `crossgate swap`, `load` and `unload`: an order to a server that runs, and what becomes of it.

use super::admin::{self, Admin};
use clap::{Arg, ArgAction, ArgMatches};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};
use std::io::{BufReader, Write as _};
use std::time::Duration;

/// What an order is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    Swap,
    Load,
    Unload,
}

const SWAP_EXAMPLES: &str = "\
Examples:
  crossgate swap reranker                            the plugin's file as it is now: a new build
  crossgate swap reranker candle-cpu                 another plugin
  crossgate swap reranker --dtype f32 --probation 600
  crossgate swap reranker --source org/name@v2 --expect-change
  crossgate swap reranker --shadow 0.1               tried out on a tenth of the requests first
  crossgate swap reranker --rollback                 what served before the last swap
  crossgate swap reranker --admin unix:/run/crossgate/admin.sock

The server proves the new backend before it answers a single request: its scores of 64 golden rows must be
those of what serves now. Through the probation what served before is kept, and comes back by itself if the new
one fails, hangs, is slow or drifts. No request is lost either way.

Exit codes: 0 it serves, and has passed its probation (with --no-wait: it serves); 1 refused or rolled back,
the reason is printed; 2 a flag is wrong.";

const LOAD_EXAMPLES: &str = "\
Examples:
  crossgate load reranker cross-encoder/ms-marco-MiniLM-L6-v2
  crossgate load BAAI/bge-reranker-base              the name is the source
  crossgate load reranker ./folder --plugin cpu-int8 --dtype bf16

The model is tried out in a process of its own, opened beside those that serve, and compared with the f32 path of
its plugin.

Exit codes: 0 it serves; 1 refused, the reason is printed; 2 a flag is wrong.";

const UNLOAD_EXAMPLES: &str = "\
Exit codes: 0 it is gone, and what it had been asked is answered; 1 refused, the reason is printed; 2 a flag is wrong.";

const HEADING: &str = "Ordering";

/// What is ordered, and of whom.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    admin: Admin,
    model: String,
    body: Value,
    path: &'static str,
    // The last state that is waited for.
    until: &'static str,
}

// === impl Deed ===

impl Deed {
    /// The commands, one for each.
    pub(super) const ALL: [Self; 3] = [Self::Swap, Self::Load, Self::Unload];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Swap => "swap",
            Self::Load => "load",
            Self::Unload => "unload",
        }
    }

    pub(super) fn about(self) -> &'static str {
        match self {
            Self::Swap => {
                "Have a running server serve a model by another plugin, data type, device or source"
            }
            Self::Load => "Have a running server serve one more model",
            Self::Unload => "Take a model away from a running server",
        }
    }

    pub(super) fn examples(self) -> &'static str {
        match self {
            Self::Swap => SWAP_EXAMPLES,
            Self::Load => LOAD_EXAMPLES,
            Self::Unload => UNLOAD_EXAMPLES,
        }
    }

    pub(super) fn args(self) -> impl Iterator<Item = Arg> {
        let its: &[&str] = match self {
            Self::Swap => &[
                "model",
                "plugin",
                "sha256",
                "dtype",
                "device",
                "options",
                "from",
                "expect-change",
                "shadow",
                "shadow-time",
                "probation",
                "no-wait",
                "rollback",
            ],
            Self::Load => &[
                "model", "source", "by", "sha256", "dtype", "device", "options",
            ],
            Self::Unload => &["model"],
        };
        let all = order_args();
        let is_its = |arg: &Arg| its.iter().any(|name| arg.get_id() == *name);
        all.into_iter()
            .filter(move |arg| is_its(arg))
            .chain(admin::args())
            .map(|arg| arg.help_heading(HEADING))
    }
}

/// Whatever an order can say; `from` and `by` are `source` and `plugin` as flags.
fn order_args() -> [Arg; 15] {
    let text = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    let yes = |name: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .action(ArgAction::SetTrue)
            .help(help)
    };
    [
        Arg::new("model")
            .value_name("MODEL")
            .required(true)
            .help("The model's name, as requests say it"),
        Arg::new("plugin")
            .value_name("PLUGIN")
            .help("A plugin's name, or a file in the server's folder of plugins; without it, the file of the plugin that serves"),
        text("sha256", "HASH", "The SHA-256 that the plugin's file must have"),
        text("dtype", "DTYPE", "The data type of its arithmetic"),
        text("device", "DEVICE", "The device that it runs on"),
        text("options", "JSON", "The plugin's own options, an object"),
        Arg::new("source")
            .value_name("SOURCE")
            .help("Where it comes from: a folder, or a hub's name with @REVISION; without it, the name"),
        text("from", "SOURCE", "Where the model comes from: a folder, or a hub's name with @REVISION").long("source"),
        text("by", "PLUGIN", "A plugin's name, or a file in the server's folder of plugins").long("plugin"),
        text("shadow", "SHARE", "The share of the requests on which it is tried out before it goes live, 0 to 1"),
        text("shadow-time", "SECONDS", "How long it is tried out").requires("shadow"),
        yes("expect-change", "Other weights may give other scores"),
        text("probation", "SECONDS", "How long it is watched, and what served before is kept")
            .default_value("60"),
        yes("no-wait", "End when it serves; the server watches its probation all the same"),
        yes("rollback", "Have what served before the last swap serve again")
            .conflicts_with_all(["plugin", "sha256", "dtype", "device", "options", "from", "expect-change", "shadow"]),
    ]
}

/// What was said; `env` stands for the environment.
///
/// # Errors
/// What is wrong with it.
pub(super) fn order(
    deed: Deed,
    matches: &ArgMatches,
    env: impl Fn(&str) -> Option<String>,
) -> Result<Order, String> {
    let text = |name: &str| {
        let said = matches.try_get_one::<String>(name).ok().flatten();
        said.cloned()
    };
    let is = |name: &str| matches.try_get_one::<bool>(name).ok().flatten() == Some(&true);
    let mut body = Map::new();
    for (name, flag) in [
        ("plugin", "plugin"),
        ("plugin", "by"),
        ("sha256", "sha256"),
        ("dtype", "dtype"),
        ("device", "device"),
        ("source", "source"),
        ("source", "from"),
    ] {
        if let Some(said) = text(flag) {
            body.insert(name.to_owned(), said.into());
        }
    }
    if let Some(options) = text("options") {
        let options: Value = serde_json::from_str(&options)
            .map_err(|error| format!("--options {options}: no JSON: {error}"))?;
        body.insert("options".to_owned(), options);
    }
    if is("expect-change") {
        body.insert("expect_change".to_owned(), true.into());
    }
    for (name, flag, example) in [
        ("probation_s", "probation", "seconds, as in 60"),
        ("shadow_s", "shadow-time", "seconds, as in 10"),
        ("shadow_fraction", "shadow", "a share, as in 0.1"),
    ] {
        if let Some(said) = text(flag) {
            // JSON has no other numbers.
            let number: Option<f64> = said.parse().ok().filter(|number: &f64| number.is_finite());
            let number = number.ok_or_else(|| format!("--{flag} {said}: expected {example}"))?;
            body.insert(name.to_owned(), json!(number));
        }
    }
    let (path, until) = match deed {
        Deed::Swap if is("rollback") => ("rollback", "rolled_back"),
        Deed::Swap if is("no-wait") => ("swap", "live"),
        Deed::Swap => ("swap", "confirmed"),
        Deed::Load => ("load", "confirmed"),
        Deed::Unload => ("unload", "unloaded"),
    };
    Ok(Order {
        admin: admin::admin(matches, env)?,
        model: text("model").unwrap_or_default(),
        body: body.into(),
        path,
        until,
    })
}

/// A name as a part of a URL; it may be a path.
fn in_url(name: &str) -> String {
    let escape = |byte: u8| match byte {
        b'/' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    name.bytes().map(escape).collect()
}

// === impl Order ===

impl Order {
    /// Gives the order and shows what becomes of it on standard error.
    ///
    /// # Errors
    /// Why the model is served as before, or the server could not be asked.
    pub fn run(&self) -> Result<(), String> {
        let path = format!("/models/{}/{}", in_url(&self.model), self.path);
        let mut response = self.admin.post(&path, &self.body)?;
        self.follow(BufReader::new(response.body_mut().as_reader()))
    }

    fn follow(&self, stream: impl std::io::BufRead) -> Result<(), String> {
        let bar = ProgressBar::new_spinner().with_message(format!("{} {}", self.path, self.model));
        bar.set_style(ProgressStyle::default_spinner());
        bar.enable_steady_tick(Duration::from_millis(120));
        for line in stream.lines() {
            let line = line.map_err(|error| format!("the server went away: {error}"))?;
            let Some(data) = line.strip_prefix("data: ") else {
                continue;
            };
            let step: Value = serde_json::from_str(data).map_err(|error| {
                format!("the server says what this program does not understand ({error}): {data}")
            })?;
            let word = |name: &str| step[name].as_str().unwrap_or_default().to_owned();
            let (state, detail) = (word("state"), word("detail"));
            match state.as_str() {
                "refused" => return Err(format!("refused: {detail}")),
                "rolled_back" if self.until != "rolled_back" => {
                    return Err(format!("rolled back: {detail}"));
                }
                _ => bar.suspend(|| self.show(&state, &detail)),
            }
            if state == self.until {
                bar.finish_and_clear();
                return Ok(());
            }
            if state == "live" {
                let seconds = &self.body["probation_s"];
                bar.set_message(format!("in its probation of {seconds} s"));
            }
        }
        Err("the server ended before the swap did: see its log".to_owned())
    }

    fn show(&self, state: &str, detail: &str) {
        // Nobody is left to be told when standard error is closed.
        let _ = writeln!(std::io::stderr(), "{}: {state:<9} {detail}", self.model);
    }
}
