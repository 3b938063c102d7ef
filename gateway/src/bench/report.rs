//! What was measured, for people and for programs.

use super::rounds::{Answer, Driver, Round};
use super::{Options, Stage};
use crate::config::Threads;
use crate::load::Totals;
use crate::model::Operations;
use backend_api::{Description, Layout};
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// One stage's figures. Its fields are the keys of `--json`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    crossgate: &'static str,
    stage: &'static str,
    model: Model,
    workload: Load,
    /// Seconds of each measured round.
    rounds_s: Vec<f64>,
    /// Of the median round.
    pairs_per_s: f64,
    tokens_per_s: f64,
    /// `null` where nothing is scored.
    batches: Option<Batches>,
    latency_ms: Latency,
    /// `null` where nothing is scored, or the model is none whose arithmetic is known.
    arithmetic: Option<Arithmetic>,
    answers: Answers,
}

#[derive(Clone, Debug, Serialize)]
struct Model {
    source: String,
    architecture: String,
    plugin: String,
    plugin_version: String,
    device: String,
    dtype: String,
    kernel: String,
    numerics_id: String,
    workers: usize,
    tokenizers: usize,
}

#[derive(Clone, Debug, Serialize)]
struct Load {
    file: String,
    requests: usize,
    in_flight: usize,
    pairs: usize,
    tokens: usize,
    tokens_per_pair: f64,
}

/// Over all measured rounds.
#[derive(Clone, Debug, Serialize)]
struct Batches {
    per_round: f64,
    rows_mean: f64,
    tokens_mean: f64,
    /// Share of what a padding backend computes that is padding; 0 for a ragged one.
    padding_ratio: f64,
    /// Share of the workers' time that is inside the backend.
    busy_ratio: f64,
}

/// Over all requests of all measured rounds; `null` for what is no part of the stage.
#[derive(Clone, Debug, Serialize)]
struct Latency {
    tokenize: Option<Quantiles>,
    /// Until the last row was cut into a batch.
    queue: Option<Quantiles>,
    /// The longest batch that held one of the request's rows.
    compute: Option<Quantiles>,
    request: Quantiles,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Quantiles {
    p50: f64,
    p95: f64,
    p99: f64,
}

/// By [`Geometry::operations`](crate::model::Geometry::operations), in the median round.
#[derive(Clone, Debug, Serialize)]
struct Arithmetic {
    linear_gop_per_s: f64,
    attention_gop_per_s: f64,
    total_gop_per_s: f64,
    /// Over the time inside the backend: what one worker makes of its core.
    worker_gop_per_s: f64,
    /// What a worker's multipliers can do at most, as the backend measured it when it was opened; `null` if it
    /// does not say.
    peak_linear_gop_per_s: Option<f64>,
    /// The same for attention's products.
    peak_attention_gop_per_s: Option<f64>,
    /// The time that the arithmetic takes at those peaks, of the time inside the backend.
    roofline_ratio: Option<f64>,
}

#[derive(Clone, Debug, Serialize)]
struct Answers {
    finite: bool,
    /// Whether all rounds were compared bit for bit, and were equal; false if the backend promises none
    /// of it.
    bitwise_equal: bool,
}

// === impl Report ===

impl Report {
    /// `rounds` are at least one, and their answers were checked.
    pub(super) fn new(
        driver: &Driver,
        options: &Options,
        threads: Threads,
        rounds: &[Round],
    ) -> Self {
        let rounds_s: Vec<_> = rounds
            .iter()
            .map(|round| round.took.as_secs_f64())
            .collect();
        let median_s = median(&rounds_s);
        let load = Load::new(driver, options);
        let scores = driver.stage != Stage::Tokenize;
        let facts = driver.generation.facts();
        let model = Model::new(driver, threads);
        let done = sum(rounds);
        let all_s: f64 = rounds_s.iter().sum();
        let is_padded = facts.description.layout == Layout::Padded;
        Self {
            crossgate: env!("CARGO_PKG_VERSION"),
            stage: driver.stage.name(),
            pairs_per_s: load.pairs as f64 / median_s,
            tokens_per_s: load.tokens as f64 / median_s,
            batches: scores.then(|| Batches {
                per_round: done.batches as f64 / rounds.len() as f64,
                rows_mean: done.rows as f64 / done.batches as f64,
                tokens_mean: done.tokens as f64 / done.batches as f64,
                padding_ratio: if is_padded {
                    1.0 - done.tokens as f64 / done.rectangle_tokens as f64
                } else {
                    0.0
                },
                busy_ratio: done.inference.as_secs_f64() / (all_s * model.workers as f64),
            }),
            latency_ms: Latency::new(driver.stage, rounds),
            arithmetic: operations(driver).filter(|_| scores).map(|needed| {
                let inside_s = done.inference.as_secs_f64() / rounds.len() as f64;
                Arithmetic::new(needed, median_s, inside_s, &facts.description)
            }),
            answers: Answers {
                finite: true,
                bitwise_equal: scores && facts.description.bitwise,
            },
            rounds_s,
            model,
            workload: load,
        }
    }

