// What the toolkit's headers have of the halves for devices only. Each is computed in f32 and rounded once.
#pragma once

#define EMULATED_HALF(name, expression)                                                                          \
    inline __half name(__half a) {                                                                               \
        float x = __half2float(a);                                                                               \
        return __float2half(expression);                                                                         \
    }                                                                                                            \
    inline __nv_bfloat16 name(__nv_bfloat16 a) {                                                                 \
        float x = __bfloat162float(a);                                                                           \
        return __float2bfloat16(expression);                                                                     \
    }
EMULATED_HALF(hexp, expf(x))
EMULATED_HALF(hexp2, exp2f(x))
EMULATED_HALF(hlog, logf(x))
EMULATED_HALF(hlog2, log2f(x))
EMULATED_HALF(hsqrt, sqrtf(x))
EMULATED_HALF(hrsqrt, 1.0f / sqrtf(x))
EMULATED_HALF(hrcp, 1.0f / x)
EMULATED_HALF(hsin, sinf(x))
EMULATED_HALF(hcos, cosf(x))
EMULATED_HALF(htanh, tanhf(x))
EMULATED_HALF(hceil, ceilf(x))
EMULATED_HALF(hfloor, floorf(x))
EMULATED_HALF(htrunc, truncf(x))
EMULATED_HALF(hrint, rintf(x))
#undef EMULATED_HALF

// A product of two halves is exact in f32 (f16) or double (bf16's range), so one rounding follows the sum.
inline __half __hfma(__half a, __half b, __half c) {
    return __double2half(double(__half2float(a)) * __half2float(b) + __half2float(c));
}
inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
    return __double2bfloat16(double(__bfloat162float(a)) * __bfloat162float(b) + __bfloat162float(c));
}
