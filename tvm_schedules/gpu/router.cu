// Chooses and weighs each token's experts and makes the plan that gemv.cu and gemm.cu follow, in one launch.
//   WARPS    of a block                              TOP_K    experts a token
//   EXPERTS  of the layer                            TOKENS   of the batch, at most 64
//   RENORMALISE  the chosen experts' weights sum to 1
//
// A plan lists the experts that got any token: its slots, in ascending order. There are min(EXPERTS, TOKENS * TOP_K) of
// them; those at the end may be empty. A slot holds all that a block must know of its expert. Nothing of the plan is
// known to the host, so a layer can be one CUDA graph.
#ifdef __CUDACC__
#include "on_card.h"
#else
#include "on_host.h"
#endif

constexpr int THREADS = 32 * WARPS, SLOTS = EXPERTS < TOKENS * TOP_K ? EXPERTS : TOKENS * TOP_K;
constexpr int EACH = (EXPERTS + 31) / 32;               // experts of a lane: lane, lane + 32 ..
constexpr int SHARE = TOKENS < WARPS ? WARPS : 1;  // warps that multiply one token

struct Arguments {
    const unsigned short *inputs;  // bfloat16 [TOKENS, depth]
    const unsigned short *router;  // bfloat16 [EXPERTS, depth]
    float *logits;                 // [TOKENS, EXPERTS], scratch
    int *arrived;                  // 0; left at 0
    const long long *table;        // [EXPERTS, 5]: bits; first word and first scale of the first matrix; of the second
    long long *up_slots;           // [SLOTS, 3]: bits (0 where the slot is empty), first word, first scale
    long long *down_slots;         // [SLOTS, 3]
    int *slot_pairs;               // [SLOTS, TOKENS]: the slot's pairs, then -1
    float *weight;                 // [TOKENS, TOP_K]; a token's experts in ascending order
    int depth;
};

DEVICE float number(unsigned short half) { return bits_to_float(unsigned(half) << 16); }

// This lane's part of a token's logit; SHARE warps take the depth together.
DEVICE float product(const unsigned short *x, const unsigned short *row, int depth) {
    const int first = threadIdx.x % (32 * SHARE);
    float sum = 0;
    if (depth % 8) {
        for (int k = first; k < depth; k += 32 * SHARE) sum += number(load_shared_by_all(x + k)) * number(row[k]);
        return sum;
    }
#pragma unroll 8
    for (int k = 8 * first; k < depth; k += 8 * 32 * SHARE) {
        const Quad given = load_shared_by_all(reinterpret_cast<const Quad *>(x + k));
        const Quad weight = *reinterpret_cast<const Quad *>(row + k);
        const unsigned a[4] = {given.x, given.y, given.z, given.w}, b[4] = {weight.x, weight.y, weight.z, weight.w};
        for (int i = 0; i < 4; ++i) {
            sum += bits_to_float(a[i] << 16) * bits_to_float(b[i] << 16);
            sum += bits_to_float(a[i] & 0xFFFF0000) * bits_to_float(b[i] & 0xFFFF0000);
        }
    }
    return sum;
}

// A number above 1 that grows with a float; 1 for what is not a number
DEVICE unsigned order(float value) {
    const unsigned bits = float_to_bits(value);
    return value != value ? 1 : bits >> 31 ? ~bits : bits | 0x80000000;
}

