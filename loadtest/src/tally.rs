//! Counts and latencies of one phase.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::client::Status;
use crate::verdict::Verdict;

/// Faults of one kind that are described, not only counted. By kind, so that a flood of one does not
/// hide the first of another.
const EXAMPLES_PER_KIND_MAX: usize = 4;
/// Latencies beyond it are recorded as it.
const LATENCY_US_MAX: u64 = 3_600_000_000;
/// Three digits: a latency is off by a thousandth at most.
const LATENCY_DIGITS: u8 = 3;

/// Where requests ended. Each that was sent is in exactly one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Outcomes {
    /// One good score for each document.
    pub ok: u64,
    pub too_many_with_retry_after: u64,
    pub too_many_without_retry_after: u64,
    /// 503, UNAVAILABLE.
    pub unavailable: u64,
    /// 504, DEADLINE_EXCEEDED.
    pub deadline_exceeded: u64,
    /// By status code or gRPC code name.
    pub other_status: BTreeMap<String, u64>,
    pub wrong_answer: u64,
    pub wrong_score: u64,
    pub timed_out: u64,
    pub transport_error: u64,
    /// Abandoned by the client, as --hang-up asked for: neither answered nor lost.
    pub hung_up: u64,
}

impl Outcomes {
    pub fn refused(&self) -> u64 {
        self.too_many_with_retry_after + self.too_many_without_retry_after + self.unavailable
    }

    pub fn other(&self) -> u64 {
        self.other_status.values().sum()
    }

    /// Everything that came back with a status, whatever it was.
    pub fn answered(&self) -> u64 {
        self.ok
            + self.refused()
            + self.deadline_exceeded
            + self.other()
            + self.wrong_answer
            + self.wrong_score
    }
}

pub struct Tally {
    deadline: Option<Duration>,
    pub sent: u64,
    /// Arrivals of an open loop that found too many requests in flight.
    pub not_sent: u64,
    pub outcomes: Outcomes,
    /// Documents of the answers that are ok.
    pub pairs: u64,
    /// Answers that are ok and came after the deadline, and their documents.
    pub late: u64,
    pub late_pairs: u64,
    /// From the intended start to the answer's last byte, of answers that are ok.
    pub latency_us: Histogram<u64>,
    /// The same of 429 and 503.
    pub refused_latency_us: Histogram<u64>,
    /// How late this side was: from the intended start to the moment of sending.
    pub start_delay_us: Histogram<u64>,
    pub scores_compared: u64,
    pub largest_difference: f32,
    /// The first faults of each kind, each naming its request.
    pub examples: Vec<String>,
    /// How many of each kind are among them.
    example_counts: BTreeMap<&'static str, usize>,
}

impl Tally {
    /// `deadline` counts from the intended start.
    pub fn new(deadline: Option<Duration>) -> Self {
        Self {
            deadline,
            sent: 0,
            not_sent: 0,
            outcomes: Outcomes::default(),
            pairs: 0,
            late: 0,
            late_pairs: 0,
            latency_us: histogram(),
            refused_latency_us: histogram(),
            start_delay_us: histogram(),
            scores_compared: 0,
            largest_difference: 0.0,
            examples: Vec::new(),
            example_counts: BTreeMap::new(),
        }
    }

    pub fn sending(&mut self, intended: Instant, now: Instant) {
        self.sent += 1;
        record(
            &mut self.start_delay_us,
            now.saturating_duration_since(intended),
        );
    }

    /// `line` is the request's place in the workload's file; `latency` counts from the intended start.
    pub fn finished(&mut self, line: usize, latency: Duration, verdict: Verdict) {
        let outcomes = &mut self.outcomes;
        match verdict {
            Verdict::Ok { scores, difference } => {
                if let Some(difference) = difference {
                    self.scores_compared += scores.len() as u64;
                    self.largest_difference = self.largest_difference.max(difference);
                }
                self.ok(scores.len() as u64, latency);
            }
            Verdict::Status(status, text) => self.refused(line, latency, status, &text),
            Verdict::WrongAnswer(reason) => {
                outcomes.wrong_answer += 1;
                self.example(line, "wrong answer", &reason);
            }
            Verdict::WrongScore(reason) => {
                outcomes.wrong_score += 1;
                self.example(line, "wrong score", &reason);
            }
            Verdict::TimedOut => {
                outcomes.timed_out += 1;
                self.example(line, "timed out", "no answer");
            }
            Verdict::Broken(reason) => {
                outcomes.transport_error += 1;
                self.example(line, "transport", &reason);
            }
        }
    }

    pub fn hung_up(&mut self) {
        self.outcomes.hung_up += 1;
    }

    fn ok(&mut self, pairs: u64, latency: Duration) {
        self.outcomes.ok += 1;
        self.pairs += pairs;
        if self.deadline.is_some_and(|deadline| latency > deadline) {
            self.late += 1;
            self.late_pairs += pairs;
        }
        record(&mut self.latency_us, latency);
    }

    fn refused(&mut self, line: usize, latency: Duration, status: Status, text: &str) {
        let outcomes = &mut self.outcomes;
        match status {
            Status::TooMany { retry_after: true } => outcomes.too_many_with_retry_after += 1,
            Status::TooMany { retry_after: false } => outcomes.too_many_without_retry_after += 1,
            Status::Unavailable => outcomes.unavailable += 1,
            Status::DeadlineExceeded => outcomes.deadline_exceeded += 1,
            Status::Other(code) => {
                self.example(line, "status", &format!("{code} {text}"));
                *self.outcomes.other_status.entry(code).or_default() += 1;
                return;
            }
        }
        match status {
            Status::TooMany { retry_after: false } => self.example(line, "429", "no Retry-After"),
            Status::DeadlineExceeded => return,
            _ => {}
        }
        record(&mut self.refused_latency_us, latency);
    }

    fn example(&mut self, line: usize, kind: &'static str, text: &str) {
        let count = self.example_counts.entry(kind).or_default();
        if *count < EXAMPLES_PER_KIND_MAX {
            *count += 1;
            self.examples
                .push(format!("request {line}: {kind}: {text}"));
        }
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, LATENCY_DIGITS)
        .expect("constant bounds that a histogram accepts")
}

fn record(histogram: &mut Histogram<u64>, duration: Duration) {
    histogram.saturating_record(u64::try_from(duration.as_micros()).unwrap_or(LATENCY_US_MAX));
}
