//! What happens to a finished tile: scale, bias, and one of three endings.

use crate::encoder::pointwise::Activation;
use crate::kernel::Kernel;
use crate::kernel::lanes::{LANES_MAX, Lanes};
use crate::quant::{Plain, Sum};

/// The ending of a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// `out = y`
    Store,
    /// `out += y`: the residual connection.
    AddTo,
    /// `out = activation(y)`
    Activate(Activation),
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

/// Ends one row of a tile: `out = ending(scale · (sum − correction) + bias)`. `out` is shorter than
/// NR in the last panel of a layer whose width is no multiple of NR.
#[inline(always)]
pub fn finish_row<K: Kernel, O: Plain>(
    lanes: K::Float,
    sums: &[K::Acc],
    row_scale: f32,
    columns: &Columns<'_, K>,
    finish: Finish,
    out: &mut [O],
) {
    let row_scale = lanes.splat(row_scale);
    let n = <K::Float as Lanes>::N;
    // Whole panels, but for a layer's last: the length is known, and the loop is written out.
    let (sums, scales) = (&sums[..K::NR], &columns.scales[..K::NR]);
    let (corrections, bias) = (&columns.corrections[..K::NR], &columns.bias[..K::NR]);
    for (first, out) in (0..K::NR).step_by(n).zip(out.chunks_mut(n)) {
        let sum = K::Acc::load(lanes, &sums[first..], &corrections[first..]);
        let scale = lanes.mul(row_scale, lanes.load(&scales[first..]));
        let value = lanes.fma(sum, scale, lanes.load(&bias[first..]));
        if out.len() == n {
            end(lanes, value, finish, out);
        } else {
            let mut whole = [O::default(); LANES_MAX];
            whole[..out.len()].copy_from_slice(out);
            end(lanes, value, finish, &mut whole);
            out.copy_from_slice(&whole[..out.len()]);
        }
    }
}

#[inline(always)]
fn end<L: Lanes, O: Plain>(lanes: L, value: L::F, finish: Finish, out: &mut [O]) {
    let value = match finish {
        Finish::Store => value,
        Finish::AddTo => lanes.add(value, O::load(lanes, out)),
        Finish::Activate(activation) => activation.apply(lanes, value),
    };
    O::store(lanes, value, out);
}
