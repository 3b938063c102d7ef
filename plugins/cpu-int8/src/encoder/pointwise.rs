//! Arithmetic on rows of f32: activations, softmax, layer norm, encoding.
//!
//! Sums run over an instruction set's lanes and then over the lanes in a fixed order, so a row's
//! result depends on its length and its values alone.

use crate::arena::Codes;
use crate::kernel::lanes::{LANES_MAX, Lanes, fold, polynomial, sum_of};
use crate::kernel::{Inside, Kernel, Op};
use crate::quant::{Code, Plain};

/// The nonlinearity of the feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x · Φ(x)
    Gelu,
    /// GELU by its tanh approximation, as `gelu_new` and `gelu_pytorch_tanh`.
    GeluTanh,
    /// max(x, 0)
    Relu,
    /// x · σ(x)
    Silu,
    /// tanh(x): poolers and RoBERTa's head
    Tanh,
}

impl Activation {
    /// The function of each lane.
    #[inline(always)]
    pub fn apply<L: Lanes>(self, lanes: L, x: L::F) -> L::F {
        match self {
            Self::Gelu => gelu(lanes, x),
            Self::GeluTanh => gelu_tanh(lanes, x),
            Self::Relu => lanes.max(lanes.splat(0.0), x),
            Self::Silu => lanes.mul(x, sigmoid(lanes, x)),
            Self::Tanh => {
                // A few hundred values a row: libm's will do.
                let mut values = [0.0; LANES_MAX];
                lanes.store(x, &mut values);
                lanes.load(&values.map(f32::tanh))
            }
        }
    }
}

/// x · Φ(x) = x/2 · (1 + erf(x/√2)). The erf is an odd rational function fitted for this file
/// (iteratively reweighted least squares on [0, 3.832]): at most 5.4e-7 off, and 1.5e-6 in GELU. A
/// polynomial of the same cost loses four digits to cancellation in f32; Abramowitz and Stegun's
/// 7.1.26 needs an exp on top of the division.
#[inline(always)]
pub fn gelu<L: Lanes>(lanes: L, x: L::F) -> L::F {
    const EDGE: f32 = 3.832;
    // GELU(−5.42) = −1.6e-7 already: cutting x there keeps erf's error from being multiplied by a
    // large −x. (A NaN stays one: it is the second operand.)
    let x = lanes.max(lanes.splat(-EDGE * std::f32::consts::SQRT_2), x);
    let z = lanes.mul(x, lanes.splat(std::f32::consts::FRAC_1_SQRT_2));
    let z = lanes.min(lanes.splat(EDGE), z);
    let u = lanes.mul(z, z);
    let above = [
        1.128_377_6,
        0.400_337_3,
        0.077_086_39,
        0.011_838_357,
        3.031_581_5e-4,
        -1.725_132_3e-6,
    ];
    let below = [
        1.0,
        0.688_100_3,
        0.197_774_06,
        0.031_256_294,
        2.816_818_3e-3,
    ];
    let (above, below) = (polynomial(lanes, u, above), polynomial(lanes, u, below));
    let erf = lanes.mul(lanes.mul(z, above), lanes.recip(below));
    let half = lanes.mul(lanes.splat(0.5), x);
    lanes.fma(half, erf, half)
}

/// GELU for what becomes i8: at most 1.9e-4 off up to |x| = 12, a few thousandths of a quantum, in half
/// of [`gelu`]'s instructions. Φ(x) = 1/2 + x · P(x²) on [−4, 4], fitted for this file (as above, the
/// error of x · Φ(x)); P is a polynomial of x²/8 − 1, which runs over [−1, 1], so that nothing cancels.
#[inline(always)]
pub fn gelu_coarse<L: Lanes>(lanes: L, x: L::F) -> L::F {
    const EDGE: f32 = 4.0;
    // A NaN stays one: it is the second operand.
    let inner = lanes.min(lanes.splat(EDGE), lanes.max(lanes.splat(-EDGE), x));
    let square = lanes.mul(inner, inner);
    let place = lanes.fma(square, lanes.splat(0.125), lanes.splat(-1.0));
    let coefficients = [
        0.175_970_23,
        -0.084_426_6,
        0.055_410_02,
        -0.035_462_48,
        0.024_091_745,
        -0.016_550_723,
        5.971_384_7e-3,
    ];
    let slope = polynomial(lanes, place, coefficients);
    lanes.mul(x, lanes.fma(inner, slope, lanes.splat(0.5)))
}

