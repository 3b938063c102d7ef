// Barriers, shuffles and votes: each is a meeting of threads, and the last to come moves the values.
#pragma once

using emulated::here;
using emulated::Where;

namespace emulated {

// What a lane brings to a shuffle: its value, and the lane whose value it takes.
struct Shuffle {
    uint64_t value;
    unsigned from;
    uint64_t result;
};

inline void shuffle_together(void* const* parts, unsigned lanes) {
    for (unsigned lane = 0; lane < WARP; lane++) {
        if (!(lanes >> lane & 1)) continue;
        auto& mine = *static_cast<Shuffle*>(parts[lane]);
        // To take from a lane that does not take part is undefined: NaN for floats.
        mine.result = lanes >> mine.from & 1 ? static_cast<Shuffle*>(parts[mine.from])->value : ~uint64_t(0);
    }
}

template <typename T> T shuffle(unsigned mask, T value, unsigned from, const char* operation, Where where) {
    static_assert(sizeof(T) <= sizeof(uint64_t) && std::is_trivially_copyable_v<T>, "shuffles move up to 8 bytes");
    Shuffle part = {0, from, 0};
    memcpy(&part.value, &value, sizeof value);
    meet_warp(mask, shuffle_together, &part, operation, where);
    memcpy(&value, &part.result, sizeof value);
    return value;
}

struct Vote {
    bool yes;
    unsigned ballot;
};

inline void vote_together(void* const* parts, unsigned lanes) {
    unsigned ballot = 0;
    for (unsigned lane = 0; lane < WARP; lane++) {
        if (lanes >> lane & 1) ballot |= unsigned(static_cast<Vote*>(parts[lane])->yes) << lane;
    }
    for (unsigned lane = 0; lane < WARP; lane++) {
        if (lanes >> lane & 1) static_cast<Vote*>(parts[lane])->ballot = ballot;
    }
}

inline unsigned vote(unsigned mask, bool yes, const char* operation, Where where) {
    Vote part = {yes, 0};
    meet_warp(mask, vote_together, &part, operation, where);
    return part.ballot;
}

inline void nothing_together(void* const*, unsigned) {}

}  // namespace emulated

inline void __syncthreads(Where where = here()) { emulated::meet_block(where); }
inline int __syncthreads_count(int yes, Where where = here()) { return int(emulated::count_block(yes != 0, where)); }
inline int __syncthreads_or(int yes, Where where = here()) { return emulated::count_block(yes != 0, where) != 0; }
inline int __syncthreads_and(int yes, Where where = here()) { return emulated::count_block(yes == 0, where) == 0; }
inline void __syncwarp(unsigned mask = ~0u, Where where = here()) {
    emulated::meet_warp(mask, emulated::nothing_together, nullptr, "__syncwarp", where);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <typename T> T __shfl_sync(unsigned mask, T value, int from, int width = 32, Where where = here()) {
    unsigned lane = emulated::current->lane, first = lane & ~unsigned(width - 1);
    return emulated::shuffle(mask, value, first + (unsigned(from) & unsigned(width - 1)), "__shfl_sync", where);
}
template <typename T> T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, Where where = here()) {
    unsigned lane = emulated::current->lane, from = lane ^ unsigned(bits);
    bool beyond = from >= (lane & ~unsigned(width - 1)) + unsigned(width);
    return emulated::shuffle(mask, value, beyond ? lane : from, "__shfl_xor_sync", where);
}
template <typename T> T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, Where where = here()) {
    unsigned lane = emulated::current->lane, inside = lane & unsigned(width - 1);
    return emulated::shuffle(mask, value, by > inside ? lane : lane - by, "__shfl_up_sync", where);
}
template <typename T> T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, Where where = here()) {
    unsigned lane = emulated::current->lane, inside = lane & unsigned(width - 1);
    return emulated::shuffle(mask, value, inside + by >= unsigned(width) ? lane : lane + by, "__shfl_down_sync", where);
}

inline unsigned __ballot_sync(unsigned mask, int yes, Where where = here()) {
    return emulated::vote(mask, yes != 0, "__ballot_sync", where);
}
inline int __any_sync(unsigned mask, int yes, Where where = here()) {
    return emulated::vote(mask, yes != 0, "__any_sync", where) != 0;
}
inline int __all_sync(unsigned mask, int yes, Where where = here()) {
    return emulated::vote(mask, yes == 0, "__all_sync", where) == 0;
}
