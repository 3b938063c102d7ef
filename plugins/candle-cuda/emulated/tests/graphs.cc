// What graphs do when they run, and the memory that they have. What captures refuse is in captures.cc.
//
//   graphs KERNELS.so
#include "machine.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>

static CUstream stream() { return machine.stream; }

static CUdeviceptr allocate(size_t bytes) {
    CUdeviceptr memory;
    done(cuMemAllocAsync(&memory, bytes, stream()));
    return memory;
}

static void release(CUdeviceptr memory) { done(cuMemFreeAsync(memory, stream())); }

static void copy_in(CUdeviceptr to) { done(cuMemcpyHtoDAsync(to, machine.pinned, 4, stream())); }
static void copy_out(CUdeviceptr from) { done(cuMemcpyDtoHAsync(machine.pinned + 1, from, 4, stream())); }

// pinned[1] = 3 · (pinned[0] + 1)².
static void capture_a_bit_of_all() {
    CUdeviceptr x = machine.memory, y = x + 4, z = x + 8;
    float value = 1;
    copy_in(x);
    done(launch_add(stream(), x, y, value));
    value = 100;
    done(cuMemsetD32Async(z, 0, 1, stream()));
    if (square(3, y, z)) abort();
    done(cuMemcpyDtoDAsync(x, z, 4, stream()));
    copy_out(x);
}

static void test_runs() {
    float* pinned = machine.pinned;
    new_log();
    pinned[0] = 1, pinned[1] = -1;
    CUgraphExec graph = graph_of(capture_a_bit_of_all);
    synchronize();
    expect(pinned[1] == -1, "captured work is not done");
    expect(new_log() == "captured copy htod 4\n"
                        "captured launch add blocks 1 threads 1 shared 0\n"
                        "captured memset 4\n"
                        "captured product f32 m 1 n 1 k 1 batch 1\n"
                        "captured copy dtod 4\n"
                        "captured copy dtoh 4\n"
                        "synchronize stream\n",
           "the log says what was captured");
    launch(graph);
    expect((pinned[1] == 12) == !late, "a graph's work is done when its stream comes to it");
    pinned[0] = 2;
    synchronize();
    expect(pinned[1] == (late ? 27 : 12), "a graph reads pinned memory when it runs");
    launch(graph);
    launch(graph);
    done(cuGraphExecDestroy(graph));
    pinned[0] = 4;
    synchronize();
    expect(pinned[1] == (late ? 75 : 27), "a graph that is destroyed after its launch runs");
    expect(new_log() == "graph 2\nsynchronize stream\ngraph 2\ngraph 2\nsynchronize stream\n", "the log says a graph's launch in one line");

    begin();
    capture_a_bit_of_all();
    CUstreamCaptureStatus status;
    done(cuStreamIsCapturing(stream(), &status));
    expect(status == CU_STREAM_CAPTURE_STATUS_ACTIVE, "a stream says that it captures");
    CUgraph whole = end();
    done(cuStreamIsCapturing(stream(), &status));
    expect(status == CU_STREAM_CAPTURE_STATUS_NONE, "and that it does not");
    CUgraphNode nodes[8];
    size_t count = 0, filled = 8;
    done(cuGraphGetNodes(whole, nullptr, &count));
    done(cuGraphGetNodes(whole, nodes, &filled));
    expect(count == 6 && filled == 6 && nodes[5] && !nodes[6], "a graph's nodes");
    done(cuGraphDestroy(whole));

    // Only the launch is the other thread's.
    graph = graph_of([] { done(in_thread([] { return launch_set(stream(), machine.memory, 0, 7); })); });
    launch(graph);
    copy_out(machine.memory);
    synchronize();
    expect(pinned[1] == 7, "another thread's launch is captured");
    done(cuGraphExecDestroy(graph));

    graph = graph_of([] {});
    launch(graph);
    expect(new_log().find("graph 0\n") != std::string::npos, "a graph of nothing");
    done(cuGraphExecDestroy(graph));
}

