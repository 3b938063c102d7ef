// What the stand-ins of NVIDIA's libraries share: settings, a log of what devices were asked, and death on command.
#pragma once
#include <cstddef>
#include <mutex>

namespace emulated {

// From the environment, read once.
struct Settings {
    int devices;          // EMULATED_CUDA_DEVICES: 1 if unset
    size_t memory_bytes;  // EMULATED_CUDA_MEMORY_BYTES: of each device; 8 GiB if unset
    int compute;          // EMULATED_CUDA_COMPUTE: compute capability times ten; 86 if unset
    int threads;          // EMULATED_CUDA_THREADS: that run a launch's blocks; as many as cores if unset
    bool late;            // EMULATED_CUDA_LATE: 1: work is done when somebody waits for it; 0: at once
    const char* log;      // EMULATED_CUDA_LOG: a file that lines are appended to; none if unset
    long fatal_launch;    // EMULATED_CUDA_FATAL_LAUNCH: this launch (from 1) kills the context; 0: none
};
const Settings& settings();

// Appends a line to the log, whole even if processes share it. Words of a line: what it is, then its figures.
//   launch NAME blocks N threads N shared N | product NAME m N n N k N batch N | copy htod|dtoh|dtod BYTES |
//   alloc BYTES | free BYTES | memset BYTES | synchronize stream|context|event | graph LAUNCHES_AND_PRODUCTS
// What a stream captures has `captured` in front. A graph's launch is one line; what it then does has none.
void log_line(const char* format, ...) __attribute__((format(printf, 1, 2)));

// What runs on the device runs alone: held while a kernel, a product, a copy or a fill is under way.
std::mutex& execution();

// Counts a launch (products are launches, too) and says whether it may run. The fatal one may not, nor any after it.
bool begin_launch();
// Whether the context died: every call that touches it fails from then on.
bool is_dead();
// Ends that: the context was made anew.
void revive();

// Device memory in use, of all devices together each its own count. False if it would be too much.
bool take_memory(int device, size_t bytes);
void give_memory(int device, size_t bytes);
// How much of it graphs have, which counts apart from the rest. False if it would be too much.
bool keep_for_graphs(int device, size_t bytes);
size_t memory_free(int device);
size_t memory_used(int device);
// The most that was in use since the start, or since that was forgotten.
size_t memory_used_at_most(int device);
void forget_memory_used(int device);

// Ends the process: a function of NVIDIA's library is not emulated.
[[noreturn]] void missing(const char* function);

}  // namespace emulated
