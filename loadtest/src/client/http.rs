//! HTTP: bodies in three dialects, rendered once, and the three answers read back.

use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::header::{
    AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
};
use reqwest::{Method, StatusCode, Url};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::time;

use super::{ANSWER_BYTES_MAX, Exchange, Reply, Status, chain};
use crate::Error;
use crate::answers::{Entry, Scores, Sorting};
use crate::plan::{Dialect, Target};
use crate::progress::milliseconds;
use crate::workload::{Request, Workload};

/// Of a refusal's body, this much is kept to be shown.
const SHOWN_BYTES: usize = 300;
/// The client's own deadline, in milliseconds.
const TIMEOUT_MS: HeaderName = HeaderName::from_static("x-request-timeout-ms");

pub struct HttpClient {
    client: reqwest::Client,
    url: Url,
    dialect: Dialect,
    /// One for each request of the workload.
    bodies: Vec<Bytes>,
    deadline_ms: Option<HeaderValue>,
}

impl HttpClient {
    pub(super) fn new(
        url: &str,
        dialect: Dialect,
        target: &Target,
        workload: &Workload,
    ) -> Result<Self, Error> {
        let model = target.model.as_deref();
        let bodies = workload
            .requests
            .iter()
            .map(|request| render(dialect, request, model, target.raw_scores))
            .collect::<Result<_, _>>()?;
        let client = connections(target.api_key.as_deref())?;
        Ok(Self {
            client,
            url: route(url, dialect)?,
            dialect,
            bodies,
            deadline_ms: target
                .deadline
                .map(|deadline| milliseconds(deadline).into()),
        })
    }

    /// Whether anybody listens: said now, and not by every request of a warm-up.
    pub(super) async fn reach(&self, timeout: Duration) -> Result<(), Error> {
        let host = self.url.host_str().unwrap_or_default();
        let port = self.url.port_or_known_default().unwrap_or_default();
        let address = format!("{host}:{port}");
        let why = match time::timeout(timeout, TcpStream::connect(&address)).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no connection in --timeout".to_owned(),
        };
        Err(Error::Run(format!(
            "{address}: {why}; does the server run there?"
        )))
    }

    pub(super) fn prepare(&self, line: usize) -> reqwest::Request {
        let mut request = reqwest::Request::new(Method::POST, self.url.clone());
        request
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(deadline_ms) = &self.deadline_ms {
            request
                .headers_mut()
                .insert(TIMEOUT_MS, deadline_ms.clone());
        }
        *request.body_mut() = Some(self.bodies[line].clone().into());
        request
    }

    pub(super) async fn send(&self, request: reqwest::Request) -> Reply {
        let response = match self.client.execute(request).await {
            Ok(response) => response,
            Err(error) => return Reply::now(Exchange::Broken(chain(&error))),
        };
        let status = response.status();
        let retry_after = response.headers().contains_key(RETRY_AFTER);
        let body = read_body(response, ANSWER_BYTES_MAX).await;
        let done = Instant::now();
        let exchange = match body {
            Ok(body) if status.is_success() => read_scores(self.dialect, &body),
            Ok(body) => Exchange::Status(classify(status, retry_after), shown(&body)),
            Err(reason) => Exchange::Broken(reason),
        };
        Reply { done, exchange }
    }
}

/// A pool of keep-alive connections that neither retries nor follows redirects.
pub(crate) fn connections(api_key: Option<&str>) -> Result<reqwest::Client, Error> {
    let mut headers = HeaderMap::new();
    if let Some(key) = api_key {
        let mut value = HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| {
            Error::Usage("--api-key: has characters that no header can carry".into())
        })?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    reqwest::Client::builder()
        .default_headers(headers)
        .user_agent(concat!("loadtest/", env!("CARGO_PKG_VERSION")))
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .build()
        .map_err(|error| Error::Run(chain(&error)))
}

/// `GET /metrics` of the server behind `url`.
pub fn metrics_url(url: &str) -> Result<String, Error> {
    let mut url = parse_url(url)?;
    url.set_path("/metrics");
    url.set_query(None);
    Ok(url.into())
}

/// The dialect's own path, unless the user gave one.
fn route(url: &str, dialect: Dialect) -> Result<Url, Error> {
    let mut url = parse_url(url)?;
    if url.path() == "/" {
        url.set_path(match dialect {
            Dialect::Rerank => "/v1/rerank",
            Dialect::Tei => "/rerank",
            Dialect::Score => "/v1/score",
        });
    }
    Ok(url)
}

fn parse_url(text: &str) -> Result<Url, Error> {
    let url = Url::parse(text).map_err(|error| Error::Usage(format!("{text}: {error}")))?;
    if url.scheme() != "http" || !url.has_host() {
        return Err(Error::Usage(format!(
            "{text}: must be http://HOST:PORT (there is no TLS here)"
        )));
    }
    Ok(url)
}

#[derive(Serialize)]
#[serde(untagged)]
enum Body<'a> {
    Rerank {
        #[serde(skip_serializing_if = "Option::is_none")]
        model: Option<&'a str>,
        query: &'a str,
        documents: &'a [String],
        #[serde(skip_serializing_if = "is_false")]
        raw_scores: bool,
    },
    Tei {
        query: &'a str,
        texts: &'a [String],
        raw_scores: bool,
        truncate: bool,
    },
    Score {
        #[serde(skip_serializing_if = "Option::is_none")]
        model: Option<&'a str>,
        text_1: &'a str,
        text_2: &'a [String],
        #[serde(skip_serializing_if = "is_true")]
        use_activation: bool,
    },
}