/// x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))), with (1 + tanh(t))/2 = 1/(1 + e^(−2t)).
#[inline(always)]
fn gelu_tanh<L: Lanes>(lanes: L, x: L::F) -> L::F {
    const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769;
    let cubic = lanes.mul(lanes.splat(0.044_715), x);
    let t = lanes.mul(x, lanes.fma(cubic, x, lanes.splat(1.0)));
    let t = lanes.mul(lanes.splat(TWICE_SQRT_2_OVER_PI), t);
    lanes.mul(x, sigmoid(lanes, t))
}

/// 1 / (1 + e^−x)
#[inline(always)]
fn sigmoid<L: Lanes>(lanes: L, x: L::F) -> L::F {
    let power = exp2(lanes, lanes.mul(lanes.splat(-std::f32::consts::LOG2_E), x));
    lanes.recip(lanes.add(lanes.splat(1.0), power))
}

/// 2^x to 2 ulp, for x up to 126; 1.2e-38 below −126.
#[inline(always)]
fn exp2<L: Lanes>(lanes: L, x: L::F) -> L::F {
    exp2_below_126(lanes, lanes.min(lanes.splat(126.0), x))
}

/// The same for x that are at most 126.
#[inline(always)]
fn exp2_below_126<L: Lanes>(lanes: L, x: L::F) -> L::F {
    // 2^f on [−1/2, 1/2], minimax but for the 1, which is kept exact: 2e-7 of itself.
    let mantissa = [
        1.0,
        0.693_146_94,
        0.240_221_2,
        0.055_507_13,
        9.675_541e-3,
        1.327_647_1e-3,
    ];
    exp2_by(lanes, x, mantissa)
}

/// The same to 1.1e-4 of itself, a fortieth of what rounding to bf16 adds.
#[inline(always)]
fn exp2_coarse_below_126<L: Lanes>(lanes: L, x: L::F) -> L::F {
    exp2_by(lanes, x, [1.0, 0.693_282_9, 0.242_211_01, 0.055_008_955])
}

#[inline(always)]
fn exp2_by<L: Lanes, const N: usize>(lanes: L, x: L::F, mantissa: [f32; N]) -> L::F {
    // A NaN stays one: it is the second operand.
    let x = lanes.max(lanes.splat(-126.0), x);
    let n = lanes.round(x);
    lanes.scale(polynomial(lanes, lanes.sub(x, n), mantissa), n)
}

/// Makes attention weights of the first `n` scores: `weights` become e^(scale · (x − max x)), and
/// their sum is returned. The largest is 1, so the sum is at least 1; a NaN anywhere makes the sum
/// NaN. Both slices are whole registers; what stands behind the `n` in the last is overwritten,
/// weights with 1e-38 at most, and weights behind that with zeros.
#[inline(always)]
pub fn softmax_unscaled<L: Lanes, O: Plain>(
    lanes: L,
    n: usize,
    x: &mut [f32],
    scale: f32,
    weights: &mut [O],
) -> f32 {
    let n_padded = n.next_multiple_of(L::N);
    let least = lanes.splat(f32::NEG_INFINITY);
    x[n..n_padded].fill(f32::NEG_INFINITY);
    // These meet values of zero, but what an earlier row left could be a NaN.
    weights[n_padded..].fill(O::default());
    let x = &x[..n_padded];
    let [even, odd] = fold(lanes, x, f32::NEG_INFINITY, least, |most, v| {
        lanes.max(v, most)
    });
    let most = lanes.most(lanes.max(even, odd));
    let scale = lanes.splat(scale * std::f32::consts::LOG2_E);
    let shift = lanes.mul(lanes.splat(-most), scale);
    let mut sum = lanes.splat(0.0);
    for (x, out) in x.chunks_exact(L::N).zip(weights.chunks_exact_mut(L::N)) {
        let power = lanes.fma(lanes.load(x), scale, shift);
        let v = if O::COARSE {
            exp2_coarse_below_126(lanes, power)
        } else {
            exp2_below_126(lanes, power)
        };
        sum = lanes.add(sum, v);
        O::store(lanes, v, out);
    }
    lanes.sum(sum)
}

