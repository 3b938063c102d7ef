// What captures refuse, and what of it ends them.
#include <cstring>

#include "machine.h"

static CUstream stream() { return machine.stream; }

static CUstreamCaptureStatus status() {
    CUstreamCaptureStatus status;
    done(cuStreamIsCapturing(stream(), &status));
    return status;
}

// Ends a capture that is invalid; its stream works as before.
static void expect_invalid() {
    expect(status() == CU_STREAM_CAPTURE_STATUS_INVALIDATED, "  its capture is invalid");
    expect_refused("  and so is work in it", CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "whose capture is invalid",
                   [] { return launch_set(stream(), machine.memory, 0, 1); });
    CUgraph graph = reinterpret_cast<CUgraph>(1);
    expect_refused("  and its end", CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "did what a capture may not",
                   [&] { return cuStreamEndCapture(stream(), &graph); });
    *machine.pinned = 0;
    done(launch_set(stream(), machine.memory, 0, 1));
    done(cuMemcpyDtoHAsync(machine.pinned, machine.memory, 4, stream()));
    synchronize();
    expect(!graph && *machine.pinned == 1, "  after which its stream works");
}

static void expect_spoils(const char* what, CUresult error, const char* words, const std::function<CUresult()>& call,
                          CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) {
    begin(mode);
    expect_refused(what, error, words, call);
    expect_invalid();
}

static CUresult launch_first() {
    void* arguments[] = {&machine.memory};
    return cuLaunchKernel(machine.never_launched, 1, 1, 1, 1, 1, 1, 0, stream(), arguments, nullptr);
}

static CUresult allocate() {
    CUdeviceptr memory;
    CUresult result = cuMemAlloc(&memory, 4);
    if (result == CUDA_SUCCESS) done(cuMemFree(memory));
    return result;
}

static void test_forbidden() {
    const CUresult unsupported = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    CUdeviceptr other;
    CUevent event;
    CUstream second;
    float* pinned;
    done(cuMemAlloc(&other, 4));
    done(cuEventCreate(&event, 0));
    done(cuEventRecord(event, stream()));
    done(cuStreamCreate(&second, CU_STREAM_NON_BLOCKING));
    done(cuMemHostAlloc(reinterpret_cast<void**>(&pinned), 4, 0));
    CUgraphExec graph = graph_of([] {});

    expect_spoils("cuMemAlloc", unsupported, "cuMemAlloc", allocate);
    expect_spoils("cuMemFree", unsupported, "cuMemFree", [=] { return cuMemFree(other); });
    expect_spoils("a pinned allocation", unsupported, "a pinned allocation", [] {
        void* memory;
        return cuMemHostAlloc(&memory, 4, 0);
    });
    expect_spoils("a free of pinned memory", unsupported, "a free of pinned memory", [=] { return cuMemFreeHost(pinned); });
    expect_spoils("a module", unsupported, "the loading of a module", [] {
        CUmodule module;
        return cuModuleLoadData(&module, ".version 8.0 .entry add(");
    });
    expect_spoils("the end of a module", unsupported, "cuModuleUnload", [] { return cuModuleUnload(machine.module); });
    expect_spoils("a trim of graphs' memory", unsupported, "cuDeviceGraphMemTrim", [] { return cuDeviceGraphMemTrim(0); });
    expect_spoils("a wait for the stream", unsupported, "a wait for a stream", [] { return cuStreamSynchronize(stream()); });
    expect_spoils("a query of the stream", unsupported, "a query of a stream", [] { return cuStreamQuery(stream()); });
    expect_spoils("a wait for another stream", unsupported, "a wait for a stream", [=] { return cuStreamSynchronize(second); });
    expect_spoils("the stream's end", unsupported, "cuStreamDestroy", [] { return cuStreamDestroy(stream()); });
    expect_spoils("a wait for the context", unsupported, "a wait for the whole context", cuCtxSynchronize);
    expect_spoils("a wait for an event of before", unsupported, "a wait for an event", [=] { return cuEventSynchronize(event); });
    expect_spoils("a kernel's first launch", unsupported, "a kernel's first launch", launch_first);
    expect_spoils("a copy to memory that is not pinned", unsupported, "not pinned", [] {
        float to;
        return cuMemcpyDtoHAsync(&to, machine.memory, 4, stream());
    });
    expect_spoils("a copy from memory that is not pinned", unsupported, "not pinned", [] {
        float from = 0;
        return cuMemcpyHtoDAsync(machine.memory, &from, 4, stream());
    });
    expect_spoils("a copy that waits", unsupported, "in the context's own stream",
                  [] { return cuMemcpyDtoH(machine.pinned, machine.memory, 4); });
    expect_spoils("a free of what was not allocated in it", CUDA_ERROR_INVALID_VALUE, "that the capture has not allocated",
                  [=] { return cuMemFreeAsync(other, stream()); });
    expect_spoils("a graph's launch", unsupported, "a graph's launch", [=] { return cuGraphLaunch(graph, stream()); });
    expect_spoils("a graph's upload", unsupported, "a graph's upload", [=] { return cuGraphUpload(graph, stream()); });
    done(cuGraphExecDestroy(graph));
    done(cuMemFreeHost(pinned));
    done(cuStreamDestroy(second));
    done(cuEventDestroy(event));
    done(cuMemFree(other));
}

