// What the tests of kernels have of CUDA: memory, modules and launches, by the driver's interface. Whether that is a GPU's
// or the emulated one is not known here.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

enum class Type { F32, F16, BF16 };

constexpr Type TYPES[] = {Type::F32, Type::F16, Type::BF16};

// The suffix of kernels' names.
const char *name(Type type);
// Half of what the last digit of a number near 1 is worth.
double rounding(Type type);
// What a number becomes in this type.
float rounded(Type type, float x);

// Memory of the device. The emulated one ends at a page that nobody may touch.
class Memory {
public:
  explicit Memory(size_t bytes);
  ~Memory();
  Memory(const Memory &) = delete;
  Memory &operator=(const Memory &) = delete;
  void write(const void *from, size_t bytes);
  void read(void *to, size_t bytes) const;
  void *at(size_t byte = 0) const { return reinterpret_cast<void *>(start_ + byte); }

private:
  uint64_t start_ = 0;
  size_t bytes_;
};

// Values of a type on the device; on the host they are f32, and rounded already.
struct Values {
  Type type;
  std::vector<float> host;
  Memory memory;

  Values(Type type, std::vector<float> values);
  // Value `i`'s address, on the device.
  void *at(size_t i = 0) const;
  // What the device has now.
  std::vector<float> read() const;
};

// Words on the device.
struct Words {
  std::vector<uint32_t> host;
  Memory memory;

  explicit Words(std::vector<uint32_t> words);
  const uint32_t *at() const { return static_cast<const uint32_t *>(memory.at()); }
};

// Begins with a device and the modules of these PTX files.
void machine_start(const std::vector<std::string> &ptx);
// Runs a kernel with its one argument to its end. Whatever fails ends the program with its name.
void machine_launch(const std::string &kernel, uint32_t grid, uint32_t threads, void *argument);
