//! Requests to the hub: what is asked, what an answer means, and when asking again makes sense.

use std::io::Read;
use std::path::Path;
use std::thread;
use std::time::Duration;

use ureq::http::{HeaderMap, Request, Response, StatusCode};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, Proxy};

use crate::model::weights::read_bounded;
use crate::model::{Cause, ModelError};

use super::answers::{
    Listing, Metadata, header, origin, parse_listing, parse_metadata, pause, range_start, target,
};
use super::names::url_path;
use super::{Settings, noise};

/// The list of that many names, with what else the hub says of a commit.
const LISTING_BYTES_MAX: u64 = 16 << 20;
const REDIRECTS_MAX: usize = 5;
/// A bundle of all public authorities has 200 kB.
const CA_BYTES_MAX: u64 = 4 << 20;
/// Where systems keep that bundle: Debian and Alpine; Fedora and Red Hat; openSUSE; macOS.
const CA_FILES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Attempts to list a commit when an older one is at hand: 2 s, not 20, before serving that.
const ATTEMPTS_WITH_FALLBACK: u32 = 2;

/// Speaks for one repository.
pub(super) struct Client<'a> {
    agent: Agent,
    settings: &'a Settings,
    repo: &'a str,
    origin: String,
}

/// A body that starts at byte `at`: where it was asked to, or at 0.
pub(super) struct Content {
    pub at: u64,
    pub body: Box<dyn Read>,
}

/// Why an attempt failed, and whether another one may succeed.
#[derive(Debug)]
pub(super) enum Failure {
    Transient {
        problem: String,
        retry_after: Option<Duration>,
    },
    Final(ModelError),
}

// === impl Client ===

impl<'a> Client<'a> {
    pub(super) fn new(settings: &'a Settings, repo: &'a str) -> Result<Self, ModelError> {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            // Followed here, so that the token stays with the hub and large files' names are seen.
            .max_redirects(0)
            .timeout_connect(Some(settings.connect_timeout))
            .timeout_recv_response(Some(settings.read_timeout))
            .timeout_per_read(Some(settings.read_timeout))
            .user_agent(concat!("crossgate/", env!("CARGO_PKG_VERSION")))
            // Sizes, ranges and hashes speak of the bytes as they are stored.
            .accept_encoding("identity")
            .proxy(proxy(settings)?);
        if let Some(roots) = roots(settings)? {
            config = config.tls_config(TlsConfig::builder().root_certs(roots).build());
        }
        // Checked when the settings were read; an empty origin would only keep the token back.
        let origin = origin(&settings.endpoint).unwrap_or_default();
        Ok(Self {
            agent: config.build().new_agent(),
            settings,
            repo,
            origin,
        })
    }

    /// The commit of a revision and its files.
    pub(super) fn listing(
        &self,
        revision: &str,
        has_fallback: bool,
    ) -> Result<Listing, ModelError> {
        let url = format!(
            "{}/api/models/{}/revision/{}",
            self.settings.endpoint,
            url_path(self.repo, true),
            url_path(revision, false)
        );
        let what = format!("{} at {revision}", self.repo);
        let attempts = self.settings.attempts;
        let attempts = if has_fallback {
            attempts.min(ATTEMPTS_WITH_FALLBACK)
        } else {
            attempts
        };
        let bytes = self.retry(attempts, &what, || {
            let mut response = self.follow("GET", &url, 0)?;
            if response.status() != StatusCode::OK {
                return Err(self.refused(response.status(), response.headers(), &what));
            }
            let body = response.body_mut().with_config().limit(LISTING_BYTES_MAX);
            body.read_to_vec().map_err(|error| failure(&error))
        })?;
        parse_listing(&bytes).map_err(|why| self.nonsense(&what, &why))
    }

    /// What a file of a commit is, without its content.
    pub(super) fn metadata(&self, commit: &str, name: &str) -> Result<Metadata, ModelError> {
        let what = format!("{name} of {}", self.repo);
        self.retry(self.settings.attempts, &what, || {
            let response = self.follow("HEAD", &self.file_url(commit, name), 0)?;
            let status = response.status();
            if status != StatusCode::OK && !status.is_redirection() {
                return Err(self.refused(status, response.headers(), &what));
            }
            parse_metadata(response.headers(), status.is_redirection())
                .map_err(|why| Failure::Final(self.nonsense(&what, &why)))
        })
    }

