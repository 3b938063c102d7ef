//! Overload in virtual time: the plan of a line before simulated workers and clients. No thread, no sleep.

#[path = "sim/draw.rs"]
mod draw;
#[path = "sim/hold.rs"]
mod hold;

use draw::{Random, micros, size};
use gateway::cache::{Asker, Outcome};
use gateway::generation::cost::Size;
use gateway::generation::hold::HoldBounds;
use gateway::generation::plan::{Ask, Computed, Cut, Next, Plan};
use gateway::generation::queue::{BatchBounds, QueueBounds, Taken};
use gateway::generation::work::{Sink, Work};
use gateway::model::{self, TokenRows};
use gateway::score::{Priority, ScoreError};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// A batch costs this beside its rows.
const BATCH_US: f64 = 500.0;
/// A token costs this: 32 documents of 150 tokens take 0.2 s.
const TOKEN_US: f64 = 41.0;
const TOKENS_PER_BYTE: f64 = 0.3;
/// A batch whose thread was descheduled takes this much longer.
const STALL_RATIO: f64 = 11.0;
/// Until the plan has seen requests come and go under this load.
const LEARNING_S: u64 = 12;
/// From the admission until the rows are there.
const TOKENIZING_US: u64 = 5_000;

/// As a server has it by default.
const HOLD: HoldBounds = HoldBounds {
    wait_max: Duration::from_millis(10),
    rows_preferred: 32,
    is_adaptive: true,
};

/// Clients that ask again as soon as they are answered.
#[derive(Clone, Copy)]
struct Clients {
    number: usize,
    documents: usize,
    document_tokens: usize,
    timeout_s: u64,
    /// Between a refusal and the next request.
    pause_ms: u64,
    priority: Priority,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    refused: u32,
    in_time: u32,
    late: u32,
}

/// A request's rows, who takes their outcomes, and where all of them arrive.
type Asked = (Arc<Work>, Arc<dyn Sink>, oneshot::Receiver<Outcome>);

enum Event {
    Asks(usize),
    Tokenized(usize),
    Returns(usize),
    Expires(usize, u64),
}

#[derive(Default)]
struct Client {
    kind: usize,
    request: u64,
    promise: Option<gateway::generation::queue::Promise>,
    work: Option<Asked>,
    deadline_us: u64,
}

struct Sim {
    plan: Plan,
    kinds: Vec<Clients>,
    clients: Vec<Client>,
    counts: Vec<Counts>,
    workers: Vec<Option<(Vec<Taken>, Cut, f64)>>,
    start: Instant,
    now_us: u64,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    happens: Vec<Event>,
    random: Random,
    scored_us: f64,
    n_batches: u64,
    stall_every: u64,
}

impl Sim {
    fn new(n_workers: usize, kinds: &[Clients]) -> Self {
        let plan = plan(n_workers, HOLD, |size| micros(cost_us(size.tokens)));
        let mut sim = Self {
            plan,
            kinds: kinds.to_vec(),
            clients: Vec::new(),
            counts: vec![Counts::default(); kinds.len()],
            workers: (0..n_workers).map(|_| None).collect(),
            start: Instant::now(),
            now_us: 0,
            events: BinaryHeap::new(),
            happens: Vec::new(),
            random: Random::new(1),
            scored_us: 0.0,
            n_batches: 0,
            stall_every: u64::MAX,
        };
        for (kind, clients) in kinds.iter().enumerate() {
            for _ in 0..clients.number {
                let client = sim.clients.len();
                sim.clients.push(Client {
                    kind,
                    ..Client::default()
                });
                sim.after(client as u64, Event::Asks(client));
            }
        }
        sim
    }

