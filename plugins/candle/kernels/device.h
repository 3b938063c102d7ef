// What kernels do with warps, tensor cores and asynchronous copies, and how halves are read and written: the only place
// with instructions in it. A host that runs kernels brings a device.h of its own, with the same functions.
//
// Everything is there from sm_80 on. Newer chips run the same instructions.
#pragma once

#include <stdint.h>

#define DEVICE __device__ __forceinline__
#define WARP_SIZE 32u

// Halves are numbers of 16 bits to load and store; arithmetic is in f32.
struct F16 {
  uint16_t bits;
};
struct BF16 {
  uint16_t bits;
};

// --- numbers ---

DEVICE float widen(float x) { return x; }

DEVICE float widen(F16 x) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
}

DEVICE float widen(BF16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }

// Rounds to the nearest, ties to even; too large is infinite, NaN stays NaN.
DEVICE void narrow(float x, float &to) { to = x; }
DEVICE void narrow(float x, F16 &to) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }
DEVICE void narrow(float x, BF16 &to) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }

// Two halves in a word, the first in its low bits. T is F16 or BF16.
template <typename T> DEVICE uint32_t pack(float first, float second);

template <> DEVICE uint32_t pack<F16>(float first, float second) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}

template <> DEVICE uint32_t pack<BF16>(float first, float second) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}

template <typename T> DEVICE void unpack(uint32_t word, float &first, float &second) {
  first = widen(T{uint16_t(word & 0xffff)});
  second = widen(T{uint16_t(word >> 16)});
}

// 2^x to 2 ulp; results below 2^-126 are 0.
DEVICE float exp2_fast(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

// 1/x to 1 ulp, of infinity 0.
DEVICE float reciprocal_fast(float x) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
  return inverse;
}

// --- warps and blocks ---

// The value of the lane whose number differs in these bits. All lanes of the warp take part, here and below.
DEVICE float shuffle_xor(float x, uint32_t bits) { return __shfl_xor_sync(0xffffffffu, x, bits); }

// Every lane has written and read before any goes on.
DEVICE void sync_warp() { __syncwarp(); }
DEVICE void sync_block() { __syncthreads(); }

// --- shared memory and tensor cores ---

DEVICE uint32_t shared_address(const void *at) { return uint32_t(__cvta_generic_to_shared(at)); }

// Begins to copy 16 bytes from global to shared memory, both aligned to 16; where they are not wanted, `from` is not read
// and zeros are written.
DEVICE void copy_async(void *to, const void *from, bool wanted) {
  const uint32_t bytes = wanted ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
}

// What this thread has begun to copy since the last call becomes a group.
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until all groups of this thread but the last N have arrived.
template <int N> DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// Four matrices of 8 × 8 halves from shared memory; lane l gives the address of line l % 8 of matrix l / 8, aligned to 16
// bytes. A lane gets, of each matrix, values 2 · (l % 4) and the next of line l / 4.
DEVICE void load_matrices(uint32_t (&to)[4], const void *line) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(line))
               : "memory");
}

// The same, each matrix transposed.
DEVICE void load_matrices_transposed(uint32_t (&to)[4], const void *line) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(line))
               : "memory");
}

// sum += a · b, of 16 × 16 and 16 × 8 halves, in f32 (PTX's mma.m16n8k16). With g = lane / 4 and t = lane % 4:
//   a: lines g, g + 8, g, g + 8; values 2t and the next of the first 8 (a[0], a[1]) and of the last 8 (a[2], a[3])
//   b0, b1: lines 2t and the next, and those 8 further down; column g
//   sum: line g, columns 2t and the next; then line g + 8
template <typename T> DEVICE void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <> DEVICE void multiply_add<F16>(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <> DEVICE void multiply_add<BF16>(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