    /// A file's content from byte `from` on, or from the start if the server cannot do that.
    pub(super) fn content(&self, commit: &str, name: &str, from: u64) -> Result<Content, Failure> {
        let response = self.follow("GET", &self.file_url(commit, name), from)?;
        let (status, headers) = (response.status(), response.headers());
        let resumes = status == StatusCode::PARTIAL_CONTENT
            && header(headers, "content-range").and_then(range_start) == Some(from);
        match status {
            StatusCode::OK => Ok(Content {
                at: 0,
                body: Box::new(response.into_body().into_reader()),
            }),
            _ if 0 < from && resumes => Ok(Content {
                at: from,
                body: Box::new(response.into_body().into_reader()),
            }),
            // Not the range that was asked for: what is on disk is of no use.
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if 0 < from => {
                self.content(commit, name, 0)
            }
            _ => Err(self.refused(status, headers, &format!("{name} of {}", self.repo))),
        }
    }

    /// Waits before the attempt after the `n_failures`th failure.
    pub(super) fn wait(&self, n_failures: u32, retry_after: Option<Duration>) {
        thread::sleep(pause(
            n_failures,
            self.settings.retry_pause,
            retry_after,
            noise(),
        ));
    }

    pub(super) fn attempts(&self) -> u32 {
        self.settings.attempts
    }

    /// The error after the last attempt.
    pub(super) fn unreachable(&self, what: &str, problem: &str) -> ModelError {
        ModelError::new(
            Cause::Unreachable,
            format!(
                "cannot fetch {what} from {}: {problem}",
                self.settings.endpoint
            ),
            "check the network, HF_ENDPOINT and the proxy; HF_HUB_OFFLINE=1 serves what is \
             cached; a folder or `starter` needs no network",
        )
    }

    fn retry<T>(
        &self,
        attempts: u32,
        what: &str,
        mut act: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, ModelError> {
        let mut n_failures = 0;
        loop {
            match act() {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Transient {
                    problem,
                    retry_after,
                }) => {
                    n_failures += 1;
                    if attempts <= n_failures {
                        return Err(self.unreachable(what, &problem));
                    }
                    tracing::debug!(what, problem, n_failures, "asking the hub again");
                    self.wait(n_failures, retry_after);
                }
            }
        }
    }

    fn file_url(&self, commit: &str, name: &str) -> String {
        let (repo, name) = (url_path(self.repo, true), url_path(name, true));
        format!("{}/{repo}/resolve/{commit}/{name}", self.settings.endpoint)
    }

    /// Follows redirects. A HEAD stops where the hub names a large file's hash: the storage
    /// behind that redirect knows another etag.
    fn follow(&self, method: &str, url: &str, from: u64) -> Result<Response<Body>, Failure> {
        let mut url = url.to_owned();
        for _ in 0..=REDIRECTS_MAX {
            let response = self.ask(method, &url, from)?;
            let headers = response.headers();
            let Some(location) = header(headers, "location") else {
                return Ok(response);
            };
            let is_named = method == "HEAD" && headers.contains_key("x-linked-etag");
            if is_named || !response.status().is_redirection() {
                return Ok(response);
            }
            url =
                target(&url, location).map_err(|why| Failure::Final(self.nonsense(&url, &why)))?;
        }
        Err(Failure::Final(self.nonsense(
            &url,
            &format!("more than {REDIRECTS_MAX} redirects"),
        )))
    }