    /// Runs for so long after `LEARNING_S`; what came of the requests that ended in it.
    fn run(mut self, seconds: u64) -> (Vec<Counts>, f64) {
        self.run_until(LEARNING_S);
        self.counts.fill(Counts::default());
        self.scored_us = 0.0;
        self.run_until(LEARNING_S + seconds);
        let capacity_us = (seconds * 1_000_000) as f64 * self.workers.len() as f64;
        (self.counts, self.scored_us / capacity_us)
    }

    fn run_until(&mut self, seconds: u64) {
        let end_us = seconds * 1_000_000;
        // What comes later is left for the next time.
        while let Some(Reverse((at_us, event))) = self.events.peek().copied()
            && at_us < end_us
        {
            self.events.pop();
            self.now_us = at_us;
            match self.happens[event as usize] {
                Event::Asks(client) => self.ask(client),
                Event::Tokenized(client) => self.tokenized(client),
                Event::Returns(worker) => self.returns(worker),
                Event::Expires(client, request) => self.expires(client, request),
            }
            self.start_workers();
        }
    }

    fn after(&mut self, us: u64, event: Event) {
        let at = (self.now_us + us, self.happens.len() as u64);
        self.happens.push(event);
        self.events.push(Reverse(at));
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_micros(self.now_us)
    }

    /// Between 0.8 and 1.2; stalls come on top.
    fn noise(&mut self) -> f64 {
        self.random.between(0.8, 1.2)
    }

    fn ask(&mut self, client: usize) {
        let kind = self.kinds[self.clients[client].kind];
        let bytes = (kind.documents * kind.document_tokens) as f64 / TOKENS_PER_BYTE;
        let ask = Ask {
            rows: kind.documents,
            row_bytes: bytes as usize,
            text_bytes: bytes as usize,
            tokens_max: kind.documents * 512,
            deadline: self.now() + Duration::from_secs(kind.timeout_s),
            priority: kind.priority,
        };
        match self.plan.admit(&ask, self.now()) {
            Ok(promise) => {
                let state = &mut self.clients[client];
                state.promise = Some(promise);
                state.request += 1;
                state.deadline_us = self.now_us + kind.timeout_s * 1_000_000;
                let request = state.request;
                self.after(TOKENIZING_US, Event::Tokenized(client));
                self.after(kind.timeout_s * 1_000_000, Event::Expires(client, request));
            }
            Err(_) => {
                self.counts[self.clients[client].kind].refused += 1;
                self.after(kind.pause_ms * 1_000, Event::Asks(client));
            }
        }
    }

    fn tokenized(&mut self, client: usize) {
        let kind = self.kinds[self.clients[client].kind];
        let mut rows = TokenRows::none();
        for _ in 0..kind.documents {
            let n_tokens = (kind.document_tokens as f64 * self.noise()) as usize;
            rows.input_ids.resize(rows.input_ids.len() + n_tokens, 1);
            rows.end_row(model::Cut::default());
        }
        rows.type_ids = vec![0; rows.input_ids.len()];
        let state = &mut self.clients[client];
        let deadline = self.start + Duration::from_micros(state.deadline_us);
        let now = self.start + Duration::from_micros(self.now_us);
        let (asker, outcome) = Asker::new(vec![None; kind.documents]);
        let sink: Arc<dyn Sink> = asker;
        let work = Work::new(
            kind.documents,
            kind.priority,
            deadline,
            now,
            Arc::downgrade(&sink),
        );
        work.pushed(rows, now);
        let promise = state.promise.take().expect("it was admitted");
        self.plan.push(Arc::clone(&work), promise, now);
        state.work = Some((work, sink, outcome));
    }

