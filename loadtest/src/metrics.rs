//! The servers' own counters, read before and after a run from their Prometheus text.

use std::time::Duration;

use serde::Serialize;
use tokio::time;

use crate::Error;
use crate::client::{connections, read_body};

const ROWS: &str = "crossgate_rows_total";
const ROWS_UNWANTED: &str = "crossgate_rows_unwanted_total";
const CACHE_ROWS: &str = "crossgate_cache_rows_total";
const PAGE_BYTES_MAX: usize = 16 << 20;
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a row was to the cache, as the label `outcome` says it, in the order of `Counters::cache`.
const CACHE_OUTCOMES: [&str; 4] = ["hit", "hit_distributed", "coalesced", "miss"];

/// A server's counters at one moment, summed over labels. `None`: its page has no such counter.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Counters {
    pub rows: Option<f64>,
    pub rows_unwanted: Option<f64>,
    pub cache: [Option<f64>; CACHE_OUTCOMES.len()],
}

/// What the servers counted during a run, together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ServerCounts {
    /// Computed.
    pub rows: Option<u64>,
    /// Admitted, and dropped because nobody waited for them any more.
    pub rows_unwanted: Option<u64>,
    pub cache: Option<CacheCounts>,
}

/// Rows by what the cache did for them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CacheCounts {
    /// Answered by the server's own memory.
    pub hits: u64,
    /// Answered by the second level, which servers share.
    pub hits_distributed: u64,
    /// Joined an equal pair in flight.
    pub coalesced: u64,
    pub misses: u64,
}

impl CacheCounts {
    pub fn looked_up(self) -> u64 {
        self.not_computed() + self.misses
    }

    pub fn not_computed(self) -> u64 {
        self.hits + self.hits_distributed + self.coalesced
    }

    /// Hits of both levels, from 0 to 1; 0 when nothing was looked up. What was coalesced was
    /// computed, if only once.
    pub fn hit_rate(self) -> f64 {
        (self.hits + self.hits_distributed) as f64 / self.looked_up().max(1) as f64
    }
}

impl Counters {
    pub fn parse(page: &str) -> Self {
        let mut counters = Self::default();
        for sample in page.lines().filter_map(sample) {
            let counter = match sample.name {
                ROWS => &mut counters.rows,
                ROWS_UNWANTED => &mut counters.rows_unwanted,
                CACHE_ROWS => {
                    let outcome = sample.label("outcome");
                    let known = CACHE_OUTCOMES
                        .iter()
                        .position(|known| Some(*known) == outcome.as_deref());
                    let Some(place) = known else { continue };
                    &mut counters.cache[place]
                }
                _ => continue,
            };
            *counter = Some(counter.unwrap_or(0.0) + sample.value);
        }
        counters
    }

    /// The growth since `before`. A counter that appeared in between started at 0.
    fn since(&self, before: &Self) -> Result<ServerCounts, String> {
        let growth = |after: Option<f64>, before: Option<f64>| {
            let Some(after) = after else { return Ok(None) };
            let grown = after - before.unwrap_or(0.0);
            if grown < 0.0 {
                Err("a counter fell: the server was restarted")
            } else {
                Ok(Some(grown as u64))
            }
        };
        let mut cache = [None; CACHE_OUTCOMES.len()];
        for (place, grown) in cache.iter_mut().enumerate() {
            *grown = growth(self.cache[place], before.cache[place])?;
        }
        let counted = cache.iter().any(Option::is_some);
        let [hits, hits_distributed, coalesced, misses] = cache.map(Option::unwrap_or_default);
        Ok(ServerCounts {
            rows: growth(self.rows, before.rows)?,
            rows_unwanted: growth(self.rows_unwanted, before.rows_unwanted)?,
            cache: counted.then_some(CacheCounts {
                hits,
                hits_distributed,
                coalesced,
                misses,
            }),
        })
    }
}

/// What the servers counted together between two readings, each with a page for each server.
pub fn growth(before: &[Counters], after: &[Counters]) -> Result<ServerCounts, String> {
    let mut total = ServerCounts::default();
    for (before, after) in before.iter().zip(after) {
        total.add(&after.since(before)?);
    }
    Ok(total)
}

