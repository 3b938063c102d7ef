// Attention of tiles in halves, on tensor cores.
//
// A block takes one head of a tile (or two, see Part), a warp 16 of its queries. Keys and values come through shared memory
// in two buffers, filled asynchronously: while one is multiplied the next arrives. Softmax runs along (as in
// FlashAttention): each query keeps its largest score, the sum of its weights and their sum of values in registers, in f32.
//
// Short rows come first in the design: a row of up to KEYS tokens is one round with one wait for memory (queries are
// loaded while keys are on their way), heads of 32 leave room for seven blocks on a processor, and rows pay for no
// padding but that of 16 queries and 32 keys. Nothing of a block depends on others.
//
// What bounds it, by arithmetic, not by measurement: a cell's head of w values is read and written in halves, 8w bytes
// for q, k, v and out, and a row of n tokens needs 4nw operations a cell and head: n / 2 a byte. The H200's roofs
// (790 TFLOP/s, 4.8 TB/s) meet at 165 a byte, so rows of up to some 300 tokens are bound by memory (by L2 where the
// products have just been written) and by the latency of a round: there 60 % of 4.8 TB/s is what to hope for. Longer rows
// are bound by shared memory (a warp of 16 queries reads each key and value once: 16 operations a byte, 2,048 a cycle)
// and, for heads of 32, as much by exponentials (16 a cycle, one for 128 operations): each alone leaves 60 % of 790
// TFLOP/s, both together a third.
#include "sight.h"

