// Captures, and what they forbid.
#include "driver.h"

using namespace emulated;

namespace emulated {

CUresult may_wait(const char* what) {
    if (!is_forbidden()) return CUDA_SUCCESS;
    return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "%s while a stream captures: it could wait for the device", what);
}

CUresult may_give(CUstream stream, const char* what) {
    switch (bar_of(stream)) {
        case Bar::None: break;
        case Bar::Forbidden:
            return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "%s in the context's own stream while a stream captures", what);
        case Bar::Implicit:
            return refuse(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
                          "%s in the context's own stream, which would wait for a stream that captures", what);
        case Bar::Invalidated:
            return refuse(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "%s in a stream whose capture is invalid", what);
    }
    return CUDA_SUCCESS;
}

CUresult refuse_captured(CUstream handle, CUresult error, const char* what) {
    Stream* stream = &stream_of(handle);
    spoil([=](const Capture& capture) { return &capture.stream == stream; });
    return refuse(error, "%s, in a stream that captures", what);
}

}  // namespace emulated

CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode mode) {
    NEEDS_CONTEXT();
    if (is_of_context(stream)) return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the context's own stream cannot capture");
    if (mode < CU_STREAM_CAPTURE_MODE_GLOBAL || mode > CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_ERROR_INVALID_VALUE;
    if (begin_capture(stream_of(stream), CaptureMode(mode), current_context()->device)) return CUDA_SUCCESS;
    return refuse(CUDA_ERROR_ILLEGAL_STATE, "a capture begins in a stream that captures already");
}

CUresult cuStreamEndCapture(CUstream stream, CUgraph* graph) {
    NEEDS_CONTEXT();
    *graph = nullptr;
    auto capture = capture_of(stream);
    if (!capture) return refuse(CUDA_ERROR_ILLEGAL_STATE, "a capture ends in a stream that does not capture");
    if (capture->mode != CaptureMode::Relaxed && capture->thread != std::this_thread::get_id()) {
        return refuse(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "a capture ends in another thread than began it");
    }
    auto ended = end_capture(stream_of(stream));
    if (!capture->is_valid) return refuse(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "a capture that ends did what a capture may not");
    *graph = new CUgraph_st{ended};
    return CUDA_SUCCESS;
}

CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus* status) {
    NEEDS_CONTEXT();
    if (is_of_context(stream)) TRY(may_give(stream, "a question whether it captures"));
    auto capture = capture_of(stream);
    *status = !capture            ? CU_STREAM_CAPTURE_STATUS_NONE
              : capture->is_valid ? CU_STREAM_CAPTURE_STATUS_ACTIVE
                                  : CU_STREAM_CAPTURE_STATUS_INVALIDATED;
    return CUDA_SUCCESS;
}

CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
    if (*mode < CU_STREAM_CAPTURE_MODE_GLOBAL || *mode > CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_ERROR_INVALID_VALUE;
    CaptureMode before = mode_of_thread();
    mode_of_thread() = CaptureMode(*mode);
    *mode = CUstreamCaptureMode(before);
    return CUDA_SUCCESS;
}
