#include "state.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <thread>

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

namespace {

// Bytes of a device in use, and the most since it was asked to begin again. Graphs' are apart from other allocations.
struct Usage {
    size_t used, used_at_most, of_graphs;
    size_t left() const { return settings().memory_bytes - used - of_graphs; }
};

std::mutex usage_lock;
Usage usage[DEVICES_MAX];

}  // namespace

bool take_memory(int device, size_t bytes) {
    std::lock_guard<std::mutex> held(usage_lock);
    Usage& of = usage[device];
    if (bytes > of.left()) return false;
    of.used += bytes;
    of.used_at_most = std::max(of.used_at_most, of.used);
    return true;
}

void give_memory(int device, size_t bytes) {
    std::lock_guard<std::mutex> held(usage_lock);
    usage[device].used -= bytes;
}

bool keep_for_graphs(int device, size_t bytes) {
    std::lock_guard<std::mutex> held(usage_lock);
    Usage& of = usage[device];
    if (bytes > of.of_graphs && bytes - of.of_graphs > of.left()) return false;
    of.of_graphs = bytes;
    return true;
}

size_t memory_free(int device) {
    std::lock_guard<std::mutex> held(usage_lock);
    return usage[device].left();
}

size_t memory_used(int device) {
    std::lock_guard<std::mutex> held(usage_lock);
    return usage[device].used;
}

size_t memory_used_at_most(int device) {
    std::lock_guard<std::mutex> held(usage_lock);
    return usage[device].used_at_most;
}

void forget_memory_used(int device) {
    std::lock_guard<std::mutex> held(usage_lock);
    usage[device].used_at_most = usage[device].used;
}

void missing(const char* function) {
    fprintf(stderr, "emulated CUDA: %s is not emulated\n", function);
    abort();
}

}  // namespace emulated
