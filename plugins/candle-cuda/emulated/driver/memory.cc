// Memory of the device and of the host, copies and fills. Everything is done when a call returns.
#include <cstring>
#include <map>
#include <mutex>

#include "driver.h"

using namespace emulated;

namespace {

const char DEVICE[] = "device allocation";
const char PINNED[] = "pinned allocation";

// Which device an allocation counts for, and its bytes.
struct Owner {
    int device;
    size_t bytes;
};
std::mutex owners_lock;
std::map<CUdeviceptr, Owner>& owners() {
    static auto all = new std::map<CUdeviceptr, Owner>;
    return *all;
}

void* pointer(CUdeviceptr address) { return reinterpret_cast<void*>(address); }

CUresult allocate(CUdeviceptr* address, size_t bytes) {
    NEEDS_CONTEXT();
    if (bytes == 0) return refuse(CUDA_ERROR_INVALID_VALUE, "an allocation of 0 bytes");
    int device = current_context()->device;
    if (!take_memory(device, bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
    void* memory = guarded_alloc(bytes, DEVICE);
    if (!memory) {
        give_memory(device, bytes);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *address = reinterpret_cast<CUdeviceptr>(memory);
    std::lock_guard<std::mutex> held(owners_lock);
    owners()[*address] = {device, bytes};
    log_line("alloc %zu", bytes);
    return CUDA_SUCCESS;
}

CUresult release(CUdeviceptr address) {
    NEEDS_CONTEXT();
    if (address == 0) return CUDA_SUCCESS;
    {
        std::lock_guard<std::mutex> held(owners_lock);
        auto found = owners().find(address);
        if (found == owners().end()) return refuse(CUDA_ERROR_INVALID_VALUE, "a free of what was not allocated");
        give_memory(found->second.device, found->second.bytes);
        log_line("free %zu", found->second.bytes);
        owners().erase(found);
    }
    std::lock_guard<std::mutex> alone(execution());
    guarded_free(pointer(address));
    return CUDA_SUCCESS;
}

CUresult copy(void* to, const void* from, size_t bytes, const char* way, const void* device_a, const void* device_b) {
    NEEDS_CONTEXT();
    for (const void* device : {device_a, device_b}) {
        if (bytes && device && !is_device_memory(device, bytes)) {
            return refuse(CUDA_ERROR_INVALID_VALUE, "a copy %s of %zu bytes leaves its allocation", way, bytes);
        }
    }
    std::lock_guard<std::mutex> alone(execution());
    memmove(to, from, bytes);
    log_line("copy %s %zu", way, bytes);
    return CUDA_SUCCESS;
}

CUresult copy_in(CUdeviceptr to, const void* from, size_t bytes) {
    return copy(pointer(to), from, bytes, "htod", pointer(to), nullptr);
}
CUresult copy_out(void* to, CUdeviceptr from, size_t bytes) {
    return copy(to, pointer(from), bytes, "dtoh", pointer(from), nullptr);
}
CUresult copy_over(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    return copy(pointer(to), pointer(from), bytes, "dtod", pointer(to), pointer(from));
}

template <typename T> CUresult fill(CUdeviceptr to, T value, size_t count) {
    NEEDS_CONTEXT();
    if (count && !is_device_memory(pointer(to), count * sizeof(T))) {
        return refuse(CUDA_ERROR_INVALID_VALUE, "a fill of %zu bytes leaves its allocation", count * sizeof(T));
    }
    std::lock_guard<std::mutex> alone(execution());
    for (size_t i = 0; i < count; i++) static_cast<T*>(pointer(to))[i] = value;
    log_line("memset %zu", count * sizeof(T));
    return CUDA_SUCCESS;
}

}  // namespace

namespace emulated {

void free_all(int device) {
    std::lock_guard<std::mutex> alone(execution());
    std::lock_guard<std::mutex> held(owners_lock);
    for (auto at = owners().begin(); at != owners().end();) {
        if (at->second.device != device) {
            at++;
            continue;
        }
        give_memory(device, at->second.bytes);
        guarded_free(pointer(at->first));
        at = owners().erase(at);
    }
}

}  // namespace emulated

CUresult cuMemAlloc(CUdeviceptr* address, size_t bytes) { return allocate(address, bytes); }
CUresult cuMemAllocAsync(CUdeviceptr* address, size_t bytes, CUstream) { return allocate(address, bytes); }
CUresult cuMemFree(CUdeviceptr address) { return release(address); }
CUresult cuMemFreeAsync(CUdeviceptr address, CUstream) { return release(address); }

CUresult cuMemGetInfo(size_t* free, size_t* total) {
    NEEDS_CONTEXT();
    *total = settings().memory_bytes;
    *free = *total - memory_used(current_context()->device);
    return CUDA_SUCCESS;
}

CUresult cuMemHostAlloc(void** memory, size_t bytes, unsigned) {
    NEEDS_CONTEXT();
    *memory = bytes ? guarded_alloc(bytes, PINNED) : nullptr;
    log_line("pinned %zu", bytes);
    return *memory ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemFreeHost(void* memory) {
    if (memory) guarded_free(memory);
    return CUDA_SUCCESS;
}

CUresult cuMemcpyHtoD(CUdeviceptr to, const void* from, size_t bytes) { return copy_in(to, from, bytes); }
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t bytes, CUstream) { return copy_in(to, from, bytes); }
CUresult cuMemcpyDtoH(void* to, CUdeviceptr from, size_t bytes) { return copy_out(to, from, bytes); }
CUresult cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t bytes, CUstream) { return copy_out(to, from, bytes); }
CUresult cuMemcpyDtoD(CUdeviceptr to, CUdeviceptr from, size_t bytes) { return copy_over(to, from, bytes); }
CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream) { return copy_over(to, from, bytes); }
CUresult cuMemcpyPeerAsync(CUdeviceptr to, CUcontext, CUdeviceptr from, CUcontext, size_t bytes, CUstream) {
    return copy_over(to, from, bytes);
}

CUresult cuMemsetD8(CUdeviceptr to, unsigned char value, size_t count) { return fill(to, value, count); }
CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, CUstream) { return fill(to, value, count); }
CUresult cuMemsetD16Async(CUdeviceptr to, unsigned short value, size_t count, CUstream) { return fill(to, value, count); }
CUresult cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t count, CUstream) { return fill(to, value, count); }