/// A layer norm's parameters.
#[derive(Clone)]
pub struct Norm {
    /// Multiplied with the normalised row.
    pub weight: Vec<f32>,
    /// Added to it.
    pub bias: Vec<f32>,
    /// Added to the variance.
    pub epsilon: f32,
    /// What becomes of the row that was normalised.
    pub stream: Stream,
}

/// What goes on as the residual stream where a norm stands behind an addition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// The norm's result: layers whose norms follow their additions, as BERT's.
    Normed,
    /// The sum itself, and only what reads the stream next sees the norm's result: layers whose
    /// norms come first, as ModernBERT's.
    Sum,
}

/// Normalises a row in place: (x − mean) / √(var + ε) · weight + bias, the variance over n.
#[inline(always)]
pub fn layer_norm<L: Lanes>(lanes: L, norm: &Norm, x: &mut [f32]) {
    let n = x.len() as f32;
    let mean = sum_of(lanes, x, 0.0, |v| v) / n;
    let mean_lanes = lanes.splat(mean);
    // What is missing in the last register is the mean: its square is 0.
    let squares = sum_of(lanes, x, mean, |v| {
        let v = lanes.sub(v, mean_lanes);
        lanes.mul(v, v)
    });
    let inverse = lanes.splat(1.0 / (squares / n + norm.epsilon).sqrt());
    let normed = |v, weight, bias| {
        let v = lanes.mul(lanes.sub(v, mean_lanes), inverse);
        lanes.fma(v, weight, bias)
    };
    let whole = x.len() / L::N * L::N;
    let (chunks, tail) = x.split_at_mut(whole);
    let (weights, bias) = (&norm.weight, &norm.bias);
    for ((x, weight), bias) in chunks
        .chunks_exact_mut(L::N)
        .zip(weights.chunks_exact(L::N))
        .zip(bias.chunks_exact(L::N))
    {
        let v = normed(lanes.load(x), lanes.load(weight), lanes.load(bias));
        lanes.store(v, x);
    }
    if !tail.is_empty() {
        let part = |x| lanes.load_part(x, 0.0);
        let v = normed(part(tail), part(&weights[whole..]), part(&bias[whole..]));
        lanes.store_part(v, tail);
    }
}

/// Normalises the first `n_rows` rows of `x`, in place or aside as the norm's [`Stream`] says, and
/// encodes each while it is in L1.
pub struct NormAndEncode<'a, K: Kernel> {
    /// The parameters; `None` encodes only: see [`encode`](Self::encode).
    pub norm: Option<&'a Norm>,
    /// What each value is multiplied with before it is encoded; empty: nothing.
    pub smoothing: &'a [f32],
    /// Room for a row that is normalised aside and for a smoothed one; not used without norm and
    /// smoothing.
    pub aside: &'a mut [f32],
    /// Rows of `width`.
    pub x: &'a mut [f32],
    /// Values of a row.
    pub width: usize,
    /// Rows.
    pub n_rows: usize,
    /// Where the encoded rows go.
    pub codes: &'a mut Codes<K>,
}

