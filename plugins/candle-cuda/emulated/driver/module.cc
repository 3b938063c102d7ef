// Modules and launches. A module's PTX only says which kernels it has: what runs is the kernel of the same name that was
// compiled for the host.
#include <dirent.h>
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "driver.h"

using namespace emulated;
using std::string;

struct CUfunc_st {
    const Kernel* kernel;
    size_t shared_bytes_max;
    // Its first launch loads it, for which a GPU may have to be idle.
    std::atomic<bool> was_launched{false};
    CUfunc_st(const Kernel* kernel, size_t shared_bytes_max) : kernel(kernel), shared_bytes_max(shared_bytes_max) {}
};

struct CUmod_st {
    std::set<string> entries;
    const Source* source;
    std::map<string, CUfunc_st> functions;
};

namespace {

constexpr size_t SHARED_BYTES_UNASKED = 48 * 1024;
constexpr size_t SHARED_BYTES_MAX = 99 * 1024;
constexpr unsigned THREADS_MAX = 1024;
constexpr unsigned GRID_YZ_MAX = 65535;

// Libraries of kernels lie beside this one, and are named *.kernels.so.
void load_kernels() {
    Dl_info self;
    if (!dladdr(reinterpret_cast<void*>(load_kernels), &self)) abort();
    string folder = self.dli_fname;
    folder.resize(folder.find_last_of('/') + 1);
    DIR* listing = opendir(folder.c_str());
    std::set<string> names;
    for (dirent* entry; listing && (entry = readdir(listing));) {
        string name = entry->d_name;
        const string suffix = ".kernels.so";
        if (name.size() > suffix.size() && name.compare(name.size() - suffix.size(), suffix.size(), suffix) == 0) names.insert(name);
    }
    if (listing) closedir(listing);
    for (const string& name : names) {
        if (dlopen((folder + name).c_str(), RTLD_NOW | RTLD_LOCAL)) continue;
        fprintf(stderr, "emulated CUDA: %s\n", dlerror());
        abort();
    }
}

// The names behind `.entry` in PTX.
std::set<string> read_entries(const char* ptx) {
    std::set<string> entries;
    for (const char* at = ptx; (at = strstr(at, ".entry ")); at++) {
        at += strlen(".entry ");
        entries.insert(string(at, strcspn(at, "( \t\n")));
    }
    return entries;
}

// The source that has most of these kernels: names may be the same in two.
const Source* find_source(const std::set<string>& entries) {
    const Source* best = nullptr;
    size_t most = 0;
    for (const Source& source : sources()) {
        size_t count = 0;
        for (const Kernel& kernel : source.kernels) count += entries.count(kernel.name);
        if (count > most) {
            most = count;
            best = &source;
        }
    }
    return best;
}

CUresult load(CUmodule* module, const void* image) {
    NEEDS_CONTEXT();
    TRY(may_wait("the loading of a module"));
    static std::once_flag once;
    std::call_once(once, load_kernels);
    auto ptx = static_cast<const char*>(image);
    // Code for a real GPU. Who brings it has PTX, too, for GPUs that it does not fit.
    if (memcmp(ptx, "\177ELF", 4) == 0) return CUDA_ERROR_NO_BINARY_FOR_GPU;
    if (!strstr(ptx, ".version")) {
        return refuse(CUDA_ERROR_INVALID_IMAGE, "the emulated driver reads PTX only, and this module is something else");
    }
    std::set<string> entries = read_entries(ptx);
    const Source* source = find_source(entries);
    *module = new CUmod_st{entries, source, {}};
    return CUDA_SUCCESS;
}

bool is_launchable(const CUfunc_st& function, dim3 grid, dim3 threads, size_t shared_bytes) {
    const Kernel& kernel = *function.kernel;
    size_t count = size_t(threads.x) * threads.y * threads.z;
    const char* why = nullptr;
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > GRID_YZ_MAX || grid.z > GRID_YZ_MAX) why = "its grid";
    if (count == 0 || count > THREADS_MAX || threads.z > 64) why = "its number of threads";
    if (kernel.max_threads && count > kernel.max_threads) why = "more threads than __launch_bounds__ says";
    if (shared_bytes > function.shared_bytes_max) why = "more dynamic shared memory than cuFuncSetAttribute asked for";
    if (!why) return true;
    refuse(CUDA_ERROR_INVALID_VALUE, "%s is launched with a grid of %u × %u × %u blocks of %u × %u × %u threads, %zu bytes: %s",
           kernel.name, grid.x, grid.y, grid.z, threads.x, threads.y, threads.z, shared_bytes, why);
    return false;
}

