// The emulated driver's own state.
#pragma once
#include <cuda.h>

#include <memory>

#include "../run/launch.h"
#include "../run/queue.h"
#include "../run/state.h"

// A context is a device's primary one; its address is the handle.
struct CUctx_st {
    int device;
    int n_retained;
};

// The last record: where it stands in its stream, and when it was passed.
struct CUevent_st {
    emulated::Stream* stream;
    uint64_t number;
    std::shared_ptr<double> passed_s;
};

namespace emulated {

// The calling thread's context, or null.
CUcontext current_context();
// Whether `device` is a number of a device.
bool is_device(CUdevice device);
double now_s();
// Gives back every allocation on a device.
void free_all(int device);

// Says what a caller did wrong beside the error it gets, for errors alone say little.
CUresult refuse(CUresult error, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace emulated

// What a call returns that gave or finished work: the context may have died of it.
inline CUresult outcome() { return emulated::is_dead() ? CUDA_ERROR_ILLEGAL_ADDRESS : CUDA_SUCCESS; }

// Begins each function that needs a living context.
#define NEEDS_CONTEXT()                                                          \
    do {                                                                         \
        if (!emulated::current_context()) return CUDA_ERROR_INVALID_CONTEXT;     \
        if (emulated::is_dead()) return CUDA_ERROR_ILLEGAL_ADDRESS;              \
    } while (0)
