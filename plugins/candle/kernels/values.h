// Values of any type, several at a time.
#pragma once

#include "device.h"

// Whether values from here on can be moved N at a time: the pointer is aligned to N values, or to 16 bytes if that is less.
template <uint32_t N, typename T> DEVICE bool in_vectors(const T *at) {
  constexpr uint64_t BYTES = N * sizeof(T) < 16 ? N * sizeof(T) : 16;
  return uint64_t(at) % BYTES == 0;
}

DEVICE void load(const float *from, float (&to)[4]) {
  const float4 all = *reinterpret_cast<const float4 *>(from);
  to[0] = all.x, to[1] = all.y, to[2] = all.z, to[3] = all.w;
}

template <typename T> DEVICE void load(const T *from, float (&to)[4]) {
  const uint2 all = *reinterpret_cast<const uint2 *>(from);
  unpack<T>(all.x, to[0], to[1]);
  unpack<T>(all.y, to[2], to[3]);
}

DEVICE void load(const float *from, float (&to)[8]) {
  const float4 *vectors = reinterpret_cast<const float4 *>(from);
  const float4 a = vectors[0], b = vectors[1];
  to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w;
  to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
}

template <typename T> DEVICE void load(const T *from, float (&to)[8]) {
  const uint4 all = *reinterpret_cast<const uint4 *>(from);
  unpack<T>(all.x, to[0], to[1]);
  unpack<T>(all.y, to[2], to[3]);
  unpack<T>(all.z, to[4], to[5]);
  unpack<T>(all.w, to[6], to[7]);
}

template <typename T> DEVICE void load(const T *from, float (&to)[1]) { to[0] = widen(*from); }

DEVICE void store(float *to, const float (&from)[4]) {
  *reinterpret_cast<float4 *>(to) = make_float4(from[0], from[1], from[2], from[3]);
}

template <typename T> DEVICE void store(T *to, const float (&from)[4]) {
  *reinterpret_cast<uint2 *>(to) = make_uint2(pack<T>(from[0], from[1]), pack<T>(from[2], from[3]));
}

DEVICE void store(float *to, const float (&from)[8]) {
  float4 *vectors = reinterpret_cast<float4 *>(to);
  vectors[0] = make_float4(from[0], from[1], from[2], from[3]);
  vectors[1] = make_float4(from[4], from[5], from[6], from[7]);
}

template <typename T> DEVICE void store(T *to, const float (&from)[8]) {
  *reinterpret_cast<uint4 *>(to) = make_uint4(pack<T>(from[0], from[1]), pack<T>(from[2], from[3]),
                                             pack<T>(from[4], from[5]), pack<T>(from[6], from[7]));
}

template <typename T> DEVICE void store(T *to, const float (&from)[1]) { narrow(from[0], *to); }

// to += what stands there, if anything does.
template <int N, typename T> DEVICE void add(float (&to)[N], const T *from) {
  if (!from) return;
  float more[N];
  load(from, more);
#pragma unroll
  for (int i = 0; i < N; i++) to[i] += more[i];
}
