//! Keys of the public API: who may ask, and for how much.

use super::{Rate, Secret};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// Keys of one server; each call is compared with all of them.
pub const KEYS_MAX: usize = 1_024;
/// A key's name is a label of metrics.
const NAME_CHARS_MAX: usize = 64;
/// Of a file of keys: room for all of them, their limits and comments.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Requests per second, and documents, that a limit may name.
pub(super) const RATE_MAX: u64 = 1_000_000;
pub(super) const DOCUMENTS_MAX: u64 = 1_000_000_000_000;

/// A key and whose it is. Several keys may have one name, as while one replaces another; they share its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// For log and metrics.
    pub name: String,
    /// What is shown.
    pub secret: Secret,
    /// For all keys of this name together.
    pub limits: Limits,
}

/// How much may be asked; `None` for any number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests.
    pub rate: Option<Rate>,
    /// Documents.
    pub documents_per_minute: Option<u64>,
    /// Documents.
    pub documents_per_day: Option<u64>,
}

/// Reads entries one after the other. What it says of a wrong one never shows it.
pub(super) struct Entries {
    /// For keys that name none of their own.
    defaults: Limits,
    keys: Vec<ApiKey>,
}

// === impl Entries ===

impl Entries {
    pub(super) fn new(defaults: Limits, keys: Vec<ApiKey>) -> Self {
        Self { defaults, keys }
    }

    /// `KEY` or `NAME=KEY`, and behind it `rate=50 burst=100 documents_per_minute=… documents_per_day=…`.
    pub(super) fn add(&mut self, entry: &str) -> Result<(), String> {
        let words = entry.split_whitespace();
        let mut words = words.take_while(|word| !word.starts_with('#'));
        let Some(first) = words.next() else {
            return Ok(());
        };
        let (name, secret) = self.named(first)?;
        let limits = self.limits(words)?;
        if KEYS_MAX <= self.keys.len() {
            return Err(format!("expected at most {KEYS_MAX} keys"));
        }
        for other in &self.keys {
            if other.secret == secret {
                return Err(format!("it is the same key as that of {:?}", other.name));
            }
            if other.name == name && other.limits != limits {
                return Err(format!(
                    "{name:?} has other limits above; expected the same for all keys of a name"
                ));
            }
        }
        self.keys.push(ApiKey {
            name,
            secret,
            limits,
        });
        Ok(())
    }

    /// Every line of a file that is no comment.
    pub(super) fn add_file(&mut self, path: &Path) -> Result<(), String> {
        let in_file = |why: String| format!("{}: {why}", path.display());
        let (mut text, before) = (String::new(), self.keys.len());
        let read = File::open(path)
            .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text));
        read.map_err(|error| in_file(error.to_string()))?;
        if FILE_BYTES_MAX < text.len() as u64 {
            return Err(in_file(format!("has more than {FILE_BYTES_MAX} bytes")));
        }
        for (i, line) in text.lines().enumerate() {
            let in_line = |why| in_file(format!("line {}: {why}", i + 1));
            self.add(line).map_err(in_line)?;
        }
        if self.keys.len() == before {
            // Not the same as no key at all, which would let everybody in.
            return Err(in_file(
                "holds no key; expected a line NAME=KEY for each".to_owned(),
            ));
        }
        Ok(())
    }

    pub(super) fn keys(self) -> Vec<ApiKey> {
        self.keys
    }

    /// A key that ends with `=`, as base64 does, is no name.
    fn named(&self, word: &str) -> Result<(String, Secret), String> {
        let is_name = |name: &str| {
            let is_char = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            (1..=NAME_CHARS_MAX).contains(&name.len()) && name.chars().all(is_char)
        };
        let named = word.split_once('=').filter(|(name, _)| is_name(name));
        let named = named.and_then(|(name, key)| Some((name.to_owned(), Secret::parse(key).ok()?)));
        match named {
            Some(named) => Ok(named),
            None => {
                let secret = Secret::parse(word).map_err(|why| {
                    format!(
                        "expected KEY or NAME=KEY with a NAME of at most {NAME_CHARS_MAX} letters, digits, '-', \
                         '_' and '.'; of the KEY is {why}"
                    )
                })?;
                Ok((format!("key-{}", self.keys.len() + 1), secret))
            }
        }
    }

    fn limits<'a>(&self, words: impl Iterator<Item = &'a str>) -> Result<Limits, String> {
        let mut said = BTreeMap::new();
        for word in words {
            let known = ["rate", "burst", "documents_per_minute", "documents_per_day"];
            let limit = word.split_once('=');
            let limit = limit.filter(|(name, _)| known.contains(name));
            let Some((name, number)) = limit else {
                return Err(format!(
                    "behind a key stand {} each with =N and a space before it; found another word",
                    known.join(", ")
                ));
            };
            let max = match name {
                "rate" | "burst" => RATE_MAX,
                _ => DOCUMENTS_MAX,
            };
            let number: u64 = number.parse().unwrap_or(0);
            if !(1..=max).contains(&number) {
                return Err(format!("{name}: expected a whole number from 1 to {max}"));
            }
            if said.insert(name, number).is_some() {
                return Err(format!("{name} stands there twice"));
            }
        }
        let small = |name: &str| Some(u32::try_from(*said.get(name)?).unwrap_or(u32::MAX));
        let rate = match (small("rate"), small("burst"), self.defaults.rate) {
            (Some(per_second), burst, _) => Some(Rate {
                per_second,
                burst: burst.unwrap_or(per_second),
            }),
            (None, Some(burst), Some(rate)) => Some(Rate { burst, ..rate }),
            (None, Some(_), None) => return Err("burst: expected rate beside it".to_owned()),
            (None, None, rate) => rate,
        };
        let documents = |name: &str, default| said.get(name).copied().or(default);
        let (minute, day) = (
            self.defaults.documents_per_minute,
            self.defaults.documents_per_day,
        );
        Ok(Limits {
            rate,
            documents_per_minute: documents("documents_per_minute", minute),
            documents_per_day: documents("documents_per_day", day),
        })
    }
}
