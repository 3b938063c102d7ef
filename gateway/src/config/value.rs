//! Texts to values. Each error says what is expected; key, text and origin are the caller's.

use super::secret::{self, Secret};
use super::setting::{Kind, Unit};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// A text that has the form and keeps the bounds of its [`Kind`].
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// An empty text where the default is empty too.
    None,
    Text(String),
    Number(u64),
    Switch(bool),
    Time(Duration),
    List(Vec<String>),
}

/// Longest host name that DNS allows.
const HOST_CHARS_MAX: usize = 253;

/// Reads `text` as `kind`. Surrounding spaces do not count.
pub fn parse(kind: &Kind, text: &str) -> Result<Value, String> {
    let (whole, text) = (text, text.trim());
    match *kind {
        Kind::Text { bytes_max } => parse_text(whole, bytes_max).map(Value::Text),
        Kind::Path if text.is_empty() => Err("expected a path".into()),
        Kind::Path => Ok(Value::Text(text.into())),
        Kind::Word => parse_word(text).map(Value::Text),
        Kind::Switch => parse_switch(text).map(Value::Switch),
        Kind::RedisUrl => parse_redis_url(text).map(Value::Text),
        Kind::Secret => Secret::parse(text).map(|secret| Value::Text(secret.reveal().into())),
        Kind::Choice(words) => parse_choice(words, text).map(Value::Text),
        Kind::Device => parse_device(text).map(Value::Text),
        Kind::Host => parse_host(text).map(Value::Text),
        Kind::Port => match text.parse::<u16>() {
            Ok(port) => Ok(Value::Number(port.into())),
            Err(_) => Err("expected a port from 0 to 65535".into()),
        },
        Kind::Count { unit, min, max } => match parse_digits(text) {
            Some(count) if (min..=max).contains(&count) => Ok(Value::Number(count)),
            _ => Err(format!(
                "expected a whole number of {unit} from {min} to {max}"
            )),
        },
        Kind::Bytes { min, max } => match parse_bytes(text) {
            Some(bytes) if (min..=max).contains(&bytes) => Ok(Value::Number(bytes)),
            _ => Err(format!(
                "expected a size from {} to {}, such as 64KiB, 2MB or 4096 (bytes)",
                show_bytes(min),
                show_bytes(max)
            )),
        },
        Kind::Time { unit, min, max } => match parse_time(text, unit) {
            Some(time) if (min..=max).contains(&time) => Ok(Value::Time(time)),
            _ => Err(expected_time(unit, min, max)),
        },
        Kind::Json => parse_json(text).map(Value::Text),
        Kind::List { .. } | Kind::Keys => parse_list(text).map(Value::List),
        Kind::LogFilter => parse_log_filter(text).map(Value::Text),
    }
}

/// The smallest and the largest value, where the form has them.
#[must_use]
pub fn bounds(kind: &Kind) -> Option<(String, String)> {
    match *kind {
        Kind::Port => Some(("0".into(), u16::MAX.to_string())),
        Kind::Secret => Some((secret::CHARS_MIN.to_string(), secret::CHARS_MAX.to_string())),
        Kind::Count { min, max, .. } => Some((min.to_string(), max.to_string())),
        Kind::Bytes { min, max } => Some((show_bytes(min), show_bytes(max))),
        Kind::Time { min, max, .. } => Some((show_time(min), show_time(max))),
        _ => None,
    }
}

/// `10s`, `250ms`, `1.5m`, `1h`, `500us`, or a bare number of `bare` units.
#[must_use]
pub fn parse_time(text: &str, bare: Unit) -> Option<Duration> {
    let (number, unit) = split_unit(text)?;
    let unit_us = match unit.as_str() {
        "" if bare == Unit::Seconds => 1e6,
        "" if bare == Unit::Milliseconds => 1e3,
        "" | "us" | "µs" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        "m" | "min" => 60e6,
        "h" => 3600e6,
        _ => return None,
    };
    // Exact to the microsecond below 285 years, more than any bound allows.
    let us = (number.parse::<f64>().ok()? * unit_us).round();
    Duration::try_from_secs_f64(us / 1e6).ok()
}

/// `1MiB` (1024²), `2MB` (1000²), `512B`, or bare bytes; whole numbers only.
#[must_use]
pub fn parse_bytes(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text)?;
    let unit_bytes: u64 = match unit.as_str() {
        "" | "b" => 1,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit_bytes)
}

/// `~/models` in the home folder, as shells do for flags but nobody does for a file; any other path
/// as it is.
#[must_use]
pub fn expand_home(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => path.into(),
    }
}

