// The product itself: both sides packed into panels of f32, then tiles of sums that stay in registers.
#include <algorithm>
#include <cstring>
#include <vector>

#include "blas.h"

namespace emulated {

namespace {

// A tile of c: 32 × 6 sums are 12 registers of AVX-512, or 24 of AVX2's size.
constexpr int64_t TILE_M = 32, TILE_N = 6;

float bf16_to_f32(uint16_t bits) {
    uint32_t wide = uint32_t(bits) << 16;
    float x;
    memcpy(&x, &wide, sizeof x);
    return x;
}

uint16_t f32_to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x) return uint16_t(bits >> 16 | 0x40);
    // To the nearest, ties to even.
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <typename Sum> Sum load(const void* start, Type type, int64_t at) {
    switch (type) {
        case Type::F32: return Sum(static_cast<const float*>(start)[at]);
        case Type::F16: return Sum(float(static_cast<const _Float16*>(start)[at]));
        case Type::BF16: return Sum(bf16_to_f32(static_cast<const uint16_t*>(start)[at]));
        case Type::F64: return Sum(static_cast<const double*>(start)[at]);
    }
    return 0;
}

template <typename Sum> void store(void* start, Type type, int64_t at, Sum x) {
    switch (type) {
        case Type::F32: static_cast<float*>(start)[at] = float(x); break;
        case Type::F16: static_cast<_Float16*>(start)[at] = static_cast<_Float16>(x); break;
        case Type::BF16: static_cast<uint16_t*>(start)[at] = f32_to_bf16(float(x)); break;
        case Type::F64: static_cast<double*>(start)[at] = double(x); break;
    }
}

// Packs `lines` × k values into panels of `width` lines: panel, then k, then line; zeros fill the last panel. `line_step`
// and `k_step` say where in the matrix the next line and the next k are.
template <typename Sum>
void pack(const Matrix& from, int64_t offset, int64_t lines, int64_t k, int64_t width, int64_t line_step, int64_t k_step,
          std::vector<Sum>& to) {
    to.assign(size_t((lines + width - 1) / width * width * k), Sum(0));
    for (int64_t line = 0; line < lines; line++) {
        Sum* panel = to.data() + line / width * width * k + line % width;
        for (int64_t i = 0; i < k; i++) {
            panel[i * width] = load<Sum>(from.start, from.type, offset + line * line_step + i * k_step);
        }
    }
}

template <typename Sum> void multiply_tile(const Sum* a, const Sum* b, int64_t k, Sum (&sums)[TILE_N][TILE_M]) {
    Sum tile[TILE_N][TILE_M] = {};
    for (int64_t i = 0; i < k; i++) {
#pragma GCC unroll 6
        for (int64_t column = 0; column < TILE_N; column++) {
            for (int64_t line = 0; line < TILE_M; line++) tile[column][line] += a[i * TILE_M + line] * b[i * TILE_N + column];
        }
    }
    memcpy(sums, tile, sizeof tile);
}

template <typename Sum> void store_tile(const ProductOf& of, int64_t offset, int64_t m0, int64_t n0, const Sum (&sums)[TILE_N][TILE_M]) {
    for (int64_t column = n0; column < std::min(n0 + TILE_N, of.n); column++) {
        for (int64_t line = m0; line < std::min(m0 + TILE_M, of.m); line++) {
            int64_t at = offset + column * of.c_leading + line;
            Sum sum = Sum(of.alpha) * sums[column - n0][line - m0];
            // cuBLAS does not read c when beta is 0: it may be NaN.
            if (of.beta != 0) sum += Sum(of.beta) * load<Sum>(of.c, of.a.type, at);
            store(of.c, of.a.type, at, sum);
        }
    }
}

template <typename Sum> void multiply_as(const ProductOf& of) {
    std::vector<Sum> a, b;
    for (int64_t batch = 0; batch < of.batch; batch++) {
        pack(of.a, batch * of.a.stride, of.m, of.k, TILE_M, of.a.transposed ? of.a.leading : 1, of.a.transposed ? 1 : of.a.leading, a);
        pack(of.b, batch * of.b.stride, of.n, of.k, TILE_N, of.b.transposed ? 1 : of.b.leading, of.b.transposed ? of.b.leading : 1, b);
        for (int64_t n = 0; n < of.n; n += TILE_N) {
            for (int64_t m = 0; m < of.m; m += TILE_M) {
                Sum sums[TILE_N][TILE_M];
                multiply_tile(a.data() + m * of.k, b.data() + n * of.k, of.k, sums);
                store_tile(of, batch * of.c_stride, m, n, sums);
            }
        }
    }
}

}  // namespace

void multiply(const ProductOf& of) {
    if (of.a.type == Type::F64) multiply_as<double>(of);
    else multiply_as<float>(of);
}

}  // namespace emulated
