#include "queue.h"

#include <mutex>
#include <set>

#include "capture.h"
#include "state.h"

namespace emulated {

namespace {

// Guards the streams, too: what runs on a device runs under it.
std::set<Stream*>& streams() {
    static auto all = new std::set<Stream*>;
    return *all;
}

Stream* added(Stream* stream) {
    streams().insert(stream);
    return stream;
}

}  // namespace

Stream* make_stream(bool is_blocking) {
    std::lock_guard<std::mutex> alone(execution());
    auto made = new Stream;
    made->is_blocking = is_blocking;
    return added(made);
}

Stream& stream_of(const void* handle) {
    auto number = reinterpret_cast<uintptr_t>(handle);
    if (number > 2) return *static_cast<Stream*>(const_cast<void*>(handle));
    // Never destroyed: others may wait for the work of a thread that ended.
    static Stream* of_context = make_stream(true);
    static thread_local Stream* of_thread = number == 2 ? make_stream(true) : nullptr;
    if (number != 2) return *of_context;
    if (!of_thread) of_thread = make_stream(true);
    return *of_thread;
}

void finish_inside(Stream& stream, uint64_t upto) {
    if (!streams().count(&stream)) return;  // it was dropped, and its work was done then
    while (!stream.waiting.empty() && stream.n_done < upto) {
        auto work = std::move(stream.waiting.front());
        stream.waiting.pop_front();
        stream.n_done++;
        // A dead context does no work any more.
        if (!is_dead()) work();
    }
}

static uint64_t give(const void* handle, std::function<void()> work, bool is_launch) {
    Stream& stream = stream_of(handle);
    if (record(stream, work, is_launch)) return 0;
    if (is_of_context(handle)) finish_all();
    std::lock_guard<std::mutex> alone(execution());
    stream.waiting.push_back(std::move(work));
    uint64_t number = ++stream.n_given;
    if (!settings().late || is_of_context(handle)) finish_inside(stream, number);
    return number;
}

uint64_t give(const void* handle, std::function<void()> work) { return give(handle, std::move(work), false); }

void give_launch(const void* handle, std::function<void()> work) {
    give(handle, [work = std::move(work)] { if (begin_launch()) work(); }, true);
}

void finish(Stream& stream, uint64_t upto) {
    std::lock_guard<std::mutex> alone(execution());
    finish_inside(stream, upto);
}

void finish_all() {
    std::lock_guard<std::mutex> alone(execution());
    for (Stream* stream : streams()) finish_inside(*stream, UINT64_MAX);
}

void forget_all() {
    std::lock_guard<std::mutex> alone(execution());
    for (Stream* stream : streams()) {
        stream->n_done += stream->waiting.size();
        stream->waiting.clear();
    }
}

void drop_stream(Stream* stream) {
    std::lock_guard<std::mutex> alone(execution());
    finish_inside(*stream, UINT64_MAX);
    streams().erase(stream);
    delete stream;
}

}  // namespace emulated
