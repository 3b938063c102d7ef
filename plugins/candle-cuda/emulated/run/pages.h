// Memory between two pages that nobody may touch.
#pragma once
#include <cstddef>

namespace emulated {

constexpr size_t PAGE_BYTES = 4096;

constexpr size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// Writable pages for at least `bytes`, with a forbidden page before and behind them; null if there is no memory. `low`
// asks for addresses that fit 32 bits.
char* pages_map(size_t bytes, bool low);
void pages_unmap(char* pages, size_t bytes);

}  // namespace emulated