    fn start_workers(&mut self) {
        for worker in 0..self.workers.len() {
            if self.workers[worker].is_some() {
                continue;
            }
            let mut taken = Vec::new();
            let next = self.plan.cut(self.now(), worker as u32, &mut taken);
            for (work, error) in self.plan.take_late() {
                work.fail(&error);
            }
            let cut = match next {
                Next::Batch(cut) => cut,
                Next::Nothing | Next::Done => return,
                Next::Hold(until) => panic!("it waits until {until:?}, before a CPU"),
            };
            self.n_batches += 1;
            let is_stalled = self.n_batches.is_multiple_of(self.stall_every);
            let stall = if is_stalled { STALL_RATIO } else { 1.0 };
            let took_us = cost_us(size(&taken).tokens) * self.noise() * stall;
            self.workers[worker] = Some((taken, cut, took_us));
            self.after(took_us as u64, Event::Returns(worker));
        }
    }

    fn returns(&mut self, worker: usize) {
        let (taken, cut, took_us) = self.workers[worker].take().expect("it computes");
        self.plan.returned(&cut, true, self.now());
        self.plan.computed(&Computed {
            n_rows: taken.len(),
            size: size(&taken),
            longest: 0,
            took: micros(took_us),
            is_whole: true,
            ..Computed::default()
        });
        for (work, row) in &taken {
            _ = work.finish_row(*row as usize, &[0.0], micros(took_us));
        }
        for client in 0..self.clients.len() {
            let state = &mut self.clients[client];
            let Some((work, _, outcome)) = &mut state.work else {
                continue;
            };
            match outcome.try_recv() {
                Ok(Ok(_)) => {
                    self.scored_us += cost_us(work.rows().input_ids.len() as f64);
                    self.counts[state.kind].in_time += 1;
                    self.leave(client, true);
                }
                Ok(Err(_)) => {
                    self.counts[state.kind].late += 1;
                    self.leave(client, false);
                }
                Err(_) => {}
            }
        }
    }

    fn expires(&mut self, client: usize, request: u64) {
        let state = &mut self.clients[client];
        if state.request == request
            && let Some((work, ..)) = &state.work
        {
            work.fail(&ScoreError::Cancelled);
            self.plan
                .forget(work, self.start + Duration::from_micros(self.now_us));
            self.counts[state.kind].late += 1;
            self.leave(client, false);
        }
    }

    fn leave(&mut self, client: usize, is_in_time: bool) {
        self.clients[client].work = None;
        self.clients[client].request += 1;
        self.plan.leave(Some(is_in_time));
        self.after(0, Event::Asks(client));
    }
}

/// A plan as a server has it by default, which has learned what a generation does by warming up: how long a
/// batch `takes`.
fn plan(n_workers: usize, hold: HoldBounds, takes: impl Fn(Size) -> Duration) -> Plan {
    let queue = QueueBounds {
        rows_max: 16_384,
        tokens_max: 2_097_152,
        requests_max: 1_024,
        bytes_max: 64 << 20,
        wait_max: None,
    };
    let batch = BatchBounds {
        rows_max: 256,
        tokens_max: 8_192,
        time_max: Duration::from_millis(10),
        hold,
    };
    let mut plan = Plan::new(queue, batch, 3);
    plan.count_worker(n_workers as isize);
    // What a generation learns by warming up.
    for (rows, tokens) in [(1, 16), (1, 512), (32, 64), (1, 16), (4, 64)] {
        let row = Size::row(tokens);
        let size = (0..rows).fold(Size::default(), |sum, _| sum + row);
        plan.learn(size, takes(size));
    }
    plan
}

fn cost_us(tokens: f64) -> f64 {
    BATCH_US + TOKEN_US * tokens
}

const HEAVY: Clients = Clients {
    number: 200,
    documents: 32,
    document_tokens: 150,
    timeout_s: 10,
    pause_ms: 50,
    priority: Priority::Normal,
};

#[track_caller]
fn check_overload(sim: Sim, useful_min: f64) {
    let (counts, useful) = sim.run(60);
    let Counts {
        refused,
        in_time,
        late,
    } = counts[0];
    assert!(refused > 1_000, "no overload: {refused}");
    assert!(late * 97 <= in_time * 3, "{late} late, {in_time} in time");
    assert!(useful >= useful_min, "{useful}");
}

