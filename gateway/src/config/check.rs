//! From what was said to what the program may rely on: forms and bounds first, then relations.

mod relations;
mod server;

use super::raw::Raw;
use super::setting::Setting;
use super::table::SETTINGS;
use super::value::{self, Value};
use super::{
    Batch, Cache, Config, Distributed, Intake, Log, MODELS_MAX, Models, NamedSource, Plugins,
    Queue, Rate, RedisUrl, Threads, Worker,
};
use crate::digest::is_sha256;
use crate::score::{Activation, Priority};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

/// A model's name stands in paths, metrics and logs.
const MODEL_NAME_CHARS_MAX: usize = 256;

/// Everything that is wrong, a sentence each.
pub(super) fn check(raw: &Raw) -> Result<Config, Vec<String>> {
    let mut reader = Reader::read(raw);
    // Relations between values that have no form yet would only repeat the same mistakes.
    reader.stop_on_errors()?;
    let config = reader.config();
    reader.check_relations(&config);
    reader.stop_on_errors()?;
    Ok(config)
}

/// What was said, read as values; mistakes pile up beside them.
struct Reader<'a> {
    raw: &'a Raw,
    values: BTreeMap<&'static str, Value>,
    errors: Vec<String>,
}

// === impl Reader ===

impl<'a> Reader<'a> {
    fn read(raw: &'a Raw) -> Self {
        let mut reader = Self {
            raw,
            values: BTreeMap::new(),
            errors: Vec::new(),
        };
        for setting in SETTINGS {
            match reader.read_one(setting) {
                Ok(value) => _ = reader.values.insert(setting.key, value),
                Err(why) => reader
                    .errors
                    .push(format!("{}: {why}", reader.raw.said(setting.key))),
            }
        }
        reader
    }

    fn read_one(&self, setting: &Setting) -> Result<Value, String> {
        let text = self
            .raw
            .get(setting.key)
            .map_or(setting.default, |said| &said.text);
        if setting.default.is_empty() && text.trim().is_empty() {
            return Ok(Value::None);
        }
        value::parse(&setting.kind, text)
    }

    /// Ends here when something is wrong already.
    fn stop_on_errors(&mut self) -> Result<(), Vec<String>> {
        if self.errors.is_empty() {
            Ok(())
        } else {
            Err(std::mem::take(&mut self.errors))
        }
    }

    fn config(&mut self) -> Config {
        Config {
            raw: self.raw.clone(),
            models: self.models(),
            plugins: self.plugins(),
            server: self.server(),
            intake: Intake {
                body_bytes_max: self.size("intake.body_bytes_max"),
                document_bytes_max: self.size("intake.document_bytes_max"),
                query_bytes_max: self.size("intake.query_bytes_max"),
                documents_max: self.size("intake.documents_max"),
                requests_max: self.size("intake.requests_max"),
                bytes_max: self.size("intake.bytes_max"),
                // The table's words are the priorities' names.
                priority_max: Priority::parse(&self.text("intake.priority_max"))
                    .unwrap_or(Priority::High),
            },
            cache: self.cache(),
            queue: Queue {
                rows_max: self.size("queue.rows_max"),
                tokens_max: self.size("queue.tokens_max"),
                requests_max: self.size("queue.requests_max"),
                bytes_max: self.size("queue.bytes_max"),
                wait_max: self
                    .has("queue.wait_max")
                    .then(|| self.time("queue.wait_max")),
            },
            batch: Batch {
                us_max: u64::try_from(self.time("batch.us_max").as_micros()).unwrap_or(u64::MAX),
                rows_max: self.size("batch.rows_max"),
                tokens_max: self.size("batch.tokens_max"),
                wait_max: self.time("batch.wait_max"),
                rows_preferred: self
                    .size("batch.rows_preferred")
                    .min(self.size("batch.rows_max")),
                is_adaptive: self.switch("batch.adaptive"),
            },
            threads: Threads {
                total: self.size("threads.total"),
                workers: self.size("threads.workers"),
                tokenizers: self.size("threads.tokenizers"),
            },
            worker: Worker {
                timeout: self.time("worker.timeout"),
                retries_max: self.size("worker.retries_max"),
                faults_max: self.size("worker.faults_max"),
                faults_window: self.time("worker.faults_window"),
            },
            distributed: self.distributed(),
            log: Log {
                filter: self.text("log.level"),
                is_json: self.text("log.format") == "json",
            },
        }
    }