impl<'a, K: Kernel> NormAndEncode<'a, K> {
    /// Encodes `n_rows` rows of `width` as they are.
    pub fn encode(x: &'a mut [f32], width: usize, n_rows: usize, codes: &'a mut Codes<K>) -> Self {
        Self {
            norm: None,
            smoothing: &[],
            aside: &mut [],
            x,
            width,
            n_rows,
            codes,
        }
    }
}

impl<K: Kernel> Op<K> for NormAndEncode<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run(self, inside: &Inside<K>) {
        let (lanes, stride) = (inside.kernel().float(), self.codes.stride);
        assert_eq!(
            stride,
            self.width.next_multiple_of(K::K_ALIGN),
            "codes of another width"
        );
        for row_idx in 0..self.n_rows {
            let mut row = &mut self.x[row_idx * self.width..][..self.width];
            let (normed, smoothed) = self.aside.split_at_mut(self.aside.len() / 2);
            if let Some(norm) = self.norm {
                if norm.stream == Stream::Sum {
                    normed.copy_from_slice(row);
                    row = normed;
                }
                layer_norm(lanes, norm, row);
            }
            let codes = &mut self.codes.codes[row_idx * stride..][..stride];
            let values = if self.smoothing.is_empty() {
                row
            } else {
                smooth(lanes, row, self.smoothing, smoothed)
            };
            self.codes.scales[row_idx] = K::Left::encode(lanes, values, codes);
        }
    }
}

#[inline(always)]
pub(super) fn add_to(sum: &mut [f32], x: &[f32]) {
    for (sum, x) in sum.iter_mut().zip(x) {
        *sum += x;
    }
}

