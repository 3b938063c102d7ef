// The runtime library, which candle-kernels links for kernels of quantized models: loading registers them, and nothing here
// launches one.
#include <cstddef>

#include "../run/state.h"

// A call that starts a kernel of a quantized model.
#define LAUNCHES(function) \
    void function() { emulated::missing(#function); }

extern "C" {
void** __cudaRegisterFatBinary(void*) {
    static void* handle;
    return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char*, char*, const char*, int, void*, void*, void*, void*, int*) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
LAUNCHES(__cudaPushCallConfiguration)
LAUNCHES(__cudaPopCallConfiguration)
LAUNCHES(__cudaGetKernel)
LAUNCHES(__cudaLaunchKernel)
LAUNCHES(__cudaLaunchKernel_ptsz)
}
