// How threads of the elementwise kernels go over a matrix.
#pragma once

#include "pointwise.h"
#include "values.h"

// Calls visit(cell, column) for the first of each N values that are this thread's, N being a divisor of the width.
// There is one division a thread, not one a value; sizes are 64 bits wide where cells are multiplied with widths.
template <uint32_t N, typename Visit> DEVICE void walk(uint64_t n_cells, uint64_t width, Visit visit) {
  // POINTWISE_GRID_MAX keeps both in 32 bits.
  const uint32_t start = blockIdx.x * POINTWISE_THREADS + threadIdx.x, step = gridDim.x * POINTWISE_THREADS;
  const uint32_t vectors = uint32_t(width / N);
  const uint32_t step_cells = step / vectors, step_vectors = step % vectors;
  uint32_t vector = start % vectors;
  uint64_t cell = start / vectors;
  while (cell < n_cells) {
    visit(cell, vector * N);
    cell += step_cells;
    vector += step_vectors;
    if (vector >= vectors) vector -= vectors, cell++;
  }
}
