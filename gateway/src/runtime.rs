//! Whoever starts a thread or a task starts it here, so that there is one place that knows them all.

use std::io;
use std::thread::{self, JoinHandle};
use std::time::Instant;
use tokio::runtime::{Handle, RuntimeFlavor};

/// Handed out by `app`.
#[derive(Clone, Debug)]
pub struct Runtime {
    tasks: Handle,
    n_threads: usize,
}

impl Runtime {
    /// Tasks go to `tasks`; `n_threads` of the processors are for computing, 0 for all that the process
    /// may use (its affinity mask and its cgroup's quota).
    pub fn new(tasks: Handle, n_threads: usize) -> Self {
        let available = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let n_threads = if n_threads == 0 { available } else { n_threads };
        Self { tasks, n_threads }
    }

    /// Threads that compute for each model, unless configured otherwise.
    pub fn n_threads(&self) -> usize {
        self.n_threads
    }

    /// A named thread of the operating system, for work that blocks.
    ///
    /// # Errors
    /// When the system has no more threads.
    pub fn thread(
        &self,
        name: String,
        run: impl FnOnce() + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let tasks = self.tasks.clone();
        thread::Builder::new().name(name).spawn(move || {
            // For the clock.
            let _entered = tasks.enter();
            run();
        })
    }

    /// Work that blocks for a while, awaited by a task.
    pub fn blocking<T: Send + 'static>(
        &self,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.tasks.spawn_blocking(run)
    }

    /// Waits for a future on a thread that may block.
    pub fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.tasks.block_on(future)
    }

    /// A task.
    pub fn task(
        &self,
        run: impl Future<Output = ()> + Send + 'static,
    ) -> tokio::task::JoinHandle<()> {
        self.tasks.spawn(run)
    }
}

/// The time by the clock of the stages' timers, which a test may stop and turn on.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The lowest of Unix's priorities.
const NICE: i32 = 19;

/// The calling thread runs when nobody else wants its processor, and so do those that it starts. For ever:
/// the system does not let it back.
pub fn step_back() {
    // Where the system refuses, it runs as before.
    let _ = rustix::process::setpriority_process(None, NICE);
}

/// Does `work` on a thread that has [stepped back](step_back), and waits for it. Where there is no more
/// thread, or the work panics, `None`.
pub fn aside_of_all<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    thread::scope(|scope| {
        let quiet = thread::Builder::new().name("quiet".to_owned());
        let work = move || {
            // On Linux a thread has a priority of its own; elsewhere it would be the whole process's.
            if cfg!(target_os = "linux") {
                step_back();
            }
            work()
        };
        quiet.spawn_scoped(scope, work).ok()?.join().ok()
    })
}

/// To read or write so many bytes takes a millisecond or so: what is larger must not stand in the
/// way of `/livez`.
const IN_PLACE_BYTES_MAX: usize = 256 * 1024;

/// Works through so many bytes. If they are many, this thread's other tasks go to another one first.
pub fn aside<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    // A runtime of one thread has nowhere else to put them; ours has several.
    let is_threaded = || {
        Handle::try_current()
            .is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread)
    };
    if IN_PLACE_BYTES_MAX < bytes && is_threaded() {
        tokio::task::block_in_place(work)
    } else {
        work()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::sync_channel;
    use std::time::Duration;

    #[test]
    fn others_do_not_wait() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .expect("a runtime");
        let (tell, hear) = sync_channel(1);
        let worked = runtime.block_on(async {
            let busy = tokio::spawn(async move {
                // Only another task can end this.
                tokio::spawn(async move { tell.send(()) });
                aside(IN_PLACE_BYTES_MAX + 1, || {
                    hear.recv_timeout(Duration::from_secs(30))
                })
            });
            busy.await.expect("no panic")
        });
        assert_eq!(worked, Ok(()));
    }
}
