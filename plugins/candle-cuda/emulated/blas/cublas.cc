// cuBLAS's functions, as far as candle calls them.
#include <cublas_v2.h>
#include <cuda_fp16.h>

#include <cstdio>

#include "../run/capture.h"
#include "../run/launch.h"
#include "../run/queue.h"
#include "../run/state.h"
#include "blas.h"

using namespace emulated;

struct cublasContext {
    cudaStream_t stream;
    // Types that it has multiplied: the first product of one may load kernels, for which a GPU may have to be idle.
    bool is_warm[4];
    // What it was given to work in, if anything.
    const void* workspace;
    size_t workspace_bytes;
};

namespace {

bool type_of(cudaDataType type, Type& found) {
    switch (type) {
        case CUDA_R_32F: found = Type::F32; return true;
        case CUDA_R_16F: found = Type::F16; return true;
        case CUDA_R_16BF: found = Type::BF16; return true;
        case CUDA_R_64F: found = Type::F64; return true;
        default: return false;
    }
}

cublasStatus_t refuse(const char* why) {
    fprintf(stderr, "emulated CUDA: cuBLAS refuses a product: %s\n", why);
    return CUBLAS_STATUS_INVALID_VALUE;
}

// Elements from the first to behind the last of a matrix's batch, of op's `lines` × `columns`.
int64_t extent(const Matrix& of, int64_t lines, int64_t columns, int64_t batch) {
    if (of.transposed) std::swap(lines, columns);
    return (batch - 1) * of.stride + (columns - 1) * of.leading + lines;
}

int64_t extent_of_c(const ProductOf& of) {
    return extent({of.c, of.a.type, of.c_leading, of.c_stride, false}, of.m, of.n, of.batch);
}

size_t bytes_of(Type type) { return type == Type::F64 ? 8 : type == Type::F32 ? 4 : 2; }

const char* find_fault(const ProductOf& of, cudaStream_t stream) {
    auto leads = [](const Matrix& matrix, int64_t lines, int64_t columns) {
        return matrix.leading >= (matrix.transposed ? columns : lines);
    };
    if (of.m < 0 || of.n < 0 || of.k < 0 || of.batch < 0) return "a size is below zero";
    if (!leads(of.a, of.m, of.k) || !leads(of.b, of.k, of.n) || of.c_leading < of.m) return "a leading dimension is too small";
    if (of.a.type != of.b.type) return "the types of its sides differ";
    if (of.m == 0 || of.n == 0 || of.batch == 0) return nullptr;
    size_t bytes = bytes_of(of.a.type);
    auto within = [&](const void* start, int64_t count) { return is_device_memory(start, size_t(count) * bytes, stream); };
    if (of.k > 0 && !within(of.a.start, extent(of.a, of.m, of.k, of.batch))) return "a leaves its allocation";
    if (of.k > 0 && !within(of.b.start, extent(of.b, of.k, of.n, of.batch))) return "b leaves its allocation";
    if (!within(of.c, extent_of_c(of))) return "c leaves its allocation";
    return nullptr;
}

// Whether a capture lets the product be given, and if not says why.
bool is_allowed(cublasHandle_t handle, Type type) {
    const char* why = nullptr;
    switch (bar_of(handle->stream)) {
        case Bar::None: break;
        case Bar::Forbidden: why = "it is in the context's own stream while a stream captures"; break;
        case Bar::Implicit: why = "it is in the context's own stream, which would wait for a stream that captures"; break;
        case Bar::Invalidated: why = "its stream's capture is invalid"; break;
    }
    Stream* stream = &stream_of(handle->stream);
    if (!why && !handle->is_warm[int(type)]) {
        auto captures_it = [=](const Capture& capture) { return &capture.stream == stream && capture.mode != CaptureMode::Relaxed; };
        if (is_forbidden() || spoil(captures_it)) why = "it is the first of its type while a stream captures";
    }
    if (!why && handle->workspace && !is_device_memory(handle->workspace, handle->workspace_bytes, handle->stream)) {
        why = "its workspace leaves its allocation";
    }
    if (!why && !handle->workspace && spoil([=](const Capture& capture) { return &capture.stream == stream; })) {
        why = "it has no workspace: a GPU would allocate one in the graph, for each product";
    }
    if (why) refuse(why);
    return why == nullptr;
}

// For work itself: the memory may be gone since.
void multiply_there(const ProductOf& of) {
    if (of.m == 0 || of.n == 0 || of.batch == 0) return;
    size_t bytes = bytes_of(of.a.type);
    if (of.k > 0) {
        expect_memory("a product's a", of.a.start, size_t(extent(of.a, of.m, of.k, of.batch)) * bytes);
        expect_memory("a product's b", of.b.start, size_t(extent(of.b, of.k, of.n, of.batch)) * bytes);
    }
    expect_memory("a product's c", of.c, size_t(extent_of_c(of)) * bytes);
    multiply(of);
}

cublasStatus_t run(cublasHandle_t handle, const char* name, const ProductOf& of) {
    if (const char* fault = find_fault(of, handle->stream)) return refuse(fault);
    if (is_dead() || !is_allowed(handle, of.a.type)) return CUBLAS_STATUS_EXECUTION_FAILED;
    handle->is_warm[int(of.a.type)] = true;
    log_line("%sproduct %s m %ld n %ld k %ld batch %ld", captured(handle->stream), name, long(of.m), long(of.n), long(of.k), long(of.batch));
    give_launch(handle->stream, [=] { multiply_there(of); });
    return is_dead() ? CUBLAS_STATUS_EXECUTION_FAILED : CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t refuse_handle(const char* how) {
    fprintf(stderr, "emulated CUDA: a cuBLAS handle is %s while a stream captures: it could wait for the device\n", how);
    return CUBLAS_STATUS_EXECUTION_FAILED;
}

// alpha and beta have the type that sums are asked in.
bool scale_of(cublasComputeType_t compute, const void* scale, double& found) {
    switch (compute) {
        case CUBLAS_COMPUTE_16F:
        case CUBLAS_COMPUTE_16F_PEDANTIC: found = __half2float(*static_cast<const __half*>(scale)); return true;
        case CUBLAS_COMPUTE_32F:
        case CUBLAS_COMPUTE_32F_PEDANTIC:
        case CUBLAS_COMPUTE_32F_FAST_16F:
        case CUBLAS_COMPUTE_32F_FAST_16BF:
        case CUBLAS_COMPUTE_32F_FAST_TF32: found = *static_cast<const float*>(scale); return true;
        case CUBLAS_COMPUTE_64F:
        case CUBLAS_COMPUTE_64F_PEDANTIC: found = *static_cast<const double*>(scale); return true;
        default: return false;
    }
}

}  // namespace

cublasStatus_t cublasCreate_v2(cublasHandle_t* handle) {
    if (is_dead()) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (is_forbidden()) return refuse_handle("made");
    *handle = new cublasContext{};
    return CUBLAS_STATUS_SUCCESS;
}

// It waits for its device, whatever modes captures have there (here for all devices).
cublasStatus_t cublasDestroy_v2(cublasHandle_t handle) {
    if (spoil([](const Capture&) { return true; })) return refuse_handle("destroyed");
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream) {
    handle->stream = stream;
    // The next products work in the library's own again.
    handle->workspace = nullptr;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t handle, void* workspace, size_t bytes) {
    if (size_t(workspace) % 256) return CUBLAS_STATUS_INVALID_VALUE;
    handle->workspace = workspace;
    handle->workspace_bytes = bytes;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t) { return CUBLAS_STATUS_SUCCESS; }

cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t handle, cublasOperation_t of_a, cublasOperation_t of_b, int m, int n, int k,
                                          const void* alpha, const void* a, cudaDataType type_a, int lead_a, long long stride_a,
                                          const void* b, cudaDataType type_b, int lead_b, long long stride_b, const void* beta,
                                          void* c, cudaDataType type_c, int lead_c, long long stride_c, int batch,
                                          cublasComputeType_t compute, cublasGemmAlgo_t) {
    ProductOf of = {m, n, k, batch, 0, 0, {}, {}, c, lead_c, stride_c};
    of.a = {a, Type::F32, lead_a, stride_a, of_a != CUBLAS_OP_N};
    of.b = {b, Type::F32, lead_b, stride_b, of_b != CUBLAS_OP_N};
    Type type;
    if (!type_of(type_a, of.a.type) || !type_of(type_b, of.b.type) || !type_of(type_c, type)) return refuse("a type is not emulated");
    if (type != of.a.type) return refuse("its result has another type than its sides");
    if (!scale_of(compute, alpha, of.alpha) || !scale_of(compute, beta, of.beta)) return refuse("its type of sums is not emulated");
    const char* names[] = {"f32", "f16", "bf16", "f64"};
    return run(handle, names[int(type)], of);
}

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t of_a, cublasOperation_t of_b, int m, int n, int k,
                            const void* alpha, const void* a, cudaDataType type_a, int lead_a, const void* b, cudaDataType type_b,
                            int lead_b, const void* beta, void* c, cudaDataType type_c, int lead_c, cublasComputeType_t compute,
                            cublasGemmAlgo_t algorithm) {
    return cublasGemmStridedBatchedEx(handle, of_a, of_b, m, n, k, alpha, a, type_a, lead_a, 0, b, type_b, lead_b, 0, beta, c,
                                      type_c, lead_c, 0, 1, compute, algorithm);
}

