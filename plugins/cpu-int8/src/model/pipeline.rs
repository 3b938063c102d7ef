//! The encoder's layers, read, calibrated and packed by a few threads.
//!
//! ```text
//! read 0   read 1   read 2   read 3 …         any thread, at most `in_flight_max` layers ahead
//!      calibrate 0 → calibrate 1 → …          one at a time: a layer reads what the one before wrote
//!              pack 0   pack 1 …              any thread
//! ```
//!
//! Each thread takes the most urgent piece that can be done: the chain of calibrations first, since
//! everything waits for it, then packing, which gives memory back, then reading. A piece is one
//! thread's and depends on its layer and the chain alone, so the result does not depend on how many
//! threads there are.

use super::load::{Loader, RawLayer};
use super::smooth::{Calibration, Factors};
use super::{Layer, LoadError};
use crate::kernel::Kernel;
use crate::quant::narrow::Storage;
use crate::threads::{lock, on_each};
use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, PoisonError};
use std::task::Poll;

/// What the threads of one load share.
struct Pipeline<'a, K: Kernel> {
    kernel: K,
    storage: Storage,
    loader: &'a Loader<'a>,
    board: Mutex<Board<K>>,
    changed: Condvar,
}

/// Which layers are how far.
struct Board<K: Kernel> {
    n_layers: usize,
    /// Layers whose weights may be held in f32 at a time.
    in_flight_max: usize,
    n_in_flight: usize,
    next_to_read: usize,
    next_to_calibrate: usize,
    /// `None` while a thread has it, and for kernels that need none.
    calibration: Option<Box<Calibration<K::Float>>>,
    /// Layers before calibration.
    read: BTreeMap<usize, RawLayer>,
    /// Layers before packing.
    calibrated: Vec<(usize, RawLayer, Option<Factors>)>,
    packed: BTreeMap<usize, Layer<K>>,
    failed: Option<(usize, LoadError)>,
    /// A thread panicked: what it held will never come back.
    is_lost: bool,
}

enum Piece<F: Kernel> {
    Read(usize),
    Calibrate(usize, RawLayer, Box<Calibration<F>>),
    Pack(usize, RawLayer, Option<Factors>),
}

/// Loads all layers on `n_threads`, their weights to be held as `storage`.
///
/// # Errors
/// That of the first layer, in order, that cannot be read.
pub(super) fn load<K: Kernel>(
    kernel: K,
    storage: Storage,
    loader: &Loader<'_>,
    calibration: Option<Calibration<K::Float>>,
    n_threads: usize,
) -> Result<Vec<Layer<K>>, LoadError> {
    let pipeline = Pipeline {
        kernel,
        storage,
        loader,
        board: Mutex::new(Board {
            n_layers: loader.config.n_layers,
            in_flight_max: n_threads + 1,
            n_in_flight: 0,
            next_to_read: 0,
            next_to_calibrate: 0,
            calibration: calibration.map(Box::new),
            read: BTreeMap::new(),
            calibrated: Vec::new(),
            packed: BTreeMap::new(),
            failed: None,
            is_lost: false,
        }),
        changed: Condvar::new(),
    };
    let is_calibrated = lock(&pipeline.board).calibration.is_some();
    on_each(n_threads, || pipeline.work(is_calibrated));
    let board = pipeline.board.into_inner();
    let board = board.unwrap_or_else(PoisonError::into_inner);
    match board.failed {
        Some((_, error)) => Err(error),
        None => Ok(board.packed.into_values().collect()),
    }
}

// === impl Pipeline ===

impl<K: Kernel> Pipeline<'_, K> {
    fn work(&self, is_calibrated: bool) {
        let _lost = Lost(self);
        while let Some(piece) = self.next() {
            match piece {
                Piece::Read(layer) => {
                    let read = self.loader.layer(self.kernel.float(), layer);
                    self.put(|board| match read {
                        Ok(raw) if is_calibrated => drop(board.read.insert(layer, raw)),
                        Ok(raw) => board.calibrated.push((layer, raw, None)),
                        Err(error) => board.fail(layer, error),
                    });
                }
                Piece::Calibrate(layer, raw, mut calibration) => {
                    let factors = calibration
                        .pass(|kernel, room| raw.pack(kernel, Storage::Whole, None, room));
                    self.put(|board| {
                        board.next_to_calibrate += 1;
                        board.calibration = Some(calibration);
                        board.calibrated.push((layer, raw, Some(factors)));
                    });
                }
                Piece::Pack(layer, raw, factors) => {
                    let packed = raw.pack(self.kernel, self.storage, factors, None);
                    self.loader.recycle(raw);
                    self.put(|board| {
                        board.n_in_flight -= 1;
                        board.packed.insert(layer, packed);
                    });
                }
            }
        }
    }

    /// The next piece, once there is one; `None` when nothing is left to begin.
    fn next(&self) -> Option<Piece<K::Float>> {
        let mut board = lock(&self.board);
        loop {
            match board.next() {
                Poll::Ready(piece) => return piece,
                Poll::Pending => {
                    let woken = self.changed.wait(board);
                    board = woken.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    fn put(&self, put: impl FnOnce(&mut Board<K>)) {
        put(&mut lock(&self.board));
        self.changed.notify_all();
    }
}

/// Tells the other threads if its own panics, so that none waits for ever.
struct Lost<'a, 'b, K: Kernel>(&'a Pipeline<'b, K>);

impl<K: Kernel> Drop for Lost<'_, '_, K> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.put(|board| board.is_lost = true);
        }
    }
}

// === impl Board ===

impl<K: Kernel> Board<K> {
    /// The most urgent piece; pending while only what other threads do can lead to one.
    fn next(&mut self) -> Poll<Option<Piece<K::Float>>> {
        if self.is_lost || self.failed.is_some() {
            return Poll::Ready(None);
        }
        let layer = self.next_to_calibrate;
        if let Some(raw) = self.read.remove(&layer) {
            match self.calibration.take() {
                Some(chain) => return Poll::Ready(Some(Piece::Calibrate(layer, raw, chain))),
                None => drop(self.read.insert(layer, raw)),
            }
        }
        if let Some((layer, raw, factors)) = self.calibrated.pop() {
            return Poll::Ready(Some(Piece::Pack(layer, raw, factors)));
        }
        if self.next_to_read < self.n_layers && self.n_in_flight < self.in_flight_max {
            self.n_in_flight += 1;
            self.next_to_read += 1;
            return Poll::Ready(Some(Piece::Read(self.next_to_read - 1)));
        }
        if self.n_in_flight == 0 {
            return Poll::Ready(None);
        }
        Poll::Pending
    }

    /// Layers are read in order and those that were begun are finished, so the first that fails is
    /// the same on any number of threads.
    fn fail(&mut self, layer: usize, error: LoadError) {
        if self.failed.as_ref().is_none_or(|(first, _)| layer < *first) {
            self.failed = Some((layer, error));
        }
    }
}
