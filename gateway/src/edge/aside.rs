//! Work that keeps a processor busy, beside the tasks that should not wait for it.

use tokio::runtime::{Handle, RuntimeFlavor};

/// To read or write so many bytes takes a millisecond or so: what is larger must not stand in the
/// way of `/livez`.
const IN_PLACE_BYTES_MAX: usize = 256 * 1024;

/// Works through so many bytes. If they are many, this thread's other tasks go to another one first.
pub(super) fn aside<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
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