impl ServerCounts {
    fn add(&mut self, other: &Self) {
        let both = |a: Option<u64>, b: Option<u64>| {
            a.or(b)
                .map(|_| a.unwrap_or_default() + b.unwrap_or_default())
        };
        self.rows = both(self.rows, other.rows);
        self.rows_unwanted = both(self.rows_unwanted, other.rows_unwanted);
        if let Some(more) = other.cache {
            let cache = self.cache.get_or_insert_default();
            cache.hits += more.hits;
            cache.hits_distributed += more.hits_distributed;
            cache.coalesced += more.coalesced;
            cache.misses += more.misses;
        }
    }
}

/// Reads the metrics pages of servers.
pub struct Scraper {
    client: reqwest::Client,
    urls: Vec<String>,
}

impl Scraper {
    pub fn new(urls: &[String], api_key: Option<&str>) -> Result<Self, Error> {
        Ok(Self {
            client: connections(api_key)?,
            urls: urls.to_vec(),
        })
    }

    /// The counters of each server; an error where there is none to ask.
    pub async fn read(&self) -> Result<Vec<Counters>, String> {
        if self.urls.is_empty() {
            return Err("no --metrics-url".into());
        }
        let mut counters = Vec::with_capacity(self.urls.len());
        for url in &self.urls {
            let read = time::timeout(SCRAPE_TIMEOUT, self.page(url)).await;
            let page = read.map_err(|_| format!("{url}: no answer in time"))??;
            counters.push(Counters::parse(&page));
        }
        Ok(counters)
    }

    async fn page(&self, url: &str) -> Result<String, String> {
        let sent = self.client.get(url).send().await;
        let response = sent.map_err(|error| error.to_string())?;
        let status = response.status();
        if !status.is_success() {
            return Err(format!("{url}: {status}"));
        }
        let page = read_body(response, PAGE_BYTES_MAX).await?;
        Ok(String::from_utf8_lossy(&page).into_owned())
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
crossgate_cache_rows_total{model="a",outcome="hit_distributed"} 2
crossgate_cache_rows_total{model="outcome=",outcome="miss"} 7
crossgate_cache_rows_total{model="a",outcome="other"} 100
crossgate_cache_rows_total{model="a",outcome="hit
"#;

    #[test]
    fn counters_are_summed_over_labels() {
        let wanted = Counters {
            rows: Some(15.0),
            rows_unwanted: None,
            cache: [Some(13.0), Some(2.0), None, Some(7.0)],
        };
        assert_eq!(Counters::parse(PAGE), wanted);
        assert_eq!(Counters::parse("up 1\n"), Counters::default());
    }

    fn at(rows: Option<f64>, cache: [Option<f64>; 4]) -> Counters {
        Counters {
            rows,
            rows_unwanted: rows.map(|rows| rows / 2.0),
            cache,
        }
    }

    #[test]
    fn a_run_counts_the_growth() {
        let no_cache = growth(&[at(Some(2.0), [None; 4])], &[at(Some(6.0), [None; 4])]);
        let wanted = ServerCounts {
            rows: Some(4),
            rows_unwanted: Some(2),
            cache: None,
        };
        assert_eq!(no_cache, Ok(wanted));

        let before = at(None, [None, Some(1.0), None, Some(1.0)]);
        let after = at(None, [Some(3.0), Some(2.0), Some(2.0), Some(3.0)]);
        let cache = CacheCounts {
            hits: 3,
            hits_distributed: 1,
            coalesced: 2,
            misses: 2,
        };
        let first_hits = growth(&[before], &[after]).map(|counts| counts.cache);
        assert_eq!(first_hits, Ok(Some(cache)));
        assert_eq!((cache.looked_up(), cache.not_computed()), (8, 6));
        assert!((cache.hit_rate() - 0.5).abs() < 1e-12);
    }

    #[test]
    fn servers_are_summed() {
        let first = [
            at(Some(2.0), [None; 4]),
            at(Some(4.0), [Some(1.0), None, None, None]),
        ];
        let second = [
            at(Some(4.0), [None; 4]),
            at(Some(10.0), [Some(6.0), None, None, None]),
        ];
        let total = growth(&first, &second).expect("counters that rise");
        assert_eq!((total.rows, total.rows_unwanted), (Some(8), Some(4)));
        assert_eq!(total.cache.map(|cache| cache.hits), Some(5));
        // One that fell is seen, however much the other rose.
        let restarted = [at(Some(100.0), [None; 4]), at(Some(1.0), [None; 4])];
        assert!(growth(&first, &restarted).is_err());
    }
}
