// Fibers: stacks that a block's threads run on, one after another on one thread of the system.
#pragma once
#include <cstddef>

namespace emulated {

// A point of execution that was left: its stack pointer, with the registers a call must keep pushed below it.
using Fiber = void*;

// Leaves the running code in `left` and goes on at `next`.
extern "C" void emulated_switch(Fiber* left, Fiber next);

// A stack that ends at a page nobody may touch, so that an overflow stops instead of spoiling its neighbour.
class Stack {
public:
    static constexpr size_t BYTES = 256 * 1024;
    Stack();
    ~Stack();
    Stack(const Stack&) = delete;
    Stack& operator=(const Stack&) = delete;
    // A fiber that begins with `entry` on this empty stack; `entry` must never return.
    Fiber start(void (*entry)());
    bool guards(const void* address) const;

private:
    char* memory;
};

}  // namespace emulated
