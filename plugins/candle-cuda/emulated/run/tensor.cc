#include "tensor.h"

#include <cstring>

namespace emulated {

namespace {

constexpr unsigned ALL = ~0u;

float widen(Half type, uint16_t bits) {
    if (type == Half::F16) {
        _Float16 half;
        memcpy(&half, &bits, sizeof half);
        return float(half);
    }
    uint32_t wide = uint32_t(bits) << 16;
    float x;
    memcpy(&x, &wide, sizeof x);
    return x;
}

struct Product {
    const uint32_t* a;
    uint32_t b[2];
    float* sum;
};

// One lane's values of a and b to their places.
template <Half type> void unpack(const Product& part, unsigned lane, float (&a)[16][16], float (&b)[16][8]) {
    unsigned g = lane / 4, t = lane % 4;
    for (unsigned word = 0; word < 4; word++) {
        float* to = &a[g + 8 * (word % 2)][2 * t + 8 * (word / 2)];
        to[0] = widen(type, uint16_t(part.a[word]));
        to[1] = widen(type, uint16_t(part.a[word] >> 16));
    }
    for (unsigned word = 0; word < 2; word++) {
        b[2 * t + 8 * word][g] = widen(type, uint16_t(part.b[word]));
        b[2 * t + 8 * word + 1][g] = widen(type, uint16_t(part.b[word] >> 16));
    }
}

template <Half type> void multiply_together(void* const* parts, unsigned lanes) {
    if (lanes != ALL) fail({nullptr, 0}, "mma.sync needs all lanes of the warp, and only 0x%08x came", lanes);
    float a[16][16], b[16][8];
    for (unsigned lane = 0; lane < WARP; lane++) unpack<type>(*static_cast<const Product*>(parts[lane]), lane, a, b);
    float sums[16][8];
    for (unsigned line = 0; line < 16; line++) {
        float sum[8] = {};
        for (unsigned k = 0; k < 16; k++) {
            for (unsigned column = 0; column < 8; column++) sum[column] += a[line][k] * b[k][column];
        }
        memcpy(sums[line], sum, sizeof sum);
    }
    for (unsigned lane = 0; lane < WARP; lane++) {
        float* sum = static_cast<const Product*>(parts[lane])->sum;
        unsigned g = lane / 4, t = lane % 4;
        for (unsigned i = 0; i < 4; i++) sum[i] += sums[g + 8 * (i / 2)][2 * t + i % 2];
    }
}

struct Lines {
    const void* line;
    uint32_t* to;  // a word a matrix
};

template <bool transposed> void load_together(void* const* parts, unsigned lanes) {
    if (lanes != ALL) fail({nullptr, 0}, "ldmatrix needs all lanes of the warp, and only 0x%08x came", lanes);
    for (unsigned matrix = 0; matrix < 4; matrix++) {
        uint16_t values[8][8];
        for (unsigned line = 0; line < 8; line++) {
            memcpy(values[line], static_cast<const Lines*>(parts[matrix * 8 + line])->line, sizeof values[line]);
        }
        for (unsigned lane = 0; lane < WARP; lane++) {
            unsigned line = lane / 4, column = 2 * (lane % 4);
            uint16_t first = transposed ? values[column][line] : values[line][column];
            uint16_t second = transposed ? values[column + 1][line] : values[line][column + 1];
            static_cast<const Lines*>(parts[lane])->to[matrix] = uint32_t(first) | uint32_t(second) << 16;
        }
    }
}

}  // namespace

void multiply_add(Half type, float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Where where) {
    Product part = {a, {b0, b1}, sum};
    meet_warp(ALL, type == Half::F16 ? multiply_together<Half::F16> : multiply_together<Half::BF16>, &part, "mma.sync", where);
}

void load_matrices(bool transposed, uint32_t (&to)[4], const void* line, Where where) {
    check_aligned(line, 16, "ldmatrix", where);
    if (!is_shared(line, 16)) fail(where, "ldmatrix: a line at %p is not in shared memory", line);
    Lines part = {line, to};
    meet_warp(ALL, transposed ? load_together<true> : load_together<false>, &part, transposed ? "ldmatrix.trans" : "ldmatrix", where);
}

}  // namespace emulated
