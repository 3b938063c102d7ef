//! Everything of the environment that matters to the hub, read in one place.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::value::parse_switch;

const ENDPOINT: &str = "https://huggingface.co";
/// Attempts for one answer, or for one mebibyte of a file.
const ATTEMPTS: u32 = 5;
const CONNECT_S: u64 = 10;
/// Until the first byte of an answer, and between two reads of a body.
const READ_S: u64 = 30;
/// Bound of both times when the environment sets them.
const TIMEOUT_S_MAX: u64 = 3_600;
/// First pause between attempts; each further one is twice as long.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// A token is some 40 characters; the file is somebody else's.
const TOKEN_CHARS_MAX: usize = 4_096;

/// Where the hub is, what may be said to it, and where files are kept.
#[derive(Clone)]
pub struct Settings {
    pub(super) endpoint: String,
    pub(super) token: Option<String>,
    pub(super) is_offline: bool,
    pub(super) connect_timeout: Duration,
    pub(super) read_timeout: Duration,
    pub(super) attempts: u32,
    pub(super) retry_pause: Duration,
    pub(super) proxy: Option<String>,
    pub(super) no_proxy: Vec<String>,
    pub(super) ca_file: Option<PathBuf>,
    cache_dir: PathBuf,
    own_dir: PathBuf,
}

// === impl Settings ===

impl Settings {
    /// Reads, with `get` in place of the environment: `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`,
    /// `HF_HUB_DISABLE_IMPLICIT_TOKEN`, `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`,
    /// `HF_HUB_ETAG_TIMEOUT` and `HF_HUB_DOWNLOAD_TIMEOUT` (seconds), the usual names of proxies,
    /// and `SSL_CERT_FILE`. The error names the variable, its value and what is expected.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let get = |name: &str| get(name).filter(|value| !value.trim().is_empty());
        let first = |names: &[&str]| names.iter().find_map(|name| get(name));
        let flag = |name: &str| get(name).map_or(Ok(false), |value| parse_flag(name, &value));
        let seconds = |name: &str, default| match get(name) {
            Some(value) => parse_seconds(name, &value),
            None => Ok(Duration::from_secs(default)),
        };

        let user_cache = match (get("XDG_CACHE_HOME"), get("HOME")) {
            (Some(cache), _) => PathBuf::from(cache),
            (None, Some(home)) => Path::new(&home).join(".cache"),
            (None, None) => std::env::temp_dir(),
        };
        let hf_home = get("HF_HOME").map_or(user_cache.join("huggingface"), PathBuf::from);
        let cache_dir = first(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"])
            .map_or(hf_home.join("hub"), PathBuf::from);
        let token_path = get("HF_TOKEN_PATH").map_or(hf_home.join("token"), PathBuf::from);
        let token = match first(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]) {
            Some(token) => Some(("HF_TOKEN".to_owned(), token)),
            None if flag("HF_HUB_DISABLE_IMPLICIT_TOKEN")? => None,
            // A token file that is not there or not readable is the same as none.
            None => std::fs::read_to_string(&token_path)
                .ok()
                .map(|token| (token_path.display().to_string(), token)),
        };
        let endpoint = get("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into());
        let endpoint = parse_endpoint(&endpoint)?;
        let proxy = if endpoint.starts_with("https://") {
            first(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
        } else {
            // Lower case only: in a CGI program the other one is a request's header.
            first(&["http_proxy", "ALL_PROXY", "all_proxy"])
        };
        let no_proxy = first(&["NO_PROXY", "no_proxy"]).unwrap_or_default();
        Ok(Self {
            endpoint,
            token: token
                .map(|(place, token)| check_token(&place, &token))
                .transpose()?
                .flatten(),
            is_offline: flag("HF_HUB_OFFLINE")? || flag("TRANSFORMERS_OFFLINE")?,
            connect_timeout: seconds("HF_HUB_ETAG_TIMEOUT", CONNECT_S)?,
            read_timeout: seconds("HF_HUB_DOWNLOAD_TIMEOUT", READ_S)?,
            attempts: ATTEMPTS,
            retry_pause: RETRY_PAUSE,
            proxy,
            no_proxy: no_proxy
                .split(',')
                .map(|host| host.trim().to_owned())
                .collect(),
            ca_file: first(&["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"]).map(PathBuf::from),
            cache_dir,
            own_dir: user_cache.join("crossgate"),
        })
    }

    /// Keeps everything under `cache_dir` instead, as `--cache-dir` asks.
    #[must_use]
    pub fn with_cache_dir(self, cache_dir: PathBuf) -> Self {
        Self {
            own_dir: cache_dir.join("crossgate"),
            cache_dir,
            ..self
        }
    }

    /// Another first pause between attempts, for tests.
    #[must_use]
    pub fn with_retry_pause(self, retry_pause: Duration) -> Self {
        Self {
            retry_pause,
            ..self
        }
    }

    /// The folder that holds `models--org--name`.
    #[must_use]
    pub fn cache_dir(&self) -> &Path {
        &self.cache_dir
    }

    /// The folder for what is ours and not the hub's: Python's tools complain of strangers in
    /// theirs.
    #[must_use]
    pub fn own_dir(&self) -> &Path {
        &self.own_dir
    }

    /// Whether the network must not be used.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        self.is_offline
    }
}

