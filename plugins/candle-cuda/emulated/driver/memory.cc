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

// Memory that a graph has while it runs: its bytes count when the graph comes to the device.
CUresult allocate_captured(CUdeviceptr* address, size_t bytes, Capture& capture) {
    void* memory = record_alloc(capture, bytes);
    if (!memory) return CUDA_ERROR_OUT_OF_MEMORY;
    *address = reinterpret_cast<CUdeviceptr>(memory);
    log_line("captured alloc %zu", bytes);
    return CUDA_SUCCESS;
}

CUresult allocate(CUdeviceptr* address, size_t bytes) {
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

CUresult release_captured(CUdeviceptr address, CUstream stream, Capture& capture) {
    size_t bytes = record_free(capture, pointer(address));
    if (bytes == 0) return refuse_captured(stream, CUDA_ERROR_INVALID_VALUE, "a free of memory that the capture has not allocated");
    log_line("captured free %zu", bytes);
    return CUDA_SUCCESS;
}

// Its bytes are free for the next allocation at once, as those of a pool are in a stream's order.
CUresult release(CUdeviceptr address, CUstream stream) {
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
    Found found;
    return guarded_find(address, found) && found.what == PINNED;
}

// A graph reads and writes memory of the host whenever it is launched.
CUresult may_copy(CUstream stream, const void* host) {
    TRY(may_give(stream, "a copy"));
    if (!capture_of(stream) || is_pinned(host)) return CUDA_SUCCESS;
    return refuse_captured(stream, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "a copy from or to memory of the host that is not pinned");
}

bool is_within(const char* way, CUdeviceptr address, size_t bytes, CUstream stream) {
    if (bytes == 0 || is_device_memory(pointer(address), bytes, stream)) return true;
    refuse(CUDA_ERROR_INVALID_VALUE, "%s of %zu bytes leaves its allocation", way, bytes);
    return false;
}

// From pinned memory the GPU reads when it comes to it; from other memory the driver copies first.
CUresult copy_in(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
    NEEDS_CONTEXT();
    TRY(may_copy(stream, from));
    if (!is_within("a copy to the device", to, bytes, stream)) return CUDA_ERROR_INVALID_VALUE;
    log_line("%scopy htod %zu", captured(stream), bytes);
    auto copy = [=](const void* source) {
        expect_memory("a copy to the device", pointer(to), bytes);
        memcpy(pointer(to), source, bytes);
    };
    if (is_pinned(from)) {
        give(stream, [=] {
            expect_memory("a copy from pinned memory", from, bytes);
            copy(from);
        });
    } else {
        auto first = static_cast<const char*>(from);
        give(stream, [=, staged = std::vector<char>(first, first + bytes)] { copy(staged.data()); });
    }
    return outcome();
}

// To pinned memory the GPU writes when it comes to it; for other memory the driver waits.
CUresult copy_out(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
    NEEDS_CONTEXT();
    TRY(may_copy(stream, to));
    if (!is_within("a copy from the device", from, bytes, stream)) return CUDA_ERROR_INVALID_VALUE;
    log_line("%scopy dtoh %zu", captured(stream), bytes);
    bool pinned = is_pinned(to);
    give(stream, [=] {
        expect_memory("a copy from the device", pointer(from), bytes);
        if (pinned) expect_memory("a copy to pinned memory", to, bytes);
        memcpy(to, pointer(from), bytes);
    });
    if (!pinned) finish(stream_of(stream));
    return outcome();
}

CUresult copy_over(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    NEEDS_CONTEXT();
    TRY(may_give(stream, "a copy"));
    if (!is_within("a copy's target", to, bytes, stream)) return CUDA_ERROR_INVALID_VALUE;
    if (!is_within("a copy's source", from, bytes, stream)) return CUDA_ERROR_INVALID_VALUE;
    log_line("%scopy dtod %zu", captured(stream), bytes);
    give(stream, [=] {
        expect_memory("a copy's target", pointer(to), bytes);
        expect_memory("a copy's source", pointer(from), bytes);
        memmove(pointer(to), pointer(from), bytes);
    });
    return outcome();
}

template <typename T> CUresult fill(CUdeviceptr to, T value, size_t count, CUstream stream) {
    NEEDS_CONTEXT();
    TRY(may_give(stream, "a fill"));
    if (!is_within("a fill", to, count * sizeof(T), stream)) return CUDA_ERROR_INVALID_VALUE;
    log_line("%smemset %zu", captured(stream), count * sizeof(T));
    give(stream, [=] {
        expect_memory("a fill", pointer(to), count * sizeof(T));
        std::fill_n(static_cast<T*>(pointer(to)), count, value);
    });
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

CUresult cuMemAlloc(CUdeviceptr* address, size_t bytes) {
    NEEDS_CONTEXT();
    TRY(may_wait("cuMemAlloc"));
    return allocate(address, bytes);
}

CUresult cuMemAllocAsync(CUdeviceptr* address, size_t bytes, CUstream stream) {
    NEEDS_CONTEXT();
    TRY(may_give(stream, "an allocation"));
    auto capture = capture_of(stream);
    return capture && bytes > 0 ? allocate_captured(address, bytes, *capture) : allocate(address, bytes);
}

CUresult cuMemFree(CUdeviceptr address) {
    NEEDS_CONTEXT();
    TRY(may_wait("cuMemFree"));
    TRY(may_give(nullptr, "cuMemFree"));
    return address ? release(address, nullptr) : CUDA_SUCCESS;
}

CUresult cuMemFreeAsync(CUdeviceptr address, CUstream stream) {
    NEEDS_CONTEXT();
    TRY(may_give(stream, "a free"));
    if (address == 0) return CUDA_SUCCESS;
    auto capture = capture_of(stream);
    return capture ? release_captured(address, stream, *capture) : release(address, stream);
}

CUresult cuMemGetInfo(size_t* free, size_t* total) {
    NEEDS_CONTEXT();
    *total = settings().memory_bytes;
    *free = memory_free(current_context()->device);
    return CUDA_SUCCESS;
}

CUresult cuMemHostAlloc(void** memory, size_t bytes, unsigned) {
    NEEDS_CONTEXT();
    TRY(may_wait("a pinned allocation"));
    *memory = bytes ? guarded_alloc(bytes, PINNED) : nullptr;
    log_line("pinned %zu", bytes);
    return *memory ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemFreeHost(void* memory) {
    TRY(may_wait("a free of pinned memory"));
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
