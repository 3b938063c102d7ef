//! The loops between the products on CPUs. Every function here is inlined into one that `pulp` compiles
//! for each generation of SIMD; they are written so that the compiler can use lanes.
//!
//! None hides a NaN: where a value is cut off, the comparison is false for a NaN and it stays.

use super::activation::Activation;

/// Sums that run side by side; as many as the widest registers have values.
const LANES: usize = 16;

/// e^x to 3e-7 of itself, for x up to 88; 1.2e-38 below −87.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding it rounds to a whole number, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if 88.0 < x { 88.0 } else { x };
    let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    // ln 2 in two parts, so that the difference is exact.
    let rest = n.mul_add(-1.428_606_8e-6, n.mul_add(-0.693_145_75, x));
    // The exponential series: on |x| ≤ ln 2 / 2 its next term is 1.2e-7.
    let mut sum = 1.0 / 720.0;
    for coefficient in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = rest.mul_add(sum, coefficient);
    }
    sum * f32::from_bits((rounded.to_bits() << 23).wrapping_add(0x3F80_0000))
}

/// 1 / (1 + e^−x)
#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Abramowitz and Stegun's 7.1.26: at most 1.5e-7 off.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let size = x.abs();
    let t = 1.0 / size.mul_add(0.327_591_1, 1.0);
    let mut sum = 1.061_405_4;
    for coefficient in [-1.453_152_1, 1.421_413_8, -0.284_496_72, 0.254_829_6] {
        sum = t.mul_add(sum, coefficient);
    }
    let upper = 1.0 - sum * t * exp(-size * size);
    upper.copysign(x)
}

#[inline(always)]
pub(super) fn activated(activation: Activation, x: f32) -> f32 {
    const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769;
    match activation {
        Activation::Gelu => 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)),
        // (1 + tanh t) / 2 is the sigmoid of 2t.
        Activation::GeluTanh => {
            x * sigmoid(TWICE_SQRT_2_OVER_PI * x * (0.044_715 * x).mul_add(x, 1.0))
        }
        Activation::Relu => {
            if x < 0.0 {
                0.0
            } else {
                x
            }
        }
        Activation::Silu => x * sigmoid(x),
        Activation::Tanh => 2.0 * sigmoid(2.0 * x) - 1.0,
        Activation::Identity => x,
    }
}

/// x = activation(x), the choice made outside of the loop.
#[inline(always)]
pub(super) fn activate(activation: Activation, x: &mut [f32]) {
    macro_rules! each {
        ($($kind:ident),*) => {
            match activation {
                $(Activation::$kind => for x in x {
                    *x = activated(Activation::$kind, *x);
                })*
            }
        };
    }
    each!(Gelu, GeluTanh, Relu, Silu, Tanh, Identity);
}

