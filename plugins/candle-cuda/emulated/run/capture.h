// Capture: a stream notes its work down in a graph instead of doing it. What CUDA forbids meanwhile makes the capture invalid.
#pragma once
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "queue.h"

namespace emulated {

// Work in its order, and the memory that it allocates and gives back on its way. Nobody changes it once its capture has ended.
struct Graph {
    const int device;
    const unsigned n_resets;  // of the device, before: what was on it is gone since
    std::vector<std::function<void()>> nodes;
    size_t n_launches = 0;             // products too
    std::map<void*, size_t> allocated;  // at this point of the nodes, and its bytes
    size_t bytes = 0, bytes_at_most = 0;
    std::vector<void*> memory;  // all addresses

    explicit Graph(int device);
    ~Graph();
    // As work of a stream.
    void run() const;
    bool is_of_lost_device() const;
};

// CUDA's numbers.
enum class CaptureMode { Global, ThreadLocal, Relaxed };

struct Capture {
    const CaptureMode mode;
    const std::thread::id thread;
    Stream& stream;
    const int device;
    std::shared_ptr<Graph> graph;  // until it ends
    std::atomic<bool> is_valid{true}, has_ended{false};
};

// False if the stream captures already.
bool begin_capture(Stream& stream, CaptureMode mode, int device);
std::shared_ptr<Graph> end_capture(Stream& stream);
// Null if there is none.
std::shared_ptr<Capture> capture_of(Stream& stream);
// Ends those of a device that is reset, and makes graphs of it useless.
void forget_captures(int device);
// A word for the log, in front of what a stream does.
const char* captured(const void* handle);

// Makes the captures invalid that `which` says. Whether there is one.
bool spoil(const std::function<bool(const Capture&)>& which);
// Whether the calling thread may not do what could wait for a device: some capture forbids it, and is invalid now.
bool is_forbidden();
// How the calling thread heeds captures; at first Global.
CaptureMode& mode_of_thread();

// What keeps a stream from taking work.
enum class Bar { None, Forbidden, Implicit, Invalidated };
Bar bar_of(const void* handle);

// Whether the stream captured this; if not, it is to be done.
bool record(Stream& stream, std::function<void()>& work, bool is_launch);
// Null if the system has no address.
void* record_alloc(Capture& capture, size_t bytes);
// Its bytes; 0 if the capture has not allocated it, or given back before.
size_t record_free(Capture& capture, void* memory);

// Whether [address, address + bytes) lies in one allocation that a stream's next work may touch.
bool is_device_memory(const void* address, size_t bytes, const void* handle);
// For work itself: ends the process if it is not there (any more).
void expect_memory(const char* whose, const void* address, size_t bytes);

}  // namespace emulated
