// What gemv.cu (one token) and gemm.cu (up to 64) share. `kernels.py` compiles both with these constants:
//   WIDTHS   bit b: some expert may have b bits      GROUP    columns a scale, 0 for one scale a row
//   WARPS    of a block                              RING     bytes of a warp's ring of loads
//   TOP_K    experts a token                         SPLITS   blocks that share the depth of one row tile (down)
//   DOWN     0: up, 1: down                          GATED    up's rows are gate and linear in turn: SwiGLU, else ReLU
//   WHOLE    the depth is a multiple of 128          BLOCKS   that a multiprocessor must have room for
//   SHARED   bytes of shared memory that a launch gives a block
// and gemv.cu with two more:
//   EARLY    stages of weights that down asks for before its inputs
//   SPREAD   blocks are dealt to the slots by their widths, so that all end together
// One launch serves the first matrices (up) or the second (down) of the experts that have tokens: the slots of the plan,
// see router.cu. A block takes tiles of 64 rows of one slot, one by one; its warps share the depth.
#ifdef __CUDACC__
#include "on_card.h"
#else
#include "on_host.h"
#endif

constexpr int ROWS = 64, COLUMNS = 32, THREADS = 32 * WARPS;
constexpr int OUT = GATED ? ROWS / 2 : ROWS;      // outputs of a row tile
constexpr int PARTS = DOWN ? TOP_K * SPLITS : 1;  // what is added up for one output

struct Arguments {
    const unsigned *words;         // all experts' packed matrices
    const void *scales;            // float [rows], or 16-bit floats [row tile, group, row % 8, row / 8 % 8]
    const long long *slots;        // [S, 3]: bits (0 where the slot is empty), first word, first scale
    const int *slot_pairs;         // [S, tokens]: the slot's pairs, then -1; pair t K + j is token t's j-th expert
    const unsigned short *inputs;  // bfloat16: up [tokens, depth], down [pairs, depth]
    unsigned short *outputs;       // bfloat16: up [pairs, hidden], down [tokens, rows]
    float *partial;                // down: [SPLITS, pairs, rows], scratch
    int *arrived;                  // down: [row tiles], 0; left at 0
    const float *weight;           // down: [pairs]
    int tokens, rows, depth;
};

struct Slot {
    int bits;
    const unsigned *words;
    const float *row_scales;
    const unsigned short *group_scales;
};

DEVICE Slot slot_at(const Arguments &a, int bits, long long first_word, long long first_scale) {
    return {bits, a.words + first_word, static_cast<const float *>(a.scales) + (GROUP ? 0 : first_scale),
            static_cast<const unsigned short *>(a.scales) + (GROUP ? first_scale : 0)};
}

DEVICE Slot slot_of(const Arguments &a, int slot) {
    const long long *own = a.slots + 3 * slot;
    return slot_at(a, int(load_shared_by_all(own)), load_shared_by_all(own + 1), load_shared_by_all(own + 2));
}

// The eight codes (rows 8 h .. 8 h + 7) of each byte place that EACH has a 1 in, every one where it lies in its byte.
template <int BITS, unsigned EACH>
DEVICE void decode(const unsigned *w, unsigned (&v)[8]) {
    if constexpr (BITS == 3) {
        for (int j = 0; j < 3; ++j) v[j] = w[j] & 0x07 * EACH, v[3 + j] = w[j] & 0x38 * EACH;
        v[6] = (w[0] & 0xC0 * EACH) | ((w[1] >> 1) & 0x20 * EACH);
        v[7] = (w[2] & 0xC0 * EACH) | ((w[1] >> 2) & 0x20 * EACH);
    } else if constexpr (BITS == 6) {
        for (int i = 0; i < 2; ++i) {
            const unsigned *own = w + 3 * i;
            for (int j = 0; j < 3; ++j) v[4 * i + j] = own[j] & 0x3F * EACH;
            v[4 * i + 3] =
                (own[0] & 0xC0 * EACH) | ((own[1] >> 2) & 0x30 * EACH) | ((own[2] >> 4) & 0x0C * EACH);
        }
    } else {
        constexpr int SHARE = 8 / BITS;
        constexpr unsigned MASK = ((1u << BITS) - 1) * EACH;
        for (int h = 0; h < 8; ++h) v[h] = w[h / SHARE] & (MASK << (BITS * (h % SHARE)));
    }
}