// By hand, so that no log ever shows the token, or a password inside the proxy's address.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("endpoint", &self.endpoint)
            .field("has_token", &self.token.is_some())
            .field("cache_dir", &self.cache_dir)
            .field("is_offline", &self.is_offline)
            .field("has_proxy", &self.proxy.is_some())
            .finish_non_exhaustive()
    }
}

fn parse_flag(name: &str, value: &str) -> Result<bool, String> {
    parse_switch(value).map_err(|_| format!("{name} = {value:?}; expected 1 or 0"))
}

fn parse_seconds(name: &str, value: &str) -> Result<Duration, String> {
    match value.trim().parse::<u64>() {
        Ok(seconds) if (1..=TIMEOUT_S_MAX).contains(&seconds) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!(
            "{name} = {value:?}; expected 1 to {TIMEOUT_S_MAX} seconds"
        )),
    }
}

fn parse_endpoint(value: &str) -> Result<String, String> {
    let trimmed = value.trim().trim_end_matches('/');
    let host = ["https://", "http://"]
        .iter()
        .find_map(|scheme| trimmed.strip_prefix(scheme));
    let strange = |c: char| c.is_whitespace() || c.is_control() || "?#@".contains(c);
    match host {
        Some(host) if !host.is_empty() && !host.starts_with('/') && !host.contains(strange) => {
            Ok(trimmed.to_owned())
        }
        _ => Err(format!(
            "HF_ENDPOINT = {value:?}; expected https://host or https://host/path"
        )),
    }
}

