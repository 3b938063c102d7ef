// How what a kernel wrote is compared, and numbers by chance that are the same in every run.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

// By a seed: splitmix64.
class Chance {
public:
  explicit Chance(uint64_t seed) : state_(seed) {}
  uint64_t bits();
  // 0 to n − 1.
  uint32_t below(uint32_t n) { return uint32_t(bits() % n); }
  uint32_t between(uint32_t least, uint32_t most) { return least + below(most - least + 1); }
  bool flip() { return bits() & 1; }
  // About normal, of this deviation.
  float normal(float deviation = 1.0f);
  std::vector<float> normals(size_t n, float deviation = 1.0f);

private:
  uint64_t state_;
};

// Fails a case unless what is expected and what was found differ by at most `tolerance` beside max(1, |expected|), NaN being
// NaN. The first place that differs is said.
void expect_close(const std::string &what, const std::vector<double> &expected, const std::vector<float> &found,
                  double tolerance);
void expect(const std::string &what, bool right);

// How many were checked, and how many of them failed.
struct Counts {
  uint64_t checked = 0;
  uint64_t failed = 0;
};
extern Counts counts;

void test_attention();
void test_pointwise();
