//! The locks behind which several threads decide together. The feature `shuttle` puts those of a scheduler in
//! their place that tries many interleavings of them (`tests/interleavings.rs`).

#[cfg(not(feature = "shuttle"))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, atomic::AtomicUsize};

#[cfg(feature = "shuttle")]
pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard, PoisonError, atomic::AtomicUsize};
