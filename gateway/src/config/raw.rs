//! What was said, by whom: a text for every key, with its origin. Nothing is judged here.

use super::file::{self, Entry};
use super::nearest::{nearest, nearest_env};
use super::older;
use super::setting::{Kind, Setting};
use super::table::{FILE_KEY, GROUPS, SETTINGS, find};
use std::collections::BTreeMap;
use std::fmt;

/// More of a wrong value does not help whoever reads the error.
const SHOWN_CHARS_MAX: usize = 80;

/// How our variables begin.
const ENV_PREFIX: &str = "CROSSGATE_";

/// Who set a value, the weakest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Default,
    /// A file, and the line in it.
    File {
        name: String,
        line: usize,
    },
    /// The variable.
    Env(&'static str),
    /// The flag's first spelling, without its dashes.
    Flag(&'static str),
}

/// A text and who said it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub text: String,
    pub origin: Origin,
}

/// Every key of the table with what the strongest origin said.
#[derive(Clone)]
pub struct Raw {
    said: BTreeMap<&'static str, Said>,
    notices: Vec<String>,
}

// === impl Origin ===

impl Origin {
    /// `flag`, `env`, `file` or `default`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::File { .. } => "file",
            Self::Env(_) => "env",
            Self::Flag(_) => "flag",
        }
    }

    /// Which one of them; empty for the default.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Default => String::new(),
            Self::File { name, line } => format!("{name}:{line}"),
            Self::Env(name) => (*name).into(),
            Self::Flag(flag) => format!("--{flag}"),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            _ => write!(f, "{} {}", self.kind(), self.name()),
        }
    }
}

// === impl Raw ===

impl Raw {
    /// Nobody said anything.
    #[must_use]
    pub fn defaults() -> Self {
        let default = |setting: &Setting| Said {
            text: setting.default.into(),
            origin: Origin::Default,
        };
        Self {
            said: SETTINGS
                .iter()
                .map(|setting| (setting.key, default(setting)))
                .collect(),
            notices: Vec::new(),
        }
    }

    /// Lays file, environment and flags over the defaults, in this order.
    ///
    /// `flags` are keys with what was given for them, `env` stands for the environment and
    /// `read_file` for the file system. Fails with every mistake of the file.
    pub fn collect(
        flags: &[(&'static str, String)],
        env: impl Fn(&str) -> Option<String>,
        read_file: impl Fn(&str) -> Result<String, String>,
    ) -> Result<Self, Vec<String>> {
        let mut over = Self {
            said: BTreeMap::new(),
            notices: Vec::new(),
        };
        over.lay_env(&env);
        over.lay_flags(flags);

        let mut raw = Self::defaults();
        let file = over
            .said
            .get(FILE_KEY)
            .filter(|said| !said.text.trim().is_empty());
        if let Some(Said { text: name, origin }) = file {
            let text =
                read_file(name).map_err(|why| vec![format!("{FILE_KEY} ({origin}): {why}")])?;
            raw.lay_file(name, &text)?;
        }
        raw.said.append(&mut over.said);
        raw.lay_older(env);
        Ok(raw)
    }

    /// Adds a sentence to the [notices](Self::notices).
    pub fn note(&mut self, notice: String) {
        self.notices.push(notice);
    }

    /// What became of variables and flags that are no setting's own, a sentence each.
    #[must_use]
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// What the strongest origin said; `None` for a key that is not in the table.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Said> {
        self.said.get(key)
    }

    /// What the strongest origin said, for an error: `server.port = "80a" (flag --port)`.
    #[must_use]
    pub fn said(&self, key: &str) -> String {
        let Some(Said { text, origin }) = self.get(key) else {
            return key.into();
        };
        let text = find(key).map_or(text.into(), |setting| setting.shown(text));
        let shown: String = text.chars().take(SHOWN_CHARS_MAX).collect();
        let cut = if shown.len() < text.len() { "…" } else { "" };
        format!("{key} = {shown:?}{cut} ({origin})")
    }

    /// Says `text` for `key`, over whatever was said before.
    ///
    /// # Panics
    /// When the table lacks the key, which is the caller's mistake: keys come from code.
    pub fn say(&mut self, key: &str, text: impl Into<String>, origin: Origin) {
        let setting = find(key).unwrap_or_else(|| panic!("{key} is no setting"));
        self.said.insert(
            setting.key,
            Said {
                text: text.into(),
                origin,
            },
        );
    }

    /// A variable that is set to nothing counts as not set: compose files write `${PORT:-}`.
    fn lay_env(&mut self, env: &impl Fn(&str) -> Option<String>) {
        for setting in SETTINGS {
            let values = setting
                .env
                .iter()
                .map(|name| (*name, env(name).unwrap_or_default()));
            let mut set = values.filter(|(_, text)| {
                !text.trim().is_empty() && !is_kubernetes_link(&setting.kind, text)
            });
            if let Some((name, text)) = set.next() {
                self.say(setting.key, text, Origin::Env(name));
            }
        }
    }

    fn lay_older(&mut self, env: impl Fn(&str) -> Option<String>) {
        let text = env(older::USE_MLX).filter(|text| !text.trim().is_empty());
        let device = self.get(older::DEVICE_KEY);
        let mapped = text
            .zip(device)
            .and_then(|(text, device)| older::use_mlx(&text, device, cfg!(target_os = "macos")));
        if let Some(older::Mapped { said, notice }) = mapped {
            self.notices.push(notice);
            self.said.extend(said.map(|said| (older::DEVICE_KEY, said)));
        }
    }

    /// A list's flags add up; of any other the last one counts, so that a script can append to it.
    fn lay_flags(&mut self, flags: &[(&'static str, String)]) {
        for setting in SETTINGS {
            let given = flags.iter().filter(|(key, _)| *key == setting.key);
            let given: Vec<&str> = given.map(|(_, text)| text.as_str()).collect();
            if let Some(last) = given.last() {
                let text = if setting.is_list() {
                    given.join(",")
                } else {
                    (*last).into()
                };
                self.say(setting.key, text, Origin::Flag(setting.flag));
            }
        }
    }

    fn lay_file(&mut self, name: &str, text: &str) -> Result<(), Vec<String>> {
        let entries =
            file::read(text).map_err(|(line, why)| vec![format!("{name}:{line}: {why}")])?;
        let mut errors = Vec::new();
        let mut lines = BTreeMap::new();
        for Entry { key, line, text } in entries {
            // `server:` with every line below it commented out.
            if is_group(&key) && text == Ok(None) {
                continue;
            }
            let Some(setting) = find(&key).filter(|setting| setting.key != FILE_KEY) else {
                errors.push(format!("{name}:{line}: {}", no_such_key(&key)));
                continue;
            };
            if let Some(first) = lines.insert(setting.key, line) {
                errors.push(format!(
                    "{name}:{line}: {key} is set in line {first} already"
                ));
            }
            match text {
                // `port:` with nothing behind it: the default.
                Ok(None) => {}
                Ok(Some(text)) => {
                    self.say(
                        setting.key,
                        text,
                        Origin::File {
                            name: name.into(),
                            line,
                        },
                    );
                }
                Err(why) => errors.push(format!("{name}:{line}: {key}: {why}")),
            }
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(errors)
        }
    }
}

/// As an error would show it, so that no password gets into a log.
impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.said.keys().map(|key| self.said(key)))
            .finish()
    }
}

