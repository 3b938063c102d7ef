//! Arithmetic on rows of f32: activations, softmax, layer norm. Plain loops over arrays: inside
//! [`Kernel::vectorize`] the compiler turns them into the instruction set's vectors.
//!
//! Sums run over 16 fixed lanes and then over the lanes in order, so a row's result depends on its
//! length and its values alone.

use crate::arena::Codes;
use crate::kernel::{Kernel, Op, mul_add};
use crate::quant::Code;

/// Lanes of a sum: two registers of 8, enough to hide an addition's latency.
const LANES: usize = 16;

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
    /// Applies the function to each element.
    #[inline(always)]
    pub fn apply<K: Kernel>(self, x: &mut [f32]) {
        match self {
            Self::Gelu => x.iter_mut().for_each(|v| *v = gelu::<K>(*v)),
            Self::GeluTanh => x.iter_mut().for_each(|v| *v = gelu_tanh::<K>(*v)),
            Self::Relu => x.iter_mut().for_each(|v| *v = v.max(0.0)),
            Self::Silu => x.iter_mut().for_each(|v| *v = *v / (1.0 + exp::<K>(-*v))),
            // A few hundred values a row: libm's will do.
            Self::Tanh => x.iter_mut().for_each(|v| *v = v.tanh()),
        }
    }
}

/// Σ c[i] · x^i by Horner's rule.
#[inline(always)]
fn polynomial<K: Kernel, const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut sum = coefficients[N - 1];
    for i in (0..N - 1).rev() {
        sum = mul_add::<K>(sum, x, coefficients[i]);
    }
    sum
}

/// x · Φ(x) = x/2 · (1 + erf(x/√2)). The erf is an odd rational function fitted for this file
/// (iteratively reweighted least squares on [0, 3.832]): at most 5.4e-7 off, and 1.5e-6 in GELU. A
/// polynomial of the same cost loses four digits to cancellation in f32; Abramowitz and Stegun's
/// 7.1.26 needs an exp on top of the division.
#[inline(always)]
fn gelu<K: Kernel>(x: f32) -> f32 {
    const EDGE: f32 = 3.832;
    // GELU(−5.42) = −1.6e-7 already: cutting x there keeps erf's error from being multiplied by a
    // large −x.
    let x = x.max(-EDGE * std::f32::consts::SQRT_2);
    let z = (x * std::f32::consts::FRAC_1_SQRT_2).min(EDGE);
    let u = z * z;
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
    let erf = z * polynomial::<K, 6>(u, above) / polynomial::<K, 5>(u, below);
    let half = 0.5 * x;
    mul_add::<K>(half, erf, half)
}

/// x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))), with (1 + tanh(t))/2 = 1/(1 + e^(−2t)).
#[inline(always)]
fn gelu_tanh<K: Kernel>(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    let t = SQRT_2_OVER_PI * x * mul_add::<K>(0.044_715 * x, x, 1.0);
    x / (1.0 + exp::<K>(-2.0 * t))
}

