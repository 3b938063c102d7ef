// Which keys a query sees, and what its scores get beside the product: the same for all kernels of attention.
#pragma once

#include "attention.h"
#include "values.h"

constexpr float LOG2_E = 1.4426950408889634f;

// Keys first..end of a row.
struct Range {
  uint32_t first;
  uint32_t end;

  DEVICE bool has(uint32_t key) const { return first <= key && key < end; }
  DEVICE bool has_all(uint32_t from, uint32_t to) const { return first <= from && to <= end; }
  DEVICE bool meets(uint32_t from, uint32_t to) const { return from < end && first < to && first < end; }
};

// What a block computes: one head of one tile.
struct Work {
  Tile tile;
  uint32_t head;
  // The head of keys and values.
  uint32_t kv;

  DEVICE explicit Work(const Attention &a) {
    tile = a.tiles[blockIdx.x / a.n_heads];
    head = blockIdx.x % a.n_heads;
    kv = head / (a.n_heads / a.n_kv);
  }
};

// Keys that a query at this position sees, of a row's n.
DEVICE Range seen(const Attention &a, uint32_t position, uint32_t n_keys) {
  Range range = {0, n_keys};
  if (a.window != NO_WINDOW) {
    range.first = position > a.window ? position - a.window : 0;
    // Written so that no sum overflows.
    if (position < n_keys && a.window < n_keys - position) range.end = position + a.window + 1;
  }
  if (a.causal && position < range.end) range.end = position + 1;
  return range;
}

// What any of the queries from one position to another, both included, sees.
DEVICE Range seen_by_any(const Attention &a, uint32_t from, uint32_t to, uint32_t n_keys) {
  return {seen(a, from, n_keys).first, seen(a, to, n_keys).end};
}

// What all of them see.
DEVICE Range seen_by_all(const Attention &a, uint32_t from, uint32_t to, uint32_t n_keys) {
  return {seen(a, to, n_keys).first, seen(a, from, n_keys).end};
}

// DeBERTa's terms of a query and a key, before the scale.
template <typename T>
DEVICE float relative_term(const Attention &a, const Work &work, uint32_t query, uint32_t key) {
  const uint32_t position = work.tile.first_position + query;
  const uint32_t row = a.rows[a.rows_reach - 1 + position - key];
  float term = 0.0f;
  if (a.by_query) {
    const uint64_t cell = uint64_t(work.tile.q_cell) + query;
    term += widen(static_cast<const T *>(a.by_query)[cell * a.by_query_cell + work.head * a.by_query_head + row]);
  }
  if (a.by_key) {
    const uint64_t cell = uint64_t(work.tile.k_cell) + key;
    term += widen(static_cast<const T *>(a.by_key)[cell * a.by_key_cell + work.head * a.by_key_head + row]);
  }
  return term;
}

// What a head's scores get by distance.
DEVICE float distance_term(const Attention &a, const Work &work, uint32_t query, uint32_t key) {
  const uint32_t position = work.tile.first_position + query;
  const uint64_t head = uint64_t(work.head) * (2 * a.distances_reach - 1);
  return a.distances[head + (a.distances_reach - 1 + key - position)];
}

// The score of a key that is seen, as a power of 2.
template <typename T>
DEVICE float score(const Attention &a, const Work &work, uint32_t query, uint32_t key, float product) {
  if (a.rows) product += relative_term<T>(a, work, query, key);
  float score = product * (a.scale * LOG2_E);
  if (a.distances) score += distance_term(a, work, query, key) * LOG2_E;
  return score;
}

// Whether scores get anything.
DEVICE bool has_terms(const Attention &a) { return a.rows || a.distances; }

// A head's values of a cell, of a matrix of cells.
template <typename T>
DEVICE const T *values_of(const void *matrix, uint64_t stride, uint64_t cell, uint32_t head, uint32_t dim) {
  return static_cast<const T *>(matrix) + cell * stride + uint64_t(head) * dim;
}

// Whether heads can be read and written 8 values at a time, and biases two.
template <typename T> DEVICE bool in_vectors(const Attention &a) {
  const uint64_t pointers = uint64_t(a.q) | uint64_t(a.k) | uint64_t(a.v) | uint64_t(a.out);
  const uint64_t biases = uint64_t(a.q_bias) | uint64_t(a.v_bias);
  const uint64_t widths = a.q_stride | a.k_stride | a.v_stride | a.out_stride | a.dim;
  return pointers % 16 == 0 && biases % 16 == 0 && widths % 8 == 0;
}

// Two values from `at` on of a head's biases, if there are any; zeros behind `dim`.
template <bool VECTORS> DEVICE float2 bias_pair(const float *biases, uint32_t head, uint32_t at, uint32_t dim) {
  if (!biases || at >= dim) return make_float2(0.0f, 0.0f);
  const float *from = biases + head * dim + at;
  if (VECTORS) return *reinterpret_cast<const float2 *>(from);
  return make_float2(from[0], at + 1 < dim ? from[1] : 0.0f);
}

// Up to 8 values of a line of `dim` from `first` on, zeros behind them.
template <typename T> DEVICE void load_some(const T *line, uint32_t first, uint32_t dim, bool vectors, float (&to)[8]) {
  if (vectors && first < dim) return load(line + first, to);
#pragma unroll
  for (uint32_t i = 0; i < 8; i++) to[i] = first + i < dim ? widen(line[first + i]) : 0.0f;
}

// Up to 8 values into a line of `dim`.
template <typename T> DEVICE void store_some(T *line, uint32_t first, uint32_t dim, bool vectors, const float (&from)[8]) {
  if (vectors) {
    if (first < dim) store(line + first, from);
    return;
  }
#pragma unroll
  for (uint32_t i = 0; i < 8; i++) {
    if (first + i < dim) narrow(from[i], line[first + i]);
  }
}

// What a query's weighted values are multiplied with in the end, and its bias: a query that sees nothing gets zeros. A NaN
// stays one.
DEVICE float share_of(float weights) { return weights == 0.0f ? 0.0f : 1.0f / weights; }
