#include "state.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "launch.h"

namespace emulated {

constexpr int DEVICES_MAX = 64;

static long number(const char* name, long otherwise) {
    const char* text = getenv(name);
    if (!text || !*text) return otherwise;
    char* end;
    long value = strtol(text, &end, 10);
    if (*end || value < 0) {
        fprintf(stderr, "emulated CUDA: %s is '%s', which is no number from 0\n", name, text);
        abort();
    }
    return value;
}

const Settings& settings() {
    static const Settings read = {
        int(number("EMULATED_CUDA_DEVICES", 1)),
        size_t(number("EMULATED_CUDA_MEMORY_BYTES", long(8) << 30)),
        int(number("EMULATED_CUDA_COMPUTE", 86)),
        int(number("EMULATED_CUDA_THREADS", long(std::thread::hardware_concurrency()))),
        number("EMULATED_CUDA_LATE", 0) != 0,
        getenv("EMULATED_CUDA_LOG"),
        number("EMULATED_CUDA_FATAL_LAUNCH", 0),
    };
    return read;
}

void log_line(const char* format, ...) {
    if (!settings().log) return;
    static const int file = open(settings().log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    char line[512];
    va_list values;
    va_start(values, format);
    int length = vsnprintf(line, sizeof line - 1, format, values);
    va_end(values);
    if (length >= int(sizeof line) - 1) length = int(sizeof line) - 2;
    line[length++] = '\n';
    if (write(file, line, size_t(length)) != length) {
        fprintf(stderr, "emulated CUDA: the log %s cannot be written\n", settings().log);
        abort();
    }
}

std::mutex& execution() {
    static auto lock = new std::mutex;
    return *lock;
}

static std::atomic<long> launches{0};

// Of a context that was made anew: it dies once.
static std::atomic<bool> is_revived{false};

bool begin_launch() {
    long fatal = settings().fatal_launch;
    return ++launches < fatal || fatal == 0 || is_revived;
}

bool is_dead() { return settings().fatal_launch != 0 && launches >= settings().fatal_launch && !is_revived; }

void revive() {
    if (is_dead()) is_revived = true;
}

static std::atomic<size_t> used[DEVICES_MAX];
// The most since it was asked to begin again.
static std::atomic<size_t> used_at_most[DEVICES_MAX];

bool take_memory(int device, size_t bytes) {
    size_t before = used[device];
    do {
        if (bytes > settings().memory_bytes || before > settings().memory_bytes - bytes) return false;
    } while (!used[device].compare_exchange_weak(before, before + bytes));
    size_t most = used_at_most[device];
    while (most < before + bytes && !used_at_most[device].compare_exchange_weak(most, before + bytes)) {}
    return true;
}

void give_memory(int device, size_t bytes) { used[device] -= bytes; }

size_t memory_used(int device) { return used[device]; }

size_t memory_used_at_most(int device) { return used_at_most[device]; }

void forget_memory_used(int device) { used_at_most[device] = size_t(used[device]); }

void missing(const char* function) {
    fprintf(stderr, "emulated CUDA: %s is not emulated\n", function);
    abort();
}

bool is_device_memory(const void* address, size_t bytes) {
    void* start;
    size_t size;
    if (!guarded_find(address, &start, &size)) return false;
    return static_cast<const char*>(address) + bytes <= static_cast<const char*>(start) + size;
}

}  // namespace emulated
