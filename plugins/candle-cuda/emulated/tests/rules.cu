// Kernels that keep CUDA's rules, and kernels that break one each.
#include "device.h"

extern "C" __global__ void __launch_bounds__(256) sum_f32(const float* x, float* out, uint32_t n) {
    __shared__ float parts[256 / WARP_SIZE];
    float sum = 0;
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) sum += x[i];
    for (uint32_t bits = WARP_SIZE / 2; bits > 0; bits /= 2) sum += shuffle_xor(sum, bits);
    if (threadIdx.x % WARP_SIZE == 0) parts[threadIdx.x / WARP_SIZE] = sum;
    sync_block();
    sum = 0;
    for (uint32_t i = 0; i < blockDim.x / WARP_SIZE; i++) sum += parts[i];
    if (threadIdx.x == 0) *out = sum;
}

// out = a · b of 16 × 16 and 16 × 8 (b is given by columns), through shared memory, ldmatrix and mma.
extern "C" __global__ void product_f16(const F16* a, const F16* b, float* out) {
    extern __shared__ __align__(16) F16 tiles[];
    F16 *tile_a = tiles, *tile_b = tiles + 16 * 16;
    uint32_t lane = threadIdx.x;
    for (uint32_t i = lane; i < 32; i += WARP_SIZE) copy_async(tile_a + i * 8, a + i * 8, true);
    for (uint32_t i = lane; i < 16; i += WARP_SIZE) copy_async(tile_b + i * 8, b + i * 8, true);
    copy_commit();
    copy_wait<0>();
    sync_block();
    // Matrices of a: lines 0 and 8 of columns 0, then of columns 8; b's lines are its columns.
    uint32_t words_a[4], words_b[4];
    load_matrices(words_a, tile_a + (lane % 16) * 16 + lane / 16 * 8);
    load_matrices(words_b, tile_b + (lane % 8) * 16 + lane / 8 % 2 * 8);
    float sum[4] = {0, 0, 0, 0};
    multiply_add<F16>(sum, words_a, words_b[0], words_b[1]);
    uint32_t line = lane / 4, column = 2 * (lane % 4);
    out[line * 8 + column] = sum[0], out[line * 8 + column + 1] = sum[1];
    out[(line + 8) * 8 + column] = sum[2], out[(line + 8) * 8 + column + 1] = sum[3];
}

extern "C" __global__ void reads_behind(const float* x, float* out, uint32_t n) { out[0] = x[n]; }

extern "C" __global__ void index_beyond(float* out, uint32_t n) {
    __shared__ float line[4];
    line[n] = 1;
    out[0] = line[0];
}

extern "C" __global__ void dynamic_beyond(float* out, uint32_t n) {
    extern __shared__ float all[];
    all[n] = 1;
    out[0] = all[0];
}

extern "C" __global__ void misaligned(const float* x, float* out) {
    float4 four = *reinterpret_cast<const float4*>(x + 1);
    out[0] = four.x;
}

extern "C" __global__ void barrier_for_some(float* out) {
    if (threadIdx.x < 40) sync_block();
    out[0] = 1;
}

extern "C" __global__ void lanes_apart(float* out) {
    float x = float(threadIdx.x);
    x = threadIdx.x < 8 ? shuffle_xor(x, 1) : float(__ballot_sync(0xffffffffu, 1));
    out[threadIdx.x] = x;
}

// Without a barrier between the writes and the reads: what other warps write is still NaN.
extern "C" __global__ void barrier_forgotten(float* out) {
    __shared__ float line[64];
    line[threadIdx.x] = 1;
    out[threadIdx.x] = line[63 - threadIdx.x];
}

extern "C" __global__ void wait_forgotten(const F16* x, F16* out) {
    __shared__ __align__(16) F16 line[8];
    copy_async(line, x, true);
    copy_commit();
    out[0] = line[0];
}
