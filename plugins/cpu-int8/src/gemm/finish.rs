//! What happens to a finished tile: scale, bias, and one of three endings.

use crate::encoder::pointwise::Activation;
use crate::kernel::{Kernel, NR_MAX, mul_add};
use crate::quant::Sum;

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
pub fn finish_row<K: Kernel>(
    sums: &[K::Acc],
    row_scale: f32,
    columns: &Columns<'_, K>,
    finish: Finish,
    out: &mut [f32],
) {
    // Slices of a length that the compiler knows: it unrolls the loop into NR / 8 or 16 registers.
    // With lengths of the last panel instead, this took a quarter of the time of a 6 × 16 × 384
    // tile.
    let (sums, scales) = (&sums[..K::NR], &columns.scales[..K::NR]);
    let (corrections, bias) = (&columns.corrections[..K::NR], &columns.bias[..K::NR]);
    let mut values = [0.0; NR_MAX];
    let values = &mut values[..K::NR];
    for c in 0..K::NR {
        values[c] = mul_add::<K>(
            sums[c].corrected(corrections[c]),
            row_scale * scales[c],
            bias[c],
        );
    }
    if let Finish::Activate(activation) = finish {
        activation.apply::<K>(values);
    }
    let add = finish == Finish::AddTo;
    let (outs, out_tail) = out.as_chunks_mut::<LANES>();
    let (values, value_tail) = values.as_chunks::<LANES>();
    for (out, value) in outs.iter_mut().zip(values) {
        end(out, value, add);
    }
    // Nothing but in the last panel of a layer whose width is no multiple of LANES; `values` then
    // has a whole chunk where `out` has this tail.
    if let Some(value) = values.get(outs.len()) {
        end(out_tail, value, add);
    }
    debug_assert!(value_tail.is_empty());
}

/// Values that are ended at a time.
const LANES: usize = 8;

#[inline(always)]
fn end(out: &mut [f32], values: &[f32; LANES], add: bool) {
    // By way of an array: the compiler may then read all before it writes any, which makes vectors
    // of it.
    let mut ended = *values;
    if add {
        ended
            .iter_mut()
            .zip(&*out)
            .for_each(|(value, old)| *value += old);
    }
    out.copy_from_slice(&ended[..out.len()]);
}
