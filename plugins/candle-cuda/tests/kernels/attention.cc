// Attention's kernels against loops in f64: every width of heads, type and option, rows at the edges of tiles, rounds and
// steps. What no query may look at (cells between rows, values between heads' lines) is NaN, and what nobody may write keeps
// its number.
#include "../../../candle/kernels/attention.h"

#include <algorithm>
#include <cmath>

#include "check.h"
#include "machine.h"

namespace {

constexpr float UNTOUCHED = 7.0f;

// One row: its queries stand at positions first.. and look at its keys.
struct Row {
  uint32_t n_queries;
  uint32_t n_keys;
  uint32_t first = 0;
};

struct Case {
  Type type = Type::F32;
  uint32_t dim = 32;
  uint32_t n_heads = 2;
  uint32_t n_kv = 2;
  std::vector<Row> rows;
  // By the kernel of single queries.
  bool one = false;
  bool causal = false;
  uint32_t window = NO_WINDOW;
  bool q_bias = false;
  bool v_bias = false;
  bool distances = false;
  bool by_query = false;
  bool by_key = false;
  // Values between a cell's heads and the next cell, and before the first: odd ones keep kernels from vectors.
  uint32_t gap = 0;
  uint32_t skew = 0;

  bool has_terms() const { return distances || by_query || by_key; }
  std::string kernel() const;
  std::string text() const;
};

std::string Case::kernel() const {
  const std::string type = std::string("_") + name(this->type);
  if (one) return "attention_one" + type;
  const uint32_t width = dim <= 32 ? 32 : dim <= 64 ? 64 : dim <= 128 ? 128 : 256;
  return std::string(has_terms() ? "attention_terms_" : "attention_") + std::to_string(width) + type;
}

std::string Case::text() const {
  std::string text = kernel() + " dim " + std::to_string(dim);
  text += " heads " + std::to_string(n_heads) + "/" + std::to_string(n_kv);
  if (causal) text += " causal";
  if (window != NO_WINDOW) text += " window " + std::to_string(window);
  if (q_bias) text += " q_bias";
  if (v_bias) text += " v_bias";
  if (distances) text += " distances";
  if (by_query) text += " by_query";
  if (by_key) text += " by_key";
  if (gap) text += " gap " + std::to_string(gap);
  if (skew) text += " skew " + std::to_string(skew);
  text += " rows";
  for (const Row &row : rows) {
    text += " " + std::to_string(row.n_queries) + "@" + std::to_string(row.first) + ":" + std::to_string(row.n_keys);
  }
  return text;
}

// Lines of a matrix with a cell before, between and behind rows that is nobody's.
struct Lines {
  uint32_t width;
  uint64_t stride;
  uint32_t skew;
  std::vector<uint32_t> starts;
  uint32_t n_cells = 1;

  Lines(const Case &c, uint32_t width, bool keys) : width(width), stride(width + c.gap), skew(c.skew) {
    for (const Row &row : c.rows) {
      starts.push_back(n_cells);
      n_cells += (keys ? row.n_keys : row.n_queries) + 1;
    }
  }
  size_t at(uint64_t cell, uint64_t value) const { return skew + cell * stride + value; }
  size_t size() const { return skew + n_cells * stride; }
  uint32_t end(size_t row) const { return (row + 1 < starts.size() ? starts[row + 1] : n_cells) - 1; }
  // What rows have by chance, and everything else is this.
  std::vector<float> filled(Chance *chance, float deviation, float else_value) const {
    std::vector<float> values(size(), else_value);
    for (size_t row = 0; chance && row < starts.size(); row++) {
      for (uint32_t cell = starts[row]; cell < end(row); cell++) {
        for (uint32_t i = 0; i < width; i++) values[at(cell, i)] = chance->normal(deviation);
      }
    }
    return values;
  }
};

// A case's matrices on the device.
struct Setting {
  const Case &c;
  uint32_t reach;
  uint32_t n_rows;
  float scale;
  Lines q_lines;
  Lines kv_lines;
  Lines by_query_lines;
  Lines by_key_lines;
  Values q;
  Values kv;
  Values q_bias;
  Values v_bias;
  Values distances;
  Values by_query;
  Values by_key;
  Words rows;
  std::vector<Tile> tiles;

