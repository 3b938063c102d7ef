// Streams: work in the order in which it was given. It is done at once, or (EMULATED_CUDA_LATE) not before somebody waits for
// it: a GPU does it sometime in between, so what is right both ways does not rest on luck.
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>

namespace emulated {

struct Capture;

struct Stream {
    std::deque<std::function<void()>> waiting;
    uint64_t n_given = 0, n_done = 0;
    bool is_blocking = true;           // the context's own stream waits for it: here it waits for all, but captures forbid it
    std::shared_ptr<Capture> capture;  // that is under way
};

// The stream of a handle of the driver's or of cuBLAS's: 0 and 1 are the context's, 2 is the calling thread's.
Stream& stream_of(const void* handle);
Stream* make_stream(bool is_blocking);
inline bool is_of_context(const void* handle) { return reinterpret_cast<uintptr_t>(handle) < 2; }
// Finishes its work first.
void drop_stream(Stream* stream);

// Gives work to the stream of a handle, and returns its number there, from 1. Nothing else runs beside it on any device. The
// context's own stream waits for all others. A stream that captures takes it into its graph instead, and it has no number: 0.
uint64_t give(const void* handle, std::function<void()> work);
// A kernel or a product, that counts as begin_launch() says.
void give_launch(const void* handle, std::function<void()> work);
// Does a stream's work, up to its `upto`-th.
void finish(Stream& stream, uint64_t upto = UINT64_MAX);
void finish_all();
// For work itself: another stream's work that it needs.
void finish_inside(Stream& stream, uint64_t upto);
// Throws away what nobody waited for: the context is gone.
void forget_all();

}  // namespace emulated
