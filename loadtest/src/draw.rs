//! Makes a workload of popular and unpopular pairs out of another: what a cache is tested with.
//!
//! Drawing whole lines (`--zipf`) hits whole requests or none. Here each request takes its own documents
//! by popularity, so that it hits partly, as users' requests do.

use std::io::Write;

use rand_pcg::Pcg64;
use rand_pcg::rand_core::SeedableRng;
use serde::Serialize;

use crate::Error;
use crate::arrivals::unit;
use crate::workload::Workload;

/// Documents in all drawn requests at most: a workload is held in memory, rendered.
pub const DRAWN_DOCUMENTS_MAX: usize = 16 << 20;

/// What to draw.
#[derive(Debug, Clone, Copy)]
pub struct Draw {
    pub requests: usize,
    /// Of each request, all different.
    pub documents: usize,
    /// The document at place k of the workload, counted from 1 through all its lines, comes with a weight
    /// of 1/k^exponent.
    pub zipf: f64,
    pub seed: u64,
}

#[derive(Serialize)]
struct Line<'a> {
    query: &'a str,
    documents: Vec<&'a str>,
}

/// Writes `draw.requests` lines: the workload's queries in turn, each with documents of the whole
/// workload. The same seed writes the same bytes.
pub fn draw(draw: &Draw, workload: &Workload, out: &mut impl Write) -> Result<(), Error> {
    let pool = pool(workload);
    draw.check(pool.len())?;
    let mut popularity = Popularity::new(pool.len(), draw.zipf, draw.seed);
    let queries = workload.requests.iter().map(|request| &request.query);
    for query in queries.cycle().take(draw.requests) {
        let places = popularity.draw(draw.documents);
        let line = Line {
            query,
            documents: places.into_iter().map(|place| pool[place]).collect(),
        };
        serde_json::to_writer(&mut *out, &line)
            .map_err(std::io::Error::from)
            .and_then(|()| writeln!(out))
            .map_err(|error| Error::Run(format!("the output: {error}")))?;
    }
    out.flush()
        .map_err(|error| Error::Run(format!("the output: {error}")))
}

/// The workload's documents, each once, in the order in which they first come.
fn pool(workload: &Workload) -> Vec<&str> {
    let mut seen = std::collections::HashSet::new();
    let documents = workload
        .requests
        .iter()
        .flat_map(|request| &request.documents);
    documents
        .map(String::as_str)
        .filter(|document| seen.insert(*document))
        .collect()
}

impl Draw {
    fn check(&self, pool: usize) -> Result<(), Error> {
        let usage = |reason: String| Err(Error::Usage(reason));
        if !(1..=pool).contains(&self.documents) {
            return usage(format!(
                "--documents {}: must be from 1 to {pool}, the workload's different documents",
                self.documents
            ));
        }
        let max = DRAWN_DOCUMENTS_MAX / self.documents;
        if !(1..=max).contains(&self.requests) {
            return usage(format!(
                "--requests {}: must be from 1 to {max} with {} documents each",
                self.requests, self.documents
            ));
        }
        if !(self.zipf >= 0.0 && self.zipf.is_finite()) {
            return usage("--zipf: must be a number of at least 0".into());
        }
        Ok(())
    }
}

/// Draws places without replacement, in proportion to their weights.
struct Popularity {
    /// 1 / weight of each place.
    patience: Vec<f64>,
    random: Pcg64,
}

impl Popularity {
    fn new(places: usize, zipf: f64, seed: u64) -> Self {
        Self {
            patience: (1..=places).map(|rank| (rank as f64).powf(zipf)).collect(),
            random: Pcg64::seed_from_u64(seed),
        }
    }

    /// `count` different places, at most as many as there are. Each place gets an exponential time whose
    /// rate is its weight; the first `count` to come are the draw (Efraimidis and Spirakis, 2006).
    fn draw(&mut self, count: usize) -> Vec<usize> {
        let mut times: Vec<(f64, usize)> = (0..)
            .zip(&self.patience)
            // A draw in [0, 1) makes the logarithm's argument at least 2^-53.
            .map(|(place, patience)| (-(1.0 - unit(&mut self.random)).ln() * patience, place))
            .collect();
        times.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        times.iter().take(count).map(|&(_, place)| place).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const SMALL: &str = r#"{"query": "p", "documents": ["a", "b", "c"]}
{"query": "q", "documents": ["d", "a"]}
"#;

    fn drawn(asked: Draw) -> Result<Workload, Error> {
        let small = Workload::parse(Path::new("w"), SMALL, None, None)?;
        let mut text = Vec::new();
        draw(&asked, &small, &mut text)?;
        let text = String::from_utf8(text).expect("JSON is UTF-8");
        Workload::parse(Path::new("drawn"), &text, None, None)
    }

    const ASKED: Draw = Draw {
        requests: 5,
        documents: 3,
        zipf: 1.0,
        seed: 1,
    };

    #[test]
    fn queries_come_in_turn_with_different_documents() {
        let requests = drawn(ASKED).expect("a workload").requests;
        let queries: Vec<&str> = requests.iter().map(|line| line.query.as_str()).collect();
        assert_eq!(queries, ["p", "q", "p", "q", "p"]);
        for request in &requests {
            let mut documents = request.documents.clone();
            documents.sort_unstable();
            documents.dedup();
            assert_eq!(documents.len(), 3, "{request:?}");
        }
        assert_eq!(requests, drawn(ASKED).expect("the same").requests);
        let other = drawn(Draw { seed: 2, ..ASKED }).expect("another");
        assert_ne!(requests, other.requests);
    }

    #[test]
    fn popularity_is_by_place() {
        let one = Draw {
            requests: 40_000,
            documents: 1,
            ..ASKED
        };
        let requests = drawn(one).expect("a workload").requests;
        let whole: f64 = (1..=4).map(|rank| 1.0 / f64::from(rank)).sum();
        for (rank, document) in (1..).zip(["a", "b", "c", "d"]) {
            let count = requests
                .iter()
                .filter(|line| line.documents == [document])
                .count();
            let (seen, wanted) = (count as f64 / 40_000.0, 1.0 / f64::from(rank) / whole);
            // Five standard deviations of a share near one half are 0.0125.
            assert!(
                (seen - wanted).abs() < 0.0125,
                "{document}: {seen}, not {wanted}"
            );
        }
    }

    #[test]
    fn what_cannot_be_drawn_is_refused_by_name() {
        let refused = |asked| drawn(asked).map(drop).map_err(|error| error.to_string());
        let many = Draw {
            documents: 5,
            ..ASKED
        };
        assert!(refused(many).is_err_and(|why| why.contains("--documents 5: must be from 1 to 4")));
        let none = Draw {
            requests: 0,
            ..ASKED
        };
        assert!(refused(none).is_err_and(|why| why.contains("--requests 0")));
        let steep = Draw {
            zipf: f64::NAN,
            ..ASKED
        };
        assert!(refused(steep).is_err_and(|why| why.contains("--zipf")));
    }
}