    fn cache(&self) -> Cache {
        let interval = self.time("cache.clear_interval");
        Cache {
            is_enabled: self.switch("cache.enabled"),
            coalesces: self.switch("cache.coalesce"),
            bytes_max: self.number("cache.bytes_max"),
            ttl: self.time("cache.ttl"),
            clear_interval: (!interval.is_zero()).then_some(interval),
        }
    }

    fn models(&mut self) -> Models {
        let sources = self.list("model.sources");
        let sources = name_sources(&sources).unwrap_or_else(|why| {
            self.errors
                .push(format!("{}: {why}", self.raw.said("model.sources")));
            Vec::new()
        });
        let activation = match self.text("model.activation").as_str() {
            "identity" => Some(Activation::Identity),
            "sigmoid" => Some(Activation::Sigmoid),
            "softmax" => Some(Activation::Softmax),
            _ => None,
        };
        Models {
            sources,
            backend: Some(self.text("model.backend").to_ascii_lowercase())
                .filter(|name| name != "auto"),
            dtype: spell_dtype(&self.text("model.dtype")),
            device: self.text("model.device"),
            query_prefix: self.text_or_none("model.query_prefix"),
            document_prefix: self.text_or_none("model.document_prefix"),
            max_length: self
                .has("model.max_length")
                .then(|| self.size("model.max_length")),
            activation,
            options: self.text("model.options"),
            cache_dir: self.path("model.cache_dir"),
        }
    }
}

impl Reader<'_> {
    fn plugins(&mut self) -> Plugins {
        Plugins {
            dirs: self
                .list("plugins.dir")
                .iter()
                .map(|dir| value::expand_home(dir))
                .collect(),
            images_max: self.size("plugins.images_max"),
            watch: self.switch("plugins.watch"),
            prober: self.path("plugins.prober"),
            probe_timeout: self.time("plugins.probe_timeout"),
            probe_memory_max: self
                .has("plugins.probe_memory_max")
                .then(|| self.number("plugins.probe_memory_max")),
            sha256: self.hashes("plugins.sha256"),
        }
    }

    fn distributed(&self) -> Option<Distributed> {
        let count = |key: &str| {
            let number = self.has(key).then(|| self.number(key));
            number.map(|number| u32::try_from(number).unwrap_or(u32::MAX))
        };
        let rate = count("distributed.rate_max").map(|per_second| Rate {
            per_second,
            burst: count("distributed.rate_burst").unwrap_or(per_second),
        });
        self.switch("distributed.enabled").then(|| Distributed {
            redis_url: RedisUrl::new(self.text("distributed.redis_url")),
            prefix: self.text("distributed.prefix"),
            connect_timeout: self.time("distributed.connect_timeout"),
            operation_timeout: self.time("distributed.operation_timeout"),
            ttl: self.time("distributed.ttl"),
            write_bytes_max: self.size("distributed.write_bytes_max"),
            requests_max: count("distributed.requests_max"),
            rate,
            client_header: self
                .has("distributed.client_header")
                .then(|| self.text("distributed.client_header")),
        })
    }
}