/// A URL without its user's name and password, which stand before `@` or in the query's `pass`.
#[must_use]
pub fn hide_password(url: &str) -> String {
    // At the last `@`: a password that was not escaped may hold one, and more.
    let start = url.find("://").map_or(0, |at| at + "://".len());
    let (scheme, rest) = url.split_at(start);
    let rest = match rest.rsplit_once('@') {
        Some((_, place)) => format!("***@{place}"),
        None => rest.to_owned(),
    };
    let hide = |part: &str| match part.split_once('=') {
        Some((name @ ("pass" | "user"), _)) => format!("{name}=***"),
        _ => part.to_owned(),
    };
    match rest.split_once('?') {
        Some((place, query)) => {
            let query: Vec<String> = query.split('&').map(hide).collect();
            format!("{scheme}{place}?{}", query.join("&"))
        }
        None => format!("{scheme}{rest}"),
    }
}

/// The number's digits, without `_`, and its unit in lower case.
fn split_unit(text: &str) -> Option<(String, String)> {
    let is_number = |c: char| c.is_ascii_digit() || c == '.' || c == '_';
    let (number, unit) = text.split_at(text.find(|c| !is_number(c)).unwrap_or(text.len()));
    let number = number.replace('_', "");
    let has_digits = number.contains(|c: char| c.is_ascii_digit());
    has_digits.then(|| (number, unit.trim().to_lowercase()))
}

fn parse_digits(text: &str) -> Option<u64> {
    match split_unit(text)? {
        (number, unit) if unit.is_empty() => number.parse().ok(),
        _ => None,
    }
}

fn parse_word(text: &str) -> Result<String, String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if text.is_empty() || !text.chars().all(is_word) {
        return Err("expected auto or a name of letters, digits, '-', '_' and '.'".into());
    }
    Ok(text.into())
}

fn parse_text(text: &str, bytes_max: usize) -> Result<String, String> {
    if bytes_max < text.len() {
        return Err(format!("expected at most {bytes_max} bytes"));
    }
    Ok(text.into())
}

fn parse_choice(words: &[&str], text: &str) -> Result<String, String> {
    match words.iter().find(|word| word.eq_ignore_ascii_case(text)) {
        Some(word) => Ok((*word).into()),
        None => Err(format!("expected one of {}", words.join(", "))),
    }
}

/// As compose files, shells and YAML spell it.
pub fn parse_switch(text: &str) -> Result<bool, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("expected true or false (also 1, 0, yes, no, on, off)".into()),
    }
}

/// The scheme; whether the rest makes sense says the client that connects, before a port is opened.
fn parse_redis_url(text: &str) -> Result<String, String> {
    const SCHEMES: [&str; 5] = ["redis", "valkey", "unix", "redis+unix", "valkey+unix"];
    match text.split_once("://") {
        Some((scheme, rest)) if SCHEMES.contains(&scheme) && !rest.is_empty() => Ok(text.into()),
        Some(("rediss" | "valkeys", _)) => {
            Err("TLS is not built in; expected redis:// in a network that is trusted".into())
        }
        _ => Err(
            "expected redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE] or unix:///PATH[?db=N&pass=PASSWORD]"
                .into(),
        ),
    }
}

fn parse_device(text: &str) -> Result<String, String> {
    let device = text.to_ascii_lowercase();
    let is_index =
        |index: &str| !index.is_empty() && index.len() <= 3 && parse_digits(index).is_some();
    let is_cuda = |list: &str| list == "all" || list.split(',').all(is_index);
    match device.as_str() {
        "auto" | "cpu" | "cuda" | "metal" => Ok(device),
        // PyTorch's name for the same device.
        "mps" => Ok("metal".into()),
        _ if device.strip_prefix("cuda:").is_some_and(is_cuda) => Ok(device),
        _ => Err("expected one of auto, cpu, cuda, cuda:N, cuda:N,M, cuda:all, metal, mps".into()),
    }
}

fn parse_host(text: &str) -> Result<String, String> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(ip.to_string());
    }
    let is_host_char = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    // 127.0.0.256 is a mistyped address, not a name to be resolved.
    let is_name = text.contains(|c: char| c.is_ascii_alphabetic());
    if !is_name || HOST_CHARS_MAX < text.len() || !text.chars().all(is_host_char) {
        return Err("expected an IP address or a host name, without a port".into());
    }
    Ok(text.into())
}

fn parse_json(text: &str) -> Result<String, String> {
    match serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text) {
        Ok(object) => Ok(serde_json::Value::Object(object).to_string()),
        Err(error) => Err(format!(
            "expected a JSON object such as {{\"key\": 1}}: {error}"
        )),
    }
}

fn parse_list(text: &str) -> Result<Vec<String>, String> {
    let items: Vec<String> = text.split(',').map(|item| item.trim().to_owned()).collect();
    if items.iter().any(String::is_empty) {
        return Err("expected texts separated by single commas, none of them empty".into());
    }
    Ok(items)
}

/// By the parser that will read it; before, a misspelled level must not pass as a target's name.
fn parse_log_filter(text: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = LEVELS.iter().any(|level| level.eq_ignore_ascii_case(text));
    let expected = || {
        format!(
            "expected one of {} or directives such as info,gateway=debug",
            LEVELS.join(", ")
        )
    };
    if !is_level && !text.contains('=') {
        return Err(expected());
    }
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(text.into()),
        Err(why) => Err(format!("{}: {why}", expected())),
    }
}

