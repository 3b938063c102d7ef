// Streams and events. There is nothing to wait for: a call that returns has done its work.
#include "driver.h"

using namespace emulated;

struct CUstream_st {
    int device;
};

CUresult cuStreamCreate(CUstream* stream, unsigned) {
    NEEDS_CONTEXT();
    *stream = new CUstream_st{current_context()->device};
    return CUDA_SUCCESS;
}

CUresult cuStreamCreateWithPriority(CUstream* stream, unsigned flags, int) { return cuStreamCreate(stream, flags); }

CUresult cuStreamDestroy(CUstream stream) {
    NEEDS_CONTEXT();
    delete stream;
    return CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(CUstream) {
    NEEDS_CONTEXT();
    log_line("synchronize stream");
    return CUDA_SUCCESS;
}

CUresult cuStreamQuery(CUstream) {
    NEEDS_CONTEXT();
    return CUDA_SUCCESS;
}

CUresult cuStreamWaitEvent(CUstream, CUevent, unsigned) {
    NEEDS_CONTEXT();
    return CUDA_SUCCESS;
}

CUresult cuStreamIsCapturing(CUstream, CUstreamCaptureStatus* status) {
    NEEDS_CONTEXT();
    *status = CU_STREAM_CAPTURE_STATUS_NONE;
    return CUDA_SUCCESS;
}

CUresult cuLaunchHostFunc(CUstream, CUhostFn function, void* data) {
    NEEDS_CONTEXT();
    function(data);
    return CUDA_SUCCESS;
}

CUresult cuEventCreate(CUevent* event, unsigned) {
    NEEDS_CONTEXT();
    *event = new CUevent_st{0, false};
    return CUDA_SUCCESS;
}

CUresult cuEventDestroy(CUevent event) {
    NEEDS_CONTEXT();
    delete event;
    return CUDA_SUCCESS;
}

CUresult cuEventRecord(CUevent event, CUstream) {
    NEEDS_CONTEXT();
    *event = {now_s(), true};
    return CUDA_SUCCESS;
}

CUresult cuEventQuery(CUevent) {
    NEEDS_CONTEXT();
    return CUDA_SUCCESS;
}

CUresult cuEventSynchronize(CUevent) {
    NEEDS_CONTEXT();
    log_line("synchronize event");
    return CUDA_SUCCESS;
}

static CUresult elapsed(float* milliseconds, CUevent from, CUevent to) {
    NEEDS_CONTEXT();
    if (!from->was_recorded || !to->was_recorded) return CUDA_ERROR_INVALID_HANDLE;
    *milliseconds = float((to->recorded_s - from->recorded_s) * 1e3);
    return CUDA_SUCCESS;
}

#undef cuEventElapsedTime
extern "C" CUresult cuEventElapsedTime(float* milliseconds, CUevent from, CUevent to) { return elapsed(milliseconds, from, to); }
extern "C" CUresult cuEventElapsedTime_v2(float* milliseconds, CUevent from, CUevent to) { return elapsed(milliseconds, from, to); }
