// Says where a kernel went wrong: by signal, by the compiler's checks of indices and alignment, or by a rule of the runner.
#include <dlfcn.h>
#include <signal.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "inside.h"

namespace emulated {

// One message at a time; the process ends with the first.
static std::mutex speaking;

static void say_place() {
    const Runner& here = runner();
    if (here.kernel) {
        const uint3& block = here.block.index;
        fprintf(stderr, "  in kernel %s, block (%u, %u, %u)", here.kernel->name, block.x, block.y, block.z);
        if (current) fprintf(stderr, ", thread (%u, %u, %u)", current->index.x, current->index.y, current->index.z);
        fprintf(stderr, "\n");
    }
}

static void say(Where where, const char* text) {
    fprintf(stderr, "emulated CUDA: %s\n", text);
    if (where.file) fprintf(stderr, "  at %s:%d\n", where.file, where.line);
    say_place();
}

void fail(Where where, const char* format, ...) {
    speaking.lock();
    char text[4096];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    say(where, text);
    abort();
}

void check_aligned(const void* address, size_t bytes, const char* what, Where where) {
    if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
        fail(where, "%s: the address %p is not a multiple of %zu", what, address, bytes);
    }
}

// addr2line belongs to the same package as the linker, so it is there where the kernels were compiled.
static void say_line(const void* code) {
    Dl_info found;
    if (!code || !dladdr(code, &found) || !found.dli_fname) return;
    size_t offset = size_t(static_cast<const char*>(code) - static_cast<const char*>(found.dli_fbase));
    char command[1024];
    snprintf(command, sizeof command, "addr2line -C -i -p -f -e '%s' 0x%zx | head -4 | sed 's/^/  /' >&2", found.dli_fname,
             offset);
    fflush(stderr);
    if (system(command) != 0) fprintf(stderr, "  at %s + 0x%zx\n", found.dli_fname, offset);
}

static const void* instruction(const void* context) {
    auto registers = static_cast<const ucontext_t*>(context);
#if defined(__x86_64__)
    return reinterpret_cast<const void*>(registers->uc_mcontext.gregs[REG_RIP]);
#else
    return reinterpret_cast<const void*>(registers->uc_mcontext.pc);
#endif
}

static struct sigaction before[NSIG];

static void on_signal(int number, siginfo_t* info, void* context) {
    if (!current) {
        sigaction(number, &before[number], nullptr);
        return;  // the instruction runs again and meets the handler that was here first
    }
    const void* address = info->si_addr;
    char place[256];
    char text[512];
    auto task = static_cast<Task*>(current);
    if (number == SIGFPE) {
        snprintf(text, sizeof text, "integer division by zero");
    } else if (task->stack && task->stack->guards(address)) {
        snprintf(text, sizeof text, "a device thread needs more than %zu bytes of stack", Stack::BYTES);
    } else if (guarded_describe(address, place, sizeof place) || shared_describe(address, place, sizeof place)) {
        snprintf(text, sizeof text, "a kernel touches %s", place);
    } else {
        snprintf(text, sizeof text, "a kernel touches %p, which is no allocation (any more)", address);
    }
    speaking.lock();
    say({nullptr, 0}, text);
    say_line(instruction(context));
    signal(SIGABRT, SIG_DFL);
    abort();
}

static void give_signal_stack() {
    static thread_local char* own = nullptr;
    stack_t now;
    if (own || sigaltstack(nullptr, &now) != 0 || !(now.ss_flags & SS_DISABLE)) return;
    constexpr size_t BYTES = 64 * 1024;
    own = static_cast<char*>(malloc(BYTES));
    stack_t mine = {};
    mine.ss_sp = own;
    mine.ss_size = BYTES;
    sigaltstack(&mine, nullptr);
}

void faults_watch() {
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction action = {};
        action.sa_sigaction = on_signal;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        for (int number : {SIGSEGV, SIGBUS, SIGFPE}) sigaction(number, &action, &before[number]);
    });
    give_signal_stack();
}

}  // namespace emulated

// The compiler's own checks (-fsanitize=bounds,alignment) call these; the layout of their data is the compiler's.
namespace {
struct Source {
    const char* file;
    uint32_t line, column;
    emulated::Where where() const { return {file, int(line)}; }
};
struct Type {
    uint16_t kind, info;
    char name[1];
};
struct Bounds {
    Source source;
    const Type *array, *index;
};
struct Mismatch {
    Source source;
    const Type* type;
    unsigned char log_alignment, access;
};
}  // namespace

extern "C" void __ubsan_handle_out_of_bounds_abort(Bounds* found, uintptr_t index) {
    emulated::fail(found->source.where(), "index %zd is out of bounds of %s", ssize_t(index), found->array->name);
}

extern "C" void __ubsan_handle_type_mismatch_v1_abort(Mismatch* found, uintptr_t address) {
    emulated::fail(found->source.where(), "%p is %s %s, which needs a multiple of %u", reinterpret_cast<void*>(address),
                   address ? "misaligned for" : "a null pointer to", found->type->name, 1u << found->log_alignment);
}
