// What the tests of graphs share: a device with a stream, memory and kernels; captures; and expectations.
#pragma once
#include <cublas_v2.h>
#include <cuda.h>

#include <functional>
#include <string>

extern int n_wrong;

void expect(bool right, const char* what);
// Ends the program if a call that prepares something fails.
void done(CUresult result);
// A call that must fail with `error` and say `words`.
void expect_refused(const char* what, CUresult error, const char* words, const std::function<CUresult()>& call);
// What must end the process with `words`.
void expect_end(const char* what, const char* words, const std::function<void()>& doing);
// Runs in a process of its own, with one more setting of the driver.
void in_process(const char* variable, const char* value, const std::function<void()>& doing);
// In a thread of its own.
CUresult in_thread(const std::function<CUresult()>& call);

// Device 0. `memory` and `pinned` have 16 floats each.
struct Machine {
    CUcontext context;
    CUstream stream;
    CUmodule module;
    CUfunction add, set, never_launched;
    CUdeviceptr memory;
    float* pinned;
    cublasHandle_t blas;
};
extern Machine machine;
void start_machine();
extern bool late;

CUresult launch_add(CUstream stream, CUdeviceptr x, CUdeviceptr out, float value);
CUresult launch_set(CUstream stream, CUdeviceptr out, unsigned at, float value);
// out = alpha · x · x of one number each.
cublasStatus_t square(float alpha, CUdeviceptr x, CUdeviceptr out);

void begin(CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
CUgraph end();
// Captures what `work` gives to the machine's stream, instantiates it and drops the graph.
CUgraphExec graph_of(const std::function<void()>& work);
void launch(CUgraphExec graph);
void synchronize();
// The lines that the driver has logged since it was last asked.
std::string new_log();

// graphs.cc, and what captures refuse: captures.cc
void test_captures();
