// Device memory: each allocation between forbidden pages, so that a kernel that leaves it stops at once.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "inside.h"
#include "pages.h"

namespace emulated {

namespace {

// What cuMemAlloc promises, and kernels with vector loads rely on.
constexpr size_t ALIGNMENT = 256;
// Fills what was never written: NaN in f16, bf16 and f32.
constexpr int UNWRITTEN = 0xff;
constexpr unsigned char BEHIND = 0xa5;

struct Allocation {
    char* pages;
    size_t pages_bytes, bytes;
    const char* what;
};

struct Memory {
    std::mutex lock;
    std::map<const char*, Allocation> live;
};

Memory& memory() {
    static Memory* whole = new Memory;  // never destroyed: plugins free memory while the process ends
    return *whole;
}

void check(const char* start, const Allocation& found) {
    const char* end = found.pages + found.pages_bytes;
    for (const char* at = start + found.bytes; at < end; at++) {
        if (static_cast<unsigned char>(*at) == BEHIND) continue;
        fprintf(stderr, "emulated CUDA: something wrote %td bytes behind the end of a %s of %zu bytes\n",
                at - start - ptrdiff_t(found.bytes), found.what, found.bytes);
        abort();
    }
}

}  // namespace

char* pages_map(size_t bytes, bool low) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* hint = nullptr;
#if defined(MAP_32BIT)
    if (low) flags |= MAP_32BIT;
#else
    static size_t next = 0x10000000;
    if (low) hint = reinterpret_cast<void*>(__atomic_fetch_add(&next, round_up(bytes, 1 << 20) + (1 << 20), __ATOMIC_RELAXED));
#endif
    void* mapped = mmap(hint, bytes + 2 * PAGE_BYTES, PROT_NONE, flags, -1, 0);
    if (mapped == MAP_FAILED) return nullptr;
    char* pages = static_cast<char*>(mapped) + PAGE_BYTES;
    bool fits = !low || reinterpret_cast<uintptr_t>(pages) + bytes < (uint64_t(1) << 32);
    if (!fits || (bytes && mprotect(pages, bytes, PROT_READ | PROT_WRITE) != 0)) {
        munmap(mapped, bytes + 2 * PAGE_BYTES);
        return nullptr;
    }
    return pages;
}

void pages_unmap(char* pages, size_t bytes) { munmap(pages - PAGE_BYTES, bytes + 2 * PAGE_BYTES); }

void* guarded_alloc(size_t bytes, const char* what) {
    size_t room = round_up(bytes, ALIGNMENT);
    size_t pages_bytes = round_up(room, PAGE_BYTES);
    char* pages = pages_map(pages_bytes, false);
    if (!pages) return nullptr;
    char* start = pages + pages_bytes - room;
    memset(start, UNWRITTEN, bytes);
    memset(start + bytes, BEHIND, room - bytes);
    std::lock_guard<std::mutex> held(memory().lock);
    memory().live[start] = {pages, pages_bytes, bytes, what};
    return start;
}

void guarded_free(void* start) {
    std::lock_guard<std::mutex> held(memory().lock);
    auto found = memory().live.find(static_cast<char*>(start));
    if (found == memory().live.end()) {
        fprintf(stderr, "emulated CUDA: %p is given back, but is not an allocation (any more)\n", start);
        abort();
    }
    check(found->first, found->second);
    pages_unmap(found->second.pages, found->second.pages_bytes);
    memory().live.erase(found);
}

bool guarded_find(const void* address, void** start, size_t* bytes, const char** what) {
    std::lock_guard<std::mutex> held(memory().lock);
    auto at = static_cast<const char*>(address);
    auto found = memory().live.upper_bound(at);
    if (found == memory().live.begin()) return false;
    --found;
    if (at > found->first + found->second.bytes) return false;
    if (start) *start = const_cast<char*>(found->first);
    if (bytes) *bytes = found->second.bytes;
    if (what) *what = found->second.what;
    return true;
}

void guarded_check() {
    std::lock_guard<std::mutex> held(memory().lock);
    for (auto& [start, found] : memory().live) check(start, found);
}

bool guarded_describe(const void* address, char* text, size_t size) {
    // Called after a fault: whoever holds the lock may be the thread that failed, so it is only tried.
    std::unique_lock<std::mutex> held(memory().lock, std::try_to_lock);
    if (!held) return false;
    auto at = static_cast<const char*>(address);
    for (auto& [start, found] : memory().live) {
        if (at < found.pages - PAGE_BYTES || at >= found.pages + found.pages_bytes + PAGE_BYTES) continue;
        snprintf(text, size, "byte %td of a %s of %zu bytes", at - start, found.what, found.bytes);
        return true;
    }
    return false;
}

}  // namespace emulated
