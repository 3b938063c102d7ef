// The runner's own state: one a thread of the system.
#pragma once
#include <map>
#include <memory>
#include <vector>

#include "fiber.h"
#include "launch.h"

namespace emulated {

enum class State { Fresh, Ready, AtBlock, AtWarp, Ended };

// An asynchronous copy on its way.
struct Copy {
    void* to;
    const void* from;
    size_t bytes, copied;
    unsigned group;
};

struct Task : Thread {
    unsigned rank;  // in the block: x fastest
    State state = State::Fresh;
    Fiber at = nullptr;
    std::unique_ptr<Stack> stack;
    Where waits{"", 0};
    std::vector<Copy> copies;
    unsigned groups_committed = 0;
};

// Lanes that wait for one another in one operation.
struct Group {
    unsigned mask, arrived;
    Together together;
    const char* operation;
    void* parts[WARP];
};

struct Warp {
    unsigned alive = 0;
    std::vector<Group> groups;
};

// A variable's storage: pages of its own, kept from block to block.
struct Shared {
    const char* name;
    size_t bytes;
    char *pages, *start;
    size_t pages_bytes;
    bool in_block;  // the running block has it
};

struct Runner {
    const Kernel* kernel = nullptr;
    void* const* arguments = nullptr;
    Block block;
    std::vector<Task> tasks;
    std::vector<Warp> warps;
    std::vector<std::unique_ptr<Stack>> stacks;
    Fiber scheduler = nullptr;
    unsigned n_at_block = 0, n_ended = 0, n_votes = 0, n_votes_last = 0;
    std::map<const void*, Shared> shared;
    char* dynamic_pages = nullptr;
    char* dynamic_start = nullptr;
    size_t dynamic_bytes = 0;

    ~Runner();
    void run_block();
    void run_warp(unsigned warp);
    void resume(Task& task);
    void release_block();
    [[noreturn]] void stuck();
    Task& task() { return *static_cast<Task*>(current); }
};

Runner& runner();

// shared.cc
void shared_start_block(Runner& runner);
void shared_set_dynamic(Runner& runner, size_t bytes);
bool shared_describe(const void* address, char* text, size_t size);
// warp.cc
void warp_lane_ended(Runner& runner, Task& task);
// copies.cc
void copies_arrive(Task& task, unsigned groups);
// faults.cc
void faults_watch();
// memory.cc: words about an address near an allocation.
bool guarded_describe(const void* address, char* text, size_t size);
// How threads are ordered between meetings: the setting EMULATED_CUDA_ORDER.
const std::vector<unsigned>& order_of_lanes();
bool order_reversed();

}  // namespace emulated
