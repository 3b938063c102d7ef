// Shared memory: every variable of a kernel ends at a page that nobody may touch.
#include <sys/mman.h>

#include <cstdio>
#include <cstring>

#include "inside.h"
#include "pages.h"

namespace emulated {

// What a block may have on every GPU from Ampere on (compute capability 8.6 has the least), static and dynamic together.
constexpr size_t SHARED_BYTES_MAX = 99 * 1024;
constexpr size_t SHARED_ALIGNMENT = 16;

void shared_start_block(Runner& here) {
    for (auto& [owner, variable] : here.shared) variable.in_block = false;
    if (here.dynamic_bytes) memset(here.dynamic_start, 0xff, here.dynamic_bytes);
}

static size_t bytes_in_block(const Runner& here) {
    size_t bytes = here.dynamic_bytes;
    for (auto& [owner, variable] : here.shared) bytes += variable.in_block ? variable.bytes : 0;
    return bytes;
}

void* shared_variable(const void* owner, const char* name, size_t bytes, size_t alignment) {
    Runner& here = runner();
    Shared& variable = here.shared[owner];
    if (!variable.start) {
        size_t room = round_up(bytes, alignment < SHARED_ALIGNMENT ? SHARED_ALIGNMENT : alignment);
        size_t pages = round_up(room, PAGE_BYTES);
        char* start = pages_map(pages, true);
        if (!start) fail({nullptr, 0}, "no memory for the shared variable %s of %zu bytes", name, bytes);
        variable = {name, bytes, start, start + pages - room, pages, false};
    }
    if (!variable.in_block) {
        variable.in_block = true;
        memset(variable.start, 0xff, bytes);
        size_t all = bytes_in_block(here);
        if (all > SHARED_BYTES_MAX) {
            fail({nullptr, 0}, "the block has %zu bytes of shared memory, of %zu that every GPU has", all, SHARED_BYTES_MAX);
        }
    }
    return variable.start;
}

constexpr size_t ROOM = round_up(SHARED_BYTES_MAX, PAGE_BYTES);

Runner::~Runner() {
    for (auto& [owner, variable] : shared) pages_unmap(variable.pages, variable.pages_bytes);
    if (dynamic_pages) pages_unmap(dynamic_pages, ROOM);
}

void shared_set_dynamic(Runner& here, size_t bytes) {
    if (bytes > SHARED_BYTES_MAX) {
        fail({nullptr, 0}, "the launch asks for %zu bytes of shared memory, of %zu that every GPU has", bytes, SHARED_BYTES_MAX);
    }
    if (!here.dynamic_pages) here.dynamic_pages = pages_map(ROOM, true);
    char* pages = here.dynamic_pages;
    if (!pages) fail({nullptr, 0}, "no memory for dynamic shared memory");
    char* start = pages + ROOM - round_up(bytes, SHARED_ALIGNMENT);
    if (here.dynamic_bytes != bytes || here.dynamic_start != start) {
        // Pages before the first one in use are forbidden, too: an index below zero ends there.
        char* first = start - reinterpret_cast<size_t>(start) % PAGE_BYTES;
        mprotect(pages, ROOM, PROT_NONE);
        mprotect(first, size_t(pages + ROOM - first), PROT_READ | PROT_WRITE);
    }
    here.dynamic_start = start;
    here.dynamic_bytes = bytes;
}

void* shared_dynamic() { return runner().dynamic_start; }

static bool within(const void* address, size_t bytes, const char* start, size_t size) {
    auto at = static_cast<const char*>(address);
    return at >= start && at + bytes <= start + size;
}

bool is_shared(const void* address, size_t bytes) {
    const Runner& here = runner();
    if (within(address, bytes, here.dynamic_start, here.dynamic_bytes)) return true;
    for (auto& [owner, variable] : here.shared) {
        if (variable.in_block && within(address, bytes, variable.start, variable.bytes)) return true;
    }
    return false;
}

bool shared_describe(const void* address, char* text, size_t size) {
    const Runner& here = runner();
    auto at = static_cast<const char*>(address);
    // The nearest: the system may have put several close to each other.
    long nearest = 64 * 1024;
    bool found = false;
    auto look_at = [&](const char* name, const char* start, size_t bytes) {
        if (!start) return;
        long offset = at - start;
        long distance = offset < 0 ? -offset : offset < long(bytes) ? 0 : offset - long(bytes);
        if (distance > nearest || (found && distance == nearest)) return;
        nearest = distance;
        found = true;
        snprintf(text, size, "byte %ld of shared memory '%s', which has %zu bytes", offset, name, bytes);
    };
    for (auto& [owner, variable] : here.shared) look_at(variable.name, variable.start, variable.bytes);
    look_at("dynamic", here.dynamic_start, here.dynamic_bytes);
    return found;
}

}  // namespace emulated
