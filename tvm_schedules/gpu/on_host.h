// Runs a kernel on a CPU, for tests: block after block, a block's threads as fibers that change at barriers.
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#define DEVICE static inline
#define __shared__ static
#define DYNAMIC_SHARED(name, bytes) alignas(128) static char name[bytes];
#define KERNEL(name)                               \
    static void name(const Arguments);             \
    static void fiber() {                          \
        name(*given);                              \
        host::fibers[threadIdx.x].done = true;     \
    }                                              \
    static void name

struct alignas(16) Quad {
    unsigned x, y, z, w;
};
struct alignas(8) Pair {
    unsigned x, y;
};
typedef unsigned long long Barrier;

struct Index {
    int x, y, z;
};
static Index threadIdx, blockIdx, gridDim;

namespace host {
constexpr int THREADS = 32 * WARPS, STACK = 1 << 16;
struct Fiber {
    ucontext_t context;
    bool done;
    std::vector<char> stack = std::vector<char>(STACK);
};
static std::vector<Fiber> fibers(THREADS);
static ucontext_t scheduler;

struct Barrier {
    int waiting = 0, generation = 0;
    void arrive(int all) {
        if (++waiting == all) {
            waiting = 0;
            ++generation;
        }
    }
    void wait(int all) {
        const int mine = generation;
        arrive(all);
        while (generation == mine) swapcontext(&fibers[threadIdx.x].context, &scheduler);
    }
};
static Barrier block, warps[WARPS], numbered[16];

static float wide(unsigned half) {
    const uint32_t bits = half << 16;
    float found;
    std::memcpy(&found, &bits, 4);
    return found;
}
static uint16_t narrow(float value) {  // to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (value != value) return 0x7FFF;
    return uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
}  // namespace host

static void __syncthreads() { host::block.wait(host::THREADS); }
static void __syncwarp() { host::warps[threadIdx.x / 32].wait(32); }
static int same_in_warp(int value) { return value; }
static bool is_one_of_warp() { return threadIdx.x % 32 == 0; }
static void arrive_at(int barrier, int threads) { host::numbered[barrier].arrive(threads); }
static void wait_at(int barrier, int threads) { host::numbered[barrier].wait(threads); }
static void __threadfence() {}
static int atomicAdd(int *at, int more) {
    const int before = *at;
    *at += more;
    return before;
}

static void multiply_tile(float (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    static float a[WARPS][16][16], b[WARPS][16][8];
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    const unsigned parts[6] = {a0, a1, a2, a3, b0, b1};
    for (int i = 0; i < 12; ++i) {
        const float value = host::wide(parts[i / 2] >> 16 * (i % 2) & 0xFFFF);
        const int part = i / 2, k = 2 * q + i % 2;
        if (part < 4)
            a[warp][g + 8 * (part % 2)][k + 8 * (part / 2)] = value;
        else
            b[warp][k + 8 * (part - 4)][g] = value;
    }
    host::warps[warp].wait(32);
    for (int i = 0; i < 4; ++i) {
        double sum = d[i];
        for (int k = 0; k < 16; ++k) sum += double(a[warp][g + 8 * (i / 2)][k]) * b[warp][k][2 * q + i % 2];
        d[i] = float(sum);
    }
    host::warps[warp].wait(32);
}

static void multiply_bytes(int (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    static int a[WARPS][16][32], b[WARPS][32][8];
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    const unsigned parts[6] = {a0, a1, a2, a3, b0, b1};
    for (int i = 0; i < 24; ++i) {
        const int byte = int(parts[i / 4] >> 8 * (i % 4) & 0xFF), part = i / 4, k = 4 * q + i % 4;
        if (part < 4)
            a[warp][g + 8 * (part % 2)][k + 16 * (part / 2)] = byte;
        else
            b[warp][k + 16 * (part - 4)][g] = byte < 128 ? byte : byte - 256;
    }
    host::warps[warp].wait(32);
    for (int i = 0; i < 4; ++i)
        for (int k = 0; k < 32; ++k) d[i] += a[warp][g + 8 * (i / 2)][k] * b[warp][k][2 * q + i % 2];
    host::warps[warp].wait(32);
}

static unsigned enlarge(unsigned pair) {
    const float low = std::ldexp(host::wide(pair & 0xFFFF), 80), high = std::ldexp(host::wide(pair >> 16), 80);
    return host::narrow(low) | unsigned(host::narrow(high)) << 16;
}

template <int BYTES>
static void copy_async(char *to, const char *from) {
    std::memcpy(to, from, BYTES);
}
static void copies_end() {}
template <int PENDING>
static void copies_wait() {}

// A bulk copy is over when it was asked for, but lanes that wait run before the one that asks.
static void begin_barrier(Barrier *) {}
static void barriers_begun() {}
static void expect(Barrier *, int) {}
static void copy_bulk(char *to, const void *from, int bytes, Barrier *) { std::memcpy(to, from, bytes); }
static void wait_for(Barrier *, int) { __syncwarp(); }

template <typename T>
static T exchange(T value, int bits) {
    static T given_by[WARPS][32];
    T(&own)[32] = given_by[threadIdx.x / 32];
    own[threadIdx.x % 32] = value;
    __syncwarp();
    const T found = own[threadIdx.x % 32 ^ bits];
    __syncwarp();
    return found;
}
template <typename T>
static T given_by(T value, int lane) {
    static T given[WARPS][32];
    T(&own)[32] = given[threadIdx.x / 32];
    own[threadIdx.x % 32] = value;
    __syncwarp();
    const T found = own[lane];
    __syncwarp();
    return found;
}
static void touch(const void *) {}
static unsigned lanes_where(bool is_so) {
    unsigned found = unsigned(is_so) << threadIdx.x % 32;
    for (int other = 16; other; other /= 2) found |= exchange(found, other);
    return found;
}
static int ones_of(unsigned bits) { return __builtin_popcount(bits); }
static int first_of(unsigned bits) { return __builtin_ffs(bits) - 1; }
static unsigned max_of(unsigned a, unsigned b) { return a > b ? a : b; }
static unsigned max_of_lanes(unsigned value) {
    for (int other = 16; other; other /= 2) value = max_of(value, exchange(value, other));
    return value;
}
static unsigned float_to_bits(float value) {
    unsigned found;
    std::memcpy(&found, &value, 4);
    return found;
}
static float bits_to_float(unsigned bits) {
    float found;
    std::memcpy(&found, &bits, 4);
    return found;
}
static int to_int(float value) { return std::isfinite(value) ? int(std::nearbyint(value)) : 0; }

static unsigned short to_bfloat16(float value) { return host::narrow(value); }
static float half_to_float(unsigned bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const float size = exponent ? std::ldexp(1024.0f + mantissa, exponent - 25) : std::ldexp(float(mantissa), -24);
    return bits >> 15 & 1 ? -size : size;
}
static float exponential(float value) { return std::exp(value); }
template <typename T>
static T load_shared_by_all(const T *from) {
    return *from;
}
static void wait_for_launch_before() {}
static void let_next_launch_start() {}

struct Arguments;
static const Arguments *given;
static void fiber();

extern "C" void launch(const Arguments *arguments, int x, int y, int z) {
    given = arguments;
    gridDim = {x, y, z};
    for (blockIdx.z = 0; blockIdx.z < z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < x; ++blockIdx.x) {
                for (host::Fiber &fiber : host::fibers) {
                    getcontext(&fiber.context);
                    fiber.context.uc_stack = {.ss_sp = fiber.stack.data(), .ss_flags = 0, .ss_size = host::STACK};
                    fiber.context.uc_link = &host::scheduler;
                    fiber.done = false;
                    makecontext(&fiber.context, ::fiber, 0);
                }
                for (int left = host::THREADS; left;)
                    for (threadIdx.x = 0; threadIdx.x < host::THREADS; ++threadIdx.x) {
                        host::Fiber &fiber = host::fibers[threadIdx.x];
                        if (fiber.done) continue;
                        swapcontext(&host::scheduler, &fiber.context);
                        left -= fiber.done;
                    }
            }
}