/// Never shows the token. One of blanks only counts as none.
fn check_token(place: &str, token: &str) -> Result<Option<String>, String> {
    let token = token.trim();
    if TOKEN_CHARS_MAX < token.len() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!(
            "{place} holds no token: expected up to {TOKEN_CHARS_MAX} visible ASCII characters"
        ));
    }
    Ok((!token.is_empty()).then(|| token.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Settings, String> {
        Settings::from_env(|name| {
            pairs
                .iter()
                .find(|pair| pair.0 == name)
                .map(|pair| pair.1.to_owned())
        })
    }

    #[track_caller]
    fn check_cache(pairs: &[(&str, &str)], want: &str) {
        assert_eq!(
            read(pairs).unwrap().cache_dir(),
            Path::new(want),
            "{pairs:?}"
        );
    }

    #[test]
    fn caches() {
        check_cache(&[("HOME", "/h")], "/h/.cache/huggingface/hub");
        check_cache(
            &[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")],
            "/x/huggingface/hub",
        );
        check_cache(&[("HOME", "/h"), ("HF_HOME", "/f")], "/f/hub");
        check_cache(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")], "/c");
        check_cache(&[("HF_HOME", "/f"), ("HUGGINGFACE_HUB_CACHE", "/c")], "/c");
        check_cache(
            &[("HOME", "/h"), ("HF_HOME", " ")],
            "/h/.cache/huggingface/hub",
        );
        let moved = read(&[("HOME", "/h")]).unwrap().with_cache_dir("/m".into());
        assert_eq!(moved.cache_dir(), Path::new("/m"));
        assert_eq!(moved.own_dir(), Path::new("/m/crossgate"));
        let at_home = read(&[("HOME", "/h"), ("HF_HOME", "/f")]).unwrap();
        assert_eq!(at_home.own_dir(), Path::new("/h/.cache/crossgate"));
    }

    #[test]
    fn tokens() {
        let home = tempfile::tempdir().unwrap();
        let home_text = home.path().to_str().unwrap();
        let token = |pairs: &[(&str, &str)]| {
            let pairs = [&[("HF_HOME", home_text)], pairs].concat();
            read(&pairs).unwrap().token
        };
        assert_eq!(token(&[]), None);
        std::fs::write(home.path().join("token"), "from-file\n").unwrap();
        assert_eq!(token(&[]).as_deref(), Some("from-file"));
        assert_eq!(
            token(&[("HF_TOKEN", " direct ")]).as_deref(),
            Some("direct")
        );
        assert_eq!(token(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        let other = home.path().join("other");
        std::fs::write(&other, "from-other").unwrap();
        let path = other.to_str().unwrap();
        assert_eq!(
            token(&[("HF_TOKEN_PATH", path)]).as_deref(),
            Some("from-other")
        );
        let settings = read(&[("HF_TOKEN", "secret")]).unwrap();
        assert!(!format!("{settings:?}").contains("secret"));
    }

    #[track_caller]
    fn check_refused(name: &str, value: &str, want: &str) {
        let error = read(&[(name, value)]).unwrap_err();
        assert!(error.contains(name) && error.contains(want), "{error}");
    }

    #[test]
    fn values_out_of_bounds() {
        check_refused("HF_ENDPOINT", "huggingface.co", "https://host");
        check_refused("HF_ENDPOINT", "ftp://x", "https://host");
        check_refused("HF_ENDPOINT", "https://user:pw@x", "https://host");
        check_refused("HF_ENDPOINT", "https://", "https://host");
        check_refused("HF_HUB_OFFLINE", "maybe", "expected 1 or 0");
        check_refused("HF_HUB_DOWNLOAD_TIMEOUT", "0", "1 to 3600");
        check_refused("HF_HUB_ETAG_TIMEOUT", "9999", "1 to 3600");
        check_refused("HF_TOKEN", "a b", "visible ASCII");
    }

    #[test]
    fn endpoints_flags_and_proxies() {
        let pairs = [
            ("HF_ENDPOINT", "https://mirror.example/hf/"),
            ("HF_HUB_OFFLINE", "TRUE"),
            ("HTTPS_PROXY", "http://proxy:3128"),
            ("http_proxy", "http://other:3128"),
            ("NO_PROXY", "a, b"),
        ];
        let settings = read(&pairs).unwrap();
        assert_eq!(settings.endpoint, "https://mirror.example/hf");
        assert!(settings.is_offline());
        assert_eq!(settings.proxy.as_deref(), Some("http://proxy:3128"));
        assert_eq!(settings.no_proxy, ["a", "b"]);
        assert!(read(&[("TRANSFORMERS_OFFLINE", "1")]).unwrap().is_offline());
        let plain = read(&[("HF_ENDPOINT", "http://h"), ("HTTP_PROXY", "http://evil")]).unwrap();
        assert_eq!(plain.proxy, None);
    }
}
