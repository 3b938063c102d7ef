//! The server's own counters, read before and after a run from its Prometheus text.

use std::time::Duration;

use serde::Serialize;
use tokio::time;

use crate::Error;
use crate::client::{connections, read_body};

const ROWS: &str = "crossgate_rows_total";
const CACHE_ROWS: &str = "crossgate_cache_rows_total";
const PAGE_BYTES_MAX: usize = 16 << 20;
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(5);

/// Counter values at one moment, summed over labels. `None`: the page has no such counter.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Counters {
    pub rows: Option<f64>,
    pub cache_hits: Option<f64>,
    pub cache_misses: Option<f64>,
}

/// What the server counted during a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ServerCounts {
    pub rows: Option<u64>,
    pub cache: Option<CacheCounts>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CacheCounts {
    pub hits: u64,
    pub misses: u64,
}

impl CacheCounts {
    /// From 0 to 1; 0 when nothing was looked up.
    pub fn hit_rate(self) -> f64 {
        self.hits as f64 / (self.hits + self.misses).max(1) as f64
    }
}

impl Counters {
    pub fn parse(page: &str) -> Self {
        let mut counters = Self::default();
        for sample in page.lines().filter_map(sample) {
            let counter = match (sample.name, sample.label("outcome").as_deref()) {
                (ROWS, _) => &mut counters.rows,
                (CACHE_ROWS, Some("hit")) => &mut counters.cache_hits,
                (CACHE_ROWS, Some("miss")) => &mut counters.cache_misses,
                _ => continue,
            };
            *counter = Some(counter.unwrap_or(0.0) + sample.value);
        }
        counters
    }

    /// The growth since `before`. A counter that appeared in between started at 0.
    pub fn since(&self, before: &Self) -> Result<ServerCounts, String> {
        let growth = |after: Option<f64>, before: Option<f64>| {
            let Some(after) = after else { return Ok(None) };
            let grown = after - before.unwrap_or(0.0);
            if grown < 0.0 {
                Err("a counter fell: the server was restarted")
            } else {
                Ok(Some(grown as u64))
            }
        };
        let hits = growth(self.cache_hits, before.cache_hits)?;
        let misses = growth(self.cache_misses, before.cache_misses)?;
        let cache = (hits.is_some() || misses.is_some()).then(|| CacheCounts {
            hits: hits.unwrap_or(0),
            misses: misses.unwrap_or(0),
        });
        Ok(ServerCounts {
            rows: growth(self.rows, before.rows)?,
            cache,
        })
    }
}

/// Reads a metrics page.
pub struct Scraper {
    client: reqwest::Client,
    url: String,
}

impl Scraper {
    pub fn new(url: &str, api_key: Option<&str>) -> Result<Self, Error> {
        Ok(Self {
            client: connections(api_key)?,
            url: url.to_owned(),
        })
    }

    pub async fn read(&self) -> Result<Counters, String> {
        let reading = async {
            let response = self
                .client
                .get(&self.url)
                .send()
                .await
                .map_err(|error| error.to_string())?;
            let status = response.status();
            if !status.is_success() {
                return Err(format!("{}: {status}", self.url));
            }
            let page = read_body(response, PAGE_BYTES_MAX).await?;
            Ok(Counters::parse(&String::from_utf8_lossy(&page)))
        };
        time::timeout(SCRAPE_TIMEOUT, reading)
            .await
            .map_err(|_| format!("{}: no answer in time", self.url))?
    }
}

struct Sample<'a> {
    name: &'a str,
    /// Between the braces.
    labels: &'a str,
    value: f64,
}

impl Sample<'_> {
    /// The value of one label, unescaped.
    fn label(&self, wanted: &str) -> Option<String> {
        let mut rest = self.labels;
        loop {
            let (name, after) = rest.split_once("=\"")?;
            let end = closing_quote(after)?;
            if name.trim_start_matches([',', ' ']).trim_end() == wanted {
                return Some(
                    after[..end]
                        .replace("\\\"", "\"")
                        .replace("\\n", "\n")
                        .replace("\\\\", "\\"),
                );
            }
            rest = &after[end + 1..];
        }
    }
}

/// `name{labels} value [timestamp]`; comments and what is malformed give `None`.
fn sample(line: &str) -> Option<Sample<'_>> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    let name_end = line.find(|letter: char| letter == '{' || letter.is_whitespace())?;
    let (name, rest) = line.split_at(name_end);
    let (labels, values) = match rest.strip_prefix('{') {
        Some(inside) => {
            let end = closing_brace(inside)?;
            (&inside[..end], &inside[end + 1..])
        }
        None => ("", rest),
    };
    let value = values.split_whitespace().next()?.parse().ok()?;
    Some(Sample {
        name,
        labels,
        value,
    })
}

/// The first quote that no backslash escapes.
fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    })
}

/// The first closing brace outside quotes.
fn closing_brace(text: &str) -> Option<usize> {
    let mut quoted = false;
    let mut escaped = false;
    text.bytes().position(|byte| {
        let closes = byte == b'}' && !quoted;
        quoted ^= byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = r#"# HELP crossgate_rows_total Rows.
# TYPE crossgate_rows_total counter
crossgate_rows_total{model="a"} 10
crossgate_rows_total{model="b } \"c\"",device="cpu"} 5 1700000000
crossgate_rows_total_other 99
crossgate_cache_rows_total{model="a",outcome="hit"} 3
crossgate_cache_rows_total{ outcome="hit", model="b" } 1e1
crossgate_cache_rows_total{model="outcome=",outcome="miss"} 7
crossgate_cache_rows_total{model="a",outcome="other"} 100
crossgate_cache_rows_total{model="a",outcome="hit
"#;

    #[test]
    fn counters_are_summed_over_labels() {
        let wanted = Counters {
            rows: Some(15.0),
            cache_hits: Some(13.0),
            cache_misses: Some(7.0),
        };
        assert_eq!(Counters::parse(PAGE), wanted);
        assert_eq!(Counters::parse("up 1\n"), Counters::default());
    }

    #[test]
    fn a_run_counts_the_growth() {
        let at = |rows, cache_hits, cache_misses| Counters {
            rows,
            cache_hits,
            cache_misses,
        };
        let none = at(None, None, None);
        let no_cache = at(Some(4.0), None, None).since(&at(Some(1.0), None, None));
        assert_eq!(
            no_cache,
            Ok(ServerCounts {
                rows: Some(3),
                cache: None
            })
        );
        let first_hits = at(None, Some(3.0), Some(2.0)).since(&at(None, None, Some(1.0)));
        let cache = CacheCounts { hits: 3, misses: 1 };
        assert_eq!(
            first_hits,
            Ok(ServerCounts {
                rows: None,
                cache: Some(cache)
            })
        );
        assert!((cache.hit_rate() - 0.75).abs() < 1e-12);
        assert!(
            at(Some(1.0), None, None)
                .since(&at(Some(2.0), None, None))
                .is_err()
        );
        assert_eq!(
            none.since(&none),
            Ok(ServerCounts {
                rows: None,
                cache: None
            })
        );
    }
}
