// CUDA's language for the host's compiler: included before each .cu file, which then compiles as C++. What needs more than
// macros (shared variables, the list of kernels) is done by rewrite.cc between the preprocessor and the compiler.
#pragma once

#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>
#include <utility>

// The toolkit's own headers have host versions of the vector types and of the halves' conversions and arithmetic.
#include <vector_types.h>
#include <vector_functions.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#if __has_include(<cuda/std/limits>)
#include <cuda/std/limits>
#endif

#include "../run/machine.h"

#define EMULATED_CUDA 1

#undef __global__
#undef __shared__
#undef __device__
#undef __host__
#undef __constant__
#undef __launch_bounds__
#undef __forceinline__
#undef __noinline__
#undef __restrict__
#undef __grid_constant__
// Words for rewrite.cc.
#define __global__ EMULATED_KERNEL
#define __shared__ EMULATED_SHARED
#define __launch_bounds__(...) EMULATED_BOUNDS(__VA_ARGS__)
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __grid_constant__

#define threadIdx (::emulated::current->index)
#define blockIdx (::emulated::current->block->index)
#define blockDim (::emulated::current->block->threads)
#define gridDim (::emulated::current->block->grid)
#define warpSize 32

// Kernels see the oldest GPU that they are compiled for.
#define __CUDA_ARCH__ 800

namespace emulated {

// Calls a kernel with the values that the driver's pointers to arguments point to.
template <auto kernel> struct Unpack;
template <typename... Arguments, void (*kernel)(Arguments...)> struct Unpack<kernel> {
    static constexpr unsigned COUNT = sizeof...(Arguments);
    static constexpr size_t SIZES[] = {sizeof(Arguments)..., 0};
    static void call(void* const* arguments) { with(arguments, std::index_sequence_for<Arguments...>{}); }

private:
    template <size_t... at> static void with(void* const* arguments, std::index_sequence<at...>) {
        (void)arguments;
        kernel(*static_cast<std::remove_cv_t<Arguments>*>(arguments[at])...);
    }
};

}  // namespace emulated

#include "atomics.h"
#include "half.h"
#include "math.h"
#include "warp.h"