namespace {

constexpr uint32_t N_WARPS = ATTENTION_THREADS / WARP_SIZE;
// Queries of a warp: lines of mma's first operand.
constexpr uint32_t WARP_QUERIES = 16;
static_assert(N_WARPS * WARP_QUERIES == TILE_QUERIES, "every query of a tile has its warp");

// Lines of heads padded to DIM values, in shared memory.
template <typename T, uint32_t DIM> struct Buffers {
  // Keys of a round: as many as leave all buffers below 48 KB, the most that needs no permission.
  static constexpr uint32_t KEYS = DIM <= 64 ? 64 : DIM <= 128 ? 32 : 16;
  // Of them as many are multiplied at a time: their scores stay in registers.
  static constexpr uint32_t STEP = DIM <= 128 ? 32 : 16;
  // 16 bytes more than the values: eight lines begin in eight different groups of banks.
  static constexpr uint32_t PITCH = DIM + 8;
  // Of even and odd rounds.
  T keys[2][KEYS][PITCH];
  T values[2][KEYS][PITCH];
};

// What a thread works at. Tiles that half of a block's warps can hold take two heads, each with half of the warps and of
// the buffers: so fewer warps stand idle beside short rows and the short ends of long ones.
template <typename T, uint32_t DIM> struct Part : Work {
  using B = Buffers<T, DIM>;
  bool is_half;
  // Half blocks may be left over, and blocks.
  bool exists;

  DEVICE explicit Part(const Attention &a) : Work(a) {
    is_half = B::KEYS / 2 >= B::STEP && tile.n_queries <= TILE_QUERIES / 2;
    if (is_half) head = 2 * head + threadIdx.x / (ATTENTION_THREADS / 2);
    exists = head < a.n_heads;
    kv = head / (a.n_heads / a.n_kv);
  }
  DEVICE uint32_t n_threads() const { return is_half ? ATTENTION_THREADS / 2 : ATTENTION_THREADS; }
  DEVICE uint32_t thread() const { return threadIdx.x % n_threads(); }
  // Keys of a round, and the line of the first.
  DEVICE uint32_t n_keys() const { return is_half ? B::KEYS / 2 : B::KEYS; }
  DEVICE uint32_t first_line() const { return threadIdx.x / n_threads() * n_keys(); }
};

// A warp's 16 queries. A lane has parts of two of them: lane / 4, and that + 8.
template <uint32_t DIM> struct Queries {
  uint32_t first;
  // Those that exist; none: the warp only helps with loading.
  uint32_t n;
  // As mma's first operand.
  uint32_t values[DIM / 16][4];
};

// What becomes of the lane's two queries.
template <uint32_t DIM> struct Sums {
  float most[2] = {-INFINITY, -INFINITY};
  // Of the lane's own keys, until the end.
  float weights[2] = {0.0f, 0.0f};
  float values[DIM / 8][4] = {};
};

DEVICE uint32_t lane() { return threadIdx.x % WARP_SIZE; }

// Eight values of a line into shared memory, zeros where the line or the row has ended.
template <bool VECTORS, typename T> DEVICE void fetch(T *to, const T *line, uint32_t first, uint32_t dim, bool exists) {
  exists = exists && first < dim;
  if constexpr (VECTORS) {
    copy_async(to, exists ? line + first : line, exists);
  } else {
    for (uint32_t i = 0; i < 8; i++) to[i] = exists && first + i < dim ? line[first + i] : T{0};
  }
}

// Keys and values from `first` on into the buffers of a round; zeros behind the row, as far as a step looks.
template <bool VECTORS, typename T, uint32_t DIM>
DEVICE void fetch_round(const Attention &a, const Part<T, DIM> &work, Buffers<T, DIM> &buffers, uint32_t round,
                        uint32_t first) {
  using B = Buffers<T, DIM>;
  constexpr uint32_t CHUNKS = DIM / 8, STEP = B::STEP, TIMES = B::KEYS * CHUNKS / ATTENTION_THREADS;
  const uint32_t n_keys = work.exists ? work.tile.n_keys : 0, left = n_keys > first ? n_keys - first : 0;
#pragma unroll(VECTORS ? TIMES : 1)
  for (uint32_t time = 0; time < TIMES; time++) {
    const uint32_t i = time * work.n_threads() + work.thread();
    const uint32_t line = i / CHUNKS, at = i % CHUNKS * 8;
    if (line / STEP * STEP >= left) break;
    const bool exists = line < left;
    // Where there is no key the address is that of one.
    const uint64_t cell = uint64_t(work.tile.k_cell) + (exists ? first + line : 0);
    const T *key = values_of<T>(a.k, a.k_stride, cell, work.kv, a.dim);
    fetch<VECTORS>(&buffers.keys[round % 2][work.first_line() + line][at], key, at, a.dim, exists);
    const T *value = values_of<T>(a.v, a.v_stride, cell, work.kv, a.dim);
    fetch<VECTORS>(&buffers.values[round % 2][work.first_line() + line][at], value, at, a.dim, exists);
  }
  copy_commit();
}

// Two values of a line from `at` on, zeros behind `dim`.
template <bool VECTORS, typename T> DEVICE uint32_t load_pair(const T *line, uint32_t at, uint32_t dim) {
  if (VECTORS) return *reinterpret_cast<const uint32_t *>(line + at);
  return pack<T>(widen(line[at]), at + 1 < dim ? widen(line[at + 1]) : 0.0f);
}

// The warp's queries as mma's first operand, zeros where there are none. What is asked of memory is asked at once: where
// there is no value, one that exists is read instead, so that no branch waits for it.
template <bool VECTORS, typename T, uint32_t DIM>
DEVICE Queries<DIM> queries_of(const Attention &a, const Part<T, DIM> &work) {
  Queries<DIM> queries;
  queries.first = work.thread() / WARP_SIZE * WARP_QUERIES;
  const uint32_t left = work.exists && work.tile.n_queries > queries.first ? work.tile.n_queries - queries.first : 0;
  queries.n = left < WARP_QUERIES ? left : WARP_QUERIES;
  if (queries.n == 0) return queries;
  const T *lines[2];
#pragma unroll
  for (uint32_t half = 0; half < 2; half++) {
    const uint32_t query = lane() / 4 + half * 8, cell = query < queries.n ? queries.first + query : 0;
    lines[half] = values_of<T>(a.q, a.q_stride, uint64_t(work.tile.q_cell) + cell, work.head, a.dim);
  }
#pragma unroll
  for (uint32_t i = 0; i < DIM / 4; i++) {
    const uint32_t at = i / 2 * 8 + lane() % 4 * 2;
    queries.values[i / 4][i % 4] = load_pair<VECTORS>(lines[i % 2], at < a.dim ? at : 0, a.dim);
  }
  if (a.q_bias) {
#pragma unroll
    for (uint32_t i = 0; i < DIM / 4; i++) {
      const float2 bias = bias_pair<VECTORS>(a.q_bias, work.head, i / 2 * 8 + lane() % 4 * 2, a.dim);
      float first, second;
      unpack<T>(queries.values[i / 4][i % 4], first, second);
      queries.values[i / 4][i % 4] = pack<T>(first + bias.x, second + bias.y);
    }
  }
#pragma unroll
  for (uint32_t i = 0; i < DIM / 4; i++) {
    const bool exists = lane() / 4 + i % 2 * 8 < queries.n && i / 2 * 8 + lane() % 4 * 2 < a.dim;
    if (!exists) queries.values[i / 4][i % 4] = 0;
  }
  return queries;
}

// Products of the warp's queries with the keys of a step: scores[j] are of keys 8j to 8j + 7.
template <typename T, uint32_t DIM, uint32_t N>
DEVICE void multiply(const Queries<DIM> &queries, const T (*keys)[Buffers<T, DIM>::PITCH], float (&scores)[N][4]) {
#pragma unroll
  for (uint32_t pair = 0; pair < N / 2; pair++) {
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) scores[2 * pair][i] = scores[2 * pair + 1][i] = 0.0f;
#pragma unroll
    for (uint32_t step = 0; step < DIM / 16; step++) {
      // Matrices: the first 8 keys' two parts of the step, then those of the next 8.
      uint32_t parts[4];
      load_matrices(parts, &keys[pair * 16 + lane() / 16 * 8 + lane() % 8][step * 16 + lane() / 8 % 2 * 8]);
      multiply_add<T>(scores[2 * pair], queries.values[step], parts[0], parts[1]);
      multiply_add<T>(scores[2 * pair + 1], queries.values[step], parts[2], parts[3]);
    }
  }
}

