//! What happens to a finished tile: scale, bias, and one of four endings.

use crate::encoder::pointwise::{Activation, gelu, gelu_coarse};
use crate::kernel::Kernel;
use crate::kernel::lanes::{LANES_MAX, Lanes};
use crate::quant::{Code, Plain, Sum};

/// The ending of a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// `out = y`
    Store,
    /// `out += y`: the residual connection.
    AddTo,
    /// `out = activation(y)`
    Activate(Activation),
    /// `out = activation(y) · out`: a gated layer's second half.
    Gate(Activation),
}

/// The constants of one panel's columns, NR of each; columns that do not exist have zeros.
pub struct Columns<'a, K: Kernel> {
    /// Weight scales.
    pub scales: &'a [f32],
    /// What the zero point of the activations adds to each sum.
    pub corrections: &'a [K::Acc],
    /// Added to each output.
    pub bias: &'a [f32],
}

/// A finished tile and where it goes.
pub struct Sums<'a, K: Kernel> {
    /// Rows of NR sums.
    pub sums: &'a [K::Acc],
    /// One scale a row: as many rows as scales.
    pub row_scales: &'a [f32],
    /// The panel's constants.
    pub columns: Columns<'a, K>,
    /// Elements from one row of the result to the next.
    pub stride: usize,
    /// Columns of the result: NR but in the last panel of a layer whose width is no multiple of it.
    pub n_columns: usize,
}

impl<K: Kernel> Sums<'_, K> {
    /// Ends each sum: `out = ending(scale · (sum − correction) + bias)`; `out` begins with the
    /// panel's first column.
    #[inline(always)]
    pub fn finish<O: Plain>(&self, lanes: K::Float, finish: Finish, out: &mut [O]) {
        // The choice is made here, so that the loops below are straight.
        match finish {
            Finish::Store => self.end_all(lanes, Store, out),
            Finish::AddTo => self.end_all(lanes, AddTo, out),
            Finish::Activate(Activation::Gelu) if K::Left::QUANTISED => {
                self.end_all(lanes, CoarseGelu, out);
            }
            Finish::Activate(Activation::Gelu) => self.end_all(lanes, Gelu, out),
            Finish::Activate(activation) => self.end_all(lanes, activation, out),
            Finish::Gate(Activation::Gelu) => self.end_all(lanes, Times(Gelu), out),
            Finish::Gate(activation) => self.end_all(lanes, Times(activation), out),
        }
    }

    #[inline(always)]
    fn end_all<O: Plain>(&self, lanes: K::Float, ending: impl Ending, out: &mut [O]) {
        let n = <K::Float as Lanes>::N;
        for first in (0..self.n_columns).step_by(n) {
            let scale = lanes.load(&self.columns.scales[first..]);
            let bias = lanes.load(&self.columns.bias[first..]);
            // Nothing to take off without a zero point.
            let corrections = &self.columns.corrections[first..first + n];
            let corrections = (K::Left::ZERO_POINT != 0).then_some(corrections);
            let n_out = (self.n_columns - first).min(n);
            let sums = self.sums.chunks_exact(K::NR);
            let outs = out.chunks_mut(self.stride);
            for ((sums, &row_scale), out) in sums.zip(self.row_scales).zip(outs) {
                let sum = K::Acc::load(lanes, &sums[first..], corrections);
                let scale = lanes.mul(lanes.splat(row_scale), scale);
                let value = lanes.fma(sum, scale, bias);
                let out = &mut out[first..first + n_out];
                if n_out == n {
                    O::store(lanes, ending.end(lanes, value, out), out);
                } else {
                    let mut whole = [O::default(); LANES_MAX];
                    whole[..n_out].copy_from_slice(out);
                    let value = ending.end(lanes, value, &whole);
                    O::store(lanes, value, &mut whole);
                    out.copy_from_slice(&whole[..n_out]);
                }
            }
        }
    }
}

/// What an ending does to a register. Types instead of closures: those may be left as calls, and a
/// call leaves the kernel's instruction set.
trait Ending: Copy {
    fn end<L: Lanes, O: Plain>(self, lanes: L, value: L::F, old: &[O]) -> L::F;
}

#[derive(Clone, Copy)]
struct Store;

impl Ending for Store {
    #[inline(always)]
    fn end<L: Lanes, O: Plain>(self, _: L, value: L::F, _: &[O]) -> L::F {
        value
    }
}

#[derive(Clone, Copy)]
struct AddTo;

impl Ending for AddTo {
    #[inline(always)]
    fn end<L: Lanes, O: Plain>(self, lanes: L, value: L::F, old: &[O]) -> L::F {
        lanes.add(value, O::load(lanes, old))
    }
}

/// The one activation of nearly every model, without a choice in the loop.
#[derive(Clone, Copy)]
struct Gelu;

impl Ending for Gelu {
    #[inline(always)]
    fn end<L: Lanes, O: Plain>(self, lanes: L, value: L::F, _: &[O]) -> L::F {
        gelu(lanes, value)
    }
}

/// The same where the result is quantised next.
#[derive(Clone, Copy)]
struct CoarseGelu;

impl Ending for CoarseGelu {
    #[inline(always)]
    fn end<L: Lanes, O: Plain>(self, lanes: L, value: L::F, _: &[O]) -> L::F {
        gelu_coarse(lanes, value)
    }
}

/// An ending, multiplied with what stood there.
#[derive(Clone, Copy)]
struct Times<E>(E);

impl<E: Ending> Ending for Times<E> {
    #[inline(always)]
    fn end<L: Lanes, O: Plain>(self, lanes: L, value: L::F, old: &[O]) -> L::F {
        lanes.mul(self.0.end(lanes, value, old), O::load(lanes, old))
    }
}

impl Ending for Activation {
    #[inline(always)]
    fn end<L: Lanes, O: Plain>(self, lanes: L, value: L::F, _: &[O]) -> L::F {
        self.apply(lanes, value)
    }
}
