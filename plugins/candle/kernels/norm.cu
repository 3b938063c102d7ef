// Norms, alone or behind what brings their values together: embed, norm, add_norm.
//
// A cell is read once, into registers: by a warp up to WARP_WIDTH_MAX values, by a block beyond. Mean and variance are
// taken one after the other from there, so that a large mean costs no digits. Lanes add up what they hold and then each
// other's, in an order that depends on the width alone.
//
// What bounds it: memory. A warp has its whole cell on the way at once (384 values: three requests a lane of 8 bytes in
// halves), and 24 to 32 warps share a processor: some 40 KB under way, twice what hides the H200's latency.
#include "pointwise.h"
#include "values.h"

namespace {

constexpr uint32_t N_WARPS = POINTWISE_THREADS / WARP_SIZE;
// Values that a lane moves at a time.
constexpr uint32_t N = 4;

// The sum of what LANES lanes bring, to each of them. Every thread of the block takes part.
template <uint32_t LANES> DEVICE float sum_of(float x) {
#pragma unroll
  for (uint32_t bits = 1; bits < WARP_SIZE; bits *= 2) x += shuffle_xor(x, bits);
  if (LANES == WARP_SIZE) return x;
  __shared__ float sums[N_WARPS];
  // Nobody reads the last ones any more.
  sync_block();
  if (threadIdx.x % WARP_SIZE == 0) sums[threadIdx.x / WARP_SIZE] = x;
  sync_block();
  x = sums[0];
#pragma unroll
  for (uint32_t warp = 1; warp < N_WARPS; warp++) x += sums[warp];
  return x;
}

// M values of a cell, normed.
template <uint32_t M>
DEVICE void scale(const NormParameters &norm, uint32_t column, float mean, float factor, float (&x)[M]) {
  float weight[M];
  load(norm.weight + column, weight);
#pragma unroll
  for (uint32_t i = 0; i < M; i++) x[i] = (x[i] - mean) * factor * weight[i];
  if (norm.bias) add(x, norm.bias + column);
}

// A cell whose values fit the registers of LANES lanes, VECTORS · N of each; `exists` is false where lanes only keep
// others company. `step` brings values together (load), keeps them (keep) and takes the normed ones (store).
template <uint32_t VECTORS, uint32_t LANES, typename Step>
DEVICE void norm_held(const Step &step, uint64_t cell, bool exists) {
  const NormParameters &norm = step.a.norm;
  const uint32_t lane = threadIdx.x % LANES, width = exists ? uint32_t(step.a.width) : 0;
  float x[VECTORS][N];
  float sum = 0.0f;
#pragma unroll
  for (uint32_t v = 0; v < VECTORS; v++) {
    const uint32_t column = (v * LANES + lane) * N;
    if (column < width) step.load(cell, column, x[v]);
  }
#pragma unroll
  for (uint32_t v = 0; v < VECTORS; v++) {
    const uint32_t column = (v * LANES + lane) * N;
    if (column >= width) continue;
    step.keep(cell, column, x[v]);
    sum += (x[v][0] + x[v][1]) + (x[v][2] + x[v][3]);
  }
  const float mean = norm.centred ? sum_of<LANES>(sum) / float(step.a.width) : 0.0f;
  float squares = 0.0f;
#pragma unroll
  for (uint32_t v = 0; v < VECTORS; v++) {
    if ((v * LANES + lane) * N >= width) continue;
#pragma unroll
    for (uint32_t i = 0; i < N; i++) squares += (x[v][i] - mean) * (x[v][i] - mean);
  }
  const float factor = 1.0f / sqrtf(sum_of<LANES>(squares) / float(step.a.width) + norm.epsilon);
#pragma unroll
  for (uint32_t v = 0; v < VECTORS; v++) {
    const uint32_t column = (v * LANES + lane) * N;
    if (column >= width) continue;
    scale(norm, column, mean, factor, x[v]);
    step.store(cell, column, x[v]);
  }
}

// A warp for each cell.
template <uint32_t VECTORS, typename Step> DEVICE void norm_by_warp(const Step &step) {
  for (uint64_t first = uint64_t(blockIdx.x) * N_WARPS; first < step.a.n_cells; first += uint64_t(gridDim.x) * N_WARPS) {
    const uint64_t cell = first + threadIdx.x / WARP_SIZE;
    norm_held<VECTORS, WARP_SIZE>(step, cell, cell < step.a.n_cells);
  }
}

// A block for each cell.
template <uint32_t VECTORS, typename Step> DEVICE void norm_by_block(const Step &step) {
  for (uint64_t cell = blockIdx.x; cell < step.a.n_cells; cell += gridDim.x) {
    norm_held<VECTORS, POINTWISE_THREADS>(step, cell, true);
  }
}

// Any width: values are brought together again for each of three passes.
template <typename Step> DEVICE void norm_again(const Step &step, uint64_t cell) {
  const NormParameters &norm = step.a.norm;
  const uint32_t width = uint32_t(step.a.width);
  float mean = 0.0f, sum = 0.0f, x[1];
  if (norm.centred) {
    for (uint32_t column = threadIdx.x; column < width; column += POINTWISE_THREADS) {
      step.load(cell, column, x);
      sum += x[0];
    }
    mean = sum_of<POINTWISE_THREADS>(sum) / float(width);
  }
  float squares = 0.0f;
  for (uint32_t column = threadIdx.x; column < width; column += POINTWISE_THREADS) {
    step.load(cell, column, x);
    squares += (x[0] - mean) * (x[0] - mean);
  }
  const float factor = 1.0f / sqrtf(sum_of<POINTWISE_THREADS>(squares) / float(width) + norm.epsilon);
  for (uint32_t column = threadIdx.x; column < width; column += POINTWISE_THREADS) {
    step.load(cell, column, x);
    step.keep(cell, column, x);
    scale(norm, column, mean, factor, x);
    step.store(cell, column, x);
  }
}

// No norm: of embeddings that have theirs elsewhere.
template <uint32_t M, typename Step> DEVICE void no_norm(const Step &step) {
  for (uint64_t cell = blockIdx.x; cell < step.a.n_cells; cell += gridDim.x) {
    for (uint64_t column = threadIdx.x * M; column < step.a.width; column += POINTWISE_THREADS * M) {
      float x[M];
      step.load(cell, uint32_t(column), x);
      step.store(cell, uint32_t(column), x);
    }
  }
}

template <typename Step> DEVICE void norm_cells(const Step &step) {
  const uint64_t width = step.a.width;
  const NormParameters &norm = step.a.norm;
  const bool vectors = width % N == 0 && step.in_vectors() && in_vectors<N>(norm.weight) && in_vectors<N>(norm.bias);
  if (!norm.weight) return vectors ? no_norm<N>(step) : no_norm<1>(step);
  constexpr uint32_t WARP = WARP_SIZE * N, BLOCK = POINTWISE_THREADS * N;
  if (!vectors || width > 8 * BLOCK) {
    for (uint64_t cell = blockIdx.x; cell < step.a.n_cells; cell += gridDim.x) norm_again(step, cell);
    return;
  }
  static_assert(8 * WARP == WARP_WIDTH_MAX, "as said to who chooses the grid");
  if (width <= 1 * WARP) return norm_by_warp<1>(step);
  if (width <= 2 * WARP) return norm_by_warp<2>(step);
  if (width <= 3 * WARP) return norm_by_warp<3>(step);
  if (width <= 4 * WARP) return norm_by_warp<4>(step);
  if (width <= 6 * WARP) return norm_by_warp<6>(step);
  if (width <= 8 * WARP) return norm_by_warp<8>(step);
  if (width <= 2 * BLOCK) return norm_by_block<2>(step);
  if (width <= 4 * BLOCK) return norm_by_block<4>(step);
  norm_by_block<8>(step);
}

// --- what is normed ---

template <typename T> struct EmbedStep {
  const Embed &a;

  DEVICE bool in_vectors() const {
    const T *words = static_cast<const T *>(a.words), *positions = static_cast<const T *>(a.positions);
    const T *types = static_cast<const T *>(a.types), *out = static_cast<const T *>(a.out);
    return ::in_vectors<N>(words) && ::in_vectors<N>(positions) && ::in_vectors<N>(types) && ::in_vectors<N>(out);
  }
  template <uint32_t M> DEVICE void load(uint64_t cell, uint32_t column, float (&x)[M]) const {
    ::load(static_cast<const T *>(a.words) + a.ids[cell] * a.width + column, x);
    if (a.positions) add(x, static_cast<const T *>(a.positions) + a.position_ids[cell] * a.width + column);
    if (a.types) add(x, static_cast<const T *>(a.types) + a.type_ids[cell] * a.width + column);
  }
  template <uint32_t M> DEVICE void keep(uint64_t, uint32_t, const float (&)[M]) const {}
  template <uint32_t M> DEVICE void store(uint64_t cell, uint32_t column, const float (&x)[M]) const {
    ::store(static_cast<T *>(a.out) + cell * a.width + column, x);
  }
};

template <typename T> struct NormStep {
  const Norm &a;

  DEVICE bool in_vectors() const {
    return ::in_vectors<N>(static_cast<const T *>(a.x)) && ::in_vectors<N>(static_cast<const T *>(a.out));
  }
  template <uint32_t M> DEVICE void load(uint64_t cell, uint32_t column, float (&x)[M]) const {
    ::load(static_cast<const T *>(a.x) + cell * a.width + column, x);
  }
  template <uint32_t M> DEVICE void keep(uint64_t, uint32_t, const float (&)[M]) const {}
  template <uint32_t M> DEVICE void store(uint64_t cell, uint32_t column, const float (&x)[M]) const {
    ::store(static_cast<T *>(a.out) + cell * a.width + column, x);
  }
};

template <typename T> struct AddNormStep {
  const AddNorm &a;

  DEVICE bool in_vectors() const {
    const T *x = static_cast<const T *>(a.x), *residual = static_cast<const T *>(a.residual);
    const T *sum = static_cast<const T *>(a.sum), *out = static_cast<const T *>(a.out);
    return ::in_vectors<N>(x) && ::in_vectors<N>(residual) && ::in_vectors<N>(sum) && ::in_vectors<N>(out) &&
           ::in_vectors<N>(a.bias);
  }
  template <uint32_t M> DEVICE void load(uint64_t cell, uint32_t column, float (&x)[M]) const {
    ::load(static_cast<const T *>(a.x) + cell * a.width + column, x);
    add(x, static_cast<const T *>(a.residual) + cell * a.width + column);
    if (a.bias) add(x, a.bias + column);
  }
  template <uint32_t M> DEVICE void keep(uint64_t cell, uint32_t column, const float (&x)[M]) const {
    if (a.sum) ::store(static_cast<T *>(a.sum) + cell * a.width + column, x);
  }
  template <uint32_t M> DEVICE void store(uint64_t cell, uint32_t column, const float (&x)[M]) const {
    ::store(static_cast<T *>(a.out) + cell * a.width + column, x);
  }
};

} // namespace

#define KERNEL(step, Arguments, Step, type, name)                                                                      \
  extern "C" __global__ void __launch_bounds__(POINTWISE_THREADS) step##_##name(Arguments a) {                         \
    norm_cells(Step<type>{a});                                                                                         \
  }
#define KERNELS(type, name)                                                                                            \
  KERNEL(embed, Embed, EmbedStep, type, name)                                                                          \
  KERNEL(norm, Norm, NormStep, type, name)                                                                             \
  KERNEL(add_norm, AddNorm, AddNormStep, type, name)

KERNELS(float, f32)
KERNELS(F16, f16)
KERNELS(BF16, bf16)