// Getters: a value of another type than the key's kind gives is this file's mistake, and the
// defaults alone bring it to light (`the_defaults_hold` in tests/config.rs).
impl Reader<'_> {
    fn has(&self, key: &str) -> bool {
        !matches!(self.values.get(key), None | Some(Value::None))
    }

    fn text(&self, key: &str) -> String {
        match self.values.get(key) {
            Some(Value::Text(text)) => text.clone(),
            other => panic!("{key} is {other:?}, no text"),
        }
    }

    fn text_or_none(&self, key: &str) -> String {
        if self.has(key) {
            self.text(key)
        } else {
            String::new()
        }
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        self.has(key).then(|| value::expand_home(&self.text(key)))
    }

    fn switch(&self, key: &str) -> bool {
        match self.values.get(key) {
            Some(Value::Switch(is_on)) => *is_on,
            other => panic!("{key} is {other:?}, no switch"),
        }
    }

    fn list(&self, key: &str) -> Vec<String> {
        match self.values.get(key) {
            Some(Value::List(items)) => items.clone(),
            Some(Value::None) => Vec::new(),
            other => panic!("{key} is {other:?}, no list"),
        }
    }

    fn hashes(&mut self, key: &str) -> Vec<String> {
        let hashes: Vec<_> = self
            .list(key)
            .iter()
            .map(|hash| hash.to_lowercase())
            .collect();
        if let Some(wrong) = hashes.iter().find(|hash| !is_sha256(hash)) {
            let said = self.raw.said(key);
            self.errors.push(format!(
                "{said}: {wrong:?} is no SHA-256; expected 64 hexadecimal digits, as sha256sum prints them"
            ));
        }
        hashes
    }

    fn number(&self, key: &str) -> u64 {
        match self.values.get(key) {
            Some(Value::Number(number)) => *number,
            other => panic!("{key} is {other:?}, no number"),
        }
    }

    /// Saturates where a machine has less than 64 bits: its memory ends sooner anyway.
    fn size(&self, key: &str) -> usize {
        usize::try_from(self.number(key)).unwrap_or(usize::MAX)
    }

    fn port(&self, key: &str) -> u16 {
        u16::try_from(self.number(key)).unwrap_or(u16::MAX)
    }

    fn time(&self, key: &str) -> Duration {
        match self.values.get(key) {
            Some(Value::Time(time)) => *time,
            other => panic!("{key} is {other:?}, no time"),
        }
    }
}

// === functions ===

/// `NAME=SOURCE` or `SOURCE`, which then is the name, too.
fn name_sources(items: &[String]) -> Result<Vec<NamedSource>, String> {
    if MODELS_MAX < items.len() {
        return Err(format!(
            "expected at most {MODELS_MAX} models, not {}",
            items.len()
        ));
    }
    let sources: Vec<NamedSource> = items
        .iter()
        .map(|item| name_source(item))
        .collect::<Result<_, _>>()?;
    let mut names = BTreeSet::new();
    match sources.iter().find(|model| !names.insert(&model.name)) {
        Some(model) => Err(format!(
            "the name {:?} is given to two models; write NAME=SOURCE with another one",
            model.name
        )),
        None => Ok(sources),
    }
}

fn name_source(item: &str) -> Result<NamedSource, String> {
    // A `=` inside a path is the path's own.
    let is_path = item.starts_with(['.', '/', '~']);
    let (name, source) = match item.split_once('=') {
        Some((name, source)) if !is_path => (name.trim(), source.trim()),
        _ => (item, item),
    };
    if name.is_empty() || source.is_empty() {
        return Err(format!(
            "{item:?}: expected NAME=SOURCE with both sides filled"
        ));
    }
    NamedSource::new(name, source).map_err(|why| format!("{why}; write NAME=SOURCE"))
}

impl NamedSource {
    /// The model of this name from there.
    ///
    /// # Errors
    /// That it is no name for one.
    pub fn new(name: &str, source: &str) -> Result<Self, String> {
        let is_strange = |c: char| c.is_whitespace() || c.is_control();
        let n_chars = name.chars().count();
        if n_chars == 0 || MODEL_NAME_CHARS_MAX < n_chars || name.contains(is_strange) {
            return Err(format!(
                "{name:?} is no name for a model: expected 1 to {MODEL_NAME_CHARS_MAX} characters without spaces"
            ));
        }
        Ok(Self {
            name: name.into(),
            source: source.into(),
        })
    }
}

/// Other tools' spellings of the plugins' data types.
pub fn spell_dtype(text: &str) -> String {
    let dtype = text.to_ascii_lowercase();
    match dtype.as_str() {
        "float32" | "fp32" | "float" => "f32".into(),
        "float16" | "fp16" | "half" => "f16".into(),
        "bfloat16" => "bf16".into(),
        _ => dtype,
    }
}

#[cfg(test)]
mod tests;
