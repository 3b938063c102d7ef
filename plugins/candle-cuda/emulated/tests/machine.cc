#include "machine.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <thread>

int n_wrong = 0;
bool late = false;
Machine machine;

void expect(bool right, const char* what) {
    printf("%s: %s\n", right ? "ok" : "WRONG", what);
    n_wrong += !right;
}

void done(CUresult result) {
    if (result == CUDA_SUCCESS) return;
    printf("error %d\n", int(result));
    exit(1);
}

static std::string all_of(const char* path) {
    std::ifstream file(path);
    return std::string(std::istreambuf_iterator<char>(file), {});
}

// What `doing` says on stderr.
static std::string said_by(const std::function<void()>& doing) {
    char path[] = "/tmp/emulated-cuda-XXXXXX";
    int file = mkstemp(path), before = dup(2);
    dup2(file, 2);
    doing();
    dup2(before, 2);
    close(before);
    close(file);
    std::string said = all_of(path);
    unlink(path);
    return said;
}

void expect_refused(const char* what, CUresult error, const char* words, const std::function<CUresult()>& call) {
    CUresult result = CUDA_SUCCESS;
    std::string said = said_by([&] { result = call(); });
    bool right = result == error && said.find(words) != std::string::npos;
    expect(right, what);
    if (!right) printf("    wanted %d and '%s', it was %d and said:\n%s\n", int(error), words, int(result), said.c_str());
}

void expect_end(const char* what, const char* words, const std::function<void()>& doing) {
    int status = 0;
    fflush(stdout);
    std::string said = said_by([&] {
        pid_t child = fork();
        if (child == 0) {
            doing();
            _exit(0);
        }
        waitpid(child, &status, 0);
    });
    bool right = WIFSIGNALED(status) && said.find(words) != std::string::npos;
    expect(right, what);
    if (!right) printf("    wanted '%s', it said:\n%s\n", words, said.c_str());
}

void in_process(const char* variable, const char* value, const std::function<void()>& doing) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        setenv(variable, value, 1);
        doing();
        fflush(stdout);
        _exit(n_wrong != 0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    n_wrong += status != 0;
}

CUresult in_thread(const std::function<CUresult()>& call) {
    CUresult result;
    std::thread([&] {
        done(cuCtxSetCurrent(machine.context));
        result = call();
    }).join();
    return result;
}

void start_machine() {
    const char* setting = getenv("EMULATED_CUDA_LATE");
    late = setting && std::string(setting) == "1";
    done(cuInit(0));
    done(cuDevicePrimaryCtxRetain(&machine.context, 0));
    done(cuCtxSetCurrent(machine.context));
    done(cuStreamCreate(&machine.stream, CU_STREAM_NON_BLOCKING));
    done(cuModuleLoadData(&machine.module, ".version 8.0 .entry add( .entry set( .entry never_launched( "));
    done(cuModuleGetFunction(&machine.add, machine.module, "add"));
    done(cuModuleGetFunction(&machine.set, machine.module, "set"));
    done(cuModuleGetFunction(&machine.never_launched, machine.module, "never_launched"));
    done(cuMemAlloc(&machine.memory, 16 * sizeof(float)));
    done(cuMemHostAlloc(reinterpret_cast<void**>(&machine.pinned), 16 * sizeof(float), 0));
    if (cublasCreate(&machine.blas) || cublasSetStream(machine.blas, machine.stream)) abort();
    CUdeviceptr workspace;
    done(cuMemAlloc(&workspace, 4096));
    if (cublasSetWorkspace(machine.blas, reinterpret_cast<void*>(workspace), 4096)) abort();
    // Who captures warms up.
    done(cuMemsetD32Async(machine.memory, 0, 16, machine.stream));
    done(launch_add(machine.stream, machine.memory, machine.memory, 0));
    done(launch_set(machine.stream, machine.memory, 0, 0));
    if (square(1, machine.memory, machine.memory)) abort();
    synchronize();
}

static CUresult launch_one(CUfunction function, CUstream stream, void** arguments) {
    return cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream, arguments, nullptr);
}

CUresult launch_add(CUstream stream, CUdeviceptr x, CUdeviceptr out, float value) {
    void* arguments[] = {&x, &out, &value};
    return launch_one(machine.add, stream, arguments);
}

CUresult launch_set(CUstream stream, CUdeviceptr out, unsigned at, float value) {
    void* arguments[] = {&out, &at, &value};
    return launch_one(machine.set, stream, arguments);
}

cublasStatus_t square(float alpha, CUdeviceptr x, CUdeviceptr out) {
    auto a = reinterpret_cast<const float*>(x);
    float beta = 0;
    return cublasSgemm(machine.blas, CUBLAS_OP_N, CUBLAS_OP_N, 1, 1, 1, &alpha, a, 1, a, 1, &beta, reinterpret_cast<float*>(out), 1);
}

void begin(CUstreamCaptureMode mode) { done(cuStreamBeginCapture(machine.stream, mode)); }

CUgraph end() {
    CUgraph graph;
    done(cuStreamEndCapture(machine.stream, &graph));
    return graph;
}

CUgraphExec graph_of(const std::function<void()>& work) {
    CUgraphExec executable;
    begin();
    work();
    CUgraph graph = end();
    done(cuGraphInstantiateWithFlags(&executable, graph, 0));
    done(cuGraphDestroy(graph));
    return executable;
}

void launch(CUgraphExec graph) { done(cuGraphLaunch(graph, machine.stream)); }

void synchronize() { done(cuStreamSynchronize(machine.stream)); }

std::string new_log() {
    static size_t seen = 0;
    std::string whole = all_of(getenv("EMULATED_CUDA_LOG")), added = whole.substr(seen);
    seen = whole.size();
    return added;
}