    /// As a JSON object.
    #[must_use]
    pub fn json(&self) -> String {
        // Numbers and texts only: there is nothing in it that JSON cannot say.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }
}

/// What the workload needs, once.
fn operations(driver: &Driver) -> Option<Operations> {
    let geometry = driver.generation.facts().info.geometry?;
    let mut sum = Operations::default();
    for rows in &driver.rows {
        for row in 0..rows.len() {
            sum += geometry.operations(rows.row_len(row) as u64);
        }
    }
    Some(sum)
}

fn sum(rounds: &[Round]) -> Totals {
    let mut sum = Totals::default();
    for Round { done, .. } in rounds {
        sum.batches += done.batches;
        sum.rows += done.rows;
        sum.tokens += done.tokens;
        sum.rectangle_tokens += done.rectangle_tokens;
        sum.inference += done.inference;
    }
    sum
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        (sorted[middle - 1] + sorted[middle]) / 2.0
    }
}

// === impl Model ===

impl Model {
    fn new(driver: &Driver, threads: Threads) -> Self {
        let state = driver.generation.state();
        Self {
            source: state.source,
            architecture: state.architecture,
            plugin: state.plugin.0,
            plugin_version: state.plugin.1,
            device: state.device,
            dtype: state.dtype,
            kernel: state.kernel,
            numerics_id: state.numerics_id,
            workers: state.load.workers,
            tokenizers: threads.tokenizers,
        }
    }
}

// === impl Load ===

impl Load {
    fn new(driver: &Driver, options: &Options) -> Self {
        let pairs = driver.rows.iter().map(|rows| rows.len()).sum();
        let tokens = driver.rows.iter().map(|rows| rows.input_ids.len()).sum();
        Self {
            file: options.workload.to_string(),
            requests: driver.requests.len(),
            in_flight: driver.in_flight,
            pairs,
            tokens,
            tokens_per_pair: tokens as f64 / pairs as f64,
        }
    }
}

// === impl Latency ===

impl Latency {
    fn new(stage: Stage, rounds: &[Round]) -> Self {
        let of = |time: fn(&Answer) -> Duration| {
            let answers = rounds.iter().flat_map(|round| &round.answers);
            Quantiles::new(answers.map(time).collect())
        };
        let scores = stage != Stage::Tokenize;
        Self {
            tokenize: (stage != Stage::Inference).then(|| of(|answer| answer.times.tokenize)),
            queue: scores.then(|| of(|answer| answer.times.queue)),
            compute: scores.then(|| of(|answer| answer.times.inference)),
            request: of(|answer| answer.took),
        }
    }
}

// === impl Quantiles ===

impl Quantiles {
    /// By nearest rank: each is a time that was measured.
    fn new(mut times: Vec<Duration>) -> Self {
        times.sort();
        let at = |share: f64| {
            let rank = (share * times.len() as f64).ceil() as usize;
            times[rank.clamp(1, times.len()) - 1].as_secs_f64() * 1e3
        };
        Self {
            p50: at(0.50),
            p95: at(0.95),
            p99: at(0.99),
        }
    }
}

// === impl Arithmetic ===

impl Arithmetic {
    /// `inside_s` is spent in the backend by all workers together.
    fn new(needed: Operations, seconds: f64, inside_s: f64, description: &Description) -> Self {
        let [linear, attention] = [needed.linear, needed.attention].map(|n| n as f64 / 1e9);
        let peak = |mop_per_s: u64| (mop_per_s > 0).then_some(mop_per_s as f64 / 1e3);
        let peak_linear = peak(description.linear_mop_per_s);
        let peak_attention = peak(description.attention_mop_per_s);
        let least_s = peak_linear
            .zip(peak_attention)
            .map(|(by_linear, by_attention)| linear / by_linear + attention / by_attention);
        Self {
            peak_linear_gop_per_s: peak_linear,
            peak_attention_gop_per_s: peak_attention,
            roofline_ratio: least_s.map(|least_s| least_s / inside_s),
            linear_gop_per_s: linear / seconds,
            attention_gop_per_s: attention / seconds,
            total_gop_per_s: (linear + attention) / seconds,
            worker_gop_per_s: (linear + attention) / inside_s,
        }
    }
}

// === Display ===

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (model, load) = (&self.model, &self.workload);
        writeln!(
            f,
            "stage       {}: {} pairs of {:.1} tokens, {} requests, {} in flight, {} rounds after one to warm up",
            self.stage,
            load.pairs,
            load.tokens_per_pair,
            load.requests,
            load.in_flight,
            self.rounds_s.len()
        )?;
        writeln!(
            f,
            "model       {} ({}), {} {}, {} by {} on {}, {} workers, {} tokenizer threads",
            model.source,
            model.architecture,
            model.plugin,
            model.plugin_version,
            model.dtype,
            model.kernel,
            model.device,
            model.workers,
            model.tokenizers
        )?;
        let answers = match (self.batches.is_some(), self.answers.bitwise_equal) {
            (false, _) => "the same tokens in every round",
            (true, true) => "finite, and equal bit for bit in every round",
            (true, false) => "finite; the backend does not promise equal bits",
        };
        writeln!(f, "answers     {answers}")?;
        let each: Vec<_> = self
            .rounds_s
            .iter()
            .map(|seconds| format!("{:.1}", load.pairs as f64 / seconds))
            .collect();
        writeln!(
            f,
            "throughput  {:.1} pairs/s, {:.0} tokens/s in the median round; pairs/s of each: {}",
            self.pairs_per_s,
            self.tokens_per_s,
            each.join(" ")
        )?;
        if let Some(batches) = &self.batches {
            batches.fmt(f)?;
        }
        self.latency_ms.fmt(f)?;
        match &self.arithmetic {
            Some(arithmetic) => arithmetic.fmt(f),
            None if self.batches.is_some() => writeln!(
                f,
                "arithmetic  not counted: {} is no model whose layers are BERT's",
                model.architecture
            ),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Batches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "batches     {:.0} a round, {:.1} rows and {:.0} tokens each, padding {:.1} %; workers {:.1} % inside the backend",
            self.per_round,
            self.rows_mean,
            self.tokens_mean,
            100.0 * self.padding_ratio,
            100.0 * self.busy_ratio
        )
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "latency ms       p50       p95       p99")?;
        let phases = [
            ("tokenize", self.tokenize),
            ("queue", self.queue),
            ("compute", self.compute),
            ("request", Some(self.request)),
        ];
        for (name, quantiles) in phases {
            if let Some(Quantiles { p50, p95, p99 }) = quantiles {
                writeln!(f, "  {name:<8} {p50:9.2} {p95:9.2} {p99:9.2}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Arithmetic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "arithmetic  {:.1} GOP/s needed: {:.1} linear, {:.1} attention; {:.1} GOP/s for each worker inside the backend",
            self.total_gop_per_s,
            self.linear_gop_per_s,
            self.attention_gop_per_s,
            self.worker_gop_per_s
        )?;
        let (linear, attention) = (self.peak_linear_gop_per_s, self.peak_attention_gop_per_s);
        if let (Some(linear), Some(attention), Some(ratio)) =
            (linear, attention, self.roofline_ratio)
        {
            writeln!(
                f,
                "roofline    {:.1} %: what the arithmetic would take at the multipliers' peak, {linear:.0} GOP/s linear and {attention:.0} attention, of a worker's time",
                100.0 * ratio
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_times_that_were_measured() {
        let times = (1..=100).rev().map(Duration::from_millis).collect();
        let Quantiles { p50, p95, p99 } = Quantiles::new(times);
        assert_eq!([p50, p95, p99].map(f64::round), [50.0, 95.0, 99.0]);
        let one = Quantiles::new(vec![Duration::from_millis(7)]);
        assert_eq!([one.p50, one.p99].map(f64::round), [7.0, 7.0]);
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