// Keys that are not seen get no weight; with TERMS, the other scores get what is added to them and become powers of 2.
template <typename T, bool TERMS, uint32_t DIM, uint32_t N>
DEVICE void adjust(const Attention &a, const Work &work, const Queries<DIM> &queries, uint32_t first_key,
                   float (&scores)[N][4]) {
#pragma unroll
  for (uint32_t half = 0; half < 2; half++) {
    const uint32_t query = queries.first + lane() / 4 + half * 8;
    // Of what is no query nothing is written, but it shall not read beyond the row's cells.
    const bool exists = query < work.tile.n_queries;
    const Range range = exists ? seen(a, work.tile.first_position + query, work.tile.n_keys) : Range{0, 0};
#pragma unroll
    for (uint32_t i = 0; i < 2 * N; i++) {
      const uint32_t key = first_key + i / 2 * 8 + lane() % 4 * 2 + i % 2;
      float &to = scores[i / 2][2 * half + i % 2];
      if (!range.has(key)) {
        to = -INFINITY;
      } else if (TERMS) {
        to = score<T>(a, work, query, key, to);
      }
    }
  }
}

// Scores become weights beside the largest score so far; the sums so far are brought down to it. `factor` makes powers of
// 2 of scores.
template <uint32_t DIM, uint32_t N> DEVICE void weigh(Sums<DIM> &sums, float factor, float (&scores)[N][4]) {
#pragma unroll
  for (uint32_t half = 0; half < 2; half++) {
    float most = sums.most[half];
#pragma unroll
    for (uint32_t j = 0; j < N; j++) most = fmaxf(most, fmaxf(scores[j][2 * half], scores[j][2 * half + 1]));
    // The four lanes of a query.
    most = fmaxf(most, shuffle_xor(most, 1));
    most = fmaxf(most, shuffle_xor(most, 2));
    // Nothing seen so far: all weights are 0, not NaN.
    const float base = most == -INFINITY ? 0.0f : most * factor;
    const float fall = exp2_fast(sums.most[half] * factor - base);
    sums.most[half] = most;
    float sum = sums.weights[half] * fall;
#pragma unroll
    for (uint32_t j = 0; j < N; j++) {
#pragma unroll
      for (uint32_t i = 2 * half; i < 2 * half + 2; i++) {
        scores[j][i] = exp2_fast(scores[j][i] * factor - base);
        sum += scores[j][i];
      }
    }
    sums.weights[half] = sum;
#pragma unroll
    for (uint32_t j = 0; j < DIM / 8; j++) sums.values[j][2 * half] *= fall, sums.values[j][2 * half + 1] *= fall;
  }
}