fn render(
    dialect: Dialect,
    request: &Request,
    model: Option<&str>,
    raw_scores: bool,
) -> Result<Bytes, Error> {
    let (query, documents) = (request.query.as_str(), request.documents.as_slice());
    let body = match dialect {
        Dialect::Rerank => Body::Rerank {
            model,
            query,
            documents,
            raw_scores,
        },
        // TEI refuses texts that are too long unless told to cut them, which the others do by themselves.
        Dialect::Tei => Body::Tei {
            query,
            texts: documents,
            raw_scores,
            truncate: true,
        },
        Dialect::Score => Body::Score {
            model,
            text_1: query,
            text_2: documents,
            use_activation: !raw_scores,
        },
    };
    let rendered = serde_json::to_vec(&body).map_err(|error| Error::Run(error.to_string()))?;
    Ok(rendered.into())
}

#[derive(Deserialize)]
struct RerankAnswer {
    results: Vec<RawEntry>,
}

#[derive(Deserialize)]
struct ScoreAnswer {
    data: Vec<RawEntry>,
}

#[derive(Deserialize)]
struct RawEntry {
    index: u64,
    /// `null` is how JSON libraries write NaN.
    #[serde(alias = "relevance_score")]
    score: Option<f32>,
}

fn read_scores(dialect: Dialect, body: &[u8]) -> Exchange {
    let read = match dialect {
        Dialect::Rerank => serde_json::from_slice(body)
            .map(|answer: RerankAnswer| (answer.results, Sorting::ByScore)),
        Dialect::Tei => serde_json::from_slice(body).map(|entries| (entries, Sorting::ByScore)),
        Dialect::Score => {
            serde_json::from_slice(body).map(|answer: ScoreAnswer| (answer.data, Sorting::ByIndex))
        }
    };
    match read {
        Ok((entries, sorting)) => Exchange::Scores(Scores {
            entries: entries.iter().map(entry).collect(),
            sorting,
        }),
        Err(error) => Exchange::Unreadable(format!("{error} in {}", shown(body))),
    }
}

fn entry(raw: &RawEntry) -> Entry {
    Entry {
        index: raw.index,
        score: raw.score.unwrap_or(f32::NAN),
    }
}

fn classify(status: StatusCode, retry_after: bool) -> Status {
    match status {
        StatusCode::TOO_MANY_REQUESTS => Status::TooMany { retry_after },
        StatusCode::SERVICE_UNAVAILABLE => Status::Unavailable,
        StatusCode::GATEWAY_TIMEOUT => Status::DeadlineExceeded,
        other => Status::Other(other.as_u16().to_string()),
    }
}

/// The whole body, or why it could not be read.
pub(crate) async fn read_body(
    mut response: reqwest::Response,
    bytes_max: usize,
) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| chain(&error))? {
        if body.len() + chunk.len() > bytes_max {
            return Err(format!("an answer of more than {bytes_max} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn shown(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(SHOWN_BYTES)]).into_owned()
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_true(value: &bool) -> bool {
    *value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_body(dialect: Dialect, model: Option<&str>, raw_scores: bool, wanted: &str) {
        let request = Request {
            line: 1,
            query: "q".into(),
            documents: vec!["a".into(), "b".into()],
            expected: None,
        };
        let body = render(dialect, &request, model, raw_scores).expect("strings always render");
        assert_eq!(body, wanted);
    }

    #[test]
    fn bodies_are_the_dialects_own() {
        check_body(
            Dialect::Rerank,
            None,
            false,
            r#"{"query":"q","documents":["a","b"]}"#,
        );
        check_body(
            Dialect::Rerank,
            Some("m"),
            true,
            r#"{"model":"m","query":"q","documents":["a","b"],"raw_scores":true}"#,
        );
        check_body(
            Dialect::Tei,
            Some("m"),
            false,
            r#"{"query":"q","texts":["a","b"],"raw_scores":false,"truncate":true}"#,
        );
        check_body(
            Dialect::Score,
            None,
            false,
            r#"{"text_1":"q","text_2":["a","b"]}"#,
        );
        check_body(
            Dialect::Score,
            Some("m"),
            true,
            r#"{"model":"m","text_1":"q","text_2":["a","b"],"use_activation":false}"#,
        );
    }

    #[test]
    fn a_path_in_the_url_is_kept() {
        let path = |url, dialect| {
            route(url, dialect)
                .map(|url| url.path().to_owned())
                .map_err(|error| error.to_string())
        };
        assert_eq!(
            path("http://h:1", Dialect::Rerank).as_deref(),
            Ok("/v1/rerank")
        );
        assert_eq!(path("http://h:1/", Dialect::Tei).as_deref(), Ok("/rerank"));
        assert_eq!(
            path("http://h:1/v2/rerank", Dialect::Rerank).as_deref(),
            Ok("/v2/rerank")
        );
        assert!(path("https://h", Dialect::Rerank).is_err_and(|error| error.contains("no TLS")));
        assert!(path("h:1", Dialect::Rerank).is_err());
        assert_eq!(
            metrics_url("http://h:1/v2/rerank?x=1").ok().as_deref(),
            Some("http://h:1/metrics")
        );
    }
}
