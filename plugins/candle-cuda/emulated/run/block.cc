// Runs a grid: blocks one after another, the threads of a block as fibers that meet at barriers.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>

#include "inside.h"

namespace emulated {

thread_local Thread* current = nullptr;

Runner& runner() {
    static thread_local Runner here;
    return here;
}

static const char* order_setting() {
    static const char* setting = getenv("EMULATED_CUDA_ORDER");
    return setting ? setting : "forward";
}

bool order_reversed() { return strcmp(order_setting(), "reverse") == 0; }

// A kernel that lacks a barrier may be right in one order only. "reverse" and a number (a seed) give others.
const std::vector<unsigned>& order_of_lanes() {
    static const std::vector<unsigned> order = [] {
        std::vector<unsigned> lanes(WARP);
        std::iota(lanes.begin(), lanes.end(), 0u);
        if (order_reversed()) {
            std::reverse(lanes.begin(), lanes.end());
        } else if (strcmp(order_setting(), "forward") != 0) {
            std::shuffle(lanes.begin(), lanes.end(), std::mt19937(strtoul(order_setting(), nullptr, 10)));
        }
        return lanes;
    }();
    return order;
}

// What every fiber runs. It never returns: the last switch leaves it for good.
static void run_thread() {
    Runner& here = runner();
    here.kernel->call(here.arguments);
    Task& task = here.task();
    copies_arrive(task, ~0u);
    task.state = State::Ended;
    here.n_ended++;
    warp_lane_ended(here, task);
    emulated_switch(&task.at, here.scheduler);
    abort();
}

void Runner::resume(Task& task) {
    if (task.state == State::Fresh) {
        if (stacks.empty()) stacks.push_back(std::make_unique<Stack>());
        task.stack = std::move(stacks.back());
        stacks.pop_back();
        task.at = task.stack->start(run_thread);
    }
    task.state = State::Ready;
    current = &task;
    emulated_switch(&scheduler, task.at);
    current = nullptr;
    if (task.state == State::Ended) stacks.push_back(std::move(task.stack));
}

// Lets a warp's lanes run until each has ended or waits for another warp.
void Runner::run_warp(unsigned warp) {
    for (bool moved = true; moved;) {
        moved = false;
        for (unsigned lane : order_of_lanes()) {
            size_t rank = size_t(warp) * WARP + lane;
            if (rank >= tasks.size()) continue;
            Task& task = tasks[rank];
            if (task.state != State::Fresh && task.state != State::Ready) continue;
            resume(task);
            moved = true;
        }
    }
}

void Runner::release_block() {
    const Task* first = nullptr;
    for (Task& task : tasks) {
        if (task.state == State::Ended) stuck();
        if (!first) first = &task;
        if (task.waits.line != first->waits.line || strcmp(task.waits.file, first->waits.file) != 0) stuck();
        task.state = State::Ready;
    }
    n_at_block = 0;
    n_votes_last = n_votes;
    n_votes = 0;
}

void Runner::run_block() {
    shared_start_block(*this);
    n_at_block = n_ended = n_votes = 0;
    for (Task& task : tasks) {
        task.state = State::Fresh;
        task.copies.clear();
        task.groups_committed = 0;
    }
    for (size_t warp = 0; warp < warps.size(); warp++) {
        size_t lanes = std::min<size_t>(WARP, tasks.size() - warp * WARP);
        warps[warp].alive = lanes == WARP ? ~0u : (1u << lanes) - 1;
        warps[warp].groups.clear();
    }
    while (n_ended < tasks.size()) {
        for (size_t i = 0; i < warps.size(); i++) run_warp(order_reversed() ? warps.size() - 1 - i : i);
        if (n_ended == tasks.size()) break;
        if (n_at_block + n_ended < tasks.size()) stuck();
        release_block();
    }
}

void Runner::stuck() {
    std::string text = "the threads of a block wait for one another for ever:";
    std::map<std::string, std::pair<unsigned, unsigned>> kinds;
    for (const Task& task : tasks) {
        std::string kind = "have ended";
        if (task.state != State::Ended) {
            kind = task.state == State::AtBlock ? "wait for the whole block at " : "wait for lanes of their warp at ";
            kind += std::string(task.waits.file) + ":" + std::to_string(task.waits.line);
        }
        auto& [count, example] = kinds[kind];
        if (count++ == 0) example = task.rank;
    }
    for (auto& [kind, found] : kinds) {
        text += "\n    " + std::to_string(found.first) + " threads (the first is number " + std::to_string(found.second) +
                ") " + kind;
    }
    fail({nullptr, 0}, "%s", text.c_str());
}

static void enter(Runner& here, dim3 threads) {
    size_t count = size_t(threads.x) * threads.y * threads.z;
    if (here.tasks.size() == count && here.block.threads.x == threads.x && here.block.threads.y == threads.y) return;
    here.tasks = std::vector<Task>(count);
    here.warps = std::vector<Warp>((count + WARP - 1) / WARP);
    here.block.threads = threads;
    for (unsigned rank = 0; rank < count; rank++) {
        Task& task = here.tasks[rank];
        task.rank = rank;
        task.lane = rank % WARP;
        task.block = &here.block;
        task.index = {rank % threads.x, rank / threads.x % threads.y, rank / threads.x / threads.y};
    }
}

void launch(const Kernel& kernel, dim3 grid, dim3 threads, size_t shared_bytes, void* const* arguments) {
    faults_watch();
    Runner& here = runner();
    here.kernel = &kernel;
    here.arguments = arguments;
    enter(here, threads);
    here.block.grid = grid;
    shared_set_dynamic(here, shared_bytes);
    for (unsigned z = 0; z < grid.z; z++) {
        for (unsigned y = 0; y < grid.y; y++) {
            for (unsigned x = 0; x < grid.x; x++) {
                here.block.index = {x, y, z};
                here.run_block();
            }
        }
    }
    here.kernel = nullptr;
}

static void wait_block(bool vote, Where where) {
    Runner& here = runner();
    Task& task = here.task();
    task.waits = where;
    task.state = State::AtBlock;
    here.n_at_block++;
    here.n_votes += vote;
    emulated_switch(&task.at, here.scheduler);
}

void meet_block(Where where) { wait_block(false, where); }

unsigned count_block(bool vote, Where where) {
    wait_block(vote, where);
    return runner().n_votes_last;
}

}  // namespace emulated