/// `x · factors`, into `out`.
#[inline(always)]
fn smooth<'a, L: Lanes>(lanes: L, x: &[f32], factors: &[f32], out: &'a mut [f32]) -> &'a mut [f32] {
    let out = &mut out[..x.len()];
    let whole = x.len() / L::N * L::N;
    for ((x, factor), out) in x
        .chunks_exact(L::N)
        .zip(factors.chunks_exact(L::N))
        .zip(out.chunks_exact_mut(L::N))
    {
        lanes.store(lanes.mul(lanes.load(x), lanes.load(factor)), out);
    }
    for ((x, factor), out) in x.iter().zip(factors).zip(out.iter_mut()).skip(whole) {
        *out = x * factor;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Dtype::F32;
    use crate::kernel::lanes::map;
    use crate::kernel::scalar::PortableF32;
    use crate::kernel::{Visitor, visit_all};
    use crate::quant::Bf16;

    /// Runs a function of one number under every f32 kernel and compares with f64.
    #[track_caller]
    fn check(activation: Activation, exact: fn(f64) -> f64, absolute: f64) {
        struct Run<'a>(Activation, &'a [f32]);
        impl Visitor for Run<'_> {
            type Output = (&'static str, Vec<f32>);
            fn visit<K: Kernel>(&mut self, kernel: K) -> Self::Output {
                struct Apply<'a, K>(Activation, &'a mut [f32], K);
                impl<K: Kernel> Op<K> for Apply<'_, K> {
                    type Output = ();
                    #[inline(always)]
                    fn run(self, inside: &Inside<K>) {
                        let lanes = inside.kernel().float();
                        map(lanes, self.1, |v| self.0.apply(lanes, v));
                    }
                }
                let mut x = self.1.to_vec();
                kernel.vectorize(Apply(self.0, &mut x, kernel));
                (K::NAME, x)
            }
        }
        let x: Vec<f32> = (-40_000..=40_000)
            .map(|i| i as f32 / 2_000.0)
            .chain([-200.0, 200.0, 1e30, -1e30])
            .collect();
        for (name, found) in visit_all(F32, &mut Run(activation, &x)) {
            for (&x, &y) in x.iter().zip(&found) {
                let expected = exact(f64::from(x));
                let error = (f64::from(y) - expected).abs();
                assert!(
                    error <= absolute + 3e-7 * expected.abs(),
                    "{activation:?}({x}) = {y}, not {expected}, by {name}"
                );
            }
        }
    }

    /// erf by its Taylor series near 0 and by the continued fraction of erfc elsewhere.
    fn erf(x: f64) -> f64 {
        let z = x.abs();
        let magnitude = if z < 3.0 {
            let (mut term, mut sum) = (z, z);
            for n in 1..200 {
                term *= -z * z / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            sum * 2.0 / std::f64::consts::PI.sqrt()
        } else {
            let fraction = (1..60)
                .rev()
                .fold(z, |inner, n| z + f64::from(n) / 2.0 / inner);
            1.0 - (-z * z).exp() / fraction / std::f64::consts::PI.sqrt()
        };
        magnitude.copysign(x)
    }

    #[test]
    fn gelu_is_close() {
        check(
            Activation::Gelu,
            |x| 0.5 * x * (1.0 + erf(x / 2.0_f64.sqrt())),
            2e-6,
        );
    }

    #[test]
    fn coarse_gelu_is_close_enough_for_i8() {
        for at in -1_200..=1_200 {
            let x = at as f32 / 100.0;
            let exact = 0.5 * f64::from(x) * (1.0 + erf(f64::from(x) / 2.0_f64.sqrt()));
            let found = gelu_coarse(PortableF32, PortableF32.splat(x))[0];
            assert!((f64::from(found) - exact).abs() < 2e-4, "{x}: {found}");
        }
        assert!(gelu_coarse(PortableF32, PortableF32.splat(f32::NAN))[0].is_nan());
    }

    #[test]
    fn gelu_tanh_is_close() {
        let exact = |x: f64| {
            let t = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + t.tanh())
        };
        check(Activation::GeluTanh, exact, 2e-6);
    }

    #[test]
    fn silu_relu_and_tanh_are_close() {
        check(Activation::Silu, |x| x / (1.0 + (-x).exp()), 1e-6);
        check(Activation::Relu, |x| x.max(0.0), 0.0);
        check(Activation::Tanh, f64::tanh, 1e-7);
    }

    #[test]
    fn softmax_of_one_and_of_many() {
        let (mut one, mut weights) = ([3.0_f32; 16], [9.0_f32; 48]);
        assert_eq!(
            softmax_unscaled(PortableF32, 1, &mut one, 0.5, &mut weights),
            1.0
        );
        assert_eq!(weights[0], 1.0);
        assert!(weights[1..16].iter().all(|&weight| weight < 1e-37));
        let mut x: Vec<f32> = (0..48).map(|i| (i as f32 * 0.7).sin() * 9.0).collect();
        let exact: Vec<f64> = x[..37].iter().map(|&v| f64::from(v) * 0.25).collect();
        let most = exact.iter().fold(f64::MIN, |a, &b| a.max(b));
        let sum = softmax_unscaled(PortableF32, 37, &mut x, 0.25, &mut weights);
        let exact_sum: f64 = exact.iter().map(|v| (v - most).exp()).sum();
        assert!(
            (f64::from(sum) - exact_sum).abs() < 1e-5,
            "{sum} is not {exact_sum}"
        );
        for (found, exact) in weights.iter().zip(exact) {
            assert!((f64::from(*found) - (exact - most).exp()).abs() < 1e-6);
        }
        let mut halves = [Bf16::default(); 48];
        let mut x: Vec<f32> = (0..48).map(|i| (i as f32 * 0.7).sin() * 9.0).collect();
        softmax_unscaled(PortableF32, 37, &mut x, 0.25, &mut halves);
        for (found, exact) in halves.iter().zip(&weights[..37]) {
            // Half a step of bf16's 8 bits, and the coarser power.
            assert!((found.get() - exact).abs() < 0.0041 * exact, "{exact}");
        }
        let mut poisoned = [0.0_f32; 16];
        poisoned[5] = f32::NAN;
        assert!(softmax_unscaled(PortableF32, 9, &mut poisoned, 0.25, &mut weights).is_nan());
    }
}
