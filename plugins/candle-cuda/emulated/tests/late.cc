// What a program gets wrong when it forgets that a GPU works later: with EMULATED_CUDA_LATE it shows, without it does not.
#include <cuda.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

static int n_wrong = 0;

static void expect(bool right, const char* what) {
    printf("%s: %s\n", right ? "ok" : "WRONG", what);
    n_wrong += !right;
}

static void done(CUresult result) {
    if (result == CUDA_SUCCESS) return;
    printf("error %d\n", int(result));
    exit(1);
}

int main() {
    const char* setting = getenv("EMULATED_CUDA_LATE");
    const bool late = setting && strcmp(setting, "1") == 0;
    CUcontext context;
    CUstream a, b;
    CUevent event;
    CUdeviceptr memory;
    unsigned char *pinned, *from;
    done(cuInit(0));
    done(cuDevicePrimaryCtxRetain(&context, 0));
    done(cuCtxSetCurrent(context));
    done(cuStreamCreate(&a, CU_STREAM_NON_BLOCKING));
    done(cuStreamCreate(&b, CU_STREAM_NON_BLOCKING));
    done(cuEventCreate(&event, 0));
    done(cuMemAlloc(&memory, 1));
    done(cuMemHostAlloc(reinterpret_cast<void**>(&pinned), 1, 0));
    done(cuMemHostAlloc(reinterpret_cast<void**>(&from), 1, 0));

    *from = 1;
    done(cuMemcpyHtoDAsync(memory, from, 1, a));
    *from = 2;
    done(cuMemcpyDtoHAsync(pinned, memory, 1, a));
    expect((*pinned == 1) == !late, "a result that is read before anyone waited");
    done(cuStreamSynchronize(a));
    expect(*pinned == (late ? 2 : 1), "a pinned buffer that is written again too soon");

    unsigned char pageable = 3;
    done(cuMemcpyHtoDAsync(memory, &pageable, 1, a));
    pageable = 4;
    done(cuMemcpyDtoHAsync(&pageable, memory, 1, a));
    expect(pageable == 3, "memory that is not pinned is read and written before the call returns");

    done(cuMemsetD8Async(memory, 5, 1, a));
    done(cuMemcpyDtoHAsync(pinned, memory, 1, b));
    done(cuStreamSynchronize(b));
    expect((*pinned == 5) == !late, "a stream that does not wait for the other");
    done(cuMemsetD8Async(memory, 6, 1, a));
    done(cuEventRecord(event, a));
    done(cuStreamWaitEvent(b, event, 0));
    done(cuMemcpyDtoHAsync(pinned, memory, 1, b));
    done(cuStreamSynchronize(b));
    expect(*pinned == 6, "a stream that waits for the other's event");
    done(cuMemFreeAsync(memory, b));
    done(cuStreamDestroy(b));
    done(cuStreamDestroy(a));
    return n_wrong != 0;
}
