//! Where the server listens, and to whom.

use super::Reader;
use crate::config::keys::Entries;
use crate::config::{ApiKey, Limits, Rate, Secret, Server, TlsFiles};

/// For `server.cors_origins`: any page, and no page.
const ANY_ORIGIN: &str = "*";
const NO_ORIGIN: &str = "none";

impl Reader<'_> {
    pub(super) fn server(&mut self) -> Server {
        let admin_key = self
            .has("server.admin_key")
            .then(|| Secret::parse(&self.text("server.admin_key")));
        let key_limits = self.key_limits();
        Server {
            host: self.text("server.host"),
            port: self.port("server.port"),
            grpc_port: self.port("server.grpc_port"),
            admin_host: self.text("server.admin_host"),
            admin_port: self.port("server.admin_port"),
            admin_socket: self.path("server.admin_socket"),
            // The form was checked when the value was read.
            admin_key: admin_key.and_then(Result::ok),
            admin_key_file: self.path("server.admin_key_file"),
            api_keys: self.api_keys("server.api_keys", key_limits),
            api_key_file: self.path("server.api_key_file"),
            key_limits,
            tls: self
                .path("server.tls_cert")
                .zip(self.path("server.tls_key"))
                .map(|(cert, key)| TlsFiles { cert, key }),
            socket: self.path("server.socket"),
            cors_origins: self.origins("server.cors_origins"),
            request_timeout: self.time("server.request_timeout"),
            drain_timeout: self.time("server.drain_timeout"),
            voyage: self.switch("server.voyage"),
        }
    }

    fn key_limits(&self) -> Limits {
        let number = |key: &str| self.has(key).then(|| self.number(key));
        let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let rate = number("keys.rate_max").map(|per_second| Rate {
            per_second: small(per_second),
            burst: small(number("keys.rate_burst").unwrap_or(per_second)),
        });
        Limits {
            rate,
            documents_per_minute: number("keys.documents_per_minute"),
            documents_per_day: number("keys.documents_per_day"),
        }
    }

    fn api_keys(&mut self, key: &str, limits: Limits) -> Vec<ApiKey> {
        let mut entries = Entries::new(limits, Vec::new());
        for (i, entry) in self.list(key).iter().enumerate() {
            if let Err(why) = entries.add(entry) {
                let said = self.raw.said(key);
                self.errors.push(format!("{said}: key {}: {why}", i + 1));
            }
        }
        entries.keys()
    }

    /// `None` for any.
    fn origins(&mut self, key: &str) -> Option<Vec<String>> {
        let origins = self.list(key);
        match origins.as_slice() {
            [one] if one == ANY_ORIGIN => return None,
            [one] if one == NO_ORIGIN => return Some(Vec::new()),
            _ => {}
        }
        if let Some(wrong) = origins.iter().find(|origin| !is_origin(origin)) {
            let said = self.raw.said(key);
            self.errors.push(format!(
                "{said}: {wrong:?} is no origin; expected SCHEME://HOST or SCHEME://HOST:PORT without a path, such as \
                 https://app.example, or {ANY_ORIGIN} alone for any, or {NO_ORIGIN} alone"
            ));
        }
        Some(origins)
    }
}

/// As browsers send it: a scheme and an authority, and nothing behind them.
fn is_origin(text: &str) -> bool {
    let Some((scheme, authority)) = text.split_once("://") else {
        return false;
    };
    let is_word = |c: u8| c.is_ascii_graphic() && !b"/?#@,*\"".contains(&c);
    !scheme.is_empty()
        && scheme
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || b"+-.".contains(&c))
        && !authority.is_empty()
        && authority.bytes().all(is_word)
}
