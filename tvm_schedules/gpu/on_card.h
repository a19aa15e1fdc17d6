// What the kernels need of an NVIDIA GPU of compute capability 9.0 or later, as PTX. on_host.h has the same for a CPU.
#define DEVICE __device__ __forceinline__
#define KERNEL(name) extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS) name
#define DYNAMIC_SHARED(name, bytes) extern __shared__ __align__(128) char name[];  // the launch gives the bytes

struct alignas(16) Quad {
    unsigned x, y, z, w;
};
struct alignas(8) Pair {
    unsigned x, y;
};
typedef unsigned long long Barrier;  // of copies into shared memory, for phases in turn

DEVICE unsigned address_of(const void *shared) { return unsigned(__cvta_generic_to_shared(shared)); }

// d += a b on tensor cores: a [16, 16] and b [16, 8] bfloat16, d [16, 8] float; see mma.m16n8k16 in the PTX manual.
DEVICE void multiply_tile(float (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// d += a b on tensor cores: a [16, 32] unsigned bytes, b [32, 8] signed bytes, d [16, 8] int; see mma.m16n8k32.
DEVICE void multiply_bytes(int (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Two bfloat16 numbers times 2^80.
DEVICE unsigned enlarge(unsigned pair) {
    unsigned found;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(found) : "r"(pair), "r"(0x67806780));
    return found;
}

template <int BYTES>
DEVICE void copy_async(char *to, const char *from) {
    const unsigned there = address_of(to);
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(there), "l"(from) : "memory");
    else
        asm volatile("cp.async.ca.shared.global.L2::256B [%0], [%1], 8;" ::"r"(there), "l"(from) : "memory");
}

DEVICE void copies_end() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait until at most PENDING of the groups of copies that ended are under way.
template <int PENDING>
DEVICE void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

DEVICE void begin_barrier(Barrier *barrier) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address_of(barrier)) : "memory");
}

// The copy engine sees the barriers that this thread began.
DEVICE void barriers_begun() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// The barrier's phase ends when so many bytes have come.
DEVICE void expect(Barrier *barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address_of(barrier)), "r"(bytes)
                 : "memory");
}

DEVICE void copy_bulk(char *to, const void *from, int bytes, Barrier *barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     address_of(to)),
                 "l"(from), "r"(bytes), "r"(address_of(barrier))
                 : "memory");
}

// Wait for the end of this phase, 0 or 1 in turn.
DEVICE void wait_for(Barrier *barrier, int phase) {
    unsigned is_over;
    do
        asm volatile(
            "{.reg .pred over; mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2; selp.u32 %0, 1, 0, over;}"
            : "=r"(is_over)
            : "r"(address_of(barrier)), "r"(phase)
            : "memory");
    while (!is_over);
}

// The value that all lanes have, so that the compiler knows it.
DEVICE int same_in_warp(int value) { return __shfl_sync(0xFFFFFFFF, value, 0); }

// In one lane of the warp
DEVICE bool is_one_of_warp() {
    unsigned is_one;
    asm volatile("{.reg .pred one; elect.sync _|one, 0xFFFFFFFF; selp.u32 %0, 1, 0, one;}" : "=r"(is_one));
    return is_one;
}

// Barriers 1 to 15 of a block: so many threads come, of which some do not wait.
DEVICE void arrive_at(int barrier, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
DEVICE void wait_at(int barrier, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// What the lane whose number differs in these bits gives.
template <typename T>
DEVICE T exchange(T value, int bits) {
    return __shfl_xor_sync(0xFFFFFFFF, value, bits);
}

DEVICE unsigned lanes_where(bool is_so) { return __ballot_sync(0xFFFFFFFF, is_so); }
DEVICE int ones_of(unsigned bits) { return __popc(bits); }
DEVICE int first_of(unsigned bits) { return __ffs(bits) - 1; }
DEVICE unsigned max_of(unsigned a, unsigned b) { return max(a, b); }
DEVICE unsigned max_of_lanes(unsigned value) { return __reduce_max_sync(0xFFFFFFFF, value); }
DEVICE unsigned float_to_bits(float value) { return __float_as_uint(value); }
DEVICE float bits_to_float(unsigned bits) { return __uint_as_float(bits); }
DEVICE int to_int(float value) { return __float2int_rn(value); }

DEVICE unsigned short to_bfloat16(float value) {
    unsigned short found;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(found) : "f"(value));
    return found;
}

DEVICE float half_to_float(unsigned bits) {
    float found;
    asm("cvt.f32.f16 %0, %1;" : "=f"(found) : "h"((unsigned short)bits));
    return found;
}

DEVICE float exponential(float value) { return __expf(value); }

// What lane `lane` gives.
template <typename T>
DEVICE T given_by(T value, int lane) {
    return __shfl_sync(0xFFFFFFFF, value, lane);
}

// Ask for the 128 bytes around to be brought into the L2 cache.
DEVICE void touch(const void *from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }

// A load past the L1 cache, which other multiprocessors' writes do not reach.
template <typename T>
DEVICE T load_shared_by_all(const T *from) {
    return __ldcg(from);
}
DEVICE Quad load_shared_by_all(const Quad *from) {
    const uint4 found = __ldcg(reinterpret_cast<const uint4 *>(from));
    return {found.x, found.y, found.z, found.w};
}

// Programmatic dependent launch: a launch's blocks take their places while the launch before ends.
DEVICE void wait_for_launch_before() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
DEVICE void let_next_launch_start() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
