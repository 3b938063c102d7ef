// Memory of the device and of the host, copies and fills.
#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

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

// Its bytes are free for the next allocation at once, as those of a pool are in a stream's order.
CUresult release(CUdeviceptr address, CUstream stream) {
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
    give(stream, [=] { guarded_free(pointer(address)); });
    return outcome();
}

bool is_pinned(const void* address) {
    const char* what;
    return guarded_find(address, nullptr, nullptr, &what) && what == PINNED;
}

bool is_within(const char* way, CUdeviceptr address, size_t bytes) {
    if (bytes == 0 || is_device_memory(pointer(address), bytes)) return true;
    refuse(CUDA_ERROR_INVALID_VALUE, "%s of %zu bytes leaves its allocation", way, bytes);
    return false;
}

// From pinned memory the GPU reads when it comes to it; from other memory the driver copies first.
CUresult copy_in(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
    NEEDS_CONTEXT();
    if (!is_within("a copy to the device", to, bytes)) return CUDA_ERROR_INVALID_VALUE;
    log_line("copy htod %zu", bytes);
    if (is_pinned(from)) {
        give(stream, [=] { memcpy(pointer(to), from, bytes); });
    } else {
        auto first = static_cast<const char*>(from);
        give(stream, [=, staged = std::vector<char>(first, first + bytes)] { memcpy(pointer(to), staged.data(), bytes); });
    }
    return outcome();
}

// To pinned memory the GPU writes when it comes to it; for other memory the driver waits.
CUresult copy_out(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
    NEEDS_CONTEXT();
    if (!is_within("a copy from the device", from, bytes)) return CUDA_ERROR_INVALID_VALUE;
    log_line("copy dtoh %zu", bytes);
    give(stream, [=] { memcpy(to, pointer(from), bytes); });
    if (!is_pinned(to)) finish(stream_of(stream));
    return outcome();
}

CUresult copy_over(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    NEEDS_CONTEXT();
    if (!is_within("a copy's target", to, bytes) || !is_within("a copy's source", from, bytes)) return CUDA_ERROR_INVALID_VALUE;
    log_line("copy dtod %zu", bytes);
    give(stream, [=] { memmove(pointer(to), pointer(from), bytes); });
    return outcome();
}

template <typename T> CUresult fill(CUdeviceptr to, T value, size_t count, CUstream stream) {
    NEEDS_CONTEXT();
    if (!is_within("a fill", to, count * sizeof(T))) return CUDA_ERROR_INVALID_VALUE;
    log_line("memset %zu", count * sizeof(T));
    give(stream, [=] { std::fill_n(static_cast<T*>(pointer(to)), count, value); });
    return outcome();
}

}  // namespace

namespace emulated {

void free_all(int device) {
    forget_all();
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
CUresult cuMemFree(CUdeviceptr address) { return release(address, nullptr); }
CUresult cuMemFreeAsync(CUdeviceptr address, CUstream stream) { return release(address, stream); }

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
    finish_all();
    if (memory) guarded_free(memory);
    return CUDA_SUCCESS;
}

CUresult cuMemcpyHtoD(CUdeviceptr to, const void* from, size_t bytes) { return copy_in(to, from, bytes, nullptr); }
CUresult cuMemcpyDtoH(void* to, CUdeviceptr from, size_t bytes) { return copy_out(to, from, bytes, nullptr); }
CUresult cuMemcpyDtoD(CUdeviceptr to, CUdeviceptr from, size_t bytes) { return copy_over(to, from, bytes, nullptr); }
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
    return copy_in(to, from, bytes, stream);
}
CUresult cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
    return copy_out(to, from, bytes, stream);
}
CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    return copy_over(to, from, bytes, stream);
}
CUresult cuMemcpyPeerAsync(CUdeviceptr to, CUcontext, CUdeviceptr from, CUcontext, size_t bytes, CUstream stream) {
    return copy_over(to, from, bytes, stream);
}

CUresult cuMemsetD8(CUdeviceptr to, unsigned char value, size_t count) { return fill(to, value, count, nullptr); }
CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, CUstream stream) {
    return fill(to, value, count, stream);
}
CUresult cuMemsetD16Async(CUdeviceptr to, unsigned short value, size_t count, CUstream stream) {
    return fill(to, value, count, stream);
}
CUresult cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t count, CUstream stream) {
    return fill(to, value, count, stream);
}
