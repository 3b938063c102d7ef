// Tensor cores: the warp's matrix operations, with PTX's layout of fragments over lanes.
#pragma once

namespace emulated {

// mma.m16n8k16: d = a · b + c with a 16 × 16, b 16 × 8 and d 16 × 8, f32 sums. `widen` turns 16 bits into a float.
struct Product {
    const uint32_t* a;  // 4 words: lines g and g + 8, columns 2t and the next, then the same of columns 8 on
    uint32_t b[2];      // lines 2t and the next, then those 8 further down; column g
    float* sum;         // line g, columns 2t and the next; then line g + 8
};

template <float (*widen)(uint16_t)> void multiply_together(void* const* parts, unsigned lanes) {
    if (lanes != ~0u) fail({nullptr, 0}, "mma.sync needs all lanes of the warp, and only 0x%08x came", lanes);
    float a[16][16], b[16][8];
    for (unsigned lane = 0; lane < WARP; lane++) {
        const auto& part = *static_cast<const Product*>(parts[lane]);
        unsigned g = lane / 4, t = lane % 4;
        for (unsigned word = 0; word < 4; word++) {
            unsigned line = g + 8 * (word % 2), column = 2 * t + 8 * (word / 2);
            a[line][column] = widen(uint16_t(part.a[word]));
            a[line][column + 1] = widen(uint16_t(part.a[word] >> 16));
        }
        for (unsigned word = 0; word < 2; word++) {
            b[2 * t + 8 * word][g] = widen(uint16_t(part.b[word]));
            b[2 * t + 8 * word + 1][g] = widen(uint16_t(part.b[word] >> 16));
        }
    }
    float sums[16][8] = {};
    for (unsigned line = 0; line < 16; line++) {
        for (unsigned k = 0; k < 16; k++) {
            for (unsigned column = 0; column < 8; column++) sums[line][column] += a[line][k] * b[k][column];
        }
    }
    for (unsigned lane = 0; lane < WARP; lane++) {
        auto& part = *static_cast<Product*>(parts[lane]);
        unsigned g = lane / 4, t = lane % 4;
        for (unsigned i = 0; i < 4; i++) part.sum[i] += sums[g + 8 * (i / 2)][2 * t + i % 2];
    }
}

// ldmatrix.x4: lane l brings the address of line l % 8 of matrix l / 8, and gets two values of each matrix.
struct Lines {
    const void* line;
    uint32_t* to;  // a word a matrix
};

template <bool transposed> void load_together(void* const* parts, unsigned lanes) {
    if (lanes != ~0u) fail({nullptr, 0}, "ldmatrix needs all lanes of the warp, and only 0x%08x came", lanes);
    for (unsigned matrix = 0; matrix < 4; matrix++) {
        uint16_t values[8][8];
        for (unsigned line = 0; line < 8; line++) {
            memcpy(values[line], static_cast<const Lines*>(parts[matrix * 8 + line])->line, sizeof values[line]);
        }
        for (unsigned lane = 0; lane < WARP; lane++) {
            unsigned line = lane / 4, column = 2 * (lane % 4);
            uint16_t first = transposed ? values[column][line] : values[line][column];
            uint16_t second = transposed ? values[column + 1][line] : values[line][column + 1];
            static_cast<Lines*>(parts[lane])->to[matrix] = uint32_t(first) | uint32_t(second) << 16;
        }
    }
}

template <bool transposed> inline void load_matrices(uint32_t (&to)[4], const void* line, Where where) {
    check_aligned(line, 16, "ldmatrix", where);
    if (!is_shared(line, 16)) fail(where, "ldmatrix: a line at %p is not in shared memory", line);
    Lines part = {line, to};
    meet_warp(~0u, load_together<transposed>, &part, transposed ? "ldmatrix.trans" : "ldmatrix", where);
}

template <float (*widen)(uint16_t)>
inline void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Where where) {
    Product part = {a, {b0, b1}, sum};
    meet_warp(~0u, multiply_together<widen>, &part, "mma.sync", where);
}

}  // namespace emulated
