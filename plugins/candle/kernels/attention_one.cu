// Attention of tiles with one query: of the last layer, which is asked for one token of each row, and of decoders.
//
// A block takes one head of a row. As many lanes as a head has groups of 8 values take a key together, so that a head is
// read 16 bytes a lane; keys are shared out among these teams, each with its own running softmax (largest score, sum of
// weights, sum of values, in f32), and at the end what the teams have is brought together, always in the same order.
//
// What bounds it: each key and value is read once for 4 operations a value, so memory, and for short rows its latency:
// a team asks for the keys and values of BATCH positions before it looks at any, which with 32 teams (heads of 32) is a
// whole row of 128 tokens in one wait. Shuffles: log2(LANES) a key.
#include "sight.h"

namespace {

constexpr uint32_t N_WARPS = ATTENTION_THREADS / WARP_SIZE;
// Keys that a team looks at together.
constexpr uint32_t BATCH = 4;

// What a lane knows of the keys that it has seen: its 8 values of the head.
struct Share {
  float most = -INFINITY;
  float weights = 0.0f;
  float values[8] = {};

  // By what sums shrink when the largest score becomes `most`.
  DEVICE float fall(float to) const { return to == -INFINITY ? 1.0f : exp2_fast(most - to); }

  // Takes in what another has seen.
  DEVICE void join(float other_most, float other_weights, const float (&other_values)[8]) {
    const float larger = fmaxf(most, other_most);
    const Share other = {other_most, other_weights, {}};
    const float mine = fall(larger), others = other.fall(larger);
    most = larger;
    weights = weights * mine + other_weights * others;
#pragma unroll
    for (uint32_t i = 0; i < 8; i++) values[i] = values[i] * mine + other_values[i] * others;
  }
};

// The sum of what the LANES lanes of a team bring, to each of them.
template <uint32_t LANES> DEVICE float sum_of_team(float x) {
#pragma unroll
  for (uint32_t bits = 1; bits < LANES; bits *= 2) x += shuffle_xor(x, bits);
  return x;
}

// A team's next keys: `first`, and those a whole step of all teams further. All lanes of a warp come here together.
template <typename T, uint32_t LANES>
DEVICE void look(const Attention &a, const Work &work, const float (&query)[8], Range keys, uint32_t first, bool vectors,
                 Share &share) {
  constexpr uint32_t TEAMS = ATTENTION_THREADS / LANES;
  const uint32_t at = threadIdx.x % LANES * 8;
  float key[BATCH][8], value[BATCH][8], scores[BATCH];
#pragma unroll
  for (uint32_t i = 0; i < BATCH; i++) {
    const uint32_t position = first + i * TEAMS;
    // Where there is no key nothing is read.
    const uint32_t dim = keys.has(position) ? a.dim : 0;
    const uint64_t cell = uint64_t(work.tile.k_cell) + position;
    load_some(values_of<T>(a.k, a.k_stride, cell, work.kv, a.dim), at, dim, vectors, key[i]);
    load_some(values_of<T>(a.v, a.v_stride, cell, work.kv, a.dim), at, dim, vectors, value[i]);
  }
  float most = share.most;
#pragma unroll
  for (uint32_t i = 0; i < BATCH; i++) {
    float product = 0.0f;
#pragma unroll
    for (uint32_t j = 0; j < 8; j++) product += query[j] * key[i][j];
    product = sum_of_team<LANES>(product);
    const uint32_t position = first + i * TEAMS;
    scores[i] = keys.has(position) ? score<T>(a, work, 0, position, product) : -INFINITY;
    most = fmaxf(most, scores[i]);
  }
  const float fall = share.fall(most), base = most == -INFINITY ? 0.0f : most;
  share.most = most;
  share.weights *= fall;
#pragma unroll
  for (uint32_t j = 0; j < 8; j++) share.values[j] *= fall;
#pragma unroll
  for (uint32_t i = 0; i < BATCH; i++) {
    const float weight = exp2_fast(scores[i] - base);
    share.weights += weight;
#pragma unroll
    for (uint32_t j = 0; j < 8; j++) share.values[j] += weight * value[i][j];
  }
}

// What the teams of a warp have, in each of them.
template <uint32_t LANES> DEVICE void join_teams(Share &share) {
#pragma unroll
  for (uint32_t bits = LANES; bits < WARP_SIZE; bits *= 2) {
    float values[8];
#pragma unroll
    for (uint32_t i = 0; i < 8; i++) values[i] = shuffle_xor(share.values[i], bits);
    const float most = shuffle_xor(share.most, bits), weights = shuffle_xor(share.weights, bits);
    share.join(most, weights, values);
  }
}

// What warps have, and the head written by the block's first team.
template <typename T, uint32_t LANES>
DEVICE void write(const Attention &a, const Work &work, const Share &mine, Share (*shares)[LANES], bool vectors) {
  const uint32_t lane = threadIdx.x % WARP_SIZE;
  if (lane < LANES) shares[threadIdx.x / WARP_SIZE][lane] = mine;
  sync_block();
  if (threadIdx.x >= LANES) return;
  Share all = shares[0][lane];
  for (uint32_t warp = 1; warp < N_WARPS; warp++) {
    const Share &other = shares[warp][lane];
    all.join(other.most, other.weights, other.values);
  }
  const float share = share_of(all.weights);
  float mixed[8];
#pragma unroll
  for (uint32_t i = 0; i < 8; i++) {
    const uint32_t at = lane * 8 + i;
    const float bias = a.v_bias && all.weights != 0.0f && at < a.dim ? a.v_bias[work.kv * a.dim + at] : 0.0f;
    mixed[i] = all.values[i] * share + bias;
  }
  T *line = static_cast<T *>(a.out) + work.tile.q_cell * a.out_stride + uint64_t(work.head) * a.dim;
  store_some(line, lane * 8, a.dim, vectors, mixed);
}

template <typename T, uint32_t LANES> DEVICE void attend(const Attention &a) {
  constexpr uint32_t TEAMS = ATTENTION_THREADS / LANES;
  __shared__ alignas(16) float room[N_WARPS * LANES * sizeof(Share) / sizeof(float)];
  const Work work(a);
  const bool vectors = in_vectors<T>(a);
  const uint32_t at = threadIdx.x % LANES * 8;
  float query[8];
  load_some(values_of<T>(a.q, a.q_stride, work.tile.q_cell, work.head, a.dim), at, a.dim, vectors, query);
  for (uint32_t i = 0; a.q_bias && i < 8; i++) {
    if (at + i < a.dim) query[i] += a.q_bias[work.head * a.dim + at + i];
  }
  const Range keys = seen(a, work.tile.first_position, work.tile.n_keys);
  Share share;
  for (uint32_t first = keys.first; first < keys.end; first += BATCH * TEAMS) {
    look<T, LANES>(a, work, query, keys, first + threadIdx.x / LANES, vectors, share);
  }
  join_teams<LANES>(share);
  write<T, LANES>(a, work, share, reinterpret_cast<Share(*)[LANES]>(room), vectors);
}

template <typename T> DEVICE void attend_any(const Attention &a) {
  if (a.dim <= 32) return attend<T, 4>(a);
  if (a.dim <= 64) return attend<T, 8>(a);
  if (a.dim <= 128) return attend<T, 16>(a);
  attend<T, 32>(a);
}

} // namespace

#define ATTENTION_ONE(type, name)                                                                                      \
  extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS) attention_one_##name(Attention a) {                  \
    attend_any<type>(a);                                                                                               \
  }

ATTENTION_ONE(float, f32)
ATTENTION_ONE(F16, f16)
ATTENTION_ONE(BF16, bf16)
