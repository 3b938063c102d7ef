//! Locks of what several threads decide together. The feature `shuttle` puts the locks of a scheduler in
//! their place that tries many interleavings (`tests/interleavings.rs`).

#[cfg(not(feature = "shuttle"))]
pub use std::sync::{Condvar, Mutex, MutexGuard, atomic::AtomicUsize};

#[cfg(feature = "shuttle")]
pub use shuttle::sync::{Condvar, Mutex, MutexGuard, atomic::AtomicUsize};