#[test]
fn what_is_admitted_under_overload_is_answered_and_no_time_is_wasted() {
    for n_workers in [1, 4] {
        check_overload(Sim::new(n_workers, &[HEAVY]), 0.9);
    }
}

#[test]
fn also_on_a_machine_that_others_use() {
    // One batch in ten takes eleven times as long: half of the capacity is left.
    for n_workers in [1, 2] {
        let stalling = Sim {
            stall_every: 10,
            ..Sim::new(n_workers, &[HEAVY])
        };
        check_overload(stalling, 0.45);
    }
}

#[test]
fn a_request_that_waits_alone_is_computed_by_all_workers() {
    // 8.2 ms of rows, which one batch of at most 10 ms could hold.
    let lone = Clients {
        number: 1,
        documents: 8,
        document_tokens: 25,
        timeout_s: 10,
        pause_ms: 0,
        priority: Priority::Normal,
    };
    let answered = |n_workers| Sim::new(n_workers, &[lone]).run(60).0[0].in_time;
    let (by_one, by_two, by_eight) = (answered(1), answered(2), answered(8));
    // Tokenizing takes 5 ms of a request's 13.7, or of 9.6.
    assert!(4 * by_two > 5 * by_one, "{by_two} a minute, {by_one}");
    // Eight parts would cost 0.5 ms each for their 1 ms.
    assert!(10 * by_eight < 11 * by_two, "{by_eight} a minute, {by_two}");
}

#[test]
fn requests_of_one_document_are_answered_beside_those_of_a_thousand() {
    let large = Clients {
        number: 6,
        documents: 1_000,
        document_tokens: 50,
        timeout_s: 10,
        pause_ms: 1_000,
        priority: Priority::Normal,
    };
    let small = Clients {
        number: 1,
        documents: 1,
        timeout_s: 2,
        ..large
    };
    let (counts, _) = Sim::new(1, &[large, small]).run(60);
    assert_eq!((counts[1].refused, counts[1].late), (0, 0), "{counts:?}");
    assert!(counts[1].in_time > 1_000, "{counts:?}");
    assert!(counts[0].in_time > 10, "{counts:?}");
    assert!(counts[0].late <= 1, "{counts:?}");
}

#[test]
fn under_overload_the_least_urgent_are_refused_first() {
    let clients = |priority| Clients {
        number: 60,
        priority,
        ..HEAVY
    };
    let kinds = [Priority::High, Priority::Normal, Priority::Low].map(clients);
    let (counts, useful) = Sim::new(2, &kinds).run(120);
    let [high, normal, low] = [0, 1, 2].map(|kind| counts[kind]);
    assert!(2 * normal.in_time < high.in_time, "{counts:?}");
    assert!(20 < normal.in_time && high.late == 0, "{counts:?}");
    assert!(low.in_time < normal.in_time, "{counts:?}");
    let (late, in_time) = counts.iter().fold((0, 0), |sum, kind| {
        (sum.0 + kind.late, sum.1 + kind.in_time)
    });
    assert!(late * 97 <= in_time * 3, "{counts:?}");
    assert!(useful >= 0.9, "{useful}");
}

#[test]
fn what_the_urgent_leave_is_for_the_others() {
    let low = Clients {
        priority: Priority::Low,
        ..HEAVY
    };
    let high = Clients {
        number: 1,
        documents: 8,
        priority: Priority::High,
        ..HEAVY
    };
    let (counts, useful) = Sim::new(2, &[high, low]).run(60);
    assert_eq!((counts[0].refused, counts[0].late), (0, 0), "{counts:?}");
    // The urgent one comes again as soon as it is answered, and takes 50 ms of one of two workers each time.
    assert!(
        1_000 < counts[0].in_time && 100 < counts[1].in_time,
        "{counts:?}"
    );
    assert!(useful >= 0.9, "{useful}");
}