    fn ask(&self, method: &str, url: &str, from: u64) -> Result<Response<Body>, Failure> {
        let mut request = Request::builder().method(method).uri(url);
        if 0 < from {
            request = request.header("range", format!("bytes={from}-"));
        }
        // Whoever else serves the bytes must not learn the token.
        if let Some(token) = &self.settings.token
            && origin(url).as_ref() == Some(&self.origin)
        {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request
            .body(())
            .map_err(|error| Failure::Final(self.nonsense(url, &error.to_string())))?;
        self.agent.run(request).map_err(|error| failure(&error))
    }

    /// What a status means that is no success.
    fn refused(&self, status: StatusCode, headers: &HeaderMap, what: &str) -> Failure {
        let (repo, endpoint) = (self.repo, &self.settings.endpoint);
        let said = header(headers, "x-error-message").map(|said| format!(": {said}"));
        let said = said.unwrap_or_default();
        let status = status.as_u16();
        match status {
            401 | 403 => Failure::Final(ModelError::new(
                Cause::Denied,
                format!(
                    "{endpoint} does not give {what} (HTTP {status}{said}): \
                     it is private, gated, or not there"
                ),
                format!(
                    "accept the terms at {endpoint}/{repo} if it is gated, and set HF_TOKEN to \
                     {} token that may read it",
                    if self.settings.token.is_some() {
                        "another"
                    } else {
                        "a"
                    }
                ),
            )),
            404 => {
                let missing = match header(headers, "x-error-code") {
                    Some("RevisionNotFound") => "no such revision",
                    Some("RepoNotFound") => "no such repository",
                    _ => "no such repository, revision or file",
                };
                Failure::Final(ModelError::new(
                    Cause::NotFound,
                    format!("{endpoint} does not have {what}: {missing}{said}"),
                    "check the spelling; a private repository needs HF_TOKEN",
                ))
            }
            408 | 425 | 429 | 500..=599 => Failure::Transient {
                problem: format!("HTTP {status}{said}"),
                retry_after: header(headers, "retry-after")
                    .and_then(|text| text.trim().parse().ok())
                    .map(Duration::from_secs),
            },
            _ => Failure::Final(self.nonsense(what, &format!("HTTP {status}{said}"))),
        }
    }

    /// An answer that the protocol does not have.
    fn nonsense(&self, what: &str, why: &str) -> ModelError {
        ModelError::new(
            Cause::Unreachable,
            format!(
                "unexpected answer for {what} from {}: {why}",
                self.settings.endpoint
            ),
            "check that HF_ENDPOINT and the proxy lead to a Hugging Face Hub",
        )
    }
}

fn proxy(settings: &Settings) -> Result<Option<Proxy>, ModelError> {
    let Some(url) = &settings.proxy else {
        return Ok(None);
    };
    // Without the URL: it may hold a password.
    let invalid = |error: ureq::Error| {
        ModelError::new(
            Cause::Unreachable,
            format!("the proxy in HTTPS_PROXY, http_proxy or ALL_PROXY is unusable: {error}"),
            "write it as http://host:port",
        )
    };
    let plain = Proxy::new(url).map_err(invalid)?;
    let mut builder = Proxy::builder(plain.protocol())
        .host(plain.host())
        .port(plain.port());
    if let Some(username) = plain.username() {
        builder = builder.username(username);
    }
    if let Some(password) = plain.password() {
        builder = builder.password(password);
    }
    for host in &settings.no_proxy {
        builder = builder.no_proxy(host);
    }
    builder.build().map(Some).map_err(invalid)
}

/// The file that the user named; else the system's, where a company adds its own authority; else
/// none, which means the ones built in, so that an image without any file can fetch too.
fn roots(settings: &Settings) -> Result<Option<RootCerts>, ModelError> {
    if let Some(path) = &settings.ca_file {
        let found = certificates(path)?;
        if found.is_empty() {
            return Err(ModelError::new(
                Cause::Unreachable,
                format!("{} holds no certificate in PEM form", path.display()),
                "correct SSL_CERT_FILE or REQUESTS_CA_BUNDLE, or unset it",
            ));
        }
        return Ok(Some(RootCerts::new_with_certs(&found)));
    }
    let system = CA_FILES
        .iter()
        .filter_map(|path| certificates(Path::new(path)).ok());
    Ok(system
        .filter(|found| !found.is_empty())
        .map(RootCerts::from)
        .next())
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>, ModelError> {
    let bytes = read_bounded(path, CA_BYTES_MAX)?;
    let certificates = parse_pem(&bytes).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    Ok(certificates.collect())
}

/// Which of the client's errors may pass by themselves.
fn failure(error: &ureq::Error) -> Failure {
    use ureq::Error as E;
    let problem = error.to_string();
    match error {
        // TLS reports a certificate that it does not trust this way; it will not do so later.
        E::Io(inner) if inner.kind() == std::io::ErrorKind::InvalidData => unusable(&problem),
        E::Io(_)
        | E::Timeout(_)
        | E::HostNotFound
        | E::ConnectionFailed
        | E::ConnectProxyFailed(_)
        | E::Protocol(_) => Failure::Transient {
            problem,
            retry_after: None,
        },
        _ => unusable(&problem),
    }
}

fn unusable(problem: &str) -> Failure {
    Failure::Final(ModelError::new(
        Cause::Unreachable,
        format!("cannot speak to the hub: {problem}"),
        "check HF_ENDPOINT and the proxy; set SSL_CERT_FILE if a company's proxy opens TLS",
    ))
}
