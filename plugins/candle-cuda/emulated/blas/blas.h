// Matrix products of the host, column-major as cuBLAS has them.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emulated {

enum class Type { F32, F16, BF16, F64 };

struct Matrix {
    const void* start;
    Type type;
    int64_t leading;  // from one column to the next
    int64_t stride;   // from one matrix of a batch to the next
    bool transposed;
};

// c = alpha · op(a) · op(b) + beta · c: m × k and k × n. Sums in f32 (f64 of f64's), rounded once.
struct ProductOf {
    int64_t m, n, k, batch;
    double alpha, beta;
    Matrix a, b;
    void* c;
    int64_t c_leading, c_stride;
};

void multiply(const ProductOf& product);

}  // namespace emulated
