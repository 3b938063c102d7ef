// Graphs: what was captured, made ready and launched.
#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <set>

#include "driver.h"

using namespace emulated;

namespace {

// What can be launched. A launch that is not done keeps it, whoever destroys its handle.
struct Executable {
    const std::shared_ptr<Graph> graph;
    // Launches that are not done.
    std::atomic<int> n_pending{0};
    ~Executable();
};

// Graphs run one after another, so a device has memory for the largest of those that came to it.
struct GraphMemory {
    std::set<const Executable*> users;
    size_t reserved = 0, reserved_at_most = 0, used_at_most = 0;

    size_t used() const {
        size_t most = 0;
        for (auto user : users) most = std::max(most, user->graph->bytes_at_most);
        return most;
    }
};

std::mutex memory_lock;
GraphMemory& memory_of(int device) {
    static auto all = new std::map<int, GraphMemory>;
    return (*all)[device];
}

Executable::~Executable() {
    std::lock_guard<std::mutex> held(memory_lock);
    memory_of(graph->device).users.erase(this);
}

// Brings a graph to its device.
CUresult upload(const Executable& executable) {
    int device = executable.graph->device;
    size_t bytes = executable.graph->bytes_at_most;
    if (executable.graph->is_of_lost_device()) {
        return refuse(CUDA_ERROR_INVALID_VALUE, "a graph that was captured before its device was reset");
    }
    std::lock_guard<std::mutex> held(memory_lock);
    GraphMemory& memory = memory_of(device);
    if (bytes > memory.reserved) {
        if (!keep_for_graphs(device, bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
        memory.reserved = bytes;
        memory.reserved_at_most = std::max(memory.reserved_at_most, bytes);
    }
    memory.users.insert(&executable);
    memory.used_at_most = std::max(memory.used_at_most, memory.used());
    return CUDA_SUCCESS;
}

}  // namespace

struct CUgraphExec_st {
    std::shared_ptr<Executable> executable;
};

namespace emulated {

void forget_graph_memory(int device) {
    std::lock_guard<std::mutex> held(memory_lock);
    memory_of(device) = {};
    keep_for_graphs(device, 0);
}

}  // namespace emulated

CUresult cuGraphInstantiateWithFlags(CUgraphExec* executable, CUgraph graph, unsigned long long flags) {
    NEEDS_CONTEXT();
    // All memory is given back within the graph, so there is nothing that a launch would have to free.
    if (flags & ~(unsigned long long)(CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH)) {
        return refuse(CUDA_ERROR_INVALID_VALUE, "the flags %llu of a graph are not emulated", flags);
    }
    if (size_t left = graph->graph->allocated.size()) {
        return refuse(CUDA_ERROR_NOT_SUPPORTED, "a graph keeps %zu of its allocations, of %zu bytes, when it ends: not emulated", left,
                      graph->graph->bytes);
    }
    *executable = new CUgraphExec_st{std::shared_ptr<Executable>(new Executable{graph->graph, {0}})};
    return CUDA_SUCCESS;
}

CUresult cuGraphUpload(CUgraphExec executable, CUstream stream) {
    NEEDS_CONTEXT();
    TRY(may_give(stream, "a graph's upload"));
    if (capture_of(stream)) return refuse_captured(stream, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "a graph's upload");
    return upload(*executable->executable);
}

CUresult cuGraphLaunch(CUgraphExec executable, CUstream stream) {
    NEEDS_CONTEXT();
    TRY(may_give(stream, "a graph's launch"));
    if (capture_of(stream)) return refuse_captured(stream, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "a graph's launch");
    auto kept = executable->executable;
    TRY(upload(*kept));
    log_line("graph %zu", kept->graph->n_launches);
    kept->n_pending++;
    give(stream, [=] {
        kept->graph->run();
        kept->n_pending--;
    });
    return outcome();
}

// Destroyed in a context that died, too.
CUresult cuGraphExecDestroy(CUgraphExec executable) {
    delete executable;
    return outcome();
}

CUresult cuGraphDestroy(CUgraph graph) {
    delete graph;
    return outcome();
}

CUresult cuGraphGetNodes(CUgraph graph, CUgraphNode* nodes, size_t* n_nodes) {
    auto& all = graph->graph->nodes;
    if (nodes) {
        // A handle is the address of a node.
        for (size_t at = 0; at < *n_nodes; at++) nodes[at] = at < all.size() ? reinterpret_cast<CUgraphNode>(&all[at]) : nullptr;
    }
    *n_nodes = nodes ? std::min(*n_nodes, all.size()) : all.size();
    return CUDA_SUCCESS;
}

CUresult cuDeviceGraphMemTrim(CUdevice device) {
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    TRY(may_wait("cuDeviceGraphMemTrim"));
    std::lock_guard<std::mutex> held(memory_lock);
    GraphMemory& memory = memory_of(device);
    // What is not under way takes its memory again when it is launched.
    auto& users = memory.users;
    for (auto at = users.begin(); at != users.end();) at = (*at)->n_pending ? std::next(at) : users.erase(at);
    memory.reserved = memory.used();
    keep_for_graphs(device, memory.reserved);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetGraphMemAttribute(CUdevice device, CUgraphMem_attribute attribute, void* value) {
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    auto n_bytes = static_cast<cuuint64_t*>(value);
    std::lock_guard<std::mutex> held(memory_lock);
    GraphMemory& memory = memory_of(device);
    switch (attribute) {
        case CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT: *n_bytes = memory.used(); break;
        case CU_GRAPH_MEM_ATTR_USED_MEM_HIGH: *n_bytes = memory.used_at_most; break;
        case CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT: *n_bytes = memory.reserved; break;
        case CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH: *n_bytes = memory.reserved_at_most; break;
        default: return refuse(CUDA_ERROR_INVALID_VALUE, "the attribute %d of graphs' memory is not emulated", int(attribute));
    }
    return CUDA_SUCCESS;
}

CUresult cuDeviceSetGraphMemAttribute(CUdevice device, CUgraphMem_attribute attribute, void* value) {
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    if (*static_cast<cuuint64_t*>(value) != 0) return refuse(CUDA_ERROR_INVALID_VALUE, "what graphs had at most is only set to 0");
    std::lock_guard<std::mutex> held(memory_lock);
    GraphMemory& memory = memory_of(device);
    switch (attribute) {
        case CU_GRAPH_MEM_ATTR_USED_MEM_HIGH: memory.used_at_most = memory.used(); break;
        case CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH: memory.reserved_at_most = memory.reserved; break;
        default: return refuse(CUDA_ERROR_INVALID_VALUE, "the attribute %d of graphs' memory cannot be set", int(attribute));
    }
    return CUDA_SUCCESS;
}
