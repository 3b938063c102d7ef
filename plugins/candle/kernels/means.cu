// means: what a row's cells have in common, for models whose head reads that. A thread adds up one column of a row, cell
// after cell; a warp reads its lines side by side.
#include "pointwise.h"
#include "values.h"

namespace {

template <typename T> DEVICE void means_all(const Means &a) {
  const uint64_t parts = (a.width + POINTWISE_THREADS - 1) / POINTWISE_THREADS;
  for (uint64_t i = blockIdx.x; i < a.n_rows * parts; i += gridDim.x) {
    const uint64_t row = i / parts, column = i % parts * POINTWISE_THREADS + threadIdx.x;
    if (column >= a.width) continue;
    const uint32_t start = a.starts[row], end = a.starts[row + 1];
    const T *x = static_cast<const T *>(a.x) + column;
    float sum = 0.0f;
#pragma unroll 8
    for (uint64_t cell = start; cell < end; cell++) sum += widen(x[cell * a.width]);
    narrow(start < end ? sum / float(end - start) : 0.0f, static_cast<T *>(a.out)[row * a.width + column]);
  }
}

} // namespace

#define MEANS(type, name)                                                                                              \
  extern "C" __global__ void __launch_bounds__(POINTWISE_THREADS) means_##name(Means a) { means_all<type>(a); }

MEANS(float, f32)
MEANS(F16, f16)
MEANS(BF16, bf16)
