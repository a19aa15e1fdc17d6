// The products of a mixture's experts, each expert at a width of its own, for up to 64 tokens. One launch serves the
// first matrices (up) or the second (down). `kernels.py` compiles it with these constants:
//   WIDTHS   bit b: some expert may have b bits      GROUP    columns a scale, 0 for one scale a row
//   WARPS    of a block                              TILES    tiles of 8 tokens that share one reading of the weights
//   TOP_K    experts a token                         SPLITS   blocks that share the depth of one row tile (down)
//   DOWN     0: up, 1: down                          GATED    up's rows are gate and linear in turn: SwiGLU, else ReLU
//   ONE      a single token                          WHOLE    the depth is a multiple of 128
//   RING     bytes of a warp's ring of loads         BLOCKS   that a multiprocessor must have room for
//
// A block takes tiles of 64 rows, one by one, of one expert that has tokens (a slot of the plan: see routing.py). Its
// warps share the depth, span by span of some blocks of 32 columns. A lane copies the codes that it will need itself
// through its warp's ring in shared memory, spans ahead, and multiplies them on tensor cores with float32 sums. Inputs
// and group scales take the same way: an ordinary load would wait for all copies that were asked for before it.
//
// Decoding: `packing.py` places a code in bits 0-7 of a 16-bit half. A bfloat16 with those bits alone is the number
// code * 2^-133, exactly, for the numbers below 2^-126 are evenly spaced and the first binade above them has the same
// step. So one AND decodes two weights. Inputs are multiplied by 2^80, so that products are ordinary float32 numbers;
// an input of 2^48 or more becomes infinite. Codes are stored with an offset that makes them positive: a fifth product,
// of ones, gives the sum of the inputs to take off.
#ifdef __CUDACC__
#include "on_card.h"
#else
#include "on_host.h"
#endif

constexpr int ROWS = 64, COLUMNS = 32, THREADS = 32 * WARPS;
constexpr int TOKENS = 8 * TILES, SUMS = ONE ? 1 : 2;  // SUMS: a lane's tokens of a tile
constexpr int STRIDE = ROWS + 4;                       // of a token in the exchange between warps: no bank conflicts
constexpr int PARTS = DOWN ? TOP_K * SPLITS : 1;       // what is added up for one output
constexpr float UNIT = 9007199254740992.0f;            // 2^53, of 2^133 / 2^80

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

struct Scales {
    float of[2];
};

template <int BITS>
DEVICE void decode(const unsigned *w, unsigned (&v)[8]) {
    if constexpr (BITS == 3) {
        for (int j = 0; j < 3; ++j) v[j] = w[j] & 0x00070007, v[3 + j] = w[j] & 0x00380038;
        v[6] = (w[0] & 0x00C000C0) | ((w[1] >> 1) & 0x00200020);
        v[7] = (w[2] & 0x00C000C0) | ((w[1] >> 2) & 0x00200020);
    } else if constexpr (BITS == 6) {
        for (int i = 0; i < 2; ++i) {
            const unsigned *own = w + 3 * i;
            for (int j = 0; j < 3; ++j) v[4 * i + j] = own[j] & 0x003F003F;
            v[4 * i + 3] = (own[0] & 0x00C000C0) | ((own[1] >> 2) & 0x00300030) | ((own[2] >> 4) & 0x000C000C);
        }
    } else {
        constexpr int EACH = 8 / BITS;
        constexpr unsigned MASK = ((1u << BITS) - 1) * 0x00010001u;
        for (int h = 0; h < 8; ++h) v[h] = w[h / EACH] & (MASK << (BITS * (h % EACH)));
    }
}

// 1 / what rows 8 h .. 8 h + 7 are multiplied by, for where their codes lie in a byte
template <int BITS>
DEVICE constexpr float place(int h) {
    if (BITS == 3) return h < 3 ? 1.0f : h < 6 ? 1.0f / 8 : 1.0f / 32;
    if (BITS == 6) return h % 4 == 3 ? 1.0f / 4 : 1.0f;
    return 1.0f / (1 << BITS * (h % (8 / BITS)));
}

