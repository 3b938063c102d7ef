// Nonlinearities, with the formulas and the exactness of the fused loops on CPUs (block/loops.rs). None hides a NaN.
#pragma once

#include "pointwise.h"
#include "values.h"

// 1 / (1 + e^−x)
DEVICE float sigmoid(float x) { return reciprocal_fast(1.0f + exp2_fast(x * -1.4426950408889634f)); }

// Abramowitz and Stegun's 7.1.26: at most 1.5e-7 off, and half the instructions of erff, which would take as long as
// memory does.
DEVICE float erf_fast(float x) {
  const float size = fabsf(x);
  const float t = reciprocal_fast(fmaf(size, 0.3275911f, 1.0f));
  float sum = 1.061405429f;
  sum = fmaf(t, sum, -1.453152027f);
  sum = fmaf(t, sum, 1.421413741f);
  sum = fmaf(t, sum, -0.284496736f);
  sum = fmaf(t, sum, 0.254829592f);
  const float upper = 1.0f - sum * t * exp2_fast(size * size * -1.4426950408889634f);
  return copysignf(upper, x);
}

DEVICE float gelu(float x) { return 0.5f * x * (1.0f + erf_fast(x * 0.7071067811865476f)); }

// (1 + tanh t) / 2 is the sigmoid of 2t.
DEVICE float gelu_tanh(float x) { return x * sigmoid(1.5957691216057308f * x * fmaf(0.044715f * x, x, 1.0f)); }

DEVICE float relu(float x) { return x < 0.0f ? 0.0f : x; }

DEVICE float silu(float x) { return x * sigmoid(x); }

DEVICE float tanh_fast(float x) { return 2.0f * sigmoid(2.0f * x) - 1.0f; }

template <float (*FUNCTION)(float), int N> DEVICE void each(float (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) x[i] = FUNCTION(x[i]);
}

// x = activation(x), the choice made once for all N.
template <int N> DEVICE void activate(uint32_t kind, float (&x)[N]) {
  switch (kind) {
  case ACTIVATION_GELU: return each<gelu>(x);
  case ACTIVATION_GELU_TANH: return each<gelu_tanh>(x);
  case ACTIVATION_RELU: return each<relu>(x);
  case ACTIVATION_SILU: return each<silu>(x);
  case ACTIVATION_TANH: return each<tanh_fast>(x);
  default: return;
  }
}
