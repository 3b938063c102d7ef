// The kernels that were loaded, by their source file.
#include "launch.h"

namespace emulated {

static std::vector<Source>& registered() {
    static auto whole = new std::vector<Source>;
    return *whole;
}

void add_kernels(const char* source, const Kernel* kernels, size_t count) {
    registered().push_back({source, {kernels, kernels + count}});
}

const std::vector<Source>& sources() { return registered(); }

const Kernel* Source::find(const std::string& name) const {
    for (const Kernel& kernel : kernels) {
        if (name == kernel.name) return &kernel;
    }
    return nullptr;
}

const Kernel* find_kernel(const std::string& name) {
    for (const Source& source : sources()) {
        if (const Kernel* kernel = source.find(name)) return kernel;
    }
    return nullptr;
}

}  // namespace emulated
