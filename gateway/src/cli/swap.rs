//! `crossgate swap`: an order to a server that runs, and what becomes of it.

use super::admin::{self, Admin};
use clap::{Arg, ArgAction, ArgMatches};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};
use std::io::{BufReader, Write as _};
use std::time::Duration;

pub(super) const ABOUT: &str =
    "Have a running server serve a model by another plugin, data type, device or source";

pub(super) const EXAMPLES: &str = "\
Examples:
  crossgate swap reranker                            the plugin's file as it is now: a new build
  crossgate swap reranker candle-cpu                 another plugin
  crossgate swap reranker --dtype f32 --probation 600
  crossgate swap reranker --source org/name@v2 --expect-change
  crossgate swap reranker --rollback                 while the last swap is in its probation
  crossgate swap reranker --admin unix:/run/crossgate/admin.sock

The server proves the new backend before it answers a single request: its scores of 64 golden rows must be
those of what serves now. Through the probation what served before is kept, and comes back by itself if the new
one fails, hangs, is slow or drifts. No request is lost either way.

Exit codes: 0 it serves, and has passed its probation (with --no-wait: it serves); 1 refused or rolled back,
the reason is printed; 2 a flag is wrong.";

const HEADING: &str = "Swapping";

/// What is ordered, and of whom.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    admin: Admin,
    model: String,
    body: Value,
    waits: bool,
    is_rollback: bool,
}

pub(super) fn args() -> impl Iterator<Item = Arg> {
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
        text("source", "SOURCE", "Where the model comes from: a folder, or a hub's name with @REVISION"),
        yes("expect-change", "Other weights may give other scores"),
        text("probation", "SECONDS", "How long it is watched, and what served before is kept")
            .default_value("60"),
        yes("no-wait", "End when it serves; the server watches its probation all the same"),
        yes("rollback", "Have what served before the last swap serve again")
            .conflicts_with_all(["plugin", "sha256", "dtype", "device", "options", "source", "expect-change"]),
    ]
    .into_iter()
    .chain(admin::args())
    .map(|arg| arg.help_heading(HEADING))
}

/// What was said; `env` stands for the environment.
///
/// # Errors
/// What is wrong with it.
pub(super) fn order(
    matches: &ArgMatches,
    env: impl Fn(&str) -> Option<String>,
) -> Result<Order, String> {
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    let mut body = Map::new();
    for name in ["plugin", "sha256", "dtype", "device", "source"] {
        if let Some(said) = text(name) {
            body.insert(name.to_owned(), said.into());
        }
    }
    if let Some(options) = text("options") {
        let options: Value = serde_json::from_str(&options)
            .map_err(|error| format!("--options {options}: no JSON: {error}"))?;
        body.insert("options".to_owned(), options);
    }
    if matches.get_flag("expect-change") {
        body.insert("expect_change".to_owned(), true.into());
    }
    let probation = text("probation").unwrap_or_default();
    let seconds: f64 = probation
        .parse()
        .map_err(|_| format!("--probation {probation}: expected seconds, as in 60"))?;
    body.insert("probation_s".to_owned(), json!(seconds));
    Ok(Order {
        admin: admin::admin(matches, env)?,
        model: text("model").unwrap_or_default(),
        body: body.into(),
        waits: !matches.get_flag("no-wait"),
        is_rollback: matches.get_flag("rollback"),
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
        let deed = if self.is_rollback { "rollback" } else { "swap" };
        let path = format!("/models/{}/{deed}", in_url(&self.model));
        let mut response = self.admin.post(&path, &self.body)?;
        self.follow(BufReader::new(response.body_mut().as_reader()))
    }

    fn follow(&self, stream: impl std::io::BufRead) -> Result<(), String> {
        let bar = ProgressBar::new_spinner().with_message(format!("swapping {}", self.model));
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
                "refused" => return Err(format!("refused, nothing has changed: {detail}")),
                "rolled_back" if !self.is_rollback => return Err(format!("rolled back: {detail}")),
                _ => bar.suspend(|| self.show(&state, &detail)),
            }
            let is_live = state == "live" && !self.waits;
            if is_live || matches!(state.as_str(), "confirmed" | "rolled_back") {
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
