// What experts.cu needs of an NVIDIA GPU of compute capability 9.0 or later, as PTX. on_host.h has the same for a CPU.
#define DEVICE __device__ __forceinline__
#define KERNEL(name) extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS) name
#define DYNAMIC_SHARED(name, bytes) extern __shared__ __align__(128) char name[];  // the launch gives the bytes

struct alignas(16) Quad {
    unsigned x, y, z, w;
};

// d += a b on tensor cores: a [16, 16] and b [16, 8] bfloat16, d [16, 8] float; see mma.m16n8k16 in the PTX manual.
DEVICE void multiply_tile(float (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
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
    const unsigned there = unsigned(__cvta_generic_to_shared(to));
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

// A load past the L1 cache, which other multiprocessors' writes do not reach.
template <typename T>
DEVICE T load_shared_by_all(const T *from) {
    return __ldcg(from);
}

// Programmatic dependent launch: a launch's blocks take their places while the launch before ends.
DEVICE void wait_for_launch_before() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
DEVICE void let_next_launch_start() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
