//! What one setting is: its names, its form and bounds, its default, and one sentence about it.

use super::{secret, value};
use std::borrow::Cow;
use std::time::Duration;

/// One row of the table that flags, environment, file, defaults and reference are made from.
#[derive(Debug)]
pub struct Setting {
    /// `group.name`, as in the file.
    pub key: &'static str,
    /// The long flag, without its dashes.
    pub flag: &'static str,
    /// Other spellings of the flag.
    pub also: &'static [&'static str],
    /// Flags without a value that say false.
    pub off: &'static [&'static str],
    /// A one-letter flag.
    pub short: Option<char>,
    /// Variables of the environment; the first that is set counts.
    pub env: &'static [&'static str],
    /// What stands for the value in `--help`.
    pub value_name: &'static str,
    /// Its form and bounds.
    pub kind: Kind,
    /// As a user would write it; empty for none.
    pub default: &'static str,
    /// One sentence.
    pub help: &'static str,
}

/// Forms of a value, with their bounds: both ends are allowed.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A file or a folder; `~/` stands for the home folder.
    Path,
    /// Letters, digits, `-`, `_`, `.`: the name of a plugin or a data type.
    Word,
    /// Any text in one line, spaces at its ends included.
    Text { bytes_max: usize },
    /// Yes or no; a flag alone says yes.
    Switch,
    /// Where a Redis or Valkey is. May hold a password: it is never shown as it was written.
    RedisUrl,
    /// What callers must show; never shown.
    Secret,
    /// What clients must show, separated by commas; in the file also a list; never shown.
    Keys,
    /// One of these.
    Choice(&'static [&'static str]),
    /// `auto`, `cpu`, `cuda`, `cuda:1`, `cuda:0,1`, `cuda:all`, `metal`.
    Device,
    /// An IP address or a host name.
    Host,
    /// A TCP port; 0 for any free one.
    Port,
    /// A whole number of `unit`.
    Count {
        unit: &'static str,
        min: u64,
        max: u64,
    },
    /// Bytes: `64KiB`, `2MB`, or bare.
    Bytes { min: u64, max: u64 },
    /// A time: `250ms`, `10s`, or bare in `unit`.
    Time {
        unit: Unit,
        min: Duration,
        max: Duration,
    },
    /// A JSON object.
    Json,
    /// Texts separated by commas; in the file also a list.
    List { unit: &'static str },
    /// A level, or directives by target.
    LogFilter,
}

/// What a bare number means where a time is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Seconds,
    Milliseconds,
    Microseconds,
}

/// Starts a row; what it has beyond these is added by the methods below.
pub(super) const fn setting(
    key: &'static str,
    flag: &'static str,
    env: &'static [&'static str],
    kind: Kind,
    default: &'static str,
    help: &'static str,
) -> Setting {
    let value_name = kind.value_name();
    Setting {
        key,
        flag,
        also: &[],
        off: &[],
        short: None,
        env,
        value_name,
        kind,
        default,
        help,
    }
}

// === impl Setting ===

impl Setting {
    pub(super) const fn also(mut self, flags: &'static [&'static str]) -> Self {
        self.also = flags;
        self
    }

    pub(super) const fn off(mut self, flags: &'static [&'static str]) -> Self {
        self.off = flags;
        self
    }

    pub(super) const fn short(mut self, letter: char) -> Self {
        self.short = Some(letter);
        self
    }

    pub(super) const fn value_name(mut self, name: &'static str) -> Self {
        self.value_name = name;
        self
    }

    /// The part of the key before the dot.
    #[must_use]
    pub fn group(&self) -> &'static str {
        self.key
            .split_once('.')
            .map_or(self.key, |(group, _)| group)
    }

    /// Every way to set it, for an error: `--port, CROSSGATE_PORT or PORT`.
    #[must_use]
    pub fn ways(&self) -> String {
        match self.env.split_last() {
            None => format!("--{}", self.flag),
            Some((last, [])) => format!("--{} or {last}", self.flag),
            Some((last, others)) => format!("--{}, {} or {last}", self.flag, others.join(", ")),
        }
    }

    /// `text` as it may be shown: without a password, and no secret at all.
    #[must_use]
    pub fn shown<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.kind {
            Kind::RedisUrl => value::hide_password(text).into(),
            Kind::Secret | Kind::Keys if !text.trim().is_empty() => secret::SHOWN.into(),
            _ => text.into(),
        }
    }

    /// Whether a flag may be given several times, each adding to the others.
    #[must_use]
    pub fn is_list(&self) -> bool {
        matches!(self.kind, Kind::List { .. } | Kind::Keys)
    }
}

// === impl Kind ===

impl Kind {
    const fn value_name(&self) -> &'static str {
        match self {
            Self::Path => "PATH",
            Self::Word => "NAME",
            Self::Text { .. } => "TEXT",
            Self::Switch => "BOOL",
            Self::RedisUrl => "URL",
            Self::Secret => "SECRET",
            Self::Keys => "NAME=KEY,...",
            Self::Choice(_) => "CHOICE",
            Self::Device => "DEVICE",
            Self::Host => "HOST",
            Self::Port => "PORT",
            Self::Count { .. } => "N",
            Self::Bytes { .. } => "SIZE",
            Self::Time { .. } => "TIME",
            Self::Json => "JSON",
            Self::List { .. } => "LIST",
            Self::LogFilter => "LEVEL",
        }
    }

    /// What a bare value counts, or the words to choose from.
    #[must_use]
    pub fn unit(&self) -> String {
        match self {
            Self::Path => "path".into(),
            Self::Word => "name".into(),
            Self::Text { bytes_max } => format!("text, at most {bytes_max} bytes"),
            Self::Switch => "true or false".into(),
            Self::RedisUrl => "URL".into(),
            Self::Secret => "characters".into(),
            Self::Keys => "NAME=KEY or KEY, comma separated".into(),
            Self::Choice(words) => words.join(", "),
            Self::Device => "auto, cpu, cuda, cuda:N, cuda:N,M, cuda:all, metal (or mps)".into(),
            Self::Host => "host".into(),
            Self::Port => "port".into(),
            Self::Count { unit, .. } => (*unit).into(),
            Self::Bytes { .. } => "bytes".into(),
            Self::Time {
                unit: Unit::Seconds,
                ..
            } => "seconds".into(),
            Self::Time {
                unit: Unit::Milliseconds,
                ..
            } => "milliseconds".into(),
            Self::Time {
                unit: Unit::Microseconds,
                ..
            } => "microseconds".into(),
            Self::Json => "JSON object".into(),
            Self::List { unit } => format!("{unit}, comma separated"),
            Self::LogFilter => "level or directives".into(),
        }
    }
}
