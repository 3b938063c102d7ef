// Steps that look at each value by itself: add, activate, gate, pick, to_f32. All are bound by memory: a value goes in
// and out once, 16 bytes a thread at a time.
#include "activation.h"
#include "walk.h"

namespace {

constexpr uint32_t N = VECTOR_VALUES;

template <uint32_t M, typename T> DEVICE void add_some(const Add &a) {
  T *x = static_cast<T *>(a.x);
  const T *y = static_cast<const T *>(a.y);
  walk<M>(a.n_cells, a.width, [&](uint64_t cell, uint32_t column) {
    const uint64_t at = cell * a.width + column;
    float sum[M];
    load(x + at, sum);
    add(sum, y + at);
    if (a.bias) add(sum, a.bias + column);
    store(x + at, sum);
  });
}

template <typename T> DEVICE void add_all(const Add &a) {
  const bool vectors = a.width % N == 0 && in_vectors<N>(static_cast<T *>(a.x)) &&
                       in_vectors<N>(static_cast<const T *>(a.y)) && in_vectors<N>(a.bias);
  if (vectors) {
    add_some<N, T>(a);
  } else {
    add_some<1, T>(a);
  }
}

template <uint32_t M, typename T> DEVICE void activate_some(const Activate &a) {
  T *x = static_cast<T *>(a.x);
  walk<M>(a.n_cells, a.width, [&](uint64_t cell, uint32_t column) {
    const uint64_t at = cell * a.width + column;
    float values[M];
    load(x + at, values);
    if (a.bias) add(values, a.bias + column);
    activate(a.activation, values);
    store(x + at, values);
  });
}

template <typename T> DEVICE void activate_all(const Activate &a) {
  if (a.width % N == 0 && in_vectors<N>(static_cast<T *>(a.x)) && in_vectors<N>(a.bias)) {
    activate_some<N, T>(a);
  } else {
    activate_some<1, T>(a);
  }
}

template <uint32_t M, typename T> DEVICE void gate_some(const Gate &a) {
  const T *x = static_cast<const T *>(a.x);
  T *out = static_cast<T *>(a.out);
  walk<M>(a.n_cells, a.width, [&](uint64_t cell, uint32_t column) {
    const T *first = x + cell * 2 * a.width + column;
    float values[M], factors[M];
    load(first, values);
    load(first + a.width, factors);
    if (a.bias) {
      add(values, a.bias + column);
      add(factors, a.bias + a.width + column);
    }
    activate(a.activation, values);
#pragma unroll
    for (uint32_t i = 0; i < M; i++) values[i] *= factors[i];
    store(out + cell * a.width + column, values);
  });
}

template <typename T> DEVICE void gate_all(const Gate &a) {
  const bool vectors = a.width % N == 0 && in_vectors<N>(static_cast<const T *>(a.x)) &&
                       in_vectors<N>(static_cast<T *>(a.out)) && in_vectors<N>(a.bias);
  if (vectors) {
    gate_some<N, T>(a);
  } else {
    gate_some<1, T>(a);
  }
}

template <uint32_t M, typename T> DEVICE void pick_some(const Pick &a) {
  const T *x = static_cast<const T *>(a.x);
  T *out = static_cast<T *>(a.out);
  walk<M>(a.n_out, a.width, [&](uint64_t cell, uint32_t column) {
    float values[M];
    load(x + a.indices[cell] * a.width + column, values);
    store(out + cell * a.width + column, values);
  });
}

template <typename T> DEVICE void pick_all(const Pick &a) {
  const bool vectors =
      a.width % N == 0 && in_vectors<N>(static_cast<const T *>(a.x)) && in_vectors<N>(static_cast<T *>(a.out));
  if (vectors) {
    pick_some<N, T>(a);
  } else {
    pick_some<1, T>(a);
  }
}

template <typename T> DEVICE void to_f32_all(const ToF32 &a) {
  const uint64_t step = uint64_t(gridDim.x) * POINTWISE_THREADS;
  for (uint64_t i = uint64_t(blockIdx.x) * POINTWISE_THREADS + threadIdx.x; i < a.n; i += step) {
    a.out[i] = widen(static_cast<const T *>(a.x)[i]);
  }
}

} // namespace

#define KERNEL(step, Arguments, type, name)                                                                            \
  extern "C" __global__ void __launch_bounds__(POINTWISE_THREADS) step##_##name(Arguments a) { step##_all<type>(a); }
#define KERNELS(type, name)                                                                                            \
  KERNEL(add, Add, type, name)                                                                                         \
  KERNEL(activate, Activate, type, name)                                                                               \
  KERNEL(gate, Gate, type, name)                                                                                       \
  KERNEL(pick, Pick, type, name)                                                                                       \
  KERNEL(to_f32, ToF32, type, name)

KERNELS(float, f32)
KERNELS(F16, f16)
KERNELS(BF16, bf16)
