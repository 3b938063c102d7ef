// heads: queries and keys before attention, where they are normed or turned: in place on the cells of a product.
//
// Eight lanes take a head, and read it anew for each pass (bias alone: one; with a norm three, all but the first from the
// processor's own cache). A lane holds both values of the pairs that it turns.
#include "pointwise.h"
#include "values.h"

namespace {

constexpr uint32_t LANES = 8;
constexpr uint32_t WARP_HEADS = WARP_SIZE / LANES;
constexpr uint32_t BLOCK_HEADS = POINTWISE_THREADS / LANES;

// One head of one cell.
template <typename T> struct Head {
  T *x;
  // Null for none.
  const float *bias;
  NormParameters norm;
  float mean;
  float factor;

  // M values with their bias.
  template <uint32_t M> DEVICE void read(uint32_t at, float (&to)[M]) const {
    load(x + at, to);
    if (bias) add_constant(to, bias + at);
  }

  // The same, normed.
  template <uint32_t M> DEVICE void read_normed(uint32_t at, float (&to)[M]) const {
    read(at, to);
    if (!norm.weight) return;
    float weight[M];
    load_constant(norm.weight + at, weight);
#pragma unroll
    for (uint32_t i = 0; i < M; i++) to[i] = (to[i] - mean) * factor * weight[i];
    if (norm.bias) add_constant(to, norm.bias + at);
  }
};

// The sum of what the lanes of a head bring, to each of them.
DEVICE float sum_of(float x) {
#pragma unroll
  for (uint32_t bits = 1; bits < LANES; bits *= 2) x += shuffle_xor(x, bits);
  return x;
}

// The sum of a head's values, less the mean, squared or not. All lanes of a warp come here; `dim` is 0 where there is no
// head.
template <uint32_t M, bool SQUARED, typename T> DEVICE float sum_of(const Head<T> &head, uint32_t dim) {
  float sum = 0.0f;
  for (uint32_t at = threadIdx.x % LANES * M; at < dim; at += LANES * M) {
    float x[M];
    head.read(at, x);
#pragma unroll
    for (uint32_t i = 0; i < M; i++) sum += SQUARED ? (x[i] - head.mean) * (x[i] - head.mean) : x[i];
  }
  return sum_of(sum);
}

// Turns pairs, and writes what is not turned.
template <uint32_t M, typename T> DEVICE void turn(const Heads &a, const Head<T> &head, uint64_t cell) {
  const uint64_t angles = a.n_pairs ? uint64_t(a.positions[cell]) * a.n_pairs : 0;
  for (uint32_t at = threadIdx.x % LANES * M; at < a.n_pairs; at += LANES * M) {
    float first[M], second[M], cos[M], sin[M];
    head.read_normed(at, first);
    head.read_normed(at + a.n_pairs, second);
    load_constant(a.cos + angles + at, cos);
    load_constant(a.sin + angles + at, sin);
#pragma unroll
    for (uint32_t i = 0; i < M; i++) {
      const float x = first[i], y = second[i];
      first[i] = x * cos[i] - y * sin[i];
      second[i] = y * cos[i] + x * sin[i];
    }
    store(head.x + at, first);
    store(head.x + at + a.n_pairs, second);
  }
  for (uint32_t at = 2 * a.n_pairs + threadIdx.x % LANES * M; at < a.dim; at += LANES * M) {
    float rest[M];
    head.read_normed(at, rest);
    store(head.x + at, rest);
  }
}

template <uint32_t M, typename T> DEVICE void heads_some(const Heads &a) {
  const uint32_t n_heads = a.n_first + a.n_second;
  const uint64_t n = a.n_cells * n_heads, step = uint64_t(gridDim.x) * BLOCK_HEADS;
  // A warp's first head: all its lanes stay together.
  uint64_t first = uint64_t(blockIdx.x) * BLOCK_HEADS + threadIdx.x / WARP_SIZE * WARP_HEADS;
  for (; first < n; first += step) {
    const uint64_t i = first + threadIdx.x % WARP_SIZE / LANES;
    const bool exists = i < n;
    const uint64_t cell = exists ? i / n_heads : 0;
    const uint32_t at = exists ? uint32_t(i % n_heads) : 0;
    Head<T> head;
    head.x = static_cast<T *>(a.x) + cell * a.stride + uint64_t(at) * a.dim;
    head.bias = a.bias ? a.bias + uint64_t(at) * a.dim : nullptr;
    head.norm = at < a.n_first ? a.norms[0] : a.norms[1];
    head.mean = 0.0f;
    // All lanes of the warp add up, whoever has a norm.
    const uint32_t dim = exists && head.norm.weight ? a.dim : 0;
    if (a.norms[0].weight || a.norms[1].weight) {
      const float mean = sum_of<M, false>(head, dim) / float(a.dim);
      if (head.norm.centred) head.mean = mean;
      head.factor = 1.0f / sqrtf(sum_of<M, true>(head, dim) / float(a.dim) + head.norm.epsilon);
    }
    if (exists) turn<M>(a, head, cell);
  }
}

template <typename T> DEVICE void heads_all(const Heads &a) {
  constexpr uint32_t N = 4;
  const bool widths = (a.dim | a.n_pairs | a.stride) % N == 0;
  const bool pointers = in_vectors<N>(static_cast<T *>(a.x)) && in_vectors<N>(a.bias) && in_vectors<N>(a.cos) &&
                        in_vectors<N>(a.sin) && in_vectors<N>(a.norms[0].weight) && in_vectors<N>(a.norms[0].bias) &&
                        in_vectors<N>(a.norms[1].weight) && in_vectors<N>(a.norms[1].bias);
  if (widths && pointers) {
    heads_some<N, T>(a);
  } else {
    heads_some<1, T>(a);
  }
}

} // namespace

#define HEADS(type, name)                                                                                              \
  extern "C" __global__ void __launch_bounds__(POINTWISE_THREADS) heads_##name(Heads a) { heads_all<type>(a); }

HEADS(float, f32)
HEADS(F16, f16)
HEADS(BF16, bf16)
