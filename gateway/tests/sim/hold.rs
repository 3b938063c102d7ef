//! Single pairs that come at random, before a backend whose batches are mostly their own cost, and before
//! one whose batches are mostly their rows'.

use super::{HOLD, Random, plan, size};
use gateway::cache::Asker;
use gateway::generation::cost::Size;
use gateway::generation::hold::HoldBounds;
use gateway::generation::plan::{Ask, Computed, Cut, Next, Plan};
use gateway::generation::queue::Taken;
use gateway::generation::work::Work;
use gateway::model::TokenRows;
use gateway::score::Priority;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

const ROW_TOKENS: usize = 50;

/// Seconds of a batch, and of a token.
struct Backend {
    batch_s: f64,
    token_s: f64,
}

const GPU: Backend = Backend {
    batch_s: 5e-3,
    token_s: 2e-7,
};
/// A row takes 2 ms.
const CPU: Backend = Backend {
    batch_s: 5e-4,
    token_s: 4e-5,
};

/// What came of it.
#[derive(Debug, Default, PartialEq)]
struct Report {
    // Of all batches: when, and how many rows.
    cuts: Vec<(Duration, usize)>,
    latency: Duration,
    busy: Duration,
    n_holds: usize,
}

struct Sim {
    plan: Plan,
    backend: Backend,
    start: Instant,
    now: Instant,
    // When each worker returns, and from what.
    workers: Vec<Option<(Instant, Vec<Taken>, Cut)>>,
    wakes: Option<Instant>,
    random: Random,
    report: Report,
}

impl Sim {
    fn new(backend: Backend, n_workers: usize, hold: HoldBounds) -> Self {
        let plan = plan(n_workers, hold, |size| backend.takes(size));
        let start = Instant::now();
        Self {
            plan,
            backend,
            start,
            now: start,
            workers: (0..n_workers).map(|_| None).collect(),
            wakes: None,
            random: Random::new(1),
            report: Report::default(),
        }
    }

    /// `n` requests, `rate` of them in a second.
    fn run(mut self, n: usize, rate: f64) -> Report {
        let mut comes = self.start;
        let mut n_left = n;
        loop {
            let returns = self.workers.iter().flatten().map(|(at, ..)| *at).min();
            let arrival = (n_left > 0).then_some(comes);
            let Some(next) = [arrival, returns, self.wakes].into_iter().flatten().min() else {
                assert_eq!(self.plan.load().requests_in_flight, 0);
                return self.report;
            };
            self.now = next;
            if arrival == Some(next) {
                self.ask();
                n_left -= 1;
                comes += Duration::from_secs_f64(self.random.gap(1.0 / rate));
            } else if returns == Some(next) {
                self.returns();
            }
            self.start_workers();
        }
    }

    fn ask(&mut self) {
        let deadline = self.now + Duration::from_secs(10);
        let ask = Ask {
            rows: 1,
            row_bytes: 4 * ROW_TOKENS,
            text_bytes: 4 * ROW_TOKENS,
            tokens_max: 512,
            deadline,
            priority: Priority::Normal,
        };
        let promise = self.plan.admit(&ask, self.now).expect("there is time");
        let rows = TokenRows {
            input_ids: vec![1; ROW_TOKENS],
            type_ids: vec![0; ROW_TOKENS],
            ends: vec![ROW_TOKENS as u32],
            ..TokenRows::none()
        };
        let nobody = Weak::<Asker>::new();
        let work = Work::new(1, ask.priority, deadline, self.now, nobody);
        work.pushed(rows, self.now);
        self.plan.push(work, promise, self.now);
    }

    fn start_workers(&mut self) {
        self.wakes = None;
        for worker in 0..self.workers.len() {
            if self.workers[worker].is_some() {
                continue;
            }
            let mut taken = Vec::new();
            match self.plan.cut(self.now, worker as u32, &mut taken) {
                Next::Batch(cut) => {
                    let took = self.backend.takes(size(&taken));
                    let at = self.now - self.start;
                    self.report.cuts.push((at, taken.len()));
                    self.report.busy += took;
                    self.workers[worker] = Some((self.now + took, taken, cut));
                }
                Next::Hold(until) => {
                    assert!(self.now < until, "it would wake for ever");
                    self.report.n_holds += 1;
                    self.wakes = Some(until);
                }
                Next::Nothing | Next::Done => {}
            }
        }
    }

    fn returns(&mut self) {
        let is_back = |worker: &Option<(Instant, _, _)>| {
            worker.as_ref().is_some_and(|(at, ..)| *at == self.now)
        };
        let worker = self.workers.iter().position(is_back).expect("one is back");
        let (_, taken, cut) = self.workers[worker].take().expect("it computed");
        let size = size(&taken);
        self.plan.returned(&cut, true, self.now);
        self.plan.computed(&Computed {
            n_rows: taken.len(),
            size,
            took: self.backend.takes(size),
            is_whole: true,
            ..Computed::default()
        });
        for (work, _) in &taken {
            self.report.latency += Arc::clone(work).waited(self.now);
            self.plan.leave(Some(true));
        }
    }
}

impl Backend {
    fn takes(&self, size: Size) -> Duration {
        Duration::from_secs_f64(self.batch_s + self.token_s * size.tokens)
    }
}

const N: usize = 60_000;

#[test]
fn before_a_gpu_waiting_pays_in_latency_and_in_throughput() {
    // In the time of a batch three or four come: now and then only one has.
    for rate in [600.0, 800.0] {
        let with = Sim::new(GPU, 1, HOLD).run(N, rate);
        let without = Sim::new(GPU, 1, HoldBounds::NEVER).run(N, rate);
        let (latency, busy) = (with.latency.as_secs_f64(), with.busy.as_secs_f64());
        let per_latency = latency / without.latency.as_secs_f64();
        let per_busy = busy / without.busy.as_secs_f64();
        assert!(per_latency < 0.998, "{rate} a second: {per_latency}");
        // All rows in less of the worker's time.
        assert!(per_busy < 0.985, "{rate} a second: {per_busy}");
    }
}

#[test]
fn before_a_cpu_nothing_ever_waits() {
    for (n_workers, rate) in [(1, 300.0), (4, 300.0), (4, 1_500.0)] {
        let with = Sim::new(CPU, n_workers, HOLD).run(N, rate);
        let without = Sim::new(CPU, n_workers, HoldBounds::NEVER).run(N, rate);
        assert_eq!(with.n_holds, 0, "{n_workers} workers, {rate} a second");
        assert!(with == without, "{n_workers} workers, {rate} a second");
    }
}

#[test]
fn not_adaptive_a_batch_waits_for_the_preferred_rows_or_its_time() {
    let fixed = HoldBounds {
        rows_preferred: 4,
        is_adaptive: false,
        ..HOLD
    };
    // 20 come in 10 ms: batches fill.
    let report = Sim::new(GPU, 1, fixed).run(1_000, 2_000.0);
    let (last, cuts) = report.cuts.split_last().expect("batches");
    assert!(cuts.iter().all(|(_, n_rows)| 4 <= *n_rows), "{cuts:?}");
    assert!(last.1 >= 1);
    // One comes in 50 ms: each waits its 10 ms, and takes 5.01.
    let report = Sim::new(GPU, 1, fixed).run(1_000, 20.0);
    let mean_ms = 1e3 * report.latency.as_secs_f64() / 1_000.0;
    assert!((13.0..15.1).contains(&mean_ms), "{mean_ms}");
}
