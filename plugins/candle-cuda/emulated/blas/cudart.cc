// The runtime library, which candle-kernels links for kernels of quantized models: loading registers them, and nothing here
// launches one.
#include <cstddef>

namespace emulated {
[[noreturn]] void missing(const char*);
}

extern "C" {
void** __cudaRegisterFatBinary(void*) {
    static void* handle;
    return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char*, char*, const char*, int, void*, void*, void*, void*, int*) {}
void __cudaGetKernel() { emulated::missing("__cudaGetKernel"); }
void __cudaLaunchKernel_ptsz() { emulated::missing("__cudaLaunchKernel_ptsz"); }
void __cudaPushCallConfiguration() { emulated::missing("__cudaPushCallConfiguration"); }
void __cudaPopCallConfiguration() { emulated::missing("__cudaPopCallConfiguration"); }
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
}