/// e^x to 1 ulp or so, for x up to 88; 0 comes out as 1.2e-38 below −87.
#[inline(always)]
fn exp<K: Kernel>(x: f32) -> f32 {
    // x = n · ln 2 + r, |r| ≤ ln 2 / 2. ln 2 in two parts, the first of which times n is exact
    // (Cody, Waite).
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = mul_add::<K>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = mul_add::<K>(n, -LN2_LOW, mul_add::<K>(n, -LN2_HIGH, x));
    // Cephes' expf: (e^r − 1 − r) / r².
    let tail = [
        0.5,
        0.166_666_65,
        0.041_665_796,
        8.333_452e-3,
        1.398_199_9e-3,
        1.987_569_1e-4,
    ];
    let power = mul_add::<K>(polynomial::<K, 6>(r, tail), r * r, r) + 1.0;
    // The low bits of `shifted` are n; multiply by 2^n in the exponent.
    f32::from_bits(power.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// Folds `x` lane by lane: `fold(sum, value)`.
#[inline(always)]
fn fold_lanes(x: &[f32], start: f32, fold: impl Fn(f32, f32) -> f32 + Copy) -> [f32; LANES] {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut lanes = [start; LANES];
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = fold(*lane, v);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(tail) {
        *lane = fold(*lane, v);
    }
    lanes
}

/// Replaces scores `x` by e^(scale · (x − max x)) and returns their sum. The largest becomes 1, so
/// the sum is at least 1; a NaN anywhere makes the sum NaN.
#[inline(always)]
pub fn softmax_unscaled<K: Kernel>(x: &mut [f32], scale: f32) -> f32 {
    let most = fold_lanes(x, f32::NEG_INFINITY, f32::max)
        .into_iter()
        .fold(f32::NEG_INFINITY, f32::max);
    for v in x.iter_mut() {
        *v = exp::<K>((*v - most) * scale);
    }
    fold_lanes(x, 0.0, |sum, v| sum + v).into_iter().sum()
}

/// A layer norm's parameters.
pub struct Norm {
    /// Multiplied with the normalised row.
    pub weight: Vec<f32>,
    /// Added to it.
    pub bias: Vec<f32>,
    /// Added to the variance.
    pub epsilon: f32,
}

/// Normalises a row in place: (x − mean) / √(var + ε) · weight + bias, the variance over n.
#[inline(always)]
pub fn layer_norm<K: Kernel>(norm: &Norm, x: &mut [f32]) {
    let n = x.len() as f32;
    let mean = fold_lanes(x, 0.0, |sum, v| sum + v)
        .into_iter()
        .sum::<f32>()
        / n;
    let squares = fold_lanes(x, 0.0, |sum, v| mul_add::<K>(v - mean, v - mean, sum));
    let inverse = 1.0 / (squares.into_iter().sum::<f32>() / n + norm.epsilon).sqrt();
    for ((v, &weight), &bias) in x.iter_mut().zip(&norm.weight).zip(&norm.bias) {
        *v = mul_add::<K>((*v - mean) * inverse, weight, bias);
    }
}

/// Normalises the first `n_rows` rows of `x` and encodes each while it is in L1.
pub struct NormAndEncode<'a, K: Kernel> {
    /// The parameters; `None` encodes only.
    pub norm: Option<&'a Norm>,
    /// Rows of `width`.
    pub x: &'a mut [f32],
    /// Values of a row.
    pub width: usize,
    /// Rows.
    pub n_rows: usize,
    /// Where the encoded rows go.
    pub codes: &'a mut Codes<K>,
}

impl<K: Kernel> Op for NormAndEncode<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let stride = self.codes.stride;
        assert_eq!(
            stride,
            self.width.next_multiple_of(K::K_STEP),
            "codes of another width"
        );
        for row_idx in 0..self.n_rows {
            let row = &mut self.x[row_idx * self.width..][..self.width];
            if let Some(norm) = self.norm {
                layer_norm::<K>(norm, row);
            }
            let codes = &mut self.codes.codes[row_idx * stride..][..stride];
            self.codes.scales[row_idx] = K::Left::encode(row, codes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Dtype::F32;
    use crate::kernel::{Visitor, visit_all};

    /// Runs a function of one number under every f32 kernel and compares with f64.
    #[track_caller]
    fn check(activation: Activation, exact: fn(f64) -> f64, absolute: f64) {
        struct Run<'a>(Activation, &'a [f32]);
        impl Visitor for Run<'_> {
            type Output = (&'static str, Vec<f32>);
            fn visit<K: Kernel>(&mut self, kernel: K) -> Self::Output {
                struct Apply<'a, K>(Activation, &'a mut [f32], K);
                impl<K: Kernel> Op for Apply<'_, K> {
                    type Output = ();
                    #[inline(always)]
                    fn run(self) {
                        self.0.apply::<K>(self.1);
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
        let mut one = [3.0_f32];
        assert_eq!(
            softmax_unscaled::<crate::kernel::scalar::PortableF32>(&mut one, 0.5),
            1.0
        );
        let mut x: Vec<f32> = (0..37).map(|i| (i as f32 * 0.7).sin() * 9.0).collect();
        let exact: Vec<f64> = x.iter().map(|&v| f64::from(v) * 0.25).collect();
        let most = exact.iter().fold(f64::MIN, |a, &b| a.max(b));
        let sum = softmax_unscaled::<crate::kernel::scalar::PortableF32>(&mut x, 0.25);
        let exact_sum: f64 = exact.iter().map(|v| (v - most).exp()).sum();
        assert!(
            (f64::from(sum) - exact_sum).abs() < 1e-5,
            "{sum} is not {exact_sum}"
        );
        for (found, exact) in x.iter().zip(exact) {
            assert!((f64::from(*found) - (exact - most).exp()).abs() < 1e-6);
        }
    }
}
