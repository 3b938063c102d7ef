// The points where lanes of a warp meet, and asynchronous copies.
#include <algorithm>
#include <cstring>

#include "inside.h"

namespace emulated {

static void finish(Runner& here, Warp& warp, size_t at, unsigned first_rank) {
    Group group = warp.groups[at];
    warp.groups.erase(warp.groups.begin() + long(at));
    group.together(group.parts, group.arrived);
    for (unsigned lane = 0; lane < WARP; lane++) {
        if (!(group.arrived >> lane & 1)) continue;
        here.tasks[first_rank + lane].state = State::Ready;
    }
}

static size_t find_group(Warp& warp, unsigned mask) {
    for (size_t at = 0; at < warp.groups.size(); at++) {
        if (warp.groups[at].mask == mask) return at;
    }
    warp.groups.push_back(Group{mask, 0, nullptr, "", {}});
    return warp.groups.size() - 1;
}

void meet_warp(unsigned mask, Together together, void* part, const char* operation, Where where) {
    Runner& here = runner();
    Task& task = here.task();
    Warp& warp = here.warps[task.rank / WARP];
    if (!(mask >> task.lane & 1)) fail(where, "%s: the mask 0x%08x lacks the calling lane %u", operation, mask, task.lane);
    size_t at = find_group(warp, mask);
    Group& group = warp.groups[at];
    if (group.together && group.together != together) {
        fail(where, "lanes of one warp meet in different operations: %s and %s", group.operation, operation);
    }
    group.together = together;
    group.operation = operation;
    group.parts[task.lane] = part;
    group.arrived |= 1u << task.lane;
    if (group.arrived == (mask & warp.alive)) {
        finish(here, warp, at, task.rank - task.lane);
        return;
    }
    task.waits = where;
    task.state = State::AtWarp;
    emulated_switch(&task.at, here.scheduler);
}

// CUDA's rules count only lanes that have not ended, so the end of one may let the others go on.
void warp_lane_ended(Runner& here, Task& task) {
    Warp& warp = here.warps[task.rank / WARP];
    warp.alive &= ~(1u << task.lane);
    for (size_t at = warp.groups.size(); at-- > 0;) {
        if (warp.groups[at].arrived == (warp.groups[at].mask & warp.alive)) finish(here, warp, at, task.rank - task.lane);
    }
}

unsigned lanes_alive() {
    Runner& here = runner();
    return here.warps[here.task().rank / WARP].alive;
}

void copy_async(void* to, const void* from, size_t bytes, size_t copied, Where where) {
    check_aligned(to, bytes, "cp.async's target", where);
    check_aligned(from, bytes, "cp.async's source", where);
    if (!is_shared(to, bytes)) fail(where, "cp.async's target %p is not in shared memory", to);
    // What is read before the copy arrived is undefined: it reads as NaN here.
    memset(to, 0xff, bytes);
    Task& task = runner().task();
    task.copies.push_back({to, from, bytes, copied, task.groups_committed});
}

void copy_async_commit() { runner().task().groups_committed++; }

void copy_async_wait(unsigned groups_left) {
    Task& task = runner().task();
    copies_arrive(task, task.groups_committed - std::min(groups_left, task.groups_committed));
}

void copy_async_wait_all() { copies_arrive(runner().task(), ~0u); }

// Those of groups below `groups` arrive.
void copies_arrive(Task& task, unsigned groups) {
    size_t kept = 0;
    for (Copy& copy : task.copies) {
        if (copy.group >= groups) {
            task.copies[kept++] = copy;
            continue;
        }
        memcpy(copy.to, copy.from, copy.copied);
        memset(static_cast<char*>(copy.to) + copy.copied, 0, copy.bytes - copy.copied);
    }
    task.copies.resize(kept);
}

}  // namespace emulated