static void test_memory() {
    float* pinned = machine.pinned;
    CUdeviceptr own = 0;
    CUgraphExec graph = graph_of([&] {
        own = allocate(4);
        copy_out(own);
        done(launch_set(stream(), own, 0, 5));
        done(cuMemcpyDtoHAsync(pinned + 2, own, 4, stream()));
        release(own);
    });
    bool is_new = true, is_set = true;
    for (int run = 0; run < 2; run++) {
        pinned[1] = pinned[2] = 0;
        launch(graph);
        synchronize();
        is_new &= std::isnan(pinned[1]);
        is_set &= pinned[2] == 5;
    }
    expect(is_new, "a graph's memory is new at each run");
    expect(is_set, "a graph's memory holds what its kernels write");
    expect_refused("a copy of a graph's memory outside of it", CUDA_ERROR_INVALID_VALUE, "leaves its allocation",
                   [=] { return cuMemcpyDtoHAsync(machine.pinned, own, 4, stream()); });
    expect_refused("a free of a graph's memory outside of it", CUDA_ERROR_INVALID_VALUE, "was not allocated",
                   [=] { return cuMemFreeAsync(own, stream()); });
    expect_refused("a product of a graph's memory outside of it", CUDA_ERROR_INVALID_VALUE, "a leaves its allocation",
                   [=] { return square(1, own, machine.memory) ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS; });
    expect_end("a kernel that touches a graph's memory outside of it",
               "touches byte 0 of a graph's allocation of 4 bytes, which its graph has not allocated now", [=] {
                   done(launch_add(stream(), own, machine.memory, 0));
                   synchronize();
               });
    done(cuGraphExecDestroy(graph));
    expect_end("a kernel that touches memory of a graph that is gone", "which is no allocation (any more)", [=] {
        done(launch_add(stream(), own, machine.memory, 0));
        synchronize();
    });

    graph = graph_of([&] {
        CUdeviceptr memory = allocate(4);
        release(memory);
        done(launch_add(stream(), memory, machine.memory, 0));
        expect_refused("a copy of what the capture gave back", CUDA_ERROR_INVALID_VALUE, "leaves its allocation",
                       [=] { return cuMemcpyDtoHAsync(machine.pinned, memory, 4, stream()); });
    });
    expect_end("a kernel that touches what the graph gave back before", "which its graph has not allocated now", [=] {
        launch(graph);
        synchronize();
    });
    done(cuGraphExecDestroy(graph));

    graph = graph_of([] {
        CUdeviceptr memory = allocate(4);
        done(launch_set(stream(), memory, 1, 0));
        release(memory);
    });
    expect_end("a kernel that writes behind a graph's memory", "behind the end of a graph's allocation", [=] {
        launch(graph);
        synchronize();
    });
    done(cuGraphExecDestroy(graph));
}

static void test_lost_memory() {
    CUdeviceptr memory = allocate(4);
    float* pinned;
    done(cuMemHostAlloc(reinterpret_cast<void**>(&pinned), 4, 0));
    CUgraphExec fills = graph_of([=] { done(cuMemsetD32Async(memory, 0, 1, stream())); });
    CUgraphExec multiplies = graph_of([=] { if (square(1, memory, memory)) abort(); });
    CUgraphExec copies = graph_of([=] { done(cuMemcpyDtoHAsync(pinned, machine.memory, 4, stream())); });
    release(memory);
    done(cuMemFreeHost(pinned));
    auto run = [](CUgraphExec graph) {
        return [=] {
            launch(graph);
            synchronize();
        };
    };
    expect_end("a graph whose memory was given back fills it", "a fill of 4 bytes touches", run(fills));
    expect_end("a graph whose memory was given back multiplies it", "a product's a of 4 bytes touches", run(multiplies));
    expect_end("a graph whose pinned memory was given back", "a copy to pinned memory of 4 bytes touches", run(copies));
    for (CUgraphExec graph : {fills, multiplies, copies}) done(cuGraphExecDestroy(graph));

    begin();
    allocate(4);
    CUgraph graph = end();
    expect_refused("a graph that does not give all its memory back", CUDA_ERROR_NOT_SUPPORTED, "keeps 1 of its allocations, of 4 bytes", [=] {
        CUgraphExec executable;
        return cuGraphInstantiateWithFlags(&executable, graph, 0);
    });
    expect_refused("flags that are not emulated", CUDA_ERROR_INVALID_VALUE, "the flags 4", [=] {
        CUgraphExec executable;
        return cuGraphInstantiateWithFlags(&executable, graph, CUDA_GRAPH_INSTANTIATE_FLAG_DEVICE_LAUNCH);
    });
    done(cuGraphDestroy(graph));
}

constexpr size_t KIB = 1024;

// A graph with so much memory at once.
static CUgraphExec graph_with(size_t bytes) {
    return graph_of([=] {
        CUdeviceptr first = allocate(bytes / 2), second = allocate(bytes / 2);
        release(first);
        release(second);
        release(allocate(bytes));
    });
}

static bool graphs_have(size_t used, size_t used_at_most, size_t reserved, size_t reserved_at_most) {
    cuuint64_t is[4];
    for (int at = 0; at < 4; at++) done(cuDeviceGetGraphMemAttribute(0, CUgraphMem_attribute(at), &is[at]));
    return is[0] == used * KIB && is[1] == used_at_most * KIB && is[2] == reserved * KIB && is[3] == reserved_at_most * KIB;
}