// Adds the weighted values of a step.
template <typename T, uint32_t DIM, uint32_t N>
DEVICE void mix(Sums<DIM> &sums, const float (&weights)[N][4], const T (*values)[Buffers<T, DIM>::PITCH]) {
#pragma unroll
  for (uint32_t pair = 0; pair < N / 2; pair++) {
    // Sums of mma lie as its first operand does.
    const float(&first)[4] = weights[2 * pair];
    const float(&second)[4] = weights[2 * pair + 1];
    const uint32_t line[4] = {pack<T>(first[0], first[1]), pack<T>(first[2], first[3]), pack<T>(second[0], second[1]),
                              pack<T>(second[2], second[3])};
#pragma unroll
    for (uint32_t step = 0; step < DIM / 16; step++) {
      // Matrices: the first 8 values of both halves of the keys, then the next 8.
      uint32_t parts[4];
      load_matrices_transposed(parts, &values[pair * 16 + lane() % 16][step * 16 + lane() / 16 * 8]);
      multiply_add<T>(sums.values[2 * step], line, parts[0], parts[1]);
      multiply_add<T>(sums.values[2 * step + 1], line, parts[2], parts[3]);
    }
  }
}

// What a warp does with a round: steps with keys that none of its queries sees are passed over.
template <typename T, uint32_t DIM, bool TERMS>
DEVICE void steps(const Attention &a, const Part<T, DIM> &work, const Queries<DIM> &queries, const Buffers<T, DIM> &buffers,
                  uint32_t round, uint32_t first_key, Sums<DIM> &sums) {
  constexpr uint32_t STEP = Buffers<T, DIM>::STEP;
  const uint32_t position = work.tile.first_position + queries.first, last = position + queries.n - 1;
  const Range by_any = seen_by_any(a, position, last, work.tile.n_keys);
  const Range by_all = seen_by_all(a, position, last, work.tile.n_keys);
#pragma unroll 1
  for (uint32_t at = 0; at < work.n_keys(); at += STEP) {
    const uint32_t key = first_key + at, line = work.first_line() + at;
    if (!by_any.meets(key, key + STEP)) continue;
    float scores[STEP / 8][4];
    multiply<T>(queries, &buffers.keys[round % 2][line], scores);
    if (TERMS || !by_all.has_all(key, key + STEP)) adjust<T, TERMS>(a, work, queries, key, scores);
    weigh(sums, TERMS ? 1.0f : a.scale * LOG2_E, scores);
    mix<T>(sums, scores, &buffers.values[round % 2][line]);
  }
}

// The warp's lines, through shared memory, so that they leave 16 bytes at a time.
template <bool VECTORS, typename T, uint32_t DIM>
DEVICE void write(const Attention &a, const Work &work, const Queries<DIM> &queries, const Sums<DIM> &sums,
                  T (*lines)[Buffers<T, DIM>::PITCH]) {
#pragma unroll
  for (uint32_t half = 0; half < 2; half++) {
    float weights = sums.weights[half];
    weights += shuffle_xor(weights, 1);
    weights += shuffle_xor(weights, 2);
    const float share = share_of(weights), bias_share = weights == 0.0f ? 0.0f : 1.0f;
#pragma unroll
    for (uint32_t j = 0; j < DIM / 8; j++) {
      const uint32_t at = j * 8 + lane() % 4 * 2;
      const float2 bias = a.v_bias ? bias_pair<VECTORS>(a.v_bias, work.kv, at, a.dim) : make_float2(0.0f, 0.0f);
      const float first = sums.values[j][2 * half] * share + bias.x * bias_share;
      const float second = sums.values[j][2 * half + 1] * share + bias.y * bias_share;
      *reinterpret_cast<uint32_t *>(&lines[lane() / 4 + half * 8][at]) = pack<T>(first, second);
    }
  }
  sync_warp();
#pragma unroll(VECTORS ? DIM / 16 : 1)
  for (uint32_t i = lane(); i < WARP_QUERIES * (DIM / 8); i += WARP_SIZE) {
    const uint32_t line = i / (DIM / 8), at = i % (DIM / 8) * 8;
    if (line >= queries.n || at >= a.dim) continue;
    const uint64_t cell = uint64_t(work.tile.q_cell) + queries.first + line;
    T *to = static_cast<T *>(a.out) + cell * a.out_stride + uint64_t(work.head) * a.dim + at;
    if (VECTORS) {
      *reinterpret_cast<uint4 *>(to) = *reinterpret_cast<const uint4 *>(&lines[line][at]);
    } else {
      for (uint32_t k = 0; k < 8 && at + k < a.dim; k++) to[k] = lines[line][at + k];
    }
  }
}