// 1 / what rows 8 h .. 8 h + 7 are multiplied by, for where their codes lie in a byte
template <int BITS>
DEVICE constexpr float place(int h) {
    if (BITS == 3) return h < 3 ? 1.0f : h < 6 ? 1.0f / 8 : 1.0f / 32;
    if (BITS == 6) return h % 4 == 3 ? 1.0f / 4 : 1.0f;
    return 1.0f / (1 << BITS * (h % (8 / BITS)));
}

// A lane's words of a block of 64 x 32 codes in shared memory
template <int BITS>
DEVICE void read_words(const char *block, int lane, unsigned (&w)[2 * BITS]) {
    constexpr int FULL = BITS / 2;
#pragma unroll
    for (int c = 0; c < FULL; ++c)
        *reinterpret_cast<Quad *>(w + 4 * c) = *reinterpret_cast<const Quad *>(block + 512 * c + 16 * lane);
    if constexpr (BITS % 2) {
        const Pair rest = *reinterpret_cast<const Pair *>(block + 512 * FULL + 8 * lane);
        w[4 * FULL] = rest.x, w[4 * FULL + 1] = rest.y;
    }
}

DEVICE const unsigned short *scales_of(const unsigned short *scales, int tile, int groups, int group) {
    return scales + ((long long)tile * groups + group) * ROWS;
}

struct Scales {
    float of[2];
};

// Output `own` of a tile from the sums over COUNT parts, to where it belongs. sums: [part][row of the tile], parts
// `stride` apart.
template <int COUNT>
DEVICE void put(const Arguments &a, const float *sums, int stride, const Scales &scale, int tile, int own, int split,
                int pair, float weight) {
    const int out = tile * OUT + own, outs = GATED ? a.rows / 2 : a.rows;
    if (out >= outs) return;
    float value[2] = {0, 0};
#pragma unroll 8
    for (int part = 0; part < COUNT; ++part) {
        if constexpr (GATED) {
            const Pair both = *reinterpret_cast<const Pair *>(sums + part * stride + 2 * own);
            value[0] += bits_to_float(both.x), value[1] += bits_to_float(both.y);
        } else {
            value[0] += sums[part * stride + own];
        }
    }
    for (int i = 0; i < (GATED ? 2 : 1); ++i) value[i] *= scale.of[i];
    if constexpr (!DOWN) {
        const float act = GATED ? value[0] / (1 + exponential(-value[0])) * value[1] : value[0];
        a.outputs[(long long)pair * outs + out] = to_bfloat16(GATED || !(act < 0) ? act : 0.0f);
    } else if constexpr (PARTS == 1) {
        a.outputs[(long long)pair * outs + out] = to_bfloat16(value[0] * weight);
    } else {
        a.partial[((long long)split * a.tokens * TOP_K + pair) * outs + out] = value[0] * weight;
    }
}

// The outputs of a row tile whose parts are all there, in one order. thread: of COUNT.
template <int COUNT>
DEVICE void add_parts(const Arguments &a, int tile, int thread) {
    for (int i = thread; i < a.tokens * ROWS; i += COUNT) {
        const int row = tile * ROWS + i % ROWS, token = i / ROWS;
        if (row >= a.rows) continue;
        float value = 0;
#pragma unroll
        for (int j = 0; j < PARTS; ++j) {
            const int pair = token * TOP_K + j / SPLITS;
            const long long part = ((long long)(j % SPLITS) * a.tokens * TOP_K + pair) * a.rows + row;
            value += load_shared_by_all(a.partial + part);
        }
        a.outputs[(long long)token * a.rows + row] = to_bfloat16(value);
    }
    if (thread == 0) a.arrived[tile] = 0;
}