// Who captures a launch makes one before.
CUresult load_lazily(CUfunction function, CUstream stream) {
    if (!function->was_launched) {
        TRY(may_wait("a kernel's first launch"));
        auto capture = capture_of(stream);
        if (capture && capture->mode != CaptureMode::Relaxed) {
            return refuse_captured(stream, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "a kernel's first launch");
        }
        function->was_launched = true;
    }
    return CUDA_SUCCESS;
}

}  // namespace

CUresult cuModuleLoadData(CUmodule* module, const void* image) { return load(module, image); }

CUresult cuModuleLoad(CUmodule* module, const char* path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) return CUDA_ERROR_FILE_NOT_FOUND;
    string image(std::istreambuf_iterator<char>(file), {});
    return load(module, image.c_str());
}

CUresult cuModuleUnload(CUmodule module) {
    NEEDS_CONTEXT();
    TRY(may_wait("cuModuleUnload"));
    finish_all();
    delete module;
    return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
    NEEDS_CONTEXT();
    // Not said aloud: to ask each module in turn is a way to look for a kernel.
    if (!module->entries.count(name)) return CUDA_ERROR_NOT_FOUND;
    const Kernel* kernel = module->source ? module->source->find(name) : nullptr;
    if (!kernel) {
        fprintf(stderr, "emulated CUDA: the kernel '%s' was not compiled for the host\n", name);
        abort();
    }
    auto [at, added] = module->functions.try_emplace(name, kernel, SHARED_BYTES_UNASKED);
    *function = &at->second;
    return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction function) {
    NEEDS_CONTEXT();
    switch (attribute) {
        case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
            *value = int(function->kernel->max_threads ? function->kernel->max_threads : THREADS_MAX);
            break;
        case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *value = int(function->shared_bytes_max); break;
        default: return refuse(CUDA_ERROR_INVALID_VALUE, "the function attribute %d is not emulated", int(attribute));
    }
    return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
    NEEDS_CONTEXT();
    if (attribute == CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT) return CUDA_SUCCESS;
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
        return refuse(CUDA_ERROR_INVALID_VALUE, "the function attribute %d is not emulated", int(attribute));
    }
    if (value < 0 || size_t(value) > SHARED_BYTES_MAX) {
        return refuse(CUDA_ERROR_INVALID_VALUE, "%d bytes of shared memory, of %zu that every GPU has", value, SHARED_BYTES_MAX);
    }
    function->shared_bytes_max = size_t(value);
    return CUDA_SUCCESS;
}

CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }

// A launch's arguments as they are when it is given.
class Arguments {
public:
    Arguments(const Kernel& kernel, void* const* arguments) {
        for (unsigned at = 0; at < kernel.n_arguments; at++) {
            auto first = static_cast<const char*>(arguments[at]);
            // Each in memory of its own, so aligned as any type wants.
            values.emplace_back(first, first + kernel.sizes[at]);
        }
    }
    std::vector<void*> pointers() {
        std::vector<void*> all;
        for (auto& value : values) all.push_back(value.data());
        return all;
    }

private:
    std::vector<std::vector<char>> values;
};

CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned threads_x,
                        unsigned threads_y, unsigned threads_z, unsigned shared_bytes, CUstream stream, void** arguments,
                        void** extra) {
    NEEDS_CONTEXT();
    TRY(may_give(stream, "a launch"));
    dim3 grid(grid_x, grid_y, grid_z), threads(threads_x, threads_y, threads_z);
    if (extra) missing("cuLaunchKernel with its arguments in one buffer");
    if (!is_launchable(*function, grid, threads, shared_bytes)) return CUDA_ERROR_INVALID_VALUE;
    TRY(load_lazily(function, stream));
    const Kernel* kernel = function->kernel;
    log_line("%slaunch %s blocks %zu threads %zu shared %u", captured(stream), kernel->name, size_t(grid_x) * grid_y * grid_z,
             size_t(threads_x) * threads_y * threads_z, shared_bytes);
    give_launch(stream, [=, copied = Arguments(*kernel, arguments)]() mutable {
        launch(*kernel, grid, threads, shared_bytes, copied.pointers().data());
    });
    return outcome();
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction, int threads, size_t shared_bytes) {
    NEEDS_CONTEXT();
    size_t by_shared = shared_bytes ? SHARED_BYTES_MAX / shared_bytes : 16;
    *blocks = int(std::min<size_t>({by_shared, 1536 / size_t(threads), 16}));
    return CUDA_SUCCESS;
}