/// Adds up `value(x)`, in lanes.
#[inline(always)]
fn sum_of(x: &[f32], value: impl Fn(f32) -> f32) -> f32 {
    let (lanes, rest) = x.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for lane in lanes {
        for (sum, &x) in sums.iter_mut().zip(lane) {
            *sum += value(x);
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|&x| value(x)).sum::<f32>()
}

/// (x − mean) / √(variance + ε) · weight + bias; without a mean for an RMS norm. `bias` may be empty.
#[inline(always)]
pub(super) fn norm(x: &mut [f32], weight: &[f32], bias: &[f32], epsilon: f32, centred: bool) {
    let n = x.len() as f32;
    let mean = if centred { sum_of(x, |x| x) / n } else { 0.0 };
    let variance = sum_of(x, |x| (x - mean) * (x - mean)) / n;
    let factor = 1.0 / (variance + epsilon).sqrt();
    if bias.is_empty() {
        for (x, weight) in x.iter_mut().zip(weight) {
            *x = (*x - mean) * factor * weight;
        }
    } else {
        for ((x, weight), bias) in x.iter_mut().zip(weight).zip(bias) {
            *x = ((*x - mean) * factor).mul_add(*weight, *bias);
        }
    }
}

/// x += bias, if there is one.
#[inline(always)]
pub(super) fn add_bias(x: &mut [f32], bias: &[f32]) {
    for (x, bias) in x.iter_mut().zip(bias) {
        *x += bias;
    }
}

/// x = softmax(scale · x + bias); `bias` may be empty.
#[inline(always)]
pub(super) fn softmax(x: &mut [f32], scale: f32, bias: &[f32]) {
    if bias.is_empty() {
        for x in x.iter_mut() {
            *x *= scale;
        }
    } else {
        for (x, bias) in x.iter_mut().zip(bias) {
            *x = x.mul_add(scale, *bias);
        }
    }
    let most = most(x);
    for x in x.iter_mut() {
        *x = exp(*x - most);
    }
    let factor = 1.0 / sum_of(x, |x| x);
    for x in x.iter_mut() {
        *x *= factor;
    }
}

#[inline(always)]
fn most(x: &[f32]) -> f32 {
    let (lanes, rest) = x.as_chunks::<LANES>();
    let mut most = [f32::NEG_INFINITY; LANES];
    for lane in lanes {
        for (most, &x) in most.iter_mut().zip(lane) {
            *most = if *most < x { x } else { *most };
        }
    }
    let all = most.iter().chain(rest);
    all.fold(
        f32::NEG_INFINITY,
        |most, &x| if most < x { x } else { most },
    )
}

/// Turns pairs (x[i], x[i + n/2]) by their angles.
#[inline(always)]
pub(super) fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = x.split_at_mut(cos.len());
    for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_and_errors_are_close() {
        for step in -4_000..4_000 {
            let x = step as f32 / 50.0;
            let expected = f64::from(x).exp();
            let found = f64::from(exp(x));
            assert!(
                (found - expected).abs() <= 3e-7 * expected + 2e-38,
                "e^{x}: {found}"
            );
            let gelu = activated(Activation::Gelu, x);
            let expected = f64::from(x) / 2.0 * (1.0 + reference_erf(f64::from(x) / 2f64.sqrt()));
            assert!(
                (f64::from(gelu) - expected).abs() < 2e-6,
                "gelu({x}): {gelu}, {expected}"
            );
        }
    }

    /// By the Taylor series, and 1 where that has converged to it.
    fn reference_erf(x: f64) -> f64 {
        if 5.0 < x.abs() {
            return x.signum();
        }
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    /// Whatever a NaN goes through, a NaN comes out.
    #[test]
    fn a_nan_stays_one() {
        let all = [
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::Relu,
            Activation::Silu,
            Activation::Tanh,
        ];
        for activation in all {
            assert!(activated(activation, f32::NAN).is_nan(), "{activation:?}");
        }
        for n in [1, 3, 16, 40] {
            let mut x = vec![1.0; n];
            x[n / 2] = f32::NAN;
            softmax(&mut x, 1.0, &[]);
            assert!(x.iter().all(|x| x.is_nan()), "softmax of {n}");
            let mut x = vec![1.0; n];
            x[n / 2] = f32::NAN;
            norm(&mut x, &vec![1.0; n], &[], 1e-5, true);
            assert!(x.iter().all(|x| x.is_nan()), "norm of {n}");
        }
    }

    #[test]
    fn a_softmax_sums_to_one() {
        let mut x: Vec<f32> = (0..37).map(|i| (i * 7 % 11) as f32).collect();
        let bias: Vec<f32> = (0..37).map(|i| -(i as f32) / 5.0).collect();
        let raw: Vec<f64> = x
            .iter()
            .zip(&bias)
            .map(|(x, bias)| (f64::from(x * 0.5) + f64::from(*bias)).exp())
            .collect();
        softmax(&mut x, 0.5, &bias);
        let sum: f64 = raw.iter().sum();
        for (x, raw) in x.iter().zip(raw) {
            assert!((f64::from(*x) - raw / sum).abs() < 1e-6);
        }
    }
}
