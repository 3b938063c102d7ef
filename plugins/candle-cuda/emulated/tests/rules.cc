// Runs the kernels of rules.cu: those that keep the rules give the right numbers, the others end with the right words.
//
//   rules KERNELS.so
#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>

#include "../run/launch.h"

using namespace emulated;

static int n_wrong = 0;

static void expect(bool right, const char* what) {
    printf("%s: %s\n", right ? "ok" : "WRONG", what);
    n_wrong += !right;
}

template <typename... Arguments>
static void run(const char* name, dim3 threads, size_t shared_bytes, Arguments... arguments) {
    const Kernel* kernel = find_kernel(name);
    if (!kernel || kernel->n_arguments != sizeof...(arguments)) abort();
    void* pointers[] = {&arguments...};
    launch(*kernel, 1, threads, shared_bytes, pointers);
}

template <typename T> static T* device(size_t count) {
    return static_cast<T*>(guarded_alloc(count * sizeof(T), "test's allocation"));
}

static uint16_t half(float x) {
    _Float16 narrow = static_cast<_Float16>(x);
    uint16_t bits;
    __builtin_memcpy(&bits, &narrow, sizeof bits);
    return bits;
}

// Runs a kernel that must end the process, and looks for words in what it says.
static void expect_end(const char* what, const char* words, const std::function<void()>& doing) {
    int ends[2];
    if (pipe(ends) != 0) abort();
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2);
        doing();
        guarded_check();
        _exit(0);
    }
    close(ends[1]);
    std::string said;
    char piece[512];
    for (ssize_t n; (n = read(ends[0], piece, sizeof piece)) > 0;) said.append(piece, size_t(n));
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    bool right = WIFSIGNALED(status) && said.find(words) != std::string::npos && said.find("rules.cu:") != std::string::npos;
    expect(right, what);
    if (!right) printf("    wanted '%s', it said:\n%s\n", words, said.c_str());
}

static void right_numbers() {
    constexpr uint32_t N = 1000;
    float *x = device<float>(N), *out = device<float>(16 * 8);
    for (uint32_t i = 0; i < N; i++) x[i] = float(i);
    run("sum_f32", 256, 0, x, out, N);
    expect(*out == N * (N - 1) / 2, "a sum over a block by shuffles and shared memory");

    auto *a = device<uint16_t>(16 * 16), *b = device<uint16_t>(8 * 16);
    for (int i = 0; i < 16 * 16; i++) a[i] = half(float(i * 7 % 23) - 11);
    for (int i = 0; i < 8 * 16; i++) b[i] = half(float(i * 5 % 17) - 8);
    run("product_f16", 32, (16 * 16 + 8 * 16) * 2, a, b, out);
    bool equal = true;
    for (int line = 0; line < 16; line++) {
        for (int column = 0; column < 8; column++) {
            float sum = 0;
            for (int k = 0; k < 16; k++) {
                sum += (float((line * 16 + k) * 7 % 23) - 11) * (float((column * 16 + k) * 5 % 17) - 8);
            }
            equal &= out[line * 8 + column] == sum;
        }
    }
    expect(equal, "a product by cp.async, ldmatrix and mma.sync");

    run("barrier_forgotten", 64, 0, out);
    int n_nan = 0;
    for (int i = 0; i < 64; i++) n_nan += std::isnan(out[i]);
    expect(n_nan > 0, "a forgotten barrier shows as NaN");
    auto* from = device<uint16_t>(8);
    from[0] = half(1);
    run("wait_forgotten", 1, 0, from, a);
    expect(a[0] == 0xffff, "a forgotten wait for cp.async shows as NaN");
}

static void wrong_kernels() {
    float *x = device<float>(64), *out = device<float>(64);
    expect_end("a read behind an allocation", "touches byte 256 of a test's allocation of 256 bytes",
               [=] { run("reads_behind", 1, 0, x, out, 64u); });
    expect_end("an index beyond a shared array", "index 4 is out of bounds", [=] { run("index_beyond", 1, 0, out, 4u); });
    expect_end("an index beyond dynamic shared memory", "touches byte 64 of shared memory 'dynamic', which has 64 bytes",
               [=] { run("dynamic_beyond", 1, 64, out, 16u); });
    expect_end("a vector at the wrong address", "misaligned for", [=] { run("misaligned", 1, 0, x, out); });
    expect_end("a barrier that not all threads reach", "24 threads (the first is number 40) have ended",
               [=] { run("barrier_for_some", 64, 0, out); });
    expect_end("lanes in different operations", "lanes of one warp meet in different operations", [=] { run("lanes_apart", 32, 0, out); });
}

int main(int, char** arguments) {
    if (!dlopen(arguments[1], RTLD_NOW)) {
        printf("%s\n", dlerror());
        return 1;
    }
    right_numbers();
    wrong_kernels();
    return n_wrong != 0;
}
