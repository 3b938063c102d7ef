// The runner's side for hosts: the emulated driver, and tests that launch kernels without a driver.
#pragma once
#include <string>
#include <vector>

#include "machine.h"

namespace emulated {

struct Source {
    std::string file;
    std::vector<Kernel> kernels;
    const Kernel* find(const std::string& name) const;
};

// Every source whose library is loaded, in order of loading.
const std::vector<Source>& sources();
// The first kernel of that name in any source, or null.
const Kernel* find_kernel(const std::string& name);

// Runs a whole grid before it returns. Blocks one after another; threads of a block in lockstep between their meetings.
void launch(const Kernel& kernel, dim3 grid, dim3 threads, size_t shared_bytes, void* const* arguments);

// Memory that is followed (and preceded) by pages nobody may touch. What lies between its end and the next page is checked
// when it is given back. New memory is filled with 0xff.
void* guarded_alloc(size_t bytes, const char* what);
void guarded_free(void* memory);
// Memory of a graph: an address that nobody may touch but between open and close. It is new at each open. `graph` says whose
// it is.
void* guarded_reserve(size_t bytes, const char* what, const void* graph);
void guarded_open(void* memory);
void guarded_close(void* memory);
// The allocation that holds an address, for messages and checks: false if there is none.
struct Found {
    void* start;
    size_t bytes;
    const char* what;
    const void* graph;  // null: of no graph, and open
    bool is_open;
};
bool guarded_find(const void* address, Found& found);
// Checks the bytes behind every allocation's end.
void guarded_check();

}  // namespace emulated
