// Streams and events.
#include "driver.h"

using namespace emulated;

// A handle is the address of a Stream.
CUresult cuStreamCreate(CUstream* stream, unsigned) {
    NEEDS_CONTEXT();
    *stream = reinterpret_cast<CUstream>(make_stream());
    return CUDA_SUCCESS;
}

CUresult cuStreamCreateWithPriority(CUstream* stream, unsigned flags, int) { return cuStreamCreate(stream, flags); }

CUresult cuStreamDestroy(CUstream stream) {
    NEEDS_CONTEXT();
    drop_stream(&stream_of(stream));
    return outcome();
}

CUresult cuStreamSynchronize(CUstream stream) {
    NEEDS_CONTEXT();
    log_line("synchronize stream");
    finish(stream_of(stream));
    return outcome();
}

CUresult cuStreamQuery(CUstream stream) {
    NEEDS_CONTEXT();
    finish(stream_of(stream));
    return outcome();
}

CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned) {
    NEEDS_CONTEXT();
    Stream* other = event->stream;
    uint64_t number = event->number;
    if (other) give(stream, [=] { finish_inside(*other, number); });
    return outcome();
}

CUresult cuStreamIsCapturing(CUstream, CUstreamCaptureStatus* status) {
    NEEDS_CONTEXT();
    *status = CU_STREAM_CAPTURE_STATUS_NONE;
    return CUDA_SUCCESS;
}

CUresult cuLaunchHostFunc(CUstream stream, CUhostFn function, void* data) {
    NEEDS_CONTEXT();
    give(stream, [=] { function(data); });
    return outcome();
}

CUresult cuEventCreate(CUevent* event, unsigned) {
    NEEDS_CONTEXT();
    *event = new CUevent_st{nullptr, 0, nullptr};
    return CUDA_SUCCESS;
}

CUresult cuEventDestroy(CUevent event) {
    NEEDS_CONTEXT();
    delete event;
    return CUDA_SUCCESS;
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
    NEEDS_CONTEXT();
    auto passed_s = std::make_shared<double>(0);
    event->number = give(stream, [=] { *passed_s = now_s(); });
    event->stream = &stream_of(stream);
    event->passed_s = passed_s;
    return outcome();
}

CUresult cuEventQuery(CUevent event) {
    NEEDS_CONTEXT();
    if (event->stream) finish(*event->stream, event->number);
    return outcome();
}

CUresult cuEventSynchronize(CUevent event) {
    NEEDS_CONTEXT();
    log_line("synchronize event");
    if (event->stream) finish(*event->stream, event->number);
    return outcome();
}

static CUresult elapsed(float* milliseconds, CUevent from, CUevent to) {
    NEEDS_CONTEXT();
    if (!from->passed_s || !to->passed_s) return CUDA_ERROR_INVALID_HANDLE;
    if (*from->passed_s == 0 || *to->passed_s == 0) return CUDA_ERROR_NOT_READY;
    *milliseconds = float((*to->passed_s - *from->passed_s) * 1e3);
    return CUDA_SUCCESS;
}

#undef cuEventElapsedTime
extern "C" CUresult cuEventElapsedTime(float* milliseconds, CUevent from, CUevent to) { return elapsed(milliseconds, from, to); }
extern "C" CUresult cuEventElapsedTime_v2(float* milliseconds, CUevent from, CUevent to) { return elapsed(milliseconds, from, to); }