/// Kubernetes sets `CROSSGATE_PORT=tcp://10.0.0.1:8000` in every container beside a service that
/// is called `crossgate`. Nobody meant that as a port.
fn is_kubernetes_link(kind: &Kind, text: &str) -> bool {
    matches!(kind, Kind::Port) && is_link(text)
}

fn is_link(text: &str) -> bool {
    let schemes = ["tcp://", "udp://", "sctp://"];
    schemes.iter().any(|scheme| text.starts_with(scheme))
}

/// A sentence for each variable (name and text) that looks like a setting and is none: a wrong spelling
/// would otherwise mean nothing, and say nothing.
pub fn unknown_env(env: impl IntoIterator<Item = (String, String)>) -> Vec<String> {
    let known = |name: &str| SETTINGS.iter().any(|setting| setting.env.contains(&name));
    let said = env.into_iter().filter_map(|(name, text)| {
        let rest = name.strip_prefix(ENV_PREFIX)?;
        let is_foreign = known(&name) || is_of_service(rest) || is_link(&text);
        (!is_foreign).then(|| match nearest_env(rest) {
            Some(meant) => format!("there is no setting {name}; did you mean {meant}?"),
            None => format!(
                "there is no setting {name}; `crossgate config --reference` lists all of them"
            ),
        })
    });
    said.collect()
}

/// Kubernetes says of each service called `crossgate` or `crossgate-…` where it is, in the names
/// `…SERVICE_HOST`, `…SERVICE_PORT_HTTP`, `…PORT_80_TCP_ADDR`.
fn is_of_service(rest: &str) -> bool {
    let of_port = ["_TCP", "_UDP", "_SCTP"];
    let is_port = |at: usize| of_port.iter().any(|kind| rest[at..].contains(kind));
    rest.ends_with("SERVICE_HOST")
        || rest.contains("SERVICE_PORT")
        || rest.find("PORT_").is_some_and(is_port)
}

fn is_group(key: &str) -> bool {
    GROUPS.iter().any(|(group, _)| *group == key)
}

