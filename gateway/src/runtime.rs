//! Whoever starts a thread or a task starts it here, so that there is one place that knows them all.

use std::io;
use std::thread::{self, JoinHandle};

/// Handed out by `app`.
#[derive(Clone, Debug)]
pub struct Runtime {
    tasks: tokio::runtime::Handle,
    n_threads: usize,
}

impl Runtime {
    /// Tasks go to `tasks`; `n_threads` of the processors are for computing, 0 for all that the process
    /// may use (its affinity mask and its cgroup's quota).
    pub fn new(tasks: tokio::runtime::Handle, n_threads: usize) -> Self {
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
        thread::Builder::new().name(name).spawn(run)
    }

    /// Work that blocks for a while, awaited by a task.
    pub fn blocking<T: Send + 'static>(
        &self,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.tasks.spawn_blocking(run)
    }

    /// A task.
    pub fn task(
        &self,
        run: impl Future<Output = ()> + Send + 'static,
    ) -> tokio::task::JoinHandle<()> {
        self.tasks.spawn(run)
    }
}
