#include "capture.h"

#include <algorithm>
#include <mutex>
#include <set>

#include "launch.h"
#include "state.h"

namespace emulated {

namespace {

const char GRAPH[] = "graph's allocation";

// Guards the captures, and what streams know of theirs.
std::mutex captures_lock;

std::set<std::shared_ptr<Capture>>& captures() {
    static auto all = new std::set<std::shared_ptr<Capture>>;
    return *all;
}

unsigned& resets_of(int device) {
    static auto all = new std::map<int, unsigned>;
    return (*all)[device];
}

std::shared_ptr<Graph> end(Capture& capture) {
    auto held = capture.stream.capture;
    capture.has_ended = true;
    captures().erase(held);
    capture.stream.capture = nullptr;
    return std::move(capture.graph);
}

}  // namespace

// Its maker holds the lock.
Graph::Graph(int device) : device(device), n_resets(resets_of(device)) {}

Graph::~Graph() {
    for (void* address : memory) guarded_free(address);
}

void Graph::run() const {
    for (auto& node : nodes) {
        if (!is_dead()) node();
    }
}

bool Graph::is_of_lost_device() const {
    std::lock_guard<std::mutex> held(captures_lock);
    return n_resets != resets_of(device);
}

bool begin_capture(Stream& stream, CaptureMode mode, int device) {
    std::lock_guard<std::mutex> held(captures_lock);
    if (stream.capture) return false;
    stream.capture.reset(new Capture{mode, std::this_thread::get_id(), stream, device, std::make_shared<Graph>(device)});
    captures().insert(stream.capture);
    return true;
}

std::shared_ptr<Graph> end_capture(Stream& stream) {
    std::lock_guard<std::mutex> held(captures_lock);
    return end(*stream.capture);
}

std::shared_ptr<Capture> capture_of(Stream& stream) {
    std::lock_guard<std::mutex> held(captures_lock);
    return stream.capture;
}

void forget_captures(int device) {
    std::lock_guard<std::mutex> held(captures_lock);
    resets_of(device)++;
    auto all = captures();
    for (auto& capture : all) {
        if (capture->device == device) end(*capture);
    }
}

const char* captured(const void* handle) { return capture_of(stream_of(handle)) ? "captured " : ""; }

bool spoil(const std::function<bool(const Capture&)>& which) {
    std::lock_guard<std::mutex> held(captures_lock);
    bool found = false;
    for (auto& capture : captures()) {
        if (!which(*capture)) continue;
        found = true;
        capture->is_valid = false;
    }
    return found;
}

CaptureMode& mode_of_thread() {
    static thread_local CaptureMode mode = CaptureMode::Global;
    return mode;
}

bool is_forbidden() {
    CaptureMode own = mode_of_thread();
    if (own == CaptureMode::Relaxed) return false;
    return spoil([=](const Capture& capture) {
        if (capture.mode == CaptureMode::Relaxed) return false;
        bool is_for_all = own == CaptureMode::Global && capture.mode == CaptureMode::Global;
        return is_for_all || capture.thread == std::this_thread::get_id();
    });
}

Bar bar_of(const void* handle) {
    if (is_of_context(handle)) {
        if (spoil([](const Capture& capture) { return capture.stream.is_blocking; })) return Bar::Implicit;
        return is_forbidden() ? Bar::Forbidden : Bar::None;
    }
    auto capture = capture_of(stream_of(handle));
    return capture && !capture->is_valid ? Bar::Invalidated : Bar::None;
}

bool record(Stream& stream, std::function<void()>& work, bool is_launch) {
    std::lock_guard<std::mutex> held(captures_lock);
    if (!stream.capture) return false;
    Graph& graph = *stream.capture->graph;
    graph.nodes.push_back(std::move(work));
    graph.n_launches += is_launch;
    return true;
}

void* record_alloc(Capture& capture, size_t bytes) {
    std::lock_guard<std::mutex> held(captures_lock);
    if (capture.has_ended) return nullptr;
    Graph& graph = *capture.graph;
    void* memory = guarded_reserve(bytes, GRAPH, &graph);
    if (!memory) return nullptr;
    graph.nodes.push_back([=] { guarded_open(memory); });
    graph.memory.push_back(memory);
    graph.allocated[memory] = bytes;
    graph.bytes += bytes;
    graph.bytes_at_most = std::max(graph.bytes_at_most, graph.bytes);
    return memory;
}

size_t record_free(Capture& capture, void* memory) {
    std::lock_guard<std::mutex> held(captures_lock);
    if (capture.has_ended) return 0;
    Graph& graph = *capture.graph;
    auto found = graph.allocated.find(memory);
    if (found == graph.allocated.end()) return 0;
    size_t bytes = found->second;
    graph.nodes.push_back([=] { guarded_close(memory); });
    graph.allocated.erase(found);
    graph.bytes -= bytes;
    return bytes;
}

static bool holds(const Found& found, const void* address, size_t bytes) {
    return static_cast<const char*>(address) + bytes <= static_cast<const char*>(found.start) + found.bytes;
}

bool is_device_memory(const void* address, size_t bytes, const void* handle) {
    Found found;
    if (!guarded_find(address, found) || !holds(found, address, bytes)) return false;
    if (!found.graph) return true;
    Stream& stream = stream_of(handle);
    std::lock_guard<std::mutex> held(captures_lock);
    return stream.capture && stream.capture->graph.get() == found.graph && stream.capture->graph->allocated.count(found.start);
}

void expect_memory(const char* whose, const void* address, size_t bytes) {
    if (bytes == 0) return;
    Found found;
    if (guarded_find(address, found) && holds(found, address, bytes) && found.is_open) return;
    fail({nullptr, 0}, "%s of %zu bytes touches %p, which is no allocation (any more)", whose, bytes, address);
}

}  // namespace emulated