// Copies eight inputs from this column on. Where depths are whole (WHOLE), every column is there.
DEVICE void copy_inputs(char *to, const unsigned short *row, int column, int depth) {
    if constexpr (WHOLE) {
        copy_async<16>(to, reinterpret_cast<const char *>(row + column));
    } else {
        unsigned words[4] = {};
        for (int i = 0; i < 8; ++i)
            if (column + i < depth) words[i / 2] |= unsigned(row[column + i]) << 16 * (i % 2);
        *reinterpret_cast<Quad *>(to) = {words[0], words[1], words[2], words[3]};
    }
}

// This warp's share of the products of tiles blockIdx.x, + gridDim.x ..: for each finish(tile, begin(tile), products)
// with products [tile of tokens][row / 8][token]. slice: which of `slices` shares of the spans. row: a token's inputs.
template <int BITS, typename Begin, typename Finish>
DEVICE void multiply(const Arguments &a, const unsigned *words, const unsigned short *scales, int slice, int slices,
                     const unsigned short *const (&row)[TILES], char *ring, const Begin &begin,
                     const Finish &finish) {
    constexpr int SPAN = BITS == 2 && ONE && GROUP % 128 == 0 ? 4 : BITS <= 4 && TILES == 1 && GROUP % 64 == 0 ? 2 : 1;
    constexpr int BYTES = ROWS * COLUMNS * BITS / 8, FULL = BITS / 2;  // of a block; 16-byte copies of a lane
    constexpr int INPUTS = ONE ? 2 * COLUMNS : 2 * COLUMNS * TOKENS;   // bytes of a block's inputs
    constexpr int SCALES = SPAN * (BYTES + INPUTS);                    // where a span's group scales begin in its stage
    constexpr int STAGE = SCALES + (GROUP ? 128 : 0), STAGES = RING / STAGE;
    static_assert(STAGES > 1);
    constexpr float OFFSET = 1 << (BITS - 1);
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int blocks = (a.depth + COLUMNS - 1) / COLUMNS, spans = (blocks + SPAN - 1) / SPAN;
    const int groups = GROUP ? (a.depth + GROUP - 1) / GROUP : 1;
    const int mine = slice < spans ? (spans - slice + slices - 1) / slices : 0;
    const int tiles = (a.rows + ROWS - 1) / ROWS;

    // Copies run STAGES - 1 spans ahead, into the next tile where one ends.
    const long long span_step = (long long)slices * SPAN * BYTES;
    const long long tile_step = (long long)gridDim.x * blocks * BYTES - (mine - 1) * span_step;
    const char *from = reinterpret_cast<const char *>(words) + ((long long)blockIdx.x * blocks + slice * SPAN) * BYTES;
    int to_fetch = mine * ((tiles - int(blockIdx.x) + int(gridDim.x) - 1) / int(gridDim.x)), fetched = 0;
    const char *const end = ring + STAGES * STAGE, *at = ring;
    char *to = ring;
    int fetch_tile = blockIdx.x;
    const auto fetch_weights = [&](int span, char *stage) {
#pragma unroll
        for (int j = 0; j < SPAN; ++j) {
            if (!WHOLE && (slice + span * slices) * SPAN + j >= blocks) break;
#pragma unroll
            for (int c = 0; c < FULL; ++c)
                copy_async<16>(stage + j * BYTES + 512 * c + 16 * lane, from + j * BYTES + 512 * c + 16 * lane);
            if constexpr (BITS % 2)
                copy_async<8>(stage + j * BYTES + 512 * FULL + 8 * lane, from + j * BYTES + 512 * FULL + 8 * lane);
        }
        if constexpr (GROUP) {
            const int group = (slice + span * slices) * SPAN * COLUMNS / GROUP;
            const unsigned short *own = scales + (((long long)fetch_tile * groups + group) * 8 + g) * 8;
            if (q == 0) copy_async<16>(stage + SCALES + 16 * g, reinterpret_cast<const char *>(own));
        }
        fetch_tile += span + 1 == mine ? gridDim.x : 0;
        from += span + 1 == mine ? tile_step : span_step;
    };
    const auto fetch_inputs = [&](int span, char *stage) {
        if (ONE && g) return;
#pragma unroll
        for (int j = 0; j < SPAN; ++j)
#pragma unroll
            for (int n = 0; n < TILES; ++n)
                copy_inputs(stage + SPAN * BYTES + j * INPUTS + 512 * n + 16 * lane, row[n],
                            ((slice + span * slices) * SPAN + j) * COLUMNS + 8 * q, a.depth);
    };
    const auto after = [&](int span) { return span + 1 == mine ? 0 : span + 1; };

    int early = 0;
    for (int k = 0; k < STAGES - 1 && k < to_fetch; ++k, early = after(early)) fetch_weights(early, ring + k * STAGE);
    wait_for_launch_before();  // the weights and the plan were there before; the inputs may not be
    for (int k = 0; k < STAGES - 1; ++k, to += STAGE) {
        if (to_fetch > 0) {
            fetch_inputs(fetched, to);
            fetched = after(fetched);
            --to_fetch;
        }
        copies_end();
    }
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        float total[TILES][8][SUMS] = {}, ones[TILES][SUMS] = {};
        const auto scale_of_rows = begin(tile);
#pragma unroll 1
        for (int s = 0; s < mine; ++s) {
            float sum[TILES][4][4] = {}, plain[TILES][4] = {};
            if (to_fetch > 0) {
                fetch_weights(fetched, to);
                fetch_inputs(fetched, to);
                fetched = after(fetched);
                --to_fetch;
            }
            copies_end();
            to = to + STAGE == end ? ring : to + STAGE;
            copies_wait<STAGES - 1>();
            __syncwarp();
#pragma unroll
            for (int j = 0; j < SPAN; ++j) {
                unsigned w[2 * BITS];
#pragma unroll
                for (int c = 0; c < FULL; ++c)
                    *reinterpret_cast<Quad *>(w + 4 * c) =
                        *reinterpret_cast<const Quad *>(at + j * BYTES + 512 * c + 16 * lane);
                if constexpr (BITS % 2) {
                    const unsigned *rest = reinterpret_cast<const unsigned *>(at + j * BYTES + 512 * FULL + 8 * lane);
                    w[4 * FULL] = rest[0], w[4 * FULL + 1] = rest[1];
                }
                unsigned x[TILES][4];
#pragma unroll
                for (int n = 0; n < TILES; ++n) {
                    const char *own = at + SPAN * BYTES + j * INPUTS + 512 * n + 16 * (ONE ? q : lane);
                    const Quad found = *reinterpret_cast<const Quad *>(own);
                    x[n][0] = enlarge(found.x), x[n][1] = enlarge(found.y);
                    x[n][2] = enlarge(found.z), x[n][3] = enlarge(found.w);
                }
#pragma unroll
                for (int step = 0; step < 2; ++step) {
                    unsigned low[8], high[8], upper[BITS];
                    decode<BITS>(w + step * BITS, low);
#pragma unroll
                    for (int i = 0; i < BITS; ++i) upper[i] = w[step * BITS + i] >> 8;
                    decode<BITS>(upper, high);
#pragma unroll
                    for (int n = 0; n < TILES; ++n) {
                        const unsigned lower_x = x[n][2 * step], upper_x = x[n][2 * step + 1];
#pragma unroll
                        for (int m = 0; m < 4; ++m)
                            multiply_tile(sum[n][m], low[2 * m], low[2 * m + 1], high[2 * m], high[2 * m + 1], lower_x,
                                          upper_x);
                        multiply_tile(plain[n], 0x00010001, 0x00010001, 0x00010001, 0x00010001, lower_x, upper_x);
                    }
                }
            }
            float scale[8];
            if constexpr (GROUP) {
                const Quad packed = *reinterpret_cast<const Quad *>(at + SCALES + 16 * g);
                const unsigned *halves = &packed.x;
#pragma unroll
                for (int h = 0; h < 8; ++h) scale[h] = half_to_float(halves[h / 2] >> 16 * (h % 2));
            }
#pragma unroll
            for (int n = 0; n < TILES; ++n)
#pragma unroll
                for (int i = 0; i < SUMS; ++i) {
#pragma unroll
                    for (int h = 0; h < 8; ++h) {
                        const float part = sum[n][h / 2][2 * (h % 2) + i];
                        if constexpr (GROUP)
                            total[n][h][i] += (part * place<BITS>(h) - OFFSET * plain[n][i]) * scale[h];
                        else
                            total[n][h][i] += part;
                    }
                    ones[n][i] += plain[n][i];
                }
            at = at + STAGE == end ? ring : at + STAGE;
        }
        if constexpr (!GROUP)
#pragma unroll
            for (int n = 0; n < TILES; ++n)
#pragma unroll
                for (int h = 0; h < 8; ++h)
#pragma unroll
                    for (int i = 0; i < SUMS; ++i)
                        total[n][h][i] = total[n][h][i] * place<BITS>(h) - OFFSET * ones[n][i];
        finish(tile, scale_of_rows, total);
    }
    copies_wait<0>();
}

