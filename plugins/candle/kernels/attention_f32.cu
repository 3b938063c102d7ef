// Attention of tiles in f32, without tensor cores: for those who want all digits.
//
// A block takes one head of a tile, in passes over a part of its queries; 8 lanes share a query. A lane multiplies PER
// queries with keys x, x + 8, … of a round, so that 4 values of each are read from shared memory for PER · KEYS / 8 · 4
// multiplications; weights go through shared memory to the lanes of their query, which then add values 4x to 4x + 3 of
// each 32. Softmax runs along, as in halves.
//
// What bounds it: multiplications, 134 TFLOP/s without tensor cores on an H200; shared memory is read at about half of its
// 128 bytes a cycle. Registers (two queries a lane) and 20 to 36 KB of shared memory leave room for five blocks.
#include "sight.h"

namespace {

// Lanes of a query.
constexpr uint32_t LANES = 8;
// Queries that the block's lanes hold side by side.
constexpr uint32_t SIDE = ATTENTION_THREADS / LANES;

template <uint32_t DIM> struct Shape {
  // Queries of a lane.
  static constexpr uint32_t PER = DIM <= 128 ? 2 : 1;
  static constexpr uint32_t QUERIES = SIDE * PER;
  // Keys of a round: with them all buffers stay below 48 KB.
  static constexpr uint32_t KEYS = DIM <= 64 ? 32 : DIM <= 128 ? 16 : 8;
  // 16 bytes more than the values: 8 lines begin in 8 different groups of banks.
  static constexpr uint32_t PITCH = DIM + 4;
  static constexpr uint32_t WEIGHTS_PITCH = KEYS + 4;
};

template <uint32_t DIM> struct Buffers {
  using S = Shape<DIM>;
  float queries[S::QUERIES][S::PITCH];
  float keys[S::KEYS][S::PITCH];
  float values[S::KEYS][S::PITCH];
  float weights[S::QUERIES][S::WEIGHTS_PITCH];
};

// What becomes of a lane's queries: values 4x to 4x + 3 of each 32.
template <uint32_t DIM> struct Sums {
  float most[Shape<DIM>::PER];
  // Of the lane's own keys, until the end.
  float weights[Shape<DIM>::PER] = {};
  float values[Shape<DIM>::PER][DIM / 32][4] = {};

  DEVICE Sums() {
    for (uint32_t i = 0; i < Shape<DIM>::PER; i++) most[i] = -INFINITY;
  }
};

// The lane among those of its query, and its first query; the others follow SIDE further each.
DEVICE uint32_t lane_x() { return threadIdx.x % LANES; }
DEVICE uint32_t lane_y() { return threadIdx.x / LANES; }

// Until what all have begun to copy is there.
DEVICE void arrive() {
  copy_commit();
  copy_wait<0>();
  sync_block();
}

// Lines first.. of a matrix's head into shared memory, zeros behind the last.
template <uint32_t LINES, uint32_t DIM>
DEVICE void fetch(float (&to)[LINES][Shape<DIM>::PITCH], const void *matrix, uint64_t stride, uint64_t cell,
                  uint32_t head, uint32_t dim, uint32_t n_lines, bool vectors) {
  constexpr uint32_t CHUNKS = DIM / 4;
#pragma unroll 4
  for (uint32_t i = threadIdx.x; i < LINES * CHUNKS; i += ATTENTION_THREADS) {
    const uint32_t line = i / CHUNKS, at = i % CHUNKS * 4;
    const bool exists = line < n_lines && at < dim;
    // Where there is nothing the address is that of something.
    const float *from = values_of<float>(matrix, stride, cell + (exists ? line : 0), head, dim) + (exists ? at : 0);
    if (vectors) {
      copy_async(&to[line][at], from, exists);
    } else {
      for (uint32_t k = 0; k < 4; k++) to[line][at + k] = exists && at + k < dim ? from[k] : 0.0f;
    }
  }
}

// A pass's queries, and their bias.
template <uint32_t DIM>
DEVICE void fetch_queries(const Attention &a, const Work &work, Buffers<DIM> &buffers, uint32_t first, bool vectors) {
  const uint32_t left = work.tile.n_queries - first;
  const uint64_t cell = uint64_t(work.tile.q_cell) + first;
  fetch<Shape<DIM>::QUERIES, DIM>(buffers.queries, a.q, a.q_stride, cell, work.head, a.dim, left, vectors);
  if (!a.q_bias) return;
  arrive();
  for (uint32_t i = threadIdx.x; i < Shape<DIM>::QUERIES * a.dim; i += ATTENTION_THREADS) {
    buffers.queries[i / a.dim][i % a.dim] += a.q_bias[work.head * a.dim + i % a.dim];
  }
}

DEVICE float dot(const float4 &a, const float4 &b, float sum) {
  sum += a.x * b.x;
  sum += a.y * b.y;
  sum += a.z * b.z;
  return sum + a.w * b.w;
}

// Products of the lane's queries with keys x, x + 8, ….
template <uint32_t DIM>
DEVICE void multiply(const Buffers<DIM> &buffers, float (&scores)[Shape<DIM>::PER][Shape<DIM>::KEYS / LANES]) {
  constexpr uint32_t PER = Shape<DIM>::PER, N = Shape<DIM>::KEYS / LANES;
#pragma unroll
  for (uint32_t i = 0; i < PER * N; i++) scores[i / N][i % N] = 0.0f;
#pragma unroll 4
  for (uint32_t at = 0; at < DIM; at += 4) {
    float4 keys[N];
#pragma unroll
    for (uint32_t j = 0; j < N; j++) keys[j] = *reinterpret_cast<const float4 *>(&buffers.keys[lane_x() + j * LANES][at]);
#pragma unroll
    for (uint32_t i = 0; i < PER; i++) {
      const float4 query = *reinterpret_cast<const float4 *>(&buffers.queries[lane_y() + i * SIDE][at]);
#pragma unroll
      for (uint32_t j = 0; j < N; j++) scores[i][j] = dot(query, keys[j], scores[i][j]);
    }
  }
}

// Scores of a query become powers of 2 and then weights, in shared memory.
template <uint32_t DIM, bool TERMS, uint32_t N>
DEVICE void weigh(const Attention &a, const Work &work, Buffers<DIM> &buffers, uint32_t line, uint32_t query,
                  uint32_t first_key, float (&scores)[N], float &most, float &sum, float (&values)[DIM / 32][4]) {
  const bool exists = query < work.tile.n_queries;
  const Range range = exists ? seen(a, work.tile.first_position + query, work.tile.n_keys) : Range{0, 0};
  float larger = most;
#pragma unroll
  for (uint32_t j = 0; j < N; j++) {
    const uint32_t key = first_key + lane_x() + j * LANES;
    if (!range.has(key)) {
      scores[j] = -INFINITY;
    } else {
      scores[j] = TERMS ? score<float>(a, work, query, key, scores[j]) : scores[j] * (a.scale * LOG2_E);
    }
    larger = fmaxf(larger, scores[j]);
  }
#pragma unroll
  for (uint32_t bits = 1; bits < LANES; bits *= 2) larger = fmaxf(larger, shuffle_xor(larger, bits));
  // Nothing seen so far: all weights are 0, not NaN.
  const float base = larger == -INFINITY ? 0.0f : larger;
  const float fall = exp2_fast(most - base);
  most = larger;
  sum *= fall;
#pragma unroll
  for (uint32_t j = 0; j < N; j++) {
    const float weight = exp2_fast(scores[j] - base);
    sum += weight;
    buffers.weights[line][lane_x() + j * LANES] = weight;
  }
#pragma unroll
  for (uint32_t i = 0; i < DIM / 8; i++) values[i / 4][i % 4] *= fall;
}

// Adds the weighted values of a round.
template <uint32_t DIM> DEVICE void mix(const Buffers<DIM> &buffers, Sums<DIM> &sums) {
#pragma unroll
  for (uint32_t key = 0; key < Shape<DIM>::KEYS; key += 4) {
    float weights[Shape<DIM>::PER][4];
#pragma unroll
    for (uint32_t i = 0; i < Shape<DIM>::PER; i++) load(&buffers.weights[lane_y() + i * SIDE][key], weights[i]);
#pragma unroll
    for (uint32_t k = 0; k < 4; k++) {
#pragma unroll
      for (uint32_t part = 0; part < DIM / 32; part++) {
        float values[4];
        load(&buffers.values[key + k][part * 32 + lane_x() * 4], values);
#pragma unroll
        for (uint32_t i = 0; i < Shape<DIM>::PER; i++) {
#pragma unroll
          for (uint32_t j = 0; j < 4; j++) sums.values[i][part][j] += weights[i][k] * values[j];
        }
      }
    }
  }
}

template <uint32_t DIM, bool TERMS>
DEVICE void step(const Attention &a, const Work &work, Buffers<DIM> &buffers, uint32_t first_query, uint32_t first_key,
                 Sums<DIM> &sums) {
  float scores[Shape<DIM>::PER][Shape<DIM>::KEYS / LANES];
  multiply(buffers, scores);
#pragma unroll
  for (uint32_t i = 0; i < Shape<DIM>::PER; i++) {
    const uint32_t line = lane_y() + i * SIDE;
    weigh<DIM, TERMS>(a, work, buffers, line, first_query + line, first_key, scores[i], sums.most[i], sums.weights[i],
                      sums.values[i]);
  }
  // A query's lanes are of one warp.
  sync_warp();
  mix(buffers, sums);
}

// A lane's queries, 16 bytes at a time.
template <uint32_t DIM>
DEVICE void write(const Attention &a, const Work &work, uint32_t first_query, const Sums<DIM> &sums, bool vectors) {
#pragma unroll
  for (uint32_t i = 0; i < Shape<DIM>::PER; i++) {
    float weights = sums.weights[i];
#pragma unroll
    for (uint32_t bits = 1; bits < LANES; bits *= 2) weights += shuffle_xor(weights, bits);
    const float share = share_of(weights);
    const uint32_t query = first_query + lane_y() + i * SIDE;
    if (query >= work.tile.n_queries) continue;
    const uint64_t cell = uint64_t(work.tile.q_cell) + query;
    float *line = static_cast<float *>(a.out) + cell * a.out_stride + uint64_t(work.head) * a.dim;
#pragma unroll
    for (uint32_t part = 0; part < DIM / 32; part++) {
      const uint32_t at = part * 32 + lane_x() * 4;
      float mixed[4];
#pragma unroll
      for (uint32_t j = 0; j < 4; j++) {
        const bool has_bias = a.v_bias && weights != 0.0f && at + j < a.dim;
        mixed[j] = sums.values[i][part][j] * share + (has_bias ? a.v_bias[work.kv * a.dim + at + j] : 0.0f);
      }
      if (vectors && at < a.dim) {
        store(line + at, mixed);
      } else {
        for (uint32_t j = 0; j < 4 && at + j < a.dim; j++) line[at + j] = mixed[j];
      }
    }
  }
}

// Some of a tile's queries.
template <uint32_t DIM, bool TERMS>
DEVICE void pass(const Attention &a, const Work &work, Buffers<DIM> &buffers, uint32_t first_query, bool vectors) {
  constexpr uint32_t KEYS = Shape<DIM>::KEYS;
  const uint32_t left = work.tile.n_queries - first_query, n = left < Shape<DIM>::QUERIES ? left : Shape<DIM>::QUERIES;
  const uint32_t position = work.tile.first_position + first_query;
  const Range keys = seen_by_any(a, position, position + n - 1, work.tile.n_keys);
  // The warp's first query of those that its lanes hold.
  const bool has_queries = threadIdx.x / WARP_SIZE * (WARP_SIZE / LANES) < n;
  Sums<DIM> sums;
  fetch_queries(a, work, buffers, first_query, vectors);
  uint32_t first = keys.first;
  do {
    const uint64_t cell = uint64_t(work.tile.k_cell) + first;
    const uint32_t n_keys = work.tile.n_keys > first ? work.tile.n_keys - first : 0;
    fetch<KEYS, DIM>(buffers.keys, a.k, a.k_stride, cell, work.kv, a.dim, n_keys, vectors);
    fetch<KEYS, DIM>(buffers.values, a.v, a.v_stride, cell, work.kv, a.dim, n_keys, vectors);
    arrive();
    if (has_queries) step<DIM, TERMS>(a, work, buffers, first_query, first, sums);
    // Nobody reads these buffers any more.
    sync_block();
    first += KEYS;
  } while (first < keys.end);
  if (has_queries) write(a, work, first_query, sums, vectors);
}

template <uint32_t DIM, bool TERMS> DEVICE void attend(const Attention &a) {
  __shared__ alignas(16) Buffers<DIM> buffers;
  const Work work(a);
  const bool vectors = in_vectors<float>(a);
  for (uint32_t first = 0; first < work.tile.n_queries; first += Shape<DIM>::QUERIES) {
    pass<DIM, TERMS>(a, work, buffers, first, vectors);
  }
}

} // namespace

#define ATTENTION(name, dim, terms)                                                                                    \
  extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS) name(Attention a) { attend<dim, terms>(a); }

ATTENTION(attention_32_f32, 32, false)
ATTENTION(attention_64_f32, 64, false)
ATTENTION(attention_128_f32, 128, false)
ATTENTION(attention_256_f32, 256, false)
ATTENTION(attention_terms_32_f32, 32, true)
ATTENTION(attention_terms_64_f32, 64, true)
ATTENTION(attention_terms_128_f32, 128, true)
ATTENTION(attention_terms_256_f32, 256, true)
