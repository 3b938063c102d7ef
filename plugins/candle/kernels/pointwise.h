// The steps between products: what their launches are given. The structs have twins in Rust (repr(C)).
//
// Matrices are row-major and contiguous: one line of `width` values for each cell. `void` is the kernel's type
// (f32, f16 or bf16, the suffix of its name); biases, weights of norms and angles are f32, and so is all
// arithmetic. "If any": null for none. Each kernel is extern "C", named as said at its struct with a suffix
// _f32, _f16 or _bf16, and has that struct as its one argument, by value.
//
// Launch: blocks of POINTWISE_THREADS, no dynamic shared memory, grids of one dimension. Any grid is right, for
// blocks go on with what is left; a good one is said at each struct. It must be within 1 to POINTWISE_GRID_MAX.
//
// All are bound by memory. Bytes of a cell of width w in halves: activate 4w, add 6w, gate 6w (w of its output),
// norm 4w, add_norm 6w (8w with a sum), embed 2w to 8w; the H200's 4.8 TB/s are the roof, and arithmetic stays below it
// (gelu: about 20 instructions and two of the slow kind for 4 bytes).
#pragma once

#include <stdint.h>

constexpr uint32_t POINTWISE_THREADS = 256;
constexpr uint32_t POINTWISE_GRID_MAX = (1u << 20);
// Values that a thread of the elementwise kernels moves at a time.
constexpr uint32_t VECTOR_VALUES = 8;
// Up to this width (and if it is a multiple of 4) norms take a warp for a cell, eight cells a block; beyond it
// a block.
constexpr uint32_t WARP_WIDTH_MAX = 1024;

// activation.rs's, in its order.
enum ActivationKind : uint32_t {
  ACTIVATION_GELU = 0,
  ACTIVATION_GELU_TANH = 1,
  ACTIVATION_RELU = 2,
  ACTIVATION_SILU = 3,
  ACTIVATION_TANH = 4,
  ACTIVATION_IDENTITY = 5,
};

// (x − mean) / √(variance + ε) · weight + bias; of RMS norms mean is 0.
struct NormParameters {
  // Null: there is no norm.
  const float *weight;
  // If any.
  const float *bias;
  float epsilon;
  // 1: the mean is taken off.
  uint32_t centred;
};

// embed: out = norm(words[id] + positions[position] + types[type]).
// Grid: ⌈n_cells / 8⌉ where norms take a warp for a cell (see WARP_WIDTH_MAX), else n_cells.
struct Embed {
  void *out;
  const void *words;
  // If any, and of what.
  const void *positions;
  const void *types;
  const uint32_t *ids;
  const uint32_t *position_ids;
  const uint32_t *type_ids;
  NormParameters norm;
  uint64_t n_cells;
  uint64_t width;
};

// add: x += y + bias.
// Grid of the elementwise kernels: ⌈n_cells · width / (POINTWISE_THREADS · VECTOR_VALUES)⌉.
struct Add {
  void *x;
  const void *y;
  // If any: width.
  const float *bias;
  uint64_t n_cells;
  uint64_t width;
};

// activate: x = activation(x + bias). Grid: elementwise.
struct Activate {
  void *x;
  // If any: width.
  const float *bias;
  uint64_t n_cells;
  uint64_t width;
  // An ActivationKind.
  uint32_t activation;
  uint32_t unused;
};

// gate: out = activation(a + its bias) · (b + its bias), x being cells of (a, b), each `width` wide.
// Grid: elementwise, of out.
struct Gate {
  void *out;
  const void *x;
  // If any: 2 · width.
  const float *bias;
  uint64_t n_cells;
  // Of out.
  uint64_t width;
  uint32_t activation;
  uint32_t unused;
};

// norm: out = norm(x); out may be x. Grid: as embed's.
struct Norm {
  void *out;
  const void *x;
  NormParameters norm;
  uint64_t n_cells;
  uint64_t width;
};

// add_norm: out = norm(x + bias + residual); sum = x + bias + residual, if any: the stream of models whose norms come
// first. out and sum may each be x or residual, but not the same. Grid: as embed's.
struct AddNorm {
  void *out;
  void *sum;
  const void *x;
  const void *residual;
  // If any: width.
  const float *bias;
  NormParameters norm;
  uint64_t n_cells;
  uint64_t width;
};

// heads: in place, of `n_first + n_second` heads side by side in each cell: bias added, then the head normed (by
// norms[0] the first n_first, by norms[1] the others: queries and keys), then its first 2 · n_pairs values turned by
// the angles of the cell's position, value i with value i + n_pairs.
// Grid: ⌈n_cells · (n_first + n_second) / 32⌉.
struct Heads {
  // The first head of cell 0.
  void *x;
  // If any: (n_first + n_second) · dim.
  const float *bias;
  // Of dim values each.
  NormParameters norms[2];
  // positions × n_pairs, if any.
  const float *cos;
  const float *sin;
  // Each cell's place in its row, if there are angles.
  const uint32_t *positions;
  uint64_t n_cells;
  // Values from a cell to the next.
  uint64_t stride;
  uint32_t n_first;
  uint32_t n_second;
  // 1 to 256.
  uint32_t dim;
  // 2 · n_pairs ≤ dim; 0 without angles.
  uint32_t n_pairs;
};

// pick: out[i] = x[indices[i]], lines of `width` values. Grid: elementwise, of out.
struct Pick {
  void *out;
  const void *x;
  const uint32_t *indices;
  uint64_t n_out;
  uint64_t width;
};

// means: out[r] = the mean of cells starts[r]..starts[r + 1], added up in their order; zeros of a row without cells.
// Grid: n_rows · ⌈width / POINTWISE_THREADS⌉.
struct Means {
  void *out;
  const void *x;
  // n_rows + 1.
  const uint32_t *starts;
  uint64_t n_rows;
  uint64_t width;
};

// to_f32: out = x, in f32; n values. Grid: ⌈n / POINTWISE_THREADS⌉.
struct ToF32 {
  float *out;
  const void *x;
  uint64_t n;
};

static_assert(sizeof(NormParameters) == 24 && sizeof(Embed) == 96 && sizeof(Add) == 40, "twins in Rust");
static_assert(sizeof(Activate) == 40 && sizeof(Gate) == 48 && sizeof(Norm) == 56, "twins in Rust");
static_assert(sizeof(AddNorm) == 80 && sizeof(Heads) == 120 && sizeof(Pick) == 40, "twins in Rust");
static_assert(sizeof(Means) == 40 && sizeof(ToF32) == 24, "twins in Rust");
