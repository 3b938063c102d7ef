// The pool of stream-ordered memory, which here keeps nothing that was given back, and the end of a context.
#include "driver.h"

using namespace emulated;

CUresult cuDeviceGetDefaultMemPool(CUmemoryPool* pool, CUdevice device) {
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    // Its handle is the device's number, from 1.
    *pool = reinterpret_cast<CUmemoryPool>(size_t(device) + 1);
    return CUDA_SUCCESS;
}

static int device_of(CUmemoryPool pool) { return int(reinterpret_cast<size_t>(pool)) - 1; }

CUresult cuMemPoolSetAttribute(CUmemoryPool pool, CUmemPool_attribute attribute, void*) {
    switch (attribute) {
        case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD: break;
        case CU_MEMPOOL_ATTR_USED_MEM_HIGH: forget_memory_used(device_of(pool)); break;
        default: return refuse(CUDA_ERROR_INVALID_VALUE, "the pool attribute %d is not emulated", int(attribute));
    }
    return CUDA_SUCCESS;
}

CUresult cuMemPoolGetAttribute(CUmemoryPool pool, CUmemPool_attribute attribute, void* value) {
    auto n_bytes = static_cast<cuuint64_t*>(value);
    switch (attribute) {
        // Nothing that was given back is kept.
        case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT:
        case CU_MEMPOOL_ATTR_USED_MEM_CURRENT: *n_bytes = memory_used(device_of(pool)); break;
        case CU_MEMPOOL_ATTR_USED_MEM_HIGH: *n_bytes = memory_used_at_most(device_of(pool)); break;
        default: return refuse(CUDA_ERROR_INVALID_VALUE, "the pool attribute %d is not emulated", int(attribute));
    }
    return CUDA_SUCCESS;
}

CUresult cuMemPoolTrimTo(CUmemoryPool, size_t) {
    NEEDS_CONTEXT();
    return may_wait("cuMemPoolTrimTo");
}

// All that was on the device is gone, a context that died too.
void emulated::end_context(int device) {
    forget_captures(device);
    free_all(device);
    forget_graph_memory(device);
    revive();
}

CUresult cuDevicePrimaryCtxReset(CUdevice device) {
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    log_line("reset");
    end_context(device);
    return CUDA_SUCCESS;
}
