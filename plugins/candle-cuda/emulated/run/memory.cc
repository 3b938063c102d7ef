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
    const void* graph;
    bool is_open;
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
    if (!found.is_open) return;
    const char* end = found.pages + found.pages_bytes;
    for (const char* at = start + found.bytes; at < end; at++) {
        if (static_cast<unsigned char>(*at) == BEHIND) continue;
        fprintf(stderr, "emulated CUDA: something wrote %td bytes behind the end of a %s of %zu bytes\n",
                at - start - ptrdiff_t(found.bytes), found.what, found.bytes);
        abort();
    }
}

void protect(const Allocation& of, int allowed) {
    if (mprotect(of.pages, of.pages_bytes, allowed) == 0) return;
    fprintf(stderr, "emulated CUDA: the system does not change the protection of %zu bytes\n", of.pages_bytes);
    abort();
}

void fill_new(char* start, const Allocation& of) {
    memset(start, UNWRITTEN, of.bytes);
    memset(start + of.bytes, BEHIND, round_up(of.bytes, ALIGNMENT) - of.bytes);
}

// Its end is the end of its pages, as near as its alignment allows.
void* add(size_t bytes, const char* what, const void* graph) {
    size_t room = round_up(bytes, ALIGNMENT);
    size_t pages_bytes = round_up(room, PAGE_BYTES);
    char* pages = pages_map(pages_bytes, false);
    if (!pages) return nullptr;
    char* start = pages + pages_bytes - room;
    Allocation made = {pages, pages_bytes, bytes, what, graph, graph == nullptr};
    if (made.is_open) fill_new(start, made);
    else protect(made, PROT_NONE);
    std::lock_guard<std::mutex> held(memory().lock);
    memory().live[start] = made;
    return start;
}

// The allocation that starts there; the caller holds the lock.
std::pair<const char* const, Allocation>& starting(void* start) {
    auto found = memory().live.find(static_cast<char*>(start));
    if (found != memory().live.end()) return *found;
    fprintf(stderr, "emulated CUDA: %p is given back, but is not an allocation (any more)\n", start);
    abort();
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

void* guarded_alloc(size_t bytes, const char* what) { return add(bytes, what, nullptr); }

void guarded_free(void* start) {
    std::lock_guard<std::mutex> held(memory().lock);
    auto& [address, found] = starting(start);
    check(address, found);
    pages_unmap(found.pages, found.pages_bytes);
    memory().live.erase(static_cast<char*>(start));
}

void* guarded_reserve(size_t bytes, const char* what, const void* graph) { return add(bytes, what, graph); }

void guarded_open(void* start) {
    std::lock_guard<std::mutex> held(memory().lock);
    Allocation& found = starting(start).second;
    protect(found, PROT_READ | PROT_WRITE);
    fill_new(static_cast<char*>(start), found);
    found.is_open = true;
}

void guarded_close(void* start) {
    std::lock_guard<std::mutex> held(memory().lock);
    auto& [address, found] = starting(start);
    check(address, found);
    found.is_open = false;
    madvise(found.pages, found.pages_bytes, MADV_DONTNEED);
    protect(found, PROT_NONE);
}

bool guarded_find(const void* address, Found& result) {
    std::lock_guard<std::mutex> held(memory().lock);
    auto at = static_cast<const char*>(address);
    auto next = memory().live.upper_bound(at);
    if (next == memory().live.begin()) return false;
    auto& [start, found] = *--next;
    if (at > start + found.bytes) return false;
    result = {const_cast<char*>(start), found.bytes, found.what, found.graph, found.is_open};
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
        snprintf(text, size, "byte %td of a %s of %zu bytes%s", at - start, found.what, found.bytes,
                 found.is_open ? "" : ", which its graph has not allocated now");
        return true;
    }
    return false;
}

}  // namespace emulated
