// The steps between products against loops in f64: widths that fit vectors, warps and blocks and others, in every type,
// with and without what may be missing.
#include "../../../candle/kernels/pointwise.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "check.h"
#include "machine.h"

namespace {

// A few blocks: so that each goes on with what is left.
constexpr uint32_t GRID = 3;
constexpr double ACTIVATED = 3e-6;

const float *floats(const Values &values) { return static_cast<const float *>(values.at()); }

double tolerance(Type type, double of_f32) { return std::max(of_f32, 1.01 * rounding(type)); }

std::string text(const char *step, Type type, uint64_t width, const std::string &more = "") {
  return std::string(step) + "_" + name(type) + " width " + std::to_string(width) + more;
}

void launch(const char *step, Type type, void *argument, uint32_t grid = GRID) {
  machine_launch(std::string(step) + "_" + name(type), grid, POINTWISE_THREADS, argument);
}

double activated(uint32_t kind, double x) {
  switch (kind) {
  case ACTIVATION_GELU: return x / 2 * (1 + std::erf(x / std::sqrt(2.0)));
  case ACTIVATION_GELU_TANH: return x / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
  case ACTIVATION_RELU: return x < 0 ? 0 : x;
  case ACTIVATION_SILU: return x / (1 + std::exp(-x));
  case ACTIVATION_TANH: return std::tanh(x);
  default: return x;
  }
}

// A matrix by chance, and with some of the numbers at which functions bend.
std::vector<float> matrix(Chance &chance, size_t n) {
  std::vector<float> values = chance.normals(n, 2.0f);
  const float edges[] = {0.0f, -0.0f, 1e-6f, -30.0f, 30.0f, -90.0f, 5.0f, -5.0f};
  for (size_t i = 0; i < n; i += 11) values[i] = edges[i / 11 % std::size(edges)];
  return values;
}

// --- add, activate, gate ---

void check_add(Chance &chance, Type type, uint64_t width, bool has_bias) {
  constexpr uint64_t CELLS = 21;
  const Values x(type, matrix(chance, CELLS * width)), y(type, matrix(chance, CELLS * width));
  const Values bias(Type::F32, chance.normals(width));
  Add a = {x.at(), y.at(), has_bias ? floats(bias) : nullptr, CELLS, width};
  launch("add", type, &a);
  std::vector<double> expected;
  for (size_t i = 0; i < x.host.size(); i++) {
    expected.push_back(double(x.host[i]) + y.host[i] + (has_bias ? bias.host[i % width] : 0.0));
  }
  expect_close(text("add", type, width), expected, x.read(), tolerance(type, 1e-6));
}

void check_activate(Chance &chance, Type type, uint64_t width, uint32_t kind, bool has_bias) {
  constexpr uint64_t CELLS = 17;
  const Values x(type, matrix(chance, CELLS * width)), bias(Type::F32, chance.normals(width));
  Activate a = {x.at(), has_bias ? floats(bias) : nullptr, CELLS, width, kind, 0};
  launch("activate", type, &a);
  std::vector<double> expected;
  for (size_t i = 0; i < x.host.size(); i++) {
    expected.push_back(activated(kind, double(x.host[i]) + (has_bias ? bias.host[i % width] : 0.0)));
  }
  const std::string what = text("activate", type, width, " kind " + std::to_string(kind));
  expect_close(what, expected, x.read(), tolerance(type, ACTIVATED));
}

void check_gate(Chance &chance, Type type, uint64_t width, uint32_t kind, bool has_bias) {
  constexpr uint64_t CELLS = 17;
  const Values x(type, matrix(chance, CELLS * 2 * width)), bias(Type::F32, chance.normals(2 * width));
  const Values out(type, std::vector<float>(CELLS * width));
  Gate a = {out.at(), x.at(), has_bias ? floats(bias) : nullptr, CELLS, width, kind, 0};
  launch("gate", type, &a);
  std::vector<double> expected;
  for (size_t cell = 0; cell < CELLS; cell++) {
    for (size_t i = 0; i < width; i++) {
      const float *line = &x.host[cell * 2 * width];
      const double first = line[i] + (has_bias ? double(bias.host[i]) : 0.0);
      const double second = line[width + i] + (has_bias ? double(bias.host[width + i]) : 0.0);
      expected.push_back(activated(kind, first) * second);
    }
  }
  const std::string what = text("gate", type, width, " kind " + std::to_string(kind));
  expect_close(what, expected, out.read(), tolerance(type, 10 * ACTIVATED));
}

// A NaN stays one through every activation.
void check_nan(Type type, uint32_t kind) {
  std::vector<float> values(16, 1.0f);
  values[5] = NAN;
  const Values x(type, values);
  Activate a = {x.at(), nullptr, 2, 8, kind, 0};
  launch("activate", type, &a);
  const std::vector<float> found = x.read();
  expect(text("activate", type, 8, " NaN kind " + std::to_string(kind)), std::isnan(found[5]) && !std::isnan(found[4]));
}

// --- norms ---

struct NormCase {
  Type type;
  uint64_t width;
  bool centred;
  bool bias;
  // Beside the deviation of 2.
  float mean = 0.0f;
};

struct NormValues {
  Values weight;
  Values bias;
  NormParameters parameters;

