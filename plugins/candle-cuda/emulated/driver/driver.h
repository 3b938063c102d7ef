// The emulated driver's own state.
#pragma once
#include <cuda.h>

#include <memory>

#include "../run/capture.h"
#include "../run/launch.h"
#include "../run/queue.h"
#include "../run/state.h"

// A context is a device's primary one; its address is the handle.
struct CUctx_st {
    int device;
    int n_retained;
};

// The last record: where it stands in its stream, and when it was passed; or the capture that it was made in.
struct CUevent_st {
    emulated::Stream* stream;
    uint64_t number;
    std::shared_ptr<double> passed_s;
    std::shared_ptr<emulated::Capture> capture;
};

struct CUgraph_st {
    std::shared_ptr<emulated::Graph> graph;
};

namespace emulated {

// The calling thread's context, or null.
CUcontext current_context();
// Whether `device` is a number of a device.
bool is_device(CUdevice device);
double now_s();
// Ends a device's context: nobody holds it any more, or it is reset.
void end_context(int device);
// Gives back every allocation on a device.
void free_all(int device);
// Graphs have no memory on a device any more.
void forget_graph_memory(int device);

// Says what a caller did wrong beside the error it gets, for errors alone say little.
CUresult refuse(CUresult error, const char* format, ...) __attribute__((format(printf, 2, 3)));

// Whether a stream may be given `what`, and why not.
CUresult may_give(CUstream stream, const char* what);
// Whether the calling thread may do `what`, which could wait for a device.
CUresult may_wait(const char* what);
// Refuses what a stream cannot capture, or cannot do while it captures. Its capture is invalid from then on.
CUresult refuse_captured(CUstream stream, CUresult error, const char* what);
// The stream's capture, or null.
inline std::shared_ptr<Capture> capture_of(CUstream stream) { return capture_of(stream_of(stream)); }

}  // namespace emulated

// What a call returns that gave or finished work: the context may have died of it.
inline CUresult outcome() { return emulated::is_dead() ? CUDA_ERROR_ILLEGAL_ADDRESS : CUDA_SUCCESS; }

#define TRY(call)                                                                \
    do {                                                                         \
        if (CUresult error = call; error != CUDA_SUCCESS) return error;          \
    } while (0)

// Begins each function that needs a living context.
#define NEEDS_CONTEXT()                                                          \
    do {                                                                         \
        if (!emulated::current_context()) return CUDA_ERROR_INVALID_CONTEXT;     \
        if (emulated::is_dead()) return CUDA_ERROR_ILLEGAL_ADDRESS;              \
    } while (0)