// A warp chooses a token's experts. place: for each expert, 1 + its place among the chosen, or 0. Of equal logits the
// lower expert wins.
DEVICE void choose(const float *logits, float *weight, unsigned char *place, int lane) {
    float own[EACH], norm = 0;
    unsigned left[EACH], taken = 0;  // bit i: this lane's i-th expert
    unsigned greatest = 0;
    for (int i = 0; i < EACH; ++i) {
        const int e = lane + 32 * i;
        own[i] = e < EXPERTS ? load_shared_by_all(logits + e) : -bits_to_float(0x7F800000);
        left[i] = e < EXPERTS ? order(own[i]) : 0;
    }
#pragma unroll 1
    for (int j = 0; j < TOP_K; ++j) {
        unsigned mine = 0;
        for (int i = 0; i < EACH; ++i) mine = max_of(mine, left[i]);
        const unsigned best = max_of_lanes(mine);
        if (j == 0) greatest = best;
        unsigned expert = EXPERTS;
        for (int i = EACH - 1; i >= 0; --i)
            if (left[i] == best) expert = lane + 32 * i;
        expert = EXPERTS - max_of_lanes(EXPERTS - expert);
        for (int i = 0; i < EACH; ++i)
            if (expert == lane + 32 * i) left[i] = 0, taken |= 1u << i;
    }
    const float most = bits_to_float(greatest >> 31 ? greatest ^ 0x80000000 : ~greatest);
    for (int i = 0; i < EACH; ++i) {
        own[i] = exponential(own[i] - most);
        if (!RENORMALISE || taken >> i & 1) norm += own[i];
    }
    for (int other = 16; other; other /= 2) norm += exchange(norm, other);
    int before = 0;
    for (int i = 0; i < EACH; ++i) {
        const bool is_taken = taken >> i & 1;
        const unsigned lanes = lanes_where(is_taken);
        const int rank = before + ones_of(lanes & ((1u << lane) - 1));
        if (lane + 32 * i < EXPERTS) place[lane + 32 * i] = is_taken ? rank + 1 : 0;
        if (is_taken) weight[rank] = own[i] / norm;
        before += ones_of(lanes);
    }
}

// Grid: (EXPERTS). A block multiplies its expert's row with all tokens; the last to finish makes the plan.
KERNEL(router)(const Arguments a) {
    __shared__ float parts[TOKENS][SHARE];
    __shared__ unsigned char places[TOKENS][EXPERTS], is_active[EXPERTS];
    __shared__ int is_last;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int k = 8 * threadIdx.x; k < a.depth; k += 8 * THREADS)  // the weights are there before the inputs are
        touch(a.router + (long long)blockIdx.x * a.depth + k);
    wait_for_launch_before();
    let_next_launch_start();
    for (int t = warp / SHARE; t < TOKENS; t += WARPS / SHARE) {
        const long long first = (long long)blockIdx.x * a.depth;
        float sum = product(a.inputs + (long long)t * a.depth, a.router + first, a.depth);
        for (int other = 16; other; other /= 2) sum += exchange(sum, other);
        if (lane == 0) parts[t][warp % SHARE] = sum;
    }
    __syncthreads();
    if (threadIdx.x < TOKENS) {
        float sum = 0;
        for (int w = 0; w < SHARE; ++w) sum += parts[threadIdx.x][w];
        a.logits[threadIdx.x * EXPERTS + blockIdx.x] = sum;
        __threadfence();
    }
    __syncthreads();
    if (threadIdx.x == 0) is_last = atomicAdd(a.arrived, 1) == EXPERTS - 1;
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    for (int t = warp; t < TOKENS; t += WARPS) choose(a.logits + t * EXPERTS, a.weight + t * TOP_K, places[t], lane);
    __syncthreads();
    for (int e = threadIdx.x; e < EXPERTS; e += THREADS) {
        bool active = false;
        for (int t = 0; t < TOKENS; ++t) active |= places[t][e] > 0;
        is_active[e] = active;
    }
    __syncthreads();
    for (int e = threadIdx.x; e < EXPERTS; e += THREADS) {
        int slot = 0, used = 0;
        for (int other = 0; other < EXPERTS; ++other) slot += is_active[other] && other < e, used += is_active[other];
        if (is_active[e]) {
            for (int i = 0; i < 3; ++i) {
                a.up_slots[3 * slot + i] = a.table[5 * e + i];
                a.down_slots[3 * slot + i] = a.table[5 * e + (i ? 2 + i : 0)];
            }
            int *pairs = a.slot_pairs + slot * TOKENS;
            for (int t = 0; t < TOKENS; ++t)
                if (places[t][e]) *pairs++ = t * TOP_K + places[t][e] - 1;
            while (pairs < a.slot_pairs + (slot + 1) * TOKENS) *pairs++ = -1;
        } else if (const int empty = used + e - slot; empty < SLOTS) {  // e - slot: inactive experts before this one
            a.up_slots[3 * empty] = a.down_slots[3 * empty] = 0;
            for (int t = 0; t < TOKENS; ++t) a.slot_pairs[empty * TOKENS + t] = -1;
        }
    }
    if (threadIdx.x == 0) *a.arrived = 0;
}
