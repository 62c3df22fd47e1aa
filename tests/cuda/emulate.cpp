// Runs src/kernels/cuda/kernels.cu, unchanged, on the CPU: a fiber for each thread of a block, one block after the other.
// A fiber runs until it waits in __syncthreads() or ends; when all have, the next round begins. Threads go in order or, by
// `backwards`, in reverse, blocks too: a kernel that lacks a barrier, or whose blocks meddle with each other, gives other
// bytes then.
//
// launch_NAME(grid, block, arguments) takes what the driver's cuLaunchKernel takes: pointers to the arguments. It gives 0,
// or 1 where some threads ended while others waited, or 2 where no device would take the launch.

#include <math.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <memory>
#include <utility>
#include <vector>

struct bf16 { uint16_t bits; };

static float wide(bf16 x) {
    const uint32_t bits = (uint32_t)x.bits << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

// To the nearest, of two to the even one; the device has one NaN.
static void nearest(float x, bf16& y) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    y.bits = x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// Tests run side by side, so all that a launch uses is its system thread's own.
struct Three { unsigned x, y, z; };
static thread_local Three threadIdx, blockIdx, blockDim, gridDim;

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    bool done;
};

const size_t STACK = 64 * 1024;
static thread_local std::vector<std::unique_ptr<Fiber>> fibers;
static thread_local ucontext_t scheduler;
static thread_local Fiber* current;
static thread_local std::function<void()> body;
static thread_local bool reversed;

static void __syncthreads() { swapcontext(&current->context, &scheduler); }

#define __global__
#define __device__
#define __shared__ static thread_local

#include "../../src/kernels/cuda/kernels.cu"

static void enter() {
    body();
    current->done = true; // and on to uc_link, the scheduler
}

static Three place(unsigned index, Three size) {
    return {index % size.x, index / size.x % size.y, index / size.x / size.y};
}

static unsigned turned(unsigned index, unsigned count) { return reversed ? count - 1 - index : index; }

// Whether all threads passed the same barriers.
static bool run_block(unsigned count) {
    while (fibers.size() < count) fibers.emplace_back(new Fiber{{}, std::unique_ptr<char[]>(new char[STACK]), false});
    for (unsigned i = 0; i < count; i++) {
        Fiber& fiber = *fibers[i];
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = STACK;
        fiber.context.uc_link = &scheduler;
        fiber.done = false;
        makecontext(&fiber.context, enter, 0);
    }
    for (;;) {
        unsigned done = 0;
        for (unsigned i = 0; i < count; i++) {
            const unsigned index = turned(i, count);
            current = fibers[index].get();
            threadIdx = place(index, blockDim);
            swapcontext(&scheduler, &current->context);
            done += current->done;
        }
        if (done) return done == count;
    }
}

template <typename... A, size_t... I>
static int launch(void (*kernel)(A...), const unsigned* grid, const unsigned* block, void** arguments, std::index_sequence<I...>) {
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    const uint64_t count = (uint64_t)block[0] * block[1] * block[2], blocks = (uint64_t)grid[0] * grid[1] * grid[2];
    if (count < 1 || count > 1024 || blocks < 1 || grid[0] > INT32_MAX || grid[1] > 65535 || grid[2] > 65535) return 2;
    body = [=] { kernel(*(A*)arguments[I]...); };
    for (unsigned i = 0; i < blocks; i++) {
        blockIdx = place(turned(i, blocks), gridDim);
        if (!run_block(count)) return 1;
    }
    return 0;
}

template <typename... A>
static int launch(void (*kernel)(A...), const unsigned* grid, const unsigned* block, void** arguments) {
    return launch(kernel, grid, block, arguments, std::index_sequence_for<A...>());
}

extern "C" void backwards(int whether) { reversed = whether; }

// Two kernels that are wrong, for a test of the above.

// y is x backwards, but for a barrier.
extern "C" void careless(const float* x, float* y) {
    __shared__ float all[64];
    all[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = all[63 - threadIdx.x];
}

extern "C" void divergent(const float*, float*) {
    if (threadIdx.x < 32) __syncthreads();
}

#define ONE(NAME)                                                                               \
    extern "C" int launch_##NAME(const unsigned* grid, const unsigned* block, void** arguments) \
    { return launch(NAME, grid, block, arguments); }
#define TWO(NAME)                                                                                     \
    extern "C" int launch_##NAME##_f32(const unsigned* grid, const unsigned* block, void** arguments)  \
    { return launch(as_f32::NAME##_f32, grid, block, arguments); }                                    \
    extern "C" int launch_##NAME##_bf16(const unsigned* grid, const unsigned* block, void** arguments) \
    { return launch(as_bf16::NAME##_bf16, grid, block, arguments); }

TWO(turn_in) TWO(turn_out) ONE(narrow) ONE(widen)
TWO(moments) ONE(moments_end) TWO(column_sums) ONE(column_total)
ONE(line) TWO(normalise) TWO(norm_sums) ONE(norm_factors) TWO(norm_back)
TWO(activate) TWO(activate_back) TWO(add) TWO(multiply) TWO(bias)
TWO(max_pool) TWO(max_pool_back) TWO(mean_pool) TWO(mean_pool_back) TWO(global_pool) TWO(global_pool_back)
ONE(sgd) ONE(adam) ONE(squares) ONE(images)
ONE(cross_entropy) ONE(distill) ONE(kl_to) ONE(contrast) ONE(mean) ONE(scaled)
ONE(careless) ONE(divergent)
