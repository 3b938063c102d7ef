//! Work on a few threads while a model loads. Nothing of it runs while rows are scored.
//!
//! Threads are spawned for the load and joined before it ends, so they inherit the caller's priority
//! and processors and none is left. Where the system gives no more threads, the caller's does it all.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Runs `work` on this thread and on `n_threads − 1` others; returns when all have.
pub fn on_each(n_threads: usize, work: impl Fn() + Sync) {
    std::thread::scope(|scope| {
        for _ in 1..n_threads {
            if std::thread::Builder::new()
                .spawn_scoped(scope, &work)
                .is_err()
            {
                break;
            }
        }
        work();
    });
}

/// Does every job, each thread with a `start()` of its own. Jobs begin in order, and no more begin
/// once one has failed; so the error returned, the first by order, is the same on any number of
/// threads.
///
/// # Errors
/// That of the first job that fails.
pub fn for_each<J: Send, S, E: Send>(
    n_threads: usize,
    jobs: impl Iterator<Item = J> + Send,
    start: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, J) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let jobs = Mutex::new(jobs.enumerate());
    let failed: Mutex<Option<(usize, E)>> = Mutex::new(None);
    on_each(n_threads, || {
        let mut own = start();
        loop {
            if lock(&failed).is_some() {
                break;
            }
            let Some((at, job)) = lock(&jobs).next() else {
                break;
            };
            if let Err(error) = work(&mut own, job) {
                let mut failed = lock(&failed);
                if failed.as_ref().is_none_or(|(first, _)| at < *first) {
                    *failed = Some((at, error));
                }
            }
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    failed.map_or(Ok(()), |(_, error)| Err(error))
}

/// A panic elsewhere ends the load anyway, at the join.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_job_is_done_once() {
        for n_threads in [1, 2, 3, 8] {
            let mut done = vec![0; 100];
            let jobs = done.iter_mut();
            for_each(
                n_threads,
                jobs,
                || (),
                |(), done| {
                    *done += 1;
                    Ok::<_, ()>(())
                },
            )
            .unwrap();
            assert!(done.iter().all(|&done| done == 1), "{n_threads} threads");
        }
    }

    #[test]
    fn the_first_error_is_the_same_on_any_number_of_threads() {
        for n_threads in [1, 2, 3, 8] {
            for _ in 0..50 {
                let work = |(): &mut (), job| if job % 7 == 3 { Err(job) } else { Ok(()) };
                assert_eq!(for_each(n_threads, 0..100, || (), work), Err(3));
            }
        }
    }
}
