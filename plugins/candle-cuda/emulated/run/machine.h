// What a kernel on the host sees of the machine it runs on: its place in the grid, shared memory, and the points where
// threads meet. The shim's headers turn CUDA's language into these calls.
#pragma once
#include <vector_types.h>

#include <cstddef>
#include <cstdint>

namespace emulated {

constexpr unsigned WARP = 32;

struct Block;

// One thread of a block while it runs.
struct Thread {
    uint3 index;
    unsigned lane;
    Block* block;
};

// What every thread of a block has in common.
struct Block {
    uint3 index;
    dim3 threads;
    dim3 grid;
};

// The thread that runs now, on this thread of the system. (`thread_local` would ask at each use whether it is initialised.)
extern __thread Thread* current;

// Where a thread of the kernel calls from, for messages.
struct Where {
    const char* file;
    int line;
};
inline Where here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }

// Waits until every thread of the block is here. Threads that ended, or that wait elsewhere, are an error.
void meet_block(Where where);
// The same, and returns how many threads came with `vote`.
unsigned count_block(bool vote, Where where);

// One operation of a warp: each lane of `mask` brings a part (in and out), and the last to come does the work for all.
// `parts` has 32 entries; those of lanes that are not in `lanes` mean nothing.
using Together = void (*)(void* const* parts, unsigned lanes);
void meet_warp(unsigned mask, Together together, void* part, const char* operation, Where where);

// The lanes of this thread's warp that have not ended.
unsigned lanes_alive();

// A shared variable of a kernel: one storage a block, filled with 0xff (NaN) when the block starts and followed by memory
// that nobody may touch. `owner` is one address a variable.
void* shared_variable(const void* owner, const char* name, size_t bytes, size_t alignment);
// The launch's dynamic shared memory, of exactly the bytes that the launch asked for.
void* shared_dynamic();
// Whether these bytes lie in shared memory of the running block. Shared memory lies below 4 GiB, so that a pointer's low
// half is what PTX takes for an address in shared memory.
bool is_shared(const void* address, size_t bytes);

// Asynchronous copies arrive as late as the rules allow: when their thread waits for their group. A missing wait therefore
// shows as stale data. `copied` bytes come from `from`, the rest up to `bytes` are zeros.
void copy_async(void* to, const void* from, size_t bytes, size_t copied, Where where);
void copy_async_commit();
void copy_async_wait(unsigned groups_left);
void copy_async_wait_all();

// Ends the process with a message that names the kernel, the block, the thread and the line.
[[noreturn]] void fail(Where where, const char* format, ...) __attribute__((format(printf, 2, 3)));
void check_aligned(const void* address, size_t bytes, const char* what, Where where);

// One kernel: its name and a call that unpacks the driver's pointers to arguments.
struct Kernel {
    const char* name;
    void (*call)(void* const* arguments);
    unsigned n_arguments;
    const size_t* sizes;   // of the arguments, in bytes
    unsigned max_threads;  // of a block, by __launch_bounds__; 0 if it has none
};

// The kernels of one source file, told to the runner when their library is loaded.
void add_kernels(const char* source, const Kernel* kernels, size_t count);
struct Added {
    Added(const char* source, const Kernel* kernels, size_t count) { add_kernels(source, kernels, count); }
};

}  // namespace emulated
