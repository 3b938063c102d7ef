// Streams and events.
#include "driver.h"

using namespace emulated;

// A handle is the address of a Stream.
CUresult cuStreamCreate(CUstream* stream, unsigned flags) {
    NEEDS_CONTEXT();
    *stream = reinterpret_cast<CUstream>(make_stream(!(flags & CU_STREAM_NON_BLOCKING)));
    return CUDA_SUCCESS;
}

CUresult cuStreamCreateWithPriority(CUstream* stream, unsigned flags, int) { return cuStreamCreate(stream, flags); }

CUresult cuStreamDestroy(CUstream stream) {
    NEEDS_CONTEXT();
    if (capture_of(stream)) return refuse_captured(stream, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "cuStreamDestroy");
    drop_stream(&stream_of(stream));
    return outcome();
}

static CUresult may_finish(CUstream stream, const char* what) {
    if (capture_of(stream)) return refuse_captured(stream, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, what);
    TRY(may_give(stream, what));
    return may_wait(what);
}

CUresult cuStreamSynchronize(CUstream stream) {
    NEEDS_CONTEXT();
    TRY(may_finish(stream, "a wait for a stream"));
    log_line("synchronize stream");
    finish(stream_of(stream));
    return outcome();
}

CUresult cuStreamQuery(CUstream stream) {
    NEEDS_CONTEXT();
    TRY(may_finish(stream, "a query of a stream"));
    finish(stream_of(stream));
    return outcome();
}

// A captured event is of its capture only, and a capture has events of its own only.
static CUresult may_wait_for(CUstream stream, CUevent event) {
    auto capture = capture_of(stream);
    if (event->capture && event->capture == capture) return CUDA_SUCCESS;
    if (event->capture && event->capture->has_ended) {
        if (!capture) return refuse(CUDA_ERROR_CAPTURED_EVENT, "a stream waits for an event of a capture that has ended");
        return refuse_captured(stream, CUDA_ERROR_CAPTURED_EVENT, "a wait for an event of another capture, that has ended");
    }
    if (event->capture) {
        spoil([&](const Capture& other) { return &other == event->capture.get() || &other == capture.get(); });
        return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "a stream joins the capture of another: not emulated");
    }
    if (!capture || !event->stream) return CUDA_SUCCESS;
    return refuse_captured(stream, CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "a wait for an event that was not captured");
}

CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned) {
    NEEDS_CONTEXT();
    TRY(may_give(stream, "a wait for an event"));
    TRY(may_wait_for(stream, event));
    Stream* other = event->stream;
    uint64_t number = event->number;
    if (other) give(stream, [=] { finish_inside(*other, number); });
    return outcome();
}

CUresult cuLaunchHostFunc(CUstream stream, CUhostFn function, void* data) {
    NEEDS_CONTEXT();
    TRY(may_give(stream, "a call of the host"));
    give(stream, [=] { function(data); });
    return outcome();
}

CUresult cuEventCreate(CUevent* event, unsigned) {
    NEEDS_CONTEXT();
    *event = new CUevent_st{nullptr, 0, nullptr, nullptr};
    return CUDA_SUCCESS;
}

CUresult cuEventDestroy(CUevent event) {
    NEEDS_CONTEXT();
    delete event;
    return CUDA_SUCCESS;
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
    NEEDS_CONTEXT();
    TRY(may_give(stream, "an event's record"));
    if (auto capture = capture_of(stream)) {
        *event = {nullptr, 0, nullptr, capture};
        return CUDA_SUCCESS;
    }
    auto passed_s = std::make_shared<double>(0);
    uint64_t number = give(stream, [=] { *passed_s = now_s(); });
    *event = {&stream_of(stream), number, passed_s, nullptr};
    return outcome();
}

static CUresult may_finish(CUevent event, const char* what) {
    if (!event->capture) return may_wait(what);
    spoil([&](const Capture& capture) { return &capture == event->capture.get(); });
    return refuse(CUDA_ERROR_CAPTURED_EVENT, "%s that was recorded in a capture", what);
}

CUresult cuEventQuery(CUevent event) {
    NEEDS_CONTEXT();
    TRY(may_finish(event, "a query of an event"));
    if (event->stream) finish(*event->stream, event->number);
    return outcome();
}

CUresult cuEventSynchronize(CUevent event) {
    NEEDS_CONTEXT();
    TRY(may_finish(event, "a wait for an event"));
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
