// Kernels that graphs are made of.
#include "device.h"

extern "C" __global__ void add(const float* x, float* out, float value) { out[0] = x[0] + value; }

// Writes behind the end of what `out` is, if `at` is so large.
extern "C" __global__ void set(float* out, uint32_t at, float value) { out[at] = value; }

extern "C" __global__ void never_launched(float* out) { out[0] = 0; }
