//! How operators' commands reach a server that runs: by its port or its socket, with its key.

mod socket;

use crate::config::{Secret, value};
use clap::{Arg, ArgMatches};
use serde_json::Value;
use socket::ToSocket;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;
use ureq::http::Response;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::{Agent, Body};

/// Where operators are listened to unless told otherwise.
const PORT: &str = "127.0.0.1:9001";
/// How a place begins that is a socket's file.
const SOCKET: &str = "unix:";
/// What names a socket to a server names it to its operators, too, and so with the key: in a server's container
/// a command needs no flags.
const SOCKET_ENV: &str = "CROSSGATE_ADMIN_SOCKET";
const KEY_ENV: &str = "CROSSGATE_ADMIN_KEY";
const KEY_FILE_ENV: &str = "CROSSGATE_ADMIN_KEY_FILE";
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);

/// A server's admin listener, and what it wants to be shown.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Admin {
    place: Place,
    key: Option<Secret>,
}

#[derive(Clone, Debug, PartialEq)]
enum Place {
    /// Host and port.
    Port(String),
    /// A Unix socket's file.
    Socket(PathBuf),
}

pub(super) fn args() -> [Arg; 3] {
    let text = |name: &'static str, value: &'static str, help: String| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    [
        text(
            "admin",
            "PLACE",
            format!(
                "The server's admin listener: HOST:PORT, or unix:/PATH of its socket\n\
                 [default: {PORT}, or the socket of env: {SOCKET_ENV}]"
            ),
        ),
        text(
            "admin-key",
            "KEY",
            format!("The key that it wants to be shown\n[env: {KEY_ENV}]"),
        ),
        text(
            "admin-key-file",
            "FILE",
            format!("A file with the key\n[env: {KEY_FILE_ENV}]"),
        )
        .conflicts_with("admin-key"),
    ]
}

/// What was said; `env` stands for the environment.
///
/// # Errors
/// What is wrong with it. Never says a key.
pub(super) fn admin(
    matches: &ArgMatches,
    env: impl Fn(&str) -> Option<String>,
) -> Result<Admin, String> {
    let said = |name: &str| matches.get_one::<String>(name).cloned();
    // As for a server: set to nothing counts as not set.
    let env = |name: &str| env(name).filter(|text| !text.trim().is_empty());
    let place = match (said("admin"), env(SOCKET_ENV)) {
        (Some(place), _) => Place::parse(&place)?,
        (None, Some(path)) => Place::Socket(value::expand_home(path.trim())),
        (None, None) => Place::Port(PORT.to_owned()),
    };
    let flags = [
        ("--admin-key", said("admin-key")),
        ("--admin-key-file", said("admin-key-file")),
    ];
    let env = [(KEY_ENV, env(KEY_ENV)), (KEY_FILE_ENV, env(KEY_FILE_ENV))];
    let key = match (flags, env) {
        ([(name, Some(text)), _], _) | ([_, (_, None)], [(name, Some(text)), _]) => {
            Some(Secret::parse(&text).map_err(|why| format!("{name}: {why}"))?)
        }
        ([_, (name, Some(path))], _) | (_, [_, (name, Some(path))]) => {
            let read = Secret::read(&value::expand_home(path.trim()));
            Some(read.map_err(|why| format!("{name}: {why}"))?)
        }
        _ => None,
    };
    Ok(Admin { place, key })
}

// === impl Place ===

impl Place {
    fn parse(text: &str) -> Result<Self, String> {
        let Some(path) = text.strip_prefix(SOCKET) else {
            return Ok(Self::Port(text.to_owned()));
        };
        // As a URL, too: unix:///path.
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.is_empty() {
            return Err(format!("--admin {text}: expected HOST:PORT or unix:/PATH"));
        }
        Ok(Self::Socket(value::expand_home(path)))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(place) => f.write_str(place),
            Self::Socket(path) => write!(f, "{SOCKET}{}", path.display()),
        }
    }
}

// === impl Admin ===

impl Admin {
    /// Has the server do something; its answer may take its time.
    ///
    /// # Errors
    /// Why nothing was done: the server's reason, or that there is no answer.
    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Response<Body>, String> {
        let host = match &self.place {
            Place::Port(place) => place,
            // The file is where it goes. An address, so that the client has no name to look up.
            Place::Socket(_) => "127.0.0.1",
        };
        let mut request = self
            .agent()
            .post(format!("http://{host}{path}"))
            .content_type("application/json")
            .header("accept", "text/event-stream");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {}", key.reveal()));
        }
        let mut response = request.send(body.to_string()).map_err(|error| {
            format!(
                "no answer from {}: {error}; is the server running, and --admin its admin listener?",
                self.place
            )
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.body_mut().read_to_string().unwrap_or_default();
        let said: Option<Value> = serde_json::from_str(&text).ok();
        let message = said.and_then(|said| Some(said["message"].as_str()?.to_owned()));
        Err(match (status.as_u16(), message) {
            (401, _) => self.why_not_let_in(),
            (_, Some(message)) => message,
            (_, None) => format!("{} answered {status}: {text}", self.place),
        })
    }

    fn why_not_let_in(&self) -> String {
        let place = &self.place;
        let what = match &self.key {
            Some(_) => "is not the server's",
            None => "is missing",
        };
        format!(
            "{place} does not let you in: the admin key {what}; give the server's server.admin_key with {KEY_ENV}, \
             {KEY_FILE_ENV}, --admin-key-file or --admin-key"
        )
    }

    fn agent(&self) -> Agent {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIME_MAX))
            .timeout_recv_body(None)
            // A proxy of the environment is for the world outside, and would be told the key.
            .proxy(None)
            .build();
        match &self.place {
            Place::Port(_) => config.new_agent(),
            Place::Socket(path) => {
                let connector = ToSocket(path.clone());
                Agent::with_parts(config, connector, DefaultResolver::default())
            }
        }
    }
}
