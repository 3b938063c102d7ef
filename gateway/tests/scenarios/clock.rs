//! Virtual time: tasks on one thread, their timers in a heap, and one clock that jumps from timer to timer.

use std::cell::{Cell, RefCell};
use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, VecDeque};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

/// The clock and all that waits for it.
pub(crate) struct Clock {
    start: Instant,
    passed: Cell<Duration>,
    timers: RefCell<BinaryHeap<Reverse<Timer>>>,
    n_timers: Cell<u64>,
    tasks: RefCell<Vec<Option<Task>>>,
    n_alive: Cell<usize>,
    rung: Rung,
}

type Task = (Pin<Box<dyn Future<Output = ()>>>, Waker);

/// Tasks that are to be polled, in the order in which they were woken.
type Rung = Arc<Mutex<VecDeque<usize>>>;

struct Bell {
    task: usize,
    rung: Rung,
}

/// Equal times in the order in which they were set.
struct Timer {
    at: Duration,
    seq: u64,
    waker: Waker,
}

/// Wakes all that wait, as a condition variable does.
#[derive(Default)]
pub(crate) struct Signal {
    n_rung: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
}

// === impl Clock ===

impl Clock {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            start: Instant::now(),
            passed: Cell::default(),
            timers: RefCell::default(),
            n_timers: Cell::default(),
            tasks: RefCell::default(),
            n_alive: Cell::default(),
            rung: Rung::default(),
        })
    }

    pub(crate) fn now(&self) -> Instant {
        self.start + self.passed.get()
    }

    /// Since the start.
    pub(crate) fn passed(&self) -> Duration {
        self.passed.get()
    }

    pub(crate) async fn sleep(&self, time: Duration) {
        self.sleep_until(self.now() + time).await;
    }

    pub(crate) async fn sleep_until(&self, at: Instant) {
        let at = at.saturating_duration_since(self.start);
        let mut is_set = false;
        std::future::poll_fn(|context| {
            if at <= self.passed.get() {
                return Poll::Ready(());
            }
            if !std::mem::replace(&mut is_set, true) {
                let seq = self.n_timers.get();
                self.n_timers.set(seq + 1);
                let waker = context.waker().clone();
                self.timers
                    .borrow_mut()
                    .push(Reverse(Timer { at, seq, waker }));
            }
            Poll::Pending
        })
        .await;
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let mut tasks = self.tasks.borrow_mut();
        let bell = Arc::new(Bell {
            task: tasks.len(),
            rung: Arc::clone(&self.rung),
        });
        bell.wake_by_ref();
        self.n_alive.set(self.n_alive.get() + 1);
        tasks.push(Some((Box::pin(task), bell.into())));
    }

    /// Until every task has ended.
    pub(crate) fn run(&self) {
        loop {
            while let Some(task) = self.next_rung() {
                self.poll(task);
            }
            if self.n_alive.get() == 0 {
                return;
            }
            let next = self.timers.borrow_mut().pop();
            let Some(Reverse(timer)) = next else {
                panic!("{} tasks wait for ever", self.n_alive.get());
            };
            self.passed.set(timer.at.max(self.passed.get()));
            timer.waker.wake();
        }
    }

    fn poll(&self, id: usize) {
        let task = self.tasks.borrow_mut()[id].take();
        // Woken twice, it may have ended.
        let Some((mut task, waker)) = task else {
            return;
        };
        let is_pending = task
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_pending();
        if is_pending {
            self.tasks.borrow_mut()[id] = Some((task, waker));
        } else {
            self.n_alive.set(self.n_alive.get() - 1);
        }
    }

    fn next_rung(&self) -> Option<usize> {
        self.rung.lock().unwrap().pop_front()
    }
}

// === impl Bell ===

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.lock().unwrap().push_back(self.task);
    }
}

// === impl Timer ===

impl Ord for Timer {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.seq).cmp(&(other.at, other.seq))
    }
}

impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Timer {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Timer {}

// === impl Signal ===

impl Signal {
    pub(crate) fn ring(&self) {
        self.n_rung.set(self.n_rung.get() + 1);
        for waker in self.waiting.take() {
            waker.wake();
        }
    }

    /// Until it rings.
    pub(crate) async fn wait(&self) {
        let n_rung = self.n_rung.get();
        std::future::poll_fn(|context| {
            if n_rung < self.n_rung.get() {
                return Poll::Ready(());
            }
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}