fn expected_time(unit: Unit, min: Duration, max: Duration) -> String {
    let (bare, example) = match unit {
        Unit::Seconds => ("seconds", "250ms, 10s, 2m or 10"),
        Unit::Milliseconds => ("milliseconds", "500us, 10ms, 1s or 10"),
        Unit::Microseconds => ("microseconds", "500us, 10ms or 10000"),
    };
    let (min, max) = (show_time(min), show_time(max));
    format!("expected a time from {min} to {max}, such as {example} ({bare})")
}

/// In the largest unit that leaves a whole number.
fn show_time(time: Duration) -> String {
    let us = time.as_micros();
    let units = [
        (3_600_000_000, "h"),
        (60_000_000, "m"),
        (1_000_000, "s"),
        (1_000, "ms"),
    ];
    match units
        .iter()
        .find(|(unit_us, _)| us != 0 && us.is_multiple_of(*unit_us))
    {
        Some((unit_us, unit)) => format!("{}{unit}", us / unit_us),
        None if us == 0 => "0".into(),
        None => format!("{us}us"),
    }
}

/// In the largest binary unit that leaves a whole number.
fn show_bytes(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units
        .iter()
        .find(|(unit, _)| bytes != 0 && bytes.is_multiple_of(*unit))
    {
        Some((unit, name)) => format!("{}{name}", bytes / unit),
        None => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_values() {
        let time = |text| parse_time(text, Unit::Seconds);
        let cases = [
            ("10", Some(10_000_000)),
            ("10s", Some(10_000_000)),
            ("0.25", Some(250_000)),
            ("250ms", Some(250_000)),
            ("500us", Some(500)),
            ("500µs", Some(500)),
            ("1.5 min", Some(90_000_000)),
            ("2m", Some(120_000_000)),
            ("1H", Some(3_600_000_000)),
            ("1_000ms", Some(1_000_000)),
            ("", None),
            ("s", None),
            ("-1", None),
            ("1e3", None),
            ("1.2.3", None),
            ("10d", None),
            ("inf", None),
        ];
        for (text, us) in cases {
            assert_eq!(time(text), us.map(Duration::from_micros), "{text:?}");
        }
        for (bare, unit) in [("10000", Unit::Microseconds), ("10", Unit::Milliseconds)] {
            assert_eq!(parse_time(bare, unit), Some(Duration::from_millis(10)));
        }

        for (text, flag) in [("true", true), ("YES", true), ("on", true), ("1", true)]
            .into_iter()
            .chain([
                ("false", false),
                ("no", false),
                ("Off", false),
                ("0", false),
            ])
        {
            assert_eq!(parse_switch(text), Ok(flag), "{text:?}");
        }
        parse_switch("2").unwrap_err();

        let cases = [
            ("4096", Some(4_096)),
            ("1MiB", Some(1 << 20)),
            ("64 kib", Some(64 << 10)),
            ("2MB", Some(2_000_000)),
            ("512B", Some(512)),
            ("1GiB", Some(1 << 30)),
            ("1.5MiB", None),
            ("64K", None),
            ("18446744073709551615GiB", None),
            ("99999999999999999999", None),
            ("MiB", None),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_bytes(text), bytes, "{text:?}");
        }
    }

    #[test]
    fn switches() {
        for (text, is_on) in [("true", true), ("ON", true), ("1", true), ("yes", true)]
            .into_iter()
            .chain([
                ("false", false),
                ("off", false),
                ("0", false),
                ("No", false),
            ])
        {
            assert_eq!(
                parse(&Kind::Switch, text),
                Ok(Value::Switch(is_on)),
                "{text:?}"
            );
        }
        for text in ["", "2", "y", "enabled"] {
            let why = parse(&Kind::Switch, text).expect_err(text);
            assert!(why.contains("expected true or false"), "{why}");
        }
    }

    #[test]
    fn passwords_of_urls_are_not_shown() {
        let cases = [
            ("redis://127.0.0.1:6379", "redis://127.0.0.1:6379"),
            ("redis://:secret@host:1/2", "redis://***@host:1/2"),
            ("redis://me:secret@host", "redis://***@host"),
            ("redis://secret@host", "redis://***@host"),
            ("redis://:sec/r@et?@host/0", "redis://***@host/0"),
            (":secret@host", "***@host"),
            ("unix:///tmp/r.sock", "unix:///tmp/r.sock"),
            (
                "unix:///tmp/r.sock?db=1&pass=secret&user=me",
                "unix:///tmp/r.sock?db=1&pass=***&user=***",
            ),
            ("", ""),
        ];
        for (url, shown) in cases {
            assert_eq!(hide_password(url), shown, "{url:?}");
        }
    }
}