template <bool TERMS, bool VECTORS, typename T, uint32_t DIM>
DEVICE void attend(const Attention &a, Buffers<T, DIM> &buffers) {
  constexpr uint32_t PITCH = Buffers<T, DIM>::PITCH;
  static_assert(4 * Buffers<T, DIM>::KEYS >= TILE_QUERIES, "buffers have room for what the tile writes");
  const Part<T, DIM> work(a);
  // Half blocks come in twos: the first is there if any is.
  if (work.is_half && blockIdx.x % a.n_heads * 2 >= a.n_heads) return;
  const uint32_t last = work.tile.first_position + work.tile.n_queries - 1;
  const Range keys = seen_by_any(a, work.tile.first_position, last, work.tile.n_keys);
  fetch_round<VECTORS>(a, work, buffers, 0, keys.first);
  const Queries<DIM> queries = queries_of<VECTORS>(a, work);
  Sums<DIM> sums;
  uint32_t round = 0, first = keys.first;
  do {
    if (first + work.n_keys() < keys.end) {
      fetch_round<VECTORS>(a, work, buffers, round + 1, first + work.n_keys());
      copy_wait<1>();
    } else {
      copy_wait<0>();
    }
    sync_block();
    if (queries.n) steps<T, DIM, TERMS>(a, work, queries, buffers, round, first, sums);
    // Nobody reads these buffers any more.
    sync_block();
    round++, first += work.n_keys();
  } while (first < keys.end);
  if (queries.n == 0) return;
  // Keys and values stand behind each other: 16 lines for each warp.
  T(*lines)[PITCH] = &buffers.keys[0][0] + threadIdx.x / WARP_SIZE * WARP_QUERIES;
  write<VECTORS>(a, work, queries, sums, lines);
}

template <bool TERMS, typename T, uint32_t DIM> DEVICE void attend_any(const Attention &a) {
  __shared__ alignas(16) Buffers<T, DIM> buffers;
  if (in_vectors<T>(a)) {
    attend<TERMS, true>(a, buffers);
  } else {
    attend<TERMS, false>(a, buffers);
  }
}

} // namespace

// Blocks that a processor shall hold at least: registers are given out accordingly.
#define ATTENTION(type, name, dim, blocks, terms)                                                                      \
  extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS, blocks) name(Attention a) {                          \
    attend_any<terms, type, dim>(a);                                                                                     \
  }
#define ATTENTIONS(type, name)                                                                                         \
  ATTENTION(type, attention_32_##name, 32, 7, false)                                                                   \
  ATTENTION(type, attention_64_##name, 64, 5, false)                                                                   \
  ATTENTION(type, attention_128_##name, 128, 3, false)                                                                 \
  ATTENTION(type, attention_256_##name, 256, 2, false)                                                                 \
  ATTENTION(type, attention_terms_32_##name, 32, 5, true)                                                              \
  ATTENTION(type, attention_terms_64_##name, 64, 4, true)                                                              \
  ATTENTION(type, attention_terms_128_##name, 128, 2, true)                                                            \
  ATTENTION(type, attention_terms_256_##name, 256, 2, true)

ATTENTIONS(F16, f16)
ATTENTIONS(BF16, bf16)