  NormValues(Chance &chance, const NormCase &c)
      : weight(Type::F32, chance.normals(c.width)), bias(Type::F32, chance.normals(c.width)),
        parameters{floats(weight), c.bias ? floats(bias) : nullptr, 1e-5f, c.centred} {}
};

void norm_line(std::vector<double> &line, const NormValues &norm) {
  double mean = 0.0, variance = 0.0;
  for (double x : line) mean += x / double(line.size());
  if (!norm.parameters.centred) mean = 0.0;
  for (double x : line) variance += (x - mean) * (x - mean) / double(line.size());
  const double factor = 1.0 / std::sqrt(variance + norm.parameters.epsilon);
  for (size_t i = 0; i < line.size(); i++) {
    const double bias = norm.parameters.bias ? norm.bias.host[i] : 0.0;
    line[i] = (line[i] - mean) * factor * norm.weight.host[i] + bias;
  }
}

std::string text(const char *step, const NormCase &c) {
  return text(step, c.type, c.width, std::string(c.centred ? " centred" : "") + (c.bias ? " bias" : ""));
}

// Digits that sums of large numbers lose in f32.
double tolerance(const NormCase &c) { return tolerance(c.type, 3e-5 + 1e-6 * c.mean); }

constexpr uint64_t NORM_CELLS = 29;

std::vector<float> normed_matrix(Chance &chance, const NormCase &c) {
  std::vector<float> values = chance.normals(NORM_CELLS * c.width, 2.0f);
  for (float &x : values) x += c.mean;
  return values;
}

void check_norm(Chance &chance, const NormCase &c, bool in_place) {
  const NormValues norm(chance, c);
  const Values x(c.type, normed_matrix(chance, c)), out(c.type, std::vector<float>(x.host.size()));
  Norm a = {in_place ? x.at() : out.at(), x.at(), norm.parameters, NORM_CELLS, c.width};
  launch("norm", c.type, &a);
  std::vector<double> expected;
  for (uint64_t cell = 0; cell < NORM_CELLS; cell++) {
    std::vector<double> line(&x.host[cell * c.width], &x.host[cell * c.width] + c.width);
    norm_line(line, norm);
    expected.insert(expected.end(), line.begin(), line.end());
  }
  expect_close(text("norm", c), expected, (in_place ? x : out).read(), tolerance(c));
}

// The sum may be kept in the residual's place and the normed cells in x's.
void check_add_norm(Chance &chance, const NormCase &c, bool has_bias, bool has_sum) {
  const NormValues norm(chance, c);
  const Values x(c.type, normed_matrix(chance, c)), residual(c.type, normed_matrix(chance, c));
  const Values bias(Type::F32, chance.normals(c.width));
  AddNorm a = {x.at(), has_sum ? residual.at() : nullptr, x.at(), residual.at(), has_bias ? floats(bias) : nullptr,
               norm.parameters, NORM_CELLS, c.width};
  launch("add_norm", c.type, &a);
  std::vector<double> expected, sums;
  for (uint64_t cell = 0; cell < NORM_CELLS; cell++) {
    std::vector<double> line;
    for (uint64_t i = 0; i < c.width; i++) {
      const size_t at = cell * c.width + i;
      line.push_back(double(x.host[at]) + residual.host[at] + (has_bias ? bias.host[i] : 0.0));
    }
    sums.insert(sums.end(), line.begin(), line.end());
    norm_line(line, norm);
    expected.insert(expected.end(), line.begin(), line.end());
  }
  expect_close(text("add_norm", c), expected, x.read(), tolerance(c));
  if (!has_sum) sums.assign(residual.host.begin(), residual.host.end());
  expect_close(text("add_norm", c) + " sum", sums, residual.read(), tolerance(c.type, 1e-6));
}

void check_embed(Chance &chance, const NormCase &c, bool has_norm, bool has_positions, bool has_types) {
  constexpr uint32_t WORDS = 50, POSITIONS = 12, TYPES_N = 2;
  const NormValues norm(chance, c);
  const Values words(c.type, chance.normals(WORDS * c.width)), positions(c.type, chance.normals(POSITIONS * c.width));
  const Values types(c.type, chance.normals(TYPES_N * c.width)), out(c.type, std::vector<float>(NORM_CELLS * c.width));
  const auto some = [&](uint32_t n) {
    std::vector<uint32_t> ids;
    for (uint64_t i = 0; i < NORM_CELLS; i++) ids.push_back(chance.below(n));
    return ids;
  };
  const Words ids(some(WORDS)), position_ids(some(POSITIONS)), type_ids(some(TYPES_N));
  Embed a = {};
  a.out = out.at();
  a.words = words.at();
  a.ids = ids.at();
  if (has_positions) a.positions = positions.at(), a.position_ids = position_ids.at();
  if (has_types) a.types = types.at(), a.type_ids = type_ids.at();
  if (has_norm) a.norm = norm.parameters;
  a.n_cells = NORM_CELLS;
  a.width = c.width;
  launch("embed", c.type, &a);
  std::vector<double> expected;
  for (uint64_t cell = 0; cell < NORM_CELLS; cell++) {
    std::vector<double> line;
    for (uint64_t i = 0; i < c.width; i++) {
      double x = words.host[ids.host[cell] * c.width + i];
      if (has_positions) x += positions.host[position_ids.host[cell] * c.width + i];
      if (has_types) x += types.host[type_ids.host[cell] * c.width + i];
      line.push_back(x);
    }
    if (has_norm) norm_line(line, norm);
    expected.insert(expected.end(), line.begin(), line.end());
  }
  expect_close(text("embed", c), expected, out.read(), tolerance(c));
}

// --- heads ---

struct HeadsCase {
  Type type;
  uint32_t n_first;
  uint32_t n_second;
  uint32_t dim;
  uint32_t n_pairs;
  bool bias;
  // Of the first heads and of the others: no norm, without mean, with mean and bias.
  uint32_t norms[2];
  // Values of a cell behind its heads, which stay.
  uint32_t gap;
};

void check_heads(Chance &chance, const HeadsCase &c) {
  constexpr uint64_t CELLS = 37;
  constexpr uint32_t POSITIONS = 19;
  const uint32_t n_heads = c.n_first + c.n_second;
  const uint64_t stride = uint64_t(n_heads) * c.dim + c.gap;
  const Values x(c.type, chance.normals(CELLS * stride)), bias(Type::F32, chance.normals(n_heads * c.dim));
  const Values cos(Type::F32, chance.normals(POSITIONS * c.n_pairs)), sin(Type::F32, chance.normals(POSITIONS * c.n_pairs));
  const auto norm_case = [&](int which) { return NormCase{c.type, c.dim, c.norms[which] == 2, c.norms[which] == 2}; };
  const NormValues norms[2] = {{chance, norm_case(0)}, {chance, norm_case(1)}};
  std::vector<uint32_t> places;
  for (uint64_t cell = 0; cell < CELLS; cell++) places.push_back(chance.below(POSITIONS));
  const Words positions(places);
  Heads a = {};
  a.x = x.at();
  if (c.bias) a.bias = floats(bias);
  for (int i = 0; i < 2; i++) {
    if (c.norms[i]) a.norms[i] = norms[i].parameters;
  }
  if (c.n_pairs) a.cos = floats(cos), a.sin = floats(sin), a.positions = positions.at();
  a.n_cells = CELLS;
  a.stride = stride;
  a.n_first = c.n_first, a.n_second = c.n_second, a.dim = c.dim, a.n_pairs = c.n_pairs;
  launch("heads", c.type, &a);
  std::vector<double> expected(x.host.begin(), x.host.end());
  for (uint64_t cell = 0; cell < CELLS; cell++) {
    for (uint32_t head = 0; head < n_heads; head++) {
      double *line = &expected[cell * stride + head * c.dim];
      std::vector<double> values(line, line + c.dim);
      for (uint32_t i = 0; c.bias && i < c.dim; i++) values[i] += bias.host[head * c.dim + i];
      const int which = head < c.n_first ? 0 : 1;
      if (c.norms[which]) norm_line(values, norms[which]);
      for (uint32_t i = 0; i < c.n_pairs; i++) {
        const size_t at = positions.host[cell] * c.n_pairs + i;
        const double first = values[i], second = values[i + c.n_pairs];
        values[i] = first * cos.host[at] - second * sin.host[at];
        values[i + c.n_pairs] = second * cos.host[at] + first * sin.host[at];
      }
      std::copy(values.begin(), values.end(), line);
    }
  }
  const std::string heads = std::to_string(c.n_first) + "+" + std::to_string(c.n_second);
  const std::string more = " pairs " + std::to_string(c.n_pairs) + " heads " + heads;
  expect_close(text("heads", c.type, c.dim, more), expected, x.read(), tolerance(c.type, 3e-5));
}

// --- pick, means, to_f32 ---

void check_pick(Chance &chance, Type type, uint64_t width) {
  const Values x(type, chance.normals(20 * width)), out(type, std::vector<float>(7 * width));
  const Words indices({3, 0, 19, 19, 7, 1, 12});
  Pick a = {out.at(), x.at(), indices.at(), 7, width};
  launch("pick", type, &a);
  std::vector<double> expected;
  for (uint32_t index : indices.host) {
    for (uint64_t i = 0; i < width; i++) expected.push_back(x.host[index * width + i]);
  }
  expect_close(text("pick", type, width), expected, out.read(), 0.0);
}

void check_means(Chance &chance, Type type, uint64_t width) {
  const Words starts({0, 1, 9, 9, 40});
  const Values x(type, chance.normals(40 * width)), out(type, std::vector<float>(4 * width));
  Means a = {out.at(), x.at(), starts.at(), 4, width};
  launch("means", type, &a);
  std::vector<double> expected;
  for (size_t row = 0; row < 4; row++) {
    for (uint64_t i = 0; i < width; i++) {
      const uint32_t start = starts.host[row], end = starts.host[row + 1];
      double sum = 0.0;
      for (uint32_t cell = start; cell < end; cell++) sum += x.host[cell * width + i];
      expected.push_back(start < end ? sum / (end - start) : 0.0);
    }
  }
  expect_close(text("means", type, width), expected, out.read(), tolerance(type, 1e-6));
}

void check_to_f32(Chance &chance, Type type, size_t n) {
  const Values x(type, chance.normals(n)), out(Type::F32, std::vector<float>(n));
  ToF32 a = {static_cast<float *>(out.at()), x.at(), n};
  launch("to_f32", type, &a);
  expect_close(text("to_f32", type, n), std::vector<double>(x.host.begin(), x.host.end()), out.read(), 0.0);
}

void check_elementwise(Chance &chance, Type type) {
  for (uint64_t width : {1, 3, 8, 52, 100, 384, 1000, 1536}) {
    for (bool bias : {false, true}) check_add(chance, type, width, bias);
    for (uint32_t kind = ACTIVATION_GELU; kind <= ACTIVATION_IDENTITY; kind++) {
      if (width > 100 && kind > ACTIVATION_GELU_TANH) continue;
      check_activate(chance, type, width, kind, kind % 2 == width % 2);
      check_gate(chance, type, width, kind, kind % 2 != width % 2);
    }
    check_pick(chance, type, width);
    check_means(chance, type, width);
    check_to_f32(chance, type, width);
  }
  for (uint32_t kind = ACTIVATION_GELU; kind <= ACTIVATION_IDENTITY; kind++) check_nan(type, kind);
}

void check_norms(Chance &chance, Type type) {
  for (uint64_t width : {1, 6, 20, 48, 128, 130, 256, 384, 500, 768, 1000, 1024, 1028, 2048, 2560, 4096, 8192, 8196}) {
    for (bool centred : {false, true}) {
      const NormCase c = {type, width, centred, centred != (width % 3 == 0)};
      check_norm(chance, c, centred);
      check_add_norm(chance, c, centred, !centred);
      check_add_norm(chance, c, !centred, !centred);
    }
    for (uint32_t parts = 0; parts < 8; parts++) {
      if (width > 1024 && parts != 7) continue;
      check_embed(chance, {type, width, true, true}, parts & 1, parts & 2, parts & 4);
    }
  }
  // A mean far from zero costs no more than its own digits.
  if (type == Type::F32) {
    check_norm(chance, {type, 768, true, true, 100.0f}, false);
    check_norm(chance, {type, 2048, true, true, 100.0f}, false);
  }
}

void check_all_heads(Chance &chance, Type type) {
  check_heads(chance, {type, 12, 12, 64, 32, true, {0, 0}, 768});
  check_heads(chance, {type, 12, 0, 32, 16, false, {0, 0}, 0});
  check_heads(chance, {type, 8, 2, 128, 64, false, {1, 1}, 256});
  check_heads(chance, {type, 3, 1, 16, 8, true, {1, 1}, 16});
  check_heads(chance, {type, 2, 3, 12, 6, true, {2, 2}, 5});
  check_heads(chance, {type, 2, 2, 64, 16, true, {2, 0}, 8});
  check_heads(chance, {type, 1, 2, 256, 0, true, {0, 1}, 0});
  check_heads(chance, {type, 5, 0, 7, 2, true, {1, 0}, 1});
  check_heads(chance, {type, 0, 4, 6, 3, false, {0, 2}, 0});
}

} // namespace

void test_pointwise() {
  Chance chance(2);
  for (Type type : TYPES) {
    check_elementwise(chance, type);
    check_norms(chance, type);
    check_all_heads(chance, type);
  }
}
