// Tensor cores: the warp's matrix operations, with PTX's layout of fragments over lanes. Compiled apart from kernels, without
// the checks that slow those down.
#pragma once
#include "machine.h"

namespace emulated {

enum class Half { F16, BF16 };

// mma.m16n8k16: sum += a · b with a 16 × 16, b 16 × 8, in f32. With g = lane / 4 and t = lane % 4 a lane has
//   a: lines g and g + 8, columns 2t and the next, then the same of columns 8 on
//   b0, b1: lines 2t and the next, then those 8 further down; column g
//   sum: line g, columns 2t and the next; then line g + 8
void multiply_add(Half type, float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Where where);

// ldmatrix.x4: lane l brings the address of line l % 8 of matrix l / 8, and gets two values of each matrix.
void load_matrices(bool transposed, uint32_t (&to)[4], const void* line, Where where);

}  // namespace emulated
