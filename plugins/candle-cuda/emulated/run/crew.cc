// Threads of the system that run blocks of a grid beside the thread that launched it.
#include <condition_variable>
#include <mutex>
#include <thread>

#include "inside.h"
#include "state.h"

namespace emulated {

namespace {

// A grid of fewer blocks is not worth waking anyone.
constexpr size_t BLOCKS_MIN = 8;

class Crew {
public:
    Crew() {
        for (int i = 1; i < settings().threads; i++) std::thread(&Crew::serve, this).detach();
    }

    // One launch at a time: the caller holds execution().
    void run(Launch& launch) {
        {
            std::lock_guard<std::mutex> held(lock);
            work = &launch;
            n_launches++;
            n_busy = settings().threads - 1;
        }
        wake.notify_all();
        runner().take_part(launch);
        std::unique_lock<std::mutex> held(lock);
        done.wait(held, [this] { return n_busy == 0; });
    }

private:
    std::mutex lock;
    std::condition_variable wake, done;
    Launch* work = nullptr;
    size_t n_launches = 0;
    int n_busy = 0;

    void serve() {
        for (size_t seen = 0;;) {
            std::unique_lock<std::mutex> held(lock);
            wake.wait(held, [&] { return n_launches != seen; });
            seen = n_launches;
            held.unlock();
            runner().take_part(*work);
            held.lock();
            if (--n_busy == 0) done.notify_one();
        }
    }
};

}  // namespace

void crew_run(Launch& launch) {
    if (launch.n_blocks < BLOCKS_MIN || settings().threads < 2) {
        runner().take_part(launch);
        return;
    }
    // Never destroyed: its threads wait until the process ends.
    static auto crew = new Crew;
    crew->run(launch);
}

}  // namespace emulated
