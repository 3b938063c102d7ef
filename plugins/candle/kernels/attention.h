// Attention over packed rows: what a launch is given. The structs have twins in Rust (repr(C)): fields in this
// order, largest first, no padding inside.
//
// Cells of a batch stand one behind another without padding. Work comes as tiles: up to TILE_QUERIES queries of
// one row, and all the keys of that row. For each head
//
//   out[i] = Σ_j softmax_j(scale · (q_i · k_j + term(i, j)) + distance(i, j)) · v_j
//
// over the keys j that query i sees. Scores are never in memory.
//
// Kernels, all extern "C" and with one argument, an Attention by value:
//
//   attention_{32,64,128,256}_{f32,f16,bf16}   tiles of up to TILE_QUERIES queries; the number is the width that
//                                              heads are padded to inside: take the least that is not below dim
//   attention_terms_{32,64,128,256}_{f32,f16,bf16}
//                                              the same where scores get something added: distances or rows are given
//   attention_one_{f32,f16,bf16}               tiles with one query: of the last layer, of decoders; any dim, with
//                                              or without terms
//
// Launch: grid n_tiles × n_heads (of one dimension, heads of a tile beside each other, so that what
// runs together reads the same lines), block ATTENTION_THREADS, no dynamic shared memory. Tiles of the longest
// rows should come first: then the last blocks to end are short ones.
#pragma once

#include <stdint.h>

// Queries of a tile at most: four warps of 16.
constexpr uint32_t TILE_QUERIES = 64;
constexpr uint32_t ATTENTION_THREADS = 128;
// Widest head.
constexpr uint32_t HEAD_DIM_MAX = 256;
// Attention::window where there is none.
constexpr uint32_t NO_WINDOW = UINT32_MAX;

// Part of one row's queries, and all of its keys. Five words, packed.
struct Tile {
  // The first query's cell, among the cells of q, of out and of by_query.
  uint32_t q_cell;
  // 1 to TILE_QUERIES; of attention_one 1.
  uint32_t n_queries;
  // Where in its row the first query stands; the others follow it.
  uint32_t first_position;
  // The cell of the row's key 0, among the cells of k, of v and of by_key.
  uint32_t k_cell;
  // At least 1; key j stands at position j.
  uint32_t n_keys;
};

// A launch. Pointers may be null where "if any" is said. q, k, v, out, by_query and by_key are of the kernel's
// type. Strides are in values and from one cell to the next: q, k and v may be parts of one product.
//
// Pointers to q, k, v and out should be aligned to 16 bytes, and strides and dim be multiples of 8 values: then
// cells are read 16 bytes at a time. Anything else works too, value by value.
struct Attention {
  // Head h of cell c begins at q + c · q_stride + h · dim.
  const void *q;
  // Head h looks at head h / (n_heads / n_kv) of keys and values: at k + c · k_stride + that · dim.
  const void *k;
  const void *v;
  // Like q.
  void *out;
  const Tile *tiles;
  // Added to q before anything else, if any: n_heads · dim.
  const float *q_bias;
  // Added to v, if any: n_kv · dim. (A bias of k adds the same to all scores of a query: softmax takes it away
  // again, so there is none here. by_key must have it in it.)
  const float *v_bias;
  // What is added to scaled scores by distance, if any: ALiBi's, T5's. Of head h, query i and key j:
  // distances[h · (2 · distances_reach − 1) + distances_reach − 1 + j − i]. No row may be longer than the reach.
  const float *distances;
  // DeBERTa's terms, added to scores before the scale, by the row r = rows[rows_reach − 1 + i − j] of the table of
  // relative embeddings, if any; again no row may be longer than the reach. Rows count from the first that the
  // matrices have.
  const uint32_t *rows;
  // term += by_query[c · by_query_cell + h · by_query_head + r], c being the query's cell; null for none.
  const void *by_query;
  // term += by_key[c · by_key_cell + h · by_key_head + r], c being the key's cell and h the query's head.
  const void *by_key;
  uint64_t by_query_cell;
  uint64_t by_query_head;
  uint64_t by_key_cell;
  uint64_t by_key_head;
  uint64_t q_stride;
  uint64_t k_stride;
  uint64_t v_stride;
  uint64_t out_stride;
  uint32_t n_tiles;
  uint32_t n_heads;
  // Heads of keys and values; divides n_heads.
  uint32_t n_kv;
  // Values of a head, 1 to HEAD_DIM_MAX.
  uint32_t dim;
  uint32_t distances_reach;
  uint32_t rows_reach;
  // A query at i sees keys from i − window to i + window; NO_WINDOW: all.
  uint32_t window;
  // 1: it sees no key behind itself.
  uint32_t causal;
  // What the product of query and key (and DeBERTa's terms) are multiplied with.
  float scale;
  // Zero; fills the struct up to a multiple of 8.
  uint32_t unused;
};

static_assert(sizeof(Tile) == 20, "a tile is five words");
static_assert(sizeof(Attention) == 11 * 8 + 8 * 8 + 10 * 4, "the struct has a twin in Rust");
