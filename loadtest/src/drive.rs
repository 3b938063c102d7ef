//! The two loops that send requests. Both end when their limit is reached or `stop` is set, and only
//! after every request that was sent has come back or timed out.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time;

use crate::arrivals::{Arrivals, HangUps, Order};
use crate::client::{Client, Prepared};
use crate::plan::{Load, Plan, Until};
use crate::tally::Tally;
use crate::verdict::judge;
use crate::workload::{Request, Workload};

/// Set from outside to end a run early.
pub type Stop = Arc<AtomicBool>;

/// A wait notices `stop` this soon.
const STOP_CHECK: Duration = Duration::from_millis(100);

/// What every request of a run needs.
pub(crate) struct Driver {
    pub(crate) client: Client,
    pub(crate) workload: Arc<Workload>,
    /// Runs on from the warm-up into the measured part.
    pub(crate) order: Mutex<Order>,
    pub(crate) hang_ups: Mutex<HangUps>,
    pub(crate) plan: Plan,
    pub(crate) stop: Stop,
}

/// One part of a run: the warm-up, or what is measured.
pub(crate) struct Phase {
    driver: Arc<Driver>,
    tally: Mutex<Tally>,
    until: Until,
    begin: Instant,
    started: AtomicU64,
}

/// One request of a phase, ready to go.
struct Turn {
    line: usize,
    prepared: Prepared,
    /// How long its client waits before it hangs up; `None`: as long as it takes.
    hang_up_after: Option<Duration>,
}

impl Phase {
    pub(crate) fn new(driver: Arc<Driver>, until: Until) -> Arc<Self> {
        let tally = Mutex::new(Tally::new(driver.plan.target.deadline));
        Arc::new(Self {
            driver,
            tally,
            until,
            begin: Instant::now(),
            started: AtomicU64::new(0),
        })
    }

    pub(crate) async fn run(self: &Arc<Self>) {
        match self.driver.plan.load {
            Load::Closed { clients } => self.closed(clients).await,
            Load::Open {
                rate_per_s,
                arrivals,
                in_flight_max,
            } => {
                let arrivals = Arrivals::new(arrivals, rate_per_s, self.driver.plan.seed);
                self.open(arrivals, in_flight_max).await;
            }
        }
    }

    pub(crate) fn tally(&self) -> MutexGuard<'_, Tally> {
        locked(&self.tally)
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }

    async fn closed(self: &Arc<Self>, clients: usize) {
        let mut running = JoinSet::new();
        for _ in 0..clients {
            let phase = Arc::clone(self);
            running.spawn(async move {
                while phase.may_start(Instant::now()) {
                    let turn = phase.turn();
                    phase.send(turn, Instant::now()).await;
                }
            });
        }
        while running.join_next().await.is_some() {}
    }

    async fn open(self: &Arc<Self>, arrivals: Arrivals, in_flight_max: usize) {
        let permits = Arc::new(Semaphore::new(in_flight_max));
        let phase = Arc::clone(self);
        let dispatcher_permits = Arc::clone(&permits);
        let runtime = Handle::current();
        // A thread, because it sleeps to a few microseconds where tokio's timer has milliseconds.
        let dispatcher =
            spawn_blocking(move || phase.dispatch(arrivals, &dispatcher_permits, &runtime));
        if dispatcher.await.is_ok() {
            // Every permit back means that nothing is in flight any more.
            for _ in 0..in_flight_max {
                let Ok(permit) = permits.acquire().await else {
                    break;
                };
                permit.forget();
            }
        }
    }

    fn dispatch(self: &Arc<Self>, arrivals: Arrivals, permits: &Arc<Semaphore>, runtime: &Handle) {
        for offset in arrivals {
            let intended = self.begin + offset;
            if !self.may_start(intended) {
                break;
            }
            let turn = self.turn();
            if !self.sleep_until(intended) {
                break;
            }
            let Ok(permit) = Arc::clone(permits).try_acquire_owned() else {
                self.tally().not_sent += 1;
                continue;
            };
            let phase = Arc::clone(self);
            runtime.spawn(async move {
                phase.send(turn, intended).await;
                drop(permit);
            });
        }
    }

    /// False when `stop` was set before.
    fn sleep_until(&self, intended: Instant) -> bool {
        loop {
            if self.driver.stop.load(Ordering::Relaxed) {
                return false;
            }
            let left = intended.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            thread::sleep(left.min(STOP_CHECK));
        }
    }

    /// Takes the right to start one more request at `at`.
    fn may_start(&self, at: Instant) -> bool {
        if self.driver.stop.load(Ordering::Relaxed) {
            return false;
        }
        match self.until {
            Until::Elapsed(duration) => at < self.begin + duration,
            Until::Requests(count) => self.started.fetch_add(1, Ordering::Relaxed) < count,
        }
    }

    fn turn(&self) -> Turn {
        let driver = &self.driver;
        let line = locked(&driver.order).draw();
        let hang_up = driver.plan.hang_up;
        Turn {
            line,
            prepared: driver.client.prepare(line),
            hang_up_after: hang_up
                .filter(|_| locked(&driver.hang_ups).draw())
                .map(|hang_up| hang_up.after),
        }
    }

    async fn send(&self, turn: Turn, intended: Instant) {
        let driver = &self.driver;
        let request: &Request = &driver.workload.requests[turn.line];
        self.tally().sending(intended, Instant::now());
        let sending = driver
            .client
            .send(turn.prepared, driver.plan.target.timeout);
        // Dropped unanswered, the request takes its connection (HTTP/1.1) or its call (gRPC) with it.
        let patience = turn.hang_up_after.unwrap_or(Duration::MAX);
        let Ok(reply) = time::timeout(patience, sending).await else {
            self.tally().hung_up();
            return;
        };
        let latency = reply.done.saturating_duration_since(intended);
        let verdict = judge(reply.exchange, request, driver.plan.tolerance);
        self.tally().finished(request.line, latency, verdict);
    }
}

/// A panic elsewhere leaves counts that are still right: each is changed by one call.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