static CUresult of_blas(cublasStatus_t status) {
    return status == CUBLAS_STATUS_SUCCESS ? CUDA_SUCCESS : CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

static void test_forbidden_blas() {
    const CUresult unsupported = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    cublasHandle_t fresh, before = machine.blas;
    if (cublasCreate(&fresh) || cublasSetStream(fresh, stream())) abort();
    expect_spoils("a handle of cuBLAS", unsupported, "a cuBLAS handle is made", [] {
        cublasHandle_t handle;
        return of_blas(cublasCreate(&handle));
    });
    expect_spoils("a handle's first product", unsupported, "the first of its type", [=] {
        machine.blas = fresh;
        CUresult result = of_blas(square(1, machine.memory, machine.memory));
        machine.blas = before;
        return result;
    });
    machine.blas = fresh;
    if (square(1, machine.memory, machine.memory)) abort();
    expect_spoils("a product without a workspace", unsupported, "it has no workspace",
                  [] { return of_blas(square(1, machine.memory, machine.memory)); });
    machine.blas = before;
    expect_spoils("the end of a handle in another thread, which waits for the device", unsupported, "a cuBLAS handle is destroyed",
                  [=] { return in_thread([=] { return of_blas(cublasDestroy(fresh)); }); });
    begin();
    done(of_blas(square(1, machine.memory, machine.memory)));
    expect_refused("a wait after a product", unsupported, "a wait for a stream", [] { return cuStreamSynchronize(stream()); });
    expect_refused("  its next product", unsupported, "its stream's capture is invalid",
                   [] { return of_blas(square(1, machine.memory, machine.memory)); });
    expect_invalid();
    if (cublasDestroy(fresh)) abort();
}

static CUresult in_mode(CUstreamCaptureMode mode, const std::function<CUresult()>& call) {
    CUstreamCaptureMode other = mode;
    done(cuThreadExchangeStreamCaptureMode(&other));
    CUresult result = call();
    done(cuThreadExchangeStreamCaptureMode(&other));
    expect(other == mode, "  a thread's mode is what it was set to");
    return result;
}

// What spoils a capture that goes on is not what these calls do.
static void expect_unharmed(const char* what) {
    expect(status() == CU_STREAM_CAPTURE_STATUS_ACTIVE, what);
    done(cuGraphDestroy(end()));
}

static void test_modes() {
    const auto global = CU_STREAM_CAPTURE_MODE_GLOBAL, relaxed = CU_STREAM_CAPTURE_MODE_RELAXED,
               of_thread = CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    begin(of_thread);
    done(in_thread(allocate));
    expect_unharmed("other threads allocate while a thread captures for itself");
    expect_spoils("a thread that allocates while another captures for all", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "cuMemAlloc",
                  [] { return in_thread(allocate); }, global);
    begin(global);
    done(in_thread([=] { return in_mode(of_thread, allocate); }));
    expect_unharmed("a thread that heeds its own captures only");
    begin(of_thread);
    done(in_mode(relaxed, allocate));
    expect_unharmed("a thread that heeds no capture");
    begin(relaxed);
    done(allocate());
    done(launch_first());
    expect_unharmed("a relaxed capture");
    expect_spoils("another thread's wait for a stream that captures, even relaxed", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                  "a wait for a stream", [] { return in_thread([] { return cuStreamSynchronize(stream()); }); }, relaxed);
    expect_spoils("another thread's wait for the context", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "a wait for the whole context",
                  [] { return in_thread(cuCtxSynchronize); });

    CUgraph graph;
    begin(of_thread);
    expect_refused("an end in another thread", CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "in another thread",
                   [&] { return in_thread([&] { return cuStreamEndCapture(stream(), &graph); }); });
    expect_refused("a second capture in a stream", CUDA_ERROR_ILLEGAL_STATE, "captures already",
                   [=] { return cuStreamBeginCapture(stream(), of_thread); });
    expect_unharmed("  neither of which ends it");
    expect_refused("an end without a beginning", CUDA_ERROR_ILLEGAL_STATE, "does not capture",
                   [&] { return cuStreamEndCapture(stream(), &graph); });
    expect_refused("a capture of the context's own stream", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "own stream cannot capture",
                   [=] { return cuStreamBeginCapture(nullptr, of_thread); });

    CUstream blocking, free = machine.stream;
    done(cuStreamCreate(&blocking, 0));
    machine.stream = blocking;
    expect_spoils("another thread's work that waits for a stream that captures", CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "would wait",
                  [] { return in_thread([] { return cuMemsetD8(machine.memory, 0, 1); }); });
    machine.stream = free;
    done(cuStreamDestroy(blocking));
    begin(of_thread);
    done(in_thread([] { return cuMemsetD8(machine.memory, 0, 1); }));
    expect_unharmed("another thread's work that does not");
}

static void test_events() {
    CUstream second;
    CUevent event, before, unused;
    done(cuStreamCreate(&second, CU_STREAM_NON_BLOCKING));
    for (CUevent* each : {&event, &before, &unused}) done(cuEventCreate(each, 0));
    done(cuEventRecord(before, second));

    begin();
    done(cuEventRecord(event, stream()));
    done(cuStreamWaitEvent(stream(), event, 0));
    done(cuStreamWaitEvent(stream(), unused, 0));
    expect_unharmed("a capture records an event, and waits for it");
    expect_refused("a query of an event of a capture that ended", CUDA_ERROR_CAPTURED_EVENT, "recorded in a capture",
                   [=] { return cuEventQuery(event); });
    expect_refused("a stream that waits for it", CUDA_ERROR_CAPTURED_EVENT, "of a capture that has ended",
                   [=] { return cuStreamWaitEvent(second, event, 0); });
    done(cuEventRecord(event, stream()));
    done(cuEventSynchronize(event));
    auto spoils = [&](const char* what, CUresult error, const char* words, const std::function<CUresult()>& call) {
        expect_spoils(what, error, words, [&] {
            done(cuEventRecord(event, stream()));
            return call();
        });
    };
    spoils("a query of a captured event", CUDA_ERROR_CAPTURED_EVENT, "a query of an event", [=] { return cuEventQuery(event); });
    spoils("a wait for it", CUDA_ERROR_CAPTURED_EVENT, "a wait for an event", [=] { return cuEventSynchronize(event); });
    spoils("another thread's query", CUDA_ERROR_CAPTURED_EVENT, "a query of an event",
           [=] { return in_thread([=] { return cuEventQuery(event); }); });
    spoils("a second stream that joins a capture", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "joins the capture",
           [=] { return cuStreamWaitEvent(second, event, 0); });
    expect_spoils("a capture that waits for an event of before", CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "was not captured",
                  [=] { return cuStreamWaitEvent(stream(), before, 0); });
    for (CUevent each : {event, before, unused}) done(cuEventDestroy(each));
    done(cuStreamDestroy(second));
}

void test_captures() {
    test_forbidden();
    test_forbidden_blas();
    test_modes();
    test_events();
}