pub(super) fn no_such_key(key: &str) -> String {
    if key == FILE_KEY {
        return format!("{key} cannot stand in a file; use the flag --config or CROSSGATE_CONFIG");
    }
    if is_group(key) {
        return format!("{key} is a group of settings: expected a mapping below it");
    }
    match nearest(key) {
        Some(nearest) => format!("there is no setting {key:?}; did you mean {nearest:?}?"),
        None => {
            format!("there is no setting {key:?}; `crossgate config --reference` lists all of them")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn yaml(file: &str) -> Result<Raw, Vec<String>> {
        let flags = [(FILE_KEY, "crossgate.yaml".to_owned())];
        Raw::collect(&flags, |_| None, |_| Ok(file.to_owned()))
    }

    #[track_caller]
    fn check_error(got: Result<Raw, Vec<String>>, words: &[&str]) {
        let error = got.expect_err("this is wrong").join("\n");
        for word in words {
            assert!(error.contains(word), "{error:?} does not say {word:?}");
        }
    }

    #[test]
    fn variables_that_are_no_setting() {
        let say =
            |name: &str, text: &str| unknown_env([(name.to_owned(), text.to_owned())]).join("; ");
        let meant = [
            ("CROSSGATE_PROT", "did you mean CROSSGATE_PORT?"),
            ("CROSSGATE_MAX_BATCH_TOKEN", "CROSSGATE_MAX_BATCH_TOKENS?"),
            ("CROSSGATE_BATCH_TOKENS_MAX", "CROSSGATE_MAX_BATCH_TOKENS?"),
            ("CROSSGATE_MODEL", "CROSSGATE_MODELS?"),
            ("CROSSGATE_XYZ", "crossgate config --reference"),
        ];
        for (name, words) in meant {
            let said = say(name, "1");
            assert!(said.contains(words) && said.contains(name), "{said}");
        }
        for (name, text) in [
            ("CROSSGATE_PORT", "80"),
            ("CROSSGATE_PORT", "tcp://10.0.0.1:80"),
            ("CROSSGATE_ADMIN_PORT_80_TCP_ADDR", "10.0.0.1"),
            ("CROSSGATE_EDGE_PORT", "tcp://10.0.0.1:80"),
            ("CROSSGATE_SERVICE_HOST", "10.0.0.1"),
            ("CROSSGATE_SERVICE_PORT_HTTP", "80"),
            ("CROSSGATES", "1"),
            ("PATH", "/bin"),
        ] {
            assert_eq!(say(name, text), "", "{name}");
        }
    }

    #[test]
    fn files_that_are_wrong() {
        let cases: [(&str, &[&str]); 16] = [
            (
                "server:\n  prot: 1\n",
                &[
                    "crossgate.yaml:2",
                    "\"server.prot\"",
                    "did you mean \"server.port\"",
                ],
            ),
            ("port: 1\n", &["crossgate.yaml:1", "\"server.port\""]),
            ("max-batch-size: 1\n", &["\"batch.rows_max\""]),
            ("MODEL: 1\n", &["\"model.sources\""]),
            (
                "zzz: {qqq: 1}\n",
                &["\"zzz.qqq\"", "crossgate config --reference"],
            ),
            ("server: 1\n", &["server is a group"]),
            (
                "server:\n  port: 1\n  port: 2\n",
                &["crossgate.yaml:3", "line 2 already"],
            ),
            (
                "server: {port: 1}\nserver.port: 2\n",
                &["crossgate.yaml:2", "line 1 already"],
            ),
            ("server:\n  port: [1]\n", &["server.port", "not a list"]),
            (
                "server:\n  port: {a: 1}\n",
                &["server.port", "not a mapping"],
            ),
            (
                "model: {sources: ['a,b']}\n",
                &["model.sources", "without commas"],
            ),
            ("config: {file: x.yaml}\n", &["config.file", "--config"]),
            (
                "server: &x {port: 1}\nbatch: *x\n",
                &["crossgate.yaml:2", "aliases"],
            ),
            ("- 1\n", &["expected a mapping"]),
            ("server: {port: 1\n", &["not YAML"]),
            (
                "server: {port: 1}\n---\nserver: {port: 2}\n",
                &["second document"],
            ),
        ];
        for (file, words) in cases {
            check_error(yaml(file), words);
        }
        let deep = format!("model: {{options: {}1{}}}", "[".repeat(40), "]".repeat(40));
        check_error(yaml(&deep), &["more than 16 levels"]);
        check_error(yaml(&"[".repeat(1 << 20)), &["crossgate.yaml:1"]);
        // Every mistake at once.
        assert_eq!(yaml("a: 1\nb: 2\nc: 3\n").unwrap_err().len(), 3);
        let flags = [(FILE_KEY, "gone.yaml".to_owned())];
        let gone = Raw::collect(&flags, |_| None, |name| Err(format!("{name} is not there")));
        assert_eq!(
            gone.unwrap_err(),
            ["config.file (flag --config): gone.yaml is not there"]
        );
    }
}