  Setting(const Case &c, Chance &chance);
  bool sees(uint32_t position, uint32_t key, uint32_t n_keys) const;
  double score(size_t row, uint32_t head, uint32_t query, uint32_t key) const;
  std::vector<double> expected() const;
  std::vector<float> run(const std::vector<Tile> &tiles) const;
};

uint32_t reach_of(const Case &c) {
  uint32_t reach = 1;
  for (const Row &row : c.rows) reach = std::max({reach, row.n_keys, row.first + row.n_queries});
  return reach + 2;
}

std::vector<uint32_t> rising_rows(uint32_t reach, uint32_t n_rows) {
  std::vector<uint32_t> rows;
  for (uint32_t i = 0; i < 2 * reach - 1; i++) rows.push_back(uint64_t(i) * n_rows / (2 * reach - 1));
  return rows;
}

Setting::Setting(const Case &c, Chance &chance)
    : c(c), reach(reach_of(c)), n_rows(std::min(2 * reach - 1, 37u)), scale(2.0f / std::sqrt(float(c.dim))),
      q_lines(c, c.n_heads * c.dim, false), kv_lines(c, 2 * c.n_kv * c.dim, true),
      by_query_lines(c, c.n_heads * n_rows, false), by_key_lines(c, c.n_heads * n_rows, true),
      q(c.type, q_lines.filled(&chance, 1.0f, NAN)), kv(c.type, kv_lines.filled(&chance, 1.0f, NAN)),
      q_bias(Type::F32, chance.normals(c.n_heads * c.dim)), v_bias(Type::F32, chance.normals(c.n_kv * c.dim)),
      distances(Type::F32, chance.normals(c.n_heads * (2 * reach - 1))),
      by_query(c.type, c.by_query ? by_query_lines.filled(&chance, 0.5f / scale, NAN) : std::vector<float>()),
      by_key(c.type, c.by_key ? by_key_lines.filled(&chance, 0.5f / scale, NAN) : std::vector<float>()),
      rows(rising_rows(reach, n_rows)) {
  for (size_t row = 0; row < c.rows.size(); row++) {
    for (uint32_t first = 0; first < c.rows[row].n_queries; first += TILE_QUERIES) {
      const uint32_t n = std::min(TILE_QUERIES, c.rows[row].n_queries - first);
      tiles.push_back({q_lines.starts[row] + first, n, c.rows[row].first + first, kv_lines.starts[row], c.rows[row].n_keys});
    }
  }
}

bool Setting::sees(uint32_t position, uint32_t key, uint32_t n_keys) const {
  if (key >= n_keys || (c.causal && key > position)) return false;
  const uint32_t distance = key > position ? key - position : position - key;
  return c.window == NO_WINDOW || distance <= c.window;
}

double Setting::score(size_t row, uint32_t head, uint32_t query, uint32_t key) const {
  const uint32_t position = c.rows[row].first + query, kv_head = head / (c.n_heads / c.n_kv);
  const uint64_t q_cell = q_lines.starts[row] + query, k_cell = kv_lines.starts[row] + key;
  double score = 0.0;
  for (uint32_t i = 0; i < c.dim; i++) {
    const double bias = c.q_bias ? q_bias.host[head * c.dim + i] : 0.0;
    score += (q.host[q_lines.at(q_cell, head * c.dim + i)] + bias) * kv.host[kv_lines.at(k_cell, kv_head * c.dim + i)];
  }
  const uint32_t r = rows.host[reach - 1 + position - key];
  if (c.by_query) score += by_query.host[by_query_lines.at(q_cell, head * n_rows + r)];
  if (c.by_key) score += by_key.host[by_key_lines.at(k_cell, head * n_rows + r)];
  score *= scale;
  if (c.distances) score += distances.host[head * (2 * reach - 1) + reach - 1 + key - position];
  return score;
}

std::vector<double> Setting::expected() const {
  std::vector<double> out(q_lines.size(), UNTOUCHED);
  for (size_t row = 0; row < c.rows.size(); row++) {
    for (uint32_t head = 0; head < c.n_heads; head++) {
      for (uint32_t query = 0; query < c.rows[row].n_queries; query++) {
        const uint32_t n_keys = c.rows[row].n_keys, kv_head = head / (c.n_heads / c.n_kv);
        std::vector<double> scores(n_keys, -INFINITY);
        for (uint32_t key = 0; key < n_keys; key++) {
          if (sees(c.rows[row].first + query, key, n_keys)) scores[key] = score(row, head, query, key);
        }
        const double most = *std::max_element(scores.begin(), scores.end());
        double sum = 0.0;
        for (double &score : scores) sum += score = most == -INFINITY ? 0.0 : std::exp(score - most);
        for (uint32_t i = 0; i < c.dim; i++) {
          double mixed = 0.0;
          for (uint32_t key = 0; key < n_keys; key++) {
            if (scores[key] == 0.0) continue;
            mixed += scores[key] * kv.host[kv_lines.at(kv_lines.starts[row] + key, (c.n_kv + kv_head) * c.dim + i)];
          }
          const double bias = c.v_bias ? v_bias.host[kv_head * c.dim + i] : 0.0;
          out[q_lines.at(q_lines.starts[row] + query, head * c.dim + i)] = sum == 0.0 ? 0.0 : mixed / sum + bias;
        }
      }
    }
  }
  return out;
}

std::vector<float> Setting::run(const std::vector<Tile> &tiles) const {
  Values out(c.type, q_lines.filled(nullptr, 0.0f, UNTOUCHED));
  Memory tiles_memory(tiles.size() * sizeof(Tile));
  tiles_memory.write(tiles.data(), tiles.size() * sizeof(Tile));
  Attention a = {};
  a.q = q.at(c.skew);
  a.k = kv.at(c.skew);
  a.v = kv.at(c.skew + c.n_kv * c.dim);
  a.out = out.at(c.skew);
  a.tiles = static_cast<const Tile *>(tiles_memory.at());
  if (c.q_bias) a.q_bias = static_cast<const float *>(q_bias.at());
  if (c.v_bias) a.v_bias = static_cast<const float *>(v_bias.at());
  if (c.distances) a.distances = static_cast<const float *>(distances.at());
  if (c.by_query || c.by_key) a.rows = rows.at();
  if (c.by_query) a.by_query = by_query.at(c.skew);
  if (c.by_key) a.by_key = by_key.at(c.skew);
  a.by_query_cell = by_query_lines.stride;
  a.by_key_cell = by_key_lines.stride;
  a.by_query_head = a.by_key_head = n_rows;
  a.q_stride = a.out_stride = q_lines.stride;
  a.k_stride = a.v_stride = kv_lines.stride;
  a.n_tiles = uint32_t(tiles.size());
  a.n_heads = c.n_heads;
  a.n_kv = c.n_kv;
  a.dim = c.dim;
  a.distances_reach = a.rows_reach = reach;
  a.window = c.window;
  a.causal = c.causal;
  a.scale = scale;
  machine_launch(c.kernel(), a.n_tiles * c.n_heads, ATTENTION_THREADS, &a);
  return out.read();
}

// Weights and products of halves are rounded; scores of 6 and more make that count several times.
double tolerance(Type type) { return type == Type::F32 ? 1e-5 : 8 * rounding(type); }

void check(const Case &c, Chance &chance) {
  const Setting setting(c, chance);
  expect_close(c.text(), setting.expected(), setting.run(setting.tiles), tolerance(c.type));
}

// A row's numbers are the same, bit for bit, whatever stands beside it.
void check_alone(const Case &c, Chance &chance) {
  const Setting setting(c, chance);
  const std::vector<float> together = setting.run(setting.tiles);
  std::vector<Tile> turned(setting.tiles.rbegin(), setting.tiles.rend());
  expect(c.text() + ": tiles in another order", setting.run(turned) == together);
  for (const Tile &tile : setting.tiles) {
    const std::vector<float> alone = setting.run({tile});
    bool same = true;
    for (uint32_t i = 0; i < tile.n_queries; i++) {
      for (uint32_t value = 0; value < setting.q_lines.width; value++) {
        const size_t at = setting.q_lines.at(tile.q_cell + i, value);
        same = same && alone[at] == together[at];
      }
    }
    expect(c.text() + ": a tile alone", same);
  }
}

std::vector<Row> whole_rows(const std::vector<uint32_t> &lens) {
  std::vector<Row> rows;
  for (uint32_t len : lens) rows.push_back({len, len});
  return rows;
}

// Rows at the edges of steps, rounds and tiles, for every width, plain.
void check_widths(Chance &chance) {
  for (Type type : TYPES) {
    for (uint32_t dim : {8, 16, 24, 32, 40, 48, 64, 72, 80, 96, 128, 136, 160, 192, 256, 1, 6, 12, 33, 63, 100, 255}) {
      Case c;
      c.type = type;
      c.dim = dim;
      c.rows = whole_rows({1, 7, 16, 17, 33, 64, 65, 90});
      check(c, chance);
      c.one = true;
      for (Row &row : c.rows) row.n_queries = 1;
      check(c, chance);
    }
  }
}

void check_lengths(Chance &chance) {
  for (Type type : TYPES) {
    for (uint32_t dim : {32, 64, 128, 256}) {
      Case c;
      c.type = type;
      c.dim = dim;
      c.n_heads = c.n_kv = 1;
      c.rows = whole_rows({2, 8, 15, 31, 32, 47, 48, 49, 63, 66, 96, 127, 128, 129, 130, 200});
      check(c, chance);
      c.rows = {{64, 700}, {3, 699}, {16, 65}, {1, 128}, {700, 700}};
      check(c, chance);
    }
  }
}

// Single queries: the first of rows, the last of rows that see only what is before, and decoders'.
void check_single(Chance &chance) {
  for (Type type : TYPES) {
    for (uint32_t dim : {32, 64, 128, 256}) {
      Case c;
      c.type = type;
      c.dim = dim;
      c.one = true;
      c.rows = {{1, 1}, {1, 3}, {1, 31}, {1, 32}, {1, 33}, {1, 128}, {1, 129}, {1, 130}, {1, 700}};
      check(c, chance);
      c.causal = true;
      c.n_heads = 4;
      for (Row &row : c.rows) row.first = row.n_keys - 1;
      check(c, chance);
      c.window = 20;
      check(c, chance);
    }
  }
}

Case by_chance(Chance &chance) {
  Case c;
  c.type = TYPES[chance.below(3)];
  constexpr uint32_t DIMS[] = {8, 16, 32, 32, 64, 64, 80, 96, 128, 12, 6, 200, 256};
  c.dim = DIMS[chance.below(std::size(DIMS))];
  c.n_kv = chance.between(1, 3);
  c.n_heads = c.n_kv * chance.between(1, 3);
  c.causal = chance.below(3) == 0;
  if (chance.below(3) == 0) c.window = chance.below(4) == 0 ? UINT32_MAX - 1 - chance.below(90) : chance.below(90);
  c.q_bias = chance.flip();
  c.v_bias = chance.flip();
  c.distances = chance.below(4) == 0;
  c.by_query = chance.below(4) == 0;
  c.by_key = chance.below(4) == 0;
  c.gap = chance.below(3) == 0 ? chance.below(9) : chance.below(3) * 8;
  c.skew = chance.below(4) == 0 ? chance.below(9) : 0;
  c.one = chance.below(4) == 0;
  for (uint32_t n = chance.between(1, 4); n-- > 0;) {
    const uint32_t len = chance.below(6) == 0 ? chance.between(1, 300) : chance.between(1, 80);
    Row row = {c.one ? 1 : len, len};
    if (c.one && chance.flip()) row.first = chance.below(len);
    // What a decoder asks of a row of another length.
    if (!c.one && chance.below(5) == 0) row.n_queries = chance.between(1, 80);
    c.rows.push_back(row);
  }
  return c;
}

} // namespace

void test_attention() {
  Chance chance(1);
  check_widths(chance);
  check_lengths(chance);
  check_single(chance);
  for (int i = 0; i < 300; i++) check(by_chance(chance), chance);
  for (int i = 0; i < 12; i++) check_alone(by_chance(chance), chance);
}
