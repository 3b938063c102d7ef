// The host's version of plugins/candle/kernels/device.h: the same functions, without instructions of a GPU.
#pragma once

#include "../run/tensor.h"

#define DEVICE __device__ __forceinline__
#define WARP_SIZE 32u

struct F16 {
    uint16_t bits;
};
struct BF16 {
    uint16_t bits;
};

// --- numbers ---

DEVICE float widen(float x) { return x; }
DEVICE float widen(F16 x) { return float(emulated_bits<_Float16>(x.bits)); }
DEVICE float widen(BF16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }

DEVICE void narrow(float x, float& to) { to = x; }
DEVICE void narrow(float x, F16& to) { to.bits = emulated_bits<uint16_t>(_Float16(x)); }
DEVICE void narrow(float x, BF16& to) { to.bits = emulated_bits<uint16_t>(__float2bfloat16(x)); }

template <typename T> DEVICE uint32_t pack(float first, float second) {
    T low, high;
    narrow(first, low);
    narrow(second, high);
    return uint32_t(low.bits) | uint32_t(high.bits) << 16;
}

template <typename T> DEVICE void unpack(uint32_t word, float& first, float& second) {
    first = widen(T{uint16_t(word & 0xffff)});
    second = widen(T{uint16_t(word >> 16)});
}

// The GPU's fast instructions flush denormal results, and so do these.
DEVICE float flush_denormal(float x) { return fabsf(x) < std::numeric_limits<float>::min() ? copysignf(0.0f, x) : x; }
DEVICE float exp2_fast(float x) { return flush_denormal(exp2f(flush_denormal(x))); }
DEVICE float reciprocal_fast(float x) { return flush_denormal(1.0f / flush_denormal(x)); }

// --- warps and blocks ---

DEVICE float shuffle_xor(float x, uint32_t bits, Where where = here()) {
    return __shfl_xor_sync(~0u, x, int(bits), 32, where);
}
DEVICE void sync_warp(Where where = here()) { __syncwarp(~0u, where); }
DEVICE void sync_block(Where where = here()) { __syncthreads(where); }

// --- shared memory and tensor cores ---

DEVICE uint32_t shared_address(const void* at) { return uint32_t(__cvta_generic_to_shared(at)); }

DEVICE void copy_async(void* to, const void* from, bool wanted, Where where = here()) {
    emulated::copy_async(to, from, 16, wanted ? 16 : 0, where);
}
DEVICE void copy_commit() { emulated::copy_async_commit(); }
template <int N> DEVICE void copy_wait() { emulated::copy_async_wait(N); }

DEVICE void load_matrices(uint32_t (&to)[4], const void* line, Where where = here()) {
    emulated::load_matrices(false, to, line, where);
}
DEVICE void load_matrices_transposed(uint32_t (&to)[4], const void* line, Where where = here()) {
    emulated::load_matrices(true, to, line, where);
}

template <typename T>
DEVICE void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Where where = here()) {
    constexpr auto TYPE = std::is_same_v<T, F16> ? emulated::Half::F16 : emulated::Half::BF16;
    emulated::multiply_add(TYPE, sum, a, b0, b1, where);
}
