// Atomic operations. Threads of a block never run at the same time here, but blocks of two launches may.
#pragma once

namespace emulated {
// The value's type follows the address's.
template <typename T> struct Same {
    using Type = T;
};
template <typename T> using As = typename Same<T>::Type;
}  // namespace emulated

template <typename T> inline T atomicExch(T* at, emulated::As<T> value) {
    T old;
    __atomic_exchange(at, &value, &old, __ATOMIC_RELAXED);
    return old;
}
template <typename T> inline T atomicCAS(T* at, emulated::As<T> expected, emulated::As<T> value) {
    __atomic_compare_exchange(at, &expected, &value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
}

namespace emulated {
template <typename T, typename Change> inline T atomic_change(T* at, Change change) {
    T old;
    __atomic_load(at, &old, __ATOMIC_RELAXED);
    for (;;) {
        T next = change(old);
        if (__atomic_compare_exchange(at, &old, &next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return old;
    }
}
}  // namespace emulated

template <typename T> inline T atomicAdd(T* at, emulated::As<T> value) {
    return emulated::atomic_change(at, [&](T old) { return T(old + value); });
}
template <typename T> inline T atomicMax(T* at, emulated::As<T> value) {
    return emulated::atomic_change(at, [&](T old) { return old < value ? value : old; });
}
template <typename T> inline T atomicMin(T* at, emulated::As<T> value) {
    return emulated::atomic_change(at, [&](T old) { return value < old ? value : old; });
}
