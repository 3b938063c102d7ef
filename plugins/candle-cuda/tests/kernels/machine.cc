#include "machine.h"

#include <cuda.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>

// All that the modules have, by name.
static std::map<std::string, CUfunction> kernels;

static void check(CUresult result, const char *what) {
  if (result == CUDA_SUCCESS) return;
  const char *why = nullptr;
  cuGetErrorString(result, &why);
  fprintf(stderr, "%s: %s\n", what, why ? why : "unknown error");
  exit(1);
}

const char *name(Type type) {
  switch (type) {
  case Type::F32: return "f32";
  case Type::F16: return "f16";
  case Type::BF16: return "bf16";
  }
  abort();
}

double rounding(Type type) {
  switch (type) {
  case Type::F32: return std::ldexp(1.0, -24);
  case Type::F16: return std::ldexp(1.0, -11);
  case Type::BF16: return std::ldexp(1.0, -8);
  }
  abort();
}

static uint16_t to_bits(Type type, float x) {
  if (type == Type::F16) {
    const _Float16 half = static_cast<_Float16>(x);
    uint16_t bits;
    memcpy(&bits, &half, sizeof bits);
    return bits;
  }
  uint32_t wide;
  memcpy(&wide, &x, sizeof wide);
  if (std::isnan(x)) return uint16_t(wide >> 16 | 0x40);
  return uint16_t((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
}

static float of_bits(Type type, uint16_t bits) {
  if (type == Type::F16) {
    _Float16 half;
    memcpy(&half, &bits, sizeof half);
    return float(half);
  }
  const uint32_t wide = uint32_t(bits) << 16;
  float x;
  memcpy(&x, &wide, sizeof x);
  return x;
}

float rounded(Type type, float x) { return type == Type::F32 ? x : of_bits(type, to_bits(type, x)); }

static size_t size_of(Type type) { return type == Type::F32 ? 4 : 2; }

// --- Memory ---

Memory::Memory(size_t bytes) : bytes_(bytes) {
  CUdeviceptr start = 0;
  check(cuMemAlloc(&start, bytes ? bytes : 1), "cuMemAlloc");
  start_ = start;
}

Memory::~Memory() { check(cuMemFree(start_), "cuMemFree"); }

void Memory::write(const void *from, size_t bytes) {
  if (bytes > bytes_) abort();
  if (bytes) check(cuMemcpyHtoD(start_, from, bytes), "cuMemcpyHtoD");
}

void Memory::read(void *to, size_t bytes) const {
  if (bytes > bytes_) abort();
  if (bytes) check(cuMemcpyDtoH(to, start_, bytes), "cuMemcpyDtoH");
}

// --- Values and Words ---

Values::Values(Type type, std::vector<float> values)
    : type(type), host(std::move(values)), memory(host.size() * size_of(type)) {
  for (float &x : host) x = rounded(type, x);
  if (type == Type::F32) {
    memory.write(host.data(), host.size() * sizeof(float));
    return;
  }
  std::vector<uint16_t> bits;
  for (float x : host) bits.push_back(to_bits(type, x));
  memory.write(bits.data(), bits.size() * sizeof(uint16_t));
}

void *Values::at(size_t i) const { return memory.at(i * size_of(type)); }

std::vector<float> Values::read() const {
  std::vector<float> values(host.size());
  if (type == Type::F32) {
    memory.read(values.data(), values.size() * sizeof(float));
    return values;
  }
  std::vector<uint16_t> bits(host.size());
  memory.read(bits.data(), bits.size() * sizeof(uint16_t));
  for (size_t i = 0; i < bits.size(); i++) values[i] = of_bits(type, bits[i]);
  return values;
}

Words::Words(std::vector<uint32_t> words) : host(std::move(words)), memory(host.size() * sizeof(uint32_t)) {
  memory.write(host.data(), host.size() * sizeof(uint32_t));
}

// --- the device ---

// Kernels are named behind `.entry` in PTX.
static void load_module(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text(std::istreambuf_iterator<char>(file), {});
  const std::string entry = ".entry ";
  CUmodule module;
  check(cuModuleLoad(&module, path.c_str()), path.c_str());
  for (size_t at = text.find(entry); at != std::string::npos; at = text.find(entry, at)) {
    at += entry.size();
    const std::string kernel = text.substr(at, text.find('(', at) - at);
    check(cuModuleGetFunction(&kernels[kernel], module, kernel.c_str()), kernel.c_str());
  }
}

void machine_start(const std::vector<std::string> &ptx) {
  CUdevice device;
  CUcontext context;
  check(cuInit(0), "cuInit");
  check(cuDeviceGet(&device, 0), "cuDeviceGet");
  check(cuDevicePrimaryCtxRetain(&context, device), "cuDevicePrimaryCtxRetain");
  check(cuCtxSetCurrent(context), "cuCtxSetCurrent");
  for (const std::string &path : ptx) load_module(path);
}

void machine_launch(const std::string &kernel, uint32_t grid, uint32_t threads, void *argument) {
  const auto found = kernels.find(kernel);
  if (found == kernels.end()) {
    fprintf(stderr, "no module has the kernel %s\n", kernel.c_str());
    exit(1);
  }
  void *arguments[] = {argument};
  check(cuLaunchKernel(found->second, grid, 1, 1, threads, 1, 1, 0, nullptr, arguments, nullptr), kernel.c_str());
  check(cuCtxSynchronize(), kernel.c_str());
}