cublasStatus_t cublasDgemmStridedBatched(cublasHandle_t handle, cublasOperation_t of_a, cublasOperation_t of_b, int m, int n, int k,
                                         const double* alpha, const double* a, int lead_a, long long stride_a, const double* b,
                                         int lead_b, long long stride_b, const double* beta, double* c, int lead_c,
                                         long long stride_c, int batch) {
    return cublasGemmStridedBatchedEx(handle, of_a, of_b, m, n, k, alpha, a, CUDA_R_64F, lead_a, stride_a, b, CUDA_R_64F, lead_b,
                                      stride_b, beta, c, CUDA_R_64F, lead_c, stride_c, batch, CUBLAS_COMPUTE_64F,
                                      CUBLAS_GEMM_DEFAULT);
}

cublasStatus_t cublasSgemm_v2(cublasHandle_t handle, cublasOperation_t of_a, cublasOperation_t of_b, int m, int n, int k,
                              const float* alpha, const float* a, int lead_a, const float* b, int lead_b, const float* beta,
                              float* c, int lead_c) {
    return cublasGemmEx(handle, of_a, of_b, m, n, k, alpha, a, CUDA_R_32F, lead_a, b, CUDA_R_32F, lead_b, beta, c, CUDA_R_32F,
                        lead_c, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
}
