#include "check.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

Counts counts;

uint64_t Chance::bits() {
  uint64_t z = state_ += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

float Chance::normal(float deviation) {
  double sum = 0.0;
  for (int i = 0; i < 12; i++) sum += double(bits() >> 11) / double(1ull << 53);
  return float(sum - 6.0) * deviation;
}

std::vector<float> Chance::normals(size_t n, float deviation) {
  std::vector<float> values(n);
  for (float &x : values) x = normal(deviation);
  return values;
}

void expect(const std::string &what, bool right) {
  counts.checked++;
  if (right) return;
  counts.failed++;
  printf("WRONG %s\n", what.c_str());
}

void expect_close(const std::string &what, const std::vector<double> &expected, const std::vector<float> &found,
                  double tolerance) {
  counts.checked++;
  double worst = 0.0;
  size_t n_off = 0, first = 0;
  for (size_t i = 0; i < expected.size(); i++) {
    const double off = std::abs(expected[i] - found[i]) / std::max(1.0, std::abs(expected[i]));
    const bool same = std::isnan(expected[i]) ? std::isnan(found[i]) : off <= tolerance;
    worst = std::max(worst, off);
    if (!same && n_off++ == 0) first = i;
  }
  if (n_off == 0 && expected.size() == found.size()) return;
  counts.failed++;
  printf("WRONG %s: %zu of %zu values, the first at %zu: %.9g, not %.9g (at most %.2g off, %.2g may be)\n", what.c_str(),
         n_off, expected.size(), first, found[first], expected[first], worst, tolerance);
}