// Grid: (blocks that share the row tiles, slots, SPLITS).
KERNEL(experts)(const Arguments a) {
    DYNAMIC_SHARED(rings, WARPS * RING)
    __shared__ float exchange[2][WARPS][ONE ? 1 : 8][STRIDE];  // two, in turns: one barrier a tile is enough
    __shared__ int pairs[TOKENS];
    __shared__ float weights[TOKENS];
    __shared__ int is_last;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int slot = blockIdx.y, split = blockIdx.z;
    constexpr int OUT = GATED ? ROWS / 2 : ROWS;  // outputs of a token; a thread always has the same
    static_assert(THREADS % OUT == 0);
    const int tiles = (a.rows + ROWS - 1) / ROWS, outs = GATED ? a.rows / 2 : a.rows;

    // Down reads the plan, which was made two launches ago, and its first weights while up still runs.
    if constexpr (!DOWN) wait_for_launch_before();
    let_next_launch_start();
    const int bits = int(load_shared_by_all(a.slots + 3 * slot));
    const unsigned *words = a.words + load_shared_by_all(a.slots + 3 * slot + 1);
    const long long first_scale = load_shared_by_all(a.slots + 3 * slot + 2);
    const unsigned short *group_scales = static_cast<const unsigned short *>(a.scales) + (GROUP ? first_scale : 0);

    // The last block that reports a row tile adds all its parts, in one order whoever is last.
    const auto report = [&](int tile) {
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) is_last = atomicAdd(a.arrived + tile, 1) == int(gridDim.y) * SPLITS - 1;
        __syncthreads();
        if (!is_last) return;
        __threadfence();
        const int row = tile * ROWS + threadIdx.x % ROWS;
        for (int token = threadIdx.x / ROWS; token < a.tokens && row < a.rows; token += THREADS / ROWS) {
            float value = 0;
#pragma unroll
            for (int j = 0; j < PARTS; ++j) {
                const int pair = token * TOP_K + j / SPLITS;
                const long long part = ((long long)(j % SPLITS) * a.tokens * TOP_K + pair) * a.rows + row;
                value += load_shared_by_all(a.partial + part);
            }
            a.outputs[(long long)token * a.rows + row] = to_bfloat16(value);
        }
        if (threadIdx.x == 0) a.arrived[tile] = 0;
    };

    int turn = 0;
    for (int t0 = 0; t0 < a.tokens; t0 += TOKENS) {
        if (threadIdx.x < TOKENS) {
            const int t = t0 + threadIdx.x;
            const int pair = t < a.tokens ? load_shared_by_all(a.slot_pairs + slot * a.tokens + t) : -1;
            pairs[threadIdx.x] = pair;
            if constexpr (DOWN) weights[threadIdx.x] = pair < 0 ? 0.0f : load_shared_by_all(a.weight + pair);
        }
        __syncthreads();
        if (bits == 0 || pairs[0] < 0) break;
        const bool is_end = t0 + TOKENS >= a.tokens;
        const unsigned short *row[TILES];
#pragma unroll
        for (int n = 0; n < TILES; ++n) {  // where there is no token, another's inputs give products that no one reads
            const int pair = pairs[ONE ? 0 : 8 * n + g];
            row[n] = a.inputs + (pair < 0 ? 0 : (long long)(DOWN ? pair : pair / TOP_K) * a.depth);
        }
        const auto begin = [&](int tile) {  // early, for it takes long to come
            Scales found = {{UNIT, UNIT}};
            if constexpr (!GROUP)
                for (int i = 0; i < (GATED ? 2 : 1); ++i) {
                    const int out = tile * OUT + threadIdx.x % OUT, r = GATED ? 2 * out + i : out;
                    if (r < a.rows) found.of[i] *= static_cast<const float *>(a.scales)[first_scale + r];
                }
            return found;
        };
        const auto finish = [&](int tile, const Scales &scale, const float(&total)[TILES][8][SUMS]) {
            const int out = tile * OUT + threadIdx.x % OUT;
#pragma unroll
            for (int n = 0; n < TILES; ++n) {
                turn ^= 1;
                if (!ONE || q == 0)
#pragma unroll
                    for (int h = 0; h < 8; ++h)
#pragma unroll
                        for (int i = 0; i < SUMS; ++i) exchange[turn][warp][2 * q + i][8 * h + g] = total[n][h][i];
                __syncthreads();
                for (int token = threadIdx.x / OUT; token < (ONE ? 1 : 8); token += THREADS / OUT) {
                    const int pair = pairs[8 * n + token];
                    if (pair < 0 || out >= outs) continue;
                    float value[2] = {0, 0};
                    for (int i = 0; i < (GATED ? 2 : 1); ++i) {
                        const int r = GATED ? 2 * (threadIdx.x % OUT) + i : threadIdx.x % OUT;
#pragma unroll
                        for (int w = 0; w < WARPS; ++w) value[i] += exchange[turn][w][token][r];
                        value[i] *= scale.of[i];
                    }
                    if constexpr (!DOWN) {
                        const float act = GATED ? value[0] / (1 + exponential(-value[0])) * value[1] : value[0];
                        a.outputs[(long long)pair * outs + out] = to_bfloat16(GATED || !(act < 0) ? act : 0.0f);
                    } else if constexpr (PARTS == 1) {
                        a.outputs[(long long)pair * outs + out] = to_bfloat16(value[0] * weights[8 * n + token]);
                    } else {
                        const long long part = ((long long)split * a.tokens * TOP_K + pair) * outs + out;
                        a.partial[part] = value[0] * weights[8 * n + token];
                    }
                }
            }
            if constexpr (PARTS > 1)
                if (is_end) report(tile);
        };
        char *ring = rings + warp * RING;
        const int slice = split * WARPS + warp, slices = SPLITS * WARPS;
#define AT_WIDTH(b) \
    if constexpr ((WIDTHS >> b) & 1) \
        if (bits == b) multiply<b>(a, words, group_scales, slice, slices, row, ring, begin, finish);
        AT_WIDTH(2)
        AT_WIDTH(3)
        AT_WIDTH(4)
        AT_WIDTH(6)
        AT_WIDTH(8)
        if (is_end) return;
        __syncthreads();  // pairs may be overwritten
    }
    wait_for_launch_before();
    if constexpr (PARTS > 1)  // this slot has no more tokens; it reports nothing new
        for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) report(tile);
}

#ifndef __CUDACC__
static void fiber() {
    experts(*given);
    host::fibers[threadIdx.x].done = true;
}
#endif
