#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace emulated {

static constexpr size_t PAGE = 4096;

Stack::Stack() {
    void* mapped = mmap(nullptr, BYTES + PAGE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED || mprotect(mapped, PAGE, PROT_NONE) != 0) {
        fprintf(stderr, "emulated CUDA: no memory for the stack of a device thread\n");
        abort();
    }
    memory = static_cast<char*>(mapped);
}

Stack::~Stack() { munmap(memory, BYTES + PAGE); }

bool Stack::guards(const void* address) const {
    auto at = static_cast<const char*>(address);
    return at >= memory && at < memory + PAGE;
}

#if defined(__x86_64__)

// The System V convention keeps rbx, rbp and r12 to r15 over a call; everything else the compiler has saved itself.
asm(R"(
    .text
    .globl emulated_switch
    .hidden emulated_switch
    .type emulated_switch, @function
emulated_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emulated_switch, .-emulated_switch
)");

Fiber Stack::start(void (*entry)()) {
    auto top = reinterpret_cast<uintptr_t*>(memory + PAGE + BYTES);
    // At a function's first instruction the stack pointer is 8 below a multiple of 16: the return address (none) lies there.
    *--top = 0;
    *--top = reinterpret_cast<uintptr_t>(entry);
    for (int kept = 0; kept < 6; kept++) *--top = 0;
    return top;
}

#elif defined(__aarch64__)

// AAPCS64 keeps x19 to x30 and the low halves of v8 to v15 over a call.
asm(R"(
    .text
    .globl emulated_switch
    .hidden emulated_switch
    .type emulated_switch, %function
emulated_switch:
    stp x19, x20, [sp, #-160]!
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    ldp x19, x20, [sp], #160
    ret
    .size emulated_switch, .-emulated_switch
)");

Fiber Stack::start(void (*entry)()) {
    auto top = reinterpret_cast<uintptr_t*>(memory + PAGE + BYTES) - 20;
    for (int kept = 0; kept < 20; kept++) top[kept] = 0;
    top[11] = reinterpret_cast<uintptr_t>(entry);
    return top;
}

#else
#error "the emulated CUDA driver switches stacks on x86_64 and aarch64 only"
#endif

}  // namespace emulated