static size_t free_bytes() {
    size_t free, total;
    done(cuMemGetInfo(&free, &total));
    return free;
}

// The device has 1 MiB.
static void test_memory_counts() {
    done(cuDeviceGraphMemTrim(0));
    for (auto attribute : {CU_GRAPH_MEM_ATTR_USED_MEM_HIGH, CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH}) {
        cuuint64_t zero = 0;
        done(cuDeviceSetGraphMemAttribute(0, attribute, &zero));
    }
    size_t before = free_bytes();
    CUgraphExec small = graph_with(200 * KIB), large = graph_with(600 * KIB), too_large = graph_with(1100 * KIB);
    expect(graphs_have(0, 0, 0, 0) && free_bytes() == before, "a graph that was never launched has no memory");
    done(cuGraphUpload(small, stream()));
    expect(graphs_have(200, 200, 200, 200), "memory from a graph's upload on");
    launch(large);
    expect(graphs_have(600, 600, 600, 600) && free_bytes() == before - 600 * KIB, "graphs share the memory of the largest");
    CUdeviceptr memory;
    expect(cuMemAllocAsync(&memory, 500 * KIB, stream()) == CUDA_ERROR_OUT_OF_MEMORY, "graphs' memory is not for others");
    expect(cuGraphLaunch(too_large, stream()) == CUDA_ERROR_OUT_OF_MEMORY, "a graph for which there is too little memory");
    done(cuGraphExecDestroy(too_large));

    done(cuGraphExecDestroy(large));
    done(cuDeviceGraphMemTrim(0));
    // A run that is not done keeps its memory.
    expect(graphs_have(late ? 600 : 0, 600, late ? 600 : 0, 600), "memory is given back when no graph is under way");
    synchronize();
    expect(graphs_have(0, 600, late ? 600 : 0, 600), "but not before it is asked for");
    done(cuDeviceGraphMemTrim(0));
    expect(graphs_have(0, 600, 0, 600) && free_bytes() == before, "no memory without graphs");
    done(cuMemAllocAsync(&memory, 900 * KIB, stream()));
    expect(cuGraphLaunch(small, stream()) == CUDA_ERROR_OUT_OF_MEMORY, "a graph whose memory others have taken");
    release(memory);
    launch(small);
    expect(graphs_have(200, 600, 200, 600), "a graph takes its memory again");
    synchronize();
    done(cuGraphExecDestroy(small));
    done(cuDeviceGraphMemTrim(0));
}

static void test_reset() {
    CUgraphExec graph = graph_of([] { release(allocate(4 * KIB)); });
    launch(graph);
    begin();
    done(cuDevicePrimaryCtxReset(0));
    expect(graphs_have(0, 0, 0, 0), "a reset device has no memory of graphs");
    expect_refused("a graph of before the reset", CUDA_ERROR_INVALID_VALUE, "before its device was reset",
                   [=] { return cuGraphLaunch(graph, stream()); });
    CUstreamCaptureStatus status;
    done(cuStreamIsCapturing(stream(), &status));
    expect(status == CU_STREAM_CAPTURE_STATUS_NONE, "a reset ends captures");
    done(cuGraphExecDestroy(graph));
}

// The machine's start is three launches; the graph's are two each.
static void test_fatal_launch() {
    start_machine();
    CUgraphExec graph = graph_of(capture_a_bit_of_all);
    launch(graph);
    synchronize();
    CUresult given = cuGraphLaunch(graph, stream());
    expect(late ? given == CUDA_SUCCESS : given == CUDA_ERROR_ILLEGAL_ADDRESS, "a graph in which the fatal launch is");
    expect(cuStreamSynchronize(stream()) == CUDA_ERROR_ILLEGAL_ADDRESS, "a context that died in a graph");
    cuGraphExecDestroy(graph);
    done(cuDevicePrimaryCtxReset(0));
    synchronize();
}

int main(int, char** arguments) {
    if (!dlopen(arguments[1], RTLD_NOW)) {
        printf("%s\n", dlerror());
        return 1;
    }
    char log[] = "/tmp/emulated-cuda-XXXXXX";
    close(mkstemp(log));
    setenv("EMULATED_CUDA_LOG", log, 1);
    setenv("EMULATED_CUDA_MEMORY_BYTES", std::to_string(1024 * KIB).c_str(), 1);
    in_process("EMULATED_CUDA_FATAL_LAUNCH", "6", test_fatal_launch);
    start_machine();
    test_runs();
    test_memory();
    test_lost_memory();
    test_memory_counts();
    test_captures();
    test_reset();
    unlink(log);
    return n_wrong != 0;
}
